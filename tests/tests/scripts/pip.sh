# pip in a virtual environment, offline, from a wheel.
mkdir -p demo/demo_pkg; echo 'def main(): print("installed")' > demo/demo_pkg/__init__.py
python3 - <<'END'
import base64, hashlib, zipfile
files = {'demo_pkg/__init__.py': open('demo/demo_pkg/__init__.py').read(),
 'demo_pkg-1.0.dist-info/METADATA': 'Metadata-Version: 2.1\nName: demo-pkg\nVersion: 1.0\n',
 'demo_pkg-1.0.dist-info/WHEEL': 'Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
 'demo_pkg-1.0.dist-info/entry_points.txt': '[console_scripts]\ndemo = demo_pkg:main\n'}
record = ''.join('%s,sha256=%s,%d\n' % (n, base64.urlsafe_b64encode(hashlib.sha256(t.encode()).digest()).rstrip(b'=').decode(), len(t)) for n, t in files.items())
files['demo_pkg-1.0.dist-info/RECORD'] = record + 'demo_pkg-1.0.dist-info/RECORD,,\n'
with zipfile.ZipFile('demo_pkg-1.0-py3-none-any.whl', 'w') as z:
    for n, t in files.items(): z.writestr(n, t)
END
python3 -m venv env; env/bin/pip install -q --no-index --disable-pip-version-check ./demo_pkg-1.0-py3-none-any.whl; env/bin/demo
env/bin/python -c 'import demo_pkg; print(demo_pkg.__file__.split("/env/")[1])'; env/bin/pip uninstall -qy demo-pkg; test ! -e env/bin/demo
rm -r env demo demo_pkg-1.0-py3-none-any.whl

# Two processes share mappings, and read and write the same file beside them.
python3 - <<'END'
import hashlib, mmap, os, subprocess, sys
SIZE = 1 << 20
CHILD = '''
import mmap, os, sys
fd = os.open('mapped', os.O_RDWR)
mapped = mmap.mmap(fd, 1 << 20)
for line in sys.stdin:
    at = int(line)
    print(mapped[at:at + 5], os.pread(fd, 5, at), flush=True)
    mapped[at + 8:at + 13] = b'child'
    os.pwrite(fd, b'write', at + 16)
    print('done', flush=True)
'''
with open('mapped', 'wb') as file:
    file.truncate(SIZE)
child = subprocess.Popen([sys.executable, '-c', CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
fd = os.open('mapped', os.O_RDWR)
mapped = mmap.mmap(fd, SIZE)
for at in (0, 4090, 70000, SIZE - 32):
    mapped[at:at + 5] = b'first'
    child.stdin.write('%d\n' % at)
    child.stdin.flush()
    print(child.stdout.readline().strip(), child.stdout.readline().strip())
    print(mapped[at + 8:at + 13], os.pread(fd, 5, at + 8), mapped[at + 16:at + 21], os.pread(fd, 5, at + 16))
child.stdin.close()
child.wait()
mapped.flush()
mapped.close()
private = mmap.mmap(fd, 4096, flags=mmap.MAP_PRIVATE)
private[0:4] = b'mine'
print(os.pread(fd, 5, 0))
private.close()
print(hashlib.sha256(open('mapped', 'rb').read()).hexdigest())
os.remove('mapped')
END

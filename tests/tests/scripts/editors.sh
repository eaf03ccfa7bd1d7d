# Editors that save by writing another file and renaming it, by renaming the old one away, and in place.
printf 'one\ntwo\nthree\n' > text
chmod 640 text
edit() { vim -es -u NONE -c 'set backupskip=' "$@" -c x text < /dev/null; }
edit -c 'set nobackup writebackup backupcopy=auto' -c '%s/two/2/'
cat text
stat -c '%a %h' text
edit -c 'set backup backupcopy=no' -c '%s/three/3/'
cat text text~
stat -c %a text
edit -c 'set backup backupcopy=yes' -c '%s/one/1/'
cat text text~
sed -i.bak s/1/first/ text
cat text text.bak
perl -pi -e 's/first/1st/' text
cat text
python3 - <<'END'
import os, tempfile
for n in range(50):
    fd, name = tempfile.mkstemp(dir='.')
    os.write(fd, b'save %d\n' % n)
    os.fsync(fd)
    os.close(fd)
    os.replace(name, 'text')
    directory = os.open('.', os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    assert open('text').read() == 'save %d\n' % n
END
ls
git status --porcelain
rm text*

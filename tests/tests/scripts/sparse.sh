# Holes: where they are, how cp, tar, fallocate and rsync see and make them.
python3 - <<'END'
import os, subprocess

def ranges(name):
    fd = os.open(name, os.O_RDONLY)
    size, at, found = os.fstat(fd).st_size, 0, []
    while at < size:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, data, os.SEEK_HOLE)
        found.append((data, at))
    os.close(fd)
    return name, size, os.stat(name).st_blocks, found

MIB = 1 << 20
with open('s', 'wb') as file:
    file.truncate(10 * MIB)
    for at in (0, MIB, MIB + 4096, 5 * MIB, 10 * MIB - 4096):
        os.pwrite(file.fileno(), b'd' * 4096, at)
print(*ranges('s'))
subprocess.run('''set -e
cp --sparse=always s always
cp --sparse=auto s auto
cp --sparse=never s never
tar -S -cf s.tar s
mkdir out
tar -xf s.tar -C out
rsync -S s rsynced
for copy in always auto never out/s rsynced; do cmp s $copy; done''', shell=True, check=True)
for name in ('always', 'auto', 'out/s'):
    print(*ranges(name))
subprocess.run('fallocate -p -o %d -l 4096 always' % MIB, shell=True, check=True)
print(*ranges('always'))
os.truncate('auto', 3 * MIB)
os.truncate('auto', 8 * MIB)
print(*ranges('auto'))
subprocess.run('rm -r s always auto never out s.tar rsynced', shell=True, check=True)
END

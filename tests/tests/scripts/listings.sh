# Directories that change while they are read, and handles of directories that move and go.
python3 - <<'END'
import os, shutil
FILES = 3000
os.mkdir('d')
for n in range(FILES):
    for kind in ('stay', 'go'):
        open('d/%s%04d' % (kind, n), 'w').close()
seen = []
with os.scandir('d') as entries:
    for count, entry in enumerate(entries):
        seen.append(entry.name)
        if count % 3 == 0 and count // 3 < FILES:
            os.remove('d/go%04d' % (count // 3))
            open('d/come%04d' % (count // 3), 'w').close()
# What is there all the time comes once; nothing comes twice.
staying = sorted(name for name in seen if name.startswith('stay'))
print(staying == ['stay%04d' % n for n in range(FILES)], len(seen) == len(set(seen)))
fd = os.open('d', os.O_RDONLY | os.O_DIRECTORY)
print(os.stat('stay0001', dir_fd=fd).st_size)
os.rename('d', 'e')
os.close(os.open('new', os.O_CREAT | os.O_WRONLY, dir_fd=fd))
print(os.path.exists('e/new'), 'new' in os.listdir(fd))
shutil.rmtree('e')
print(os.listdir(fd), os.fstat(fd).st_nlink)
try:
    os.open('x', os.O_CREAT | os.O_WRONLY, dir_fd=fd)
except OSError as error:
    print(error.errno)
END

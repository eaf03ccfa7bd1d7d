# inotify tells what programs change through the mount.
python3 - <<'END'
import ctypes, os, select, struct, subprocess, sys

NAMES = {0x2: 'MODIFY', 0x4: 'ATTRIB', 0x8: 'CLOSE_WRITE', 0x20: 'OPEN', 0x40: 'MOVED_FROM', 0x80: 'MOVED_TO',
         0x100: 'CREATE', 0x200: 'DELETE', 0x400: 'DELETE_SELF', 0x800: 'MOVE_SELF', 0x40000000: 'ISDIR'}
IN_NONBLOCK = os.O_NONBLOCK
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.inotify_init1(IN_NONBLOCK)

def watch(path):
    assert libc.inotify_add_watch(fd, path.encode(), 0xfee) > 0, ctypes.get_errno()

def step(what, change):
    change()
    events = []
    # Events are there when the change has returned.
    while select.select([fd], [], [], 0)[0]:
        data, at = os.read(fd, 65536), 0
        while at < len(data):
            _, mask, _, length = struct.unpack_from('iIII', data, at)
            name = data[at + 16:at + 16 + length].rstrip(b'\0').decode()
            at += 16 + length
            events.append('|'.join(text for bit, text in NAMES.items() if mask & bit) + ' ' + name)
    print(what, events)

def child(code):
    subprocess.run([sys.executable, '-c', code], check=True)

os.makedirs('w/sub')
watch('w')
step('create', lambda: open('w/a', 'w').close())
step('write', lambda: child("open('w/a', 'w').write('x')"))
step('append', lambda: child("open('w/a', 'a').write('x')"))
step('mode', lambda: os.chmod('w/a', 0o600))
step('times', lambda: os.utime('w/a', (1, 1)))
step('attribute', lambda: os.setxattr('w/a', 'user.x', b'y'))
step('rename', lambda: os.rename('w/a', 'w/b'))
step('link', lambda: os.link('w/b', 'w/c'))
step('symlink', lambda: os.symlink('b', 'w/l'))
step('truncate', lambda: os.truncate('w/b', 0))
step('mkdir', lambda: os.mkdir('w/d'))
step('rmdir', lambda: os.rmdir('w/d'))
step('over', lambda: (open('w/e', 'w').close(), os.replace('w/e', 'w/b')))
step('unlink', lambda: [os.remove('w/' + name) for name in 'bcl'])
watch('w/sub')
step('away', lambda: os.rename('w/sub', 'moved'))
step('gone', lambda: os.rmdir('moved'))
os.rmdir('w')
END

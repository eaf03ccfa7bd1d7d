# Locks between processes: flock, ranges, ranges of an open file, and sqlite on top of them.
python3 - <<'END'
import fcntl, os, subprocess, sys

# Four processes count under a lock of each kind.
COUNT = '''
import fcntl, os, struct, sys
fd = os.open('counter', os.O_RDWR)
F_OFD_SETLKW = 38
def lock(on):
    if sys.argv[1] == 'flock':
        fcntl.flock(fd, fcntl.LOCK_EX if on else fcntl.LOCK_UN)
    elif sys.argv[1] == 'fcntl':
        fcntl.lockf(fd, fcntl.LOCK_EX if on else fcntl.LOCK_UN, 10, 100)
    else:
        kind = fcntl.F_WRLCK if on else fcntl.F_UNLCK
        fcntl.fcntl(fd, F_OFD_SETLKW, struct.pack('hhqqi4x', kind, os.SEEK_SET, 100, 10, 0))
for _ in range(100):
    lock(True)
    n = int(os.pread(fd, 20, 0))
    os.pwrite(fd, b'%d' % (n + 1), 0)
    lock(False)
'''
for kind in ('flock', 'fcntl', 'ofd'):
    with open('counter', 'w') as file:
        file.write('0')
    counting = [subprocess.Popen([sys.executable, '-c', COUNT, kind]) for _ in range(4)]
    print(kind, [child.wait() for child in counting], open('counter').read())

# Ranges of one file are apart, and are free again.
TRY = '''
import fcntl
file = open('counter', 'r+')
for at in (0, 5, 10, 15):
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, at)
        print(at, 'is free')
    except OSError as error:
        print(at, error.errno)
'''
def others():
    print(subprocess.run([sys.executable, '-c', TRY], capture_output=True, text=True).stdout)
file = open('counter', 'r+')
fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
others()
fcntl.lockf(file, fcntl.LOCK_UN)
others()
os.remove('counter')
END

for mode in delete truncate persist wal; do
    sqlite3 $mode.db "pragma journal_mode=$mode; create table t (worker, number);"
    for worker in 1 2 3 4; do
        for n in $(seq 15); do
            printf '.timeout 60000\nbegin immediate; insert into t values (%d, %d); commit;\n' $worker $n
        done | sqlite3 $mode.db &
    done
    wait
    sqlite3 $mode.db "select worker, count(*), sum(number) from t group by worker; pragma integrity_check;"
    rm -f $mode.db*
done

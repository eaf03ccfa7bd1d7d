# Several processes append to one file: no line is lost, cut or out of its order.
python3 - <<'END'
import os, subprocess, sys
APPEND = '''
import os, sys
fd = os.open('log', os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
for n in range(500):
    os.write(fd, b'%s %d %s\\n' % (sys.argv[1].encode(), n, b'x' * (n % 90)))
'''
appending = [subprocess.Popen([sys.executable, '-c', APPEND, str(who)]) for who in range(6)]
print([child.wait() for child in appending])
lines = open('log').read().split('\n')
print(len(lines), lines[-1] == '')
for who in range(6):
    own = [line for line in lines if line.startswith('%d ' % who)]
    assert own == ['%d %d %s' % (who, n, 'x' * (n % 90)) for n in range(500)], who
os.remove('log')
END
for who in 1 2 3 4 5; do
    (for n in $(seq 60); do echo "$who $n" >> log; done) &
done
wait
sort log | uniq -c | awk '{ print $1 }' | sort | uniq -c
rm log

# tar and cp: hard links, set-id bits, owners, times, a fifo, links.
mkdir -p t/sub
for n in 1 2 3 4 5; do seq $((n * 10000)) > t/f$n; done
ln t/f1 t/hard1
ln t/f2 t/sub/hard2
ln -s ../f3 t/sub/link
mkfifo t/fifo
touch -d @1111111111.5 t/f3
chmod 4711 t/f4
chmod 2755 t/sub
[ "$(id -u)" != 0 ] || chown 1000:1000 t/f5
tar --xattrs -cf t.tar t
mkdir u
tar --xattrs --same-permissions -xf t.tar -C u
cd u/t
stat -c '%n %h %a %u %g %F' * sub/*
test f1 -ef hard1
test f2 -ef sub/hard2
stat -c %.9Y f3
sha256sum f1 sub/hard2 sub/link
cd ../..
tar df t.tar -C u
cp -a u/t v
test v/f1 -ef v/hard1
diff -r --no-dereference t/sub v/sub
rm -r t u v t.tar

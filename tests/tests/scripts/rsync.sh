# rsync: a copy with everything, a second one that finds nothing to do, deletions, a change in place.
mkdir -p from/sub from/empty
for n in $(seq 40); do head -c $((n * 777)) /dev/zero | tr '\0' "$((n % 10))" > from/sub/f$n; done
ln -s sub/f1 from/link
ln from/sub/f2 from/hard
chmod 600 from/sub/f3
python3 -c 'import os; os.setxattr("from/sub/f5", "user.note", b"kept")'
# rsync compares whole seconds: what is changed later must not be in the same one.
find from -exec touch -h -d @1234567890 {} +

rsync -aHX from/ to/
echo "again: $(rsync -aHXi from/ to/ | wc -l)"
python3 -c 'import os; print(os.getxattr("to/sub/f5", "user.note"))'
test to/hard -ef to/sub/f2
stat -c '%n %s %a %h' to/sub/* | sort
stat -c %Y to/sub/f4

rm from/sub/f1 from/link
echo more >> from/sub/f2
touch -d @1234567899 from/sub/f4
rsync -aHXi --delete from/ to/ | sort
printf 'XX' | dd of=from/sub/f40 bs=1 seek=5000 conv=notrunc status=none
before=$(stat -c %i to/sub/f40)
rsync -aHX --inplace --no-whole-file from/ to/
test "$before" = "$(stat -c %i to/sub/f40)"
echo "differ: $(rsync -aHXin --checksum --delete from/ to/ | wc -l)"
rm -r from to

# git-lfs: track, commit, check out, and what changes is seen.
git lfs install --local > /dev/null
git lfs track '*.bin' > /dev/null
seq 100000 > large.bin
git add .gitattributes large.bin
git commit -qm lfs
git rev-parse HEAD
git cat-file -p HEAD:large.bin
git lfs ls-files
git status --porcelain
rm large.bin
git checkout -q large.bin
sha256sum large.bin
echo more >> large.bin
git status --porcelain
git commit -qam more
git checkout -q HEAD~1
sha256sum large.bin
git checkout -q -
sha256sum large.bin
git status --porcelain
git lfs fsck

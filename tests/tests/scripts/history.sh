# git: histories that are rewritten, conflicts that are given up, hooks, stashes with untracked files.
git checkout -q -b many
for n in 1 2 3 4; do
    echo $n > many$n
    git add many$n
    git commit -qm "many $n"
done
GIT_SEQUENCE_EDITOR='sed -i -e "s/^pick \(.*many 2\)/squash \1/" -e "/many 3/d"' GIT_EDITOR=true \
    git rebase -q -i HEAD~4
git log --format=%s -4
ls many*
git status --porcelain
git rebase -q --exec 'echo x >> executed; git add executed; git commit -q --amend --no-edit' HEAD~2
cat executed
git rev-parse HEAD
git rebase -q --exec false HEAD~1 || git status | sed -n '1,3s/ onto.*//p'
git rebase --abort
git status --porcelain
git rev-parse HEAD

echo tracked >> new
echo untracked > untracked
mkdir -p deep/er
echo x > deep/er/x
git stash -q -u
git status --porcelain
ls
git stash pop -q
git status --porcelain
cat untracked deep/er/x
git checkout -q .
git clean -fdxq
git status --porcelain --ignored
ls

git checkout -q -b left
echo left > new
git rm -q dir1/file4
git commit -qam left
git checkout -q -b right HEAD~1
echo right > new
echo c >> dir1/file4
git commit -qam right
git cherry-pick left > /dev/null || git status --porcelain
cat new
git cherry-pick --abort
git status --porcelain
git merge left > /dev/null || git status --porcelain
git checkout -q --ours new
git add new
git rm -q dir1/file4
git commit -qm merged
git rev-parse HEAD
git revert -m 1 --no-edit HEAD > /dev/null
git rev-parse HEAD
git status --porcelain

mkdir hooks
printf '#!/bin/sh\ngrep -q bad new && exit 1\necho pre-commit >> hooks/ran\n' > hooks/pre-commit
printf '#!/bin/sh\necho "post-checkout $3" >> hooks/ran\n' > hooks/post-checkout
printf '#!/bin/sh\necho post-merge >> hooks/ran\n' > hooks/post-merge
printf '#!/bin/sh\nsed -i "1s/^/hooked: /" "$1"\n' > hooks/commit-msg
chmod +x hooks/*
git config core.hooksPath "$PWD/hooks"
echo bad > new
git commit -qam refused || echo refused
echo good > new
git commit -qam accepted
git log -1 --format=%s
git checkout -q left
git checkout -q -
git checkout -q -b forward HEAD~1
git merge -q --ff-only right
cat hooks/ran
git config --unset core.hooksPath
rm -r hooks
git status --porcelain

git worktree add -q "$OTHER" -b other
(cd "$OTHER"; test -f new; echo o > o; git add o; git commit -qm o; git status --porcelain)
git worktree list | grep -c "^$OTHER "
git merge -q other
cat o
git worktree remove "$OTHER"
git branch -qd other
git worktree list | grep -c "^$OTHER " || echo none

git diff HEAD~1 | git apply -R
git status --porcelain
git checkout -q HEAD -- .
git status --porcelain
git bundle create -q "$OTHER.bundle" right
git ls-remote "$OTHER.bundle" | cut -f2
rm "$OTHER.bundle"
git repack -adq
git fsck --no-progress --no-dangling
git update-index --really-refresh
git diff-files
git switch -q main
git status --porcelain

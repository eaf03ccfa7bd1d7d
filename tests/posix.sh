#!/usr/bin/env bash
# Runs two programs that others wrote to test file systems on a worktree: pjdfstest, which knows what POSIX
# says of names and attributes, and fsx, which reads, writes, maps, cuts and copies one file at random.
#
#   tests/posix.sh AGENTFS [OPERATIONS [SEED...]]
#
# AGENTFS is the binary to test; fsx does so many OPERATIONS with each SEED. Needs root, /dev/fuse, and
# pjdfstest and fsx in PATH (`cargo install pjdfstest fsx`).
set -euo pipefail
agentfs=$(realpath "$1")
operations=${2:-20000}
shift $(($# < 2 ? $# : 2))
seeds=("$@")
[ ${#seeds[@]} -gt 0 ] || seeds=(1 2 3)

work=$(mktemp -d)
chmod 755 "$work"
export AGENTFS_HOME=$work/store
finish() {
    status=$?
    "$agentfs" daemon stop >/dev/null 2>&1 || true
    umount -l "$work/worktree" 2>/dev/null || true
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT

git init -q -b main "$work/source"
echo x > "$work/source/file"
git -C "$work/source" add -A
git -C "$work/source" -c user.name=t -c user.email=t@localhost commit -q -m one
"$agentfs" clone "$work/source" "$work/worktree" --allow-other >/dev/null

cat > "$work/pjdfstest.toml" <<'END'
[features]
posix_fallocate = {}
[settings]
naptime = 0.001
allow_remount = false
expected_failures = []
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
END
mkdir "$work/worktree/posix"
# What it skips on ext4 it skips here, and link_count_max, since libc knows no LINK_MAX of FUSE.
timeout 600 pjdfstest -c "$work/pjdfstest.toml" -p "$work/worktree/posix" > "$work/pjdfstest.log" 2>&1 || true
summary=$(grep '^Summary:' "$work/pjdfstest.log" || true)
echo "pjdfstest: $summary"
case "$summary" in
"Summary: 0 failed, 43 skipped, 355 passed, 0 expected failures, 398 total") ;;
*)
    grep -E 'FAILED|panicked|failed$' "$work/pjdfstest.log" || tail -20 "$work/pjdfstest.log"
    exit 1
    ;;
esac

for seed in "${seeds[@]}"; do
    # The file goes on through a daemon that is killed and a worktree that is mounted again.
    timeout 1800 fsx -N "$operations" -S "$seed" -P "$work" -q "$work/worktree/fsx$seed" > "$work/fsx.log" 2>&1 || {
        tail -40 "$work/fsx.log"
        exit 1
    }
    before=$(b2sum < "$work/worktree/fsx$seed")
    kill -9 "$(cat "$work/store/daemon.lock")"
    "$agentfs" status >/dev/null
    test "$before" = "$(b2sum < "$work/worktree/fsx$seed")"
    "$agentfs" umount "$work/worktree" >/dev/null
    "$agentfs" mount main "$work/worktree" --allow-other >/dev/null
    test "$before" = "$(b2sum < "$work/worktree/fsx$seed")"
    echo "fsx: $operations operations with seed $seed"
done
"$agentfs" fsck

#!/usr/bin/env bash
# Runs two programs that others wrote to test file systems, on a directory of the host and on a worktree:
# pjdfstest, which knows what POSIX says of names and attributes, and fsx, which reads, writes, maps, cuts
# and copies one file at random.
#
#   tests/posix.sh AGENTFS [OPERATIONS [SEED...]]
#
# AGENTFS is the binary to test; fsx does so many OPERATIONS with each SEED. The host is what the worktree has to
# equal: test by test, but for the reasoned differences below, and byte by byte after each piece of fsx, before and
# after the daemon was killed, stopped or the worktree mounted again. Needs root, /dev/fuse, and pjdfstest
# and fsx in PATH (`cargo install --locked pjdfstest fsx`). The host's directory is below TMPDIR.
set -euo pipefail
agentfs=$(realpath "$1")
operations=${2:-20000}
shift $(($# < 2 ? $# : 2))
seeds=("$@")
[ ${#seeds[@]} -gt 0 ] || seeds=(1 2 3)
# Operations of fsx after which something happens to the daemon.
piece=5000

# Tests of pjdfstest whose result on a worktree may differ from the host's, with the reason.
#
# link::link_count_max is skipped: it asks pathconf(_PC_LINK_MAX), which glibc answers from a table of file
# system types; FUSE, whose type the kernel states and no server can change, is not in it, and
# pjdfstest takes the answer, 127, for "unknown". The limit of a worktree is tested in engine/src/worktree.
reasoned=(link::link_count_max)

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
mkdir "$work/host" "$work/worktree/posix" "$work/host/posix"

# pjdfstest DIR OTHER: a line "TEST RESULT" for each test, with DIR as the file system and OTHER as another one.
pjd() {
    cat > "$work/pjdfstest.toml" <<END
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
secondary_fs = "$2"
[settings]
naptime = 0.01
allow_remount = false
expected_failures = []
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
END
    # It fails if one test does, which is for the comparison to judge; without its summary it did not end.
    timeout 900 pjdfstest -c "$work/pjdfstest.toml" -p "$1" > "$work/pjdfstest.log" 2>&1 || true
    if ! grep -q '^Summary:' "$work/pjdfstest.log"; then
        tail -20 "$work/pjdfstest.log" >&2
        return 1
    fi
    sed -nE 's/^([a-z0-9_:]+) +(ok|skipped|FAILED)$/\1 \2/p' "$work/pjdfstest.log" | sort
}

pjd "$work/host/posix" "$work/worktree/posix" > "$work/host.results"
pjd "$work/worktree/posix" "$work/host/posix" > "$work/worktree.results"
tests=$(wc -l < "$work/host.results")
passed=$(grep -c ' ok$' "$work/worktree.results" || true)
# A run that tests nothing equals another that tests nothing.
if [ "$passed" -lt 300 ]; then
    echo "pjdfstest passed only $passed tests:" >&2
    cat "$work/worktree.results" >&2
    exit 1
fi
unreasoned=$(join -a 1 -a 2 -e missing -o 0,1.2,2.2 "$work/host.results" "$work/worktree.results" |
    awk -v reasoned="${reasoned[*]}" '
        BEGIN { split(reasoned, list, " "); for (at in list) known[list[at]] }
        $2 != $3 && !($1 in known) { print $1 ": " $2 " on the host, " $3 " on the worktree" }')
if [ -n "$unreasoned" ]; then
    echo "$unreasoned" >&2
    exit 1
fi
echo "pjdfstest: $tests tests, $passed passed, each with the result of the host but ${reasoned[*]}"

# Every operation that fsx knows, on a file of one chunk and on one of several; in the second, stores through
# a mapping are left to the kernel. Without the least size fsx asks for a fallocate of nothing once in some hundred
# thousand operations, which POSIX has refused, and takes that for a failure.
weights='[weights]
close_open = 1
invalidate = 1
mapread = 10
mapwrite = 10
read = 10
write = 10
truncate = 5
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 3
punch_hole = 5
sendfile = 3
posix_fadvise = 2
copy_file_range = 5
[opsize]
min = 1'
printf '%s\n' "flen = 262144" "$weights" > "$work/fsx0.toml"
printf '%s\n' "flen = 3145728" "nomsyncafterwrite = true" "$weights" > "$work/fsx1.toml"

# fsx_on DIR CONFIG SEED COUNT
fsx_on() {
    timeout 1800 fsx -f "$work/fsx$2.toml" -N "$4" -S "$3" -P "$work" "$1/fsx" > "$work/fsx.log" 2>&1 || {
        echo "fsx with seed $3 and configuration $2 fails in $1:" >&2
        tail -60 "$work/fsx.log" >&2
        return 1
    }
}

same() {
    cmp "$work/host/fsx" "$work/worktree/fsx" || {
        echo "after $1: fsx with seed $seed and configuration $config left other bytes than on the host" >&2
        return 1
    }
}

for first in "${seeds[@]}"; do
    done=0
    round=0
    while [ "$done" -lt "$operations" ]; do
        count=$((operations - done < piece ? operations - done : piece))
        seed=$((first * 1000000 + round))
        config=$((round % 2))
        fsx_on "$work/host" "$config" "$seed" "$count"
        fsx_on "$work/worktree" "$config" "$seed" "$count"
        same "fsx"
        case $((round / 2 % 4)) in
        0) what="a kill"
            kill -9 "$(cat "$work/store/daemon.lock")"
            "$agentfs" status >/dev/null ;;
        1) what="a drain and a mount"
            "$agentfs" umount "$work/worktree" >/dev/null
            "$agentfs" mount main "$work/worktree" --allow-other >/dev/null ;;
        2) what="a drain, a mount and a kill"
            "$agentfs" umount "$work/worktree" >/dev/null
            "$agentfs" mount main "$work/worktree" --allow-other >/dev/null
            kill -9 "$(cat "$work/store/daemon.lock")"
            "$agentfs" status >/dev/null ;;
        3) what="a stop"
            "$agentfs" daemon stop >/dev/null
            "$agentfs" status >/dev/null ;;
        esac
        same "$what"
        done=$((done + count))
        round=$((round + 1))
    done
    echo "fsx: $done operations with seed $first, in $round pieces"
done
"$agentfs" fsck

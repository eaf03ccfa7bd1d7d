#!/bin/sh
# Stands in for agentfs where only the scoreboard itself is tested: git worktrees, bind-mounted so
# that they are mounts, and a sleeping process as the daemon. Needs root.
set -eu
command=$1
shift
[ "$command" = version ] || mkdir -p "$AGENTFS_HOME/repos"
read_arguments() {
    wait=
    while [ $# -gt 2 ]; do
        case $1 in
            --wait | --read-only) ;;
            *) echo "unknown option $1" >&2; exit 2 ;;
        esac
        shift
    done
    source=$1
    dir=$2
}
daemon_start() {
    [ ! -e "$AGENTFS_HOME/pid" ] || return 0
    echo "$AGENTFS_LEVERS_OFF" >"$AGENTFS_HOME/levers"
    sleep 600 >/dev/null 2>&1 </dev/null &
    echo $! >"$AGENTFS_HOME/pid"
    [ ! -e "$AGENTFS_HOME/mounts" ] || while read -r dir; do mount --bind "$dir" "$dir"; done <"$AGENTFS_HOME/mounts"
}
worktree() {
    git -C "$AGENTFS_HOME/repos/one.git" worktree add --quiet --detach "$dir" "$1"
    [ -z "${STAND_IN_LIES:-}" ] || (cd "$dir" && git ls-files | tail -1 | xargs sed -i 's/./~/')
    mount --bind "$dir" "$dir"
    echo "$dir" >>"$AGENTFS_HOME/mounts"
}
case $command in
    version) echo "stand-in 0" ;;
    clone)
        read_arguments "$@"
        daemon_start
        git clone --quiet --bare "$source" "$AGENTFS_HOME/repos/one.git"
        worktree HEAD
        ;;
    mount)
        read_arguments "$@"
        worktree "${source##*@}"
        ;;
    branch)
        # branch create NAME --from BRANCH --mount DIR
        from=$(git -C "$AGENTFS_HOME/repos/one.git" worktree list --porcelain | sed -n 's/^worktree //p' | sed -n 2p)
        dir=$6
        worktree HEAD
        (cd "$from" && git ls-files --others --exclude-standard -z | xargs -0r cp --parents -t "$dir")
        ;;
    snapshot) git -C "$AGENTFS_HOME/repos/one.git" rev-parse HEAD ;;
    switch) git -C "$1" checkout --quiet --detach "$2" ;;
    fsck) git -C "$AGENTFS_HOME/repos/one.git" rev-parse --quiet --verify HEAD >/dev/null ;;
    stats) echo '{"event":"result","counters":{"syncs":2},"worktrees":[{"dir":"/x","counters":{"read":3,"init":1},"outbox":{"syncs_asked":7}}]}' ;;
    status) echo '{"event":"result","worktrees":[{"ingested":true,"changes":{"waiting":false}},{"ingested":true}]}' ;;
    ps)
        daemon_start
        on=true
        [ "$(cat "$AGENTFS_HOME/levers")" != no_open ] || on=false
        echo "{\"event\":\"result\",\"pid\":$(cat "$AGENTFS_HOME/pid"),\"levers\":{\"no_open\":$on},\"repositories\":[{\"name\":\"one\"}]}"
        ;;
    daemon)
        case $1 in
            start) daemon_start ;;
            stop)
                kill "$(cat "$AGENTFS_HOME/pid")"
                rm "$AGENTFS_HOME/pid"
                [ ! -e "$AGENTFS_HOME/mounts" ] || while read -r dir; do umount -l "$dir"; done <"$AGENTFS_HOME/mounts"
                ;;
        esac
        ;;
esac

//! Every phase by name: what it does, and the ratio to native that it must hold.

use serde::{Deserialize, Serialize};

/// Phases that share a table and their preparation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    Clone,
    Git,
    Read,
    Cold,
    Large,
    Check,
    Fleet,
    Growth,
    Commands,
    Write,
    Agents,
}

impl Group {
    /// In the order they are measured: what writes deletes at its end, and after a deletion nothing
    /// that creates files is measured.
    pub const ALL: [Self; 11] = [
        Self::Clone,
        Self::Git,
        Self::Read,
        Self::Cold,
        Self::Large,
        Self::Check,
        Self::Fleet,
        Self::Agents,
        Self::Commands,
        Self::Growth,
        Self::Write,
    ];

    /// The word for `--phase`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clone => "clone",
            Self::Git => "git",
            Self::Read => "read",
            Self::Cold => "cold",
            Self::Large => "large",
            Self::Check => "check",
            Self::Fleet => "fleet",
            Self::Growth => "growth",
            Self::Commands => "commands",
            Self::Write => "write",
            Self::Agents => "agents",
        }
    }

    /// The heading of its table.
    pub fn title(self) -> &'static str {
        match self {
            Self::Clone => "Getting a worktree",
            Self::Git => "Git in it, warm",
            Self::Read => "Reading, warm",
            Self::Cold => "Cold: page cache dropped, daemon freshly started",
            Self::Large => "One large file",
            Self::Check => "Integrity",
            Self::Fleet => "Many worktrees of one repository",
            Self::Growth => "Growth with the size of the tree",
            Self::Commands => "What agents run, host beside mount",
            Self::Write => "Writing",
            Self::Agents => "The memory of many agents",
        }
    }
}

/// One line of the scoreboard.
#[derive(Debug)]
pub struct Phase {
    pub id: &'static str,
    pub group: Group,
    pub title: &'static str,
    pub what: &'static str,
    /// The largest ratio to native that is good enough.
    pub goal: Option<f64>,
}

const fn phase(
    id: &'static str,
    group: Group,
    title: &'static str,
    what: &'static str,
    goal: Option<f64>,
) -> Phase {
    Phase { id, group, title, what, goal }
}

/// All of them, in the order of the tables.
pub const PHASES: &[Phase] = &[
    phase(
        "clone_usable",
        Group::Clone,
        "clone, until usable",
        "`agentfs clone` into a new store, its daemon's start included, against `git clone` of the same local bare repository; overlayfs is one mount over a finished checkout",
        Some(0.25),
    ),
    phase(
        "clone_status",
        Group::Clone,
        "... and the first `git status`",
        "the same, and on to the end of the first `git status`, content still being ingested",
        None,
    ),
    phase(
        "clone_search",
        Group::Clone,
        "... and a search of every file",
        "the same, and on to the end of an `rg` over all content: no work is put off beyond this",
        None,
    ),
    phase(
        "clone_wait",
        Group::Clone,
        "clone --wait, all content stored",
        "`agentfs clone --wait` into a new store against `git clone`",
        Some(1.0),
    ),
    phase(
        "first_status",
        Group::Clone,
        "first `git status`",
        "the first `git status --porcelain` after `clone --wait` and after `git clone`; the answer is empty",
        Some(1.0),
    ),
    phase(
        "worktree",
        Group::Clone,
        "one more worktree",
        "`agentfs mount REPO@REV DIR` in a store that holds the repository against `git worktree add --detach`",
        Some(0.25),
    ),
    phase(
        "status_warm",
        Group::Git,
        "`git status`",
        "`git status --porcelain`; the answer is empty",
        Some(1.0),
    ),
    phase(
        "diff",
        Group::Git,
        "`git diff --stat` to an old commit",
        "`git diff --stat HEAD~N` (N up to 20) of the working tree; answers equal",
        None,
    ),
    phase(
        "lstat",
        Group::Read,
        "lstat",
        "one lstat of a relative path, over every file of the tree, compiled loop",
        Some(1.0),
    ),
    phase(
        "open_read_close",
        Group::Read,
        "open + read 4 KiB + close",
        "one open, read of 4 KiB and close of a relative path, over every file, compiled loop",
        Some(1.2),
    ),
    phase(
        "read_search",
        Group::Read,
        "read_search",
        "`git ls-files`, then 4 KiB of each of 64 files spread evenly over it, searched for a word",
        None,
    ),
    phase(
        "rg_warm",
        Group::Read,
        "`rg -c` over the tree",
        "`rg -c WORD` over every file; counts equal",
        Some(1.2),
    ),
    phase(
        "find",
        Group::Read,
        "`find -type f`",
        "`find` of every regular file outside `.git`; lists equal",
        None,
    ),
    phase(
        "rg_cold",
        Group::Cold,
        "`rg -c` over the tree",
        "`rg -c WORD` after `sync` and dropping the caches",
        Some(1.5),
    ),
    phase(
        "status_cold",
        Group::Cold,
        "`git status`",
        "`git status --porcelain` after `sync` and dropping the caches",
        None,
    ),
    phase(
        "sequential_warm",
        Group::Large,
        "sequential read, warm",
        "a pass over the file in reads of 128 KiB, half of its content compressible",
        None,
    ),
    phase(
        "sequential_cold",
        Group::Large,
        "sequential read, cold",
        "the same after `sync` and dropping the caches, daemon freshly started",
        None,
    ),
    phase(
        "fsck",
        Group::Check,
        "fsck of all that is stored",
        "`agentfs fsck` (every chunk and every file rehashed, blake3 and git's hash) against `git fsck` (the full history)",
        Some(0.1),
    ),
    phase(
        "fsck_same",
        Group::Check,
        "fsck of the same content",
        "the same `agentfs fsck` against `git fsck` of a clone with `--depth 1`, which holds the same content",
        None,
    ),
    phase(
        "branch",
        Group::Fleet,
        "a branch of its own, mounted",
        "`agentfs branch create NAME --from BRANCH --mount DIR`, the whole process, against `git worktree add -b NAME DIR`; status equal to that of its origin",
        Some(0.014),
    ),
    phase(
        "branch_dirty",
        Group::Fleet,
        "the same, of a branch with 10,000 new files",
        "which the new branch has as well; `git worktree add` takes none of them along",
        Some(0.014),
    ),
    phase(
        "snapshot",
        Group::Fleet,
        "a snapshot after an edit",
        "`agentfs snapshot create BRANCH`, which keeps every file, against `git stash create`, which keeps those that are tracked",
        None,
    ),
    phase(
        "switch",
        Group::Fleet,
        "a switch to an old commit, or back",
        "`agentfs switch DIR COMMIT` (up to 20 commits away) against `git checkout`; status clean each time",
        Some(0.05),
    ),
    phase(
        "agents_memory",
        Group::Agents,
        "one agent's pass over all files",
        "every file of a generated tree with large files, read by one agent after the other, each in a worktree of its own, caches dropped before the first; the memory that is then held is in the table",
        None,
    ),
    phase(
        "growth_usable",
        Group::Growth,
        "clone, until usable",
        "as above, for generated trees of 12 files a directory",
        None,
    ),
    phase(
        "growth_first_status",
        Group::Growth,
        "first `git status`",
        "right after the clone, content still being ingested",
        None,
    ),
    phase("growth_status", Group::Growth, "warm `git status`", "with everything ingested", None),
    phase(
        "growth_list",
        Group::Growth,
        "`find -type f`",
        "with everything ingested, after the status; lists equal",
        None,
    ),
    phase(
        "growth_branch",
        Group::Growth,
        "a branch of its own, mounted",
        "`agentfs branch create --mount`, the whole process; median of 7",
        None,
    ),
    phase(
        "growth_snapshot",
        Group::Growth,
        "a snapshot",
        "`agentfs snapshot create`, the whole process; median of 7",
        None,
    ),
    phase(
        "growth_switch",
        Group::Growth,
        "a switch",
        "`agentfs switch` to the commit before, which differs in few files; median of 7, there and back in turn",
        None,
    ),
    write(
        "create",
        "create + write 8 KiB + close",
        "one new file, 100 in a directory, compiled loop; every file read back",
        Some(2.0),
    ),
    write(
        "append",
        "append 4 KiB",
        "one write at the end of a file that stays open, compiled loop; every page read back",
        Some(3.0),
    ),
    write(
        "append_synced",
        "append 4 KiB + fsync",
        "the same with an fsync after each write, on every side; our outbox was synced as often",
        Some(1.0),
    ),
    write(
        "writers_1",
        "one writer",
        "`create` again, as the figure that the next ones are read beside",
        None,
    ),
    write(
        "writers_2",
        "two writers at once",
        "two threads that create files in directories of their own: wall time over all files",
        None,
    ),
    write("writers_4", "four writers at once", "the same with four threads", None),
    write("writers_8", "eight writers at once", "the same with eight threads", None),
    write(
        "untar",
        "untar of the source's tree",
        "`tar -xf` of `git archive HEAD` into a fresh directory; names, sizes and modes equal, and at the end every byte",
        None,
    ),
    write(
        "edit_synced",
        "edit of 8 files, each with fsync",
        "8 tracked files opened with O_TRUNC, rewritten and synced, on every side, compiled loop; files that nothing has changed before",
        None,
    ),
    write(
        "commit",
        "`git commit` of 100 changed files",
        "`git commit --all` of those edits; trees equal, status clean afterwards",
        Some(1.2),
    ),
    write(
        "large_write",
        "sequential write of a large file",
        "a new file (1 GiB in a full run) in writes of 1 MiB, half of its content compressible, until close",
        Some(1.25),
    ),
    write(
        "large_write_synced",
        "... and fsync",
        "the same, and on to the end of an fsync of it",
        None,
    ),
    write(
        "large_read_back",
        "... and reading it back",
        "a pass over that file in reads of 128 KiB, alone",
        Some(1.11),
    ),
    write(
        "large_overwrite",
        "overwrite 4 KiB in it",
        "one random page of that file, which is open, compiled loop; every page read back",
        None,
    ),
    write(
        "byte_edit",
        "1-byte edit in a file of 50 MiB",
        "open, one random byte, close, compiled loop; one edit alone makes our store grow by less than 1 MiB, drained",
        None,
    ),
    write(
        "cargo_build",
        "`cargo build`",
        "`cargo build --offline` of a generated crate without dependencies, from nothing; the program prints what it should",
        Some(1.1),
    ),
    write(
        "make",
        "`make -j2`",
        "`make -j2` of a generated C project of 40 files, from nothing; the program prints what it should",
        Some(1.1),
    ),
    write(
        "checkout",
        "`git checkout`, 300 commits away",
        "`git checkout --detach` between commits 300 apart (fewer where there are fewer), there and back along the history; status clean, and at the end every byte equal",
        Some(1.0),
    ),
    write(
        "unlink",
        "unlink",
        "one of 100 empty files in a directory, compiled loop; after everything that creates files. Freeing blocks is left out: a native file system that is mounted with `discard` waits for its device there",
        Some(2.0),
    ),
    write(
        "rm_rf",
        "`rm -rf` of the source's tree",
        "`rm -rf` of what `untar` has made, blocks freed; after everything that creates files",
        None,
    ),
];

const fn write(
    id: &'static str,
    title: &'static str,
    what: &'static str,
    goal: Option<f64>,
) -> Phase {
    phase(id, Group::Write, title, what, goal)
}

/// One command of the agent-facing table: a shell line in the root of a generated repository.
#[derive(Debug)]
pub struct Command {
    pub phase: Phase,
    pub script: &'static str,
    /// A program that may not be installed.
    pub needs: Option<&'static str>,
    /// Whether the order of its lines means nothing.
    pub unordered: bool,
    /// Whether it writes into the worktree.
    pub writes: bool,
}

const fn command(id: &'static str, title: &'static str, script: &'static str) -> Command {
    let phase = phase(id, Group::Commands, title, script, None);
    Command { phase, script, needs: None, unordered: false, writes: false }
}

const fn writes(id: &'static str, title: &'static str, script: &'static str) -> Command {
    Command { writes: true, ..command(id, title, script) }
}

const fn needs(program: &'static str, command: Command) -> Command {
    Command { needs: Some(program), ..command }
}

/// All of them, in the order of the table.
pub const COMMANDS: &[Command] = &[
    command("echo", "echo", "echo hello"),
    command("cd_pwd", "cd, pwd", "cd dir100 && pwd"),
    command("cat_small", "cat 1 KiB", "cat small.txt"),
    command("cat_big", "cat 8 MiB", "cat big.txt"),
    command("grep_small", "grep 1 KiB", "grep -n the small.txt"),
    command("grep_big", "grep 8 MiB", "grep -c the big.txt"),
    command("sed", "sed 8 MiB", "sed -n 's/store_\\([0-9a-f]*\\)/\\1/p' big.txt"),
    Command {
        unordered: true,
        ..command("find_1000", "find, 1,000 files", "find dir1000 -type f -name '*.txt'")
    },
    command("ls_100", "ls, 100 files", "ls -1F dir100"),
    command("tar_small", "tar, 100 files", TAR_SMALL),
    command("tar_big", "tar, 1,000 files and 8 MiB", TAR_BIG),
    command("gzip_small", "gzip 1 KiB", "gzip -1nc small.txt"),
    command("gzip_big", "gzip 8 MiB", "gzip -1nc big.txt"),
    needs("jq", command("jq", "jq, 2,000 items", "jq '.items | map(.size) | add' data.json")),
    command(
        "pipeline",
        "a pipeline of nine",
        "find dir1000 -name '*.txt' | sort | head -200 | xargs cat | tr a-z A-Z | tr ' ' '\\n' | sort | uniq -c | sort -rn",
    ),
    writes(
        "write_small",
        "write a new file",
        "d=$(mktemp -d ./own-XXXXXX) && echo hello >\"$d/new\" && cat \"$d/new\"",
    ),
    writes("append_small", "append to a file", "echo hello >>own-log && tail -1 own-log"),
    writes(
        "sed_in_place",
        "sed -i, 1 KiB",
        "d=$(mktemp -d ./own-XXXXXX) && cp small.txt \"$d\" && sed -i s/the/THE/ \"$d/small.txt\" && cat \"$d/small.txt\"",
    ),
    writes(
        "mkdir",
        "mkdir -p, touch",
        "d=$(mktemp -d ./own-XXXXXX) && mkdir -p \"$d/a/b/c\" && touch \"$d/a/b/c/new\" && ls \"$d/a/b/c\"",
    ),
    writes(
        "cp_big",
        "cp 8 MiB",
        "d=$(mktemp -d ./own-XXXXXX) && cp big.txt \"$d\" && cmp big.txt \"$d/big.txt\"",
    ),
    writes(
        "cp_100",
        "cp -r, 100 files",
        "d=$(mktemp -d ./own-XXXXXX) && cp -r dir100 \"$d\" && diff -r dir100 \"$d/dir100\"",
    ),
    writes(
        "mv_100",
        "cp -r, mv of each of 100 files",
        "d=$(mktemp -d ./own-XXXXXX) && cp -r dir100 \"$d/from\" && mkdir \"$d/to\" && mv \"$d\"/from/* \"$d/to\" && diff -r dir100 \"$d/to\"",
    ),
    writes(
        "tar_extract",
        "tar into tar, 100 files",
        "d=$(mktemp -d ./own-XXXXXX) && tar -cf - dir100 | tar -xf - -C \"$d\" && diff -r dir100 \"$d/dir100\"",
    ),
    writes(
        "git_init_commit",
        "git init, add, commit",
        "d=$(mktemp -d ./own-XXXXXX) && cd \"$d\" && git init -q . && cp ../dir100/* . && git add . && git commit -qm x && git rev-parse 'HEAD^{tree}'",
    ),
    writes(
        "git_commit",
        "change a file, git add, commit",
        "echo hello >>own-notes && git add own-notes && git commit -qm x -- own-notes && git log -1 --format=%s --name-only",
    ),
    writes(
        "git_stash",
        "change a file, git stash, pop",
        "echo hello >>data.json && git stash -q && git diff --quiet && git stash pop -q && git diff --stat && git checkout -q -- data.json",
    ),
];

// Times and owners differ between a checkout and a mount, so they are left out of the archive.
const TAR_SMALL: &str =
    "tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - dir100";
const TAR_BIG: &str =
    "tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - dir1000 big.txt";

/// Every phase, those of the command table too.
pub fn all() -> impl Iterator<Item = &'static Phase> {
    PHASES.iter().chain(COMMANDS.iter().map(|command| &command.phase))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_every_group_has_phases() {
        let mut ids: Vec<&str> = all().map(|phase| phase.id).collect();
        let count = ids.len();
        ids.extend(Group::ALL.map(Group::name));
        ids.sort_unstable();
        let before = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), before, "a phase and a group, or two phases, share a name");
        assert!(count >= PHASES.len() + COMMANDS.len());
        for group in Group::ALL {
            assert!(all().any(|phase| phase.group == group), "{group:?} is empty");
        }
    }
}

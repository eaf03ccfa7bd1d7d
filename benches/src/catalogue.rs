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
    Growth,
    Commands,
}

impl Group {
    /// In the order they are measured.
    pub const ALL: [Self; 8] = [
        Self::Clone,
        Self::Git,
        Self::Read,
        Self::Cold,
        Self::Large,
        Self::Check,
        Self::Commands,
        Self::Growth,
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
            Self::Growth => "growth",
            Self::Commands => "commands",
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
            Self::Growth => "Growth with the size of the tree",
            Self::Commands => "What agents run, host beside mount",
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
];

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
    Command {
        writes: true,
        ..command(
            "git_init_commit",
            "git init, add, commit",
            "d=$(mktemp -d ./own-XXXXXX) && cd \"$d\" && git init -q . && cp ../dir100/* . && git add . && git commit -qm x && git rev-parse 'HEAD^{tree}'",
        )
    },
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

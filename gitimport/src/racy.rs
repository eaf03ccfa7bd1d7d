//! Files that git takes for unchanged although they are not.
//!
//! git, as it is usually built, compares times by the second, and so cannot tell a file from itself as it was
//! earlier in the same second. It copes by reading files that are as young as the index, and when it writes
//! another index it looks at those first and marks what has changed (gitformat-index(5) and `racy-git` in its
//! technical documentation). A worktree whose daemon was killed cannot be looked at. Then the index that a
//! git process still writes is younger than the file and says of it what is no more so; `git status` would
//! never see the change.
//!
//! The index has the nanoseconds all the same, which tells the two apart. An index that is no younger
//! than its entry is not believed, so giving it an older time is all it takes.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use agentfs_engine::worktree::{Attributes, Timestamp, Worktree};
use agentfs_engine::{HashKind, Ino};

use crate::error::{Error, Result};
use crate::examine::each_of;
use crate::index::recorded_size;
use crate::index_entries::IndexEntry;

/// When an index was written, in seconds since the epoch; `None` if there is none.
pub(crate) fn time_of(index: &Path) -> Option<u64> {
    let time = index.metadata().ok()?.modified().ok()?;
    Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// The file of an entry as it is now, if git would take it for unchanged although it was changed in the
/// second that the entry states, before an index of `index_time`. `base_time` is that of what no branch has
/// changed.
pub(crate) fn unnoticed(
    entry: &IndexEntry,
    worktree: &Worktree,
    base_time: i64,
    index_time: u64,
) -> Option<Attributes> {
    let (seconds, nanoseconds) = entry.mtime;
    let of_base = (seconds, nanoseconds) == (base_time as u32, 0);
    if !entry.plain || of_base || entry.size == 0 || index_time <= u64::from(seconds) {
        return None;
    }
    let now = find(worktree, &entry.path)?;
    let Timestamp { seconds: now_seconds, nanoseconds: now_nanoseconds } = now.modified;
    let same = (seconds, entry.ino, entry.size)
        == (now_seconds as u32, now.ino.0 as u32, recorded_size(now.size));
    let changed = now.changed != Timestamp { seconds: base_time, nanoseconds: 0 };
    (same && changed && nanoseconds != now_nanoseconds).then_some(now)
}

/// What is at `path` of a worktree.
pub(crate) fn find(worktree: &Worktree, path: &[u8]) -> Option<Attributes> {
    let mut dir = Ino::ROOT;
    let mut found = None;
    for name in path.split(|byte| *byte == b'/') {
        let attributes = worktree.lookup(dir, name).ok()??;
        dir = attributes.ino;
        found = Some(attributes);
    }
    found
}

/// Has git read again what it would not notice of the worktree with this git directory; how many files that
/// are at least. An index that cannot be read is left to git.
///
/// # Errors
/// [`Error::Io`].
pub fn distrust(
    git_dir: &Path,
    hash: HashKind,
    worktree: &Worktree,
    base_time: i64,
) -> Result<u64> {
    let index = git_dir.join("index");
    let Some(index_time) = time_of(&index) else { return Ok(0) };
    let (mut files, mut oldest) = (0, u32::MAX);
    let read = each_of(&index, hash, &|| true, &mut |entry| {
        if unnoticed(&entry, worktree, base_time, index_time).is_some() {
            files += 1;
            oldest = oldest.min(entry.mtime.0);
        }
    });
    if let (Ok(()), true) = (read, files > 0) {
        age(&index, oldest)?;
    }
    Ok(files)
}

/// Makes an index no younger than `second`, so that git does not believe it of files of that second.
pub(crate) fn age(index: &Path, second: u32) -> Result<()> {
    let time = UNIX_EPOCH + Duration::from_secs(second.into());
    let aged = File::open(index).and_then(|file| match file.metadata()?.modified()? > time {
        true => file.set_modified(time),
        false => Ok(()),
    });
    aged.map_err(|source| Error::io("set the time of", index, source))
}

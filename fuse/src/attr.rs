//! Attributes as fuser encodes them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentfs_engine::Ino;
use agentfs_engine::worktree::{Attributes, NodeKind, Timestamp};
use fuser::{FileAttr, FileType, INodeNo};

/// What `st_blksize` advises: a page, the unit in which the kernel caches.
const BLOCK_SIZE: u32 = 4096;

/// All that `stat` shows, as the worktree states it.
pub(crate) fn file_attr(attributes: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(attributes.ino.0),
        size: attributes.size,
        blocks: attributes.blocks,
        atime: system_time(attributes.accessed),
        mtime: system_time(attributes.modified),
        ctime: system_time(attributes.changed),
        crtime: UNIX_EPOCH,
        kind: file_type(attributes.kind),
        perm: attributes.permissions,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// What stands where fuser asks for attributes and the protocol has none: in a negative entry
/// (inode 0), and beside `.` and `..` in a listing, of which the kernel takes name, number and type
/// only.
pub(crate) fn nameless(ino: Ino, kind: NodeKind) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino.0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: file_type(kind),
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

pub(crate) const fn file_type(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::File => FileType::RegularFile,
        NodeKind::Directory => FileType::Directory,
        NodeKind::Symlink => FileType::Symlink,
        NodeKind::Fifo => FileType::NamedPipe,
        NodeKind::Socket => FileType::Socket,
        NodeKind::CharDevice => FileType::CharDevice,
        NodeKind::BlockDevice => FileType::BlockDevice,
    }
}

/// The time that fuser was told by the kernel.
///
/// fuser 0.18 gives a time before the epoch as that many seconds and nanoseconds before it, where the
/// nanoseconds of a `timespec` count onwards from the second.
pub(crate) fn told_time(time: SystemTime) -> Timestamp {
    let (sign, span) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (1, after),
        Err(before) => (-1, before.duration()),
    };
    // The one number of seconds that has no positive counterpart is the least.
    let seconds = i64::try_from(span.as_secs()).map_or(i64::MIN, |seconds| sign * seconds);
    Timestamp { seconds, nanoseconds: span.subsec_nanos() }
}

/// Every `timespec` is a `SystemTime` here: both count signed 64-bit seconds.
fn system_time(time: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    whole
        .and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanoseconds.into())))
        .unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds_of(seconds: i64, nanoseconds: u32) -> (i64, u32) {
        match system_time(Timestamp { seconds, nanoseconds }).duration_since(UNIX_EPOCH) {
            Ok(after) => (after.as_secs() as i64, after.subsec_nanos()),
            Err(before) => {
                (-(before.duration().as_secs() as i64), before.duration().subsec_nanos())
            }
        }
    }

    #[test]
    fn times_on_both_sides_of_the_epoch_survive() {
        assert_eq!(seconds_of(0, 0), (0, 0));
        assert_eq!(seconds_of(1_700_000_000, 999_999_999), (1_700_000_000, 999_999_999));
        assert_eq!(seconds_of(-1, 0), (-1, 0));
        // Half a second before the epoch: second -1 and half a second on.
        assert_eq!(seconds_of(-1, 500_000_000), (0, 500_000_000));
    }

    #[test]
    fn the_furthest_times_do_not_panic() {
        for seconds in [i64::MIN, i64::MIN + 1, i64::MAX - 1, i64::MAX] {
            for nanoseconds in [0, 999_999_999] {
                system_time(Timestamp { seconds, nanoseconds });
            }
        }
    }

    #[test]
    fn what_fuser_was_told_is_what_the_kernel_said() {
        // As fuser makes it.
        let given = |seconds: i64, nanoseconds| match seconds {
            0.. => UNIX_EPOCH + Duration::new(seconds as u64, nanoseconds),
            _ => UNIX_EPOCH - Duration::new(seconds.unsigned_abs(), nanoseconds),
        };
        for (seconds, nanoseconds) in
            [(0, 0), (5, 7), (-1, 500_000_000), (-9, 0), (i64::MIN, 0), (i64::MAX, 999_999_999)]
        {
            let told = told_time(given(seconds, nanoseconds));
            assert_eq!(told, Timestamp { seconds, nanoseconds });
        }
    }

    #[test]
    fn nothing_of_an_attribute_is_lost() {
        let attributes = Attributes {
            ino: Ino(77),
            kind: NodeKind::Directory,
            permissions: 0o755,
            size: 123_456_789_012,
            blocks: 241_126_542,
            accessed: Timestamp { seconds: 1_500_000_000, nanoseconds: 4 },
            modified: Timestamp { seconds: 1_600_000_000, nanoseconds: 5 },
            changed: Timestamp { seconds: 1_700_000_000, nanoseconds: 6 },
            nlink: 9,
            uid: 1000,
            gid: 1001,
            rdev: 259,
        };
        let attr = file_attr(&attributes);
        assert_eq!((attr.ino.0, attr.size, attr.blocks), (77, 123_456_789_012, 241_126_542));
        assert_eq!((attr.perm, attr.nlink, attr.uid, attr.gid), (0o755, 9, 1000, 1001));
        assert_eq!(attr.kind, FileType::Directory);
        let moments = [(1_500_000_000, 4), (1_600_000_000, 5), (1_700_000_000, 6)];
        let moments = moments.map(|(seconds, nanos)| UNIX_EPOCH + Duration::new(seconds, nanos));
        assert_eq!([attr.atime, attr.mtime, attr.ctime], moments);
        assert_eq!(attr.rdev, 259);
    }
}

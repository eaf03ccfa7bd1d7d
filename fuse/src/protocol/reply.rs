//! What replies consist of: attributes, entries, listings.

use std::time::Duration;

use agentfs_engine::worktree::{Attributes, DirectoryEntry, FsStatistics, NodeKind};

use super::wire::Writer;

/// The kernel keeps the pages of the opened file, or the listing of the opened directory.
pub(crate) const OPEN_KEEP_CACHE: u32 = 1 << 1;
/// The kernel may keep the listing at all.
pub(crate) const OPEN_CACHE_LISTING: u32 = 1 << 3;
/// The file is read from its backing. It has no pages then, so that it must not keep any.
pub(crate) const OPEN_PASSTHROUGH: u32 = 1 << 7;

/// What `st_blksize` advises: a page, the unit in which the kernel caches.
const BLOCK_BYTES: u32 = 4096;
const ENTRY_BYTES: usize = 128;
const DIRENT_BYTES: usize = 24;

/// The bits of a mode that state the type.
const fn type_bits(kind: NodeKind) -> u32 {
    match kind {
        NodeKind::File => libc::S_IFREG,
        NodeKind::Directory => libc::S_IFDIR,
        NodeKind::Symlink => libc::S_IFLNK,
        NodeKind::Fifo => libc::S_IFIFO,
        NodeKind::Socket => libc::S_IFSOCK,
        NodeKind::CharDevice => libc::S_IFCHR,
        NodeKind::BlockDevice => libc::S_IFBLK,
    }
}

/// All that `stat` shows, as the worktree states it.
fn attr(attributes: &Attributes, out: &mut Writer<'_>) {
    let times = [attributes.accessed, attributes.modified, attributes.changed];
    out.u64(attributes.ino.0);
    out.u64(attributes.size);
    out.u64(attributes.blocks);
    times.iter().for_each(|time| out.u64(time.seconds as u64));
    times.iter().for_each(|time| out.u32(time.nanoseconds));
    out.u32(type_bits(attributes.kind) | u32::from(attributes.permissions));
    out.u32(attributes.nlink);
    out.u32(attributes.uid);
    out.u32(attributes.gid);
    out.u32(attributes.rdev);
    out.u32(BLOCK_BYTES);
    out.u32(0);
}

/// Attributes that may be relied on for so long.
pub(crate) fn attributes(attributes: &Attributes, ttl: Duration, out: &mut Writer<'_>) {
    out.u64(ttl.as_secs());
    out.u32(ttl.subsec_nanos());
    out.u32(0);
    attr(attributes, out);
}

/// An inode with its attributes, both to be relied on for so long. Inode numbers are never used
/// again, so that one generation is enough for each.
pub(crate) fn entry(attributes: &Attributes, ttl: Duration, out: &mut Writer<'_>) {
    out.u64(attributes.ino.0);
    out.u64(0);
    [ttl; 2].iter().for_each(|ttl| out.u64(ttl.as_secs()));
    [ttl; 2].iter().for_each(|ttl| out.u32(ttl.subsec_nanos()));
    attr(attributes, out);
}

/// That there is no entry, to be relied on for so long: inode 0 says so.
pub(crate) fn no_entry(ttl: Duration, out: &mut Writer<'_>) {
    out.zeros(16);
    out.u64(ttl.as_secs());
    out.u64(0);
    out.u32(ttl.subsec_nanos());
    out.zeros(4 + 88);
}

/// That a file is open: with no handle, and with these flags.
pub(crate) fn opened(flags: u32, out: &mut Writer<'_>) {
    opened_as(0, flags, 0, out);
}

/// That a file is open, with the number of its backing or 0.
pub(crate) fn opened_as(handle: u64, flags: u32, backing: u32, out: &mut Writer<'_>) {
    out.u64(handle);
    out.u32(flags);
    out.u32(backing);
}

/// What `statfs` shows.
pub(crate) fn statistics(fs: &FsStatistics, out: &mut Writer<'_>) {
    for count in [fs.blocks, fs.blocks_free, fs.blocks_available, fs.files, fs.files_free] {
        out.u64(count);
    }
    out.u32(fs.block_size);
    out.u32(fs.name_max);
    out.u32(fs.block_size);
    out.zeros(4 + 24);
}

/// A listing in the making.
///
/// It takes entries until the kernel's buffer is full; the cookie beside each entry is where the next
/// message resumes. Cookies come from the worktree and mean the same to every reader at any time, so
/// nothing is kept between messages: seekdir, rewinddir and concurrent readers are right by
/// construction.
pub(crate) struct Listing<'w, 'b> {
    out: &'w mut Writer<'b>,
    bytes_max: usize,
    /// For how long entries may be relied on, where they are told with attributes.
    ttl: Option<Duration>,
}

impl<'w, 'b> Listing<'w, 'b> {
    /// A listing of at most so many bytes.
    pub(crate) fn new(out: &'w mut Writer<'b>, bytes_max: usize, ttl: Option<Duration>) -> Self {
        Self { out, bytes_max, ttl }
    }

    /// Adds an entry; false if there is no room for it.
    pub(crate) fn add(&mut self, entry: &DirectoryEntry<'_>) -> bool {
        let name = entry.name;
        let padding = name.len().next_multiple_of(8) - name.len();
        let head = self.ttl.map_or(0, |_| ENTRY_BYTES);
        let bytes = head + DIRENT_BYTES + name.len() + padding;
        if self.out.len() + bytes > self.bytes_max || self.out.room(bytes).is_none() {
            return false;
        }
        let out = &mut *self.out;
        if let Some(ttl) = self.ttl {
            match &entry.attributes {
                Some(attributes) => self::entry(attributes, ttl, out),
                // `.` and `..`: no inode, of which the kernel would hold a reference.
                None => out.zeros(ENTRY_BYTES),
            }
        }
        out.u64(entry.ino.0);
        out.u64(entry.cookie);
        // The kernel's own limit is far below.
        out.u32(name.len() as u32);
        out.u32(type_bits(entry.kind) >> 12);
        out.bytes(name);
        out.zeros(padding);
        true
    }
}

#[cfg(test)]
mod tests {
    use agentfs_engine::Ino;
    use agentfs_engine::worktree::Timestamp;

    use super::super::Args;
    use super::*;

    fn some() -> Attributes {
        Attributes {
            ino: Ino(77),
            kind: NodeKind::Directory,
            permissions: 0o1755,
            size: 123_456_789_012,
            blocks: 241_126_542,
            accessed: Timestamp { seconds: -1, nanoseconds: 4 },
            modified: Timestamp { seconds: i64::MIN, nanoseconds: 5 },
            changed: Timestamp { seconds: 1_700_000_000, nanoseconds: 999_999_999 },
            nlink: 9,
            uid: 1000,
            gid: 1001,
            rdev: 259,
        }
    }

    fn written(fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
        let mut buffer = vec![0xff; 4096];
        let mut out = Writer::new(&mut buffer);
        fill(&mut out);
        let len = out.finish().unwrap();
        buffer.truncate(len);
        buffer
    }

    /// The fields of 88 bytes of attributes.
    fn check_attr(args: &mut Args<'_>) {
        let mut u64 = || args.u64().unwrap();
        assert_eq!([u64(), u64(), u64()], [77, 123_456_789_012, 241_126_542]);
        assert_eq!([u64(), u64(), u64()], [u64::MAX, 1 << 63, 1_700_000_000]);
        let mut u32 = || args.u32().unwrap();
        assert_eq!([u32(), u32(), u32()], [4, 5, 999_999_999]);
        assert_eq!([u32(), u32()], [0o41_755, 9]);
        assert_eq!([u32(), u32(), u32(), u32(), u32()], [1000, 1001, 259, 4096, 0]);
    }

    #[test]
    fn nothing_of_an_attribute_is_lost() {
        let bytes = written(|out| attributes(&some(), Duration::new(5, 6), out));
        assert_eq!(bytes.len(), 104);
        let mut args = Args::new(&bytes, &[]);
        assert_eq!((args.u64(), args.u32(), args.u32()), (Ok(5), Ok(6), Ok(0)));
        check_attr(&mut args);
    }

    #[test]
    fn an_entry_is_an_inode_and_attributes_or_nothing() {
        let bytes = written(|out| entry(&some(), Duration::new(5, 6), out));
        assert_eq!(bytes.len(), ENTRY_BYTES);
        let mut args = Args::new(&bytes, &[]);
        assert_eq!([(); 4].map(|()| args.u64().unwrap()), [77, 0, 5, 5]);
        assert_eq!([(); 2].map(|()| args.u32().unwrap()), [6, 6]);
        check_attr(&mut args);
        let bytes = written(|out| no_entry(Duration::new(5, 6), out));
        assert_eq!(bytes.len(), ENTRY_BYTES);
        let mut args = Args::new(&bytes, &[]);
        assert_eq!([(); 4].map(|()| args.u64().unwrap()), [0, 0, 5, 0]);
        assert_eq!([(); 2].map(|()| args.u32().unwrap()), [6, 0]);
        assert_eq!(args.bytes(88), Ok(&[0; 88][..]));
    }

    #[test]
    fn other_replies_have_their_length() {
        assert_eq!(written(|out| opened(OPEN_KEEP_CACHE, out)).len(), 16);
        let bytes = written(|out| opened_as(5, OPEN_PASSTHROUGH, 7, out));
        let mut args = Args::new(&bytes, &[]);
        assert_eq!((args.u64(), args.u32(), args.u32()), (Ok(5), Ok(1 << 7), Ok(7)));
        let fs = FsStatistics {
            block_size: 4096,
            blocks: 1,
            blocks_free: 2,
            blocks_available: 3,
            files: 4,
            files_free: 5,
            name_max: 255,
        };
        let bytes = written(|out| statistics(&fs, out));
        assert_eq!(bytes.len(), 80);
        let mut args = Args::new(&bytes, &[]);
        assert_eq!([(); 5].map(|()| args.u64().unwrap()), [1, 2, 3, 4, 5]);
        assert_eq!([(); 3].map(|()| args.u32().unwrap()), [4096, 255, 4096]);
    }

    #[test]
    fn a_listing_takes_what_fits_and_pads_it() {
        let one = |name, attributes| DirectoryEntry {
            ino: Ino(7),
            kind: NodeKind::Symlink,
            name,
            cookie: 8,
            attributes,
        };
        for (name, padded) in [(&b"12345678"[..], 8), (b"123456789", 16), (b"1", 8)] {
            let bytes = written(|out| {
                let mut listing = Listing::new(out, 24 + padded, None);
                assert!(listing.add(&one(name, None)));
                assert!(!listing.add(&one(b"", None)));
            });
            assert_eq!(bytes.len(), 24 + padded);
            let mut args = Args::new(&bytes, &[]);
            assert_eq!([args.u64(), args.u64()], [Ok(7), Ok(8)]);
            assert_eq!([args.u32(), args.u32()], [Ok(name.len() as u32), Ok(10)]);
            assert_eq!(args.bytes(name.len()), Ok(name));
            assert!(bytes[24 + name.len()..].iter().all(|&byte| byte == 0));
        }
        let bytes = written(|out| {
            let mut listing = Listing::new(out, 2 * (128 + 32), Some(Duration::ZERO));
            assert!(listing.add(&one(b".", None)));
            assert!(listing.add(&one(b"a", Some(some()))));
            assert!(!listing.add(&one(b"b", Some(some()))));
        });
        let mut args = Args::new(&bytes, &[]);
        assert_eq!(args.bytes(128), Ok(&[0; 128][..]));
        args.bytes(32).unwrap();
        assert_eq!(args.u64(), Ok(77));
        // What the kernel asks for can be more than there is.
        let mut small = [0; 40];
        let mut out = Writer::new(&mut small);
        let mut listing = Listing::new(&mut out, usize::MAX, None);
        assert!(listing.add(&one(b"a", None)) && !listing.add(&one(b"b", None)));
    }
}

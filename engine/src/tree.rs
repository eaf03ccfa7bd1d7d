//! Directory objects: immutable, content-addressed, sorted by byte name.
//!
//! `docs/FORMAT.md` gives the bytes. Two numbers in every record make a worktree cheap to mount:
//! `before`, the entries of the directory's pre-order that precede this one, so that an inode
//! number can be resolved by descending from the root without a table of inodes; and, for a
//! subdirectory, the size of its subtree and its number of subdirectories, so that its attributes
//! are known without reading it.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::id::{ContentId, GitOid, HashKind, TreeId};
use crate::limits::{
    FILE_BYTES_MAX, NAME_BYTES_MAX, SYMLINK_BYTES_MAX, TREE_BYTES_MAX, TREE_ENTRIES_MAX,
};

/// The version byte of the encoding.
pub const TREE_VERSION: u8 = 1;

const HEADER_BYTES: usize = 16;
const RECORD_FIXED_BYTES: usize = 16;
const DIRECTORY_BYTES: usize = 32 + 4 + 4 + 4;
const FLAG_OID: u8 = 1;
const FLAG_CONTENT: u8 = 2;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A regular file with the executable bits set.
    Executable,
    /// A symbolic link; its content is the target.
    Symlink,
    /// A commit of another repository; shown as an empty directory.
    Gitlink,
    /// A subdirectory.
    Directory,
}

impl EntryKind {
    const fn tag(self) -> u8 {
        match self {
            Self::File => 0,
            Self::Executable => 1,
            Self::Symlink => 2,
            Self::Gitlink => 3,
            Self::Directory => 4,
        }
    }

    const fn from_tag(tag: u8) -> Option<Self> {
        Some(match tag {
            0 => Self::File,
            1 => Self::Executable,
            2 => Self::Symlink,
            3 => Self::Gitlink,
            4 => Self::Directory,
            _ => return None,
        })
    }

    /// Whether `stat` shows a directory.
    pub const fn is_directory(self) -> bool {
        matches!(self, Self::Gitlink | Self::Directory)
    }
}

/// What a parent records of a subdirectory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subtree {
    /// The directory object.
    pub id: TreeId,
    /// Length of its encoding in bytes, which is also its `st_size`.
    pub size: u64,
    /// Entries below it, on all levels.
    pub descendants: u32,
    /// Entries of it that are directories to `stat`, for its link count.
    pub subdirectories: u32,
}

/// One entry of a directory object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What it is.
    pub kind: EntryKind,
    /// Its name: 1 to 255 bytes, neither `.` nor `..`, without `/` and NUL.
    pub name: &'a [u8],
    /// Size in bytes of the file as checked out, of the link's target, or of the directory object.
    pub size: u64,
    /// The git object, where the entry comes from a repository.
    pub oid: Option<GitOid>,
    /// The content as checked out, where it is known and differs from the git blob.
    pub content: Option<ContentId>,
    /// For a directory, what it holds.
    pub subtree: Option<Subtree>,
}

/// A checked directory object.
#[derive(Debug)]
pub struct Tree {
    bytes: Box<[u8]>,
    hash: Option<HashKind>,
    entries: u32,
    directories: u32,
    links: u32,
    descendants: u32,
}

/// An encoded directory object with what its parent records of it.
#[derive(Debug)]
pub struct EncodedTree {
    /// The encoding.
    pub bytes: Vec<u8>,
    /// What the parent records.
    pub subtree: Subtree,
}

/// Encodes one directory object. Entries are added in ascending order of their names.
#[derive(Debug)]
pub struct TreeBuilder {
    hash: Option<HashKind>,
    ends: Vec<u32>,
    records: Vec<u8>,
    last_name: Vec<u8>,
    directories: u32,
    links: u32,
    before: u64,
}

impl TreeBuilder {
    /// A builder for a directory whose git object ids, if any, are of kind `hash`.
    pub fn new(hash: Option<HashKind>) -> Self {
        Self {
            hash,
            ends: Vec::new(),
            records: Vec::new(),
            last_name: Vec::new(),
            directories: 0,
            links: 0,
            before: 0,
        }
    }

    /// Appends an entry.
    ///
    /// # Errors
    /// [`Error::Refused`] for a name that is invalid, repeated or out of order, for ids that do not
    /// fit the kind, and [`Error::TooLarge`] past a limit.
    pub fn push(&mut self, entry: &Entry<'_>) -> Result<()> {
        check_entry(entry).map_err(Error::Refused)?;
        if !self.ends.is_empty() && self.last_name.as_slice() >= entry.name {
            return Err(Error::Refused(format!(
                "directory entry {:?} is repeated or out of order",
                String::from_utf8_lossy(entry.name)
            )));
        }
        if entry.oid.is_some_and(|oid| Some(oid.kind()) != self.hash) {
            return Err(Error::Refused("a git object id of another hash algorithm".into()));
        }
        let before = self.before;
        self.before += 1 + entry.subtree.map_or(0, |sub| u64::from(sub.descendants));
        let record = entry.name.len() + RECORD_FIXED_BYTES + 32 + 32 + DIRECTORY_BYTES;
        if self.before > TREE_ENTRIES_MAX || (self.records.len() + record) as u64 > TREE_BYTES_MAX {
            return Err(Error::TooLarge {
                what: format!("a directory with {} entries below it", self.before),
                limit: TREE_ENTRIES_MAX,
            });
        }
        let flags = if entry.oid.is_some() { FLAG_OID } else { 0 }
            | if entry.content.is_some() { FLAG_CONTENT } else { 0 };
        self.records.extend_from_slice(&[entry.kind.tag(), flags]);
        self.records.extend_from_slice(&(entry.name.len() as u16).to_le_bytes());
        self.records.extend_from_slice(&(before as u32).to_le_bytes());
        self.records.extend_from_slice(&entry.size.to_le_bytes());
        if let Some(oid) = &entry.oid {
            self.records.extend_from_slice(oid.as_bytes());
        }
        if let Some(content) = &entry.content {
            self.records.extend_from_slice(content.as_bytes());
        }
        if let Some(subtree) = &entry.subtree {
            self.records.extend_from_slice(subtree.id.as_bytes());
            self.records.extend_from_slice(&subtree.descendants.to_le_bytes());
            self.records.extend_from_slice(&subtree.subdirectories.to_le_bytes());
            self.records.extend_from_slice(&self.directories.to_le_bytes());
            self.directories += 1;
        }
        if entry.kind.is_directory() {
            self.links += 1;
        }
        self.records.extend_from_slice(entry.name);
        self.ends.push(self.records.len() as u32);
        self.last_name.clear();
        self.last_name.extend_from_slice(entry.name);
        Ok(())
    }

    /// The finished object.
    pub fn finish(self) -> EncodedTree {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.ends.len() * 4 + self.records.len());
        bytes.extend_from_slice(&[TREE_VERSION, self.hash.map_or(0, HashKind::tag), 0, 0]);
        bytes.extend_from_slice(&(self.ends.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.links.to_le_bytes());
        bytes.extend_from_slice(&(self.before as u32).to_le_bytes());
        for end in &self.ends {
            bytes.extend_from_slice(&end.to_le_bytes());
        }
        bytes.extend_from_slice(&self.records);
        let subtree = Subtree {
            id: TreeId::of(&bytes),
            size: bytes.len() as u64,
            descendants: self.before as u32,
            subdirectories: self.links,
        };
        EncodedTree { bytes, subtree }
    }
}

impl Tree {
    /// Checks an encoding completely, so that the accessors need not.
    ///
    /// # Errors
    /// The reason, in words, if `bytes` is not what [`TreeBuilder::finish`] makes.
    pub fn decode(bytes: Vec<u8>) -> Result<Self, String> {
        let header = bytes.get(..HEADER_BYTES).ok_or("shorter than its header")?;
        if header[0] != TREE_VERSION {
            return Err(format!("tree encoding {} is unknown", header[0]));
        }
        let hash = match header[1] {
            0 => None,
            tag => Some(HashKind::from_tag(tag).ok_or("unknown hash algorithm")?),
        };
        let entries = u32_at(header, 4);
        let tree = Self {
            hash,
            entries,
            directories: 0,
            links: u32_at(header, 8),
            descendants: u32_at(header, 12),
            bytes: bytes.into_boxed_slice(),
        };
        let records_start = HEADER_BYTES as u64 + u64::from(entries) * 4;
        if records_start > tree.bytes.len() as u64 {
            return Err("shorter than its table of entries".into());
        }
        tree.check_records()
    }

    fn check_records(mut self) -> Result<Self, String> {
        let records = self.records_start();
        let mut start = 0_usize;
        let mut before = 0_u64;
        let (mut directories, mut links) = (0_u32, 0_u32);
        let mut last_name: Option<Range<usize>> = None;
        for index in 0..self.entries as usize {
            let end = u32_at(&self.bytes, HEADER_BYTES + index * 4) as usize;
            let record = self
                .bytes
                .get(records + start..)
                .and_then(|rest| rest.get(..end.checked_sub(start)?))
                .ok_or("a record ends outside the object")?;
            let entry = parse_record(record, self.hash)?;
            check_entry(&entry)?;
            if u64::from(u32_at(record, 4)) != before {
                return Err("an entry's position is wrong".into());
            }
            before += 1 + entry.subtree.map_or(0, |sub| u64::from(sub.descendants));
            if entry.subtree.is_some() {
                if u32_at(record, record.len() - entry.name.len() - 4) != directories {
                    return Err("a subdirectory's ordinal is wrong".into());
                }
                directories += 1;
            }
            links += u32::from(entry.kind.is_directory());
            let name = records + end - entry.name.len()..records + end;
            if last_name.is_some_and(|last| self.bytes[last] >= self.bytes[name.clone()]) {
                return Err("entries are not sorted by name".into());
            }
            last_name = Some(name);
            start = end;
        }
        if records + start != self.bytes.len() {
            return Err("bytes follow the last record".into());
        }
        if before != u64::from(self.descendants) || links != self.links || before > TREE_ENTRIES_MAX
        {
            return Err("its counts do not add up".into());
        }
        self.directories = directories;
        Ok(self)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries as usize
    }

    /// Whether the directory is empty.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Number of subdirectories that have a directory object (gitlinks do not).
    pub fn directories(&self) -> usize {
        self.directories as usize
    }

    /// The hash algorithm of the git object ids in it.
    pub fn hash(&self) -> Option<HashKind> {
        self.hash
    }

    /// The encoding.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What a parent records of this directory, given its id.
    pub fn subtree(&self, id: TreeId) -> Subtree {
        Subtree {
            id,
            size: self.bytes.len() as u64,
            descendants: self.descendants,
            subdirectories: self.links,
        }
    }

    /// Entry `index`, counted in name order from 0.
    ///
    /// # Panics
    /// If `index` is not below [`Tree::len`].
    pub fn entry(&self, index: usize) -> Entry<'_> {
        parse_record(self.record(index), self.hash).expect("records were checked when decoded")
    }

    /// All entries in name order.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        (0..self.len()).map(|index| self.entry(index))
    }

    /// The index of the entry named `name`.
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        let index = partition_point(self.len(), |i| self.name(i) < name);
        (index < self.len() && self.name(index) == name).then_some(index)
    }

    /// Entries of this directory's pre-order that come before entry `index`.
    pub fn before(&self, index: usize) -> u32 {
        u32_at(self.record(index), 4)
    }

    /// The entry in whose subtree position `offset` of the pre-order lies, if it lies in this
    /// directory at all.
    pub fn at(&self, offset: u32) -> Option<usize> {
        if offset >= self.descendants {
            return None;
        }
        Some(partition_point(self.len(), |i| self.before(i) <= offset) - 1)
    }

    /// The number of entry `index` among the subdirectories; `None` if it is not one.
    pub fn ordinal(&self, index: usize) -> Option<usize> {
        let record = self.record(index);
        (record[0] == EntryKind::Directory.tag())
            .then(|| u32_at(record, record.len() - name_len(record) - 4) as usize)
    }

    fn records_start(&self) -> usize {
        HEADER_BYTES + self.entries as usize * 4
    }

    fn record(&self, index: usize) -> &[u8] {
        assert!(index < self.len(), "entry {index} of {}", self.len());
        let start = match index {
            0 => 0,
            _ => u32_at(&self.bytes, HEADER_BYTES + (index - 1) * 4) as usize,
        };
        let end = u32_at(&self.bytes, HEADER_BYTES + index * 4) as usize;
        let records = self.records_start();
        &self.bytes[records + start..records + end]
    }

    fn name(&self, index: usize) -> &[u8] {
        let record = self.record(index);
        &record[record.len() - name_len(record)..]
    }
}

/// Why `name` may not stand in a directory; `None` if it may.
pub fn name_fault(name: &[u8]) -> Option<&'static str> {
    match name {
        b"" => Some("an entry without a name"),
        b"." | b".." => Some("an entry named . or .."),
        _ if name.len() > NAME_BYTES_MAX => Some("an entry whose name is longer than 255 bytes"),
        _ if name.contains(&b'/') => Some("an entry whose name holds a slash"),
        _ if name.contains(&0) => Some("an entry whose name holds a NUL byte"),
        _ => None,
    }
}

fn check_entry(entry: &Entry<'_>) -> Result<(), String> {
    let shown = || String::from_utf8_lossy(entry.name).into_owned();
    if let Some(fault) = name_fault(entry.name) {
        return Err(format!("{fault}: {:?}", shown()));
    }
    let sane = match entry.kind {
        EntryKind::File | EntryKind::Executable | EntryKind::Symlink => {
            entry.subtree.is_none() && (entry.oid.is_some() || entry.content.is_some())
        }
        EntryKind::Gitlink => {
            entry.subtree.is_none() && entry.content.is_none() && entry.oid.is_some()
        }
        EntryKind::Directory => {
            entry.subtree.is_some_and(|sub| sub.size == entry.size) && entry.content.is_none()
        }
    };
    if !sane {
        return Err(format!("entry {:?} has ids that do not fit its kind", shown()));
    }
    if entry.size > FILE_BYTES_MAX {
        return Err(format!("entry {:?} states a size of {} bytes", shown(), entry.size));
    }
    if entry.kind == EntryKind::Symlink && entry.size > SYMLINK_BYTES_MAX {
        return Err(format!("symbolic link {:?} has a target of {} bytes", shown(), entry.size));
    }
    Ok(())
}

fn parse_record(record: &[u8], hash: Option<HashKind>) -> Result<Entry<'_>, String> {
    const SHORT: &str = "a record is too short";
    if record.len() < RECORD_FIXED_BYTES {
        return Err(SHORT.into());
    }
    let kind = EntryKind::from_tag(record[0]).ok_or("an entry of unknown kind")?;
    let flags = record[1];
    if flags & !(FLAG_OID | FLAG_CONTENT) != 0 {
        return Err("an entry with unknown flags".into());
    }
    let mut rest = &record[RECORD_FIXED_BYTES..];
    let mut take = |len: usize| {
        let (head, tail) = rest.split_at_checked(len).ok_or(SHORT)?;
        rest = tail;
        Ok::<_, &str>(head)
    };
    let oid = if flags & FLAG_OID != 0 {
        let hash = hash.ok_or("a git object id in a tree without a hash algorithm")?;
        GitOid::from_slice(hash, take(hash.len())?)
    } else {
        None
    };
    let content = if flags & FLAG_CONTENT != 0 { ContentId::from_slice(take(32)?) } else { None };
    let size = u64::from_le_bytes(array_at(record, 8));
    let subtree = if kind == EntryKind::Directory {
        let fields = take(DIRECTORY_BYTES)?;
        Some(Subtree {
            id: TreeId::new(array_at(fields, 0)),
            size,
            descendants: u32_at(fields, 32),
            subdirectories: u32_at(fields, 36),
        })
    } else {
        None
    };
    if rest.len() != name_len(record) {
        return Err("a record's length does not fit its name".into());
    }
    Ok(Entry { kind, name: rest, size, oid, content, subtree })
}

fn name_len(record: &[u8]) -> usize {
    u16::from_le_bytes(array_at(record, 2)) as usize
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// `N` bytes at a position that the caller has checked.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}

fn partition_point(len: usize, mut below: impl FnMut(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = low + (high - low) / 2;
        if below(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests;

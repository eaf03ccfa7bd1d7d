//! The index of a pack: where each object lies. Versions 1 and 2 of the format that
//! `gitformat-pack` describes.
//!
//! Nothing in it is trusted: an offset that is wrong leads to bytes that do not hash to the object.

use std::ops::Range;
use std::path::PathBuf;

use agentfs_engine::{GitOid, HashKind};

use super::file::RandomFile;
use super::held::Held;
use super::prefix::Prefix;
use crate::error::Result;

const MAGIC: [u8; 8] = [0xff, b't', b'O', b'c', 0, 0, 0, 2];
const FANOUT_BYTES: u64 = 256 * 4;
/// A range of ids up to this length is read at once instead of being halved further.
const LEAF_BYTES: u64 = 8 << 10;
/// Set in a 4-byte offset that is the number of an 8-byte one.
const FAR: u32 = 1 << 31;

#[derive(Debug)]
pub(super) struct PackIndex {
    file: RandomFile,
    /// All of the file, where there is room for it.
    held: Option<Held>,
    hash: HashKind,
    fanout: Box<[u32; 256]>,
    /// Where the first object id lies, and how far apart two are.
    ids: u64,
    stride: u64,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl PackIndex {
    pub(super) fn open(path: PathBuf, hash: HashKind) -> Result<Self> {
        let file = RandomFile::open(path)?;
        let mut head = [0; 8];
        file.read_exact(0, &mut head)?;
        let (version, fanout_at) = if head == MAGIC {
            (Version::Two, 8)
        } else if head[..4] == MAGIC[..4] {
            return Err(file.corrupt("it is a pack index of an unknown version"));
        } else {
            (Version::One, 0)
        };
        let mut bytes = [0; FANOUT_BYTES as usize];
        file.read_exact(fanout_at, &mut bytes)?;
        let mut fanout = Box::new([0; 256]);
        for (entry, bytes) in fanout.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *entry = u32::from_be_bytes(*bytes);
        }
        if !fanout.is_sorted() {
            return Err(file.corrupt("its table of first bytes is not in order"));
        }
        let id_len = hash.len() as u64;
        let count = u64::from(fanout[255]);
        // Checksums of the pack and of the index follow the tables.
        let tables = fanout_at + FANOUT_BYTES + count * (id_len + 4);
        let (ids, stride, least) = match version {
            Version::One => (FANOUT_BYTES + 4, id_len + 4, tables + 2 * id_len),
            Version::Two => (8 + FANOUT_BYTES, id_len, tables + count * 4 + 2 * id_len),
        };
        if file.len() < least {
            return Err(
                file.corrupt(format!("it has {} bytes, too few for {count} objects", file.len()))
            );
        }
        let held = Held::read(&file)?;
        Ok(Self { file, held, hash, fanout, ids, stride, version })
    }

    pub(super) fn file(&self) -> &RandomFile {
        &self.file
    }

    /// Number of objects.
    pub(super) fn count(&self) -> u32 {
        self.fanout[255]
    }

    /// Where `oid` lies in the pack.
    pub(super) fn find(&self, oid: &GitOid) -> Result<Option<u64>> {
        if oid.kind() != self.hash {
            return Ok(None);
        }
        let id = oid.as_bytes();
        let mut range = self.bucket(id[0]);
        let mut probe = [0; 32];
        let probe = &mut probe[..id.len()];
        let leaf_bytes = if self.held.is_some() { 0 } else { LEAF_BYTES };
        while u64::from(range.end - range.start) * self.stride > leaf_bytes {
            let middle = range.start + (range.end - range.start) / 2;
            self.read(self.id_at(middle), probe)?;
            match (*probe).cmp(id) {
                std::cmp::Ordering::Equal => return self.offset(middle).map(Some),
                std::cmp::Ordering::Less => range.start = middle + 1,
                std::cmp::Ordering::Greater => range.end = middle,
            }
        }
        if range.is_empty() {
            return Ok(None);
        }
        let mut leaf = [0; LEAF_BYTES as usize];
        let len = (range.end - range.start) as usize * self.stride as usize;
        // The last record of version 1 needs no bytes after its id.
        let leaf = &mut leaf[..len - (self.stride as usize - id.len())];
        self.read(self.id_at(range.start), leaf)?;
        let found = leaf.chunks(self.stride as usize).position(|record| &record[..id.len()] == id);
        found.map(|at| self.offset(range.start + at as u32)).transpose()
    }

    /// Adds objects whose ids begin with `prefix` to `found`, until it has `limit`.
    pub(super) fn with_prefix(
        &self,
        prefix: &Prefix,
        limit: usize,
        found: &mut Vec<GitOid>,
    ) -> Result<()> {
        let least = prefix.least(self.hash.len());
        let mut id = [0; 32];
        let id = &mut id[..least.len()];
        let mut range = self.bucket(least[0]);
        let last = range.end;
        while !range.is_empty() {
            let middle = range.start + (range.end - range.start) / 2;
            self.read(self.id_at(middle), id)?;
            if (*id).cmp(least).is_lt() {
                range.start = middle + 1;
            } else {
                range.end = middle;
            }
        }
        for index in range.start..last {
            self.read(self.id_at(index), id)?;
            if !prefix.matches(id) || found.len() == limit {
                break;
            }
            found.extend(GitOid::from_slice(self.hash, id));
        }
        Ok(())
    }

    /// The objects whose ids begin with `byte`.
    fn bucket(&self, byte: u8) -> Range<u32> {
        let start = byte.checked_sub(1).map_or(0, |before| self.fanout[usize::from(before)]);
        start..self.fanout[usize::from(byte)]
    }

    fn id_at(&self, index: u32) -> u64 {
        self.ids + u64::from(index) * self.stride
    }

    fn offset(&self, index: u32) -> Result<u64> {
        let near = match self.version {
            Version::One => return self.u32_at(self.id_at(index) - 4).map(u64::from),
            Version::Two => {
                let tables = u64::from(self.count()) * (self.stride + 4);
                self.u32_at(self.ids + tables + u64::from(index) * 4)?
            }
        };
        if near & FAR == 0 {
            return Ok(u64::from(near));
        }
        let far = self.ids + u64::from(self.count()) * (self.stride + 8);
        let mut bytes = [0; 8];
        self.read(far + u64::from(near & !FAR) * 8, &mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }

    fn u32_at(&self, at: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        match self.held.as_ref().and_then(|held| held.get(at, out.len())) {
            Some(bytes) => {
                out.copy_from_slice(bytes);
                Ok(())
            }
            None => self.file.read_exact(at, out),
        }
    }

    /// Compares the file with the checksum at its end. Only for telling why an object is missing.
    pub(super) fn verify(&self) -> Result<()> {
        let mut hasher = gix::hash::hasher(crate::object::to_gix_kind(self.hash));
        let end = self.file.len() - self.hash.len() as u64;
        let mut buffer = vec![0; 64 << 10];
        let mut at = 0;
        while at < end {
            let part = (end - at).min(buffer.len() as u64) as usize;
            self.file.read_exact(at, &mut buffer[..part])?;
            hasher.update(&buffer[..part]);
            at += part as u64;
        }
        let mut expected = [0; 32];
        let expected = &mut expected[..self.hash.len()];
        self.file.read_exact(end, expected)?;
        match hasher.try_finalize() {
            Ok(digest) if digest.as_slice() == expected => Ok(()),
            _ => Err(self.file.corrupt("its checksum is wrong; `git index-pack` makes it anew")),
        }
    }
}

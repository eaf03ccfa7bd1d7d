//! The index of a pack: where each object lies. Versions 1 and 2 of the format that
//! `gitformat-pack` describes.
//!
//! Nothing in it is trusted: an offset that is wrong leads to bytes that do not hash to the object.

use std::cmp::Ordering;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{self, AtomicU32};

use agentfs_engine::{GitOid, HashKind};

use super::file::RandomFile;
use super::held::Held;
use super::marks::Marks;
use super::prefix::Prefix;
use crate::error::Result;
use crate::limits::INDEX_MARKS_MAX;

const MAGIC: [u8; 8] = [0xff, b't', b'O', b'c', 0, 0, 0, 2];
const FANOUT_BYTES: u64 = 256 * 4;
/// A range of ids up to this length is read at once instead of being halved further.
const LEAF_BYTES: u64 = 1 << 10;
/// Of so many objects one has to be looked for before all ids are read for their marks: so many lookups without
/// them take about as long as that.
const LOOKUP_SHARE: u32 = 1_000;
/// Set in a 4-byte offset that is the number of an 8-byte one.
const FAR: u32 = 1 << 31;

#[derive(Debug)]
pub(super) struct PackIndex {
    file: RandomFile,
    /// All of the file, where there is room for it.
    held: Option<Held>,
    /// What leads to an id where not all is held, once it pays.
    marks: OnceLock<Option<Marks>>,
    lookups: AtomicU32,
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
        let held = Held::read(&file, 0..file.len())?;
        let (marks, lookups) = (OnceLock::new(), AtomicU32::new(0));
        Ok(Self { file, held, marks, lookups, hash, fanout, ids, stride, version })
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
        if self.held.is_some() {
            return self.halve(&mut range, id, 0);
        }
        if let Some(marks) = self.marks() {
            marks.narrow(&mut range, id);
        }
        if let Some(offset) = self.halve(&mut range, id, LEAF_BYTES)? {
            return Ok(Some(offset));
        }
        let mut leaf = [0; LEAF_BYTES as usize];
        let (stride, len) = (self.stride as usize, id.len());
        // The last record of version 1 needs no bytes after its id.
        let bytes = (range.len() * stride).saturating_sub(stride - len);
        self.read(self.id_at(range.start), &mut leaf[..bytes])?;
        let place = leaf[..bytes].chunks(stride).position(|record| record[..len] == *id);
        place.map(|place| self.offset(range.start + place as u32)).transpose()
    }

    /// The marks, if there is room for them and enough has been looked for.
    fn marks(&self) -> Option<&Marks> {
        if self.marks.get().is_none()
            && self.lookups.fetch_add(1, atomic::Ordering::Relaxed) < self.count() / LOOKUP_SHARE
        {
            return None;
        }
        // What cannot be read here cannot be read by the lookup either, which says so.
        self.marks.get_or_init(|| Marks::read(self, INDEX_MARKS_MAX).ok().flatten()).as_ref()
    }

    /// Reads the ids of all objects, in their order.
    pub(super) fn each_id(&self, mut each: impl FnMut(u32, &[u8])) -> Result<()> {
        let at_once = ((64 << 10) / self.stride) as u32;
        let mut buffer = vec![0; (u64::from(at_once) * self.stride) as usize];
        let mut start = 0;
        while start < self.count() {
            let end = self.count().min(start.saturating_add(at_once));
            let part = &mut buffer[..(end - start) as usize * self.stride as usize];
            // What follows the last id is in the file: the checksums are.
            self.read(self.id_at(start), part)?;
            let ids = part.chunks_exact(self.stride as usize);
            ids.zip(start..end)
                .for_each(|(record, number)| each(number, &record[..self.hash.len()]));
            start = end;
        }
        Ok(())
    }

    /// The table of offsets in the file; `None` where each stands beside its id.
    pub(super) fn offsets(&self) -> Option<Range<u64>> {
        let count = u64::from(self.count());
        let start = self.ids + count * (self.stride + 4);
        (self.version == Version::Two).then_some(start..start + count * 4)
    }

    /// Halves the range in which `id` may be until its records have no more than `enough` bytes, or until the
    /// object is found: where it lies then.
    fn halve(&self, range: &mut Range<u32>, id: &[u8], enough: u64) -> Result<Option<u64>> {
        let mut probe = [0; 32];
        let probe = &mut probe[..id.len()];
        while u64::from(range.end - range.start) * self.stride > enough {
            let middle = range.start + (range.end - range.start) / 2;
            self.read(self.id_at(middle), probe)?;
            match (*probe).cmp(id) {
                Ordering::Equal => return self.offset(middle).map(Some),
                Ordering::Less => range.start = middle + 1,
                Ordering::Greater => range.end = middle,
            }
        }
        Ok(None)
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
        let Some(offsets) = self.offsets() else {
            return self.u32_at(self.id_at(index) - 4).map(u64::from);
        };
        let near = self.u32_at(offsets.start + u64::from(index) * 4)?;
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
        let held = self.held.as_ref().and_then(|held| held.get(at, out.len()));
        let marked = || self.marks.get()?.as_ref()?.offsets()?.get(at, out.len());
        match held.or_else(marked) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// An index of version 2 of these ids, which are in order; the object of each lies at its number.
    fn index(ids: &[[u8; 20]]) -> PackIndex {
        let mut bytes = MAGIC.to_vec();
        for first in 0..=255 {
            let count = ids.partition_point(|id| id[0] <= first) as u32;
            bytes.extend_from_slice(&count.to_be_bytes());
        }
        ids.iter().for_each(|id| bytes.extend_from_slice(id));
        bytes.resize(bytes.len() + 4 * ids.len(), 0);
        (0..ids.len() as u32).for_each(|number| bytes.extend_from_slice(&number.to_be_bytes()));
        bytes.resize(bytes.len() + 40, 0);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        PackIndex::open(file.path().to_owned(), HashKind::Sha1).unwrap()
    }

    /// Ids that are spread as hashes are, or crowd where a guess does not expect them.
    fn ids(count: u32, crowd: bool) -> Vec<[u8; 20]> {
        let id = |number: u32| {
            let mut id = [0; 20];
            blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut id);
            if crowd {
                let start =
                    if number.is_multiple_of(3) { [9, 255, 255, 255] } else { [9, 0, 0, 7] };
                id[..4].copy_from_slice(&start);
            }
            id
        };
        let mut ids: Vec<_> = (0..count).map(id).collect();
        ids.sort_unstable();
        ids
    }

    /// All of the file, marks of every id or of some, or nothing until enough has been looked for.
    fn hold(index: &mut PackIndex, marks: Option<u32>) {
        index.held = None;
        if let Some(most) = marks {
            index.marks = OnceLock::from(Marks::read(index, most).unwrap());
        }
    }

    #[test]
    fn whatever_is_held_the_same_is_found() {
        for (count, crowd) in [(0, false), (1, false), (50_000, false), (9_000, true)] {
            let ids = ids(count, crowd);
            for marks in [None, Some(None), Some(Some(100_000)), Some(Some(700)), Some(Some(3))] {
                let mut index = index(&ids);
                if let Some(marks) = marks {
                    hold(&mut index, marks);
                }
                let find = |id: &[u8; 20]| {
                    index.find(&GitOid::from_slice(HashKind::Sha1, id).unwrap()).unwrap()
                };
                for (number, id) in ids.iter().enumerate() {
                    assert_eq!(find(id), Some(number as u64), "{count} {crowd} {marks:?}");
                    let mut other = *id;
                    other[19] ^= 1;
                    assert_eq!(find(&other), None, "{count} {crowd} {marks:?}");
                }
                assert_eq!(find(&[0; 20]), None);
                assert_eq!(find(&[255; 20]), None);
            }
        }
    }

    /// As many reads as it takes, and no more: a lookup is made for every object of a repository.
    #[test]
    fn marks_lead_to_the_place() {
        let ids = ids(50_000, false);
        for (most, step) in [(100_000, 1), (50_000, 1), (49_999, 2), (1_000, 50)] {
            let mut index = index(&ids);
            hold(&mut index, Some(most));
            for (number, id) in ids.iter().enumerate() {
                let mut range = index.bucket(id[0]);
                index.marks().unwrap().narrow(&mut range, id);
                assert!(range.contains(&(number as u32)), "{most}");
                // Marks of these ids are all different, and its own mark is at the end of what may be before it.
                assert!(range.len() < 2 * step + 1, "{most}: {range:?}");
            }
        }
    }
}

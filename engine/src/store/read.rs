//! Reads contents and trees: place, payload, bytes, digest.

use std::cell::RefCell;
use std::sync::{Arc, LazyLock};

use super::tables::{At, Extent, Object, Place};
use super::{Core, count};
use crate::encoding::Decoder;
use crate::error::{Error, Result};
use crate::id::{ChunkId, ContentId, TreeId};
use crate::store::segment::RECORD_HEADER_BYTES;
use crate::tree::Tree;

/// A thread keeps a buffer up to this size from one read to the next.
const KEPT_BUFFER_BYTES: usize = 2 << 20;

/// What a thread needs for reading, kept from one read to the next.
#[derive(Default)]
struct Scratch {
    decoder: Decoder,
    record: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The chunks of a content, with where each ends.
#[derive(Debug)]
pub(super) struct Manifest {
    chunks: Vec<(ChunkId, u64)>,
}

pub(crate) fn empty_content() -> ContentId {
    static EMPTY: LazyLock<ContentId> = LazyLock::new(|| ContentId::of(b""));
    *EMPTY
}

impl Core {
    /// [`super::Store::tree`].
    pub(super) fn tree(&self, id: TreeId) -> Result<Tree> {
        let object = Object::Tree(id);
        let bytes = self.load(&object)?;
        Tree::decode(bytes).map_err(|why| Error::corrupt(object.to_string(), why))
    }

    /// [`super::Store::read_at`].
    pub(super) fn read_at(&self, id: ContentId, offset: u64, out: &mut [u8]) -> Result<usize> {
        if out.is_empty() || id == empty_content() {
            return Ok(0);
        }
        let chunk = ChunkId::from(id);
        if let Some(bytes) = self.chunks.get(chunk) {
            count(&self.counters.cache_hits, 1);
            return Ok(copy_from(&bytes, offset, out));
        }
        if let Some(manifest) = self.manifests.get(id) {
            return self.read_chunks(&manifest, offset, out);
        }
        match self.read_single(chunk, offset, out)? {
            Single::Read(len) => Ok(len),
            Single::Part => Ok(copy_from(&self.chunk(chunk)?, offset, out)),
            Single::Absent => {
                let manifest = self.manifests.get_or_load(id, || {
                    let found = self.manifest(id)?.ok_or(Error::MissingContent(id))?;
                    let mut end = 0;
                    let chunks = found.chunks.into_iter().map(|(chunk, len)| {
                        end += u64::from(len);
                        (chunk, end)
                    });
                    let chunks = chunks.collect::<Vec<_>>();
                    let bytes = size_of_val(chunks.as_slice());
                    Ok((Manifest { chunks }, bytes))
                })?;
                self.read_chunks(&manifest, offset, out)
            }
        }
    }

    /// Reads a content that is one chunk straight into `out`, if all of it is wanted.
    fn read_single(&self, chunk: ChunkId, offset: u64, out: &mut [u8]) -> Result<Single> {
        let object = Object::Chunk(chunk);
        let found = self.read_object(&object, |place| {
            let len = place.raw_len as usize;
            if offset >= u64::from(place.raw_len) {
                return Ok(Single::Read(0));
            }
            if offset > 0 || out.len() < len {
                return Ok(Single::Part);
            }
            self.decode(&object, place, &mut out[..len])?;
            Ok(Single::Read(len))
        })?;
        Ok(found.unwrap_or(Single::Absent))
    }

    fn read_chunks(&self, manifest: &Manifest, offset: u64, out: &mut [u8]) -> Result<usize> {
        let first = manifest.chunks.partition_point(|&(_, end)| end <= offset);
        let mut start = first.checked_sub(1).map_or(0, |before| manifest.chunks[before].1);
        let mut done = 0;
        for &(chunk, end) in &manifest.chunks[first..] {
            if done == out.len() {
                break;
            }
            let bytes = self.chunk(chunk)?;
            if bytes.len() as u64 != end - start {
                return Err(Error::corrupt(
                    format!("the manifest that names chunk {chunk}"),
                    format!("it gives {} bytes to a chunk of {}", end - start, bytes.len()),
                ));
            }
            let from = (offset + done as u64) - start;
            done += copy_from(&bytes, from, &mut out[done..]);
            start = end;
        }
        Ok(done)
    }

    /// A chunk of which a part is wanted: through the cache, since the next read will want the next
    /// part.
    fn chunk(&self, id: ChunkId) -> Result<Arc<Vec<u8>>> {
        let mut hit = true;
        let bytes = self.chunks.get_or_load(id, || {
            hit = false;
            let bytes = self.load(&Object::Chunk(id))?;
            let len = bytes.len();
            Ok((bytes, len))
        })?;
        if hit {
            count(&self.counters.cache_hits, 1);
        }
        Ok(bytes)
    }

    /// The verified bytes of a chunk or tree.
    pub(crate) fn load(&self, object: &Object) -> Result<Vec<u8>> {
        let found = self.read_object(object, |place| {
            self.with_payload(object, place, |stored, decoder| {
                let bytes = decoder
                    .decode_new(place.encoding, stored, place.raw_len)
                    .map_err(|why| object.corrupt_at(&place.at, why))?;
                verify(object, place, &bytes)?;
                Ok(bytes)
            })
        })?;
        found.ok_or_else(|| object.missing())
    }

    /// Calls `with` for the place of an object, and again if what is read there is wrong because a
    /// garbage collection has moved the object meanwhile.
    fn read_object<T>(
        &self,
        object: &Object,
        mut with: impl FnMut(&Place<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        loop {
            let mut at = None;
            let result = self.read(|snapshot| {
                snapshot.get(object.table(), object.id(), |value| {
                    let place = Place::decode(object, value)?;
                    at = extent(&place);
                    with(&place)
                })
            });
            let Err(error) = result else { return result };
            if error.is_corruption() && at.is_some() && self.extent_of(object)? != at {
                continue;
            }
            if matches!((&error, object), (Error::Corrupt { .. }, Object::Chunk(_))) {
                count(&self.counters.chunks_bad, 1);
            }
            return Err(error);
        }
    }

    /// Where in a segment an object is now.
    fn extent_of(&self, object: &Object) -> Result<Option<Extent>> {
        let found = self.read(|snapshot| {
            let decode = |value: &[u8]| Ok(extent(&Place::decode(object, value)?));
            snapshot.get(object.table(), object.id(), decode)
        })?;
        Ok(found.flatten())
    }

    fn decode(&self, object: &Object, place: &Place<'_>, out: &mut [u8]) -> Result<()> {
        self.with_payload(object, place, |stored, decoder| {
            decode_verified(object, place, stored, decoder, out)
        })
    }

    /// Calls `with` for the payload at `place`. It must not read from the store itself.
    fn with_payload<T>(
        &self,
        object: &Object,
        place: &Place<'_>,
        with: impl FnOnce(&[u8], &mut Decoder) -> Result<T>,
    ) -> Result<T> {
        count(&self.counters.bytes_read, place.stored_len());
        if matches!(object, Object::Chunk(_)) {
            count(&self.counters.chunks_read, 1);
        }
        SCRATCH.with_borrow_mut(|Scratch { decoder, record }| match place.at {
            At::Inline(payload) => with(payload, decoder),
            At::Segment(extent) => {
                self.segments.read(object, place, extent, record)?;
                let result = with(&record[RECORD_HEADER_BYTES..], decoder);
                if record.capacity() > KEPT_BUFFER_BYTES {
                    *record = Vec::new();
                }
                result
            }
        })
    }
}

fn extent(place: &Place<'_>) -> Option<Extent> {
    match place.at {
        At::Inline(_) => None,
        At::Segment(extent) => Some(extent),
    }
}

enum Single {
    /// So many bytes were read.
    Read(usize),
    /// It is one chunk, but only a part is wanted.
    Part,
    /// It is not one chunk.
    Absent,
}

/// Decodes the payload of `object` into `out`, which is as long as its place says, and compares
/// the digest.
pub(crate) fn decode_verified(
    object: &Object,
    place: &Place<'_>,
    stored: &[u8],
    decoder: &mut Decoder,
    out: &mut [u8],
) -> Result<()> {
    decoder.decode(place.encoding, stored, out).map_err(|why| object.corrupt_at(&place.at, why))?;
    verify(object, place, out)
}

fn verify(object: &Object, place: &Place<'_>, bytes: &[u8]) -> Result<()> {
    if blake3::hash(bytes).as_bytes() == object.id() {
        Ok(())
    } else {
        Err(object.corrupt_at(&place.at, "its bytes do not have this digest"))
    }
}

fn copy_from(bytes: &[u8], offset: u64, out: &mut [u8]) -> usize {
    let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or(&[]);
    let len = rest.len().min(out.len());
    out[..len].copy_from_slice(&rest[..len]);
    len
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::content::Preparer;
    use crate::gc::Collection;
    use crate::progress::{Cancel, Silent};
    use crate::store::Store;
    use crate::testing::FaultyStorage;

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        crate::check::tests::noise(seed, len)
    }

    /// A reader that has found a place just before its segment is removed.
    #[test]
    fn a_reader_finds_what_was_moved_meanwhile() {
        let storage = Arc::new(FaultyStorage::new());
        let store = Store::open_on(storage, Path::new("/store")).unwrap();
        let (bytes, mut preparer) = (noise(1, 3000), Preparer::new());
        let content = preparer.content(&bytes);
        let mut batch = store.batch().unwrap();
        batch.put_content(&preparer.content(&noise(2, 200_000))).unwrap();
        batch.put_content(&content).unwrap();
        batch.commit().unwrap();
        let collect = || {
            let upkeep = store.upkeep();
            let begun = Collection::begin(&store, &upkeep, false).unwrap();
            assert!(store.has_content(content.id).unwrap(), "which keeps it");
            begun.run(&Silent, &Cancel::default()).unwrap()
        };
        let object = Object::Chunk(content.id.into());
        let mut places = Vec::new();
        let read = store.core().read_object(&object, |place| {
            if places.is_empty() {
                let report = std::thread::scope(|scope| scope.spawn(collect).join().unwrap());
                assert_eq!((report.segments.count, report.moved.count), (1, 1));
            }
            places.push(extent(place));
            store.core().with_payload(&object, place, |stored, _| Ok(stored.to_vec()))
        });
        assert_eq!(read.unwrap(), Some(bytes));
        assert_eq!(places.len(), 2);
        assert_ne!(places[0], places[1]);
        assert_eq!(store.counters().chunks_bad, 0);
    }
}

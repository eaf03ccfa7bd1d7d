//! Bases of deltas that were made lately, for the next object of the same chain.

use crate::limits::DELTA_CACHE_BYTES;
use crate::object::Kind;

const ENTRIES_MAX: usize = 64;

/// Objects by pack and offset, the least recently used first.
#[derive(Debug, Default)]
pub(super) struct DeltaCache {
    entries: Vec<Cached>,
    bytes: usize,
}

#[derive(Debug)]
struct Cached {
    pack: u64,
    offset: u64,
    kind: Kind,
    bytes: Vec<u8>,
}

impl DeltaCache {
    /// Takes the object out, to be put back once it was used.
    pub(super) fn take(&mut self, pack: u64, offset: u64) -> Option<(Kind, Vec<u8>)> {
        let at = self.entries.iter().rposition(|it| it.offset == offset && it.pack == pack)?;
        let cached = self.entries.remove(at);
        self.bytes -= cached.bytes.capacity();
        Some((cached.kind, cached.bytes))
    }

    /// Keeps an object. Returns a buffer to use again.
    pub(super) fn put(&mut self, pack: u64, offset: u64, kind: Kind, bytes: Vec<u8>) -> Vec<u8> {
        let size = bytes.capacity();
        if size > DELTA_CACHE_BYTES / 4 {
            return Vec::new();
        }
        let mut freed = Vec::new();
        while self.bytes + size > DELTA_CACHE_BYTES || self.entries.len() == ENTRIES_MAX {
            let oldest = self.entries.remove(0);
            self.bytes -= oldest.bytes.capacity();
            freed = oldest.bytes;
        }
        self.bytes += size;
        self.entries.push(Cached { pack, offset, kind, bytes });
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_to_its_bounds() {
        let mut cache = DeltaCache::default();
        for offset in 0..1000 {
            cache.put(1, offset, Kind::Blob, vec![offset as u8; 100_000]);
            assert!(cache.bytes <= DELTA_CACHE_BYTES && cache.entries.len() <= ENTRIES_MAX);
        }
        assert!(cache.take(1, 0).is_none() && cache.take(2, 999).is_none());
        let (kind, bytes) = cache.take(1, 999).unwrap();
        assert_eq!((kind, bytes[0]), (Kind::Blob, 999_u32 as u8));
        assert!(cache.take(1, 999).is_none());
        cache.put(1, 1, Kind::Blob, vec![0; DELTA_CACHE_BYTES]);
        assert!(cache.take(1, 1).is_none());
        for offset in 1000..2000 {
            cache.put(1, offset, Kind::Tree, vec![0; 10]);
        }
        assert_eq!(cache.entries.len(), ENTRIES_MAX);
    }
}

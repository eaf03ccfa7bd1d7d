//! A cache of loaded values, bounded in bytes, that loads each value once.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Result;

const SHARDS: usize = 8;

/// Values by key. The least recently used ones go when the bytes of a shard exceed its part of the
/// bound.
///
/// Locks: a slot's lock is held while its value is loaded, so that others who want it wait instead
/// of loading it too; a shard's lock is a leaf, held for a few instructions.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    hasher: RandomState,
    shards: [Mutex<Shard<K, V>>; SHARDS],
    shard_bytes_max: usize,
}

type Slot<V> = Arc<Mutex<Option<Arc<V>>>>;

#[derive(Debug)]
struct Shard<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Keys by the time of their last use.
    order: BTreeMap<u64, K>,
    now: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry<V> {
    slot: Slot<V>,
    used: u64,
    bytes: usize,
}

impl<K, V> Default for Shard<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), order: BTreeMap::new(), now: 0, bytes: 0 }
    }
}

impl<K: Copy + Eq + Hash, V> Cache<K, V> {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            hasher: RandomState::new(),
            shards: Default::default(),
            shard_bytes_max: bytes_max / SHARDS,
        }
    }

    /// The value of `key`, if it is here.
    pub(super) fn get(&self, key: K) -> Option<Arc<V>> {
        let slot = self.shard(&key).touch(key)?;
        // A value that is being loaded is not here yet.
        slot.try_lock().ok()?.clone()
    }

    /// The value of `key`, from `load` if it is not here. `load` returns it with its bytes.
    pub(super) fn get_or_load(
        &self,
        key: K,
        load: impl FnOnce() -> Result<(V, usize)>,
    ) -> Result<Arc<V>> {
        let slot = self.shard(&key).touch_or_insert(key);
        let mut value = lock(&slot);
        if let Some(value) = &*value {
            return Ok(Arc::clone(value));
        }
        match load() {
            Ok((loaded, bytes)) => {
                let loaded = Arc::new(loaded);
                *value = Some(Arc::clone(&loaded));
                self.shard(&key).charge(&key, &slot, bytes, self.shard_bytes_max);
                Ok(loaded)
            }
            Err(error) => {
                self.shard(&key).remove(&key, &slot);
                Err(error)
            }
        }
    }

    #[cfg(test)]
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            *lock(shard) = Shard::default();
        }
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K, V>> {
        lock(&self.shards[(self.hasher.hash_one(key) % SHARDS as u64) as usize])
    }
}

/// A panic cannot leave a slot or a shard half-changed: each change is one step or harmless.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Copy + Eq + Hash, V> Shard<K, V> {
    fn touch(&mut self, key: K) -> Option<Slot<V>> {
        let entry = self.entries.get_mut(&key)?;
        self.order.remove(&entry.used);
        self.now += 1;
        entry.used = self.now;
        self.order.insert(self.now, key);
        Some(Arc::clone(&entry.slot))
    }

    fn touch_or_insert(&mut self, key: K) -> Slot<V> {
        self.touch(key).unwrap_or_else(|| {
            self.now += 1;
            self.order.insert(self.now, key);
            let slot = Slot::default();
            let entry = Entry { slot: Arc::clone(&slot), used: self.now, bytes: 0 };
            self.entries.insert(key, entry);
            slot
        })
    }

    /// Counts a loaded value and makes room for it. It may itself have to go.
    fn charge(&mut self, key: &K, slot: &Slot<V>, bytes: usize, bytes_max: usize) {
        match self.entries.get_mut(key) {
            Some(entry) if Arc::ptr_eq(&entry.slot, slot) => entry.bytes = bytes,
            _ => return,
        }
        self.bytes += bytes;
        while self.bytes > bytes_max {
            let Some((_, key)) = self.order.pop_first() else { break };
            self.bytes -= self.entries.remove(&key).map_or(0, |entry| entry.bytes);
        }
    }

    fn remove(&mut self, key: &K, slot: &Slot<V>) {
        if self.entries.get(key).is_some_and(|entry| Arc::ptr_eq(&entry.slot, slot)) {
            let entry = self.entries.remove(key);
            self.order.remove(&entry.map_or(0, |entry| entry.used));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn bytes_held<V>(cache: &Cache<u32, V>) -> usize {
        cache.shards.iter().map(|shard| lock(shard).bytes).sum()
    }

    #[test]
    fn values_are_loaded_once_even_by_many_threads() {
        let cache = Cache::new(1 << 20);
        let loads = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for key in 0..50_u32 {
                        let value = cache
                            .get_or_load(key, || {
                                loads.fetch_add(1, Ordering::Relaxed);
                                Ok((key * 2, 10))
                            })
                            .unwrap();
                        assert_eq!(*value, key * 2);
                    }
                });
            }
        });
        assert_eq!(loads.into_inner(), 50);
        assert_eq!(bytes_held(&cache), 500);
    }

    #[test]
    fn the_bound_holds_and_the_least_recently_used_go() {
        let cache = Cache::new(SHARDS * 100);
        for key in 0..10_000_u32 {
            cache.get_or_load(key, || Ok((key, 10))).unwrap();
            assert!(cache.get_or_load(7, || Ok((7, 10))).is_ok());
            assert!(bytes_held(&cache) <= SHARDS * 100);
        }
        assert!(cache.get(7).is_some(), "it was used all the time");
        assert!(cache.get(100).is_none());
        cache.get_or_load(20_000, || Ok((0, 101))).unwrap();
        assert!(cache.get(20_000).is_none(), "larger than the bound");
        for shard in &cache.shards {
            let shard = lock(shard);
            assert_eq!(shard.order.len(), shard.entries.len());
            let bytes = shard.entries.values().map(|entry| entry.bytes).sum::<usize>();
            assert_eq!(bytes, shard.bytes);
        }
    }

    #[test]
    fn a_failed_load_leaves_nothing_behind() {
        let cache: Cache<u32, u32> = Cache::new(1000);
        for key in 0..100 {
            assert!(cache.get_or_load(key, || Err(Error::Cancelled)).is_err());
        }
        assert!(cache.shards.iter().all(|shard| lock(shard).entries.is_empty()));
        assert_eq!(*cache.get_or_load(1, || Ok((5, 1))).unwrap(), 5);
    }
}

//! Plain files of contents: a cache for who needs a content to be one file, as the kernel does that reads it
//! past us.
//!
//! A file has its content's id as its name. It is a copy of what the chunks say, so losing one loses nothing.
//! What must hold:
//!
//! 1. *Whole or absent.* It is written under another name, its chunks verified one by one, and gets its own when
//!    the digest of all of it is right. What a crash leaves under the other name is swept when the store is opened.
//! 2. *Never handed out unseen.* This process has seen its bytes have the digest, and its inode, size and times
//!    are those of then. Whatever else there is goes, and is made anew. Nothing is synced, since that sees as well what a
//!    crash of the machine has left.
//! 3. *Bounded.* Before a file is made, those go that were not used for longest, but none that somebody holds.
//!
//! It lies beside the storage of the store and not in it: the kernel takes files, and nothing depends on these.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;
use rustix::io::Errno;
use tracing::warn;

use super::tables::Object;
use super::{Core, Store};
use crate::error::{Error, Result};
use crate::id::ContentId;
use crate::limits::{PLAIN_FILES_BYTES_MAX, PLAIN_FILES_SPARE_BYTES};

const FILES_DIR: &str = "files";
/// What the name of a file begins with that is being made.
const NEW_PREFIX: &str = ".new-";
/// Bytes that are hashed at a time.
const PIECE_BYTES: usize = 1 << 20;

/// A file that has the bytes of a content and nothing else. It stays in the cache as long as this is held.
#[derive(Debug)]
pub struct PlainFile {
    file: File,
    kept: KeptFile,
}

/// Keeps a plain file in the cache, without having it open.
#[derive(Debug)]
pub struct KeptFile {
    id: ContentId,
    /// Its device and inode.
    place: (u64, u64),
    files: Arc<PlainFiles>,
}

/// The cache.
#[derive(Debug)]
pub(crate) struct PlainFiles {
    dir: PathBuf,
    bytes_max: u64,
    /// The number in the name of the next file that is made.
    next: AtomicU64,
    /// Leaf lock: no file is read or written under it, but removed.
    state: Mutex<State>,
    /// Nobody is at work on some file any more.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<ContentId, Known>,
    /// Files that somebody makes or looks at.
    busy: HashSet<ContentId>,
    bytes: u64,
    /// How often one was asked for.
    uses: u64,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    bytes: u64,
    /// The use that was its last.
    used: u64,
    holders: u32,
    /// How it looked when its bytes had its digest.
    seen: Option<Look>,
}

/// What a file is told by that was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    dev: u64,
    ino: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Look {
    fn of(file: &File) -> io::Result<Self> {
        let stat = file.metadata()?;
        if !stat.is_file() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self {
            dev: stat.dev(),
            ino: stat.ino(),
            bytes: stat.len(),
            modified: (stat.mtime(), stat.mtime_nsec()),
            changed: (stat.ctime(), stat.ctime_nsec()),
        })
    }
}

impl PlainFile {
    /// The file, open for reading.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Closes it, and keeps it in the cache.
    pub fn close(self) -> KeptFile {
        self.kept
    }
}

impl Drop for KeptFile {
    fn drop(&mut self) {
        let mut state = self.files.lock();
        // It may have been removed, and another made.
        let here =
            |known: &&mut Known| known.seen.is_some_and(|look| (look.dev, look.ino) == self.place);
        if let Some(known) = state.files.get_mut(&self.id).filter(here) {
            known.holders -= 1;
        }
    }
}

/// Ends the work on a file, however it ends.
struct Work<'a> {
    files: &'a PlainFiles,
    id: ContentId,
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        self.files.lock().busy.remove(&self.id);
        self.files.ended.notify_all();
    }
}

/// Removes a file that was not finished.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Else the next one who opens the store sees to it.
        let _ = fs::remove_file(&self.0);
    }
}

/// Takes what is written to a file, and hashes it.
struct Hashing<'a> {
    file: &'a File,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The content whose file has this name.
fn id_of(name: &str) -> Option<ContentId> {
    let digits = name.as_bytes();
    // As the name is written, and in no other way.
    let plain = digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    if digits.len() != 64 || !plain {
        return None;
    }
    let mut id = [0; 32];
    for (byte, pair) in id.iter_mut().zip(name.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(ContentId::new(id))
}

impl PlainFiles {
    /// The cache in a store's directory. It is made when it is first needed.
    ///
    /// # Errors
    /// If what is there cannot be listed.
    pub(super) fn open(store: &Path) -> Result<Arc<Self>> {
        Self::bounded(store.join(FILES_DIR), PLAIN_FILES_BYTES_MAX)
    }

    fn bounded(dir: PathBuf, bytes_max: u64) -> Result<Arc<Self>> {
        let mut found = Vec::new();
        for (name, path) in entries(&dir)? {
            if name.starts_with(NEW_PREFIX) {
                fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
            } else if let (Some(id), Ok(stat)) = (id_of(&name), path.symlink_metadata()) {
                found.push((stat.ctime(), id, stat.len()));
            }
        }
        // Nobody knows when they were used, but when they were made.
        found.sort_unstable_by_key(|&(made, id, _)| (made, id));
        let mut state = State::default();
        for (_, id, bytes) in found {
            state.use_of(id, bytes);
        }
        let (next, state) = (AtomicU64::new(1), Mutex::new(state));
        Ok(Arc::new(Self { dir, bytes_max, next, state, ended: Condvar::new() }))
    }

    /// The file of content `id`, of so many bytes; `fill` writes them if it is to be made. `None` where there is no
    /// room for it.
    fn get(
        self: &Arc<Self>,
        id: ContentId,
        bytes: u64,
        fill: &dyn Fn(&mut dyn Write) -> Result<()>,
    ) -> Result<Option<PlainFile>> {
        // One that takes the place of all others is more in the way than of use.
        if bytes > self.bytes_max / 2 {
            return Ok(None);
        }
        let _work = self.work_on(id);
        let (file, look) = match self.find(id, bytes)? {
            Some(found) => found,
            None => match self.make(id, bytes, fill)? {
                Some(made) => made,
                None => return Ok(None),
            },
        };
        let mut state = self.lock();
        let known = state.use_of(id, bytes);
        known.seen = Some(look);
        known.holders += 1;
        drop(state);
        let kept = KeptFile { id, place: (look.dev, look.ino), files: Arc::clone(self) };
        Ok(Some(PlainFile { file, kept }))
    }

    /// Waits until nobody else is at work on `id`, and begins to be.
    fn work_on(&self, id: ContentId) -> Work<'_> {
        let mut state = self.lock();
        while !state.busy.insert(id) {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Work { files: self, id }
    }

    /// The file of `id` as it is there, if its bytes are known to be right. One whose bytes are not is removed.
    fn find(&self, id: ContentId, bytes: u64) -> Result<Option<(File, Look)>> {
        let path = self.path(id);
        let file = match open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.forget(id);
                return Ok(None);
            }
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        let seen = self.lock().files.get(&id).and_then(|known| known.seen);
        let look = Look::of(&file).map_err(|error| Error::io("look at", &path, error))?;
        if seen == Some(look) && look.bytes == bytes {
            return Ok(Some((file, look)));
        }
        match wrong(&file, id, Some(bytes)).map_err(|error| Error::io("read", &path, error))? {
            // It was not written meanwhile.
            None if Look::of(&file).is_ok_and(|now| now == look) => Ok(Some((file, look))),
            why => {
                let why = why.unwrap_or_else(|| "it was changed while it was read".into());
                warn!(file = %path.display(), why, "a file of the cache is damaged; it is made anew");
                self.remove(id)?;
                Ok(None)
            }
        }
    }

    /// Makes the file of `id`; `None` where there is no room.
    fn make(
        &self,
        id: ContentId,
        bytes: u64,
        fill: &dyn Fn(&mut dyn Write) -> Result<()>,
    ) -> Result<Option<(File, Look)>> {
        if !self.make_room(bytes)? {
            return Ok(None);
        }
        match fs::create_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("create", &self.dir, error));
            }
            _ => {}
        }
        let space = rustix::fs::statvfs(&self.dir)
            .map_err(|errno| Error::io("look for room in", &self.dir, errno.into()))?;
        if space.f_bavail.saturating_mul(space.f_frsize) < bytes + PLAIN_FILES_SPARE_BYTES {
            return Ok(None);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let new = self.dir.join(format!("{NEW_PREFIX}{number}"));
        let made = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&new);
        let made = made.map_err(|error| Error::io("create", &new, error))?;
        let unfinished = Unfinished(new);
        let new = &unfinished.0;
        let mut out = Hashing { file: &made, hasher: blake3::Hasher::new(), bytes: 0 };
        match fill(&mut out) {
            Ok(()) => {}
            Err(Error::Io { source, .. })
                if matches!(
                    Errno::from_io_error(&source),
                    Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG)
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        if out.bytes != bytes || out.hasher.finalize().as_bytes() != id.as_bytes() {
            let why = "its chunks do not make up the bytes of this digest";
            return Err(Error::corrupt(format!("content {id}"), why));
        }
        let failed = |action, error| Error::io(action, new, error);
        // Before it has its name: afterwards somebody else may have put another file there.
        let file = open(new).map_err(|error| failed("open", error))?;
        drop(made);
        fs::rename(new, self.path(id)).map_err(|error| failed("rename", error))?;
        std::mem::forget(unfinished);
        let look = Look::of(&file).map_err(|error| Error::io("look at", &self.path(id), error))?;
        self.lock().use_of(id, bytes).seen = Some(look);
        Ok(Some((file, look)))
    }

    /// Removes what was not used for longest until so many bytes more have room; whether they have.
    fn make_room(&self, bytes: u64) -> Result<bool> {
        loop {
            let mut state = self.lock();
            if state.bytes + bytes <= self.bytes_max {
                return Ok(true);
            }
            let State { files, busy, .. } = &*state;
            let idle = files.iter().filter(|(id, known)| known.holders == 0 && !busy.contains(id));
            let Some(id) = idle.min_by_key(|(_, known)| known.used).map(|(id, _)| *id) else {
                return Ok(false);
            };
            self.remove_in(&mut state, id)?;
        }
    }

    /// Removes a file. Who has it open goes on with it.
    fn remove(&self, id: ContentId) -> Result<()> {
        self.remove_in(&mut self.lock(), id)
    }

    fn remove_in(&self, state: &mut State, id: ContentId) -> Result<()> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", &path, error))
            }
            _ => {
                state.forget(id);
                Ok(())
            }
        }
    }

    fn forget(&self, id: ContentId) {
        self.lock().forget(id);
    }

    fn path(&self, id: ContentId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No change of it is half done when anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the files of contents that are not `wanted` and that nobody holds, or, `dry`, only counts them.
    /// Returns how many they are, and their bytes.
    ///
    /// # Errors
    /// What `wanted` and removing meet.
    pub(crate) fn collect(
        &self,
        wanted: &dyn Fn(ContentId) -> Result<bool>,
        dry: bool,
    ) -> Result<(u64, u64)> {
        let known: Vec<_> = self.lock().files.keys().copied().collect();
        let mut gone = (0, 0);
        for id in known {
            if wanted(id)? {
                continue;
            }
            let mut state = self.lock();
            let free = |known: &&Known| known.holders == 0 && !state.busy.contains(&id);
            let Some(bytes) = state.files.get(&id).filter(free).map(|known| known.bytes) else {
                continue;
            };
            if !dry {
                self.remove_in(&mut state, id)?;
            }
            gone = (gone.0 + 1, gone.1 + bytes);
        }
        Ok(gone)
    }

    /// Calls `find` with the name of each file that is not what its name says, and why; returns the bytes that were
    /// read. `go_on` is asked before each.
    ///
    /// # Errors
    /// What `go_on` returns.
    pub(crate) fn check(
        &self,
        go_on: &dyn Fn() -> Result<()>,
        find: &mut dyn FnMut(String, String),
    ) -> Result<u64> {
        let mut read = 0;
        let listed = match entries(&self.dir) {
            Ok(listed) => listed,
            Err(error) => {
                find(String::new(), error.to_string());
                return Ok(0);
            }
        };
        for (name, path) in listed {
            go_on()?;
            // One that is being made is not there yet.
            if name.starts_with(NEW_PREFIX) {
                continue;
            }
            let Some(id) = id_of(&name) else {
                find(name, "its name is no content's".into());
                continue;
            };
            match open(&path).and_then(|file| Ok((wrong(&file, id, None)?, file.metadata()?.len())))
            {
                Ok((None, bytes)) => read += bytes,
                Ok((Some(why), _)) => find(name, why),
                // It has made room for another.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => find(name, error.to_string()),
            }
        }
        Ok(read)
    }

    /// Removes the file of this name.
    ///
    /// # Errors
    /// What removing meets.
    pub(crate) fn remove_named(&self, name: &str) -> Result<()> {
        if let Some(id) = id_of(name) {
            let _work = self.work_on(id);
            return self.remove(id);
        }
        let path = self.dir.join(Path::new(name).file_name().unwrap_or_default());
        fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))
    }

    /// How many there are, and their bytes.
    fn amount(&self) -> (u64, u64) {
        let state = self.lock();
        (state.files.len() as u64, state.bytes)
    }
}

impl State {
    /// Notes that a file of so many bytes is there and is used.
    fn use_of(&mut self, id: ContentId, bytes: u64) -> &mut Known {
        self.uses += 1;
        let known = self.files.entry(id).or_insert_with(|| {
            self.bytes += bytes;
            Known { bytes, used: 0, holders: 0, seen: None }
        });
        known.used = self.uses;
        known
    }

    fn forget(&mut self, id: ContentId) {
        if let Some(known) = self.files.remove(&id) {
            self.bytes -= known.bytes;
        }
    }
}

/// What is in `dir`, by name; nothing if it is not there.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let failed = |error| Error::io("list", dir, error);
    let listed = match fs::read_dir(dir) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in listed {
        let entry = entry.map_err(failed)?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    Ok(found)
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)
}

/// What is wrong with a file that is to be content `id`, of so many bytes where that is known; `None` if nothing is.
fn wrong(file: &File, id: ContentId, bytes: Option<u64>) -> io::Result<Option<String>> {
    let found = file.metadata()?;
    if !found.is_file() {
        return Ok(Some("it is no file".into()));
    }
    if let Some(bytes) = bytes.filter(|bytes| *bytes != found.len()) {
        return Ok(Some(format!("it has {} bytes instead of {bytes}", found.len())));
    }
    let (mut hasher, mut piece) = (blake3::Hasher::new(), vec![0; PIECE_BYTES]);
    let mut at = 0;
    loop {
        // Whoever gets the file reads it from its start.
        match file.read_at(&mut piece, at) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&piece[..read]);
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let right = hasher.finalize().as_bytes() == id.as_bytes();
    Ok((!right).then(|| "its bytes do not have its digest".into()))
}

impl Store {
    /// Content `id`, of so many bytes, as a plain file that is verified, from the cache or made anew; `None` where
    /// there is no room for it.
    ///
    /// # Errors
    /// As [`Store::read_at`], and what reading and writing the file meet.
    pub fn plain_file(&self, id: ContentId, bytes: u64) -> Result<Option<PlainFile>> {
        self.files.get(id, bytes, &|out| self.core.write_to(id, out))
    }

    /// How many plain files there are, and their bytes.
    pub fn plain_files(&self) -> (u64, u64) {
        self.files.amount()
    }

    pub(crate) fn files(&self) -> &PlainFiles {
        &self.files
    }
}

impl Core {
    /// Writes content `id`, chunk by chunk, each verified and none kept.
    fn write_to(&self, id: ContentId, out: &mut dyn Write) -> Result<()> {
        let chunks = self.chunks_of(id)?.ok_or(Error::MissingContent(id))?;
        for (chunk, _) in chunks {
            let bytes = self.load(&Object::Chunk(chunk))?;
            let written = out.write_all(&bytes);
            written.map_err(|error| Error::io("write", &self.dir.join(FILES_DIR), error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

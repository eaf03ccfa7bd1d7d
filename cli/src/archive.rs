//! The file that a backup is: entries one after the other, each file with its hash, all of it with one at the
//! end. docs/FORMAT.md has its bytes.

use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use blake3::Hasher;

const MAGIC: &[u8; 8] = b"agentbak";
const VERSION: u32 = 1;
/// Most bytes of a file in one block.
const BLOCK_BYTES_MAX: usize = 1 << 20;
/// Longest path, or target of a link, in bytes.
const PATH_BYTES_MAX: u32 = 4096;

const DIRECTORY: u8 = 1;
const FILE: u8 = 2;
const LINK: u8 = 3;
const END: u8 = 4;

/// What an entry is.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory with its mode.
    Directory(PathBuf, u32),
    /// A file with its mode; its content follows.
    File(PathBuf, u32),
    /// A symbolic link with its target.
    Link(PathBuf, PathBuf),
}

/// Writes an archive.
pub struct Writer<W> {
    out: W,
    hasher: Hasher,
    entries: u64,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    /// Begins one of the store that is in the directory `store`.
    ///
    /// # Errors
    /// What `out` refuses.
    pub fn new(out: W, store: &Path) -> io::Result<Self> {
        let mut writer = Self { out, hasher: Hasher::new(), entries: 0, bytes: 0 };
        writer.put(MAGIC)?;
        writer.put(&VERSION.to_le_bytes())?;
        writer.put_path(store)?;
        Ok(writer)
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// What writing meets.
    pub fn directory(&mut self, path: &Path, mode: u32) -> io::Result<()> {
        self.head(DIRECTORY, path, mode)
    }

    /// Adds a link.
    ///
    /// # Errors
    /// What writing meets.
    pub fn link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        self.head(LINK, path, 0)?;
        self.put_path(target)
    }

    /// Adds a file with all that can be read of it now.
    ///
    /// # Errors
    /// What reading and writing meet.
    pub fn file(&mut self, path: &Path, mode: u32, mut content: impl Read) -> io::Result<()> {
        self.head(FILE, path, mode)?;
        let mut hasher = Hasher::new();
        let mut block = vec![0; BLOCK_BYTES_MAX];
        loop {
            let len = content.read(&mut block)?;
            // An empty block ends the file.
            self.put(&(len as u32).to_le_bytes())?;
            if len == 0 {
                break;
            }
            hasher.update(&block[..len]);
            self.put(&block[..len])?;
        }
        self.put(hasher.finalize().as_bytes())
    }

    /// Ends it; returns the hash of all of it, how many entries it has and how many bytes.
    ///
    /// # Errors
    /// What writing meets.
    pub fn end(mut self) -> io::Result<(String, u64, u64)> {
        self.put(&[END])?;
        self.put(&self.entries.to_le_bytes())?;
        let hash = self.hasher.finalize();
        self.out.write_all(hash.as_bytes())?;
        self.out.flush()?;
        Ok((hash.to_hex().to_string(), self.entries, self.bytes + 32))
    }

    fn head(&mut self, kind: u8, path: &Path, mode: u32) -> io::Result<()> {
        self.entries += 1;
        self.put(&[kind])?;
        self.put(&mode.to_le_bytes())?;
        self.put_path(path)
    }

    fn put_path(&mut self, path: &Path) -> io::Result<()> {
        let bytes = path.as_os_str().as_bytes();
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if len > PATH_BYTES_MAX {
            return Err(io::ErrorKind::InvalidFilename.into());
        }
        self.put(&len.to_le_bytes())?;
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

/// Why an archive cannot be read.
#[derive(Debug)]
pub enum Error {
    /// It is none.
    NoArchive,
    /// It is of another version.
    Version(u32),
    /// It is damaged at a byte, for a reason.
    Damaged(u64, String),
    /// It cannot be read.
    Read(io::Error),
    /// What is read cannot be put there.
    Write(PathBuf, io::Error),
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// Reads an archive, and verifies all of it.
pub struct Reader<R> {
    input: R,
    hasher: Hasher,
    /// The directory of the store, when the archive was made.
    pub store: PathBuf,
    at: u64,
    entries: u64,
}

impl<R: Read> Reader<R> {
    /// Begins to read one.
    ///
    /// # Errors
    /// [`Error::NoArchive`] and [`Error::Version`]; as [`Reader::next`].
    pub fn new(input: R) -> Result<Self> {
        let mut reader =
            Self { input, hasher: Hasher::new(), store: PathBuf::new(), at: 0, entries: 0 };
        if reader.take::<8>().map_err(|_| Error::NoArchive)? != *MAGIC {
            return Err(Error::NoArchive);
        }
        let version = u32::from_le_bytes(reader.take()?);
        if version != VERSION {
            return Err(Error::Version(version));
        }
        reader.store = reader.take_path()?;
        Ok(reader)
    }

    /// The next entry; `None` at the end, when all of it is verified. The content of a file is to be read with
    /// [`Reader::content`] before the next one.
    ///
    /// # Errors
    /// [`Error::Damaged`] for anything that a writer does not write, and [`Error::Read`].
    pub fn next(&mut self) -> Result<Option<Entry>> {
        let [kind] = self.take()?;
        if kind == END {
            return self.finish().map(|()| None);
        }
        self.entries += 1;
        let mode = u32::from_le_bytes(self.take()?);
        let path = self.take_path()?;
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || path.as_os_str().is_empty() || mode > 0o7777 {
            return Err(self.damaged(format!("an entry {path:?} cannot be")));
        }
        match kind {
            DIRECTORY => Ok(Some(Entry::Directory(path, mode))),
            FILE => Ok(Some(Entry::File(path, mode))),
            LINK => Ok(Some(Entry::Link(path, self.take_path()?))),
            other => Err(self.damaged(format!("there is no entry of kind {other}"))),
        }
    }

    /// Passes the content of the file on to `out`, in blocks.
    ///
    /// # Errors
    /// As [`Reader::next`], and what `out` returns.
    pub fn content(&mut self, mut out: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut hasher = Hasher::new();
        let mut block = vec![0; BLOCK_BYTES_MAX];
        loop {
            let len = u32::from_le_bytes(self.take()?) as usize;
            if len == 0 {
                break;
            }
            let Some(block) = block.get_mut(..len) else {
                return Err(self.damaged(format!("a block of {len} bytes is too long")));
            };
            self.fill(block)?;
            hasher.update(block);
            out(block)?;
        }
        match self.take::<32>()? == *hasher.finalize().as_bytes() {
            true => Ok(()),
            false => Err(self.damaged("the content of a file has another hash".into())),
        }
    }

    fn finish(&mut self) -> Result<()> {
        if u64::from_le_bytes(self.take()?) != self.entries {
            return Err(self.damaged("it has another number of entries".into()));
        }
        let expected = self.hasher.finalize();
        if self.take::<32>()? != *expected.as_bytes() {
            return Err(self.damaged("all of it has another hash".into()));
        }
        match self.input.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.damaged("something follows its end".into())),
            Err(error) => Err(Error::Read(error)),
        }
    }

    fn take_path(&mut self) -> Result<PathBuf> {
        let len = u32::from_le_bytes(self.take()?);
        if len > PATH_BYTES_MAX {
            return Err(self.damaged(format!("a path of {len} bytes is too long")));
        }
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        if bytes.contains(&0) {
            return Err(self.damaged("a path holds a NUL".into()));
        }
        Ok(std::ffi::OsString::from_vec(bytes).into())
    }

    fn take<const LEN: usize>(&mut self) -> Result<[u8; LEN]> {
        let mut bytes = [0; LEN];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        match self.input.read_exact(bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.damaged("it ends here".into()));
            }
            read => read.map_err(Error::Read)?,
        }
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn damaged(&self, why: String) -> Error {
        Error::Damaged(self.at, why)
    }
}

/// Reads all of an archive, and nothing else; returns how many entries it has.
///
/// # Errors
/// As [`Reader::next`].
pub fn verify(input: impl Read) -> Result<u64> {
    let mut reader = Reader::new(input)?;
    while let Some(entry) = reader.next()? {
        if matches!(entry, Entry::File(..)) {
            reader.content(|_| Ok(()))?;
        }
    }
    Ok(reader.entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, Path::new("/store")).unwrap();
        writer.directory(Path::new("a"), 0o700).unwrap();
        writer.file(Path::new("a/b"), 0o600, &b"content"[..]).unwrap();
        writer.file(Path::new("a/empty"), 0o644, &b""[..]).unwrap();
        writer.link(Path::new("l"), Path::new("a/b")).unwrap();
        let (_, entries, len) = writer.end().unwrap();
        assert_eq!((entries, len), (4, bytes.len() as u64));
        bytes
    }

    #[test]
    fn what_is_written_reads_back() {
        let bytes = archive();
        let mut reader = Reader::new(&bytes[..]).unwrap();
        assert_eq!(reader.store, Path::new("/store"));
        assert_eq!(reader.next().unwrap(), Some(Entry::Directory("a".into(), 0o700)));
        assert_eq!(reader.next().unwrap(), Some(Entry::File("a/b".into(), 0o600)));
        let mut content = Vec::new();
        let mut take = |block: &[u8]| {
            content.extend_from_slice(block);
            Ok(())
        };
        reader.content(&mut take).unwrap();
        assert_eq!(reader.next().unwrap(), Some(Entry::File("a/empty".into(), 0o644)));
        reader.content(&mut take).unwrap();
        assert_eq!(reader.next().unwrap(), Some(Entry::Link("l".into(), "a/b".into())));
        assert_eq!(reader.next().unwrap(), None);
        assert_eq!(content, b"content");
    }

    #[test]
    fn no_byte_can_change_or_be_missing_unnoticed() {
        let bytes = archive();
        assert_eq!(verify(&bytes[..]).unwrap(), 4);
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert!(verify(&other[..]).is_err(), "byte {at}");
            assert!(verify(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert!(verify(&[&bytes[..], b"x"].concat()[..]).is_err());
    }

    #[test]
    fn a_path_leads_nowhere_else() {
        for path in ["../x", "/x", "a/../../x", ""] {
            let mut bytes = Vec::new();
            let mut writer = Writer::new(&mut bytes, Path::new("/store")).unwrap();
            writer.directory(Path::new(path), 0o700).unwrap();
            writer.end().unwrap();
            assert!(matches!(verify(&bytes[..]), Err(Error::Damaged(..))), "{path:?}");
        }
    }

    #[test]
    fn others_are_refused_by_name() {
        assert!(matches!(verify(&b"something else"[..]), Err(Error::NoArchive)));
        assert!(matches!(verify(&b""[..]), Err(Error::NoArchive)));
        let mut later = archive();
        later[8] = 2;
        assert!(matches!(verify(&later[..]), Err(Error::Version(2))));
    }
}

//! The records of what is redirected: a directory for each redirected path, with the native directory and the
//! path side by side.
//!
//! A redirect is on record when its directory has its name, which it gets by a rename when all is in it, and it
//! is off the record when that directory has been renamed away. So a killed daemon leaves it on record or not,
//! and what is neither is known by its name.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::warn;

use crate::error::{Failure, Result};
use crate::layout::remove_all;

/// Prefix of a redirect that is being made.
pub const NEW: &str = ".new-";
/// Prefix of what is to be removed, in the directory of all redirects.
pub const GONE: &str = ".gone-";
/// The names of what is in the directory of a redirect.
const DATA: &str = "data";
const RECORD: &str = "record";
/// The first line of a record, and that of the names that a snapshot has.
const REDIRECT: &str = "agentfs redirect 1";
const SKIPPED: &str = "agentfs skipped 1";

/// Who has asked for a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A command.
    Command,
    /// The tree, in its `.agentfs.toml`.
    Tree,
}

impl Origin {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Tree => "tree",
        }
    }
}

/// A path that is redirected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Its number in its branch.
    pub number: u64,
    /// The path, below the root of the worktree.
    pub path: PathBuf,
    /// Who has asked for it.
    pub origin: Origin,
    /// Whether the branch may still have what was moved to the native directory.
    pub moving: bool,
}

/// What is on record for a branch.
#[derive(Debug, Default)]
pub struct Listed {
    /// The redirects, by path.
    pub redirects: Vec<Redirect>,
    /// Records that cannot be read, with the reason.
    pub damaged: Vec<(u64, String)>,
    /// Redirects whose native directory is gone.
    pub without_data: Vec<u64>,
    /// What was left half-made.
    pub unfinished: Vec<PathBuf>,
}

/// The records of one branch.
#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    /// Those in the directory `dir`, which need not exist.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The native directory of a redirect.
    pub fn data(&self, number: u64) -> PathBuf {
        self.dir.join(number.to_string()).join(DATA)
    }

    /// What is on record.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub fn list(&self) -> Result<Listed> {
        let mut listed = Listed::default();
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(listed),
            entries => entries.map_err(|error| Failure::store_io("list", &self.dir, &error))?,
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.parse::<u64>().ok());
            match number.filter(|number| *number.to_string() == *name) {
                None => listed.unfinished.push(entry.path()),
                Some(number) => match read(&entry.path().join(RECORD)) {
                    Err(why) => listed.damaged.push((number, why)),
                    Ok((path, origin, moving)) => {
                        if !self.data(number).is_dir() {
                            listed.without_data.push(number);
                        }
                        listed.redirects.push(Redirect { number, path, origin, moving });
                    }
                },
            }
        }
        listed.redirects.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(listed)
    }

    /// Whether anything is on record, readable or not.
    pub fn any(&self) -> bool {
        fs::read_dir(&self.dir).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Puts a redirect on record when `fill` has filled its native directory.
    ///
    /// # Errors
    /// What the file system refuses, and what `fill` meets; nothing is left then.
    pub fn add(
        &self,
        path: &Path,
        origin: Origin,
        moving: bool,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Redirect> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        let aside = self.dir.join(format!("{NEW}{}-{made}", std::process::id()));
        let mut redirect = Redirect { number: 0, path: path.to_owned(), origin, moving };
        let number = self.make(&redirect, &aside, fill);
        redirect.number = number.inspect_err(|_| {
            remove_all(&aside).ok();
        })?;
        Ok(redirect)
    }

    /// Returns the number that it got.
    fn make(
        &self,
        redirect: &Redirect,
        aside: &Path,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<u64> {
        let failed = |error: io::Error| Failure::store_io("create", aside, &error);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(failed)?;
        fs::create_dir(aside).map_err(failed)?;
        let data = aside.join(DATA);
        // As the directory would be that is made in the worktree.
        fs::create_dir(&data).map_err(failed)?;
        fill(&data)?;
        write(&aside.join(RECORD), &text(redirect)).map_err(failed)?;
        sync(aside).map_err(failed)?;
        let listed = self.list()?;
        let numbers = listed.redirects.iter().map(|one| one.number);
        let last = numbers.chain(listed.damaged.iter().map(|(number, _)| *number)).max();
        let mut number = last.unwrap_or(0) + 1;
        // What is on record is never empty, so that nothing is replaced.
        while let Err(error) = fs::rename(aside, self.dir.join(number.to_string())) {
            match error.kind() {
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => number += 1,
                _ => return Err(failed(error)),
            }
        }
        let parent = self.dir.parent().unwrap_or(&self.dir);
        sync(&self.dir).and_then(|()| sync(parent)).map_err(failed)?;
        Ok(number)
    }

    /// Fills the native directory of a redirect that nobody sees yet: wholly or not at all.
    ///
    /// # Errors
    /// What the file system refuses, and what `fill` meets; it stays empty then.
    pub fn seed(&self, number: u64, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let aside = self.dir.join(format!("{NEW}seed-{number}"));
        let failed = |error: io::Error| Failure::store_io("create", &aside, &error);
        fs::create_dir(&aside).map_err(failed)?;
        let seeded =
            fill(&aside).and_then(|()| fs::rename(&aside, self.data(number)).map_err(failed));
        if seeded.is_err() {
            remove_all(&aside).ok();
        }
        seeded
    }

    /// Notes that the branch does not have any more what was moved.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn settle(&self, redirect: &Redirect) -> Result<()> {
        let settled = Redirect { moving: false, ..redirect.clone() };
        let dir = self.dir.join(redirect.number.to_string());
        let path = dir.join(RECORD);
        replace(&path, &text(&settled)).map_err(|error| Failure::store_io("write", &path, &error))
    }

    /// Takes a redirect off the record. Its directory waits to be removed.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn remove(&self, number: u64) -> Result<()> {
        set_aside(&self.dir.join(number.to_string()), self.dir.parent())?;
        // The last one leaves nothing.
        fs::remove_dir(&self.dir).ok();
        Ok(())
    }

    /// Takes a redirect off the record whose native directory has been moved away.
    pub fn discard(&self, number: u64) {
        let dir = self.dir.join(number.to_string());
        if let Err(error) = remove_all(&dir) {
            warn!("cannot remove {}: {error}", dir.display());
        }
        // The last one leaves nothing.
        fs::remove_dir(&self.dir).ok();
    }

    /// Takes all of them off the record.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn remove_all(&self) -> Result<()> {
        match self.dir.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            _ => set_aside(&self.dir, self.dir.parent()),
        }
    }
}

/// Moves `path` to where it waits to be removed.
///
/// # Errors
/// What the file system refuses.
pub fn set_aside(path: &Path, all: Option<&Path>) -> Result<()> {
    let all = all.unwrap_or(path);
    let failed = |error: io::Error| Failure::store_io("remove", path, &error);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for attempt in 0_u64.. {
        let gone = all.join(format!("{GONE}{}-{name}-{attempt}", std::process::id()));
        if gone.symlink_metadata().is_ok() {
            continue;
        }
        fs::rename(path, &gone).map_err(failed)?;
        sync(all).map_err(failed)?;
        return path.parent().filter(|parent| *parent != all).map_or(Ok(()), sync).map_err(failed);
    }
    Ok(())
}

/// Writes the paths that a snapshot skips.
///
/// # Errors
/// What the file system refuses.
pub fn write_skipped(file: &Path, paths: &[PathBuf]) -> Result<()> {
    let failed = |error: io::Error| Failure::store_io("write", file, &error);
    if let Some(dir) = file.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    }
    let mut text = SKIPPED.as_bytes().to_vec();
    for path in paths {
        text.push(b'\n');
        text.extend_from_slice(path.as_os_str().as_bytes());
    }
    text.push(b'\n');
    replace(file, &seal(text)).map_err(failed)
}

/// The paths that a snapshot skips; none if nothing was written of it.
///
/// # Errors
/// What is wrong with the file, as a sentence.
pub fn read_skipped(file: &Path) -> Result<Vec<PathBuf>, String> {
    let bytes = match fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|error| error.to_string())?,
    };
    let lines = lines(&bytes)?;
    match lines.split_first() {
        Some((first, paths)) if *first == SKIPPED.as_bytes() => {
            Ok(paths.iter().map(|path| PathBuf::from(OsString::from_vec(path.to_vec()))).collect())
        }
        _ => Err("it does not begin as it should".into()),
    }
}

fn text(redirect: &Redirect) -> Vec<u8> {
    let state = if redirect.moving { "moving" } else { "settled" };
    let mut text = format!("{REDIRECT}\n{}\n{state}\n", redirect.origin.name()).into_bytes();
    text.extend_from_slice(redirect.path.as_os_str().as_bytes());
    text.push(b'\n');
    seal(text)
}

fn read(file: &Path) -> Result<(PathBuf, Origin, bool), String> {
    let bytes = fs::read(file).map_err(|error| error.to_string())?;
    let [first, origin, state, path] = lines(&bytes)?[..] else {
        return Err("it has not the lines that it should".into());
    };
    let origin = [Origin::Command, Origin::Tree]
        .into_iter()
        .find(|one| one.name().as_bytes() == origin)
        .ok_or("it does not say who has asked for it")?;
    let moving = match state {
        b"moving" => true,
        b"settled" => false,
        _ => return Err("it has an unknown state".into()),
    };
    if first != REDIRECT.as_bytes() {
        return Err("it does not begin as it should".into());
    }
    let path = PathBuf::from(OsString::from_vec(path.to_vec()));
    super::config::refuse(&path).map_or(Ok(()), |why| Err(why.to_owned()))?;
    Ok((path, origin, moving))
}

/// Adds the line that vouches for the others.
fn seal(mut text: Vec<u8>) -> Vec<u8> {
    let hash = blake3::hash(&text).to_hex();
    text.extend_from_slice(hash.as_bytes());
    text.push(b'\n');
    text
}

/// The lines before the one that vouches for them.
fn lines(bytes: &[u8]) -> Result<Vec<&[u8]>, String> {
    let damaged = || "it is damaged".to_owned();
    let whole = bytes.strip_suffix(b"\n").ok_or_else(damaged)?;
    let end = whole.iter().rposition(|byte| *byte == b'\n').ok_or_else(damaged)? + 1;
    let (text, hash) = whole.split_at(end);
    if blake3::hash(text).to_hex().as_bytes() != hash {
        return Err(damaged());
    }
    Ok(text[..text.len() - 1].split(|byte| *byte == b'\n').collect())
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text)?;
    file.sync_all()
}

/// Puts a file in the place of another: at every moment one or the other is there.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("new");
    write(&aside, text)?;
    fs::rename(&aside, path)?;
    path.parent().map_or(Ok(()), sync)
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_is_on_record_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path().join("7"));
        assert!(!records.any() && records.list().unwrap().redirects.is_empty());
        let fill = |data: &Path| {
            fs::write(data.join("file"), "x").unwrap();
            Ok(())
        };
        let added = records.add(Path::new("a/target"), Origin::Tree, true, fill).unwrap();
        assert_eq!(records.list().unwrap().redirects, std::slice::from_ref(&added));
        assert!(records.data(added.number).join("file").exists());
        records.settle(&added).unwrap();
        assert!(!records.list().unwrap().redirects[0].moving);
        let failed = records.add(Path::new("b"), Origin::Command, false, |_| {
            Err(Failure::new(crate::error::Kind::Failed, "no"))
        });
        assert!(failed.is_err());
        let listed = records.list().unwrap();
        assert_eq!((listed.redirects.len(), listed.unfinished.len()), (1, 0));
        records.remove(added.number).unwrap();
        assert!(!records.any() && !dir.path().join("7").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "it waits to be removed");
    }

    #[test]
    fn no_byte_of_a_record_can_change_unnoticed() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path().join("7"));
        let added = records.add(Path::new("target"), Origin::Command, false, |_| Ok(())).unwrap();
        let file = dir.path().join("7/1/record");
        let good = fs::read(&file).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&file, &bad).unwrap();
            assert_eq!(records.list().unwrap().damaged.len(), 1, "byte {at}");
            fs::write(&file, &good[..at]).unwrap();
            assert_eq!(records.list().unwrap().damaged.len(), 1, "cut at {at}");
        }
        fs::write(&file, &good).unwrap();
        assert_eq!(records.list().unwrap().redirects, [added]);
        fs::remove_dir(records.data(1)).unwrap();
        assert_eq!(records.list().unwrap().without_data, [1]);
    }

    #[test]
    fn the_paths_of_a_snapshot_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("snapshots/s1");
        assert_eq!(read_skipped(&file), Ok(Vec::new()));
        let paths = [PathBuf::from("a"), PathBuf::from(OsString::from_vec(b"b/\xff".to_vec()))];
        write_skipped(&file, &paths).unwrap();
        assert_eq!(read_skipped(&file).unwrap(), paths);
        let mut bad = fs::read(&file).unwrap();
        bad[SKIPPED.len() + 1] ^= 1;
        fs::write(&file, bad).unwrap();
        assert!(read_skipped(&file).is_err());
    }
}

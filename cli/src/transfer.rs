//! Copying files with all that they are: modes, times, extended attributes, holes, hard links and special
//! files; and making what is at a path what it is elsewhere.
//!
//! Directories are held open and names are looked up in them without following links, so that whoever changes
//! the target meanwhile leads nothing out of it.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Stat, Timespec,
    Timestamps, Uid, XattrFlags, chownat, fchmod, fgetxattr, flistxattr, fremovexattr, fsetxattr,
    ftruncate, linkat, mkdirat, mknodat, openat, openat2, readlinkat, renameat, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;

/// Bytes that are copied at once.
const COPY_BYTES: usize = 1 << 20;
/// A block of zeros of so many bytes becomes a hole.
const BLOCK_BYTES: usize = 4096;
/// Longest list of extended attributes, and longest value of one, as Linux has it.
const XATTR_BYTES_MAX: usize = 64 << 10;
/// Most attempts at a name that nobody has.
const ATTEMPTS_MAX: u32 = 1000;

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Files, directories and links that were made, or got other content.
    pub written: u64,
    /// Those that got other attributes only.
    pub adjusted: u64,
    /// Names that were removed, with all below them counted.
    pub removed: u64,
    /// Bytes of files that were written, holes left out.
    pub bytes: u64,
}

/// Copies from one tree into another.
pub struct Transfer<'a> {
    /// The root of the target, in which links to files that were copied already are made.
    root: BorrowedFd<'a>,
    /// Whether the times of files and directories are copied.
    keeps_times: bool,
    /// Whether files of the same number and times are the same file in both trees.
    same_numbers: bool,
    /// Whether owners can be given.
    is_root: bool,
    /// Whether files share their blocks with what they are copied from, or are not copied at all.
    shares_blocks: bool,
    /// Links at these paths are not copied.
    pub without_links: Vec<PathBuf>,
    /// Where files with several names were put, by their number.
    links: HashMap<u64, PathBuf>,
    buffer: Vec<u8>,
    /// What was done.
    pub done: Done,
}

/// A name in a directory that is open.
#[derive(Clone, Copy)]
struct At<'a> {
    dir: BorrowedFd<'a>,
    name: &'a OsStr,
}

impl At<'_> {
    fn stat(self) -> rustix::io::Result<Option<Stat>> {
        match statat(self.dir, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open_dir(self) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(self.dir, self.name, flags, Mode::empty())
    }

    fn open(self) -> rustix::io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        openat(self.dir, self.name, flags, Mode::empty()).map(File::from)
    }
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn permissions(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |tv_sec, tv_nsec: u64| Timespec { tv_sec, tv_nsec: tv_nsec as _ };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// The names in a directory.
///
/// # Errors
/// What the file system refuses.
pub fn names(dir: BorrowedFd<'_>) -> io::Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.insert(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

/// What went wrong at a path.
fn at(path: &Path) -> impl Fn(io::Error) -> (PathBuf, io::Error) {
    move |error| (path.to_owned(), error)
}

/// A result that names the path, relative to the root, at which something went wrong.
type Result<T, E = (PathBuf, io::Error)> = std::result::Result<T, E>;

impl<'a> Transfer<'a> {
    /// Into the tree at `root`, with the times that files have: a copy.
    pub fn copying(root: BorrowedFd<'a>) -> Self {
        Self {
            root,
            keeps_times: true,
            same_numbers: false,
            is_root: rustix::process::geteuid().is_root(),
            shares_blocks: false,
            without_links: Vec::new(),
            links: HashMap::new(),
            buffer: Vec::new(),
            done: Done::default(),
        }
    }

    /// The same for two trees of one file system that can share blocks between files: one that cannot makes the
    /// copy fail.
    pub fn sharing(root: BorrowedFd<'a>) -> Self {
        Self { shares_blocks: true, ..Self::copying(root) }
    }

    /// Into the tree at `root`, where what gets other content is as new as that. With `same_numbers` a file
    /// that has the same number, size and times in both trees is the same.
    pub fn restoring(root: BorrowedFd<'a>, same_numbers: bool) -> Self {
        Self { keeps_times: false, same_numbers, ..Self::copying(root) }
    }

    /// Copies all that is in directory `from` into the root, but for the names in `but`.
    ///
    /// # Errors
    /// What the two file systems refuse, with the path.
    pub fn copy_all(&mut self, from: BorrowedFd<'_>, but: &[&OsStr]) -> Result<()> {
        let root = self.root;
        for name in names(from).map_err(at(Path::new(".")))? {
            if !but.contains(&name.as_os_str()) {
                let source = At { dir: from, name: &name };
                self.make(source, At { dir: root, name: &name }, Path::new(&name))?;
            }
        }
        if self.keeps_times {
            let copied = statat(from, "", AtFlags::EMPTY_PATH)
                .and_then(|stat| self.adorn_dir(from, root, &stat).map_err(|_| Errno::IO));
            copied.map_err(|error| at(Path::new("."))(error.into()))?;
        }
        Ok(())
    }

    /// Makes what is at `path` below the root what it is below `from`; `false` if it is in neither. Directories
    /// above it are made as they are there.
    ///
    /// # Errors
    /// What the two file systems refuse, with the path.
    pub fn restore(&mut self, from: BorrowedFd<'_>, path: &Path) -> Result<bool> {
        let mut parts: Vec<_> = path.iter().collect();
        let Some(last) = parts.pop() else {
            let found = self.merge_dirs(from, self.root, Path::new(""));
            return found.map(|()| true);
        };
        let failed = at(path);
        let (mut source, mut target) =
            (dup(from).map_err(&failed)?, dup(self.root).map_err(&failed)?);
        let mut above = PathBuf::new();
        let mut source_ends = false;
        for part in parts {
            above.push(part);
            let (here, there) =
                (At { dir: target.as_fd(), name: part }, At { dir: source.as_fd(), name: part });
            let is_dir = |stat: &Stat| kind(stat) == FileType::Directory;
            let known = match source_ends {
                true => None,
                false => there.stat().map_err(|error| failed(error.into()))?.filter(is_dir),
            };
            let found = here.stat().map_err(|error| failed(error.into()))?;
            match (&known, found.filter(is_dir)) {
                (None, None) => return Ok(false),
                (Some(stat), None) => {
                    if found.is_some() {
                        self.remove(here, &above)?;
                    }
                    self.make_dir(there, here, stat, &above, false)?;
                }
                (_, Some(_)) => {}
            }
            let next = here.open_dir().map_err(|error| failed(error.into()))?;
            if known.is_some() {
                source = there.open_dir().map_err(|error| failed(error.into()))?;
            } else {
                source_ends = true;
            }
            target = next;
        }
        let here = At { dir: target.as_fd(), name: last };
        if source_ends {
            let there = here.stat().map_err(|error| failed(error.into()))?.is_some();
            if there {
                self.remove(here, path)?;
            }
            return Ok(there);
        }
        self.merge(At { dir: source.as_fd(), name: last }, here, path)
    }

    /// Makes `to` what `from` is; `false` if neither is there.
    fn merge(&mut self, from: At<'_>, to: At<'_>, path: &Path) -> Result<bool> {
        let look = |at_: At<'_>| at_.stat().map_err(|error| at(path)(error.into()));
        let (source, target) = (look(from)?, look(to)?);
        match (source, target) {
            (None, None) => return Ok(false),
            (None, Some(_)) => self.remove(to, path)?,
            (Some(_), None) => self.make(from, to, path)?,
            (Some(source), Some(target)) => self.equal(from, to, (&source, &target), path)?,
        }
        Ok(true)
    }

    /// Makes `to`, which is there, what `from` is.
    fn equal(
        &mut self,
        from: At<'_>,
        to: At<'_>,
        (source, target): (&Stat, &Stat),
        path: &Path,
    ) -> Result<()> {
        if kind(source) != kind(target) {
            if kind(target) == FileType::Directory || kind(source) == FileType::Directory {
                self.remove(to, path)?;
            }
            return self.make(from, to, path);
        }
        if kind(source) == FileType::Directory {
            let failed = |error: Errno| at(path)(error.into());
            let (inner, outer) = (from.open_dir().map_err(failed)?, to.open_dir().map_err(failed)?);
            if self.adorn(inner.as_fd(), outer.as_fd(), source, target).map_err(at(path))? {
                self.done.adjusted += 1;
            }
            return self.merge_dirs(inner.as_fd(), outer.as_fd(), path);
        }
        if self.same_numbers && is_same(source, target) {
            return Ok(());
        }
        match self.has_same_content(from, to, source, target).map_err(at(path))? {
            false => self.make(from, to, path),
            true if kind(source) == FileType::RegularFile => {
                let open = |at_: At<'_>| at_.open().map_err(|error| at(path)(error.into()));
                let (inner, outer) = (open(from)?, open(to)?);
                if self.adorn(inner.as_fd(), outer.as_fd(), source, target).map_err(at(path))? {
                    self.done.adjusted += 1;
                }
                Ok(())
            }
            true => Ok(()),
        }
    }

    fn merge_dirs(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &Path) -> Result<()> {
        let mut all = names(from).map_err(at(path))?;
        all.extend(names(to).map_err(at(path))?);
        for name in all {
            // The file that leads to the git directory belongs to the worktree.
            if path.as_os_str().is_empty() && name == ".git" {
                continue;
            }
            let below = path.join(&name);
            self.merge(At { dir: from, name: &name }, At { dir: to, name: &name }, &below)?;
        }
        Ok(())
    }

    fn has_same_content(
        &mut self,
        from: At<'_>,
        to: At<'_>,
        source: &Stat,
        target: &Stat,
    ) -> io::Result<bool> {
        match kind(source) {
            FileType::RegularFile if source.st_size == target.st_size => {
                let (mut one, mut other) = (from.open()?, to.open()?);
                let (mut left, mut right) = (vec![0; COPY_BYTES], vec![0; COPY_BYTES]);
                loop {
                    let (len, found) = (fill(&mut one, &mut left)?, fill(&mut other, &mut right)?);
                    if left[..len] != right[..found] {
                        return Ok(false);
                    }
                    if len == 0 {
                        return Ok(true);
                    }
                }
            }
            FileType::Symlink => Ok(readlinkat(from.dir, from.name, Vec::new())?
                == readlinkat(to.dir, to.name, Vec::new())?),
            FileType::RegularFile => Ok(false),
            _ => Ok((source.st_rdev, source.st_mode) == (target.st_rdev, target.st_mode)),
        }
    }

    /// Puts a copy of `from` to `to`, in the place of anything there but a directory.
    fn make(&mut self, from: At<'_>, to: At<'_>, path: &Path) -> Result<()> {
        let failed = |error: Errno| at(path)(error.into());
        let stat = from.stat().map_err(failed)?.ok_or_else(|| failed(Errno::NOENT))?;
        if kind(&stat) == FileType::Directory {
            return self.make_dir(from, to, &stat, path, true);
        }
        if kind(&stat) == FileType::Symlink && self.without_links.iter().any(|one| one == path) {
            return Ok(());
        }
        let known = self.links.get(&stat.st_ino).filter(|_| stat.st_nlink > 1).cloned();
        let made = match known {
            Some(known) => self.link(&known, to),
            None => self.make_file(from, to, &stat),
        };
        made.map_err(at(path))?;
        if stat.st_nlink > 1 {
            self.links.entry(stat.st_ino).or_insert_with(|| path.to_owned());
        }
        self.done.written += 1;
        Ok(())
    }

    /// Another name for a file that was put to `known`.
    fn link(&self, known: &Path, to: At<'_>) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let safe = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let parent = known.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let dir = openat2(self.root, parent, flags, Mode::empty(), safe)?;
        let name = known.file_name().unwrap_or_default();
        replace(to, |at_| linkat(&dir, name, at_.dir, at_.name, AtFlags::empty()))
    }

    fn make_file(&mut self, from: At<'_>, to: At<'_>, stat: &Stat) -> io::Result<()> {
        match kind(stat) {
            FileType::RegularFile => {
                let source = from.open()?;
                // Nobody sees it before it is complete.
                let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
                let private = Mode::from_raw_mode(0o600);
                let (file, named) = match openat(to.dir, ".", flags, private) {
                    Ok(file) => (File::from(file), false),
                    // A file system that has no files without a name.
                    Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                        let flags =
                            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                        (File::from(openat(to.dir, to.name, flags, private)?), true)
                    }
                    Err(error) => return Err(error.into()),
                };
                self.copy_content(source.try_clone()?, &file, stat)?;
                self.adorn_new(source.as_fd(), file.as_fd(), stat)?;
                if named {
                    return Ok(());
                }
                // This thread may have a table of files of its own.
                let own = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
                replace(to, |at_| linkat(CWD, &*own, at_.dir, at_.name, AtFlags::SYMLINK_FOLLOW))
            }
            FileType::Symlink => {
                let target = readlinkat(from.dir, from.name, Vec::new())?;
                replace(to, |at_| {
                    symlinkat(&*target, at_.dir, at_.name)?;
                    self.finish_special(at_, stat)
                })
            }
            other => replace(to, |at_| {
                mknodat(at_.dir, at_.name, other, permissions(stat), stat.st_rdev)?;
                self.finish_special(at_, stat)
            }),
        }
    }

    /// Owner, mode and times of what cannot be opened.
    fn finish_special(&self, to: At<'_>, stat: &Stat) -> rustix::io::Result<()> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if self.is_root {
            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            chownat(to.dir, to.name, Some(uid), Some(gid), flags)?;
        }
        if kind(stat) != FileType::Symlink {
            rustix::fs::chmodat(to.dir, to.name, permissions(stat), AtFlags::empty())?;
        }
        match self.keeps_times {
            true => utimensat(to.dir, to.name, &times(stat), flags),
            false => Ok(()),
        }
    }

    /// Copies what is no hole.
    fn copy_content(&mut self, mut from: File, to: &File, stat: &Stat) -> io::Result<()> {
        if self.shares_blocks {
            return Ok(rustix::fs::ioctl_ficlone(to, &from)?);
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        ftruncate(to, size)?;
        self.buffer.resize(COPY_BYTES, 0);
        let mut at = 0;
        while at < size {
            let start = match rustix::fs::seek(&from, rustix::fs::SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let end = rustix::fs::seek(&from, rustix::fs::SeekFrom::Hole(start))?;
            from.seek(SeekFrom::Start(start))?;
            let mut done = 0;
            let mut left = end.saturating_sub(start);
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(COPY_BYTES).min(COPY_BYTES);
                let len = from.read(&mut self.buffer[..most])?;
                if len == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.done.bytes += write_data(to, start + done, &self.buffer[..len])?;
                done += len as u64;
                left -= len as u64;
            }
            at = end;
        }
        Ok(())
    }

    fn make_dir(
        &mut self,
        from: At<'_>,
        to: At<'_>,
        stat: &Stat,
        path: &Path,
        deep: bool,
    ) -> Result<()> {
        let failed = |error: Errno| at(path)(error.into());
        mkdirat(to.dir, to.name, Mode::from_raw_mode(0o700)).map_err(failed)?;
        let (source, target) = (from.open_dir().map_err(failed)?, to.open_dir().map_err(failed)?);
        self.done.written += 1;
        if deep {
            for name in names(source.as_fd()).map_err(at(path))? {
                let inner = At { dir: source.as_fd(), name: &name };
                let outer = At { dir: target.as_fd(), name: &name };
                self.make(inner, outer, &path.join(&name))?;
            }
        }
        self.adorn_dir(source.as_fd(), target.as_fd(), stat).map_err(at(path))
    }

    /// Gives a new directory, when all is in it, what belongs to it.
    fn adorn_dir(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
        self.adorn_new(from, to, stat)
    }

    /// Gives a new file its owner, mode, extended attributes and times.
    fn adorn_new(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
        let now = rustix::fs::fstat(to)?;
        self.adorn(from, to, stat, &now)?;
        match self.keeps_times {
            true => Ok(rustix::fs::futimens(to, &times(stat))?),
            false => Ok(()),
        }
    }

    /// Gives `to`, which is as `now` says, the owner, mode and extended attributes of `from`; returns whether
    /// that changed something.
    fn adorn(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        stat: &Stat,
        now: &Stat,
    ) -> io::Result<bool> {
        let mut changed = copy_xattrs(from, to)?;
        if self.is_root && (stat.st_uid, stat.st_gid) != (now.st_uid, now.st_gid) {
            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            rustix::fs::fchown(to, Some(uid), Some(gid))?;
            fchmod(to, permissions(stat))?;
            changed = true;
        }
        let bits = |stat: &Stat| -> RawMode { stat.st_mode & 0o7777 };
        if bits(stat) != bits(now) {
            fchmod(to, permissions(stat))?;
            changed = true;
        }
        Ok(changed)
    }

    /// Removes `it` with all below it.
    fn remove(&mut self, it: At<'_>, path: &Path) -> Result<()> {
        let failed = |error: Errno| at(path)(error.into());
        let stat = it.stat().map_err(failed)?.ok_or_else(|| failed(Errno::NOENT))?;
        let mut flags = AtFlags::empty();
        if kind(&stat) == FileType::Directory {
            let dir = it.open_dir().map_err(failed)?;
            for name in names(dir.as_fd()).map_err(at(path))? {
                self.remove(At { dir: dir.as_fd(), name: &name }, &path.join(&name))?;
            }
            flags = AtFlags::REMOVEDIR;
        }
        unlinkat(it.dir, it.name, flags).map_err(failed)?;
        self.done.removed += 1;
        Ok(())
    }
}

/// Removes all that is in a directory.
///
/// # Errors
/// What the file system refuses, with the path below `dir`.
pub fn empty(dir: BorrowedFd<'_>) -> Result<()> {
    let mut transfer = Transfer::copying(dir);
    for name in names(dir).map_err(at(Path::new(".")))? {
        transfer.remove(At { dir, name: &name }, Path::new(&name))?;
    }
    Ok(())
}

/// Writes what of `bytes` are not blocks of zeros; returns how much that was.
fn write_data(to: &File, offset: u64, bytes: &[u8]) -> io::Result<u64> {
    let is_hole = |block: &[u8]| block.len() == BLOCK_BYTES && block.iter().all(|byte| *byte == 0);
    let (mut at, mut written) = (offset, 0);
    for run in bytes
        .chunks(BLOCK_BYTES)
        .collect::<Vec<_>>()
        .chunk_by(|one, other| is_hole(one) == is_hole(other))
    {
        let len: usize = run.iter().map(|block| block.len()).sum();
        if !run.first().is_some_and(|block| is_hole(block)) {
            let start = usize::try_from(at - offset).unwrap_or(0);
            to.write_all_at(&bytes[start..start + len], at)?;
            written += len as u64;
        }
        at += len as u64;
    }
    Ok(written)
}

fn dup(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    dir.try_clone_to_owned()
}

/// Whether both are one file, unchanged.
fn is_same(one: &Stat, other: &Stat) -> bool {
    let fields = |stat: &Stat| {
        let Stat { st_ino, st_mode, st_nlink, st_uid, st_gid, st_size, .. } = *stat;
        let times = (stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec);
        (st_ino, st_mode, st_nlink, st_uid, st_gid, st_size, times)
    };
    fields(one) == fields(other)
}

/// Reads until `buffer` is full or there is no more.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..])? {
            0 => break,
            more => len += more,
        }
    }
    Ok(len)
}

/// Makes something at `to`, or beside it first and then moves it over what is there: at every moment one or
/// the other is there.
fn replace(to: At<'_>, make: impl Fn(At<'_>) -> rustix::io::Result<()>) -> io::Result<()> {
    match make(to) {
        Err(Errno::EXIST) => {}
        done => return Ok(done?),
    }
    for attempt in 0..ATTEMPTS_MAX {
        let name = OsString::from(format!(".agentfs-{}-{attempt}", std::process::id()));
        let aside = At { dir: to.dir, name: &name };
        match make(aside) {
            Err(Errno::EXIST) => continue,
            done => done?,
        }
        let moved = renameat(aside.dir, aside.name, to.dir, to.name);
        if moved.is_err() {
            unlinkat(aside.dir, aside.name, AtFlags::empty()).ok();
        }
        return Ok(moved?);
    }
    Err(Errno::EXIST.into())
}

/// Gives `to` the extended attributes of `from` and no others; returns whether that changed something.
/// Those that are the kernel's or root's own are left alone.
fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<bool> {
    let (wanted, found) = (xattrs(from)?, xattrs(to)?);
    let mut changed = false;
    for (name, value) in &wanted {
        if found.get(name) != Some(value) {
            fsetxattr(to, OsStr::from_bytes(name), value, XattrFlags::empty())?;
            changed = true;
        }
    }
    for name in found.keys().filter(|name| !wanted.contains_key(*name)) {
        fremovexattr(to, OsStr::from_bytes(name))?;
        changed = true;
    }
    Ok(changed)
}

fn xattrs(file: BorrowedFd<'_>) -> io::Result<HashMap<Vec<u8>, Vec<u8>>> {
    let mut list = vec![0; XATTR_BYTES_MAX];
    let len = match flistxattr(file, &mut list[..]) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(HashMap::new()),
        len => len?,
    };
    let mut value = vec![0; XATTR_BYTES_MAX];
    let mut found = HashMap::new();
    for name in list[..len].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.")) {
        let len = fgetxattr(file, OsStr::from_bytes(name), &mut value[..])?;
        found.insert(name.to_vec(), value[..len].to_vec());
    }
    Ok(found)
}

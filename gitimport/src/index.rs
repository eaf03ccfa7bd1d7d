//! The git index of a clean worktree, made from the tree alone.
//!
//! `git status` believes an index entry without reading the file when the stat data in it equals
//! what `lstat` says. This module writes exactly what the mount will say, so the first `git status`
//! of a worktree reads nothing. It also writes the cache-tree extension, which saves git the
//! comparison of the index with `HEAD`, and byte for byte the index that `git read-tree` would
//! write if it knew the stat data.
//!
//! gix has no such writer: its `State::from_tree` holds every entry in memory and leaves out the
//! cache-tree.

use std::fs::{File, FileTimes, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use agentfs_engine::base::{Base, Dir};
use agentfs_engine::tree::{Entry, EntryKind};
use agentfs_engine::{GitOid, Ino};

use crate::error::{Error, Result};
use crate::object::to_gix_kind;

pub(crate) const SIGNATURE: &[u8; 4] = b"DIRC";
pub(crate) const VERSION: u32 = 2;
pub(crate) const TREE_SIGNATURE: &[u8; 4] = b"TREE";
const MONITOR_SIGNATURE: &[u8; 4] = b"FSMN";
/// Bytes of an entry before the object id.
pub(crate) const STAT_BYTES: usize = 40;
/// A name of this length or longer is recorded as having it; the reader looks for the NUL.
pub(crate) const NAME_LENGTH_MAX: usize = 0xFFF;
/// What git records for a size that is a multiple of 4 GiB, since 0 means "unknown" to it.
const SIZE_MULTIPLE_OF_4_GIB: u32 = 0x8000_0000;
const BUFFER_BYTES: usize = 64 << 10;

/// The stat data that is the same for every file of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexStat {
    /// `st_mtime` and `st_ctime` in seconds.
    pub time: i64,
    /// `st_uid`.
    pub uid: u32,
    /// `st_gid`.
    pub gid: u32,
    /// `st_dev`. git as it is usually built does not compare it.
    pub dev: u32,
}

/// Writes the index of `base`, whose git tree is `root_oid`, to `path`. The file appears complete
/// or not at all; it replaces one that is there. Memory is bounded by the number of directories. With the `token` of
/// this moment it says that git need not look at any file that has not changed since.
///
/// # Errors
/// [`Error::NoObjectId`] for a tree with entries that did not come from git,
/// [`Error::Engine`] for what loading directory objects meets, [`Error::Io`].
pub fn write_index(
    base: &Base,
    stat: &IndexStat,
    root_oid: GitOid,
    token: Option<&str>,
    path: &Path,
) -> Result<()> {
    let directories = Directories::of(base)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new()
        .prefix(".index-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(parent)
        .map_err(|source| Error::io("create a file in", parent, source))?;
    let mut out = Output::new(file.as_file_mut(), path, root_oid);
    out.put(SIGNATURE)?;
    out.put(&VERSION.to_be_bytes())?;
    out.put(&directories.files(0).to_be_bytes())?;
    let has_gitlinks = put_entries(base, stat, &mut out)?;
    let cache_tree = directories.cache_tree(root_oid)?;
    out.put(TREE_SIGNATURE)?;
    out.put(&u32_of(cache_tree.len() as u64, "the cache-tree")?.to_be_bytes())?;
    out.put(&cache_tree)?;
    // git looks at submodules itself, and would have to be told which these are.
    if let Some(token) = token.filter(|_| !has_gitlinks) {
        let monitored = monitored(token);
        out.put(MONITOR_SIGNATURE)?;
        out.put(&u32_of(monitored.len() as u64, "the token")?.to_be_bytes())?;
        out.put(&monitored)?;
    }
    out.finish()?;
    make_later_than(file.as_file(), stat.time)
        .map_err(|source| Error::io("set the time of", path, source))?;
    file.persist(path).map_err(|error| Error::io("write", path, error.error))?;
    Ok(())
}

/// States that no file has changed since the moment of a token (`gitformat-index`, File System Monitor cache, version 2):
/// the token, and which entries have, as a compressed bitmap that holds no bit.
fn monitored(token: &str) -> Vec<u8> {
    let mut bytes = 2_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(token.as_bytes());
    bytes.push(0);
    // Bits, words, the one word that says that no word follows, and where that is.
    let bitmap = [
        &0_u32.to_be_bytes()[..],
        &1_u32.to_be_bytes(),
        &0_u64.to_be_bytes(),
        &0_u32.to_be_bytes(),
    ];
    let bitmap = bitmap.concat();
    bytes.extend_from_slice(&(bitmap.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&bitmap);
    bytes
}

/// git rereads every file whose mtime is not before that of the index. Entries are in the past, so
/// this acts only when the clock was set back since their time was chosen.
fn make_later_than(index: &File, time: i64) -> std::io::Result<()> {
    let Ok(time) = u64::try_from(time) else {
        return Ok(());
    };
    let later = SystemTime::UNIX_EPOCH + Duration::from_secs(time.saturating_add(1));
    if index.metadata()?.modified()? < later {
        index.set_times(FileTimes::new().set_modified(later))?;
    }
    Ok(())
}

/// The file being written, and its hash.
struct Output<'a> {
    file: &'a mut File,
    path: &'a Path,
    hasher: gix::hash::Hasher,
    buffer: Vec<u8>,
}

impl<'a> Output<'a> {
    fn new(file: &'a mut File, path: &'a Path, like: GitOid) -> Self {
        let hasher = gix::hash::hasher(to_gix_kind(like.kind()));
        Self { file, path, hasher, buffer: Vec::with_capacity(BUFFER_BYTES) }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.hasher.update(&self.buffer);
        self.file
            .write_all(&self.buffer)
            .map_err(|source| Error::io("write", self.path, source))?;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.flush()?;
        let digest = self.hasher.try_finalize().map_err(|error| Error::CorruptFile {
            path: self.path.to_owned(),
            why: format!("the names in it cannot be hashed: {error}"),
        })?;
        self.file
            .write_all(digest.as_slice())
            .map_err(|source| Error::io("write", self.path, source))
    }
}

/// One directory on the way from the root to the entry being written.
struct Level<'a> {
    dir: Dir<'a>,
    /// Entries in git's order, where that differs from the order of names.
    order: Option<Vec<u32>>,
    next: usize,
    /// Length of the path of this directory, with its slash.
    path_len: usize,
}

impl<'a> Level<'a> {
    fn new(dir: Dir<'a>, path_len: usize) -> Self {
        Self { dir, order: git_order(dir), next: 0, path_len }
    }

    fn advance(&mut self) -> Option<usize> {
        let position = self.next;
        if position >= self.dir.tree().len() {
            return None;
        }
        self.next += 1;
        Some(self.order.as_ref().map_or(position, |order| order[position] as usize))
    }
}

/// The order in which git lists the paths below `dir`: that of whole paths, in which a directory
/// is followed by a slash. `None` where it is the order of names.
fn git_order(dir: Dir<'_>) -> Option<Vec<u32>> {
    let tree = dir.tree();
    if tree.directories() == 0 {
        return None;
    }
    let key = |index: u32| {
        let entry = tree.entry(index as usize);
        let slash: &[u8] = if entry.kind == EntryKind::Directory { b"/" } else { b"" };
        entry.name.iter().chain(slash)
    };
    let mut order: Vec<u32> = (0..tree.len() as u32).collect();
    if order.is_sorted_by(|&a, &b| key(a).le(key(b))) {
        return None;
    }
    order.sort_by(|&a, &b| key(a).cmp(key(b)));
    Some(order)
}

/// Writes all entries; whether a gitlink is among them.
fn put_entries(base: &Base, stat: &IndexStat, out: &mut Output<'_>) -> Result<bool> {
    let mut has_gitlinks = false;
    let mut path = Vec::new();
    let mut record = Vec::new();
    let mut levels = vec![Level::new(base.root(), 0)];
    while let Some(level) = levels.last_mut() {
        path.truncate(level.path_len);
        let Some(index) = level.advance() else {
            levels.pop();
            continue;
        };
        let entry = level.dir.entry(index);
        path.extend_from_slice(entry.name);
        if entry.kind == EntryKind::Directory {
            let child = level.dir.child(index)?;
            path.push(b'/');
            levels.push(Level::new(child, path.len()));
        } else {
            has_gitlinks |= entry.kind == EntryKind::Gitlink;
            record.clear();
            encode_entry(&mut record, &entry, level.dir.ino_of(index), stat, &path)?;
            out.put(&record)?;
        }
    }
    Ok(has_gitlinks)
}

fn encode_entry(
    record: &mut Vec<u8>,
    entry: &Entry<'_>,
    ino: Ino,
    stat: &IndexStat,
    path: &[u8],
) -> Result<()> {
    let oid = oid_of(entry, path)?;
    let mode: u32 = match entry.kind {
        EntryKind::File => 0o100_644,
        EntryKind::Executable => 0o100_755,
        EntryKind::Symlink => 0o120_000,
        EntryKind::Gitlink | EntryKind::Directory => 0o160_000,
    };
    // git compares the low 32 bits of every field, which is what it stores.
    let time = stat.time as u32;
    let fields = [
        time,
        0,
        time,
        0,
        stat.dev,
        ino.0 as u32,
        mode,
        stat.uid,
        stat.gid,
        recorded_size(entry.size),
    ];
    for field in fields {
        record.extend_from_slice(&field.to_be_bytes());
    }
    debug_assert_eq!(record.len(), STAT_BYTES);
    record.extend_from_slice(oid.as_bytes());
    record.extend_from_slice(&(path.len().min(NAME_LENGTH_MAX) as u16).to_be_bytes());
    record.extend_from_slice(path);
    // At least one NUL, up to a multiple of 8.
    record.resize((record.len() + 8) & !7, 0);
    Ok(())
}

/// What git records of a size in bytes.
pub(crate) fn recorded_size(size: u64) -> u32 {
    match size as u32 {
        0 if size != 0 => SIZE_MULTIPLE_OF_4_GIB,
        low => low,
    }
}

fn oid_of(entry: &Entry<'_>, path: &[u8]) -> Result<GitOid> {
    entry.oid.ok_or_else(|| Error::NoObjectId { path: String::from_utf8_lossy(path).into_owned() })
}

fn u32_of(value: u64, what: &str) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::TooLarge {
        what: what.into(),
        size: value,
        limit: u32::MAX.into(),
    })
}

/// Every directory of a base in pre-order; the root is number 0.
struct Directories<'a>(Vec<Directory<'a>>);

struct Directory<'a> {
    /// Where its name and object id stand: entry `.1` of directory `.0`; `None` for the root.
    place: Option<(Dir<'a>, usize)>,
    /// Entries below it, directories included.
    descendants: u32,
    /// The number after the last directory below it.
    end: u32,
}

impl<'a> Directories<'a> {
    fn of(base: &'a Base) -> Result<Self> {
        let mut all: Vec<Directory<'a>> =
            vec![Directory { place: None, descendants: base.entries(), end: 0 }];
        let mut open = vec![(base.root(), 0, 0)];
        while let Some((dir, number, next)) = open.last_mut() {
            let tree = dir.tree();
            let Some(index) = (*next..tree.len()).find(|&index| tree.ordinal(index).is_some())
            else {
                all[*number].end = all.len() as u32;
                open.pop();
                continue;
            };
            *next = index + 1;
            let (child, place) = (dir.child(index)?, Some((*dir, index)));
            let descendants = tree.entry(index).subtree.map_or(0, |subtree| subtree.descendants);
            open.push((child, all.len(), 0));
            all.push(Directory { place, descendants, end: 0 });
        }
        Ok(Self(all))
    }

    /// Index entries below directory `number`.
    fn files(&self, number: usize) -> u32 {
        let directory = &self.0[number];
        directory.descendants - (directory.end - number as u32 - 1)
    }

    fn name(&self, number: usize) -> &'a [u8] {
        self.0[number].place.map_or(b"", |(dir, index)| dir.entry(index).name)
    }

    /// The subdirectories of directory `number` in the order of the cache-tree: shorter names
    /// first.
    fn children(&self, number: usize) -> Vec<usize> {
        let mut children = Vec::new();
        let mut child = number + 1;
        while child < self.0[number].end as usize {
            children.push(child);
            child = self.0[child].end as usize;
        }
        children.sort_by_key(|&child| (self.name(child).len(), self.name(child)));
        children
    }

    /// The body of the cache-tree extension.
    fn cache_tree(&self, root_oid: GitOid) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        let mut pending = vec![0];
        while let Some(number) = pending.pop() {
            let oid = match self.0[number].place {
                None => root_oid,
                Some((dir, index)) => oid_of(&dir.entry(index), self.name(number))?,
            };
            let children = self.children(number);
            body.extend_from_slice(self.name(number));
            body.push(0);
            body.extend_from_slice(
                format!("{} {}\n", self.files(number), children.len()).as_bytes(),
            );
            body.extend_from_slice(oid.as_bytes());
            pending.extend(children.into_iter().rev());
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    //! The index that `git read-tree` writes is the measure: but for the stat data, every byte of
    //! ours must be the same.

    use std::io::Write as _;
    use std::os::unix::ffi::OsStrExt;
    use std::path::PathBuf;
    use std::process::Stdio;

    use super::*;
    use crate::gittest::{Sandbox, base_of, command, git};

    const STAT: IndexStat = IndexStat { time: 1_600_000_000, uid: 11, gid: 12, dev: 13 };
    const ENTRIES_START: usize = 12;

    /// A repository with one tree that holds files of the given modes and paths. All files have
    /// the content `x`.
    fn tree_of(sandbox: &Sandbox, name: &str, hash: &str, paths: &[(&str, &[u8])]) -> PathBuf {
        let format = format!("--object-format={hash}");
        let repository = sandbox.empty_repository(name, &[&format]);
        std::fs::write(repository.join("x"), "x").unwrap();
        let blob = git(&repository, &["hash-object", "-w", "x"]);
        let mut child = command(&repository, &["update-index", "-z", "--index-info"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        for (mode, path) in paths {
            stdin.write_all(format!("{mode} {blob}\t").as_bytes()).unwrap();
            stdin.write_all(path).unwrap();
            stdin.write_all(b"\0").unwrap();
        }
        drop(stdin);
        assert!(child.wait().unwrap().success());
        git(&repository, &["commit", "-q", "--allow-empty", "-m", "tree"]);
        repository
    }

    /// Makes our index and that of git, and compares all but the stat data.
    fn same_as_git(sandbox: &Sandbox, repository: &Path) -> PathBuf {
        let store = tempfile::tempdir_in(sandbox.path("")).unwrap();
        let (base, root) = base_of(store.path(), repository, "HEAD");
        let (ours, theirs) = (repository.join(".git/ours"), repository.join(".git/theirs"));
        write_index(&base, &STAT, root, None, &ours).unwrap();
        let status = command(repository, &["read-tree", "HEAD"])
            .env("GIT_INDEX_FILE", &theirs)
            .status()
            .unwrap();
        assert!(status.success());
        let masked = |path: &Path| mask(std::fs::read(path).unwrap(), root.as_bytes().len());
        assert!(masked(&ours) == masked(&theirs), "{:?}", repository.file_name());
        ours
    }

    /// Blanks all stat data but the mode, and the trailing hash.
    fn mask(mut index: Vec<u8>, hash_len: usize) -> Vec<u8> {
        let count = u32::from_be_bytes(index[8..12].try_into().unwrap());
        let mut at = ENTRIES_START;
        for _ in 0..count {
            index[at..at + 24].fill(0);
            index[at + 28..at + STAT_BYTES].fill(0);
            let name = at + STAT_BYTES + hash_len + 2;
            let length = index[name..].iter().position(|&byte| byte == 0).unwrap();
            at += (name - at + length + 8) & !7;
        }
        let end = index.len();
        index[end - hash_len..].fill(0);
        index
    }

    fn ask(repository: &Path, index: &Path, arguments: &[&str]) -> Vec<u8> {
        let output = command(repository, arguments).env("GIT_INDEX_FILE", index).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    #[test]
    fn it_is_the_index_of_git() {
        let sandbox = Sandbox::new();
        let deep = format!("{}/leaf", vec!["n".repeat(250); 20].join("/"));
        let almost = "m".repeat(255) + &format!("/{}", "m".repeat(255)).repeat(15);
        assert_eq!(almost.len(), 0xFFF);
        let paths: &[(&str, &[u8])] = &[
            ("100644", b"a"),
            ("100644", b"a-b"),
            ("100644", b"a.b"),
            ("100644", b"a0"),
            ("100644", b"b-/x"),
            ("100644", b"b/x"),
            ("100644", b"b/y/z/deeper"),
            ("100755", b"b.c"),
            ("100644", b"b0/x"),
            ("160000", b"link"),
            ("100644", b"link-not"),
            ("160000", b"sub/link"),
            ("120000", b"symlink"),
            ("100644", b"\xff\xfe not utf-8\n\t\""),
            ("100644", b"d\xe9/\xe9"),
            ("100644", deep.as_bytes()),
            ("100644", almost.as_bytes()),
            ("100644", &almost.as_bytes()[..almost.len() - 1]),
        ];
        for hash in ["sha1", "sha256"] {
            let repository = tree_of(&sandbox, hash, hash, paths);
            let ours = same_as_git(&sandbox, &repository);
            let tree = git(&repository, &["rev-parse", "HEAD^{tree}"]);
            assert_eq!(ask(&repository, &ours, &["write-tree"]), (tree + "\n").as_bytes());
            let debug = ask(&repository, &ours, &["ls-files", "--debug", "a"]);
            let debug = String::from_utf8(debug).unwrap();
            assert!(debug.contains("ctime: 1600000000:0\n  mtime: 1600000000:0"), "{debug}");
            assert!(debug.contains("dev: 13\tino: 16\n  uid: 11\tgid: 12\n  size: 1"), "{debug}");
            ask(&repository, &ours, &["fsck"]);
        }
        same_as_git(&sandbox, &tree_of(&sandbox, "empty", "sha1", &[]));
    }

    #[test]
    fn the_stat_data_is_that_of_the_tree() {
        let sandbox = Sandbox::new();
        let paths: &[(&str, &[u8])] = &[
            ("100644", b"a/one"),
            ("100644", b"a/two"),
            ("100644", b"a.b"),
            ("100644", b"z/y/x"),
            ("160000", b"z/link"),
        ];
        let repository = tree_of(&sandbox, "repository", "sha1", paths);
        let store = tempfile::tempdir_in(sandbox.path("")).unwrap();
        let (base, root) = base_of(store.path(), &repository, "HEAD");
        let path = repository.join(".git/ours");
        write_index(&base, &STAT, root, None, &path).unwrap();
        let index = gix::index::File::at(
            &path,
            gix::hash::Kind::Sha1,
            false,
            gix::index::decode::Options::default(),
        )
        .unwrap();
        for entry in index.entries() {
            let name = entry.path(&index);
            let found = base.path(Ino(entry.stat.ino.into())).unwrap();
            assert_eq!(found, name.to_vec(), "inode {}", entry.stat.ino);
            let size = if name.ends_with(b"link") { 0 } else { 1 };
            assert_eq!(entry.stat.size, size);
        }
        assert_eq!(index.entries().len(), paths.len());
    }

    #[test]
    fn sizes_beyond_32_bits_are_recorded_as_git_does() {
        assert_eq!(recorded_size(0), 0);
        assert_eq!(recorded_size(7), 7);
        assert_eq!(recorded_size((1 << 32) + 7), 7);
        assert_eq!(recorded_size(1 << 33), SIZE_MULTIPLE_OF_4_GIB);
    }

    #[test]
    fn the_index_is_later_than_its_entries_and_replaces_another() {
        let sandbox = Sandbox::new();
        let repository = sandbox.repository("repository");
        let store = tempfile::tempdir_in(sandbox.path("")).unwrap();
        let (base, root) = base_of(store.path(), &repository, "HEAD");
        let path = repository.join(".git/ours");
        std::fs::write(&path, "garbage").unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        for time in [now as i64 - 2, now as i64 + 1000, -1] {
            write_index(&base, &IndexStat { time, ..STAT }, root, None, &path).unwrap();
            let modified = path.metadata().unwrap().modified().unwrap();
            let modified = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            assert!(modified as i64 > time);
        }
        let left = std::fs::read_dir(repository.join(".git")).unwrap();
        assert!(left.flatten().all(|entry| !entry.file_name().as_bytes().starts_with(b".index")));
    }
}

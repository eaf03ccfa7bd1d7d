//! What must hold of the git directory of a worktree: that git finds its way through it, and that its
//! index does not say of an unchanged file what is not so.
//!
//! git believes an index entry without reading the file when its stat data are those of the file. So
//! an entry with the stat data of an unchanged file and another object id would hide a difference for
//! ever, and one with other stat data has every file read for nothing.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use agentfs_engine::base::Location;
use agentfs_engine::worktree::{Attributes, Timestamp, Worktree};
use agentfs_engine::{GitOid, HashKind};

use crate::index::recorded_size;
use crate::index_entries::{IndexEntry, each};
use crate::limits::{GIT_FILE_BYTES_MAX, INDEX_BYTES_MAX};
use crate::object::to_gix_kind;
use crate::racy;

/// A git directory of a worktree.
#[derive(Clone, Copy)]
pub struct Examined<'a> {
    /// The git directory.
    pub git_dir: &'a Path,
    /// That of the repository.
    pub common_dir: &'a Path,
    /// The hash algorithm of the repository.
    pub hash: HashKind,
    /// The branch that it was made for.
    pub branch: &'a str,
    /// The commit at which its `HEAD` is, if it is on no branch.
    pub detached: Option<GitOid>,
    /// Where the worktree is mounted, if it is.
    pub dir: Option<&'a Path>,
    /// What is mounted, with the time of what was never changed, in seconds.
    pub worktree: Option<(&'a Worktree, i64)>,
}

/// What an examination saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Entries of the index.
    pub entries: u64,
    /// Those of unchanged files, whose stat data were compared.
    pub compared: u64,
    /// What is wrong, sorted.
    pub findings: Vec<Finding>,
}

/// One thing that is wrong with a git directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Finding {
    /// A file of it is missing, unreadable, or says what cannot be.
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The index gives the stat data of an unchanged file to another object.
    WrongObject {
        /// The index.
        index: PathBuf,
        /// The file, relative to the worktree.
        file: String,
        /// The object of the index.
        stated: GitOid,
        /// The object that the file is.
        found: GitOid,
    },
    /// The index has other stat data for an unchanged file than the worktree reports.
    WrongStat {
        /// The index.
        index: PathBuf,
        /// The file, relative to the worktree.
        file: String,
        /// Which fields differ.
        fields: String,
    },
    /// The index is believed of a file that was changed in the second that it states.
    Unnoticed {
        /// The index.
        index: PathBuf,
        /// The file, relative to the worktree.
        file: String,
        /// The second, since the epoch.
        second: u32,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadFile { path, why } => write!(f, "{}: {why}", path.display()),
            Self::WrongObject { index, file, stated, found } => write!(
                f,
                "{}: {file:?} is recorded as unchanged and as object {stated}, and is {found}",
                index.display()
            ),
            Self::WrongStat { index, file, fields } => write!(
                f,
                "{}: the stat data of the unchanged file {file:?} differ in {fields}",
                index.display()
            ),
            Self::Unnoticed { index, file, .. } => write!(
                f,
                "{}: {file:?} was changed again within a second, which git does not notice",
                index.display()
            ),
        }
    }
}

impl Examined<'_> {
    /// Examines it. Nothing is changed, and no lock is taken: git replaces files as a whole.
    pub fn examine(&self) -> Report {
        let mut report = Report::default();
        self.check_head(&mut report);
        self.check_links(&mut report);
        self.check_index(&mut report);
        report.findings.sort_unstable();
        report
    }

    fn check_head(&self, report: &mut Report) {
        let path = self.git_dir.join("HEAD");
        let Some(head) = line_of(&path, report) else { return };
        let why = match head.strip_prefix(b"ref: ") {
            Some(name) if !name.starts_with(b"refs/") => "it leads to what is no reference",
            Some(name) if gix::validate::reference::name(name.into()).is_err() => {
                "it leads to what cannot be the name of a reference"
            }
            Some(name) if self.is_flipped(name) => {
                "it leads to a branch that does not exist, one bit away from the one that does"
            }
            Some(_) => return,
            None if head.len() == 2 * self.hash.len() && head.iter().all(u8::is_ascii_hexdigit) => {
                match self.has(&head) {
                    true => return,
                    false => "it is at a commit that the repository does not have",
                }
            }
            None => "it is neither a reference nor an object id",
        };
        report.findings.push(Finding::BadFile { path, why: why.into() });
    }

    /// Whether the repository has the object with this id, as far as that can be told.
    fn has(&self, id: &[u8]) -> bool {
        let id = gix::ObjectId::from_hex(id);
        let opened = id.ok().zip(gix::open(self.common_dir).ok());
        opened.is_none_or(|(id, repository)| repository.has_object(id))
    }

    /// Whether a reference is that of no branch and in one bit other than the branch of the worktree. One
    /// without a commit is no error: `git switch --orphan` makes such.
    fn is_flipped(&self, name: &[u8]) -> bool {
        let own = format!("refs/heads/{}", self.branch);
        let differ =
            name.iter().zip(own.as_bytes()).map(|(left, right)| (left ^ right).count_ones());
        if name.len() != own.len() || differ.sum::<u32>() != 1 {
            return false;
        }
        let found = gix::open(self.common_dir).map(|repository| {
            let find = |name: &[u8]| {
                let name = gix::bstr::BStr::new(name);
                repository.try_find_reference(name).is_ok_and(|found| found.is_some())
            };
            !find(name) && find(own.as_bytes())
        });
        found.unwrap_or(false)
    }

    fn check_links(&self, report: &mut Report) {
        let path = self.git_dir.join("commondir");
        if let Some(line) = line_of(&path, report) {
            let leads = self.git_dir.join(Path::new(std::ffi::OsStr::from_bytes(&line)));
            let same = leads.canonicalize().is_ok_and(|leads| {
                self.common_dir.canonicalize().is_ok_and(|common| common == leads)
            });
            if !same {
                let why = format!("it does not lead to {}", self.common_dir.display());
                report.findings.push(Finding::BadFile { path, why });
            }
        }
        let path = self.git_dir.join("gitdir");
        if let (Some(line), Some(dir)) = (line_of(&path, report), self.dir)
            && line != dir.join(".git").as_os_str().as_bytes()
        {
            let why = format!("it does not lead to the worktree at {}", dir.display());
            report.findings.push(Finding::BadFile { path, why });
        }
    }

    fn check_index(&self, report: &mut Report) {
        let path = self.git_dir.join("index");
        let index_time = racy::time_of(&path).unwrap_or_default();
        let unsummed = || leaves_checksums_out(self.common_dir);
        let read = each_of(&path, self.hash, &unsummed, &mut |entry| {
            report.entries += 1;
            let Some((worktree, time)) = self.worktree else { return };
            compare(&path, &entry, worktree, time, report);
            if racy::unnoticed(&entry, worktree, time, index_time).is_some() {
                let file = String::from_utf8_lossy(&entry.path).into_owned();
                let (index, second) = (path.clone(), entry.mtime.0);
                report.findings.push(Finding::Unnoticed { index, file, second });
            }
        });
        if let Err(why) = read {
            report.findings.push(Finding::BadFile { path, why });
        }
    }
}

/// What is wrong with the index at `path` of a repository, which belongs to nothing that is mounted.
pub(crate) fn check_index_file(path: &Path, common_dir: &Path, hash: HashKind) -> Option<Finding> {
    let unsummed = || leaves_checksums_out(common_dir);
    let why = each_of(path, hash, &unsummed, &mut |_| {}).err()?;
    Some(Finding::BadFile { path: path.to_owned(), why })
}

/// Whether git is told to write no checksum at the end of an index.
pub(crate) fn leaves_checksums_out(common_dir: &Path) -> bool {
    let is_set = |repository: gix::Repository| {
        let config = repository.config_snapshot();
        ["index.skipHash", "feature.manyFiles"].iter().any(|key| config.boolean(*key) == Some(true))
    };
    gix::open(common_dir).is_ok_and(is_set)
}

/// Calls `visit` with each entry of the index at `path`. An empty repository has none. `unsummed` tells
/// whether it may have no checksum.
pub(crate) fn each_of(
    path: &Path,
    hash: HashKind,
    unsummed: &dyn Fn() -> bool,
    visit: &mut dyn FnMut(IndexEntry),
) -> Result<(), String> {
    match read(path, INDEX_BYTES_MAX)? {
        Some(bytes) => each(verified(&bytes, hash, unsummed)?, hash, visit),
        None => Ok(()),
    }
}

/// Compares an entry of `index` with what the worktree reports, if the branch has not changed its file.
fn compare(index: &Path, entry: &IndexEntry, worktree: &Worktree, time: i64, report: &mut Report) {
    // One that was never compared has no stat data, and git takes the size of one away that was
    // written in the same second as the index.
    if !entry.plain || entry.mtime.0 == 0 || entry.size == 0 {
        return;
    }
    let Some((attributes, found)) = unchanged(worktree, time, &entry.path) else { return };
    report.compared += 1;
    let fields = differences(entry, &attributes);
    let file = String::from_utf8_lossy(&entry.path).into_owned();
    let (index, stated) = (index.to_owned(), entry.oid);
    match (stated == found, fields.is_empty()) {
        (false, true) => {
            report.findings.push(Finding::WrongObject { index, file, stated, found });
        }
        (true, false) => {
            let fields = fields.join(", ");
            report.findings.push(Finding::WrongStat { index, file, fields });
        }
        _ => {}
    }
}

/// The attributes and the object of a file that the branch has not changed.
fn unchanged(worktree: &Worktree, time: i64, path: &[u8]) -> Option<(Attributes, GitOid)> {
    let attributes = racy::find(worktree, path)?;
    let of_base = Timestamp { seconds: time, nanoseconds: 0 };
    // Whatever changes an inode sets this time to now.
    if attributes.ino.is_new() || attributes.changed != of_base {
        return None;
    }
    match worktree.base().locate(attributes.ino).ok()? {
        Location::Entry(dir, index) if !dir.entry(index).kind.is_directory() => {
            Some((attributes, dir.entry(index).oid?))
        }
        _ => None,
    }
}

/// The fields in which git would see a difference. It compares 32 bits of each.
fn differences(entry: &IndexEntry, now: &Attributes) -> Vec<&'static str> {
    let mtime = (now.modified.seconds as u32, now.modified.nanoseconds);
    let pairs = [
        ("mtime", entry.mtime == mtime),
        ("ctime", entry.ctime.0 == now.changed.seconds as u32),
        ("inode", entry.ino == now.ino.0 as u32),
        ("uid", entry.uid == now.uid),
        ("gid", entry.gid == now.gid),
        ("size", entry.size == recorded_size(now.size)),
    ];
    pairs.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
}

/// The one line of a small file.
fn line_of(path: &Path, report: &mut Report) -> Option<Vec<u8>> {
    let why = match read(path, GIT_FILE_BYTES_MAX) {
        Ok(Some(mut bytes)) => match bytes.pop() {
            Some(b'\n') if !bytes.contains(&b'\n') => return Some(bytes),
            _ => "it is not one line".into(),
        },
        Ok(None) => "it is missing".into(),
        Err(why) => why,
    };
    report.findings.push(Finding::BadFile { path: path.to_owned(), why });
    None
}

/// The bytes of a file; `None` if there is none.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, String> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| error.to_string())?,
    };
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err("it is no file".into());
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > limit {
        return Err(format!("it has more than {limit} bytes"));
    }
    Ok(Some(bytes))
}

/// An index without its checksum, which is right, or zeros where it may be `unsummed`.
pub(crate) fn verified<'a>(
    bytes: &'a [u8],
    hash: HashKind,
    unsummed: &dyn Fn() -> bool,
) -> Result<&'a [u8], String> {
    let body = bytes.len().checked_sub(hash.len()).and_then(|len| bytes.split_at_checked(len));
    let (body, stated) = body.ok_or("it is too short")?;
    if stated.iter().any(|byte| *byte != 0) || !unsummed() {
        let mut hasher = gix::hash::hasher(to_gix_kind(hash));
        hasher.update(body);
        if !hasher.try_finalize().is_ok_and(|found| found.as_slice() == stated) {
            return Err("its checksum is wrong".into());
        }
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use agentfs_engine::worktree::{Contents, WorktreeOptions};

    use super::*;
    use crate::gitdir::{NewGitDir, WorktreeHead};
    use crate::gittest::{Sandbox, base_of, commit};
    use crate::index::{IndexStat, write_index};

    const TIME: i64 = 1_600_000_000;

    struct Fixture {
        _sandbox: Sandbox,
        common: PathBuf,
        git_dir: PathBuf,
        dir: PathBuf,
        worktree: Arc<Worktree>,
    }

    fn fixture() -> Fixture {
        let sandbox = Sandbox::new();
        let repository = sandbox.repository("repository");
        commit(&repository, "dir/second", b"2");
        let common = repository.join(".git");
        let (base, root) = base_of(&sandbox.path("store"), &repository, "HEAD");
        let dir = sandbox.path("mounted");
        let head = WorktreeHead::Branch { name: "main", commit: None };
        let new = NewGitDir { common_dir: &common, worktree: &dir, head, state: None };
        let stat = IndexStat { time: TIME, uid: 11, gid: 12, dev: 13 };
        let git_dir = new.create(|path| write_index(&base, &stat, root, None, path)).unwrap();
        let options = WorktreeOptions { uid: 11, gid: 12, time: TIME, git_file: None };
        let store = agentfs_engine::store::Store::open(&sandbox.path("other")).unwrap();
        let worktree = Worktree::new(base, Contents::new(store, None), options);
        Fixture { _sandbox: sandbox, common, git_dir, dir, worktree }
    }

    impl Fixture {
        fn report(&self) -> Report {
            Examined {
                git_dir: &self.git_dir,
                common_dir: &self.common,
                hash: HashKind::Sha1,
                branch: "main",
                detached: None,
                dir: Some(&self.dir),
                worktree: Some((&self.worktree, TIME)),
            }
            .examine()
        }

        fn bad(&self, name: &str, why: impl Into<String>) -> Vec<Finding> {
            vec![Finding::BadFile { path: self.git_dir.join(name), why: why.into() }]
        }

        /// Changes the index and gives it its right checksum.
        fn edit(&self, edit: impl FnOnce(&mut Vec<u8>)) {
            let path = self.git_dir.join("index");
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.truncate(bytes.len() - 20);
            edit(&mut bytes);
            let mut hasher = gix::hash::hasher(gix::hash::Kind::Sha1);
            hasher.update(&bytes);
            bytes.extend_from_slice(hasher.try_finalize().unwrap().as_slice());
            std::fs::write(path, bytes).unwrap();
        }
    }

    #[test]
    fn a_fresh_git_directory_is_whole_and_all_of_it_is_compared() {
        let report = fixture().report();
        assert_eq!(report, Report { entries: 2, compared: 2, findings: vec![] });
    }

    #[test]
    fn files_that_lead_git_astray_are_found() {
        let fixture = fixture();
        let none = "it is neither a reference nor an object id";
        let other = fixture.dir.with_file_name("other/.git\n");
        let common = format!("it does not lead to {}", fixture.common.display());
        let mounted = format!("it does not lead to the worktree at {}", fixture.dir.display());
        for (name, content, why) in [
            (
                "HEAD",
                "ref: refs/heads/a..b\n",
                "it leads to what cannot be the name of a reference",
            ),
            ("HEAD", "ref: config\n", "it leads to what is no reference"),
            ("HEAD", "12345\n", none),
            ("HEAD", "", "it is not one line"),
            ("HEAD", "ref: refs/heads/main", "it is not one line"),
            ("HEAD", "ref: refs/heads/main\nmore\n", "it is not one line"),
            ("commondir", "..\n", common.as_str()),
            ("commondir", "/nowhere\n", common.as_str()),
            ("gitdir", other.to_str().unwrap(), mounted.as_str()),
        ] {
            let path = fixture.git_dir.join(name);
            let good = std::fs::read(&path).unwrap();
            std::fs::write(&path, content).unwrap();
            assert_eq!(fixture.report().findings, fixture.bad(name, why), "{content:?}");
            std::fs::write(&path, good).unwrap();
        }
        for name in ["HEAD", "commondir", "gitdir"] {
            let path = fixture.git_dir.join(name);
            let good = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            assert_eq!(fixture.report().findings, fixture.bad(name, "it is missing"));
            std::fs::write(&path, good).unwrap();
        }
        let head = format!("{}\n", "0123456789".repeat(4));
        std::fs::write(fixture.git_dir.join("HEAD"), head).unwrap();
        let gone = "it is at a commit that the repository does not have";
        assert_eq!(fixture.report().findings, fixture.bad("HEAD", gone));
        let repository = gix::open(&fixture.common).unwrap();
        let head = format!("{}\n", repository.head_id().unwrap());
        std::fs::write(fixture.git_dir.join("HEAD"), head).unwrap();
        assert_eq!(fixture.report().findings, []);
    }

    #[test]
    fn every_flipped_byte_of_an_index_is_found() {
        let fixture = fixture();
        let path = fixture.git_dir.join("index");
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            let wrong = fixture.bad("index", "its checksum is wrong");
            assert_eq!(fixture.report().findings, wrong, "byte {at}");
        }
        // git leaves the checksum out, all zeros, only where it is told to.
        let mut bad = good.clone();
        bad[good.len() - 20..].fill(0);
        std::fs::write(&path, &bad).unwrap();
        assert_eq!(fixture.report().findings, fixture.bad("index", "its checksum is wrong"));
        crate::gittest::git(&fixture.common, &["config", "index.skipHash", "true"]);
        assert_eq!(fixture.report().findings, []);
        bad[good.len() / 2..].fill(0);
        std::fs::write(&path, &bad).unwrap();
        assert_eq!(fixture.report().findings.len(), 1, "half of it is empty");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(fixture.report().findings, fixture.bad("index", "it is too short"));
        std::fs::write(&path, good).unwrap();
        fixture.edit(|bytes| bytes[11] += 100);
        let why = "entry 2 of 102 is none";
        assert_eq!(fixture.report().findings, fixture.bad("index", why));
    }

    #[test]
    fn what_git_would_wrongly_believe_is_found() {
        let index = |fixture: &Fixture| fixture.git_dir.join("index");
        let file = || "dir/second".to_owned();
        // The first entry begins at byte 12: ctime, mtime, dev, ino, mode, uid, gid, size, id.
        for (at, fields) in
            [(3, "ctime"), (11, "mtime"), (15, "mtime"), (23, "inode"), (31, "uid"), (39, "size")]
        {
            let fixture = fixture();
            fixture.edit(|bytes| bytes[12 + at] ^= 2);
            let fields = fields.into();
            let found = Finding::WrongStat { index: index(&fixture), file: file(), fields };
            assert_eq!(fixture.report().findings, [found]);
        }
        let fixture = fixture();
        let mut ids = None;
        fixture.edit(|bytes| {
            let id = |bytes: &[u8]| GitOid::from_slice(HashKind::Sha1, &bytes[52..72]).unwrap();
            let found = id(bytes);
            bytes[60] ^= 1;
            ids = Some((id(bytes), found));
        });
        let (stated, found) = ids.unwrap();
        let wrong = Finding::WrongObject { index: index(&fixture), file: file(), stated, found };
        assert_eq!(fixture.report().findings, [wrong]);
        // An entry that was never compared, of whatever object, says nothing.
        fixture.edit(|bytes| [12..36, 40..52].into_iter().for_each(|at| bytes[at].fill(0)));
        let report = fixture.report();
        assert_eq!((report.findings, report.compared), (vec![], 1));
    }
}

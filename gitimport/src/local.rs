//! Cloning a repository of the same machine as `git clone` does it: its object files are linked, or
//! copied where that is impossible, and no object is read but annotated tags.
//!
//! No other process takes part. What git alone can read, references in a reftable for one, is left
//! to it: [`clone`] then says so and has done nothing.

use std::fs::{DirEntry, FileTimes};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use agentfs_engine::progress::{Cancel, Phase, Progress};
use agentfs_engine::{GitOid, HashKind};
use gix::ObjectId;
use gix::bstr::{BString, ByteSlice};
use gix::refs::TargetRef;

use crate::error::{Error, Result};
use crate::fetch::CloneOptions;
use crate::layout::{Head, Layout, Reference};
use crate::limits::{TAG_CHAIN_MAX, WHOLE_OBJECT_BYTES_MAX};
use crate::locate;
use crate::object::{Kind, from_gix, to_gix_kind};
use crate::odb::{Odb, Reader, alternates};

/// Scans of the source's objects before giving up on a repository that is repacked all the time.
const SCANS_MAX: u32 = 100;

/// Clones the repository of `git_dir` into the empty directory `into`. `Ok(false)` if that has to
/// be left to git.
pub(crate) fn clone(
    git_dir: &Path,
    url: &str,
    into: &Path,
    options: &CloneOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<bool> {
    let common_dir = locate::common_dir_of(git_dir);
    if locate::has_foreign_references(&common_dir) {
        return Ok(false);
    }
    let mut source = locate::open(git_dir)?;
    // git passes on objects, not what is read in their place.
    source.objects.ignore_replacements = true;
    if hides_references(&source) {
        return Ok(false);
    }
    let hash = match source.object_hash() {
        gix::hash::Kind::Sha256 => HashKind::Sha256,
        _ => HashKind::Sha1,
    };
    let mut reader = Odb::open(&common_dir.join("objects"), hash)?.reader();
    // References first: what they name is there when the objects are linked.
    let layout = Layout {
        url,
        hash: source.object_hash(),
        head: head_of(&source)?,
        references: references_of(&source, &mut reader, options.rev.as_deref())?,
    };
    if let Some(Head::Symbolic { target, .. }) = &layout.head {
        refuse_lost(&source, &mut reader, target, &layout.references)?;
    }
    if let Some(branch) = &options.branch {
        let name = format!("refs/heads/{branch}").into();
        refuse_lost(&source, &mut reader, &name, &layout.references)?;
    }
    layout.create(into, options.branch.as_deref())?;
    progress.begin(Phase::Fetch, None, None);
    let linked =
        Objects { from: common_dir.join("objects"), to: into.join("objects"), progress, cancel }
            .link();
    progress.end(Phase::Fetch);
    linked?;
    copy_if_there(&common_dir.join("shallow"), &into.join("shallow"))?;
    Ok(true)
}

/// Whether the source keeps references from those who fetch; only git knows the rules.
fn hides_references(source: &gix::Repository) -> bool {
    let config = source.config_snapshot();
    ["transfer.hideRefs", "uploadpack.hideRefs"].iter().any(|key| config.string(*key).is_some())
}

fn git_error(source: &gix::Repository, action: &str, error: gix::Error) -> Error {
    Error::Git { action: action.into(), git_dir: source.git_dir().to_owned(), source: error.into() }
}

fn head_of(source: &gix::Repository) -> Result<Option<Head>> {
    let Some(head) =
        source.try_find_reference("HEAD").map_err(|e| git_error(source, "read HEAD", e))?
    else {
        return Ok(None);
    };
    Ok(Some(match head.target() {
        TargetRef::Object(id) => Head::Detached(id.to_owned()),
        TargetRef::Symbolic(name) => Head::Symbolic {
            target: name.as_bstr().to_owned(),
            id: source.head_id().ok().map(gix::Id::detach),
        },
    }))
}

/// The branches and tags of `source`, and the reference `rev` if it is the full name of another.
/// Broken ones are left out, as git does.
fn references_of(
    source: &gix::Repository,
    reader: &mut Reader,
    rev: Option<&str>,
) -> Result<Vec<Reference>> {
    const ACTION: &str = "list the references";
    let failed = |error| git_error(source, ACTION, error);
    let all = source.references().map_err(failed)?;
    let mut found = Vec::new();
    for prefix in ["refs/heads/", "refs/tags/"] {
        for reference in all.prefixed(prefix).map_err(failed)? {
            match reference.map(|reference| resolve(source, reader, reference.inner)) {
                Ok(Some(reference)) => found.push(reference),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "a broken reference is left out"),
            }
        }
    }
    if let Some(rev) = rev
        && rev.starts_with("refs/")
        && let Ok(Some(reference)) = source.try_find_reference(rev)
    {
        found.extend(resolve(source, reader, reference.inner));
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found.dedup_by(|a, b| a.name == b.name);
    Ok(found)
}

/// Makes sure that the reference `name`, where the clone is to start, was not left out because what it
/// names is damaged: without it the clone would look like one of an empty repository.
fn refuse_lost(
    source: &gix::Repository,
    reader: &mut Reader,
    name: &BString,
    found: &[Reference],
) -> Result<()> {
    if found.iter().any(|reference| reference.name == *name) {
        return Ok(());
    }
    let Ok(Some(reference)) = source.try_find_reference(name.as_bstr()) else { return Ok(()) };
    let Some(oid) = reference.try_id().and_then(|id| from_gix(&id)) else { return Ok(()) };
    reader.read_any(&oid, WHOLE_OBJECT_BYTES_MAX, &mut Vec::new())?;
    Err(Error::corrupt(&oid, format!("{name} leads to it, and what it tags cannot be read")))
}

/// Follows a symbolic reference to an object and an annotated tag to what it tags; `None` if there
/// is no such object.
fn resolve(
    source: &gix::Repository,
    reader: &mut Reader,
    reference: gix::refs::Reference,
) -> Option<Reference> {
    let name = reference.name.as_bstr().to_owned();
    let broken = |error: &dyn std::fmt::Display| {
        tracing::warn!(reference = %name, %error, "a broken reference is left out");
    };
    let id = match &reference.target {
        gix::refs::Target::Object(id) => *id,
        gix::refs::Target::Symbolic(target) => {
            let followed = source
                .find_reference(target.as_ref())
                .and_then(|mut reference| Ok(reference.follow_to_object()?.detach()));
            followed.map_err(|error| broken(&error)).ok()?
        }
    };
    let oid = from_gix(&id)?;
    let (kind, _) = reader.header(&oid).map_err(|error| broken(&error)).ok()?;
    let mut peeled = None;
    if kind == Kind::Tag {
        peeled = match reference.peeled {
            Some(peeled) if peeled != id => Some(peeled),
            _ => Some(tagged_by(reader, oid).map_err(|error| broken(&error)).ok()?),
        };
    }
    Some(Reference { name, id, peeled })
}

/// What the tag `id` tags in the end.
fn tagged_by(reader: &mut Reader, id: GitOid) -> Result<ObjectId> {
    let (mut at, mut bytes) = (id, Vec::new());
    for _ in 0..TAG_CHAIN_MAX {
        if reader.header(&at)?.0 != Kind::Tag {
            return Ok(ObjectId::from_bytes_or_panic(at.as_bytes()));
        }
        reader.read(&at, Kind::Tag, WHOLE_OBJECT_BYTES_MAX, &mut bytes)?;
        at = gix::objs::TagRefIter::from_bytes(&bytes, to_gix_kind(at.kind()))
            .target_id()
            .ok()
            .and_then(|target| from_gix(&target))
            .ok_or_else(|| Error::corrupt(&at, "the tag does not name an object"))?;
    }
    Err(Error::corrupt(&id, format!("more than {TAG_CHAIN_MAX} tags of tags")))
}

fn copy_if_there(from: &Path, to: &Path) -> Result<()> {
    match std::fs::copy(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        copied => copied.map(drop).map_err(|source| Error::io("copy", from, source)),
    }
}

/// The object directory to be linked, and where to.
struct Objects<'a> {
    from: PathBuf,
    to: PathBuf,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

impl Objects<'_> {
    /// Links until one scan has seen a source that did not change under it. git writes a new pack
    /// before it removes what the pack replaces, so a scan that loses a file finds its objects in
    /// the next.
    fn link(&self) -> Result<()> {
        let pack = self.from.join("pack");
        let packs_time = || -> Option<SystemTime> { pack.metadata().ok()?.modified().ok() };
        refuse_link(&self.from, self.from.symlink_metadata().map(|found| found.file_type()))?;
        for _ in 0..SCANS_MAX {
            let before = packs_time();
            match self.link_directory(Path::new("")) {
                Ok(()) if packs_time() == before => return Ok(()),
                Ok(()) => {}
                Err(Error::Io { source, .. })
                    if source.kind() == ErrorKind::NotFound && self.from.is_dir() => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::io("link a file of", &pack, ErrorKind::ResourceBusy.into()))
    }

    fn link_directory(&self, relative: &Path) -> Result<()> {
        self.cancel.check()?;
        let (from, to) = (self.from.join(relative), self.to.join(relative));
        match std::fs::create_dir(&to) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => made.map_err(|source| Error::io("create", &to, source))?,
        }
        let list = |source| Error::io("list", &from, source);
        let mut entries: Vec<DirEntry> =
            std::fs::read_dir(&from).map_err(list)?.collect::<Result<_, _>>().map_err(list)?;
        // Packs last: objects that are packed meanwhile are then seen in the pack.
        entries.sort_by_key(|entry| entry.file_name() == "pack");
        for entry in entries {
            let name = entry.file_name();
            if is_unfinished(name.as_encoded_bytes()) {
                continue;
            }
            let relative = relative.join(&name);
            let kind = refuse_link(&entry.path(), entry.file_type())?;
            if kind.is_dir() {
                self.link_directory(&relative)?;
            } else if relative == Path::new("info/alternates") {
                self.copy_alternates(&relative)?;
            } else {
                let bytes = link_or_copy(&entry.path(), &self.to.join(&relative))?;
                self.progress.advance(Phase::Fetch, 1, bytes);
            }
        }
        Ok(())
    }

    /// The clone needs the alternates of its source; relative ones are relative to the source.
    fn copy_alternates(&self, relative: &Path) -> Result<()> {
        let mut copied = Vec::new();
        for objects in alternates::listed(&self.from)? {
            let objects = objects.canonicalize().unwrap_or(objects).into_os_string();
            let objects = objects.into_encoded_bytes();
            // What git would take for quotes, a comment or the end of a path.
            if objects.starts_with(b"\"") || objects.starts_with(b"#") || objects.contains(&b'\n') {
                copied.extend_from_slice(&gix::quote::ansi_c::quote(objects.as_bstr()));
            } else {
                copied.extend_from_slice(&objects);
            }
            copied.push(b'\n');
        }
        let to = self.to.join(relative);
        std::fs::write(&to, copied).map_err(|source| Error::io("write", &to, source))
    }
}

/// Names of files and directories that another git is still writing.
fn is_unfinished(name: &[u8]) -> bool {
    name.starts_with(b"tmp_") || name.starts_with(b".tmp-")
}

/// A link inside an object directory could lead anywhere; git refuses them all.
fn refuse_link(
    path: &Path,
    found: std::io::Result<std::fs::FileType>,
) -> Result<std::fs::FileType> {
    let found = found.map_err(|source| Error::io("look at", path, source))?;
    if found.is_file() || found.is_dir() {
        return Ok(found);
    }
    Err(Error::UnsafeSource {
        path: path.to_owned(),
        why: "it is a symbolic link or a special file; use a file:// URL instead".into(),
    })
}

/// Links `from` as `to`, or copies it with its times; returns the bytes copied.
fn link_or_copy(from: &Path, to: &Path) -> Result<u64> {
    match std::fs::hard_link(from, to) {
        Ok(()) => return Ok(0),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(0),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Error::io("link", from, error));
        }
        // Another file system, one without links, or too many of them.
        Err(_) => {}
    }
    let copy = || -> std::io::Result<u64> {
        let bytes = std::fs::copy(from, to)?;
        // git prunes loose objects by age.
        let modified = from.metadata()?.modified()?;
        let file = std::fs::File::open(to)?;
        file.set_times(FileTimes::new().set_modified(modified))?;
        Ok(bytes)
    };
    copy().map_err(|source| Error::io("copy", from, source))
}

#[cfg(test)]
mod tests {
    //! What `git clone` does is the measure: each kind of source is cloned by both.

    use std::os::unix::fs::{MetadataExt, symlink};

    use agentfs_engine::progress::Silent;

    use super::*;
    use crate::fetch::clone_bare;
    use crate::gittest::{Sandbox, command, commit, describe, git, rich, skip};

    fn clone(source: &Path, into: &Path, branch: Option<&str>) -> Result<()> {
        let options = CloneOptions { branch: branch.map(str::to_owned), ..CloneOptions::default() };
        let source = source.to_str().unwrap();
        clone_bare(source, into, &options, &Silent, &Cancel::default())
    }

    /// Clones by both and compares. Returns our clone.
    fn same_as_git(sandbox: &Sandbox, source: &Path, branch: Option<&str>) -> PathBuf {
        let (ours, theirs) = (sandbox.path("ours"), sandbox.path("theirs"));
        for path in [&ours, &theirs] {
            let _ = std::fs::remove_dir_all(path);
        }
        clone(source, &ours, branch).unwrap();
        let mut arguments = vec!["clone", "-q", "--no-checkout"];
        arguments.extend(branch.map(|branch| ["--branch", branch]).into_iter().flatten());
        arguments.extend([source.to_str().unwrap(), theirs.to_str().unwrap()]);
        git(source.parent().unwrap(), &arguments);
        assert_eq!(describe(&ours), describe(&theirs.join(".git")));
        assert_eq!(git(&ours, &["rev-parse", "--is-bare-repository"]), "true");
        ours
    }

    #[test]
    fn a_clone_is_what_git_makes() {
        let sandbox = Sandbox::new();
        let source = rich(&sandbox);
        let clone = same_as_git(&sandbox, &source, None);
        same_as_git(&sandbox, &source, Some("feature/with/slashes"));
        same_as_git(&sandbox, &source, Some("odd-\u{e9}-#;\"name"));
        same_as_git(&sandbox, &source, Some("nested"));
        let pack = |repository: &Path| {
            let mut packs = std::fs::read_dir(repository.join("objects/pack")).unwrap();
            packs.next().unwrap().unwrap().path()
        };
        assert!(pack(&clone).metadata().unwrap().nlink() > 2, "the objects are not shared");
        std::fs::rename(clone, sandbox.path("first")).unwrap();
        same_as_git(&sandbox, &sandbox.path("first"), None);
    }

    #[test]
    fn every_form_of_a_path_is_found() {
        let sandbox = Sandbox::new();
        let source = sandbox.repository("source");
        git(&sandbox.path(""), &["clone", "-q", "--bare", "source", "bare.git"]);
        git(&source, &["worktree", "add", "-q", "-b", "linked", "../linked"]);
        commit(&sandbox.path("linked"), "more", b"more");
        for path in ["source", "source/", "source/.git", "bare.git", "bare", "linked"] {
            same_as_git(&sandbox, &sandbox.path(path), None);
        }
    }

    #[test]
    fn every_state_of_head_is_kept() {
        let sandbox = Sandbox::new();
        let source = rich(&sandbox);
        git(&source, &["checkout", "-q", "--detach"]);
        same_as_git(&sandbox, &source, None);
        git(&source, &["checkout", "-q", "--detach", "HEAD~1"]);
        same_as_git(&sandbox, &source, None);
        commit(&source, "detached", b"on no branch");
        same_as_git(&sandbox, &source, None);
        git(&source, &["symbolic-ref", "HEAD", "refs/heads/nowhere"]);
        same_as_git(&sandbox, &source, None);
        same_as_git(&sandbox, &sandbox.empty_repository("empty", &[]), None);
    }

    #[test]
    fn sha256_alternates_and_shallow_sources() {
        let sandbox = Sandbox::new();
        let sha256 = sandbox.empty_repository("sha256", &["--object-format=sha256"]);
        commit(&sha256, "file", b"x");
        git(&sha256, &["tag", "-a", "-m", "t", "annotated"]);
        same_as_git(&sandbox, &sha256, None);

        let source = rich(&sandbox);
        let top = sandbox.path("");
        git(&top, &["clone", "-q", "--shared", "rich", "shared"]);
        std::fs::write(
            sandbox.path("shared/.git/objects/info/alternates"),
            "# comment\n../../../rich/.git/objects\n",
        )
        .unwrap();
        commit(&sandbox.path("shared"), "own", b"own");
        same_as_git(&sandbox, &sandbox.path("shared"), None);

        // Of another one that has alternates itself.
        git(&top, &["clone", "-q", "--shared", "shared", "nested"]);
        let alternates = sandbox.path("nested/.git/objects/info/alternates");
        std::fs::write(alternates, "../../../shared/.git/objects\n").unwrap();
        commit(&sandbox.path("nested"), "more", b"more");
        let ours = same_as_git(&sandbox, &sandbox.path("nested"), None);
        let reader = &mut crate::repository::Repository::open(&ours).unwrap().odb().reader();
        for commit in git(&ours, &["rev-list", "HEAD"]).lines() {
            let id = crate::object::from_gix(&gix::ObjectId::from_hex(commit.as_bytes()).unwrap());
            assert!(reader.header(&id.unwrap()).is_ok(), "{commit}");
        }

        let url = format!("file://{}", source.display());
        git(&top, &["clone", "-q", "--depth=1", "--no-single-branch", &url, "shallow"]);
        same_as_git(&sandbox, &sandbox.path("shallow"), None);
    }

    #[test]
    fn what_only_git_reads_is_left_to_it() {
        let sandbox = Sandbox::new();
        let source = sandbox.repository("files");
        git(&source, &["config", "transfer.hideRefs", "refs/heads/secret"]);
        git(&source, &["branch", "secret"]);
        let clone = same_as_git(&sandbox, &source, None);
        assert!(!git(&clone, &["for-each-ref"]).contains("secret"));

        if command(&sandbox.path(""), &["init", "--ref-format=reftable", "probe"])
            .output()
            .unwrap()
            .status
            .success()
        {
            let source = sandbox.empty_repository("reftable", &["--ref-format=reftable"]);
            commit(&source, "file", b"x");
            let clone = same_as_git(&sandbox, &source, None);
            assert!(gix::open(clone).unwrap().head_id().is_ok());
        }
    }

    #[test]
    fn broken_references_are_left_out() {
        let sandbox = Sandbox::new();
        let source = rich(&sandbox);
        let heads = source.join(".git/refs/heads");
        std::fs::write(heads.join("gone"), "1".repeat(40) + "\n").unwrap();
        std::fs::write(heads.join("garbled"), "not an id\n").unwrap();
        std::fs::write(heads.join("dangling"), "ref: refs/heads/nowhere\n").unwrap();
        let ours = sandbox.path("ours");
        clone(&source, &ours, None).unwrap();
        let names = git(&ours, &["for-each-ref", "--format=%(refname)", "refs/remotes"]);
        for broken in ["gone", "garbled", "dangling"] {
            assert!(!names.contains(broken), "{names}");
        }
        git(&ours, &["fsck"]);
    }

    #[test]
    fn a_damaged_start_is_named_and_not_taken_for_an_empty_repository() {
        for branch in [None, Some("main")] {
            for damage in ["gone", "garbled"] {
                let sandbox = Sandbox::new();
                let source = sandbox.repository("source");
                let id = git(&source, &["rev-parse", "HEAD"]);
                let object = source.join(format!(".git/objects/{}/{}", &id[..2], &id[2..]));
                std::fs::remove_file(&object).unwrap();
                if damage == "garbled" {
                    std::fs::write(&object, "no object").unwrap();
                }
                let error = clone(&source, &sandbox.path("ours"), branch).unwrap_err();
                assert!(error.is_corruption() && error.to_string().contains(&id), "{error}");
                assert!(!sandbox.path("ours").exists());
            }
        }
    }

    #[test]
    fn links_inside_the_objects_are_refused() {
        let sandbox = Sandbox::new();
        let source = sandbox.repository("source");
        let objects = source.join(".git/objects");
        symlink("/etc/passwd", objects.join("info/link")).unwrap();
        let ours = sandbox.path("ours");
        let refused = |source: &Path| match clone(source, &ours, None) {
            Err(error @ Error::UnsafeSource { .. }) => error.is_refusal(),
            other => panic!("{other:?}"),
        };
        assert!(refused(&source));
        std::fs::remove_file(objects.join("info/link")).unwrap();
        std::fs::rename(&objects, sandbox.path("moved")).unwrap();
        symlink(sandbox.path("moved"), &objects).unwrap();
        assert!(refused(&source));
        let left: Vec<_> = std::fs::read_dir(sandbox.path("")).unwrap().collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    #[test]
    fn another_file_system_is_copied_to_with_its_times() {
        let sandbox = Sandbox::new();
        let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else {
            return skip("there is no second file system");
        };
        let source = sandbox.repository("source");
        let ours = elsewhere.path().join("ours");
        clone(&source, &ours, None).unwrap();
        git(&ours, &["fsck"]);
        let object = |repository: &Path| {
            let id = git(repository, &["rev-parse", "HEAD"]);
            repository.join(format!("objects/{}/{}", &id[..2], &id[2..])).metadata().unwrap()
        };
        let (copy, original) = (object(&ours), object(&source.join(".git")));
        assert_eq!(copy.mtime_nsec(), original.mtime_nsec());
        assert_eq!(copy.mode(), original.mode());
    }

    #[test]
    fn other_references_come_when_asked_for() {
        let sandbox = Sandbox::new();
        let source = rich(&sandbox);
        let rev = "refs/pull/1/head";
        let options = CloneOptions { rev: Some(rev.into()), branch: None };
        let ours = sandbox.path("ours");
        clone_bare(source.to_str().unwrap(), &ours, &options, &Silent, &Cancel::default()).unwrap();
        assert_eq!(git(&ours, &["rev-parse", rev]), git(&source, &["rev-parse", rev]));
    }

    #[test]
    fn a_missing_branch_and_a_cancelled_clone_leave_nothing() {
        let sandbox = Sandbox::new();
        let source = sandbox.repository("source");
        let ours = sandbox.path("ours");
        let missing = clone(&source, &ours, Some("nowhere"));
        assert!(matches!(missing, Err(Error::NoSuchBranch { .. })), "{missing:?}");
        let cancel = Cancel::default();
        cancel.cancel();
        let source = source.to_str().unwrap();
        let cancelled = clone_bare(source, &ours, &CloneOptions::default(), &Silent, &cancel);
        assert!(matches!(cancelled, Err(Error::Engine(_))), "{cancelled:?}");
        assert_eq!(std::fs::read_dir(sandbox.path("")).unwrap().count(), 1);
    }
}

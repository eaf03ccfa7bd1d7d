//! What `git clone` writes beside the objects: configuration, references, `HEAD` and logs.
//!
//! The repositories of the store have the layout of an ordinary clone, with remote-tracking
//! branches and a remote to fetch from, but are bare.

use std::path::{Path, PathBuf};

use gix::ObjectId;
use gix::bstr::{BString, ByteSlice};

use crate::error::{Error, Result};
use crate::files;
use crate::object;
use crate::reflog;

const HEADS: &str = "refs/heads/";
const TAGS: &str = "refs/tags/";
const TRACKING: &str = "refs/remotes/origin/";

/// A branch or tag of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Its full name.
    pub(crate) name: BString,
    /// The object that it names.
    pub(crate) id: ObjectId,
    /// The object that the tag at `id` tags in the end.
    pub(crate) peeled: Option<ObjectId>,
}

/// `HEAD` of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// It names a reference, which may not exist.
    Symbolic { target: BString, id: Option<ObjectId> },
    /// It names an object.
    Detached(ObjectId),
}

/// Where a clone starts.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Start<'a> {
    /// On a branch of the source.
    Branch(&'a Reference),
    /// At a commit.
    Detached(ObjectId),
    /// On a branch that does not exist yet.
    Unborn(BString),
}

/// A clone to be laid out.
#[derive(Debug)]
pub(crate) struct Layout<'a> {
    pub(crate) url: &'a str,
    pub(crate) hash: gix::hash::Kind,
    pub(crate) head: Option<Head>,
    /// Sorted by name.
    pub(crate) references: Vec<Reference>,
}

impl Layout<'_> {
    /// Writes everything but the objects into the empty directory `dir`.
    pub(crate) fn create(&self, dir: &Path, branch: Option<&str>) -> Result<()> {
        for part in ["objects/info", "objects/pack", "refs/heads", "refs/tags"] {
            let path = dir.join(part);
            std::fs::create_dir_all(&path).map_err(|source| Error::io("create", &path, source))?;
        }
        files::write(&dir.join("info/exclude"), b"")?;
        // Enough for git to see a repository, so that the user's configuration can be read.
        files::write(&dir.join("HEAD"), b"ref: refs/heads/main\n")?;
        self.write_config(dir, None)?;
        let repository = gix::open(dir).map_err(|error| Error::Git {
            action: "read the configuration".into(),
            git_dir: dir.to_owned(),
            source: error.into(),
        })?;
        let default = default_branch(&repository);
        let tracked = self.tracked(&default);
        let start = self.start(branch, tracked, &default)?;
        let (head, started) = match &start {
            Start::Branch(reference) => (symbolic(&reference.name), Some(reference.name.as_ref())),
            Start::Unborn(name) => (symbolic(name), Some(name.as_bstr())),
            Start::Detached(id) => (format!("{id}\n").into_bytes(), None),
        };
        files::write(&dir.join("HEAD"), &head)?;
        self.write_config(dir, started)?;
        self.write_packed(dir, &start)?;
        if let Some(reference) = tracked {
            let target = tracking_name(&reference.name);
            files::write(&dir.join("refs/remotes/origin/HEAD"), &symbolic(&target))?;
        }
        self.write_logs(dir, &start, tracked, &reflog::committer(&repository))
    }

    fn find(&self, name: &str) -> Option<&Reference> {
        let name = name.as_bytes();
        let index =
            self.references.binary_search_by(|reference| reference.name.as_slice().cmp(name));
        index.ok().map(|index| &self.references[index])
    }

    fn branches(&self) -> impl Iterator<Item = &Reference> {
        self.references.iter().filter(|reference| reference.name.starts_with_str(HEADS))
    }

    /// The branch that `HEAD` of the source stands for. If it names an object, that is the first
    /// branch that names it too, as git guesses.
    fn tracked(&self, default: &str) -> Option<&Reference> {
        match self.head.as_ref()? {
            Head::Symbolic { target, .. } => self.branches().find(|branch| branch.name == *target),
            Head::Detached(id) => [default, "master"]
                .iter()
                .filter_map(|name| self.find(&format!("{HEADS}{name}")))
                .chain(self.branches())
                .find(|branch| branch.id == *id),
        }
    }

    fn start<'a>(
        &'a self,
        branch: Option<&str>,
        tracked: Option<&'a Reference>,
        default: &str,
    ) -> Result<Start<'a>> {
        if let Some(branch) = branch {
            if let Some(reference) = self.find(&format!("{HEADS}{branch}")) {
                return Ok(Start::Branch(reference));
            }
            let tag = self.find(&format!("{TAGS}{branch}")).ok_or_else(|| Error::NoSuchBranch {
                branch: branch.into(),
                url: self.url.into(),
            })?;
            return Ok(Start::Detached(tag.peeled.unwrap_or(tag.id)));
        }
        if let Some(reference) = tracked {
            return Ok(Start::Branch(reference));
        }
        Ok(match &self.head {
            Some(Head::Detached(id) | Head::Symbolic { id: Some(id), .. }) => Start::Detached(*id),
            Some(Head::Symbolic { target, .. }) if target.starts_with_str(HEADS) => {
                Start::Unborn(target.clone())
            }
            _ => Start::Unborn(format!("{HEADS}{default}").into()),
        })
    }

    /// Writes the configuration; `started` is the branch that the clone is on.
    fn write_config(&self, dir: &Path, started: Option<&gix::bstr::BStr>) -> Result<()> {
        let sha256 = self.hash == gix::hash::Kind::Sha256;
        let build = || -> Result<BString, gix::Error> {
            let mut config = gix::config::File::new(gix::config::file::Metadata::from(
                gix::config::Source::Local,
            ));
            let mut core = config.new_section("core", None)?;
            core.push("repositoryformatversion", if sha256 { "1" } else { "0" })?;
            core.push("filemode", "true")?;
            core.push("bare", "true")?;
            core.push("logallrefupdates", "true")?;
            if sha256 {
                let mut extensions = config.new_section("extensions", None)?;
                extensions.push("objectformat", "sha256")?;
            }
            let mut origin = config.new_section("remote", "origin")?;
            origin.push("url", self.url)?;
            origin.push("fetch", "+refs/heads/*:refs/remotes/origin/*")?;
            if let Some(name) = started {
                let short = name.strip_prefix(HEADS.as_bytes()).unwrap_or(name).as_bstr();
                let mut branch = config.new_section("branch", short)?;
                branch.push("remote", "origin")?;
                branch.push("merge", name)?;
            }
            Ok(config.to_bstring())
        };
        let content = build().map_err(|error| Error::Git {
            action: "write the configuration".into(),
            git_dir: dir.to_owned(),
            source: error.into(),
        })?;
        files::write(&dir.join("config"), &content)
    }

    /// All references in one file: the branches as remote-tracking ones, the others as they are,
    /// and the branch that the clone is on.
    fn write_packed(&self, dir: &Path, start: &Start<'_>) -> Result<()> {
        let mut packed: Vec<(BString, &Reference)> = self
            .references
            .iter()
            .map(|reference| (tracking_name(&reference.name), reference))
            .collect();
        if let Start::Branch(reference) = start {
            packed.push((reference.name.clone(), reference));
        }
        packed.sort_by(|a, b| a.0.cmp(&b.0));
        let mut content = b"# pack-refs with: peeled fully-peeled sorted \n".to_vec();
        for (name, reference) in packed {
            content.extend_from_slice(format!("{} ", reference.id).as_bytes());
            content.extend_from_slice(&name);
            content.push(b'\n');
            if let Some(peeled) = reference.peeled {
                content.extend_from_slice(format!("^{peeled}\n").as_bytes());
            }
        }
        files::write(&dir.join("packed-refs"), &content)
    }

    fn write_logs(
        &self,
        dir: &Path,
        start: &Start<'_>,
        tracked: Option<&Reference>,
        committer: &[u8],
    ) -> Result<()> {
        let message = format!("clone: from {}", self.url);
        let log = |name: PathBuf, id: &ObjectId| match object::from_gix(id) {
            Some(oid) => reflog::start(&dir.join("logs").join(name), &oid, committer, &message),
            None => Ok(()),
        };
        match start {
            Start::Branch(reference) => {
                log("HEAD".into(), &reference.id)?;
                log(
                    gix::path::from_bstr(reference.name.as_bstr()).unwrap_or_default().into(),
                    &reference.id,
                )?;
            }
            Start::Detached(id) => log("HEAD".into(), id)?,
            Start::Unborn(_) => {}
        }
        tracked.map_or(Ok(()), |reference| log("refs/remotes/origin/HEAD".into(), &reference.id))
    }
}

fn symbolic(name: &[u8]) -> Vec<u8> {
    [b"ref: ", name, b"\n"].concat()
}

/// Where the clone keeps what the source calls `name`.
fn tracking_name(name: &BString) -> BString {
    match name.strip_prefix(HEADS.as_bytes()) {
        Some(short) => [TRACKING.as_bytes(), short].concat().into(),
        None => name.clone(),
    }
}

/// What the user calls the first branch of a repository.
fn default_branch(repository: &gix::Repository) -> String {
    repository
        .config_snapshot()
        .string("init.defaultBranch")
        .and_then(|name| name.to_str().map(str::to_owned).ok())
        .filter(|name| gix::validate::reference::name_partial(name.as_str().into()).is_ok())
        .unwrap_or_else(|| "master".into())
}

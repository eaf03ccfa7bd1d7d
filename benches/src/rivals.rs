//! How each subject gets from a bare repository to a worktree one can work in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::agentfs::{Store, assert_mounted};
use crate::lab::Lab;
use crate::process::{Answer, Run};
use crate::record::Subject;
use crate::source::Source;

/// How long making a native worktree may take.
const LIMIT: Duration = Duration::from_secs(3600);

/// A worktree of one subject. Ours ends its daemon, and with it the mount, when dropped.
pub struct Site {
    pub subject: Subject,
    pub root: PathBuf,
    pub store: Option<Store>,
}

/// Whether agentfs returns when the worktree is usable or when all content is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Until {
    Usable,
    Stored,
}

/// A new worktree of `source` in a fresh directory, from nothing, and what making it took.
pub fn make(lab: &Lab, subject: Subject, source: &Source, until: Until) -> Result<(Site, Answer)> {
    let root = lab.fresh("tree");
    let native = |answer| Ok((Site { subject, root: root.clone(), store: None }, answer));
    match subject {
        Subject::Ours | Subject::Without | Subject::Passing => {
            let store = lab.store(subject);
            lab.sync();
            let answer = store.clone(&source.git_dir, &root, until == Until::Stored)?;
            assert_mounted(&root)?;
            Ok((Site { subject, root, store: Some(store) }, answer))
        }
        Subject::Native => {
            lab.sync();
            let clone = Run::new("git").args(["clone", "--quiet"]);
            native(clone.arg(&source.git_dir).arg(&root).limit(LIMIT).ok()?)
        }
        Subject::Worktree => {
            let trunk = lab.trunk(source)?;
            lab.sync();
            native(worktree_add(&trunk, &root)?)
        }
        Subject::Copy => {
            let template = lab.template(source)?;
            lab.sync();
            let copy = Run::new("cp").args(["-a", "--reflink=auto"]);
            native(copy.arg(&template).arg(&root).limit(LIMIT).ok()?)
        }
        Subject::Overlay => {
            let template = lab.template(source)?;
            // One that is worked in syncs as a plain directory does. One that is only made, every
            // turn, has nothing to save.
            native(overlay(lab, &template, &root, until == Until::Usable)?)
        }
    }
}

/// `git worktree add --detach`, timed.
pub fn worktree_add(trunk: &Path, root: &Path) -> Result<Answer> {
    let add = Run::git(trunk).args(["worktree", "add", "--quiet", "--detach"]);
    add.arg(root).limit(LIMIT).ok()
}

/// Mounts an overlay over a finished checkout, timed. A volatile one ignores every sync.
pub fn overlay(lab: &Lab, template: &Path, root: &Path, volatile: bool) -> Result<Answer> {
    let (upper, work) = (lab.fresh("upper"), lab.fresh("work"));
    for dir in [&upper, &work, &root.to_owned()] {
        std::fs::create_dir(dir)?;
    }
    let parts = [("lowerdir", template), ("upperdir", &upper), ("workdir", &work)];
    let options: Vec<String> =
        parts.iter().map(|(name, dir)| format!("{name}={}", dir.display())).collect();
    let options = options.join(",") + if volatile { ",volatile" } else { "" };
    if options.contains('\\') || options.matches(',').count() != 2 + usize::from(volatile) {
        bail!("overlayfs cannot take a path with a comma or a backslash: {options}");
    }
    Run::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(root).ok()
}

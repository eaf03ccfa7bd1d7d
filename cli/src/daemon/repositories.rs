//! The open repositories of the store.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use agentfs_engine::GitOid;
use agentfs_engine::store::{self, Store};
use agentfs_engine::worktree::Contents;
use agentfs_gitimport::repository::Repository;
use agentfs_gitimport::source::{LazyRepository, Source};

use crate::error::{Failure, Kind, Result};

/// A repository in use, shared by all its worktrees.
pub struct OpenRepository {
    /// What the store says of it.
    pub record: store::Repository,
    store: Arc<Store>,
    git: Arc<LazyRepository>,
    /// The bytes of the files of each git tree that is mounted. Leaf lock.
    contents: Mutex<HashMap<GitOid, Weak<Contents>>>,
}

impl OpenRepository {
    /// The repository that `record` describes. It is opened when it is needed for the first time.
    pub fn new(store: &Arc<Store>, record: store::Repository) -> Arc<Self> {
        let git = LazyRepository::new(&record.git_dir);
        Arc::new(Self { record, store: Arc::clone(store), git, contents: Mutex::default() })
    }

    /// Its references and objects.
    ///
    /// # Errors
    /// If it is not there any more, or not readable.
    pub fn git(&self) -> Result<Arc<Repository>> {
        Ok(self.git.get()?)
    }

    /// The same, to change references in it: with its configuration as it is.
    ///
    /// # Errors
    /// As [`OpenRepository::git`].
    pub fn git_to_change(&self) -> Result<Arc<Repository>> {
        Ok(self.git.configured()?)
    }

    /// The same, with what its owner has changed in it since it was opened.
    ///
    /// # Errors
    /// As [`OpenRepository::git`].
    pub fn git_as_it_is(&self) -> Result<Arc<Repository>> {
        Ok(self.git.refresh()?)
    }

    /// The bytes of the files of git tree `tree`; without one, of what is in the store alone.
    pub fn contents(&self, tree: Option<GitOid>) -> Arc<Contents> {
        let Some(tree) = tree else {
            return Contents::new(Arc::clone(&self.store), None);
        };
        let mut known = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(contents) = known.get(&tree).and_then(Weak::upgrade) {
            return contents;
        }
        known.retain(|_, contents| contents.strong_count() > 0);
        let source = Source::new(Arc::clone(&self.git), tree);
        let contents = Contents::new(Arc::clone(&self.store), Some(Arc::new(source)));
        known.insert(tree, Arc::downgrade(&contents));
        contents
    }
}

/// The repositories that are open, by name.
#[derive(Default)]
pub struct Repositories {
    /// Leaf lock.
    open: Mutex<HashMap<String, Arc<OpenRepository>>>,
}

impl Repositories {
    /// The repository called `name`.
    ///
    /// # Errors
    /// [`Kind::NotFound`], or what reading the store meets.
    pub fn get(&self, store: &Arc<Store>, name: &str) -> Result<Arc<OpenRepository>> {
        if let Some(open) = self.lock().get(name) {
            return Ok(Arc::clone(open));
        }
        let record = store.repository(name)?.ok_or_else(|| {
            Failure::new(Kind::NotFound, format!("there is no repository {name:?} in this store"))
                .hint("`agentfs ps` lists the repositories")
        })?;
        let opened = OpenRepository::new(store, record);
        // Another call may have opened it meanwhile; all must share one.
        Ok(Arc::clone(self.lock().entry(name.to_owned()).or_insert(opened)))
    }

    /// Takes in one that was opened before it had a place in the store.
    pub fn insert(&self, open: &Arc<OpenRepository>) {
        self.lock().insert(open.record.name.clone(), Arc::clone(open));
    }

    /// Forgets one.
    pub fn remove(&self, name: &str) {
        self.lock().remove(name);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<OpenRepository>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Longest name of a repository that is made from its source, in bytes.
const NAME_BYTES_MAX: usize = 100;

/// The name that a repository from `source`, a URL or a path, gets if it is free: the last part of
/// it, without what a name may not hold. `@` is not allowed since it separates name and revision.
pub fn name_of(source: &str) -> String {
    let trimmed = source.trim_end_matches('/');
    let trimmed = trimmed.strip_suffix("/.git").unwrap_or(trimmed);
    let last = trimmed.rsplit(['/', ':']).next().unwrap_or_default();
    let last = [".git", ".bundle"].iter().find_map(|end| last.strip_suffix(end)).unwrap_or(last);
    let plain = |letter: char| letter.is_alphanumeric() || matches!(letter, '-' | '_' | '.' | '+');
    let mut name: String =
        last.chars().map(|letter| if plain(letter) { letter } else { '-' }).collect();
    while name.len() > NAME_BYTES_MAX {
        name.pop();
    }
    let name = name.trim_start_matches(['.', '-']);
    if name.is_empty() { "repository".into() } else { name.into() }
}

/// `name`, or the first of `name-2`, `name-3`, ... that `taken` does not hold for.
///
/// # Errors
/// What `taken` meets.
pub fn unique(name: &str, mut taken: impl FnMut(&str) -> Result<bool>) -> Result<String> {
    if !taken(name)? {
        return Ok(name.into());
    }
    let mut number = 2_u64;
    loop {
        let candidate = format!("{name}-{number}");
        if !taken(&candidate)? {
            return Ok(candidate);
        }
        number += 1;
    }
}

/// Whether something is at `path`.
pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_named_after_its_source() {
        for (source, name) in [
            ("/srv/codex.git", "codex"),
            ("/srv/codex/.git/", "codex"),
            ("https://host/a/b.git", "b"),
            ("host:b.git", "b"),
            ("user@host:dir/b", "b"),
            ("../x.bundle", "x"),
            ("/", "repository"),
            ("..", "repository"),
            ("/srv/a@b c", "a-b-c"),
            ("/srv/.hidden", "hidden"),
            ("/srv/\u{e9}t\u{e9}", "\u{e9}t\u{e9}"),
        ] {
            assert_eq!(name_of(source), name, "{source}");
        }
        assert!(name_of(&"\u{e9}".repeat(200)).len() <= NAME_BYTES_MAX);
    }

    #[test]
    fn a_taken_name_gets_a_number() {
        let taken = ["x", "x-2"];
        assert_eq!(unique("x", |name| Ok(taken.contains(&name))).unwrap(), "x-3");
        assert_eq!(unique("y", |name| Ok(taken.contains(&name))).unwrap(), "y");
    }
}

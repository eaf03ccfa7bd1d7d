//! Objects that git reads in the place of others: `refs/replace`.
//!
//! A replacement changes what an object is read as and not what it is called. A tree keeps the ids of
//! its entries, the index of a worktree and `HEAD` have them too, and only the bytes come from somewhere
//! else. So a replaced object must never get into the git map under the id that it replaces: a
//! replaced file is stored like one that a checkout converts, and a replaced tree under its own id.

use std::collections::HashMap;
use std::sync::Arc;

use agentfs_engine::{ContentId, GitOid};

use crate::error::{Error, Result};
use crate::limits::REPLACEMENTS_MAX;
use crate::object::{Kind, from_gix};
use crate::odb::Odb;

/// The replacements of a repository, as they were when it was opened.
#[derive(Debug, Default)]
pub(crate) struct Replacements {
    by: HashMap<GitOid, GitOid>,
    context: Option<[u8; 32]>,
}

impl Replacements {
    /// Those that git would use in `git`, which are none if its configuration says so.
    pub(crate) fn of_repository(git: &gix::Repository, odb: &Arc<Odb>) -> Self {
        let pairs = git.objects.store_ref().replacements();
        let pairs = pairs.filter_map(|(from, to)| Some((from_gix(&from)?, from_gix(&to)?)));
        Self::new(pairs.collect(), odb)
    }

    fn new(by: HashMap<GitOid, GitOid>, odb: &Arc<Odb>) -> Self {
        if by.is_empty() {
            return Self::default();
        }
        let mut reader = odb.reader();
        let mut visible: Vec<_> = by
            .iter()
            .filter(|(_, to)| !matches!(reader.header(to), Ok((Kind::Commit | Kind::Tag, _))))
            .collect();
        visible.sort_unstable();
        let bytes = visible.iter().flat_map(|(from, to)| [from.as_bytes(), to.as_bytes()]);
        let bytes = bytes.collect::<Vec<_>>().concat();
        let context = (!visible.is_empty()).then(|| *ContentId::of(&bytes).as_bytes());
        Self { by, context }
    }

    /// The object that is read when `oid` is asked for: `oid` itself if nothing replaces it.
    ///
    /// # Errors
    /// [`Error::CorruptObject`] where git gives up: a replacement that is replaced, too often.
    pub(crate) fn of(&self, oid: &GitOid) -> Result<GitOid> {
        let mut at = *oid;
        for _ in 0..REPLACEMENTS_MAX {
            match self.by.get(&at) {
                Some(next) => at = *next,
                None => return Ok(at),
            }
        }
        Err(Error::corrupt(
            oid,
            format!(
                "refs/replace replaces it by objects that are replaced themselves, {REPLACEMENTS_MAX} \
                 times or more; `git replace --delete {oid}` ends that"
            ),
        ))
    }

    /// What they contribute to the context of trees; `None` if no tree looks different with them.
    pub(crate) fn context(&self) -> Option<[u8; 32]> {
        self.context
    }
}

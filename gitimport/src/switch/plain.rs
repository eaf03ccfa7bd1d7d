//! What a move needs of the objects of its goal, where no conversion takes part.

use std::collections::BTreeMap;

use agentfs_engine::GitOid;
use agentfs_engine::tree::EntryKind;

use super::cache_tree::above;
use super::plan::Plan;
use crate::attributes;
use crate::convert::{self, Scope};
use crate::error::Result;
use crate::lane::Lane;
use crate::limits::WHOLE_OBJECT_BYTES_MAX;
use crate::object::Kind;
use crate::repository::Repository;

/// What is to be at a path, byte for byte what git has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plain {
    /// Nothing.
    Nothing,
    /// A directory, for a commit of another repository.
    Directory,
    /// A link to this.
    Link(Vec<u8>),
    /// A file.
    File {
        /// Its object.
        oid: GitOid,
        /// Whether it can be executed.
        executable: bool,
    },
}

impl Plan {
    /// What each step makes, as the trees of the goal have it; `None` where more is needed to say so: a file that a
    /// checkout converts, or a goal whose trees were not read for the plan.
    ///
    /// # Errors
    /// What reading the configuration and objects meets.
    pub fn plain(&self, repository: &Repository) -> Result<Option<Vec<Plain>>> {
        let Some(trees) = &self.trees else { return Ok(None) };
        let (conversions, lane) = (convert::Plan::new(repository)?, Lane::default());
        let mut reader = repository.odb().reader();
        let mut scopes: BTreeMap<&[u8], Scope> = BTreeMap::new();
        for (path, tree) in trees {
            let name = path.strip_suffix(b"/").unwrap_or(path);
            let around = above(path);
            let outer = match path.is_empty() {
                true => conversions.root(),
                false => match scopes.get(around) {
                    Some(outer) => outer.clone(),
                    None => return Ok(None),
                },
            };
            let replaced = repository.replacements();
            let text = attributes::read(&lane, &mut None, &mut reader, tree, replaced)?;
            scopes.insert(path, outer.enter(&name[around.len()..], text.as_deref())?);
        }
        let mut plain = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let Some(oid) = step.oid else {
                plain.push(Plain::Nothing);
                continue;
            };
            if step.is_gitlink {
                plain.push(Plain::Directory);
                continue;
            }
            let dir = above(&step.path);
            let name = &step.path[dir.len()..];
            let entry = trees.get(dir).and_then(|tree| tree.find(name));
            let (Some(entry), Some(scope)) = (entry, scopes.get(dir)) else { return Ok(None) };
            if entry.oid != oid {
                return Ok(None);
            }
            plain.push(match entry.kind {
                EntryKind::Symlink => {
                    let mut target = Vec::new();
                    reader.read(&oid, Kind::Blob, WHOLE_OBJECT_BYTES_MAX, &mut target)?;
                    Plain::Link(target)
                }
                EntryKind::File | EntryKind::Executable if !scope.needs_conversion(name) => {
                    Plain::File { oid, executable: entry.kind == EntryKind::Executable }
                }
                _ => return Ok(None),
            });
        }
        Ok(Some(plain))
    }
}

//! How deep a directory object is nested that the store knows already.

use std::collections::HashSet;

use agentfs_engine::limits::TREE_DEPTH_MAX;
use agentfs_engine::store::Store;
use agentfs_engine::tree::Subtree;

use crate::error::Result;

/// The number of levels in `top`, itself included, if it is more than half of what a tree may have;
/// else some number that is not less. So the usual tree costs no read: it has too few entries, or
/// none of its subtrees has enough.
pub(super) fn height(store: &Store, top: &Subtree) -> Result<u32> {
    let half = (TREE_DEPTH_MAX / 2) as u32;
    if top.descendants < half {
        return Ok(top.descendants + 1);
    }
    let mut levels = 0;
    let mut level = HashSet::from([top.id]);
    while !level.is_empty() {
        levels += 1;
        let mut next = HashSet::new();
        for id in level {
            let tree = store.tree(id)?;
            let subtrees = tree.entries().filter_map(|entry| entry.subtree);
            // Others cannot reach so deep.
            let deep =
                subtrees.filter(|subtree| subtree.descendants.saturating_add(levels) >= half);
            next.extend(deep.map(|subtree| subtree.id));
        }
        level = next;
    }
    Ok(levels.max(half))
}

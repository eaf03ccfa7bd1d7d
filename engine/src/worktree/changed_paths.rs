//! Where a branch may differ from its base, by path.

use std::collections::{BTreeSet, HashMap};

use super::Worktree;
use crate::base::{Base, Location};
use crate::error::{Error, Result};
use crate::id::{Ino, Sequence};
use crate::limits::TREE_DEPTH_MAX;
use crate::overlay::{Body, Generation, Known, Node, Overlay};
use crate::tree::EntryKind;

/// A name that is told of a directory of which everything may differ; nobody has a file of that name.
const ANYTHING: &[u8] = b".agentfs-anything";

/// Where a branch may differ from its base, or has differed at some moment of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedPaths {
    /// The number of the generation, which no other worktree has or had, nor the same one after a restore.
    pub generation: u64,
    /// Paths, relative to the root; none if they are too many. One that ends in a slash is told beside the same one without it, and stands for
    /// all below it. What is neither one of them nor below such a one is as in the base, and was at
    /// every moment of the generation. In a directory of which none of the paths names an entry, these
    /// have been the names at every moment since it was where it is.
    pub paths: Option<Vec<Vec<u8>>>,
}

/// What a worktree that is opened again needs to go on with the generation that it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interrupted {
    /// The number of the generation.
    pub generation: u64,
    /// The last change.
    pub last: Sequence,
    /// Names that have come and gone, with the directories that they were in.
    pub departed: BTreeSet<(Ino, Box<[u8]>)>,
}

impl Worktree {
    /// The number of its generation, as in [`ChangedPaths`]; none for a worktree that takes no changes.
    pub fn generation(&self) -> Option<u64> {
        Some(self.live.as_ref()?.changes.read().generation().number())
    }

    /// What it takes to go on with its generation; none for a worktree that takes no changes. To be asked for when nobody
    /// can change anything any more and everything is drained: what a power failure takes back would be unknown
    /// afterwards.
    pub fn interrupt(&self) -> Option<Interrupted> {
        let live = self.live.as_ref().filter(|live| !live.is_dirty())?;
        let overlay = live.changes.read();
        let generation = overlay.generation();
        let (departed, last) = (generation.departed().clone(), live.outbox.last());
        Some(Interrupted { generation: generation.number(), last, departed })
    }

    /// Goes on with a generation, if the branch is as it was then. To be called once, before anybody can change
    /// anything, with what nobody can find a second time: after a power failure the same number may stand for
    /// another change.
    pub fn resume(&self, interrupted: Interrupted) -> bool {
        let Some(live) = &self.live else { return false };
        let _turn = live.log();
        let is_same = live.outbox.last() == interrupted.last;
        if is_same {
            let Interrupted { generation, departed, .. } = interrupted;
            live.changes.write().resume(Generation::resume(generation, departed));
        }
        is_same
    }

    /// Ends the generation. To be called when those who look at the files through something that remembers what it has
    /// seen, as a kernel does, see what [`Worktree::restore`] or [`Worktree::edit`] has changed: what they have seen
    /// before counts for nothing then.
    pub fn begin_generation(&self) {
        if let Some(live) = &self.live {
            live.changes.write().begin_generation();
        }
    }

    /// Where it may differ from its base; none for a worktree that takes no changes. More than about `max` paths are not told.
    ///
    /// # Errors
    /// What loading directory objects meets.
    pub fn changed_paths(&self, max: usize) -> Result<Option<ChangedPaths>> {
        let Some(live) = &self.live else { return Ok(None) };
        let (overlay, generation, departed) = {
            let overlay = live.changes.read();
            let generation = overlay.generation();
            (overlay.copy(), generation.number(), generation.departed().clone())
        };
        // Looking at the nodes costs as much as telling of them.
        let is_bounded = overlay.nodes().len() <= max;
        let paths = is_bounded.then(|| Finder::new(&self.clean.base, &overlay).all(&departed, max));
        Ok(Some(ChangedPaths { generation, paths: paths.transpose()?.flatten() }))
    }
}

/// Finds the paths of inodes.
struct Finder<'a> {
    base: &'a Base,
    overlay: &'a Overlay,
    /// The names that directories have been given.
    given: HashMap<Ino, (Ino, &'a [u8])>,
    /// The paths of directories; none of one that has none.
    found: HashMap<Ino, Option<Vec<u8>>>,
}

impl<'a> Finder<'a> {
    fn new(base: &'a Base, overlay: &'a Overlay) -> Self {
        let mut given = HashMap::new();
        for (dir, node) in overlay.nodes() {
            let Body::Directory(directory) = &node.body else { continue };
            let below =
                directory.added_from(0).filter(|(.., ino)| overlay.directory(*ino).is_some());
            given.extend(below.map(|(_, name, ino)| (ino, (dir, name))));
        }
        Self { base, overlay, given, found: HashMap::new() }
    }

    /// All paths, in order; none if these are more than `max`.
    fn all(
        &mut self,
        departed: &BTreeSet<(Ino, Box<[u8]>)>,
        max: usize,
    ) -> Result<Option<Vec<Vec<u8>>>> {
        let mut paths = Vec::new();
        let overlay = self.overlay;
        for (ino, node) in overlay.nodes().filter(|(_, node)| node.inode.nlink > 0) {
            self.add(ino, node, &mut paths)?;
            if paths.len() > max {
                return Ok(None);
            }
        }
        for (dir, name) in departed {
            if let Some(above) = self.path(*dir)? {
                put_with_all_below(join(&above, name), &mut paths);
            }
        }
        paths.sort_unstable();
        paths.dedup();
        Ok(Some(paths))
    }

    /// Adds what `node` tells of paths.
    fn add(&mut self, ino: Ino, node: &'a Node, paths: &mut Vec<Vec<u8>>) -> Result<()> {
        let Body::Directory(directory) = &node.body else {
            // What the branch has named is told by the directory.
            if !ino.is_new()
                && let Some((dir, name)) = self.in_base(ino)?
                && let Some(above) = self.path(dir)?
            {
                paths.push(join(&above, name));
            }
            return Ok(());
        };
        let Some(path) = self.path(ino)? else { return Ok(()) };
        if ino.is_new() {
            // It is a directory that is told with all below it, or below one.
            paths.push(join(&path, ANYTHING));
            return Ok(());
        }
        let base = self.base.directory(ino)?;
        for name in directory.names() {
            let added = match directory.find(name) {
                Some(Known::Added(ino, _)) => self.overlay.directory(ino).is_some(),
                _ => false,
            };
            let was = base.and_then(|base| Some(base.entry(base.tree().find(name)?).kind));
            let was_directory = matches!(was, Some(EntryKind::Directory | EntryKind::Gitlink));
            match added || was_directory {
                true => put_with_all_below(join(&path, name), paths),
                false => paths.push(join(&path, name)),
            }
        }
        Ok(())
    }

    /// The directory and the name that an inode of the base has there.
    fn in_base(&self, ino: Ino) -> Result<Option<(Ino, &'a [u8])>> {
        // The root, and the file that leads git to its directory.
        if ino < Ino::FIRST {
            return Ok(None);
        }
        Ok(match self.base.locate(ino)? {
            Location::Root(_) => None,
            Location::Entry(dir, index) => Some((dir.ino(), dir.entry(index).name)),
        })
    }

    /// Where the name of a directory is.
    fn name_of(&self, dir: Ino) -> Result<Option<(Ino, &'a [u8])>> {
        if let Some(given) = self.given.get(&dir) {
            return Ok(Some(*given));
        }
        if dir.is_new() {
            return Ok(None);
        }
        let named = self.in_base(dir)?;
        let is_there = |(above, name): &(Ino, &[u8])| {
            let known = self.overlay.directory(*above).and_then(|directory| directory.find(name));
            known.is_none_or(|known| matches!(known, Known::Added(ino, _) if ino == dir))
        };
        Ok(named.filter(is_there))
    }

    /// The path of a directory, if it has one.
    fn path(&mut self, dir: Ino) -> Result<Option<Vec<u8>>> {
        let mut way = Vec::new();
        let mut at = dir;
        let mut path = loop {
            if at == Ino::ROOT {
                break Some(Vec::new());
            }
            if let Some(found) = self.found.get(&at) {
                break found.clone();
            }
            if way.len() > TREE_DEPTH_MAX {
                return Err(Error::corrupt(format!("directory {dir}"), "it is below itself"));
            }
            match self.name_of(at)? {
                Some((above, name)) => {
                    way.push((at, name));
                    at = above;
                }
                None => break None,
            }
        };
        for (ino, name) in way.into_iter().rev() {
            path = path.map(|above| join(&above, name));
            self.found.insert(ino, path.clone());
        }
        Ok(path)
    }
}

/// Puts a path, and the same one with a slash.
fn put_with_all_below(path: Vec<u8>, paths: &mut Vec<Vec<u8>>) {
    paths.push([&path, &b"/"[..]].concat());
    paths.push(path);
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match dir {
        [] => name.to_vec(),
        dir => [dir, b"/", name].concat(),
    }
}

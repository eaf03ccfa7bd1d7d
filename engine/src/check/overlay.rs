//! What must hold of everything that a branch has changed: of each inode by itself, and of the names
//! that lead to them.

use std::collections::{HashMap, HashSet};

use super::Finding;
use super::branch::Changed;
use crate::base::{Base, Location};
use crate::error::{Error, Result};
use crate::id::{ChunkId, Ino};
use crate::limits::{FILE_BYTES_MAX, LINKS_MAX, NAME_BYTES_MAX, XATTRS_BYTES_MAX};
use crate::overlay::{Body, Directory, Extents, Node, Source};
use crate::store::{Object, Place, Table};
use crate::worktree::{GIT_FILE_NAME, NodeKind};

/// Reports what is wrong with `changed`.
pub(super) fn check(changed: &Changed, find: &mut dyn FnMut(Finding)) {
    let mut check = Check { changed, find };
    for (ino, node) in changed.overlay.nodes() {
        check.inode(ino, node);
    }
    if changed.whole
        && let Some(base) = &changed.base
    {
        // A directory object that cannot be read was reported with the trees; names tell nothing then.
        let _ = Names::of(changed, base).and_then(|names| names.check(changed, &mut check));
    }
}

/// What the base says of an inode.
enum InBase {
    /// It is there, with this kind and this size, where that is known.
    Is(NodeKind, Option<u64>),
    /// There is no such inode.
    Absent,
    /// It cannot be told.
    Unknown,
}

struct Check<'a> {
    changed: &'a Changed,
    find: &'a mut dyn FnMut(Finding),
}

impl Check<'_> {
    fn bad(&mut self, ino: Ino, why: impl Into<String>) {
        let branch = self.changed.name.clone();
        (self.find)(Finding::BadInode { branch, ino, why: why.into() });
    }

    fn in_base(&self, ino: Ino) -> InBase {
        if ino == Ino::GIT_FILE {
            // Its content is no part of the store.
            return InBase::Is(NodeKind::File, None);
        }
        if ino.is_new() {
            return InBase::Absent;
        }
        let Some(base) = &self.changed.base else { return InBase::Unknown };
        match base.locate(ino) {
            Ok(Location::Root(_)) => InBase::Is(NodeKind::Directory, None),
            Ok(Location::Entry(dir, index)) => {
                let entry = dir.entry(index);
                InBase::Is(entry.kind.into(), Some(entry.size))
            }
            Err(Error::NoInode(_)) => InBase::Absent,
            Err(_) => InBase::Unknown,
        }
    }

    /// What can be said of an inode without looking at others.
    fn inode(&mut self, ino: Ino, node: &Node) {
        let base = self.in_base(ino);
        match base {
            InBase::Is(kind, _) if kind != node.inode.kind => {
                self.bad(ino, format!("is a {:?}, and in the base a {kind:?}", node.inode.kind));
            }
            InBase::Absent if !ino.is_new() => self.bad(ino, "is not in the base"),
            _ => {}
        }
        if node.inode.nlink > LINKS_MAX {
            self.bad(ino, format!("counts {} links", node.inode.nlink));
        }
        let sized = node.inode.size;
        match (&node.body, node.inode.kind) {
            (Body::Base, NodeKind::File | NodeKind::Symlink) => match base {
                InBase::Absent => self.bad(ino, "has the content of the base, which has none"),
                InBase::Is(_, Some(size)) if size != sized => {
                    self.bad(
                        ino,
                        format!("has {sized} bytes and the content of the base has {size}"),
                    );
                }
                _ => {}
            },
            (Body::File(extents), NodeKind::File) => self.file(ino, sized, extents),
            (Body::Target(target), NodeKind::Symlink) => {
                if target.len() as u64 != sized {
                    self.bad(ino, format!("has {sized} bytes and a target of {}", target.len()));
                }
            }
            (Body::Directory(_), NodeKind::Directory) => {}
            (
                Body::Nothing | Body::Base,
                NodeKind::Fifo | NodeKind::Socket | NodeKind::CharDevice | NodeKind::BlockDevice,
            ) => {}
            (_, kind) => self.bad(ino, format!("is a {kind:?} and has other content")),
        }
        let xattrs = node.xattrs.iter().flat_map(|xattrs| xattrs.iter());
        let mut bytes = 0;
        let mut named = true;
        for (name, value) in xattrs {
            bytes += name.len() + value.len();
            named &= !name.is_empty() && !name.contains(&0);
        }
        if bytes > XATTRS_BYTES_MAX {
            self.bad(ino, format!("has {bytes} bytes of extended attributes"));
        }
        if !named {
            self.bad(ino, "has an extended attribute without a proper name");
        }
    }

    fn file(&mut self, ino: Ino, size: u64, extents: &Extents) {
        if size > FILE_BYTES_MAX {
            self.bad(ino, format!("has {size} bytes"));
        }
        for (start, extent) in extents.iter() {
            // Their order, and that they do not overlap, is what decoding them has verified.
            let end = start.saturating_add(extent.len);
            if end > size {
                self.bad(ino, format!("has {size} bytes and data up to byte {end}"));
            }
            match &extent.source {
                // The checksum of the record was right.
                Source::Fresh(_) => {}
                Source::Chunk(id, offset) => {
                    self.chunk(ino, *id, u64::from(*offset).saturating_add(extent.len));
                }
                Source::Base(from, offset) => {
                    let end = offset.saturating_add(extent.len);
                    match self.in_base(*from) {
                        InBase::Is(NodeKind::File, size) if size.is_none_or(|size| end <= size) => {}
                        InBase::Is(NodeKind::File, _) => self.bad(
                            ino,
                            format!("has bytes up to {end} of inode {from} of the base, which ends before"),
                        ),
                        InBase::Unknown => {}
                        _ => self.bad(ino, format!("has bytes of {from}, which is no file of the base")),
                    }
                }
            }
        }
    }

    /// A file has bytes of a chunk up to `end`.
    fn chunk(&mut self, ino: Ino, id: ChunkId, end: u64) {
        let object = Object::Chunk(id);
        let found = self.changed.snapshot.get(Table::Chunks, id.as_bytes(), |value| {
            Ok(u64::from(Place::decode(&object, value)?.raw_len))
        });
        match found {
            Ok(Some(len)) if end <= len => {}
            Ok(Some(len)) => {
                self.bad(ino, format!("has bytes up to {end} of chunk {id}, which has {len}"));
            }
            Ok(None) => {
                let branch = self.changed.name.clone();
                (self.find)(Finding::LostBytes { branch, ino, chunk: id });
            }
            // The entry was reported when the tables were read.
            Err(_) => {}
        }
    }
}

/// Which names lead to the changed inodes.
struct Names<'a> {
    base: &'a Base,
    /// The directories that name an inode, once for each name that the branch has added.
    added: HashMap<Ino, Vec<Ino>>,
    /// The directory in which a changed inode still has the name that the base gives it.
    kept: HashMap<Ino, Ino>,
}

impl<'a> Names<'a> {
    fn of(changed: &Changed, base: &'a Base) -> Result<Self> {
        let mut names = Self { base, added: HashMap::new(), kept: HashMap::new() };
        for (dir, directory) in directories(changed) {
            for (_, _, ino) in directory.added_from(0) {
                names.added.entry(ino).or_default().push(dir);
            }
        }
        for (ino, _) in changed.overlay.nodes() {
            if let Some(dir) = names.base_name(changed, ino)? {
                names.kept.insert(ino, dir);
            }
        }
        Ok(names)
    }

    /// The directory in which `ino` is still seen under the name that the base gives it.
    fn base_name(&self, changed: &Changed, ino: Ino) -> Result<Option<Ino>> {
        let directory = |dir| changed.overlay.directory(dir);
        if ino == Ino::GIT_FILE {
            let root = directory(Ino::ROOT);
            let changed = root.is_some_and(|root| root.find(GIT_FILE_NAME).is_some());
            return Ok((!changed).then_some(Ino::ROOT));
        }
        // A directory that is not changed has the name that the base gives it, or is gone with one
        // above it. So the way up ends at the first that is changed, or at the root.
        let mut at = ino;
        let mut first = None;
        while !at.is_new() {
            let (dir, name) = match self.base.locate(at) {
                Ok(Location::Entry(dir, index)) => (dir.ino(), dir.entry(index).name),
                Ok(Location::Root(_)) => return Ok(first),
                Err(Error::NoInode(_)) => return Ok(None),
                Err(error) => return Err(error),
            };
            first.get_or_insert(dir);
            if let Some(directory) = directory(dir) {
                return Ok(first.filter(|_| directory.find(name).is_none()));
            }
            at = dir;
        }
        Ok(None)
    }

    fn check(&self, changed: &Changed, check: &mut Check<'_>) -> Result<()> {
        for (dir, directory) in directories(changed) {
            self.entries(changed, dir, directory, check)?;
        }
        let mut strays: HashMap<Ino, usize> = HashMap::new();
        changed.strays.iter().for_each(|ino| *strays.entry(*ino).or_default() += 1);
        for (ino, node) in changed.overlay.nodes() {
            let strays = strays.get(&ino).copied().unwrap_or(0);
            match &node.body {
                Body::Directory(directory) => {
                    self.directory(ino, node, directory, strays, check)?
                }
                _ => {
                    let added = self.added.get(&ino).map_or(0, Vec::len);
                    let names = added + usize::from(self.kept.contains_key(&ino)) + strays;
                    links(ino, node, u32::try_from(names).unwrap_or(u32::MAX), check);
                }
            }
        }
        self.loops(changed, check)
    }

    /// Each name of a directory by itself, and that it leads somewhere.
    fn entries(
        &self,
        changed: &Changed,
        dir: Ino,
        directory: &Directory,
        check: &mut Check<'_>,
    ) -> Result<()> {
        for (_, name, ino) in directory.added_from(0) {
            let improper = name.is_empty()
                || name.len() > NAME_BYTES_MAX
                || matches!(name, b"." | b"..")
                || name.iter().any(|byte| matches!(byte, b'/' | 0));
            if improper {
                (check.find)(changed.bad_name(dir, name, "is not a name".into()));
            }
            if changed.overlay.node(ino).is_none() {
                let why = format!("is inode {ino}, which is missing");
                (check.find)(changed.bad_name(dir, name, why));
            }
        }
        let object = self.object(dir)?;
        for name in directory.hidden() {
            let is_git_file = dir == Ino::ROOT && name == GIT_FILE_NAME;
            let hides = object.is_some_and(|object| object.tree().find(name).is_some());
            if !hides && !is_git_file {
                let why = "is hidden, and the base has no such name".into();
                (check.find)(changed.bad_name(dir, name, why));
            }
        }
        Ok(())
    }

    /// A changed directory: its one name, the directory above it, its link count.
    fn directory(
        &self,
        ino: Ino,
        node: &Node,
        directory: &Directory,
        strays: usize,
        check: &mut Check<'_>,
    ) -> Result<()> {
        let changed = check.changed;
        let object = self.object(ino)?;
        let mut kept = object.map_or(0, |object| object.tree().subtree(object.id()).subdirectories);
        let mut seen = object.map_or(0, |object| object.tree().len());
        let mut added = 0_u32;
        let hidden: HashSet<&[u8]> = directory.hidden().collect();
        let names = directory.added_from(0).map(|(_, name, _)| name);
        for name in names.filter(|name| !hidden.contains(name)).chain(hidden.iter().copied()) {
            let found = object.and_then(|object| Some(object.entry(object.tree().find(name)?)));
            if let Some(entry) = found {
                kept -= u32::from(entry.kind.is_directory());
                seen -= 1;
            }
        }
        for (_, _, child) in directory.added_from(0) {
            let child = changed.overlay.node(child);
            added += u32::from(child.is_some_and(|child| child.inode.kind == NodeKind::Directory));
        }
        let mut above = self.added.get(&ino).cloned().unwrap_or_default();
        above.extend(self.kept.get(&ino));
        match above.as_slice() {
            [] if ino == Ino::ROOT || strays > 0 => {}
            [] if node.inode.nlink == 0 => {
                if seen + directory.added() > 0 {
                    check.bad(ino, "is removed and has entries");
                }
                return Ok(());
            }
            [] => check.bad(ino, "is a directory without a name"),
            [only] if *only == node.inode.parent => {}
            [only] => {
                let stated = node.inode.parent;
                check.bad(ino, format!("is in directory {only} and states {stated} above it"));
            }
            several => check.bad(ino, format!("is a directory with {} names", several.len())),
        }
        links(ino, node, 2 + kept + added, check);
        Ok(())
    }

    /// That every changed directory is below the root.
    fn loops(&self, changed: &Changed, check: &mut Check<'_>) -> Result<()> {
        let mut done = HashSet::from([Ino::ROOT]);
        for (start, _) in directories(changed) {
            let mut path = Vec::new();
            let mut on_path = HashSet::new();
            let mut at = Some(start);
            while let Some(ino) = at.filter(|ino| !done.contains(ino)) {
                if !on_path.insert(ino) {
                    let from = path.iter().position(|other| *other == ino).unwrap_or(0);
                    let lowest = path[from..].iter().min().copied().unwrap_or(ino);
                    check.bad(lowest, "is a directory within itself");
                    break;
                }
                path.push(ino);
                at = match (self.added.get(&ino), self.kept.get(&ino)) {
                    (Some(dirs), _) => dirs.first().copied(),
                    (None, Some(dir)) => Some(*dir),
                    // Nothing is known of it but that the base has it.
                    (None, None) if changed.overlay.node(ino).is_none() && !ino.is_new() => {
                        Some(self.base.parent(ino)?)
                    }
                    (None, None) => None,
                };
            }
            done.extend(path);
        }
        Ok(())
    }

    /// The directory of the base that has this number.
    fn object(&self, ino: Ino) -> Result<Option<crate::base::Dir<'a>>> {
        if ino.is_new() {
            return Ok(None);
        }
        match self.base.directory(ino) {
            Ok(dir) => Ok(dir),
            // Reported with the inode.
            Err(Error::NoInode(_) | Error::NotDirectory(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn directories(changed: &Changed) -> impl Iterator<Item = (Ino, &Directory)> {
    changed.overlay.nodes().filter_map(|(ino, node)| match &node.body {
        Body::Directory(directory) => Some((ino, &**directory)),
        _ => None,
    })
}

fn links(ino: Ino, node: &Node, found: u32, check: &mut Check<'_>) {
    let stated = node.inode.nlink;
    if stated != found {
        let branch = check.changed.name.clone();
        (check.find)(Finding::WrongLinks { branch, ino, stated, found });
    }
}

//! What a directory shows.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::model::{Model, Node};
use super::op::ATTRIBUTE;

/// Everything below a directory, by name.
pub(super) struct View {
    nodes: BTreeMap<String, Seen>,
}

#[derive(Clone, PartialEq, Eq)]
enum Seen {
    /// Mode and number of links.
    Directory(u32, u64),
    Link(String),
    File(Box<SeenFile>),
}

#[derive(Clone, PartialEq, Eq)]
struct SeenFile {
    bytes: Vec<u8>,
    mode: u32,
    attribute: Option<Vec<u8>>,
    modified: Option<i64>,
    links: u64,
    /// The first of its names.
    first: String,
}

impl View {
    /// What is below `dir`.
    ///
    /// # Panics
    /// If it cannot be read, or if two system calls say different things of one entry.
    pub(super) fn of_directory(dir: &Path) -> Self {
        let mut nodes = BTreeMap::new();
        let mut inodes: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        let mut pending = vec![String::new()];
        while let Some(parent) = pending.pop() {
            let listed = fs::read_dir(dir.join(&parent));
            for entry in listed.unwrap_or_else(|error| panic!("list {parent:?}: {error}")) {
                let entry = entry.unwrap_or_else(|error| panic!("list {parent:?}: {error}"));
                let leaf = entry.file_name().into_string().expect("a plain name");
                let name = if parent.is_empty() { leaf } else { format!("{parent}/{leaf}") };
                let seen = see(&entry.path());
                match &seen {
                    Seen::Directory(..) => pending.push(name.clone()),
                    Seen::File(_) => {
                        inodes.entry(entry_ino(&entry)).or_default().push(name.clone())
                    }
                    Seen::Link(_) => {}
                }
                assert!(nodes.insert(name.clone(), seen).is_none(), "{name} is listed twice");
            }
        }
        for names in inodes.into_values() {
            let first = names.iter().min().expect("a file has a name").clone();
            for name in names {
                if let Some(Seen::File(file)) = nodes.get_mut(&name) {
                    file.first.clone_from(&first);
                }
            }
        }
        Self { nodes }
    }

    /// The bytes of the file `name`.
    pub(super) fn bytes_of(&self, name: &str) -> Option<&[u8]> {
        match self.nodes.get(name)? {
            Seen::File(file) => Some(&file.bytes),
            _ => None,
        }
    }

    /// The first difference from what `model` says.
    pub(super) fn difference(&self, model: &Model) -> Option<String> {
        let mut expected = expected(model);
        for (name, seen) in &self.nodes {
            let Some(expected) = expected.remove(name) else {
                return Some(format!("{name} is there"));
            };
            if let Some(what) = differs(seen, &expected) {
                return Some(format!("{name}: {what}"));
            }
        }
        expected.into_keys().next().map(|name| format!("{name} is missing"))
    }
}

fn entry_ino(entry: &fs::DirEntry) -> u64 {
    use std::os::unix::fs::DirEntryExt;
    let ino = entry.metadata().map(|metadata| metadata.ino()).expect("its attributes");
    assert_eq!(ino, entry.ino(), "stat and the listing of {:?}", entry.path());
    ino
}

fn see(path: &Path) -> Seen {
    let failed = |error| panic!("{}: {error}", path.display());
    let metadata = fs::symlink_metadata(path).unwrap_or_else(failed);
    if metadata.is_dir() {
        return Seen::Directory(metadata.mode() & 0o7777, metadata.nlink());
    }
    if metadata.is_symlink() {
        let target = fs::read_link(path).unwrap_or_else(|error| panic!("{error}"));
        return Seen::Link(target.display().to_string());
    }
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(bytes.len() as u64, metadata.len(), "the size of {}", path.display());
    let mut value = vec![0; 256];
    let attribute = match rustix::fs::getxattr(path, ATTRIBUTE, &mut value[..]) {
        Ok(len) => Some(value[..len].to_vec()),
        Err(rustix::io::Errno::NODATA) => None,
        Err(error) => panic!("{}: {error}", path.display()),
    };
    Seen::File(Box::new(SeenFile {
        bytes,
        mode: metadata.mode() & 0o7777,
        attribute,
        modified: Some(metadata.mtime()),
        links: metadata.nlink(),
        first: String::new(),
    }))
}

fn expected(model: &Model) -> BTreeMap<String, Seen> {
    let mut names: BTreeMap<u64, Vec<&String>> = BTreeMap::new();
    for (name, node) in &model.nodes {
        if let Some(file) = node.file() {
            names.entry(file).or_default().push(name);
        }
    }
    let subdirectories = |dir: &str| {
        let is_in = |name: &String| name.rsplit_once('/').is_some_and(|(parent, _)| parent == dir);
        let inside =
            |(name, node): &(&String, &Node)| matches!(node, Node::Directory(_)) && is_in(name);
        model.nodes.iter().filter(inside).count() as u64
    };
    let see = |name: &String, node: &Node| match node {
        Node::Directory(mode) => Seen::Directory(*mode, 2 + subdirectories(name)),
        Node::Link(target) => Seen::Link(target.clone()),
        Node::File(file) => {
            let (state, names) = (&model.files[file], &names[file]);
            Seen::File(Box::new(SeenFile {
                bytes: state.bytes.clone(),
                mode: state.mode,
                attribute: state.attribute.clone(),
                modified: state.modified,
                links: names.len() as u64,
                first: names[0].clone(),
            }))
        }
    };
    model.nodes.iter().map(|(name, node)| (name.clone(), see(name, node))).collect()
}

fn differs(seen: &Seen, expected: &Seen) -> Option<String> {
    let (Seen::File(seen), Seen::File(expected)) = (seen, expected) else {
        return (seen != expected).then(|| "another kind, mode, target or number of links".into());
    };
    if seen.bytes != expected.bytes {
        let equal =
            seen.bytes.iter().zip(&expected.bytes).take_while(|(left, right)| left == right);
        let (at, is, was) = (equal.count(), seen.bytes.len(), expected.bytes.len());
        return Some(format!("{is} bytes instead of {was}, the first wrong one at {at}"));
    }
    if (seen.mode, seen.links) != (expected.mode, expected.links) {
        let (is, was) = ((seen.mode, seen.links), (expected.mode, expected.links));
        return Some(format!("mode and links {is:?} instead of {was:?}"));
    }
    if seen.attribute != expected.attribute {
        return Some("another extended attribute".into());
    }
    if seen.first != expected.first {
        return Some(format!("the file is {} and not {}", seen.first, expected.first));
    }
    let wrong = expected.modified.is_some() && seen.modified != expected.modified;
    wrong.then(|| format!("modified at {:?} instead of {:?}", seen.modified, expected.modified))
}

#[cfg(test)]
impl View {
    /// A file of at least `len` bytes with one name, whose time was set.
    pub(super) fn file_of(&self, len: usize) -> Option<&String> {
        let fits = |seen: &Seen| match seen {
            Seen::File(file) => file.links == 1 && file.bytes.len() >= len,
            _ => false,
        };
        self.nodes.iter().find(|(_, seen)| fits(seen)).map(|(name, _)| name)
    }

    /// How many directories, links, files, names of files with several, and files with the attribute.
    pub(super) fn kinds(&self) -> [usize; 5] {
        let count =
            |is: &dyn Fn(&Seen) -> bool| self.nodes.values().filter(|seen| is(seen)).count();
        let file =
            |is: fn(&SeenFile) -> bool| count(&|seen| matches!(seen, Seen::File(file) if is(file)));
        [
            count(&|seen| matches!(seen, Seen::Directory(..))),
            count(&|seen| matches!(seen, Seen::Link(_))),
            file(|_| true),
            file(|file| file.links > 1),
            file(|file| file.attribute.is_some()),
        ]
    }
}

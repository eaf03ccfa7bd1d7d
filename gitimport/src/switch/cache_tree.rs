//! The cache-tree of an index: which directories are, entry for entry, a tree that git has (gitformat-index(5)).

use std::collections::BTreeMap;
use std::io::Write;

use agentfs_engine::{GitOid, HashKind};

use super::trees::Differences;

/// How deep directories lie that are read here.
const DEPTH_MAX: usize = 512;

/// Directories by their paths, with a slash at the end of each but the root's, which is empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct CacheTree(BTreeMap<Vec<u8>, Option<Known>>);

/// A directory whose entries are those of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    /// Entries of the index below it.
    count: u32,
    oid: GitOid,
}

/// A directory that is being read.
struct Open {
    path: Vec<u8>,
    /// Directories in it that follow.
    left: usize,
}

impl CacheTree {
    /// Reads the body of the extension; `None` if it is none, or deeper than is read here.
    pub(super) fn parse(mut body: &[u8], hash: HashKind) -> Option<Self> {
        let mut all = BTreeMap::new();
        let mut open: Vec<Open> = Vec::new();
        loop {
            let name = until(&mut body, 0)?;
            let count: i64 = number(until(&mut body, b' ')?)?;
            let left = usize::try_from(number(until(&mut body, b'\n')?)?).ok()?;
            let path = match open.last_mut() {
                None if name.is_empty() => Vec::new(),
                Some(above) if !name.is_empty() && !name.contains(&b'/') => {
                    above.left -= 1;
                    [&above.path[..], name, b"/"].concat()
                }
                _ => return None,
            };
            let known = match u32::try_from(count) {
                Err(_) => None,
                Ok(count) => {
                    let (oid, rest) = body.split_at_checked(hash.len())?;
                    body = rest;
                    Some(Known { count, oid: GitOid::from_slice(hash, oid)? })
                }
            };
            if all.insert(path.clone(), known).is_some() || open.len() > DEPTH_MAX {
                return None;
            }
            open.push(Open { path, left });
            while open.last().is_some_and(|open| open.left == 0) {
                open.pop();
            }
            if open.is_empty() {
                break;
            }
        }
        body.is_empty().then_some(Self(all))
    }

    /// What it is of an index that is moved by `differences`. `before` and `after` say how many entries the index
    /// has below a directory.
    pub(super) fn moved(
        mut self,
        differences: &Differences,
        before: impl Fn(&[u8]) -> usize,
        after: impl Fn(&[u8]) -> usize,
    ) -> Self {
        // From the root on, so that what is added has something above it.
        for (path, (from, to)) in &differences.directories {
            let known = self.0.get(path).copied();
            let count = || u32::try_from(after(path)).ok();
            // What was a tree of the one commit, entry for entry, is that of the other now.
            let now = |to: &GitOid| count().map(|count| Known { count, oid: *to });
            match (from, to, known) {
                (_, None, Some(_)) if after(path) == 0 => drop(self.0.remove(path)),
                (Some(from), Some(to), Some(Some(known))) if known.oid == *from => {
                    self.0.insert(path.clone(), now(to));
                }
                (None, Some(to), None) if before(path) == 0 && self.has_above(path) => {
                    self.0.insert(path.clone(), now(to));
                }
                (_, _, Some(_)) => drop(self.0.insert(path.clone(), None)),
                (_, _, None) => {}
            }
        }
        self
    }

    fn has_above(&self, path: &[u8]) -> bool {
        self.0.contains_key(above(path))
    }

    /// The body of the extension.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut children: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
        for path in self.0.keys().filter(|path| !path.is_empty()) {
            children.entry(above(path)).or_default().push(path);
        }
        for children in children.values_mut() {
            // In the order of git: shorter names first.
            children.sort_unstable_by_key(|path| (path.len(), *path));
        }
        let mut body = Vec::new();
        let mut pending: Vec<&[u8]> = vec![b""];
        while let Some(path) = pending.pop() {
            let name = &path[above(path).len()..];
            body.extend_from_slice(name.strip_suffix(b"/").unwrap_or(name));
            body.push(0);
            let below = children.get(path).map_or(&[][..], Vec::as_slice);
            let known = self.0.get(path).copied().flatten();
            let count = known.map_or(-1, |known| i64::from(known.count));
            // Memory takes all that is written to it.
            let _ = writeln!(body, "{count} {}", below.len());
            if let Some(known) = known {
                body.extend_from_slice(known.oid.as_bytes());
            }
            pending.extend(below.iter().rev());
        }
        body
    }
}

/// The path of the directory in which a path is, both with a slash at the end if they are directories.
pub(super) fn above(path: &[u8]) -> &[u8] {
    let name = path.strip_suffix(b"/").unwrap_or(path);
    let end = name.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    &path[..end]
}

/// What stands before the next `end`, which is taken too.
fn until<'a>(bytes: &mut &'a [u8], end: u8) -> Option<&'a [u8]> {
    let at = bytes.iter().position(|byte| *byte == end)?;
    let (text, rest) = bytes.split_at(at);
    *bytes = &rest[1..];
    Some(text)
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

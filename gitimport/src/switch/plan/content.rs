//! What of the files themselves a plan asks: whether they are what their entries say, and whether they are in the way.

use std::collections::BTreeSet;

use agentfs_engine::worktree::NodeKind;

use super::{LINK, Moved, Step};
use crate::error::Result;
use crate::index_entries::IndexEntry;
use crate::object::{Kind, object_id};
use crate::racy;
use crate::transport;

impl Moved<'_> {
    /// Those of `doubtful` whose content is not that of their entries.
    pub(super) fn different(
        &self,
        doubtful: Vec<(IndexEntry, Step)>,
    ) -> Result<Vec<(IndexEntry, Step)>> {
        let hash = self.repository.hash();
        let mut different = Vec::new();
        let (mut listed, mut apart) = (Vec::new(), Vec::new());
        for (entry, step) in doubtful {
            let path = &entry.path;
            if entry.mode == LINK {
                let target = step.found.and_then(|found| self.worktree.read_link(found.ino).ok());
                let oid = target.and_then(|target| object_id(hash, Kind::Blob, &target).ok());
                if oid != Some(entry.oid) {
                    different.push((entry, step));
                }
            } else if path.contains(&b'\n') || path.starts_with(b"\"") {
                apart.push((entry, step));
            } else {
                listed.push((entry, step));
            }
        }
        // In a list, one is a line.
        let mut input = Vec::new();
        for (entry, _) in &listed {
            input.extend_from_slice(&entry.path);
            input.push(b'\n');
        }
        let mut found = Vec::new();
        if !listed.is_empty() {
            found = self.hashes(&["--stdin-paths"], None, input)?;
        }
        for (entry, _) in &apart {
            found.extend(self.hashes(&["--"], Some(&entry.path), Vec::new())?);
        }
        let all = listed.into_iter().chain(apart);
        different.extend(
            all.zip(found)
                .filter(|((entry, _), found)| *found != entry.oid.to_string())
                .map(|(one, _)| one),
        );
        Ok(different)
    }

    /// What git makes of files as they are, by their paths.
    fn hashes(&self, args: &[&str], path: Option<&[u8]>, input: Vec<u8>) -> Result<Vec<String>> {
        use std::os::unix::ffi::OsStrExt;
        let mut git = transport::git();
        git.arg("hash-object").args(args).current_dir(self.dir);
        git.args(path.map(std::ffi::OsStr::from_bytes));
        let said = transport::output(&mut git, self.git_dir, "compare files", Some(input), &[0])?;
        Ok(String::from_utf8_lossy(&said).lines().map(str::to_owned).collect())
    }

    /// What is not git's and where something is to be made.
    pub(super) fn in_the_way(&self, steps: &[Step]) -> BTreeSet<Vec<u8>> {
        // A file that is tracked, and above one that is to be, is to go.
        let tracked: BTreeSet<&[u8]> =
            steps.iter().filter(|step| step.is_tracked).map(|step| &*step.path).collect();
        let mut found = BTreeSet::new();
        for step in steps.iter().filter(|step| step.oid.is_some()) {
            for (end, _) in step.path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
                let above = &step.path[..end];
                let Some(now) = racy::find(self.worktree, above) else { break };
                if now.kind != NodeKind::Directory {
                    if !tracked.contains(above) {
                        found.insert(above.to_owned());
                    }
                    break;
                }
            }
            let is_file = step.found.is_some_and(|found| found.kind != NodeKind::Directory);
            if is_file && !step.is_tracked {
                found.insert(step.path.clone());
            }
        }
        found
    }

    /// Those of `paths` that git is not told to ignore.
    pub(super) fn not_ignored(&self, paths: &BTreeSet<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let mut git = transport::git();
        git.args(["check-ignore", "-z", "--stdin"]).current_dir(self.dir);
        let mut input = Vec::new();
        for path in paths {
            input.extend_from_slice(path);
            input.push(0);
        }
        // 1: none is.
        let said =
            transport::output(&mut git, self.git_dir, "see what is ignored", Some(input), &[0, 1])?;
        let ignored: BTreeSet<&[u8]> = said.split(|byte| *byte == 0).collect();
        Ok(paths.iter().filter(|path| !ignored.contains(&***path)).cloned().collect())
    }
}

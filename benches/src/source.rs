//! The repositories that are cloned: one that the user names, or generated ones. They are kept
//! between runs, beside the run directories, so that a native clone can hard-link their packs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::generate::Recipe;
use crate::process::Run;

/// A repository ready to be cloned.
pub struct Source {
    pub git_dir: PathBuf,
    pub about: About,
}

/// What a repository holds; filed with the figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    pub name: String,
    pub head: String,
    pub commits: u64,
    pub objects: u64,
    pub files: u64,
    pub directories: u64,
    pub bytes: u64,
}

/// How long git may take to copy or to look at a repository.
const LIMIT: Duration = Duration::from_secs(3600);

/// Makes sure that the repository of `recipe` is there.
pub fn generated(sources: &Path, recipe: &Recipe) -> Result<Source> {
    let git_dir = sources.join(format!("{}.git", recipe.name()));
    if !git_dir.exists() {
        recipe.build(&git_dir).with_context(|| format!("cannot generate {}", recipe.name()))?;
    }
    Source::look(git_dir)
}

/// A bare copy of the user's repository or bundle.
pub fn given(sources: &Path, origin: &Path) -> Result<Source> {
    let Some(stem) = origin.file_stem() else { bail!("{} has no name", origin.display()) };
    let listed = Run::new("git").args(["ls-remote"]).arg(origin).arg("HEAD").ok()?.text();
    let head = listed.get(..12).context("the source repository has no commit")?;
    let git_dir = sources.join(format!("{}-{head}.git", stem.to_string_lossy()));
    if !git_dir.exists() {
        let unfinished = git_dir.with_extension("unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        let clone = Run::new("git").args(["clone", "--quiet", "--bare", "--no-hardlinks"]);
        clone.arg(origin).arg(&unfinished).limit(LIMIT).ok()?;
        fs::rename(&unfinished, &git_dir)?;
    }
    Source::look(git_dir)
}

impl Source {
    fn look(git_dir: PathBuf) -> Result<Self> {
        let git = |args: &[&str]| Run::git(&git_dir).args(args).limit(LIMIT).ok();
        let listing = git(&["ls-tree", "-r", "-t", "-l", "-z", "HEAD"])?.stdout;
        let (mut files, mut directories, mut bytes) = (0, 1, 0);
        for entry in listing.split(|byte| *byte == 0).filter(|entry| !entry.is_empty()) {
            let entry = String::from_utf8_lossy(entry);
            let mut fields = entry.split_whitespace().skip(1);
            match fields.next() {
                Some("blob") => {
                    files += 1;
                    bytes += fields.nth(1).and_then(|size| size.parse::<u64>().ok()).unwrap_or(0);
                }
                Some("tree") => directories += 1,
                _ => {}
            }
        }
        let counts = git(&["count-objects", "-v"])?.text();
        let count = |name: &str| -> u64 {
            let line = counts.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        let name = git_dir.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let about = About {
            name,
            head: git(&["rev-parse", "HEAD"])?.text(),
            commits: git(&["rev-list", "--count", "HEAD"])?.text().parse()?,
            objects: count("count") + count("in-pack"),
            files,
            directories,
            bytes,
        };
        Ok(Self { git_dir, about })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_made_once_and_described() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = Recipe::Tree { files: 30, commits: 2 };
        let made = generated(dir.path(), &recipe).unwrap();
        assert_eq!((made.about.files, made.about.commits), (30, 2));
        // 3 directories of files, below one part, below one area, below the root.
        assert_eq!(made.about.directories, 6);
        assert!(made.about.bytes > 30 * 100);
        let changed = fs::metadata(&made.git_dir).unwrap().modified().unwrap();
        let again = generated(dir.path(), &recipe).unwrap();
        assert_eq!(fs::metadata(&again.git_dir).unwrap().modified().unwrap(), changed);

        let bundle = dir.path().join("own.bundle");
        Run::git(&made.git_dir)
            .args(["bundle", "create"])
            .arg(&bundle)
            .args(["HEAD", "main"])
            .ok()
            .unwrap();
        let copy = given(dir.path(), &bundle).unwrap();
        assert_eq!(copy.about.head, made.about.head);
        assert!(copy.about.name.starts_with("own-"));
    }
}

//! `agentfs diff`

use serde::Serialize;

use crate::commands::trees::{Objects, Trees};
use crate::error::{Failure, Kind, Result};
use crate::output::Output;

/// Arguments of `agentfs diff`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A branch, as it is now; a snapshot; or a revision
    a: String,
    /// What to compare it with (default: the commit that A is on, which is then the older side)
    b: Option<String>,
    #[command(flatten)]
    form: Form,
}

/// What is shown of a comparison.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub struct Form {
    /// Only how much has changed in each file
    #[arg(long)]
    stat: bool,
    /// Only which files have changed, and how
    #[arg(long)]
    name_status: bool,
    /// All of it (the default)
    #[arg(long)]
    patch: bool,
}

#[derive(Serialize)]
struct Compared {
    changes: Vec<Change>,
}

/// A file that differs.
#[derive(Serialize)]
pub struct Change {
    /// As git has it: `A`, `M`, `D`, `T`, or `R` and `C` with a percentage.
    pub status: String,
    /// Its path.
    pub path: String,
    /// What it was called before, if it was renamed or copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// Compares what branches, snapshots and revisions are now, ignored files left out.
///
/// # Errors
/// What keeps them from being read; [`Kind::Refused`] for those of two repositories.
pub fn run(args: &Args, output: Output) -> Result<u8> {
    compare(&args.a, args.b.as_deref(), &args.form, output)
}

/// The same of `a`, and of `b` if that is given.
///
/// # Errors
/// As [`run`].
pub fn compare(first: &str, second: Option<&str>, form: &Form, output: Output) -> Result<u8> {
    let trees = Trees::new(Objects::Passing)?;
    let a = trees.see(first, output)?;
    let (old, new) = match second {
        Some(b) => {
            let b = trees.see(b, output)?;
            if b.common_dir != a.common_dir {
                return Err(Failure::new(
                    Kind::Refused,
                    format!("{first} and {} are of two repositories", b.repository),
                ));
            }
            (a.tree.clone(), b.tree)
        }
        None => {
            let commit = a.commit.as_deref().map(|commit| format!("{commit}^{{tree}}"));
            (commit.map_or_else(|| trees.empty_tree(&a.common_dir), Ok)?, a.tree.clone())
        }
    };
    if output.json {
        let listed = trees.text(&a.common_dir, ["diff", "--name-status", "-z", &old, &new])?;
        return output.result(&Compared { changes: changes(&listed) }, |_| Ok(())).map(|()| 0);
    }
    let form = match form {
        Form { stat: true, .. } => "--stat",
        Form { name_status: true, .. } => "--name-status",
        _ => "--patch",
    };
    let status = trees.git(&a.common_dir).args(["diff", form, &old, &new]).status();
    let status =
        status.map_err(|error| Failure::new(Kind::Failed, format!("cannot run git: {error}")))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// The records of `git diff --name-status -z`.
pub fn changes(listed: &str) -> Vec<Change> {
    let mut fields = listed.split('\0').filter(|field| !field.is_empty());
    let mut changes = Vec::new();
    while let (Some(status), Some(path)) = (fields.next(), fields.next()) {
        let moved = status.starts_with(['R', 'C']);
        let (from, path) = match moved.then(|| fields.next()).flatten() {
            Some(to) => (Some(path.to_owned()), to),
            None => (None, path),
        };
        changes.push(Change { status: status.into(), path: path.into(), from });
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_record_is_one_change() {
        let found = changes("M\0a b\0R087\0old\0new\0D\0gone\0");
        let shown: Vec<_> = found
            .iter()
            .map(|one| (one.status.as_str(), one.path.as_str(), one.from.as_deref()))
            .collect();
        assert_eq!(shown, [("M", "a b", None), ("R087", "new", Some("old")), ("D", "gone", None)]);
        assert!(changes("").is_empty());
    }
}

//! Landlock: what holds even for root, who could undo mounts.
//!
//! A command that is restricted by it cannot change mounts at all, and opens nothing for writing
//! that is not named, device files included. Reading, executing, the network and sockets are left
//! alone. It is used from version 3 of its interface on (Linux 6.2): earlier ones do not restrict
//! truncation, so a kernel without it is left with the read-only mounts alone, and `--verbose` says
//! so.

use std::path::Path;

use landlock::{
    ABI, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
};

use crate::error::{Failure, Kind, Result};
use crate::exec::{Isolation, PRIVATE, kernel};

/// The interface whose rights are asked for: all of them, or an error.
const RIGHTS: ABI = ABI::V3;

/// Devices that hold nothing, and terminals.
const DEVICES: [&str; 8] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/pts",
];

/// The version of the interface, if it is used.
pub fn abi() -> Option<i32> {
    kernel::landlock_version().filter(|version| *version >= RIGHTS as i32)
}

/// Restricts this thread, and what it starts, to writing below `worktree`, in private directories
/// and to what `isolation` names. It cannot be undone.
///
/// # Errors
/// What the kernel refuses.
pub fn restrict(worktree: &Path, isolation: &Isolation) -> Result<()> {
    let named = isolation.writable.iter().map(|path| path.0.as_path());
    let usual = PRIVATE.into_iter().chain(DEVICES).map(Path::new).filter(|path| path.exists());
    let paths = [worktree].into_iter().chain(named).chain(usual);
    let status = enforce(paths).map_err(|error| {
        Failure::new(Kind::Failed, format!("cannot restrict the command: {error}"))
    })?;
    if status.ruleset != RulesetStatus::FullyEnforced {
        return Err(Failure::new(Kind::Failed, "the kernel restricts the command in part only"));
    }
    Ok(())
}

fn enforce<'a>(
    paths: impl Iterator<Item = &'a Path>,
) -> std::result::Result<RestrictionStatus, RulesetError> {
    let writing: BitFlags<AccessFs> = AccessFs::from_write(RIGHTS);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(writing)?
        .create()?;
    for path in paths {
        // What has gone since it was named needs no rule.
        let Ok(file) = PathFd::new(path) else { continue };
        let rights = if path.is_dir() { writing } else { writing & AccessFs::from_file(RIGHTS) };
        rules = rules.add_rule(PathBeneath::new(file, rights))?;
    }
    rules.restrict_self()
}

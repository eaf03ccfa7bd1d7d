//! Whether git has a say in the changes of a repository's references, or they are files that anybody may write who keeps
//! to git's locks.

use std::path::PathBuf;

use gix::bstr::ByteSlice;

/// The hook that git runs for every change of a reference.
const HOOK: &str = "reference-transaction";

/// Whether what is configured depends on conditions, of which gix judges some otherwise than git.
pub(crate) fn is_conditional(git: &gix::Repository) -> bool {
    let config = git.config_snapshot();
    config.plumbing().sections_by_name("includeIf").is_some_and(|mut all| all.next().is_some())
}

/// Whether references are files that only their owner writes, and nothing else is concerned when one is changed: no
/// hook is to be asked.
pub(crate) fn are_plain(git: &gix::Repository) -> bool {
    let config = git.config_snapshot();
    let format = config.string("extensions.refStorage");
    format.is_none_or(|format| format == "files")
        && config.string("core.sharedRepository").is_none()
        && !is_conditional(git)
        && hooks(git).is_some_and(|hooks| hooks.join(HOOK).symlink_metadata().is_err())
}

/// Where hooks are; `None` if that depends on where git is started.
fn hooks(git: &gix::Repository) -> Option<PathBuf> {
    match git.config_snapshot().string("core.hooksPath") {
        None => Some(git.common_dir().join("hooks")),
        Some(path) => {
            let path = path.to_path().ok()?;
            path.is_absolute().then(|| path.to_owned())
        }
    }
}

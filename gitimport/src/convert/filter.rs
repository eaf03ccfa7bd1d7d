//! Filter drivers: the programs that `filter.NAME.smudge` and `filter.NAME.process` configure.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use agentfs_engine::GitOid;
use gix::bstr::{BStr, BString, ByteSlice};
use gix::filter::plumbing::Driver;
use gix::filter::plumbing::driver::apply::Context;
use gix::filter::plumbing::driver::{Operation, State};

use super::{Failure, child};
use crate::limits::CONVERTED_BYTES_MAX;

/// Runs filters. Those that stay running serve one file at a time, so there are as many of them as
/// files are converted at once.
pub(super) struct Filters {
    context: gix::command::Context,
    /// Idle ones. Leaf lock, held for a push or a pop.
    idle: Mutex<Vec<State>>,
}

impl Filters {
    pub(super) fn new(context: gix::command::Context) -> Self {
        Self { context, idle: Mutex::new(Vec::new()) }
    }

    /// The output of `driver` for `content`; `None` if it has no program for this direction.
    pub(super) fn smudge(
        &self,
        driver: &Driver,
        path: &BStr,
        oid: &GitOid,
        content: &[u8],
    ) -> Result<Option<Vec<u8>>, Failure> {
        match &driver.smudge {
            _ if driver.process.is_some() => self.smudge_by_process(driver, path, oid, content),
            Some(program) => {
                let mut command = self.shell(expanded(program.as_bstr(), path).as_bstr());
                child::pipe_through(&mut command, content).map(Some)
            }
            None => Ok(None),
        }
    }

    /// gix could run these too, but it would hold any amount of output in memory, and would not
    /// allow a program to leave input unread, as git does.
    fn shell(&self, program: &BStr) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(OsStr::from_bytes(program));
        if let Some(git_dir) = &self.context.git_dir {
            command.env("GIT_DIR", git_dir);
        }
        if let Some(worktree) = &self.context.worktree_dir {
            command.env("GIT_WORK_TREE", worktree).current_dir(worktree);
        }
        command
    }

    fn smudge_by_process(
        &self,
        driver: &Driver,
        path: &BStr,
        oid: &GitOid,
        content: &[u8],
    ) -> Result<Option<Vec<u8>>, Failure> {
        let mut state = self.idle().pop().unwrap_or_else(|| State::new(self.context.clone()));
        let blob = gix::ObjectId::try_from(oid.as_bytes()).ok();
        let context = Context { rela_path: path, ref_name: None, treeish: None, blob };
        let mut out = Vec::new();
        let ran = match state.apply(driver, &mut &*content, Operation::Smudge, context) {
            Ok(Some(output)) => {
                // A state that this leaves behind is out of step with its protocol: it is dropped.
                let mut limited = output.take(CONVERTED_BYTES_MAX + 1);
                limited.read_to_end(&mut out).map_err(|error| Failure::failed(&error))?;
                if out.len() as u64 > CONVERTED_BYTES_MAX {
                    return Err(Failure::TooLarge);
                }
                Ok(Some(out))
            }
            Ok(None) => Ok(None),
            // One that declined this file, or all further ones, is kept to remember it.
            Err(error) => Err(Failure::failed(&error)),
        };
        self.idle().push(state);
        ran
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<State>> {
        // A panic cannot leave a vector half-changed here.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The program with `%f` as the quoted path and `%%` as a percent sign.
fn expanded(program: &BStr, path: &BStr) -> BString {
    let mut out = BString::default();
    let mut rest = program.as_bytes();
    while let Some(percent) = rest.find_byte(b'%') {
        out.extend_from_slice(&rest[..percent]);
        let (text, len): (BString, usize) = match rest.get(percent + 1) {
            Some(b'f') => (gix::quote::single(path), 2),
            Some(b'%') => ("%".into(), 2),
            _ => ("%".into(), 1),
        };
        out.extend_from_slice(&text);
        rest = &rest[percent + len..];
    }
    out.extend_from_slice(rest);
    out
}

/// The driver as git sees it, where an empty program is none and `process` hides `smudge`.
pub(super) fn normalized(mut driver: Driver) -> Driver {
    if driver.process.is_some() {
        driver.smudge = None;
    }
    driver.smudge = driver.smudge.filter(|program| !program.is_empty());
    driver.process = driver.process.filter(|program| !program.is_empty());
    driver
}

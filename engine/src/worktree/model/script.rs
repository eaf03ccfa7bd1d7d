//! What recorded workloads do with a history.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::op::{New, Op, Outcome};
use super::{History, Step, steps};
use crate::check::check;
use crate::check::tests::FakeGit;
use crate::error::Result;
use crate::id::Ino;
use crate::progress::{Cancel, Silent};
use crate::testing::FaultyStorage;
use crate::worktree::fixture::{USER, noise};

/// The same `len` steps in every run, without a crash.
pub(in crate::worktree) fn fixed_steps(len: usize) -> Vec<Step> {
    let mut runner = TestRunner::deterministic();
    let longer = prop::collection::vec(steps(len), 4);
    let steps = longer.new_tree(&mut runner).expect("a strategy that rejects nothing").current();
    let steps = steps.into_iter().flatten().filter(|step| !matches!(step, Step::Crash(_)));
    steps.take(len).collect()
}

impl History {
    pub(in crate::worktree) fn storage(&self) -> &FaultyStorage {
        &self.storage
    }

    /// Makes an inode, which cannot be refused.
    ///
    /// # Errors
    /// Those of the device.
    pub(in crate::worktree) fn make(&mut self, parent: Ino, name: &str, new: New) -> Result<Ino> {
        let (caller, name) = (USER, name.into());
        let op = Op::Create { caller, parent, name, permissions: 0o755, new };
        match self.perform(&op)? {
            Some(Outcome::Attributes(made)) => Ok(made.ino),
            other => panic!("{op:?}: {other:?}"),
        }
    }

    /// Does each of `ops`, none of which can be refused.
    ///
    /// # Errors
    /// Those of the device.
    pub(in crate::worktree) fn all(&mut self, ops: impl IntoIterator<Item = Op>) -> Result<()> {
        for op in ops {
            assert!(self.perform(&op)?.is_some(), "{op:?} is refused");
        }
        Ok(())
    }

    /// What the check finds in the store.
    pub(in crate::worktree) fn check(&self) -> Result<(), String> {
        let store = self.worktree().clean.contents.store();
        let report = check(store, &FakeGit, &Silent, &Cancel::default());
        let report = report.map_err(|error| error.to_string())?;
        report.findings.first().map_or(Ok(()), |finding| Err(finding.to_string()))
    }

    /// Goes on after a crash: the store is whole, opening it again and again and draining change
    /// nothing that is seen, and it can be written.
    pub(in crate::worktree) fn goes_on(mut self) -> Result<(), String> {
        let failed = |what: &str| format!("{what} after a crash");
        self.check()?;
        self.restart().map_err(|error| format!("{}: {error}", failed("it does not open")))?;
        self.differs().map_err(|why| format!("{}: {why}", failed("replayed twice")))?;
        self.drain().map_err(|error| format!("{}: {error}", failed("it cannot be drained")))?;
        for what in ["drained", "drained and opened", "opened again"] {
            self.differs().map_err(|why| format!("{}: {why}", failed(what)))?;
            self.check()?;
            self.restart().map_err(|error| format!("{}: {error}", failed(what)))?;
        }
        let file = self.make(Ino::ROOT, "after the crash", New::File);
        let file = file.map_err(|error| format!("{}: {error}", failed("no write")))?;
        let data = noise(77, 10_000);
        let write = Op::Write { ino: file, offset: 3, data, kill_set_id: false };
        self.all([write]).map_err(|error| format!("{}: {error}", failed("no write")))?;
        self.drain().map_err(|error| format!("{}: {error}", failed("no drain")))?;
        self.restart().map_err(|error| format!("{}: {error}", failed("written and opened")))?;
        self.differs()?;
        self.check()
    }
}

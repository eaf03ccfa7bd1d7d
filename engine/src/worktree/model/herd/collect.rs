//! Garbage collections of a herd that goes on.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Herd, HerdStep, same};
use crate::check::Finding;
use crate::error::{Error, Result};
use crate::gc::{Collection, GcReport};
use crate::progress::{Cancel, Phase, Progress};
use crate::testing::FaultyStorage;
use crate::worktree::fixture::{dir, options};
use crate::worktree::{Point, Worktree};

/// Takes steps while a collection runs: a few when it begins to mark, when it has condemned, and after each
/// transaction.
struct Meanwhile<'a> {
    herd: Mutex<(&'a mut Herd, VecDeque<HerdStep>, Result<()>)>,
}

impl Meanwhile<'_> {
    fn take(&self, steps: usize) {
        // After a panic, which the test reports, nothing more is done.
        let mut state = self.herd.lock().unwrap_or_else(PoisonError::into_inner);
        let (herd, left, result) = &mut *state;
        for _ in 0..steps {
            let Some(step) = left.pop_front().filter(|_| result.is_ok()) else { return };
            *result = herd.take(&step);
        }
    }
}

impl Progress for Meanwhile<'_> {
    fn begin(&self, _: Phase, _: Option<u64>, _: Option<u64>) {
        self.take(2);
    }

    fn advance(&self, phase: Phase, _: u64, _: u64) {
        // Marking goes on in the turn of whoever writes.
        if phase != Phase::Mark {
            self.take(1);
        }
    }

    fn end(&self, _: Phase) {
        self.take(2);
    }
}

impl Herd {
    /// Collects garbage; `steps` are taken meanwhile, the rest of them afterwards.
    ///
    /// # Errors
    /// Those of the device.
    pub(in crate::worktree) fn collect(&mut self, steps: &[HerdStep]) -> Result<GcReport> {
        let store = Arc::clone(&self.store);
        let upkeep = store.upkeep();
        let begun = Collection::begin(&store, &upkeep, false)?;
        let steps = steps.iter().cloned().collect();
        let meanwhile = Meanwhile { herd: Mutex::new((self, steps, Ok(()))) };
        let report = begun.run(&meanwhile, &Cancel::default());
        meanwhile.take(usize::MAX);
        let (_, _, taken) = meanwhile.herd.into_inner().unwrap_or_else(PoisonError::into_inner);
        taken.and(report)
    }

    /// Takes `steps` while the first snapshot is viewed, and collects garbage before and after the view
    /// ends.
    ///
    /// # Panics
    /// If the view shows something else by then.
    pub(in crate::worktree) fn collect_beside_a_view(
        &mut self,
        steps: &[HerdStep],
    ) -> Result<[GcReport; 2]> {
        let (record, model) = self.snapshots[0].clone();
        let view = {
            let point = Point::of(&self.store, &self.base, &record)?;
            Worktree::at(Arc::clone(&self.base), self.contents(), options(), &point)
        };
        steps.iter().try_for_each(|step| self.take(step))?;
        let before = self.collect(&[])?;
        same(&view, &model, "a view")?;
        drop(view);
        Ok([before, self.collect(&[])?])
    }

    /// What is wrong with the store, but for what comes of that its branches, and their repository, are on no
    /// record.
    pub(in crate::worktree) fn findings(&self) -> Result<Vec<String>> {
        let git = &crate::check::tests::FakeGit;
        let silent = &crate::progress::Silent;
        let report = crate::check::check(&self.store, git, silent, &Cancel::default())?;
        let on_no_record = |finding: &&Finding| {
            matches!(
                finding,
                Finding::HeadOfNoBranch { .. }
                    | Finding::OutboxOfNoBranch { .. }
                    | Finding::LayerOfNobody { .. }
                    | Finding::Dangling { .. }
            )
        };
        let found = report.findings.iter().filter(|finding| !on_no_record(finding));
        Ok(found.map(ToString::to_string).collect())
    }

    /// The storage that a crash of the machine leaves.
    pub(in crate::worktree) fn crashed(&self, seed: u64) -> FaultyStorage {
        self.storage.after_crash(seed)
    }

    /// Folds what can be folded, as often as there is something; how many layers that has saved.
    pub(in crate::worktree) fn fold(&mut self) -> Result<u64> {
        let mut folded = 0;
        loop {
            match self.store.fold(0)? {
                0 => return Ok(folded),
                more => folded += more,
            }
            if folded > 10_000 {
                return Err(Error::corrupt(dir().display().to_string(), "folding has no end"));
            }
        }
    }
}

//! Random histories against a model, with the power failing at every sync of each.
//!
//! - A restart of the process finds every record that was acknowledged.
//! - A restart of the machine finds a prefix of them that holds everything synced.
//! - Opening once more finds the same, and what an outbox says is durable is there after any crash.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Append {
        head: u8,
        body: u16,
        pieces: u8,
    },
    Sync,
    Seal,
    /// Seal, sync, note the position as drained, trim.
    Drain,
    /// The process ends, the machine goes on.
    Restart,
    /// A sync that the device loses, and the end of the process.
    LoseSync,
    Crash {
        seed: u64,
    },
    /// Records until the device has no room, and then it has again.
    Fill {
        room: u16,
    },
}

/// Bias: mostly small records, so that a segment holds many and most histories have several
/// segments; something is unsynced most of the time; few syncs, so that the power can fail at each.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let body = prop_oneof![4 => 0..200_u16, 2 => 0..3000_u16, 1 => 4000..9000_u16];
    let step = prop_oneof![
        20 => (any::<u8>(), body, 0..4_u8)
            .prop_map(|(head, body, pieces)| Step::Append { head, body, pieces }),
        3 => Just(Step::Sync),
        2 => Just(Step::Seal),
        2 => Just(Step::Drain),
        1 => Just(Step::Restart),
        1 => Just(Step::LoseSync),
        2 => (0..50_u64).prop_map(|seed| Step::Crash { seed }),
        1 => (0..5000_u16).prop_map(|room| Step::Fill { room }),
    ];
    prop::collection::vec(step, 1..40)
}

#[derive(Default)]
struct Model {
    /// What was acknowledged, from record 1 on.
    records: Vec<(Vec<u8>, Vec<u8>)>,
    synced: u64,
    drained: u64,
}

impl Model {
    fn last(&self) -> u64 {
        self.records.len() as u64
    }

    /// The next record. Its content depends on all that went before, so that a record of another
    /// life is not taken for it.
    fn next(&self, salt: u64, head: u8, body: u16) -> (Vec<u8>, Vec<u8>) {
        let seed = salt << 32 | self.last();
        let noise = crate::check::tests::noise(seed, usize::from(head) + usize::from(body));
        let (head, body) = noise.split_at(usize::from(head));
        (head.to_vec(), body.to_vec())
    }

    /// Opens the outbox and compares; `last` is what it must hold at least.
    fn open(&self, storage: &FaultyStorage, last: u64) -> Result<Arc<Outbox>, String> {
        let (outbox, found) = match open_after(storage, self.drained) {
            Ok(opened) => opened,
            Err(_) if storage.has_failed() => return Err("the power is gone".into()),
            Err(error) => return Err(error.to_string()),
        };
        if outbox.last().0 < last.max(self.drained) {
            return Err(format!("records from {} to {last} are lost", outbox.last().next()));
        }
        if outbox.last().0 > self.last() {
            return Err(format!("record {} was never acknowledged", outbox.last()));
        }
        if found.len() as u64 != outbox.last().0 - self.drained {
            return Err(format!("{} records up to {}", found.len(), outbox.last()));
        }
        for (number, head, body) in found {
            let expected = &self.records[number as usize - 1];
            if (&head, &body) != (&expected.0, &expected.1) {
                return Err(format!("record {number} is another"));
            }
        }
        if outbox.durable().0 < self.drained || outbox.durable() > outbox.last() {
            return Err(format!("record {} is said to be durable", outbox.durable()));
        }
        Ok(outbox)
    }

    /// What must hold after a crash with `seed`; the storage and the outbox that follow.
    fn crash(
        &self,
        storage: &FaultyStorage,
        seed: u64,
    ) -> Result<(FaultyStorage, Arc<Outbox>), String> {
        let crashed = storage.after_crash(seed);
        let outbox = self.open(&crashed, self.synced)?;
        let (last, durable) = (outbox.last(), outbox.durable());
        drop(outbox);
        self.open(&crashed.after_crash(0), durable.0)?;
        let again = self.open(&crashed, last.0)?;
        if again.last() != last {
            return Err(format!("it ended with record {last} at first, then {}", again.last()));
        }
        Ok((crashed, again))
    }
}

/// A run of a history, up to the sync at which the power fails.
struct Run {
    storage: FaultyStorage,
    outbox: Arc<Outbox>,
    model: Model,
    /// Syncs of the storages before the last crash.
    syncs: u64,
    power_fails_at: Option<u64>,
    ignored: Option<&'static str>,
}

impl Run {
    fn new(power_fails_at: Option<u64>, ignored: Option<&'static str>) -> Self {
        let storage = FaultyStorage::new();
        let (outbox, _) = open(&storage);
        let model = Model::default();
        let run = Self { storage, outbox, model, syncs: 0, power_fails_at, ignored };
        run.prepare();
        run
    }

    fn prepare(&self) {
        if let Some(sync) = self.power_fails_at.and_then(|sync| sync.checked_sub(self.syncs)) {
            self.storage.fail_at(sync);
        }
        if let Some(suffix) = self.ignored {
            self.storage.ignore_syncs_of(suffix);
        }
    }

    fn sync(&mut self) -> Result<(), Error> {
        self.outbox.sync(self.outbox.last())?;
        self.model.synced = self.outbox.last().0;
        Ok(())
    }

    fn append(&mut self, salt: u64, head: u8, body: u16, pieces: u8) -> Result<(), Error> {
        let (head, body) = self.model.next(salt, head, body);
        let size = body.len() / usize::from(pieces).max(1) + 1;
        let pieces: Vec<&[u8]> = body.chunks(size).collect();
        let appended = self.outbox.append(&head, &pieces)?;
        let mut written = vec![0; body.len()];
        appended.body.read(&mut written)?;
        assert_eq!(written, body);
        self.model.records.push((head, body));
        assert_eq!(appended.sequence.0, self.model.last());
        Ok(())
    }

    /// Runs the steps; `Ok(false)` if the power failed.
    fn run(&mut self, steps: &[Step]) -> Result<bool, String> {
        for (salt, step) in steps.iter().enumerate() {
            if let Err(error) = self.step(salt as u64, step)? {
                let failed = self.storage.has_failed();
                return if failed { Ok(false) } else { Err(format!("{step:?}: {error}")) };
            }
        }
        Ok(!self.storage.has_failed())
    }

    fn step(&mut self, salt: u64, step: &Step) -> Result<Result<(), Error>, String> {
        let done = match *step {
            Step::Append { head, body, pieces } => self.append(salt, head, body, pieces),
            Step::Sync => self.sync(),
            Step::Seal => self.outbox.seal().map(drop),
            Step::Drain => self.drain(),
            Step::Restart => {
                self.outbox = self.model.open(&self.storage, self.model.last())?;
                Ok(())
            }
            Step::LoseSync => {
                self.storage.lose_at(self.storage.syncs());
                let lost = self.outbox.sync(self.outbox.last());
                self.storage.lose_at(u64::MAX);
                if self.storage.has_failed() {
                    return Ok(lost);
                }
                self.outbox = self.model.open(&self.storage, self.model.last())?;
                Ok(())
            }
            Step::Crash { seed } => {
                let (storage, outbox) = self.model.crash(&self.storage, seed)?;
                self.model.records.truncate(outbox.last().0 as usize);
                self.syncs += self.storage.syncs();
                (self.storage, self.outbox) = (storage, outbox);
                self.prepare();
                Ok(())
            }
            Step::Fill { room } => {
                self.storage.set_room(Some(room.into()));
                let full =
                    (0..30).find_map(|turn| self.append(salt + (turn << 20), 9, 500, 1).err());
                self.storage.set_room(None);
                match full {
                    Some(error) if !error.is_full() => Err(error),
                    _ => Ok(()),
                }
            }
        };
        Ok(done)
    }

    fn drain(&mut self) -> Result<(), Error> {
        let sealed = self.outbox.seal()?;
        self.sync()?;
        self.model.drained = sealed.0;
        self.outbox.trim(sealed)
    }
}

/// Runs a history whole, and then with the power failing at each of its syncs.
fn check(steps: &[Step], ignored: Option<&'static str>) -> Result<(), String> {
    let mut whole = Run::new(None, ignored);
    whole.run(steps)?;
    let syncs = whole.syncs + whole.storage.syncs();
    for seed in 0..4 {
        whole.model.crash(&whole.storage, seed)?;
    }
    for sync in 0..syncs {
        for seed in 0..6 {
            let mut run = Run::new(Some(sync), ignored);
            if run.run(steps)? {
                return Err(format!("sync {sync} was not made"));
            }
            run.model
                .crash(&run.storage, seed)
                .map_err(|why| format!("power failed at sync {sync}, seed {seed}: {why}"))?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(Config::with_cases(150))]
    #[test]
    fn an_outbox_does_what_its_model_does(steps in steps()) {
        if let Err(why) = check(&steps, None) {
            return Err(TestCaseError::fail(why));
        }
    }
}

/// That the test above can fail: a sync that does nothing is found, of the segments and of the
/// directory alike.
#[test]
fn a_sync_that_does_nothing_is_noticed() {
    for ignored in [".obx", "/outbox/7"] {
        let config = Config {
            cases: 50,
            max_shrink_iters: 0,
            failure_persistence: None,
            ..Config::default()
        };
        let mut runner = TestRunner::new(config);
        let verdict =
            runner.run(&steps(), |steps| check(&steps, Some(ignored)).map_err(TestCaseError::fail));
        let error = verdict.expect_err("it passes with a sync that does nothing").to_string();
        // Where something else that was written states it, what is lost is damage already.
        assert!(error.contains("are lost") || error.contains("was durable"), "{error}");
    }
}

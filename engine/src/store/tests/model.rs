//! Random histories against a model: batches committed and abandoned, items sent to the background
//! writer, the store closed and opened, the power cut.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::*;
use crate::check::check;
use crate::check::tests::FakeGit;
use crate::content::PreparedContent;
use crate::progress::{Cancel, Silent};

#[derive(Clone, Debug)]
enum Step {
    Batch { files: Vec<u8>, branch: u8, time: i64, commit: bool },
    Remove { branch: u8 },
    Send { files: Vec<u8>, flush: bool },
    Heal { file: u8 },
    Reopen,
    Crash { seed: u64 },
}

/// Bias: few files and branches, so that most steps meet what others did; a crash is as likely as a
/// clean end.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let files = || prop::collection::vec(0..24_u8, 0..5);
    let step = prop_oneof![
        4 => (files(), 0..4_u8, any::<i64>(), any::<bool>())
            .prop_map(|(files, branch, time, commit)| Step::Batch { files, branch, time, commit }),
        1 => (0..4_u8).prop_map(|branch| Step::Remove { branch }),
        2 => (files(), any::<bool>()).prop_map(|(files, flush)| Step::Send { files, flush }),
        1 => (0..24_u8).prop_map(|file| Step::Heal { file }),
        1 => Just(Step::Reopen),
        1 => (0..50_u64).prop_map(|seed| Step::Crash { seed }),
    ];
    prop::collection::vec(step, 1..25)
}

/// Small ones, larger ones, and some of several chunks.
static FILES: LazyLock<Vec<(Vec<u8>, PreparedContent)>> = LazyLock::new(|| {
    let files = (0..24).map(|number: usize| {
        let len = match number % 6 {
            0 => number,
            1 | 2 => 200 + number * 7,
            3 | 4 => 9_000 + number * 100,
            _ => 700_000,
        };
        let bytes = noise(number as u64, len);
        let content = Preparer::new().content(&bytes);
        (bytes, content)
    });
    files.collect()
});

fn content(number: u8) -> &'static PreparedContent {
    &FILES[usize::from(number)].1
}

#[derive(Default)]
struct Model {
    files: BTreeSet<u8>,
    /// Sent to the writer, perhaps not yet durable.
    sent: BTreeSet<u8>,
    branches: BTreeMap<String, i64>,
}

impl Model {
    fn apply(&mut self, store: &Store, step: &Step) {
        match step {
            Step::Batch { files, branch: name, time, commit } => {
                let mut batch = store.batch().unwrap();
                for number in files {
                    batch.put_content(content(*number)).unwrap();
                }
                let name = name.to_string();
                batch.put_branch(&Branch { time: *time, ..branch(&name) });
                if *commit {
                    batch.commit().unwrap();
                    self.files.extend(files);
                    self.branches.insert(name, *time);
                }
            }
            Step::Remove { branch } => {
                let mut batch = store.batch().unwrap();
                batch.remove_branch("demo", &branch.to_string());
                batch.commit().unwrap();
                self.branches.remove(&branch.to_string());
            }
            Step::Send { files, flush } => {
                let session = store.writer().session();
                for number in files {
                    let content = content(*number).clone();
                    session.send(WriteItem::ConvertedContent(content)).unwrap();
                }
                self.sent.extend(files);
                if *flush {
                    session.flush().unwrap();
                    self.files.append(&mut self.sent);
                }
            }
            Step::Heal { file: number } => {
                let mut batch = store.batch().unwrap();
                let content = content(*number);
                for chunk in &content.chunks {
                    batch.replace_chunk(chunk).unwrap();
                }
                batch.put_manifest(&content.manifest()).unwrap();
                batch.commit().unwrap();
                self.files.insert(*number);
            }
            Step::Reopen | Step::Crash { .. } => unreachable!("they replace the store"),
        }
    }

    fn verify(&mut self, store: &Store) {
        for (number, (bytes, content)) in (0_u8..).zip(FILES.iter()) {
            let found = store.has_content(content.id).unwrap();
            if found && !bytes.is_empty() {
                assert!(read_all(store, content.id, bytes.len()).unwrap() == *bytes);
                // Chunks of an abandoned or lost batch are never seen.
                assert!(self.files.contains(&number) || self.sent.contains(&number), "{number}");
            }
            assert!(found || !self.files.contains(&number), "{number} is lost");
            if found {
                self.files.insert(number);
            }
        }
        let branches = store.branches().unwrap();
        let found = branches.into_iter().map(|branch| (branch.name, branch.time)).collect();
        assert_eq!(self.branches, found);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn a_store_does_what_its_model_does(steps in steps()) {
        let (mut storage, store) = fresh();
        let mut store = Some(store);
        let mut model = Model::default();
        for step in &steps {
            match step {
                Step::Reopen => {
                    drop(store.take());
                    model.files.append(&mut model.sent);
                    store = Some(open(&storage).unwrap());
                }
                Step::Crash { seed } => {
                    let crashed = storage.after_crash(*seed);
                    drop(store.take());
                    storage = crashed;
                    let opened = open(&storage).unwrap();
                    model.verify(&opened);
                    model.sent.clear();
                    store = Some(opened);
                }
                step => model.apply(store.as_ref().unwrap(), step),
            }
            model.verify(store.as_ref().unwrap());
        }
        let store = store.unwrap();
        let report = check(&store, &FakeGit, &Silent, &Cancel::default()).unwrap();
        let damage = |finding: &&crate::check::Finding| {
            // The branches here name trees and a repository that were never stored.
            !finding.to_string().contains("branch demo:")
        };
        prop_assert_eq!(report.findings.iter().find(damage), None);
    }
}

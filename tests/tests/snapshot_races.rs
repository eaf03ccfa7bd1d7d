//! Goal: of those who want a snapshot and those who remove it at the same time each finds it, whole, or is told that there
//! is none.

use std::fs;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use agentfs_tests::fleet::{assert_sound, change, mounted, status};
use agentfs_tests::{Connection, TestStore, campaign, fuse_available, tree};
use serde_json::{Value, json};

/// So much later than the one before a call is made, so that it waits for its turn behind that.
const APART: Duration = Duration::from_millis(1);

/// Makes `calls` at the same time, each on a connection of its own and a little after the one before; how they end.
fn at_once(store: &TestStore, calls: &[(&str, Value)]) -> Vec<Result<Value, Value>> {
    let begun = Barrier::new(calls.len());
    thread::scope(|scope| {
        let running: Vec<_> = (0_u32..)
            .zip(calls)
            .map(|(number, (method, params))| {
                let (begun, mut connection) = (&begun, Connection::new(store));
                scope.spawn(move || {
                    begun.wait();
                    thread::sleep(APART * number);
                    connection.answer(method, params)
                })
            })
            .collect();
        running.into_iter().map(|call| call.join().unwrap()).collect()
    })
}

/// Whether a call was done; if not, it was told that there is no such snapshot.
#[track_caller]
fn is_done(outcome: &Result<Value, Value>, what: &str) -> bool {
    if let Err(error) = outcome {
        assert_eq!(error["data"]["kind"], "not_found", "{what}: {error}");
    }
    outcome.is_ok()
}

#[test]
fn a_snapshot_is_removed_before_it_is_used_or_after_it() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    change(&main);
    // How often it was used, and how often it was gone by then.
    let mut used = [[0; 2]; 2];
    for round in 0..campaign::rounds(12) {
        let id = store.json(&["snapshot", "create", "main"])["id"].as_str().unwrap().to_owned();
        let kept = (status(&main), tree::read(&main));
        fs::write(main.join("untracked"), format!("round {round}\n")).unwrap();
        fs::write(main.join("dir/two"), format!("round {round}\n")).unwrap();
        let changed = (status(&main), tree::read(&main));
        // Who wants it and who removes it wait for somebody who keeps both from going on for a while.
        let first = ("snapshot.create", json!({ "branch": "main" }));
        let restore = ("snapshot.restore", json!({ "snapshot": id }));
        let fork = ("branch.create", json!({ "name": format!("fork{round}"), "from": id }));
        let delete = ("snapshot.delete", json!({ "snapshot": id }));
        let wanting = if round % 4 < 2 { restore } else { fork };
        let order = match round % 2 {
            0 => [first, wanting.clone(), delete.clone(), delete],
            _ => [first, delete.clone(), wanting.clone(), delete],
        };
        let outcomes = at_once(&store, &order);
        let what = format!("round {round}, {}", wanting.0);
        let done = |name: &str| {
            let all = order.iter().zip(&outcomes).filter(|((method, _), _)| *method == name);
            all.filter(|(_, outcome)| is_done(outcome, &what)).count()
        };
        assert_eq!(done("snapshot.create"), 1, "{what}: {outcomes:?}");
        assert_eq!(done("snapshot.delete"), 1, "{what}: {outcomes:?}");
        let is_used = done(wanting.0) == 1;
        used[usize::from(wanting.0 == "branch.create")][usize::from(!is_used)] += 1;
        let is_restored = is_used && wanting.0 == "snapshot.restore";
        let expected = if is_restored { &kept } else { &changed };
        assert_eq!(&(status(&main), tree::read(&main)), expected, "{what}: {outcomes:?}");
        if is_used && !is_restored {
            let (name, dir) = (format!("fork{round}"), store.path("fork"));
            let shown = dir.display().to_string();
            store.ok(&["mount", &name, &shown]);
            assert_eq!((status(&dir), tree::read(&dir)), kept, "{what}");
            store.ok(&["umount", &shown]);
            store.ok(&["branch", "delete", &name]);
        }
        if round % 3 == 2 {
            store.kill_daemon();
            store.ok(&["status"]);
            assert_eq!(&(status(&main), tree::read(&main)), expected, "{what}");
        }
        assert_sound(&store);
    }
    assert!(used.iter().flatten().all(|count| *count > 0), "used and gone: {used:?}");
}

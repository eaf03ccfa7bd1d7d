//! The calls about what the store takes: garbage collection, and what each branch and snapshot has.

use agentfs_engine::gc::{self, Collection};
use agentfs_engine::store::SnapshotReason;
use tracing::info;

use crate::daemon::git_states;
use crate::daemon::keeper;
use crate::daemon::redirects;
use crate::daemon::rpc::Call;
use crate::daemon::snapshots;
use crate::daemon::state::Daemon;
use crate::error::Result;
use crate::protocol::{Amount, Amounts, Collected, DiskUsage, GcCall, UsageEntry};

/// Of the snapshots whose time is over, so many are named.
const EXPIRED_MAX: usize = 512;

/// Removes what nothing needs.
///
/// # Errors
/// Of what is needed, whatever cannot be read: nothing is removed then. What writing the store meets;
/// cancellation.
pub fn gc(daemon: &Daemon, params: &GcCall, call: &Call) -> Result<Collected> {
    let expired = keeper::expire(daemon, params.keep_removed_days, params.dry_run)?;
    let mut folded = 0;
    if !params.dry_run {
        git_states::pack_references(daemon, 1)?;
        folded = keeper::fold(daemon, &call.cancel)?;
        let _turn = daemon.lock_redirects();
        let _names = daemon.lock_names();
        redirects::sweep(daemon)?;
        git_states::sweep(daemon)?;
    }
    let redirected = redirects::clean(daemon, params.dry_run, &call.cancel)?;
    let store = &daemon.store;
    let upkeep = store.upkeep();
    let begun = {
        // Whoever has sealed something of a branch has it on record, or needs it no more.
        let _names = daemon.lock_names();
        Collection::begin(store, &upkeep, params.dry_run)?
    };
    let report = begun.run(call.meter.as_ref(), &call.cancel)?;
    info!("garbage collection: {report:?}");
    Ok(Collected {
        dry_run: params.dry_run,
        kept: amounts(&report.kept),
        freed: amounts(&report.freed),
        segments: amount(report.segments),
        moved: amount(report.moved),
        damaged_segments: report.damaged_segments,
        expired: expired.len() as u64,
        expired_snapshots: expired.iter().take(EXPIRED_MAX).map(snapshots::info).collect(),
        redirected,
        files: amount(report.files),
        layers: report.layers + folded,
    })
}

fn amount(of: gc::Amount) -> Amount {
    Amount { count: of.count, bytes: of.bytes }
}

fn amounts(of: &gc::Amounts) -> Amounts {
    Amounts {
        chunks: amount(of.chunks),
        trees: amount(of.trees),
        manifests: amount(of.manifests),
        mapped: amount(of.mapped),
        total: amount(of.total()),
    }
}

/// What each branch and snapshot takes.
///
/// # Errors
/// Of what they lead to, whatever cannot be read; cancellation.
pub fn usage(daemon: &Daemon, call: &Call) -> Result<DiskUsage> {
    let store = &daemon.store;
    let used = gc::usage(store, &store.upkeep(), call.meter.as_ref(), &call.cancel)?;
    let (branches, kept) = (store.branches()?, store.all_snapshots()?);
    let redirected = redirects::usage(daemon, &call.cancel)?;
    let is_kept = |number: u64| {
        kept.iter().any(|one| one.number == number && one.reason == SnapshotReason::Removed)
    };
    let mut entries = Vec::new();
    for one in used {
        let name = match one.snapshot {
            None => {
                let branch = branches.iter().find(|branch| branch.number == one.branch);
                branch.map(|branch| (&branch.repository, &branch.name))
            }
            Some(number) => {
                let snapshot = kept.iter().find(|snapshot| snapshot.number == number);
                snapshot.map(|snapshot| (&snapshot.repository, &snapshot.name))
            }
        };
        // It may have been removed meanwhile.
        let Some((repository, branch)) = name else { continue };
        entries.push(UsageEntry {
            repository: repository.clone(),
            branch: branch.clone(),
            snapshot: one.snapshot.map(snapshots::id),
            own: amount(one.own),
            shared: amount(one.shared),
            outbox: one.outbox,
            // That of a removed branch is kept with the snapshot that brings it back.
            redirected: match one.snapshot.is_none_or(is_kept) {
                true => redirected.get(&one.branch).copied().unwrap_or(0),
                false => 0,
            },
        });
    }
    entries.sort_by(|one, other| {
        let key = |entry: &UsageEntry| {
            (entry.snapshot.is_some(), entry.repository.clone(), entry.branch.clone())
        };
        key(one).cmp(&key(other))
    });
    let (count, bytes) = store.plain_files();
    Ok(DiskUsage { entries, files: Amount { count, bytes } })
}

//! The methods of the control socket and what runs them.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::info;

use crate::daemon::rpc::{Answer, Call, Service};
use crate::daemon::state::Daemon;
use crate::daemon::{
    backup, branches, calls, changed, check, execs, redirects, rename, repair, report, snapshots,
    switch, upkeep, views,
};
use crate::error::{Failure, Kind, Result};
use crate::incoming;
use crate::protocol::{ExecEnd, GcCall, Hello, PROTOCOL, StopCall, Welcome, method};
use crate::wire::{self, RpcError};

/// The calls of a daemon.
pub struct Methods(pub Arc<Daemon>);

impl Service for Methods {
    fn call(&self, method: &str, params: Value, call: &Call) -> Result<Answer, RpcError> {
        let start = Instant::now();
        let answer = self.run(method, params, call);
        // Clients choose what they call, and there are no more kinds of calls than methods.
        if !matches!(&answer, Err(error) if error.code == wire::METHOD_NOT_FOUND) {
            self.0.laps.record(method, start.elapsed());
        }
        answer
    }
}

impl Methods {
    fn run(&self, method: &str, params: Value, call: &Call) -> Result<Answer, RpcError> {
        let daemon = &self.0;
        let answer = match method {
            method::HELLO => value(hello(daemon, &parse(params)?)),
            method::CLONE => {
                let answer = calls::clone(daemon, &parse(params)?, call);
                // Whoever was killed while it fetched is gone by now.
                incoming::sweep(&daemon.layout);
                answer
            }
            method::ATTACH => calls::attach(daemon, &parse(params)?, call),
            method::MOUNT => calls::mount(daemon, &parse(params)?, call, true),
            method::UMOUNT => value(calls::umount(daemon, &parse(params)?)),
            method::BRANCH_CREATE => branches::create(daemon, &parse(params)?, call),
            method::BRANCH_RENAME => value(rename::rename(daemon, &parse(params)?)),
            method::BRANCH_DELETE => value(branches::delete(daemon, &parse(params)?)),
            method::BRANCH_UNDELETE => branches::undelete(daemon, &parse(params)?, call),
            method::WORKTREE_REMOVE => value(branches::remove_worktree(daemon, &parse(params)?)),
            method::SNAPSHOT_CREATE => value(snapshots::create(daemon, &parse(params)?)),
            method::SNAPSHOT_RESTORE => value(snapshots::restore(daemon, &parse(params)?)),
            method::SWITCH => value(switch::switch(daemon, &parse(params)?, call)),
            method::UNDO => value(snapshots::undo(daemon, &parse(params)?)),
            method::SNAPSHOT_LIST => value(snapshots::list(daemon, &parse(params)?)),
            method::SNAPSHOT_SHOW => value(snapshots::show(daemon, &parse(params)?)),
            method::SNAPSHOT_DELETE => value(snapshots::delete(daemon, &parse(params)?)),
            method::VIEW_BEGIN => views::begin(daemon, &parse(params)?),
            method::REDIRECT_ADD => value(redirects::add(daemon, &parse(params)?)),
            method::REDIRECT_LIST => value(redirects::list(daemon, &parse(params)?)),
            method::REDIRECT_REMOVE => value(redirects::remove(daemon, &parse(params)?)),
            method::STATUS => value(report::status(daemon)),
            method::CHANGED_PATHS => value(changed::changed_paths(daemon, &parse(params)?)),
            method::STATS => value(report::stats(daemon)),
            method::BACKUP => value(backup::backup(daemon, &parse(params)?, call)),
            method::CHECK => value(check::check(daemon, call)),
            method::REPAIR => value(repair::repair(daemon, call)),
            method::GC => {
                // Parameters may be left out.
                let params: Option<GcCall> = parse(params)?;
                value(upkeep::gc(daemon, &params.unwrap_or_default(), call))
            }
            method::USAGE => value(upkeep::usage(daemon, call)),
            method::EXEC_BEGIN => execs::begin(daemon, &parse(params)?, call),
            method::EXEC_END => {
                let end: ExecEnd = parse(params)?;
                execs::end(daemon, end.exec);
                Ok(Value::Null.into())
            }
            method::STOP => {
                // Parameters came later than the method.
                let params: Option<StopCall> = parse(params)?;
                if !params.unwrap_or_default().force {
                    daemon.execs.refuse_stop()?;
                }
                let daemon = Arc::clone(daemon);
                let stop = move || {
                    info!("asked to stop");
                    daemon.stop.send_replace(true);
                };
                Ok(Answer { after: Some(Box::new(stop)), ..Value::Null.into() })
            }
            other => {
                let message = format!("there is no method {other:?}");
                return Err(RpcError::protocol(wire::METHOD_NOT_FOUND, message));
            }
        };
        Ok(answer?)
    }
}

fn parse<T: DeserializeOwned>(params: Value) -> Result<T, RpcError> {
    serde_json::from_value(params)
        .map_err(|error| RpcError::protocol(wire::INVALID_PARAMS, error.to_string()))
}

fn value(result: Result<impl Serialize>) -> Result<Answer> {
    let value = serde_json::to_value(result?);
    value.map(Answer::from).map_err(|error| Failure::new(Kind::Failed, error.to_string()))
}

fn hello(daemon: &Daemon, hello: &Hello) -> Result<Welcome> {
    if hello.protocol != PROTOCOL {
        return Err(Failure::new(
            Kind::DaemonVersion,
            format!(
                "the daemon (version {}) speaks protocol {PROTOCOL}, {} speaks {}",
                env!("CARGO_PKG_VERSION"),
                hello.client,
                hello.protocol
            ),
        )
        .hint(format!(
            "end the daemon with `kill {}`; the next command starts one of its own version",
            std::process::id()
        )));
    }
    Ok(Welcome {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        store: daemon.root().into(),
    })
}

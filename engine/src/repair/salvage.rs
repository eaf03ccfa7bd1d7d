//! What an outbox still holds takes the place of an outbox that is damaged.

use std::collections::HashSet;

use super::Repair;
use crate::error::{Error, Result};
use crate::id::{BranchNumber, Sequence};
use crate::outbox::{Salvaged, salvage};
use crate::overlay::{Next, Overlay};
use crate::store::{Branch, Layer, Store, Table, decode_sealed};

impl Repair<'_> {
    /// Has what is whole of the outbox of a branch take its place; what is lost.
    pub(super) fn salvage(&self, name: &str) -> Result<Option<String>> {
        let branch = self.named(name)?;
        let Branch { number, .. } = *branch;
        let _claim = self.store.claim(number)?;
        let awaited = awaited(self.store, number)?;
        let (mut overlay, head) = self.store.head(number)?;
        let storage = self.store.core().segments().storage();
        let dir = self.store.outbox_dir(number);
        let salvaged = salvage(storage, &dir, head.drained, &mut |sequence, record| {
            let Some(record) = record else {
                return match awaited.contains(&sequence) {
                    true => Err(Error::Refused(format!(
                        "record {sequence} is lost, which says where what others stand on begins"
                    ))),
                    false => Ok(false),
                };
            };
            if overlay.misses(record.head) {
                return Ok(false);
            }
            match overlay.replay(record.head, record.body, record.body_len) {
                Ok(Next::Changed | Next::Sealed(_)) => Ok(true),
                Ok(Next::Stands(_, on)) => {
                    overlay =
                        on.map_or_else(|| Ok(Overlay::default()), |on| self.store.layer(on))?;
                    Ok(true)
                }
                Err(error) if error.is_corruption() => Ok(false),
                Err(error) => Err(error),
            }
        })?;
        let Salvaged { kept, lost } = &salvaged;
        let run = |&(first, last): &(Sequence, Sequence)| match first == last {
            true => format!("{first}"),
            false => format!("{first} to {last}"),
        };
        let runs: Vec<_> = lost.iter().map(run).collect();
        Ok((!lost.is_empty()).then(|| {
            format!(
                "branch {name}: of the changes that were not drained, {kept} are kept, and the outbox has lost record {}; \
                 what is left of the files is in {}",
                runs.join(", "),
                dir.display()
            )
        }))
    }
}

/// The records in the outbox of a branch that seal a layer on which others stand.
fn awaited(store: &Store, branch: BranchNumber) -> Result<HashSet<Sequence>> {
    let mut awaited = HashSet::new();
    let table = Table::Layers;
    store.core().snapshot().scan(table, b"", |key, sealed| {
        let layer = decode_sealed(table, key, sealed, Layer::decode)?;
        awaited.extend(layer.waits.filter(|(of, _)| *of == branch).map(|(_, record)| record));
        Ok(())
    })?;
    Ok(awaited)
}

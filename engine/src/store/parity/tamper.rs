//! Damage that no parity knows of, as a fault of the program above it would do: for tests of what lies behind it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::header::KEPT_BYTES;
use super::layout::PAGE_BYTES;
use super::{HeldFile, ParityFile};
use crate::storage::Storage;

/// Changes the bytes of the protected file at `path` as its user sees them. Its length stays.
///
/// # Errors
/// What reading and writing meet.
pub fn tamper_database(
    storage: &dyn Storage,
    path: &Path,
    change: impl FnOnce(&mut [u8]),
) -> io::Result<()> {
    let held = HeldFile::new(storage.open(path, false)?)?;
    held.release()?;
    let file = ParityFile::new(Arc::new(held))?;
    let mut bytes = vec![0; file.len() as usize];
    file.read_at(0, &mut bytes)?;
    change(&mut bytes);
    // There is nothing behind the header, nor room for anything.
    bytes[KEPT_BYTES..PAGE_BYTES].fill(0);
    file.write_at(0, &bytes)?;
    file.sync()
}

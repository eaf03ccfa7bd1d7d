//! A program that turns its standard input into its standard output.

use std::io::{ErrorKind, Read, Write};
use std::process::{Command, Stdio};

use super::Failure;
use crate::limits::CONVERTED_BYTES_MAX;

/// Feeds `input` to `command` and returns what it writes, if it succeeds.
pub(super) fn pipe_through(command: &mut Command, input: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::failed(&error))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let mut output = Vec::new();
    let (written, read) = std::thread::scope(|scope| {
        // It may write before it has read everything.
        let writer = scope.spawn(|| stdin.map_or(Ok(()), |mut stdin| stdin.write_all(input)));
        let read = stdout
            .map_or(Ok(0), |stdout| stdout.take(CONVERTED_BYTES_MAX + 1).read_to_end(&mut output));
        if output.len() as u64 > CONVERTED_BYTES_MAX {
            // Else it might never stop reading either.
            let _ = child.kill();
        }
        (writer.join(), read)
    });
    let status = child.wait().map_err(|error| Failure::failed(&error))?;
    if output.len() as u64 > CONVERTED_BYTES_MAX {
        return Err(Failure::TooLarge);
    }
    read.map_err(|error| Failure::failed(&error))?;
    match written {
        // It need not read everything.
        Ok(Err(error)) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::failed(&error)),
        Err(_) => Err(Failure::Failed("its input could not be written".into())),
        Ok(_) if status.success() => Ok(output),
        Ok(_) => Err(Failure::Failed(format!("it ended with {status}"))),
    }
}

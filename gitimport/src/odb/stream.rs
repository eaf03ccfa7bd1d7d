//! Blobs too large for memory: inflated and put together from deltas as they are read.
//!
//! The base of a delta must be at hand as a whole, so it is written to a temporary file without a
//! name. Memory is bounded by buffers, whatever the sizes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use agentfs_engine::GitOid;
use agentfs_engine::progress::Cancel;

use super::Fault;
use super::delta::{Instruction, SIZES_BYTES_MAX, Sizes, instruction, sizes};
use super::inflate::{InflateLayer, Layer};
use crate::error::{Error, Result};
use crate::limits::DELTA_BASE_BYTES_MAX;
use crate::object::{Kind, ObjectHasher};

const BUFFER_BYTES: usize = 64 << 10;

/// A blob as it is read. The read that would return its end fails if its bytes do not have its id;
/// nothing read before may be trusted.
pub struct BlobStream {
    layer: Box<dyn Layer>,
    hasher: Option<ObjectHasher>,
    oid: GitOid,
    size: u64,
    /// The file that it is read from, for errors.
    path: PathBuf,
}

impl BlobStream {
    pub(super) fn new(layer: Box<dyn Layer>, oid: &GitOid, size: u64, path: &Path) -> Self {
        let hasher = Some(ObjectHasher::new(oid.kind(), Kind::Blob, size));
        Self { layer, hasher, oid: *oid, size, path: path.to_owned() }
    }

    /// Size of the blob in bytes, as it is stated.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn next(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        let count = self.layer.fill(out)?;
        if count > 0 {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&out[..count]);
            }
            return Ok(count);
        }
        match self.hasher.take().map(ObjectHasher::finish) {
            Some(Ok(oid)) if oid != self.oid => {
                Err(Fault::bad(format!("its bytes are object {oid}")))
            }
            Some(Err(why)) => Err(Fault::bad(why)),
            _ => Ok(0),
        }
    }
}

impl Read for BlobStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        self.next(out).map_err(|fault| io::Error::other(fault.of(&self.oid, &self.path)))
    }
}

/// What a delta makes, as its instructions are read.
pub(super) struct DeltaLayer {
    instructions: Buffered,
    base: File,
    base_len: u64,
    step: Step,
    left: u64,
}

#[derive(Clone, Copy)]
enum Step {
    Copy { offset: u64, left: u64 },
    Insert { left: u64 },
}

impl DeltaLayer {
    /// The delta in `instructions` to a `base` of `base_len` bytes, and the sizes that it states.
    pub(super) fn new(
        instructions: InflateLayer,
        base: File,
        base_len: u64,
    ) -> Result<(Self, Sizes), Fault> {
        let mut instructions = Buffered::new(instructions);
        let sizes = instructions.sizes()?;
        if sizes.base != base_len {
            return Err(Fault::bad("a delta states another size of its base"));
        }
        let step = Step::Insert { left: 0 };
        Ok((Self { instructions, base, base_len, step, left: sizes.result }, sizes))
    }

    /// Decodes the next instruction; false at the end of the delta.
    fn advance(&mut self) -> Result<bool, Fault> {
        let Some(command) = self.instructions.byte()? else {
            return Ok(false);
        };
        let source = &mut self.instructions;
        self.step = match instruction(command, || {
            source.byte()?.ok_or_else(|| Fault::bad("a delta ends in the middle of an instruction"))
        })? {
            Instruction::Copy { offset, len } => {
                let (offset, left) = (u64::from(offset), u64::from(len));
                if offset + left > self.base_len {
                    return Err(Fault::bad("a delta copies from outside its base"));
                }
                Step::Copy { offset, left }
            }
            Instruction::Insert { len } => Step::Insert { left: u64::from(len) },
        };
        Ok(true)
    }
}

impl Layer for DeltaLayer {
    fn fill(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        let mut done = 0;
        while done < out.len() {
            let (Step::Copy { left: step_left, .. } | Step::Insert { left: step_left }) = self.step;
            if step_left == 0 {
                if self.advance()? {
                    continue;
                }
                if self.left > 0 && done == 0 {
                    return Err(Fault::bad("a delta makes fewer bytes than it states"));
                }
                break;
            }
            if step_left > self.left {
                return Err(Fault::bad("a delta makes more bytes than it states"));
            }
            let len = ((out.len() - done) as u64).min(step_left) as usize;
            let part = &mut out[done..done + len];
            match &mut self.step {
                Step::Copy { offset, left } => {
                    self.base.read_exact_at(part, *offset).map_err(Fault::temporary)?;
                    *offset += len as u64;
                    *left -= len as u64;
                }
                Step::Insert { left } => {
                    self.instructions.exact(part)?;
                    *left -= len as u64;
                }
            }
            self.left -= len as u64;
            done += len;
        }
        Ok(done)
    }
}

/// The bytes of a layer, taken a few at a time.
struct Buffered {
    layer: InflateLayer,
    bytes: Vec<u8>,
    at: usize,
}

impl Buffered {
    fn new(layer: InflateLayer) -> Self {
        Self { layer, bytes: Vec::new(), at: 0 }
    }

    fn byte(&mut self) -> Result<Option<u8>, Fault> {
        if self.at == self.bytes.len() {
            self.bytes.resize(BUFFER_BYTES, 0);
            let count = self.layer.fill(&mut self.bytes)?;
            self.bytes.truncate(count);
            self.at = 0;
        }
        let byte = self.bytes.get(self.at).copied();
        self.at += usize::from(byte.is_some());
        Ok(byte)
    }

    fn exact(&mut self, out: &mut [u8]) -> Result<(), Fault> {
        for place in out {
            *place = self
                .byte()?
                .ok_or_else(|| Fault::bad("a delta ends in the middle of an instruction"))?;
        }
        Ok(())
    }

    fn sizes(&mut self) -> Result<Sizes, Fault> {
        let mut head = Vec::with_capacity(SIZES_BYTES_MAX);
        let mut numbers = 0;
        while numbers < 2 && head.len() < SIZES_BYTES_MAX {
            let Some(byte) = self.byte()? else { break };
            numbers += u8::from(byte & 0x80 == 0);
            head.push(byte);
        }
        Ok(sizes(&head).map(|(sizes, _)| sizes)?)
    }
}

/// Writes all of `layer`, which states `size` bytes, to a temporary file in `dir`, or where
/// temporary files usually are if that cannot be written to.
pub(super) fn spill(
    layer: &mut dyn Layer,
    size: u64,
    dir: &Path,
    cancel: &Cancel,
) -> Result<File, Fault> {
    if size > DELTA_BASE_BYTES_MAX {
        return Err(Fault::Large { size, limit: DELTA_BASE_BYTES_MAX });
    }
    let mut file =
        tempfile::tempfile_in(dir).or_else(|_| tempfile::tempfile()).map_err(Fault::temporary)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        cancel.check().map_err(Error::from)?;
        match layer.fill(&mut buffer)? {
            0 => return Ok(file),
            count => file.write_all(&buffer[..count]).map_err(Fault::temporary)?,
        }
    }
}

impl Fault {
    fn temporary(source: io::Error) -> Self {
        let path = PathBuf::from("a temporary file");
        Self::Error(Error::Io { action: "use", path, source })
    }
}

//! Deltas: instructions that make an object from another one.

/// The sizes that a delta states before its instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) base: u64,
    pub(super) result: u64,
}

impl Sizes {
    /// Compares the size of the result with the most that a delta of `len` bytes can make: two bytes
    /// copy up to 0xff0000, and no instruction makes more of as few.
    pub(super) fn check_result(self, len: u64) -> Result<(), &'static str> {
        if self.result / (0xff_0000 / 2) <= len {
            return Ok(());
        }
        Err("a delta states more bytes than its instructions can make")
    }
}

/// Most bytes that the two sizes take.
pub(super) const SIZES_BYTES_MAX: usize = 20;

const TRUNCATED: &str = "a delta ends in the middle of an instruction";

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instruction {
    /// Copy so many bytes of the base from an offset.
    Copy { offset: u32, len: u32 },
    /// Take so many bytes that follow.
    Insert { len: u32 },
}

/// Reads the two sizes from the head of a delta; also how many bytes they took.
pub(super) fn sizes(delta: &[u8]) -> Result<(Sizes, usize), &'static str> {
    let mut at = 0;
    let mut size = || {
        let mut value = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = *delta.get(at).ok_or("a delta ends in its header")?;
            at += 1;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a delta states a size of more than 64 bits")
    };
    Ok((Sizes { base: size()?, result: size()? }, at))
}

/// Decodes the next instruction, whose bytes `next` supplies.
pub(super) fn instruction<E: From<&'static str>>(
    command: u8,
    mut next: impl FnMut() -> Result<u8, E>,
) -> Result<Instruction, E> {
    if command == 0 {
        return Err(E::from("a delta holds the reserved instruction 0"));
    }
    if command & 0x80 == 0 {
        return Ok(Instruction::Insert { len: u32::from(command) });
    }
    let mut field = |bits: std::ops::Range<u32>| {
        let mut value = 0_u32;
        for (place, bit) in bits.enumerate() {
            if command >> bit & 1 == 1 {
                value |= u32::from(next()?) << (8 * place);
            }
        }
        Ok::<_, E>(value)
    };
    let offset = field(0..4)?;
    let len = match field(4..7)? {
        0 => 0x10000,
        len => len,
    };
    Ok(Instruction::Copy { offset, len })
}

/// Applies `delta`, whose header took `skip` bytes and stated `sizes`, to `base`. The caller has
/// compared `sizes.result` with a limit.
pub(super) fn apply(
    base: &[u8],
    delta: &[u8],
    skip: usize,
    sizes: Sizes,
    out: &mut Vec<u8>,
) -> Result<(), &'static str> {
    if sizes.base != base.len() as u64 {
        return Err("a delta states another size of its base");
    }
    let size = sizes.result as usize;
    out.clear();
    out.reserve_exact(size);
    let mut rest = &delta[skip..];
    while let Some((&command, tail)) = rest.split_first() {
        rest = tail;
        let step = instruction(command, || {
            let (&byte, tail) = rest.split_first().ok_or(TRUNCATED)?;
            rest = tail;
            Ok::<_, &'static str>(byte)
        })?;
        let bytes = match step {
            Instruction::Copy { offset, len } => base
                .get(offset as usize..)
                .and_then(|from| from.get(..len as usize))
                .ok_or("a delta copies from outside its base")?,
            Instruction::Insert { len } => {
                let (bytes, tail) = rest.split_at_checked(len as usize).ok_or(TRUNCATED)?;
                rest = tail;
                bytes
            }
        };
        if bytes.len() > size - out.len() {
            return Err("a delta makes more bytes than it states");
        }
        out.extend_from_slice(bytes);
    }
    if out.len() != size {
        return Err("a delta makes fewer bytes than it states");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(base: &[u8], delta: &[u8]) -> Result<Vec<u8>, &'static str> {
        assert!(sizes(delta)?.0.result < 1 << 20);
        run_any_size(base, delta)
    }

    fn run_any_size(base: &[u8], delta: &[u8]) -> Result<Vec<u8>, &'static str> {
        let (sizes, skip) = sizes(delta)?;
        sizes.check_result(delta.len() as u64)?;
        let mut out = Vec::new();
        apply(base, delta, skip, sizes, &mut out)?;
        Ok(out)
    }

    #[test]
    fn copies_and_inserts() {
        assert_eq!(
            run(b"hello world", &[11, 8, 0x91, 6, 5, 3, b'a', b'b', b'c']).unwrap(),
            b"worldabc"
        );
        assert_eq!(run(b"", &[0, 0]).unwrap(), b"");
        let base = vec![9; 0x10001];
        // No length means 65,536; all fields absent means from the start.
        assert_eq!(run(&base, &[0x81, 0x80, 4, 0x80, 0x80, 4, 0x80]).unwrap(), vec![9; 0x10000]);
    }

    #[test]
    fn no_delta_makes_more_than_its_length_allows() {
        // Two bytes that copy the most, after two sizes that take five bytes each.
        let most = 0xff_0000;
        let base = vec![7; most];
        let head = [0x80, 0x80, 0xfc, 0x07];
        let mut delta = [head, head].concat();
        delta.extend([0xc0, 0xff]);
        assert_eq!(run_any_size(&base, &delta).unwrap().len(), most);
        let sizes = |result| Sizes { base: 0, result };
        sizes(0).check_result(0).unwrap();
        sizes(most as u64 * 50).check_result(100).unwrap();
        for (result, len) in [(most as u64, 1), (most as u64 * 51, 100), (u64::MAX, 1 << 30)] {
            sizes(result).check_result(len).unwrap_err();
        }
    }

    #[test]
    fn lies_are_errors() {
        for (delta, why) in [
            (&[][..], "ends in its header"),
            (&[0x80], "ends in its header"),
            (&[0xff; 10], "more than 64 bits"),
            (&[4, 1, 0x90, 1], "another size of its base"),
            (&[3, 1, 0x90, 2], "more bytes"),
            (&[3, 4, 0x90, 3], "fewer bytes"),
            (&[3, 4, 0x90, 4], "outside its base"),
            (&[3, 1, 0x91, 3, 1], "outside its base"),
            (&[3, 3, 0x9f, 0xff, 0xff, 0xff, 0xff, 3], "outside its base"),
            (&[3, 3, 0x90], "middle of an instruction"),
            (&[3, 3, 3, b'a'], "middle of an instruction"),
            (&[3, 1, 0], "reserved"),
        ] {
            let found = run(b"abc", delta).unwrap_err();
            assert!(found.contains(why), "{delta:?}: {found}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_deltas_do_no_harm(base in prop::collection::vec(any::<u8>(), 0..64), tail in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut delta = vec![base.len() as u8, 40];
            delta.extend(tail);
            if let Ok(out) = run(&base, &delta) {
                prop_assert_eq!(out.len(), 40);
            }
        }
    }
}

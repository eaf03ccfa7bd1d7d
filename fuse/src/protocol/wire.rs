//! Reading and writing the kernel's structures field by field.

use super::Malformed;

/// The arguments of a request that are not read yet.
///
/// They come in one piece, or in two of which the first holds the first argument. No field lies in
/// both.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Args<'a> {
    first: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Args<'a> {
    /// Arguments in these pieces.
    pub(crate) fn new(first: &'a [u8], rest: &'a [u8]) -> Self {
        Self { first, rest }
    }

    /// The piece in which the next field is.
    fn piece(&mut self) -> &mut &'a [u8] {
        if self.first.is_empty() { &mut self.rest } else { &mut self.first }
    }

    /// The next `len` bytes.
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let piece = self.piece();
        let (taken, left) = piece.split_at_checked(len).ok_or(Malformed::Short)?;
        *piece = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.bytes(N)?.try_into().map_err(|_| Malformed::Short)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_ne_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_ne_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_ne_bytes)
    }

    /// A name: the bytes before the next NUL, which is taken as well.
    pub(crate) fn name(&mut self) -> Result<&'a [u8], Malformed> {
        let piece = self.piece();
        let end = piece.iter().position(|&byte| byte == 0).ok_or(Malformed::Unterminated)?;
        let (name, left) = piece.split_at(end);
        *piece = &left[1..];
        Ok(name)
    }

    /// Takes `len` bytes from the end.
    pub(crate) fn cut(&mut self, len: usize) -> Result<(), Malformed> {
        let piece = if self.rest.is_empty() { &mut self.first } else { &mut self.rest };
        let kept = piece.len().checked_sub(len).ok_or(Malformed::Short)?;
        *piece = &piece[..kept];
        Ok(())
    }
}

/// A reply in the making, in a buffer that the transport lends.
///
/// What does not fit is not written, and neither is anything after it; [`Writer::finish`] tells.
pub(crate) struct Writer<'b> {
    out: &'b mut [u8],
    len: usize,
    overflown: bool,
}

impl<'b> Writer<'b> {
    /// An empty reply in `out`.
    pub(crate) fn new(out: &'b mut [u8]) -> Self {
        Self { out, len: 0, overflown: false }
    }

    /// Its length so far.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Its length; `None` if something did not fit.
    pub(crate) fn finish(&self) -> Option<usize> {
        (!self.overflown).then_some(self.len)
    }

    /// The next `len` bytes of the buffer, to be filled by the caller, who says by
    /// [`Writer::advance`] how many he filled. `None` if there are fewer, or if something is missing
    /// before them.
    pub(crate) fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.overflown {
            return None;
        }
        self.out.get_mut(self.len..)?.get_mut(..len)
    }

    /// Counts `len` bytes in that were filled in place.
    pub(crate) fn advance(&mut self, len: usize) {
        self.overflown |= len > self.out.len() - self.len;
        self.len = self.out.len().min(self.len + len);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        match self.room(bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.len += bytes.len();
            }
            None => self.overflown = true,
        }
    }

    pub(crate) fn zeros(&mut self, len: usize) {
        match self.room(len) {
            Some(room) => {
                room.fill(0);
                self.len += len;
            }
            None => self.overflown = true,
        }
    }

    #[expect(clippy::host_endian_bytes, reason = "the kernel reads as its machine does")]
    pub(crate) fn u16(&mut self, number: u16) {
        self.bytes(&number.to_ne_bytes());
    }

    #[expect(clippy::host_endian_bytes, reason = "the kernel reads as its machine does")]
    pub(crate) fn u32(&mut self, number: u32) {
        self.bytes(&number.to_ne_bytes());
    }

    #[expect(clippy::host_endian_bytes, reason = "the kernel reads as its machine does")]
    pub(crate) fn u64(&mut self, number: u64) {
        self.bytes(&number.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_from_one_piece_or_from_two() {
        let bytes = [1, 0, 0, 0, b'a', 0, b'b', b'c'];
        for split in [0, 4, 6, 8] {
            let (first, rest) = bytes.split_at(split);
            let mut args = Args::new(first, rest);
            assert_eq!(args.u32(), Ok(u32::from_le(1)), "split at {split}");
            assert_eq!(args.name(), Ok(&b"a"[..]));
            assert_eq!(args.name(), Err(Malformed::Unterminated));
            assert_eq!(args.bytes(2), Ok(&b"bc"[..]));
            assert_eq!(args.u16(), Err(Malformed::Short));
        }
    }

    #[test]
    fn no_field_lies_in_two_pieces() {
        assert_eq!(Args::new(&[1, 2], &[3, 4]).u32(), Err(Malformed::Short));
    }

    #[test]
    fn the_end_is_cut_from_the_last_piece() {
        for split in [0, 8] {
            let bytes = [7, 7, 7, 7, 7, 7, 7, 9];
            let (first, rest) = bytes.split_at(split);
            let mut args = Args::new(first, rest);
            assert_eq!(args.cut(1), Ok(()));
            assert_eq!(args.bytes(7), Ok(&bytes[..7]));
            assert_eq!(args.cut(1), Err(Malformed::Short));
        }
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let mut buffer = [0xff; 8];
        let mut writer = Writer::new(&mut buffer);
        writer.u32(0);
        assert!(writer.room(5).is_none());
        writer.u64(1);
        // Would fit, but a field before it is missing.
        writer.u16(2);
        assert_eq!((writer.len(), writer.finish()), (4, None));
        let mut writer = Writer::new(&mut buffer);
        writer.zeros(3);
        writer.advance(5);
        assert_eq!(writer.finish(), Some(8));
        writer.advance(1);
        assert_eq!(writer.finish(), None);
        assert_eq!(buffer[..5], [0, 0, 0, 0, 0xff]);
    }
}

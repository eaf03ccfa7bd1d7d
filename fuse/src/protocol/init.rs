//! The handshake: what a kernel says of itself, and what is agreed.

use super::wire::{Args, Writer};
use super::{MESSAGE_BYTES_MAX, Malformed};

/// The capabilities that this server knows, by their bits.
pub(crate) mod flag {
    pub(crate) const ASYNC_READ: u64 = 1 << 0;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const WRITEBACK_CACHE: u64 = 1 << 16;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(crate) const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    /// There is a second half of the capabilities.
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    pub(crate) const PASSTHROUGH: u64 = 1 << 37;
    pub(crate) const OVER_IO_URING: u64 = 1 << 41;
}

/// The version of the protocol that this server speaks.
const MAJOR: u32 = 7;
const MINOR: u32 = 45;
/// The least that it understands: structures have had their present length since then.
const MINOR_MIN: u32 = 31;
/// Reads ahead and writes back that may wait for us at once; the kernel's default of 12 starves
/// readers in parallel. From three quarters on it counts as congested.
const BACKGROUND_MAX: u16 = 64;
const CONGESTED: u16 = 48;

/// How a kernel introduces itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Introduction {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) max_readahead: u32,
    /// What it offers.
    pub(crate) capabilities: u64,
}

impl Introduction {
    /// Reads the arguments of an INIT. A kernel before 7.36 does not send the second half of its
    /// capabilities.
    pub(crate) fn parse(args: &mut Args<'_>) -> Result<Self, Malformed> {
        let (major, minor) = (args.u32()?, args.u32()?);
        let (max_readahead, low) = (args.u32()?, u64::from(args.u32()?));
        let high = if low & flag::INIT_EXT == 0 { 0 } else { args.u32()? };
        Ok(Self { major, minor, max_readahead, capabilities: u64::from(high) << 32 | low })
    }

    /// What to agree on with a kernel from which `wanted` is asked; `None` if we do not understand
    /// each other.
    pub(crate) fn agree(&self, wanted: u64) -> Option<Agreement> {
        if self.major != MAJOR || self.minor < MINOR_MIN {
            return None;
        }
        let always = flag::ASYNC_READ | flag::BIG_WRITES | flag::MAX_PAGES | flag::INIT_EXT;
        Some(Agreement {
            minor: self.minor.min(MINOR),
            max_readahead: self.max_readahead,
            capabilities: self.capabilities & (always | wanted),
        })
    }
}

/// What kernel and server agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreement {
    minor: u32,
    max_readahead: u32,
    pub(crate) capabilities: u64,
}

impl Agreement {
    /// The reply to the INIT, for a machine with pages of so many bytes.
    pub(crate) fn encode(&self, page_bytes: usize, out: &mut Writer<'_>) {
        let pages = MESSAGE_BYTES_MAX.div_ceil(page_bytes.max(1));
        out.u32(MAJOR);
        out.u32(self.minor);
        out.u32(self.max_readahead);
        out.u32(self.capabilities as u32);
        out.u16(BACKGROUND_MAX);
        out.u16(CONGESTED);
        out.u32(MESSAGE_BYTES_MAX as u32);
        // Times are told to the nanosecond.
        out.u32(1);
        out.u16(pages as u16);
        out.u16(0);
        out.u32((self.capabilities >> 32) as u32);
        // How deep file systems may lie on each other: a backing is in one that lies on nothing. With more, no
        // overlay could be made of the mount.
        out.u32(u32::from(self.capabilities & flag::PASSTHROUGH != 0));
        // Time limit, and what has no meaning yet.
        out.zeros(24);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn introduction(words: &[u32]) -> Result<Introduction, Malformed> {
        let mut bytes = vec![0; words.len() * 4];
        let mut writer = Writer::new(&mut bytes);
        words.iter().for_each(|&word| writer.u32(word));
        Introduction::parse(&mut Args::new(&bytes, &[]))
    }

    #[test]
    fn an_introduction_is_read() {
        let ext = flag::INIT_EXT as u32;
        let new = introduction(&[7, 45, 131_072, ext, (flag::PASSTHROUGH >> 32) as u32, 0]);
        let new = new.unwrap();
        assert_eq!((new.major, new.minor, new.max_readahead), (7, 45, 131_072));
        assert_eq!(new.capabilities, flag::PASSTHROUGH | flag::INIT_EXT);
        let old = introduction(&[7, 31, 131_072, 5]).unwrap();
        assert_eq!((old.minor, old.capabilities), (31, 5));
        // What stands where an old kernel has nothing does not count.
        assert_eq!(introduction(&[7, 31, 131_072, 5, 7]).unwrap().capabilities, 5);
        assert_eq!(introduction(&[7, 45, 0]), Err(Malformed::Short));
        assert_eq!(introduction(&[7, 45, 0, ext]), Err(Malformed::Short));
    }

    #[test]
    fn no_more_is_agreed_on_than_is_offered_and_wanted() {
        let offer = Introduction { major: 7, minor: 50, max_readahead: 9, capabilities: !0 };
        let always = flag::ASYNC_READ | flag::BIG_WRITES | flag::MAX_PAGES | flag::INIT_EXT;
        let agreed = offer.agree(flag::OVER_IO_URING).unwrap();
        assert_eq!(agreed.capabilities, always | flag::OVER_IO_URING);
        assert_eq!((agreed.minor, agreed.max_readahead), (45, 9));
        let poor = Introduction { capabilities: flag::ASYNC_READ, minor: 31, ..offer };
        let agreed = poor.agree(!0).unwrap();
        assert_eq!((agreed.minor, agreed.capabilities), (31, flag::ASYNC_READ));
        for (major, minor) in [(6, 45), (8, 0), (7, 30)] {
            assert_eq!(Introduction { major, minor, ..offer }.agree(0), None);
        }
    }

    #[test]
    fn an_agreement_has_its_fields_where_the_kernel_reads_them() {
        let offer = Introduction { major: 7, minor: 45, max_readahead: 5, capabilities: !0 };
        let agreed = offer.agree(flag::OVER_IO_URING | flag::WRITEBACK_CACHE).unwrap();
        let mut bytes = [0xff; 64];
        let mut out = Writer::new(&mut bytes);
        agreed.encode(4096, &mut out);
        assert_eq!(out.finish(), Some(64));
        let mut args = Args::new(&bytes, &[]);
        let mut u32 = || args.u32().unwrap();
        assert_eq!((u32(), u32(), u32()), (7, 45, 5));
        let low = agreed.capabilities as u32;
        assert_eq!((u32(), low & flag::WRITEBACK_CACHE as u32), (low, 1 << 16));
        assert_eq!(u32(), u32::from_le(48 << 16 | 64));
        assert_eq!((u32(), u32()), (1 << 20, 1));
        assert_eq!((u32(), u32()), (u32::from_le(256), 1 << 9));
        assert_eq!(args.bytes(28), Ok(&[0; 28][..]));
        // With passthrough, one file system may lie below.
        let agreed = offer.agree(flag::PASSTHROUGH).unwrap();
        let mut out = Writer::new(&mut bytes);
        agreed.encode(4096, &mut out);
        assert_eq!((out.finish(), &bytes[36..44]), (Some(64), &[1, 0, 0, 0, 0, 0, 0, 0][..]));
    }
}

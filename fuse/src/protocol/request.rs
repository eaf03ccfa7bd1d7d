//! Requests: a header, and arguments by the number of the operation.

use agentfs_engine::Ino;
use agentfs_engine::worktree::{Caller, SetAttributes, SetTime, Timestamp};

use super::IN_HEADER_BYTES;
use super::init::Introduction;
use super::wire::Args;

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// It ends before its last field.
    #[error("it ends before its last field")]
    Short,
    /// A name without an end.
    #[error("a name in it does not end")]
    Unterminated,
    /// Its header states another length than it has.
    #[error("its header states another length")]
    Length,
    /// A time has more nanoseconds than a second.
    #[error("a time in it is none")]
    Time,
}

/// What precedes the arguments of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Length of the whole request.
    pub(crate) len: u32,
    /// The number of the operation.
    pub(crate) opcode: u32,
    /// What its reply is known by.
    pub(crate) unique: u64,
    /// The inode it is about.
    pub(crate) node: Ino,
    /// On whose behalf the kernel asks.
    pub(crate) caller: Caller,
    /// The thread that asks; 0 where the kernel does so by itself.
    pub(crate) task: u32,
    /// Length of what follows the arguments: who else the caller is, which we never ask for.
    extension_bytes: usize,
}

impl Header {
    /// Reads a header.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Args::new(bytes, &[]);
        let (len, opcode) = (fields.u32()?, fields.u32()?);
        let (unique, node) = (fields.u64()?, Ino(fields.u64()?));
        let caller = Caller { uid: fields.u32()?, gid: fields.u32()? };
        let task = fields.u32()?;
        let extension_bytes = usize::from(fields.u16()?) * 8;
        fields.u16()?;
        Ok(Self { len, opcode, unique, node, caller, task, extension_bytes })
    }

    /// The operation that follows this header.
    pub(crate) fn op<'a>(&self, mut args: Args<'a>) -> Result<Op<'a>, Malformed> {
        args.cut(self.extension_bytes)?;
        Op::parse(self.opcode, args)
    }
}

/// A request that came in one piece.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) header: Header,
    pub(crate) args: Args<'a>,
}

impl<'a> Request<'a> {
    /// Reads a whole message of the kernel.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (head, body) = bytes.split_at_checked(IN_HEADER_BYTES).ok_or(Malformed::Short)?;
        let header = Header::parse(head)?;
        if header.len as usize != bytes.len() {
            return Err(Malformed::Length);
        }
        Ok(Self { header, args: Args::new(body, &[]) })
    }
}

/// What is to be copied, and where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) from_offset: u64,
    pub(crate) to: Ino,
    pub(crate) to_offset: u64,
    pub(crate) len: u64,
    /// Whether the answer has 64 bits.
    pub(crate) wide: bool,
}

/// An operation with the arguments that a worktree looks at. File handles are not among them: we give
/// none out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op<'a> {
    Lookup {
        name: &'a [u8],
    },
    Forget {
        references: u64,
    },
    /// Inodes with references, of 16 bytes each, which [`forgotten`] reads.
    BatchForget(&'a [u8]),
    Getattr,
    Setattr(SetAttributes),
    Readlink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    Mknod {
        name: &'a [u8],
        mode: u32,
        device: u32,
    },
    Mkdir {
        name: &'a [u8],
        mode: u32,
    },
    Unlink {
        name: &'a [u8],
    },
    Rmdir {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        new_parent: Ino,
        new_name: &'a [u8],
        flags: u32,
    },
    Link {
        ino: Ino,
        name: &'a [u8],
    },
    Open {
        flags: u32,
    },
    Read {
        offset: u64,
        size: u32,
    },
    Write {
        offset: u64,
        data: &'a [u8],
        kill_set_id: bool,
    },
    Statfs,
    Release {
        handle: u64,
    },
    Fsync,
    Setxattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: i32,
    },
    Getxattr {
        name: &'a [u8],
        size: u32,
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'a [u8],
    },
    Flush,
    Init(Introduction),
    Opendir,
    Readdir {
        cookie: u64,
        size: u32,
    },
    Readdirplus {
        cookie: u64,
        size: u32,
    },
    Releasedir,
    Fsyncdir,
    Getlk,
    Setlk,
    Access,
    Create {
        name: &'a [u8],
        mode: u32,
    },
    Tmpfile {
        mode: u32,
    },
    Interrupt,
    Bmap,
    Destroy,
    Ioctl,
    Poll,
    NotifyReply,
    Fallocate {
        offset: u64,
        len: u64,
        mode: i32,
    },
    Lseek {
        offset: i64,
        whence: i32,
    },
    CopyFileRange(Copy),
    Syncfs,
    Statx,
    /// One that this server does not know.
    Unknown,
}

const WRITE_KILL_SUIDGID: u32 = 1 << 2;

impl<'a> Op<'a> {
    fn parse(opcode: u32, mut args: Args<'a>) -> Result<Self, Malformed> {
        let args = &mut args;
        Ok(match opcode {
            1 => Self::Lookup { name: args.name()? },
            2 => Self::Forget { references: args.u64()? },
            3 => Self::Getattr,
            4 => Self::Setattr(set_attributes(args)?),
            5 => Self::Readlink,
            6 => Self::Symlink { name: args.name()?, target: args.name()? },
            8 => {
                let (mode, device) = (args.u32()?, args.u32()?);
                args.bytes(8)?;
                Self::Mknod { name: args.name()?, mode, device }
            }
            9 => {
                let mode = args.u32()?;
                args.u32()?;
                Self::Mkdir { name: args.name()?, mode }
            }
            10 => Self::Unlink { name: args.name()? },
            11 => Self::Rmdir { name: args.name()? },
            12 | 45 => {
                let new_parent = Ino(args.u64()?);
                let flags = if opcode == 12 { 0 } else { args.u32()? };
                if opcode == 45 {
                    args.u32()?;
                }
                Self::Rename { name: args.name()?, new_parent, new_name: args.name()?, flags }
            }
            13 => Self::Link { ino: Ino(args.u64()?), name: args.name()? },
            14 => Self::Open { flags: args.u32()? },
            15 | 28 | 44 => Self::read(opcode, args)?,
            16 => Self::write(args)?,
            17 => Self::Statfs,
            18 => Self::Release { handle: args.u64()? },
            20 => Self::Fsync,
            21 => {
                let (size, flags) = (args.u32()? as usize, args.u32()? as i32);
                Self::Setxattr { name: args.name()?, value: args.bytes(size)?, flags }
            }
            22 => {
                let size = args.u32()?;
                args.u32()?;
                Self::Getxattr { name: args.name()?, size }
            }
            23 => Self::Listxattr { size: args.u32()? },
            24 => Self::Removexattr { name: args.name()? },
            25 => Self::Flush,
            26 => Self::Init(Introduction::parse(args)?),
            27 => Self::Opendir,
            29 => Self::Releasedir,
            30 => Self::Fsyncdir,
            31 => Self::Getlk,
            32 | 33 => Self::Setlk,
            34 => Self::Access,
            35 | 51 => {
                args.u32()?;
                let mode = args.u32()?;
                args.bytes(8)?;
                // That of a file without a name means nothing.
                let name = args.name()?;
                if opcode == 35 { Self::Create { name, mode } } else { Self::Tmpfile { mode } }
            }
            36 => Self::Interrupt,
            37 => Self::Bmap,
            38 => Self::Destroy,
            39 => Self::Ioctl,
            40 => Self::Poll,
            41 => Self::NotifyReply,
            42 => {
                let count = args.u32()? as usize;
                args.u32()?;
                Self::BatchForget(args.bytes(count.saturating_mul(FORGOTTEN_BYTES))?)
            }
            43 => {
                args.u64()?;
                let (offset, len) = (args.u64()?, args.u64()?);
                Self::Fallocate { offset, len, mode: args.u32()? as i32 }
            }
            46 => {
                args.u64()?;
                Self::Lseek { offset: args.u64()? as i64, whence: args.u32()? as i32 }
            }
            47 | 53 => Self::copy(opcode == 53, args)?,
            50 => Self::Syncfs,
            52 => Self::Statx,
            _ => Self::Unknown,
        })
    }

    fn read(opcode: u32, args: &mut Args<'_>) -> Result<Self, Malformed> {
        args.u64()?;
        let (offset, size) = (args.u64()?, args.u32()?);
        Ok(match opcode {
            15 => Self::Read { offset, size },
            28 => Self::Readdir { cookie: offset, size },
            _ => Self::Readdirplus { cookie: offset, size },
        })
    }

    fn write(args: &mut Args<'a>) -> Result<Self, Malformed> {
        args.u64()?;
        let (offset, size, flags) = (args.u64()?, args.u32()?, args.u32()?);
        // Who locks, and how the file was opened.
        args.bytes(16)?;
        let kill_set_id = flags & WRITE_KILL_SUIDGID != 0;
        Ok(Self::Write { offset, data: args.bytes(size as usize)?, kill_set_id })
    }

    fn copy(wide: bool, args: &mut Args<'_>) -> Result<Self, Malformed> {
        args.u64()?;
        let (from_offset, to) = (args.u64()?, Ino(args.u64()?));
        args.u64()?;
        let (to_offset, len) = (args.u64()?, args.u64()?);
        Ok(Self::CopyFileRange(Copy { from_offset, to, to_offset, len, wide }))
    }
}

const FORGOTTEN_BYTES: usize = 16;

/// The inodes of a batch of forgets, each with the number of references that are given back.
pub(crate) fn forgotten(batch: &[u8]) -> impl Iterator<Item = (Ino, u64)> {
    batch.chunks_exact(FORGOTTEN_BYTES).filter_map(|one| {
        let mut args = Args::new(one, &[]);
        Some((Ino(args.u64().ok()?), args.u64().ok()?))
    })
}

const SET_MODE: u32 = 1 << 0;
const SET_UID: u32 = 1 << 1;
const SET_GID: u32 = 1 << 2;
const SET_SIZE: u32 = 1 << 3;
const SET_ATIME: u32 = 1 << 4;
const SET_MTIME: u32 = 1 << 5;
const SET_ATIME_NOW: u32 = 1 << 7;
const SET_MTIME_NOW: u32 = 1 << 8;

fn set_attributes(args: &mut Args<'_>) -> Result<SetAttributes, Malformed> {
    let valid = args.u32()?;
    args.bytes(12)?;
    let size = args.u64()?;
    args.u64()?;
    let (accessed, modified) = (args.u64()?, args.u64()?);
    args.u64()?;
    let (accessed_nanos, modified_nanos) = (args.u32()?, args.u32()?);
    args.u32()?;
    let mode = args.u32()?;
    args.u32()?;
    let (uid, gid) = (args.u32()?, args.u32()?);
    args.u32()?;
    let is_set = |bit| valid & bit != 0;
    let time = |set, now, seconds: u64, nanoseconds| match (is_set(set), is_set(now)) {
        (false, _) => Ok(None),
        (true, true) => Ok(Some(SetTime::Now)),
        (true, false) if nanoseconds < 1_000_000_000 => {
            // Seconds before the epoch are negative.
            Ok(Some(SetTime::At(Timestamp { seconds: seconds as i64, nanoseconds })))
        }
        (true, false) => Err(Malformed::Time),
    };
    Ok(SetAttributes {
        permissions: is_set(SET_MODE).then_some((mode & 0o7777) as u16),
        uid: is_set(SET_UID).then_some(uid),
        gid: is_set(SET_GID).then_some(gid),
        size: is_set(SET_SIZE).then_some(size),
        accessed: time(SET_ATIME, SET_ATIME_NOW, accessed, accessed_nanos)?,
        modified: time(SET_MTIME, SET_MTIME_NOW, modified, modified_nanos)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Writer;
    use super::*;

    /// A request as the kernel lays it out.
    fn message(opcode: u32, extension: &[u8], fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
        let mut body = [0; 256];
        let mut writer = Writer::new(&mut body);
        fill(&mut writer);
        let len = writer.finish().unwrap();
        let mut bytes = vec![0; IN_HEADER_BYTES + len];
        let mut out = Writer::new(&mut bytes);
        out.u32((IN_HEADER_BYTES + len + extension.len()) as u32);
        out.u32(opcode);
        out.u64(99);
        out.u64(5);
        out.u32(1000);
        out.u32(100);
        out.u32(4321);
        out.u16((extension.len() / 8) as u16);
        out.u16(0);
        out.bytes(&body[..len]);
        bytes.extend_from_slice(extension);
        bytes
    }

    fn with_op<T>(bytes: &[u8], check: impl FnOnce(Result<Op<'_>, Malformed>) -> T) -> T {
        let request = Request::parse(bytes).unwrap();
        check(request.header.op(request.args))
    }

    #[test]
    fn a_header_is_read() {
        let bytes = message(3, &[], |out| out.zeros(16));
        let header = Request::parse(&bytes).unwrap().header;
        assert_eq!((header.opcode, header.unique, header.node), (3, 99, Ino(5)));
        assert_eq!(header.caller, Caller { uid: 1000, gid: 100 });
        assert!(matches!(Request::parse(&bytes[..55]), Err(Malformed::Length)));
        assert!(matches!(Request::parse(&bytes[..39]), Err(Malformed::Short)));
    }

    #[test]
    fn what_follows_the_arguments_is_left_out() {
        let write = |out: &mut Writer<'_>| {
            out.zeros(8);
            out.u64(4096);
            out.u32(5);
            out.u32(WRITE_KILL_SUIDGID);
            out.zeros(16);
            out.bytes(b"hello");
        };
        let op = Op::Write { offset: 4096, data: b"hello", kill_set_id: true };
        for extension in [&[][..], &[0xff; 16]] {
            with_op(&message(16, extension, write), |parsed| assert_eq!(parsed.as_ref(), Ok(&op)));
        }
        // It cannot be longer than what there is.
        let mut bytes = message(16, &[], write);
        bytes[36..38].copy_from_slice(&[0xff, 0xff]);
        with_op(&bytes, |parsed| assert_eq!(parsed, Err(Malformed::Short)));
    }

    #[test]
    fn attributes_to_be_set_are_those_that_are_marked() {
        let set = |valid: u32, nanos: u32| {
            let bytes = message(4, &[], |out| {
                out.u32(valid);
                out.zeros(12);
                out.u64(77);
                out.u64(0);
                out.u64(u64::MAX);
                out.u64(6);
                out.u64(0);
                out.u32(nanos);
                out.u32(9);
                out.u32(0);
                out.u32(0o107_644);
                out.u32(0);
                out.u32(1);
                out.u32(2);
                out.u32(0);
            });
            with_op(&bytes, |parsed| parsed.map(|op| format!("{op:?}")))
        };
        let shown = |attributes: SetAttributes| Ok(format!("{:?}", Op::Setattr(attributes)));
        assert_eq!(set(0, 0), shown(SetAttributes::default()));
        let at = |seconds, nanoseconds| Some(SetTime::At(Timestamp { seconds, nanoseconds }));
        assert_eq!(
            set(0x3f, 8),
            shown(SetAttributes {
                permissions: Some(0o7644),
                uid: Some(1),
                gid: Some(2),
                size: Some(77),
                accessed: at(-1, 8),
                modified: at(6, 9),
            })
        );
        let now = SetAttributes {
            accessed: Some(SetTime::Now),
            modified: Some(SetTime::Now),
            ..Default::default()
        };
        assert_eq!(set(0x1b0, u32::MAX), shown(now));
        assert_eq!(set(SET_ATIME, 1_000_000_000), Err(Malformed::Time));
    }

    #[test]
    fn an_open_has_flags_and_its_end_has_what_it_was_told() {
        let open = message(14, &[], |out| {
            out.u32(0o100_002);
            out.u32(7);
        });
        with_op(&open, |op| assert_eq!(op, Ok(Op::Open { flags: 0o100_002 })));
        let release = message(18, &[], |out| {
            out.u64(1 << 40 | 2);
            out.u64(9);
            out.u64(9);
        });
        with_op(&release, |op| assert_eq!(op, Ok(Op::Release { handle: 1 << 40 | 2 })));
    }

    #[test]
    fn arguments_may_come_in_two_pieces() {
        let bytes = message(45, &[], |out| {
            out.u64(7);
            out.u32(1);
            out.u32(0);
            out.bytes(b"old\0new\0");
        });
        let header = Header::parse(&bytes).unwrap();
        let body = &bytes[IN_HEADER_BYTES..];
        let op = Op::Rename { name: b"old", new_parent: Ino(7), new_name: b"new", flags: 1 };
        for split in [0, 16, body.len()] {
            let (first, rest) = body.split_at(split);
            assert_eq!(header.op(Args::new(first, rest)).as_ref(), Ok(&op));
        }
    }

    #[test]
    fn a_batch_of_forgets_is_as_long_as_it_says() {
        let batch = |count: u32| {
            let bytes = message(42, &[], |out| {
                out.u32(count);
                out.u32(0);
                [3, 1, 4, 1].iter().for_each(|&number| out.u64(number));
            });
            with_op(&bytes, |parsed| match parsed {
                Ok(Op::BatchForget(batch)) => Ok(forgotten(batch).collect::<Vec<_>>()),
                other => Err(format!("{other:?}")),
            })
        };
        assert_eq!(batch(2), Ok(vec![(Ino(3), 1), (Ino(4), 1)]));
        assert_eq!(batch(1), Ok(vec![(Ino(3), 1)]));
        for count in [3, u32::MAX] {
            assert_eq!(batch(count), Err(format!("{:?}", Err::<Op<'_>, _>(Malformed::Short))));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            opcode in 0_u32..64,
            extension in 0_u16..4,
            body in proptest::collection::vec(any::<u8>(), 0..300),
            split in 0_usize..300,
        ) {
            let mut bytes = message(opcode, &[], |_| ());
            bytes.extend(&body);
            let len = bytes.len() as u32;
            bytes[..4].copy_from_slice(&len.to_le_bytes());
            bytes[36..38].copy_from_slice(&extension.to_le_bytes());
            let Ok(request) = Request::parse(&bytes) else { return Ok(()) };
            let _ = request.header.op(request.args);
            let (first, rest) = body.split_at(split.min(body.len()));
            if let Ok(Op::BatchForget(batch)) = request.header.op(Args::new(first, rest)) {
                let _ = forgotten(batch).count();
            }
            let _ = Request::parse(&body).map(|request| request.header.op(request.args).is_ok());
        }
    }
}

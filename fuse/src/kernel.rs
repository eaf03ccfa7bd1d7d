//! The transport over `/dev/fuse`: fuser's callbacks to calls of [`Ops`].

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use agentfs_engine::Ino;
use agentfs_engine::worktree::NodeKind;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::io::Errno;

use crate::attr;
use crate::counters::Message;
use crate::dir;
use crate::ops::{Found, Ops};
use crate::probe::KernelFuse;

/// Largest READ or WRITE, and the kernel's own default limit of 256 pages.
pub(crate) const MESSAGE_BYTES_MAX: u32 = 1 << 20;
/// Reads ahead that may wait for us at once; the kernel's default of 12 starves readers in parallel.
const BACKGROUND_MAX: u16 = 64;

thread_local! {
    /// What a READ is answered from. It grows to the largest READ that this thread has seen.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// fuser's view of a worktree.
pub(crate) struct Kernel {
    ops: Arc<Ops>,
    agreed: Arc<OnceLock<KernelFuse>>,
}

/// Our errno as fuser's.
pub(crate) fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

impl Kernel {
    /// `agreed` is set when the kernel has introduced itself.
    pub(crate) fn new(ops: Arc<Ops>, agreed: Arc<OnceLock<KernelFuse>>) -> Self {
        Self { ops, agreed }
    }

    /// Capabilities that the levers ask for.
    fn wanted(&self) -> impl Iterator<Item = InitFlags> {
        let levers = self.ops.levers();
        [
            (levers.readdirplus, InitFlags::FUSE_DO_READDIRPLUS),
            (levers.parallel_dirops, InitFlags::FUSE_PARALLEL_DIROPS),
            (levers.cache_symlinks, InitFlags::FUSE_CACHE_SYMLINKS),
            (levers.explicit_invalidation, InitFlags::FUSE_EXPLICIT_INVAL_DATA),
            (levers.killpriv, InitFlags::FUSE_HANDLE_KILLPRIV_V2),
        ]
        .into_iter()
        .filter_map(|(on, flag)| on.then_some(flag))
    }
}

fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

fn open_reply(result: Result<bool, Errno>, keep: FopenFlags, reply: ReplyOpen) {
    match result {
        Ok(kept) => {
            reply.opened(FileHandle(0), if kept { keep } else { FopenFlags::empty() });
        }
        Err(refusal) => reply.error(errno(refusal)),
    }
}

impl Filesystem for Kernel {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.ops.done(Message::Init);
        let offered = config.capabilities();
        for flag in self.wanted() {
            if offered.contains(flag) {
                config.add_capabilities(flag).map_err(|flags| {
                    io::Error::other(format!("{flags:?} was offered and refused"))
                })?;
            }
        }
        // Each setter refuses only what is out of the range that fuser documents: these are not.
        let _ = config.set_max_write(MESSAGE_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        let version = config.kernel_abi();
        let _ = self.agreed.set(KernelFuse {
            major: version.0,
            minor: version.1,
            capabilities: offered.bits(),
        });
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let ttl = self.ops.levers().ttl();
        match self.ops.lookup(ino(parent), name.as_bytes()) {
            Ok(Found::Entry(attributes)) => {
                reply.entry(&ttl, &attr::file_attr(&attributes), Generation(0));
            }
            // Inode 0 is how an entry says that there is none.
            Ok(Found::Nothing) => {
                reply.entry(&ttl, &attr::nameless(Ino(0), NodeKind::File), Generation(0));
            }
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    // Inode numbers need no table, so there is nothing to forget.
    fn forget(&self, _req: &Request, _ino: INodeNo, _nlookup: u64) {
        self.ops.done(Message::Forget);
    }

    fn getattr(&self, _req: &Request, number: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.ops.attributes(ino(number)) {
            Ok(attributes) => {
                reply.attr(&self.ops.levers().ttl(), &attr::file_attr(&attributes));
            }
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn readlink(&self, _req: &Request, number: INodeNo, reply: ReplyData) {
        match self.ops.read_link(ino(number)) {
            Ok(target) => reply.data(&target),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        open_reply(self.ops.open(), FopenFlags::FOPEN_KEEP_CACHE, reply);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let keep = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        open_reply(self.ops.open_directory(), keep, reply);
    }

    fn read(
        &self,
        _req: &Request,
        number: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // The kernel never asks for more than was agreed; a shorter reply would look like the end.
        if size > MESSAGE_BYTES_MAX {
            return reply.error(fuser::Errno::EINVAL);
        }
        READ_BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.ops.read(ino(number), offset, &mut buffer[..size]) {
                Ok(len) => reply.data(&buffer[..len]),
                Err(refusal) => reply.error(errno(refusal)),
            }
        });
    }

    fn readdir(&self, _req: &Request, n: INodeNo, _fh: FileHandle, at: u64, reply: ReplyDirectory) {
        dir::names(&self.ops, ino(n), at, reply);
    }

    fn readdirplus(
        &self,
        _req: &Request,
        number: INodeNo,
        _fh: FileHandle,
        cookie: u64,
        reply: ReplyDirectoryPlus,
    ) {
        dir::entries(&self.ops, ino(number), cookie, reply);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.ops.statistics() {
            Ok(fs) => reply.statfs(
                fs.blocks,
                fs.blocks_free,
                fs.blocks_available,
                fs.files,
                fs.files_free,
                fs.block_size,
                fs.name_max,
                fs.block_size,
            ),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn lseek(
        &self,
        _req: &Request,
        number: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.ops.seek(ino(number), offset, whence) {
            Ok(position) => reply.offset(position),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        match self.ops.flush() {
            Ok(()) => reply.ok(),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.ops.done(Message::Release);
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.ops.done(Message::Releasedir);
        reply.ok();
    }

    fn fsync(&self, _r: &Request, _i: INodeNo, _fh: FileHandle, _data: bool, reply: ReplyEmpty) {
        self.ops.done(Message::Fsync);
        reply.ok();
    }

    fn fsyncdir(&self, _r: &Request, _i: INodeNo, _fh: FileHandle, _data: bool, reply: ReplyEmpty) {
        self.ops.done(Message::Fsyncdir);
        reply.ok();
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(errno(self.ops.unsupported(Message::Access)));
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(errno(self.ops.ioctl()));
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(errno(self.ops.unsupported(Message::Poll)));
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(errno(self.ops.unsupported(Message::Bmap)));
    }

    fn getlk(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        reply.error(errno(self.ops.unsupported(Message::Getlk)));
    }

    fn setlk(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(self.ops.unsupported(Message::Setlk)));
    }

    fn getxattr(&self, _r: &Request, _i: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(errno(self.ops.no_xattr(Message::Getxattr)));
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(errno(self.ops.no_xattr(Message::Listxattr)));
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(self.ops.no_xattr(Message::Setxattr)));
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(self.ops.no_xattr(Message::Removexattr)));
    }

    fn setattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(errno(self.ops.read_only(Message::Setattr)));
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(errno(self.ops.read_only(Message::Mknod)));
    }

    fn mkdir(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(errno(self.ops.read_only(Message::Mkdir)));
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(errno(self.ops.read_only(Message::Create)));
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(self.ops.read_only(Message::Unlink)));
    }

    fn rmdir(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(self.ops.read_only(Message::Rmdir)));
    }

    fn symlink(&self, _r: &Request, _i: INodeNo, _name: &OsStr, _to: &Path, reply: ReplyEntry) {
        reply.error(errno(self.ops.read_only(Message::Symlink)));
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(self.ops.read_only(Message::Rename)));
    }

    fn link(&self, _r: &Request, _i: INodeNo, _dir: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        reply.error(errno(self.ops.read_only(Message::Link)));
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(errno(self.ops.read_only(Message::Write)));
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(self.ops.read_only(Message::Fallocate)));
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(errno(self.ops.read_only(Message::CopyFileRange)));
    }
}

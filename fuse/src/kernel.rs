//! The transport over `/dev/fuse`: fuser's callbacks to calls of [`Ops`].

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use agentfs_engine::Ino;
use agentfs_engine::worktree::{Caller, NodeKind, SetAttributes, SetTime};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::attr;
use crate::counters::Message;
use crate::dir;
use crate::ops::{Found, Ops};
use crate::probe::KernelFuse;
use crate::reply;

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

impl Kernel {
    /// `agreed` is set when the kernel has introduced itself.
    pub(crate) fn new(ops: Arc<Ops>, agreed: Arc<OnceLock<KernelFuse>>) -> Self {
        Self { ops, agreed }
    }

    /// How long a reply may be relied on.
    fn ttl(&self) -> Duration {
        self.ops.levers().ttl()
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
            (levers.writeback_cache, InitFlags::FUSE_WRITEBACK_CACHE),
        ]
        .into_iter()
        .filter_map(|(on, flag)| on.then_some(flag))
    }
}

fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

/// On whose behalf the kernel asks.
fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(attr::told_time(time)),
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
        let found = match self.ops.lookup(ino(parent), name.as_bytes()) {
            Ok(Found::Entry(attributes)) => Ok(attributes),
            // Inode 0 is how an entry says that there is none.
            Ok(Found::Nothing) => {
                let nothing = attr::nameless(Ino(0), NodeKind::File);
                return reply.entry(&self.ttl(), &nothing, Generation(0));
            }
            Err(refusal) => Err(refusal),
        };
        reply::entry(found, self.ttl(), reply);
    }

    fn forget(&self, _req: &Request, number: INodeNo, references: u64) {
        self.ops.forget(ino(number), references);
    }

    fn getattr(&self, _req: &Request, number: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply::attr(self.ops.attributes(ino(number)), self.ttl(), reply);
    }

    fn readlink(&self, _req: &Request, number: INodeNo, reply: ReplyData) {
        reply::data(self.ops.read_link(ino(number)), reply);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply::opened(self.ops.open(), FopenFlags::FOPEN_KEEP_CACHE, reply);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let keep = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        reply::opened(self.ops.open_directory(), keep, reply);
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
                Err(refusal) => reply.error(reply::errno(refusal)),
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
            Err(refusal) => reply.error(reply::errno(refusal)),
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
            Err(refusal) => reply.error(reply::errno(refusal)),
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
        reply::empty(self.ops.flush(), reply);
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

    fn fsync(&self, _r: &Request, n: INodeNo, _fh: FileHandle, _data: bool, reply: ReplyEmpty) {
        reply::empty(self.ops.sync(Message::Fsync, ino(n)), reply);
    }

    fn fsyncdir(&self, _r: &Request, n: INodeNo, _fh: FileHandle, _data: bool, reply: ReplyEmpty) {
        reply::empty(self.ops.sync(Message::Fsyncdir, ino(n)), reply);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(reply::errno(self.ops.unsupported(Message::Access)));
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
        reply.error(reply::errno(self.ops.ioctl()));
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
        reply.error(reply::errno(self.ops.unsupported(Message::Poll)));
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(reply::errno(self.ops.unsupported(Message::Bmap)));
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
        reply.error(reply::errno(self.ops.unsupported(Message::Getlk)));
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
        reply.error(reply::errno(self.ops.unsupported(Message::Setlk)));
    }

    fn getxattr(&self, _r: &Request, n: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply::xattr(self.ops.xattr(ino(n), name.as_bytes(), size), reply);
    }

    fn listxattr(&self, req: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        reply::xattr(self.ops.xattr_names(caller(req), ino(number), size), reply);
    }

    fn setxattr(
        &self,
        _req: &Request,
        number: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply::empty(self.ops.set_xattr(ino(number), name.as_bytes(), value, flags), reply);
    }

    fn removexattr(&self, _req: &Request, number: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply::empty(self.ops.remove_xattr(ino(number), name.as_bytes()), reply);
    }

    fn setattr(
        &self,
        req: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttributes {
            permissions: mode.map(|mode| (mode & 0o7777) as u16),
            uid,
            gid,
            size,
            accessed: atime.map(set_time),
            modified: mtime.map(set_time),
        };
        let result = self.ops.set_attributes(caller(req), ino(number), &set);
        reply::attr(result, self.ttl(), reply);
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        device: u32,
        reply: ReplyEntry,
    ) {
        let name = name.as_bytes();
        let made = self.ops.make_node(caller(req), ino(parent), name, mode, device);
        reply::entry(made, self.ttl(), reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let made = self.ops.make_directory(caller(req), ino(parent), name.as_bytes(), mode);
        reply::entry(made, self.ttl(), reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.ops.create(caller(req), ino(parent), name.as_bytes(), mode);
        reply::created(made, self.ttl(), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply::empty(self.ops.unlink(ino(parent), name.as_bytes()), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply::empty(self.ops.remove_directory(ino(parent), name.as_bytes()), reply);
    }

    fn symlink(&self, req: &Request, dir: INodeNo, name: &OsStr, to: &Path, reply: ReplyEntry) {
        let target = to.as_os_str().as_bytes();
        let made = self.ops.make_link(caller(req), ino(dir), name.as_bytes(), target);
        reply::entry(made, self.ttl(), reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name) = (name.as_bytes(), new_name.as_bytes());
        let (parent, new_parent) = (ino(parent), ino(new_parent));
        reply::empty(self.ops.rename(parent, name, new_parent, new_name, flags.bits()), reply);
    }

    fn link(&self, _r: &Request, number: INodeNo, dir: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let made = self.ops.link(ino(number), ino(dir), name.as_bytes());
        reply::entry(made, self.ttl(), reply);
    }

    fn write(
        &self,
        _req: &Request,
        number: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill_set_id = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match self.ops.write(ino(number), offset, data, kill_set_id) {
            // The kernel counts in 32 bits as well.
            Ok(()) => reply.written(data.len() as u32),
            Err(refusal) => reply.error(reply::errno(refusal)),
        }
    }

    fn fallocate(
        &self,
        req: &Request,
        number: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let result = self.ops.allocate(caller(req), ino(number), mode, offset, length);
        reply::empty(result, reply);
    }

    fn copy_file_range(
        &self,
        req: &Request,
        from: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        to: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((ino(from), offset_in), (ino(to), offset_out));
        match self.ops.copy_range(caller(req), from, to, len) {
            Ok(copied) => reply.written(copied),
            Err(refusal) => reply.error(reply::errno(refusal)),
        }
    }
}

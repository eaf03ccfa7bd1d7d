//! Every bound of the engine, by name and unit. A limit exists so that hostile or damaged input
//! costs an error instead of memory or time.

/// Longest entry name in bytes, as on the usual native file systems (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;
/// Most layers that lie on each other. Each snapshot of a branch adds one.
pub const LAYERS_MAX: usize = 1 << 20;
/// Deepest nesting of directories that a tree may have.
pub const TREE_DEPTH_MAX: usize = 4096;
/// Most entries below one root directory: their inode numbers must fit in 32 bits with room for
/// those that are reserved, since git and 32-bit programs compare only that many.
pub const TREE_ENTRIES_MAX: u64 = u32::MAX as u64 - 4096;
/// Longest encoded directory object in bytes.
pub const TREE_BYTES_MAX: u64 = 1 << 30;
/// Longest target of a symbolic link in bytes (`PATH_MAX` without its NUL).
pub const SYMLINK_BYTES_MAX: u64 = 4095;
/// Longest value of an extended attribute in bytes (`XATTR_SIZE_MAX`).
pub const XATTR_BYTES_MAX: usize = 64 << 10;
/// Most bytes that the extended attributes of one inode take, names and values.
pub const XATTRS_BYTES_MAX: usize = 128 << 10;
/// Most names of an inode, subdirectories included.
pub const LINKS_MAX: u32 = i32::MAX as u32;
/// Most bytes that one copy between files takes out of the outbox, where they cannot be shared.
pub const COPY_BYTES_MAX: u64 = 4 << 20;
/// Most pieces that one copy between files names, so that its record stays within
/// [`OUTBOX_HEAD_BYTES_MAX`].
pub const COPY_EXTENTS_MAX: usize = 8192;
/// Largest file size that a tree may state, in bytes: the kernel's signed 64-bit offset.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;
/// Longest chunk in bytes, before compression.
pub const CHUNK_BYTES_MAX: u32 = crate::chunker::CHUNK_MAX as u32;
/// Length in bytes at which a segment file is closed and the next one begun. A single larger
/// payload gets a segment of its own.
pub const SEGMENT_BYTES_MAX: u64 = 256 << 20;
/// Most segment files open for reading at a time.
pub const SEGMENTS_OPEN_MAX: usize = 256;
/// Bytes of verified chunks kept in memory, for files that are read in pieces.
pub const CHUNK_CACHE_BYTES: usize = 32 << 20;
/// Bytes of contents that are kept as plain files beside their chunks. They are read through the machine's page
/// cache, so keeping more than that holds gains nothing: this is half the memory of a machine with 8 GiB.
pub const PLAIN_FILES_BYTES_MAX: u64 = 4 << 30;
/// Bytes that making a plain file leaves free on its device: what is only a copy takes no room from what is written.
pub const PLAIN_FILES_SPARE_BYTES: u64 = 1 << 30;
/// Bytes of manifests kept in memory.
pub const MANIFEST_CACHE_BYTES: usize = 8 << 20;
/// Bytes of database pages kept in memory.
pub const DATABASE_CACHE_BYTES: usize = 48 << 20;
/// Bytes that may wait for the background writer.
pub const WRITER_QUEUE_BYTES: usize = 16 << 20;
/// Bytes of memory that a batch of the background writer may take before it is committed. The keys
/// of all tables are digests, so every commit to a large store rewrites most leaves of its tables:
/// few large commits write far less than many small ones.
pub const WRITER_BATCH_BYTES: usize = 48 << 20;
/// Bytes of payloads after which the background writer commits.
pub const WRITER_BATCH_PAYLOAD_BYTES: u64 = 128 << 20;
/// Longest head of an outbox record in bytes: what it puts, apart from file data. It is held in
/// memory when the outbox is replayed.
pub const OUTBOX_HEAD_BYTES_MAX: usize = 1 << 20;
/// Longest body of an outbox record in bytes: the file data of one write.
pub const OUTBOX_BODY_BYTES_MAX: usize = 16 << 20;
/// Bytes of an outbox from which on it is drained without delay. A drain takes the processors and the
/// device from whoever writes: with 32 MiB, a gigabyte took three times as long to write.
pub const OUTBOX_DRAIN_BYTES: u64 = 1 << 30;
/// Bytes of an outbox from which on a change waits for a drain. So many can be read back and verified in
/// about a second when the branch is opened.
pub const OUTBOX_BYTES_MAX: u64 = 2 << 30;
/// Length in bytes at which an outbox segment is closed and the next one begun. Appending is as
/// fast with 64 as with 256 MiB and slower with 16; a smaller segment is trimmed sooner.
pub const OUTBOX_SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Least bytes for which an outbox segment reserves room at a time.
pub const OUTBOX_RESERVE_BYTES_MIN: u64 = 64 << 10;
/// Most bytes for which an outbox segment reserves room beyond what a record needs. Reserving 1 MiB
/// at a time costs no measurable time; 4 and 16 MiB cost no less and keep more from others.
pub const OUTBOX_RESERVE_BYTES_MAX: u64 = 1 << 20;
/// Most bytes that are appended between two syncs of an outbox while they count as small.
pub const OUTBOX_SYNC_LITTLE_BYTES: u64 = 16 << 10;
/// Bytes of zeros that are written ahead of small syncs at a time, so that there is one for 16 of the
/// largest of them at least.
pub const OUTBOX_ZEROS_BYTES: usize = 256 << 10;

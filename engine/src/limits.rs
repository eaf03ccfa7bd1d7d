//! Every bound of the engine, by name and unit. A limit exists so that hostile or damaged input
//! costs an error instead of memory or time.

/// Longest entry name in bytes, as on the usual native file systems (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;
/// Deepest nesting of directories that a tree may have.
pub const TREE_DEPTH_MAX: usize = 4096;
/// Most entries below one root directory: their inode numbers must fit in 32 bits with room for
/// those that are reserved, since git and 32-bit programs compare only that many.
pub const TREE_ENTRIES_MAX: u64 = u32::MAX as u64 - 4096;
/// Longest encoded directory object in bytes.
pub const TREE_BYTES_MAX: u64 = 1 << 30;
/// Longest target of a symbolic link in bytes (`PATH_MAX` without its NUL).
pub const SYMLINK_BYTES_MAX: u64 = 4095;
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
/// Bytes of manifests kept in memory.
pub const MANIFEST_CACHE_BYTES: usize = 8 << 20;
/// Bytes of database pages kept in memory.
pub const DATABASE_CACHE_BYTES: usize = 64 << 20;
/// Bytes that may wait for the background writer.
pub const WRITER_QUEUE_BYTES: usize = 16 << 20;
/// Bytes of memory that a batch of the background writer may take before it is committed. The keys
/// of all tables are digests, so every commit to a large store rewrites most leaves of its tables:
/// few large commits write far less than many small ones.
pub const WRITER_BATCH_BYTES: usize = 48 << 20;
/// Bytes of payloads after which the background writer commits.
pub const WRITER_BATCH_PAYLOAD_BYTES: u64 = 128 << 20;

//! Every bound of this crate, by name and unit. A limit exists so that hostile or damaged input
//! costs an error instead of memory or time.

/// Largest object in bytes that any worker may hold in memory, together with the largest member of
/// its delta chain. It is also the weight of most objects of a source repository.
pub const LIGHT_OBJECT_BYTES_MAX: u64 = 1 << 20;
/// Largest object in bytes that is held in memory at all, by one worker at a time; larger blobs are
/// streamed.
pub const WHOLE_OBJECT_BYTES_MAX: u64 = 8 << 20;
/// Largest git tree object in bytes: about 1.5 million entries in one directory.
pub const TREE_OBJECT_BYTES_MAX: u64 = 64 << 20;
/// git ignores `.gitattributes` files above this many bytes. Those above
/// [`WHOLE_OBJECT_BYTES_MAX`] that it does not ignore are refused.
pub const ATTRIBUTES_BYTES_IGNORED: u64 = 100 << 20;
/// Largest file in bytes that is converted at checkout: git streams larger ones unconverted unless
/// told otherwise.
pub const CONVERTED_BYTES_MAX: u64 = 512 << 20;
/// Most deltas between an object and its base. git writes at most 4,095.
pub const DELTA_CHAIN_MAX: usize = 4096;
/// Largest base of a delta in bytes, when it is too large for memory and is written to a temporary
/// file. git makes no deltas of files above 512 MiB unless told to.
pub const DELTA_BASE_BYTES_MAX: u64 = 4 << 30;
/// Most bytes of such bases that are written for one object. A chain of 50 deltas, which is as long as
/// git makes them, of the largest files that it makes deltas of has 25 GiB.
pub const DELTA_BASES_BYTES_MAX: u64 = 32 << 30;
/// Largest blob in bytes. Some kilobytes of a pack can stand for any number of bytes; of a file that
/// is being stored, memory holds 36 bytes for every 128 KiB or so.
pub const BLOB_BYTES_MAX: u64 = 256 << 30;
/// Most trees that one import reads. Equal trees are read once, unless conversions depend on the
/// path: then a few forged trees could stand for any number of directories.
pub const WALK_TREES_MAX: u64 = 4 << 20;
/// Bytes of delta bases that one reader keeps for the next object.
pub const DELTA_CACHE_BYTES: usize = 2 << 20;
/// Bytes of pack indexes that this process holds in memory; the others are read where needed.
pub const INDEX_HELD_BYTES_MAX: u64 = 16 << 20;
/// Marks of a pack index that is not held; with them and 4 bytes an object, 1,500,000 objects are in those bytes.
pub const INDEX_MARKS_MAX: u32 = 1_500_000;
/// Bytes of tree objects that a walk keeps while their subtrees are walked; others are read twice.
pub const WALK_HELD_BYTES_MAX: u64 = 32 << 20;
/// Bytes of the trees that are remembered of a repository between two moves of its worktrees.
pub const REMEMBERED_TREES_BYTES: usize = 2 << 20;
/// How deep alternates of alternates are followed, as git has it.
pub const ALTERNATES_DEPTH_MAX: usize = 5;
/// Most tags between a revision and its commit.
pub const TAG_CHAIN_MAX: usize = 64;
/// How often an object that replaces another may be replaced itself, the first time included, before
/// git gives up.
pub const REPLACEMENTS_MAX: usize = 5;
/// Most symbolic references between a name and an object, as git has it.
pub const SYMBOLIC_REFERENCES_MAX: usize = 5;
/// Most threads that one import uses.
pub const WORKERS_MAX: usize = 8;

/// Damaged blobs after which an ingest gives up: the repository as a whole is then not usable.
pub const DAMAGED_BLOBS_MAX: u64 = 16;

/// Longest file of a git directory that holds one line, in bytes.
pub const GIT_FILE_BYTES_MAX: u64 = 64 << 10;
/// How deep directories in a git directory of a worktree are, when its state is carried: git makes two
/// levels, and references as many as their names have.
pub const STATE_DEPTH_MAX: u32 = 16;
/// Longest index that is examined, in bytes.
pub const INDEX_BYTES_MAX: u64 = 2 << 30;

/// Threads that an import uses here.
pub(crate) fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |threads| threads.get().min(WORKERS_MAX))
}

//! Every bound of the crate, its unit last in the name. What can be related is related by const asserts below.
//!
//! None of these decides whether a transaction is accepted: such limits are replicated settings
//! (`command::Settings`), because all replicas must decide alike.

use crate::format;

/// Size at which a segment is closed unless the database was made with another, bytes of frames.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;

/// Smallest segment size that a ledger accepts, bytes. Tests roll segments with a handful of frames.
pub const SEGMENT_BYTES_MIN: u64 = 256;

/// Largest segment size that a ledger accepts, bytes: offsets within a segment are 32 bit in sidecars.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// Longest payload of one frame, bytes. A length field above it is damage, not a reason to allocate.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 256 << 20;

/// First step by which the open segment is filled with zeros ahead of its frames, bytes. Syncing into zeroed space
/// needs no journal commit of the file system; the file header counts towards the step.
pub const ZERO_FILL_BYTES_MIN: u64 = 64 << 10;

/// Steps double up to this size, bytes.
pub const ZERO_FILL_BYTES_MAX: u64 = 4 << 20;

/// Frames of more bytes in one write are not followed by zeros.
pub const ZERO_FILL_FRAMES_MAX: u64 = 64 << 10;

/// Flushed frames kept in memory when the options say nothing else, bytes of frames.
pub const TAIL_CACHE_BYTES_DEFAULT: usize = 4 << 20;

/// Frames hashed at the latest when this many bytes wait for it.
pub const UNHASHED_BYTES_MAX: usize = 4 << 20;

/// Files of closed segments kept open for reading, per database.
pub const READ_HANDLES_MAX: usize = 8;

/// Offset maps of closed segments kept in memory, per database, bytes.
pub const SIDECAR_CACHE_BYTES: usize = 4 << 20;

/// What an empty database may take on disk, bytes.
pub const EMPTY_DATABASE_BYTES_MAX: u64 = 256 << 10;

const _: () = {
    assert!(SEGMENT_BYTES_MIN > format::FRAME_HEAD_BYTES as u64, "a segment must take at least one frame");
    assert!(SEGMENT_BYTES_MIN <= SEGMENT_BYTES_DEFAULT && SEGMENT_BYTES_DEFAULT <= SEGMENT_BYTES_MAX);
    assert!(SEGMENT_BYTES_MAX <= u32::MAX as u64, "sidecar offsets are 32 bit");
    assert!(FRAME_PAYLOAD_BYTES_MAX + format::FRAME_HEAD_BYTES <= u32::MAX as usize, "frame lengths are 32 bit");
    assert!(format::SEGMENT_HEADER_BYTES < ZERO_FILL_BYTES_MIN, "the first step holds the header and some frames");
    assert!(ZERO_FILL_BYTES_MIN <= ZERO_FILL_BYTES_MAX && ZERO_FILL_BYTES_MAX.is_multiple_of(ZERO_FILL_BYTES_MIN));
    assert!(COMMIT_BATCH_BYTES_MAX <= FRAME_PAYLOAD_BYTES_MAX && COMMIT_BATCH_BYTES_MAX <= COMMIT_QUEUE_BYTES_MAX);
    assert!(UNSYNCED_BYTES_FLUSH < UNSYNCED_BYTES_MAX, "one flush is under way while the next bytes gather");
    assert!(ZERO_FILL_BYTES_MIN <= EMPTY_DATABASE_BYTES_MAX, "the first segment alone must leave room for other files");
};

/// Outcomes that a database remembers, so that a retry is recognised. Decides what is accepted, therefore part of the
/// format: never changed for an existing command version.
pub const REQUEST_OUTCOMES_KEPT: usize = 65_536;

/// Longest read set of a proposal, encoded, bytes. Decides what is accepted, therefore part of the format.
pub const READ_SET_BYTES_MAX: usize = 64 << 10;

/// Transactions that an imported header may lag behind with its BlTxID: proofs grow with it. Decides what is accepted, therefore
/// part of the format.
pub const LINK_GAP_MAX: u64 = 1 << 16;

/// Savepoints that a transaction holds at a time.
pub const SAVEPOINTS_MAX: usize = 1024;

/// Values below this are never compressed, bytes: they would not get shorter, and trying costs as much as hashing.
pub const COMPRESSION_VALUE_BYTES_MIN: usize = 64;

/// Compression is kept when it saves at least so much, bytes: what the plain length takes in the ledger and in the record.
pub const COMPRESSION_SAVED_BYTES_MIN: usize = 10;

/// No LZ4 block is longer in plain than so many times its stored bytes, so a greater length is a lie. Decides what is
/// accepted, therefore part of the format.
pub const LZ4_EXPANSION_MAX: usize = 255;

/// Proposals that wait for a group commit, or are on their way, bytes. A larger one waits until it is alone.
pub const COMMIT_QUEUE_BYTES_MAX: usize = 64 << 20;

/// Proposals in one round of a group commit, bytes, if there is more than one; all of its log entries together.
pub const COMMIT_BATCH_BYTES_MAX: usize = 4 << 20;

/// Log entries that a group commit makes at most of what waits. They share a flush; the callers of one come again while the next
/// is applied.
pub const COMMIT_ROUND_ENTRIES: usize = 4;

/// Proposals in a log entry of a group commit, if it makes more than one.
pub const COMMIT_ENTRY_PROPOSALS: usize = 8;

/// Rounds of a group commit up to this size wait for the one before, bytes: flushing them costs more than applying
/// them.
pub const COMMIT_SMALL_BYTES: usize = 64 << 10;

/// Without syncs, log entries of so many bytes are flushed together.
pub const UNSYNCED_BYTES_FLUSH: u64 = 8 << 20;

/// Without syncs, log entries that a crash may take, bytes: commits wait when it is reached.
pub const UNSYNCED_BYTES_MAX: u64 = 32 << 20;

/// Of the tree over the entries of a transaction, levels that lie so far apart are kept in its record. Part of the format.
pub const KEPT_LEVELS: u32 = 4;

/// Entries below one kept node, which are one group of a large record. Part of the format.
pub const ENTRIES_PER_GROUP: u32 = 1 << KEPT_LEVELS;

/// Records up to this size are read whole, bytes: a second read would cost more than the checksum.
pub const RECORD_WHOLE_BYTES_MAX: u32 = 1 << 10;

/// Bytes that are read first of a larger record: head, directory and kept nodes of a transaction of some thousand entries.
pub const RECORD_FRONT_BYTES: u32 = 4 << 10;

/// Bytes of keys and the values between them that are read in one go to prove one of the entries.
pub const GROUP_READ_BYTES_MAX: u64 = 8 << 10;

/// Prunes that a database takes in its life; they are kept in memory. Decides what is accepted, therefore part of the format.
pub const PRUNES_MAX: u32 = 1 << 20;

/// Different prefixes with a history limit, per database: each of them is compared with the key of every value that is read.
/// Decides what is accepted, therefore part of the format.
pub const HISTORY_LIMIT_PREFIXES_MAX: usize = 256;

/// Headers of newest transactions kept in memory, per database.
pub const RECENT_HEADERS: usize = 1024;

/// A derived log is written to its files when this many bytes wait in memory.
pub const UNWRITTEN_BYTES_SPILL: usize = 1 << 20;

/// Bytes of a derived log that wait in memory at most, even while a checkpoint is syncing its files.
pub const UNWRITTEN_BYTES_MAX: usize = 16 << 20;

/// Bytes of frames that are read at once to apply them again or to rebuild the index.
pub const REPLAY_READ_BYTES: usize = 4 << 20;

/// Bytes that are read at once to hash or copy a file.
pub const COPY_BYTES: usize = 1 << 20;

/// A leaf of an index run is closed when it holds this many bytes; one cell may be larger.
pub const INDEX_BLOCK_BYTES: usize = 4 << 10;

/// An inner block of an index run is closed when it holds this many bytes.
pub const INDEX_INNER_BLOCK_BYTES: usize = 16 << 10;

/// An in-memory part of an index is full at about so many bytes.
pub const INDEX_MEMTABLE_BYTES_DEFAULT: usize = 16 << 20;

/// Full in-memory parts that wait to be written, at most: whoever inserts pays in small pieces from the second one on, and waits
/// at this many.
pub const INDEX_FROZEN_MAX: usize = 4;

/// Neighbouring runs of one size class that are merged, and the factor between classes. Bounds the number of runs by this
/// less one per class, and how often a version is written by one per class.
pub const INDEX_MERGE_RUNS: usize = 4;

/// Runs up to this size are in the smallest class, bytes.
pub const INDEX_SIZE_CLASS_BYTES: u64 = 8 << 20;

/// Bytes that one step of background work on an index writes, about.
pub const INDEX_WORK_BYTES: u64 = 256 << 10;

/// Bytes of a run that are written before they are synced, so that no sync has to write more. Whoever waits for a step waits for
/// one sync at most.
pub const INDEX_SYNC_BYTES: u64 = 8 << 20;

/// Transactions that one step of rebuilding an index inserts.
pub const INDEX_REBUILD_TXS: u64 = 4096;

/// Transactions that no run has are inserted while a database opens when their records have at most so many bytes, and in
/// the background when they have more.
pub const INDEX_OPEN_INSERT_BYTES: u64 = 64 << 20;

/// Bytes of blocks that the databases of a process keep when it says nothing else.
pub const INDEX_CACHE_BYTES_DEFAULT: u64 = 32 << 20;

const _: () = {
    assert!(INDEX_MERGE_RUNS >= 2 && INDEX_FROZEN_MAX >= 1);
    assert!(INDEX_BLOCK_BYTES <= INDEX_INNER_BLOCK_BYTES);
};

/// Memory that the databases of a process share when nobody says how much, bytes.
pub const MEMORY_BUDGET_BYTES_DEFAULT: u64 = 256 << 20;

/// The smallest budget, bytes: the bounds of one database that is written to must fit.
pub const MEMORY_BUDGET_BYTES_MIN: u64 = 64 << 20;

/// A database that holds less is not asked to give it back, bytes.
pub const MEMORY_RELEASE_BYTES_MIN: u64 = 4 << 10;

/// Part of the memory budget for the proofs of entries that are remembered: one of so many. Some 1.5 KiB are taken for a group of
/// 16 neighbouring entries.
pub const GROUP_PROOFS_OF_BUDGET: u64 = 64;

/// Dual proofs that a process remembers, of all its databases. With the bound of the next they take about 1 MiB at most.
pub const PROOFS_KEPT: usize = 256;

/// One of more digests than this, as imported ledgers whose trees lag behind have them, is not remembered.
pub const PROOF_DIGESTS_KEPT_MAX: usize = 96;

//! Bytes of the log layer: frames, segment headers, sidecars, their magic, versions and checksums. The only place that
//! knows a byte offset; `docs/format.md` is its mirror and the golden files in `testdata/` hold both. All integers are
//! big endian.

pub mod derived;

/// Bytes of the header at the start of a segment file.
pub const SEGMENT_HEADER_BYTES: u64 = 256;

/// Bytes before the payload of a frame: length, checksum, term, index, kind.
pub const FRAME_HEAD_BYTES: usize = 25;

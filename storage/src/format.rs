//! Bytes of the log layer: frames, segment headers, sidecars, their magic, versions and checksums. The only place that
//! knows a byte offset; `docs/format.md` is its mirror and the golden files in `testdata/` hold both. All integers are
//! big endian.
//!

use alhambra_ledger::digest::Digest;
use alhambra_ledger::ids::{DatabaseId, LogId};
use bytes::Bytes;

use crate::error::Damage;
use crate::limits;
use crate::segment::{Frame, FrameKind};

pub mod derived;

/// Bytes of the header at the start of a segment file.
pub const SEGMENT_HEADER_BYTES: u64 = 256;

/// Bytes before the payload of a frame: length, checksum, term, index, kind.
pub const FRAME_HEAD_BYTES: usize = 25;

/// Bytes of a frame that its length field does not count: the length and the checksum.
pub const FRAME_PREFIX_BYTES: usize = 8;

/// Bytes of the header at the start of a sidecar.
pub const SIDECAR_HEADER_BYTES: u64 = 132;

/// Bytes of one offset in a sidecar.
pub const SIDECAR_OFFSET_BYTES: u64 = 4;

/// Bytes of a row in the table of a pruned segment: offset u32, length u32, hash.
pub const HOLE_BYTES: u64 = 40;

/// Bytes behind that table: number of rows u32, CRC-32C of both.
pub const HOLES_END_BYTES: u64 = 8;

/// First bytes of a segment file.
pub const SEGMENT_MAGIC: [u8; 8] = *b"ALHSEGMT";

/// First bytes of a sidecar.
pub const SIDECAR_MAGIC: [u8; 8] = *b"ALHSIDEC";

/// Newest version of segment headers, and of the frames behind them.
pub const SEGMENT_VERSION: u16 = 1;

/// Newest version of sidecars.
pub const SIDECAR_VERSION: u16 = 1;

/// Hash id of SHA-256, the only one so far.
pub const HASH_SHA256: u16 = 1;

/// Where a fixed-size header ends its checksummed part.
const SEGMENT_CRC_AT: usize = 252;
const SIDECAR_CRC_AT: usize = 128;

/// Why a header is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// The bytes are not what was written.
    Damaged(Damage),
    /// Written by a newer release.
    Version(u16),
}

impl From<Damage> for HeaderFault {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}

/// Takes fields off the front of a header.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Damage::Missing)?;
        self.0 = rest;
        Ok(*head)
    }
    fn u16(&mut self) -> Result<u16, Damage> {
        self.take().map(u16::from_be_bytes)
    }
    fn u32(&mut self) -> Result<u32, Damage> {
        self.take().map(u32::from_be_bytes)
    }
    fn u64(&mut self) -> Result<u64, Damage> {
        self.take().map(u64::from_be_bytes)
    }
    fn log_id(&mut self) -> Result<LogId, Damage> {
        Ok(LogId::new(self.u64()?, self.u64()?))
    }
    fn rest(self) -> &'a [u8] {
        self.0
    }
}

fn put_log_id(out: &mut Vec<u8>, log_id: LogId) {
    out.extend_from_slice(&log_id.term.0.to_be_bytes());
    out.extend_from_slice(&log_id.index.0.to_be_bytes());
}

/// Fills the header with zeros up to its checksum and appends that.
fn seal_header(out: &mut Vec<u8>, crc_at: usize) {
    debug_assert!(out.len() <= crc_at);
    out.resize(crc_at, 0);
    let crc = crc32c::crc32c(out);
    out.extend_from_slice(&crc.to_be_bytes());
}

/// Checks magic, checksum and version, in this order, which every version keeps where they are: so a flipped bit is damage
/// and a newer version is one only if somebody wrote it. Returns the fields after the version.
fn open_header<'a>(bytes: &'a [u8], magic: &[u8; 8], crc_at: usize, newest: u16) -> Result<Fields<'a>, HeaderFault> {
    let mut crc = Fields(bytes.get(crc_at..).ok_or(Damage::Missing)?);
    let crc = crc.u32()?;
    let covered = &bytes[..crc_at];
    let mut fields = Fields(covered);
    if fields.take::<8>()? != *magic {
        return Err(Damage::Magic.into());
    }
    if crc32c::crc32c(covered) != crc {
        return Err(Damage::Checksum.into());
    }
    let version = fields.u16()?;
    if version > newest {
        return Err(HeaderFault::Version(version));
    }
    if version == 0 {
        return Err(Damage::Field.into());
    }
    Ok(fields)
}

/// Header of a segment file; equal on all replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose segment it is.
    pub database: DatabaseId,
    /// From 0.
    pub number: u64,
    /// Logical ledger offset of the first frame.
    pub first_offset: u64,
    /// Log id of the first frame.
    pub first_log_id: LogId,
    /// Bytes of frames after which a segment is closed.
    pub segment_bytes: u64,
    /// 0 as written; else the number of the newest prune of which the segment has lost a value.
    pub generation: u32,
    /// Values that are gone; 0 as written, like the next two.
    pub hole_count: u32,
    /// Bytes of the frames, what is gone included.
    pub frame_bytes: u64,
    /// Bytes of the frames that are in the file.
    pub kept_bytes: u64,
}

impl SegmentHeader {
    /// The `SEGMENT_HEADER_BYTES` bytes of the header.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_CRC_AT + 4);
        out.extend_from_slice(&SEGMENT_MAGIC);
        out.extend_from_slice(&SEGMENT_VERSION.to_be_bytes());
        out.extend_from_slice(&HASH_SHA256.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.database.0);
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&self.first_offset.to_be_bytes());
        put_log_id(&mut out, self.first_log_id);
        out.extend_from_slice(&self.segment_bytes.to_be_bytes());
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.extend_from_slice(&self.hole_count.to_be_bytes());
        out.extend_from_slice(&self.frame_bytes.to_be_bytes());
        out.extend_from_slice(&self.kept_bytes.to_be_bytes());
        seal_header(&mut out, SEGMENT_CRC_AT);
        out
    }

    /// Reads a header; bytes after it are not looked at.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let mut fields = open_header(bytes, &SEGMENT_MAGIC, SEGMENT_CRC_AT, SEGMENT_VERSION)?;
        let (hash, reserved) = (fields.u16()?, fields.u32()?);
        let header = Self {
            database: DatabaseId(fields.take()?),
            number: fields.u64()?,
            first_offset: fields.u64()?,
            first_log_id: fields.log_id()?,
            segment_bytes: fields.u64()?,
            generation: fields.u32()?,
            hole_count: fields.u32()?,
            frame_bytes: fields.u64()?,
            kept_bytes: fields.u64()?,
        };
        let pruned = header.hole_count > 0
            && header.kept_bytes < header.frame_bytes
            && header.frame_bytes - header.kept_bytes >= u64::from(header.hole_count)
            && header.frame_bytes <= u64::from(u32::MAX);
        let plain = header.hole_count == 0 && header.kept_bytes == 0 && header.frame_bytes == 0;
        if !(if header.generation == 0 { plain } else { pruned }) {
            return Err(Damage::Field.into());
        }
        if hash != HASH_SHA256 || reserved != 0 || fields.rest().iter().any(|byte| *byte != 0) {
            return Err(Damage::Field.into());
        }
        Ok(header)
    }

    /// Bytes behind the header in the file of a closed segment that has `frame_bytes` as long as it is not pruned.
    pub const fn stored_bytes(&self, frame_bytes: u64) -> u64 {
        if self.generation == 0 {
            frame_bytes
        } else {
            self.kept_bytes + self.hole_count as u64 * HOLE_BYTES + HOLES_END_BYTES
        }
    }
}

/// Header of the sidecar of a closed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SidecarHeader {
    /// Whose segment it is.
    pub database: DatabaseId,
    /// The segment's number.
    pub number: u64,
    /// Logical ledger offset of the segment's first frame.
    pub first_offset: u64,
    /// Log id of the segment's first frame.
    pub first_log_id: LogId,
    /// Log id of the segment's last frame.
    pub last_log_id: LogId,
    /// Frames in the segment.
    pub frame_count: u32,
    /// Bytes of frames in the segment.
    pub frame_bytes: u64,
    /// Of the segment.
    pub digest: Digest,
    /// Generation of the segment that has this digest.
    pub generation: u32,
    /// CRC-32C of the offsets that follow.
    pub offsets_crc: u32,
}

impl SidecarHeader {
    /// The `SIDECAR_HEADER_BYTES` bytes of the header.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SIDECAR_CRC_AT + 4);
        out.extend_from_slice(&SIDECAR_MAGIC);
        out.extend_from_slice(&SIDECAR_VERSION.to_be_bytes());
        out.extend_from_slice(&HASH_SHA256.to_be_bytes());
        out.extend_from_slice(&self.frame_count.to_be_bytes());
        out.extend_from_slice(&self.database.0);
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&self.first_offset.to_be_bytes());
        put_log_id(&mut out, self.first_log_id);
        put_log_id(&mut out, self.last_log_id);
        out.extend_from_slice(&self.frame_bytes.to_be_bytes());
        out.extend_from_slice(&self.digest.0);
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.extend_from_slice(&self.offsets_crc.to_be_bytes());
        seal_header(&mut out, SIDECAR_CRC_AT);
        out
    }

    /// Reads a header; bytes after it are not looked at.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let mut fields = open_header(bytes, &SIDECAR_MAGIC, SIDECAR_CRC_AT, SIDECAR_VERSION)?;
        let hash = fields.u16()?;
        let frame_count = fields.u32()?;
        let header = Self {
            database: DatabaseId(fields.take()?),
            number: fields.u64()?,
            first_offset: fields.u64()?,
            first_log_id: fields.log_id()?,
            last_log_id: fields.log_id()?,
            frame_count,
            frame_bytes: fields.u64()?,
            digest: Digest(fields.take()?),
            generation: fields.u32()?,
            offsets_crc: fields.u32()?,
        };
        if hash != HASH_SHA256 {
            return Err(Damage::Field.into());
        }
        Ok(header)
    }

    /// Length of the whole sidecar, bytes.
    pub const fn file_bytes(&self) -> u64 {
        SIDECAR_HEADER_BYTES + self.frame_count as u64 * SIDECAR_OFFSET_BYTES
    }
}

/// The part of a sidecar behind its header: offset of each frame from the first frame, in log order.
pub fn encode_offsets(offsets: &[u32]) -> Vec<u8> {
    offsets.iter().flat_map(|offset| offset.to_be_bytes()).collect()
}

/// Reads what `encode_offsets` wrote for this header: as many offsets as it has frames, rising from 0, checksum right.
pub fn decode_offsets(header: &SidecarHeader, bytes: &[u8]) -> Result<Vec<u32>, Damage> {
    let (offsets, rest) = bytes.as_chunks::<4>();
    if offsets.len() != header.frame_count as usize || !rest.is_empty() {
        return Err(Damage::Length);
    }
    if crc32c::crc32c(bytes) != header.offsets_crc {
        return Err(Damage::Checksum);
    }
    let offsets: Vec<u32> = offsets.iter().copied().map(u32::from_be_bytes).collect();
    let rising = offsets.first() == Some(&0) && offsets.is_sorted_by(|a, b| a < b);
    let within = offsets.last().is_some_and(|last| u64::from(*last) < header.frame_bytes);
    if rising && within { Ok(offsets) } else { Err(Damage::Field) }
}

/// Length of a whole frame with a payload of this length, bytes.
pub const fn frame_bytes(payload_bytes: usize) -> u64 {
    (FRAME_HEAD_BYTES + payload_bytes) as u64
}

const fn kind_to_byte(kind: FrameKind) -> u8 {
    match kind {
        FrameKind::Blank => 1,
        FrameKind::Command => 2,
        FrameKind::Membership => 3,
    }
}

const fn kind_from_byte(byte: u8) -> Option<FrameKind> {
    match byte {
        1 => Some(FrameKind::Blank),
        2 => Some(FrameKind::Command),
        3 => Some(FrameKind::Membership),
        _ => None,
    }
}

/// Appends the bytes of a frame to `out`.
///
/// # Panics
/// When the payload is longer than `limits::FRAME_PAYLOAD_BYTES_MAX`; `Ledger::stage` refuses such frames.
pub fn encode_frame(frame: &Frame, out: &mut Vec<u8>) {
    assert!(frame.payload.len() <= limits::FRAME_PAYLOAD_BYTES_MAX, "stage refuses longer payloads");
    let len = u32::try_from(FRAME_HEAD_BYTES - FRAME_PREFIX_BYTES + frame.payload.len())
        .expect("limits relate the longest payload to 32 bits");
    let start = out.len();
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    put_log_id(out, frame.log_id);
    out.push(kind_to_byte(frame.kind));
    out.extend_from_slice(&frame.payload);
    let crc = crc32c::crc32c(&out[start + FRAME_PREFIX_BYTES..]);
    out[start + 4..start + FRAME_PREFIX_BYTES].copy_from_slice(&crc.to_be_bytes());
}

/// What the first bytes of a frame say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramePrefix {
    /// Length and checksum are zero: no frame has been written here.
    Nothing,
    /// A frame of this total length, bytes.
    Frame(usize),
}

/// Reads length and checksum at the front of `bytes`. The length is possible, but nothing is known yet about the rest.
pub fn frame_prefix(bytes: &[u8]) -> Result<FramePrefix, Damage> {
    let mut fields = Fields(bytes);
    let (len, crc) = (fields.u32()? as usize, fields.u32()?);
    if len == 0 && crc == 0 {
        return Ok(FramePrefix::Nothing);
    }
    let head = FRAME_HEAD_BYTES - FRAME_PREFIX_BYTES;
    if len < head || len - head > limits::FRAME_PAYLOAD_BYTES_MAX {
        return Err(Damage::Length);
    }
    Ok(FramePrefix::Frame(FRAME_PREFIX_BYTES + len))
}

/// Reads the frame at the front of `bytes`, its payload being a slice of them. Returns its total length too.
pub fn decode_frame(bytes: &Bytes) -> Result<(Frame, usize), Damage> {
    let total = match frame_prefix(bytes)? {
        FramePrefix::Nothing => return Err(Damage::Missing),
        FramePrefix::Frame(total) => total,
    };
    let frame = bytes.get(..total).ok_or(Damage::Missing)?;
    let mut fields = Fields(&frame[4..]);
    if fields.u32()? != crc32c::crc32c(&frame[FRAME_PREFIX_BYTES..]) {
        return Err(Damage::Checksum);
    }
    let log_id = fields.log_id()?;
    let [kind] = fields.take()?;
    let kind = kind_from_byte(kind).ok_or(Damage::Field)?;
    Ok((Frame { log_id, kind, payload: bytes.slice(FRAME_HEAD_BYTES..total) }, total))
}

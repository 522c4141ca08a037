//! Fuzz targets of the decoders of everything that this crate reads, from a disk or from another machine; the index has its
//! own beside its blocks. What must hold for every input, `alhambra_fuzz` says; `docs/testing.md` says how to run them for long.
//!
//! Bounds are stated per target: (bytes for an empty input, bytes per byte of input), for decoding and encoding again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_fuzz::{Decoded, Meter, Target};
use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::header::{TxHeader, TxMetadata};
use alhambra_ledger::ids::{DatabaseId, LogIndex, TxId};
use alhambra_ledger::{Digest, digest, export, htree, kv};
use bytes::Bytes;

use crate::checkpoint::{CHECKPOINT_MAGIC, Checkpoint};
use crate::chunklog::ChunkLog;
use crate::command::{Command, Located, LocatedReadSet, LocatedTarget, ValueForm, decode_located};
use crate::commitlog::CommitRecord;
use crate::compression;
use crate::format::derived::{CHUNK_HEADER_BYTES, ChunkHeader, LogKind, open_small, seal_small};
use crate::format::{self, FRAME_PREFIX_BYTES, SIDECAR_HEADER_BYTES, SegmentHeader, SidecarHeader};
use crate::fsck;
use crate::limits::{KEPT_LEVELS, LZ4_EXPANSION_MAX};
use crate::marks::{Marks, Vote};
use crate::prune::{self, PruneLog};
use crate::seal::SealLog;
use crate::segment::pruned_view;
use crate::transfer::{self, Manifest};
use crate::txlog::groups::{Directory, GROUP_BYTES, group_crc, groups};
use crate::txlog::{self, EntryToStore, Head, RECORD_TAIL_BYTES, Record};
use crate::vfs::mem::MemVfs;
use crate::vfs::{OpenMode, Vfs};
use crate::wire::{Put, Reader};

#[global_allocator]
static METER: Meter = Meter;

/// The database of the golden files.
const DATABASE: DatabaseId = DatabaseId(*b"a test database.");

/// The parts of a golden file: separated by empty lines, each with or without a name in front.
pub(crate) fn golden(name: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let hex = |line: &str| -> Option<Vec<u8>> {
        let digits = line.split('#').next()?.trim();
        let byte = |at| digits.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
        (0..digits.len()).step_by(2).map(byte).collect()
    };
    let parts = text.split("\n\n").map(|part| part.lines().filter_map(hex).flatten().collect::<Vec<u8>>());
    parts.filter(|part| !part.is_empty()).collect()
}

/// Writes the CRC-32C of what stands before the last `behind + 4` bytes there.
pub(crate) fn seal_crc(bytes: &mut [u8], behind: usize) {
    if let Some(at) = bytes.len().checked_sub(behind + 4) {
        let crc = crc32c::crc32c(&bytes[..at]);
        bytes[at..at + 4].copy_from_slice(&crc.to_be_bytes());
    }
}

/// Header of a small file, made right.
fn seal_frame_of_small(magic: [u8; 8]) -> impl Fn(&mut Vec<u8>) {
    move |bytes| {
        if bytes.len() >= 20 {
            bytes[..8].copy_from_slice(&magic);
            bytes[8..12].copy_from_slice(&[0, 1, 0, 0]);
            let len = bytes.len() as u32 - 20;
            bytes[12..16].copy_from_slice(&len.to_be_bytes());
            seal_crc(bytes, 0);
        }
    }
}

/// The content of a golden small file.
fn content(name: &str) -> Vec<u8> {
    let file = &golden(name)[0];
    file[16..file.len() - 4].to_vec()
}

fn canonical<E>(again: Result<Vec<u8>, E>) -> Decoded {
    again.map_or(Decoded::Refused, Decoded::Canonical)
}

fn loose<T, E>(decoded: Result<T, E>) -> Decoded {
    if decoded.is_ok() { Decoded::Loose } else { Decoded::Refused }
}

fn unsealed(_: &mut Vec<u8>) {}

#[test]
fn fuzz_frame() {
    let decode = |bytes: &[u8]| {
        let bytes = Bytes::copy_from_slice(bytes);
        canonical(format::decode_frame(&bytes).map(|(frame, len)| {
            let mut again = Vec::new();
            format::encode_frame(&frame, &mut again);
            assert_eq!(again.len(), len);
            again.extend_from_slice(&bytes[len..]);
            again
        }))
    };
    let seal = |bytes: &mut Vec<u8>| {
        if bytes.len() > FRAME_PREFIX_BYTES {
            let len = (bytes.len() - FRAME_PREFIX_BYTES) as u32;
            bytes[..4].copy_from_slice(&len.to_be_bytes());
            let crc = crc32c::crc32c(&bytes[FRAME_PREFIX_BYTES..]);
            bytes[4..8].copy_from_slice(&crc.to_be_bytes());
        }
    };
    let corpus = [golden("log/frame.hex"), golden("log/frame-empty.hex")].concat();
    Target { name: "frame", corpus, seal: &seal, memory: (256, 4), decode: &decode }.run();
}

#[test]
fn fuzz_segment_header() {
    let decode =
        |bytes: &[u8]| canonical(SegmentHeader::decode(bytes).map(|header| [&header.encode(), &bytes[256..]].concat()));
    let seal = |bytes: &mut Vec<u8>| {
        bytes.resize(256, 0);
        seal_crc(bytes, 0);
    };
    let corpus = golden("log/segment-header.hex");
    Target { name: "segment header", corpus, seal: &seal, memory: (512, 4), decode: &decode }.run();
}

#[test]
fn fuzz_sidecar() {
    const HEAD: usize = SIDECAR_HEADER_BYTES as usize;
    let decode = |bytes: &[u8]| {
        let Ok(header) = SidecarHeader::decode(bytes) else { return Decoded::Refused };
        let offsets = format::decode_offsets(&header, &bytes[HEAD..]);
        canonical(offsets.map(|offsets| [header.encode(), format::encode_offsets(&offsets)].concat()))
    };
    let seal = |bytes: &mut Vec<u8>| {
        bytes.resize(bytes.len().max(HEAD) / 4 * 4, 0);
        let count = (bytes.len() - HEAD) as u32 / 4;
        bytes[12..16].copy_from_slice(&count.to_be_bytes());
        let crc = crc32c::crc32c(&bytes[HEAD..]);
        bytes[120..124].copy_from_slice(&crc.to_be_bytes());
        seal_crc(&mut bytes[..HEAD], 0);
    };
    Target { name: "sidecar", corpus: golden("log/sidecar.hex"), seal: &seal, memory: (1024, 8), decode: &decode }
        .run();
}

#[test]
fn fuzz_chunk_header() {
    let header = ChunkHeader { kind: LogKind::Tx, database: DATABASE, number: 3, chunk_bytes: 500 };
    let decode = |bytes: &[u8]| canonical(header.check(bytes, Path::new("chunk")).map(|()| header.encode()));
    let seal = |bytes: &mut Vec<u8>| {
        bytes.resize(CHUNK_HEADER_BYTES as usize, 0);
        seal_crc(bytes, 0);
    };
    let corpus = vec![header.encode()];
    Target { name: "chunk header", corpus, seal: &seal, memory: (1024, 4), decode: &decode }.run();
}

#[test]
fn fuzz_small_file() {
    let decode = |bytes: &[u8]| {
        let content = open_small(CHECKPOINT_MAGIC, bytes, Path::new("small"));
        canonical(content.map(|content| seal_small(CHECKPOINT_MAGIC, content)))
    };
    let seal = |bytes: &mut Vec<u8>| seal_crc(bytes, 0);
    let corpus = vec![golden("database/checkpoint.hex")[0].clone(), seal_small(CHECKPOINT_MAGIC, b"")];
    Target { name: "small file", corpus, seal: &seal, memory: (512, 4), decode: &decode }.run();
}

#[test]
fn fuzz_checkpoint() {
    let decode = |bytes: &[u8]| {
        canonical(Checkpoint::decode(bytes).map(|found| Checkpoint::encode(found.database, &found.state, &found.sizes)))
    };
    let corpus = vec![content("database/checkpoint.hex")];
    Target { name: "checkpoint", corpus, seal: &unsealed, memory: (4096, 32), decode: &decode }.run();
}

#[test]
fn fuzz_fsck_position() {
    let checkpoint = content("database/checkpoint.hex");
    let decode = |bytes: &[u8]| {
        canonical(fsck::resume::decode(&mut Reader::new(bytes)).map(|found| {
            let Checkpoint { database, state, sizes } = &found.checkpoint;
            fsck::resume::encode(&found.digests, &Checkpoint::encode(*database, state, sizes))
        }))
    };
    let corpus = vec![
        fsck::resume::encode(&[], &checkpoint),
        fsck::resume::encode(&[(0, Digest([1; 32])), (3, Digest([2; 32]))], &checkpoint),
    ];
    Target { name: "fsck position", corpus, seal: &unsealed, memory: (4096, 32), decode: &decode }.run();
}

fn with_file(name: &str, bytes: &[u8]) -> Arc<dyn Vfs> {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    vfs.open(Path::new(name), OpenMode::CreateNew).and_then(|file| file.write_at(0, bytes)).expect("memory");
    vfs
}

#[test]
fn fuzz_marks() {
    let decode = |bytes: &[u8]| {
        let vfs = with_file("marks", bytes);
        loose(Marks::read(&*vfs, Path::new(""), DATABASE))
    };
    let seal = |bytes: &mut Vec<u8>| {
        for place in bytes.chunks_mut(4096) {
            let len = place.get(12..16).map_or(0, |len| u32::from_be_bytes(len.try_into().expect("4 bytes")) as usize);
            if let Some(framed) = place.get_mut(..len.saturating_add(20)) {
                seal_crc(framed, 0);
            }
        }
    };
    let corpus = golden("database/marks.hex");
    Target { name: "marks", corpus, seal: &seal, memory: (16 << 10, 16), decode: &decode }.run();
}

#[test]
fn fuzz_vote() {
    let vote = golden("database/vote.hex");
    let magic: [u8; 8] = vote[0][..8].try_into().expect("8 bytes");
    let decode = |bytes: &[u8]| {
        let vfs = with_file("vote", bytes);
        match Vote::new(Path::new(""), DATABASE).load(&vfs) {
            Ok(Some(found)) => Decoded::Canonical(seal_small(magic, &[&DATABASE.0, &found[..]].concat())),
            Ok(None) => panic!("there is a file"),
            Err(_) => Decoded::Refused,
        }
    };
    let seal = seal_frame_of_small(magic);
    Target { name: "vote", corpus: vote, seal: &seal, memory: (16 << 10, 16), decode: &decode }.run();
}

#[test]
fn fuzz_manifest() {
    let corpus = golden("database/manifest.hex");
    let magic: [u8; 8] = corpus[0][..8].try_into().expect("8 bytes");
    let decode = |bytes: &[u8]| canonical(Manifest::decode(bytes).map(|manifest| manifest.encode().to_vec()));
    let seal = seal_frame_of_small(magic);
    Target { name: "manifest", corpus, seal: &seal, memory: (16 << 10, 32), decode: &decode }.run();
}

#[test]
fn fuzz_install() {
    let manifest = golden("database/manifest.hex")[0].clone();
    let encode = |staging: &str, staged: &[String], manifest: &[u8]| {
        let mut out = Vec::new();
        out.put_prefixed(staging.as_bytes());
        out.put_varint(staged.len() as u64);
        staged.iter().for_each(|path| out.put_prefixed(path.as_bytes()));
        out.put_bytes(manifest);
        out
    };
    let decode = |bytes: &[u8]| {
        let found = transfer::read_install(&mut Reader::new(bytes));
        canonical(found.map(|(staging, staged, manifest)| encode(staging, &staged, manifest)))
    };
    let corpus = vec![encode("staging", &["ledger/0000000000.seg".into(), "tx/0000000000.log".into()], &manifest)];
    Target { name: "install", corpus, seal: &unsealed, memory: (1024, 32), decode: &decode }.run();
}

#[test]
fn fuzz_command() {
    let decode = |bytes: &[u8]| {
        let payload = Bytes::copy_from_slice(bytes);
        let located = decode_located(&payload);
        let command = Command::decode(&payload);
        let has_lost_values = match &located {
            Ok(Located::Batch(batch) | Located::Prune(_, LocatedTarget::Before { batch, .. })) => {
                batch.entries.iter().any(|entry| entry.pruned)
            }
            _ => false,
        };
        if has_lost_values {
            assert!(command.is_err(), "nobody proposes what is gone already");
        } else {
            assert_eq!(located.err(), command.as_ref().err().copied(), "both readers agree");
        }
        canonical(command.map(|command| command.encode().to_vec()))
    };
    let corpus = golden("command.hex");
    Target { name: "command", corpus, seal: &unsealed, memory: (1024, 256), decode: &decode }.run();
}

#[test]
fn fuzz_read_set() {
    let decode = |bytes: &[u8]| {
        let payload = Bytes::copy_from_slice(bytes);
        let mut reader = Reader::new(&payload);
        canonical(LocatedReadSet::read(&mut reader).map(|found| {
            let mut again = Vec::new();
            found.within(&payload).encode_into(&mut again);
            assert!(again.len() <= found.within(&payload).encoded_len_max());
            [&again, &payload[reader.at()..]].concat()
        }))
    };
    let none = [&[0][..], &7_u64.to_be_bytes(), &[0]].concat();
    let ranges: &[u8] = b"\x04\x01\x02k1\x02\x02k2\x03\x02l1\x02m5\x04\x01z";
    let some = [&[3][..], &7_u64.to_be_bytes(), &(-5_i64).to_be_bytes(), &9_i64.to_be_bytes(), ranges].concat();
    Target { name: "read set", corpus: vec![none, some], seal: &unsealed, memory: (512, 128), decode: &decode }.run();
}

const TX: TxId = TxId(7);
const LOG_INDEX: LogIndex = LogIndex(3);

fn record_bytes(header: &TxHeader, entries: &[EntryToStore<'_>], kept: &[Digest], alh: &Digest) -> Vec<u8> {
    let mut out = Vec::new();
    txlog::encode_record(&mut out, header, LOG_INDEX, entries.iter().copied(), kept, alh);
    out
}

fn header_of(ts: i64, version: u16, metadata: TxMetadata, nentries: u32, eh: Digest) -> TxHeader {
    header_with_gap(0, ts, version, metadata, nentries, eh)
}

fn header_with_gap(gap: u64, ts: i64, version: u16, metadata: TxMetadata, nentries: u32, eh: Digest) -> TxHeader {
    let (bl_tx_id, bl_root, prev_alh) = (TxId(6 - gap), digest::ZERO, digest::ZERO);
    TxHeader { id: TX, ts, version, metadata, nentries, eh, bl_tx_id, bl_root, prev_alh }
}

fn record_corpus() -> Vec<Vec<u8>> {
    let metadata = TxMetadata { truncated_up_to: Some(TxId(2)), extra: b"extra".to_vec() };
    let record = |count: u32| {
        let entry = |number: u32| EntryToStore {
            key_at: 1000 + 200 * u64::from(number),
            key_len: 3,
            metadata: if number.is_multiple_of(3) { &[0] } else { &[] },
            value_at: 1005 + 200 * u64::from(number),
            value_len: 100,
            form: if number.is_multiple_of(2) { ValueForm::Plain } else { ValueForm::Lz4 { plain_len: 700 } },
            value_hash: Digest([9; 32]),
        };
        let entries: Vec<_> = (0..count).map(entry).collect();
        let header = header_of(1_700_000_000, 1, metadata.clone(), count, Digest([5; 32]));
        let kept = if Directory::of(count).is_some() { htree::kept_len(count, KEPT_LEVELS) } else { 0 };
        record_bytes(&header, &entries, &vec![Digest([4; 32]); kept], &Digest([1; 32]))
    };
    let lagging = header_with_gap(4, 5, 0, TxMetadata::default(), 0, digest::EMPTY);
    let mut corpus = [0, 1, 3, 16, 17, 40].map(record).to_vec();
    corpus.push(record_bytes(&lagging, &[], &[], &Digest([1; 32])));
    corpus
}

fn seal_record(bytes: &mut [u8]) {
    let Some(body) = bytes.len().checked_sub(RECORD_TAIL_BYTES as usize) else { return };
    let mut checked = body;
    if let Ok(head) = Head::read(&bytes[..body])
        && let Some(directory) = Directory::of(head.nentries)
        && head.len + directory.len() <= body
    {
        checked = head.len + directory.len();
        let mut from = 0;
        let ends: Vec<_> = groups(&bytes[head.len..head.len + directory.ends_len()]).collect();
        for (number, group) in (0u32..).zip(ends) {
            let Some(entries) = bytes[checked..body].get(from..group.end) else { break };
            let crc = group_crc(TX, number, entries);
            let at = head.len + number as usize * GROUP_BYTES + 4;
            bytes[at..at + 4].copy_from_slice(&crc.to_be_bytes());
            from = group.end;
        }
    }
    let alh = Digest(bytes[body..body + 32].try_into().expect("32 bytes"));
    let crc = txlog::record_crc(TX, LOG_INDEX, &bytes[..checked], &alh);
    bytes[body + 32..].copy_from_slice(&crc.to_be_bytes());
}

#[test]
fn fuzz_tx_record() {
    let decode = |bytes: &[u8]| {
        let Ok(record) = Record::decode(TX, LOG_INDEX, Bytes::copy_from_slice(bytes)) else { return Decoded::Refused };
        let Ok(entries) = record.entries().collect::<Result<Vec<_>, _>>() else { return Decoded::Refused };
        let head = &record.head;
        let eh = head.eh.unwrap_or(digest::ZERO);
        if head.bl_tx_id(TX).is_none() {
            return Decoded::Refused;
        }
        let header = header_with_gap(head.link_gap, head.ts, head.version, head.metadata.clone(), head.nentries, eh);
        let kept = Directory::of(head.nentries)
            .map_or(&[][..], |directory| &bytes[head.len + directory.ends_len()..head.len + directory.len()]);
        let kept: Vec<Digest> = kept.as_chunks::<32>().0.iter().map(|node| Digest(*node)).collect();
        let entries: Vec<_> = (entries.iter())
            .map(|entry| EntryToStore {
                key_at: entry.key_at.0,
                key_len: entry.key_len,
                metadata: &entry.metadata,
                value_at: entry.value_at.0,
                value_len: entry.value_len,
                form: entry.form,
                value_hash: entry.value_hash,
            })
            .collect();
        Decoded::Canonical(record_bytes(&header, &entries, &kept, &record.alh))
    };
    let corpus = record_corpus();
    Target { name: "tx record", corpus, seal: &|bytes| seal_record(bytes), memory: (4096, 32), decode: &decode }.run();
}

#[test]
fn fuzz_commit_record() {
    let decode = |bytes: &[u8]| {
        let record = <&[u8; 20]>::try_from(bytes).map(CommitRecord::decode);
        canonical(record.map(|record| record.encode().to_vec()))
    };
    let seal = |bytes: &mut Vec<u8>| bytes.resize(20, 0);
    let corpus = vec![golden("database/commit.hex")[0][64..84].to_vec()];
    Target { name: "commit record", corpus, seal: &seal, memory: (256, 4), decode: &decode }.run();
}

/// Records of length, CRC and content, made right.
fn seal_records(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(head) = bytes.get(at..at + 8) {
        let len = u32::from_be_bytes(head[..4].try_into().expect("4 bytes")) as usize;
        let Some(body) = bytes.get(at + 8..(at + 8).saturating_add(len)) else { break };
        let crc = crc32c::crc32c(body);
        bytes[at + 4..at + 8].copy_from_slice(&crc.to_be_bytes());
        at += 8 + len;
    }
}

#[test]
fn fuzz_seal_log() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let decode = |bytes: &[u8]| {
        let log = ChunkLog::open_read_only(&vfs, PathBuf::from("seal"), LogKind::Seal, DATABASE, 1 << 20, 0);
        log.append(bytes);
        let Ok(seals) = SealLog::open(log) else { return Decoded::Refused };
        let segments = seals.digests();
        for segment in segments.keys() {
            assert!(seals.get(*segment).is_ok_and(|seal| seal.is_some_and(|seal| seal.segment == *segment)));
        }
        Decoded::Loose
    };
    let corpus = vec![golden("database/seal.hex")[0][64..].to_vec()];
    Target { name: "seal log", corpus, seal: &|bytes| seal_records(bytes), memory: (16 << 10, 32), decode: &decode }
        .run();
}

#[test]
fn fuzz_prune_log() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let empty = || ChunkLog::open_read_only(&vfs, PathBuf::from("prune"), LogKind::Prune, DATABASE, 1 << 20, 0);
    let decode = |bytes: &[u8]| {
        let log = empty();
        log.append(bytes);
        let Ok(found) = PruneLog::open(log) else { return Decoded::Refused };
        let again = PruneLog::open(empty()).expect("nothing is in it");
        for record in found.records().expect("it was read just now") {
            assert_eq!(again.append(record.as_of, record.order, record.pruned), record.number);
        }
        let len = again.log.end() as usize;
        Decoded::Canonical(again.log.read(0, len).expect("in memory").to_vec())
    };
    let corpus = vec![golden("database/prune.hex")[0][64..].to_vec()];
    Target { name: "prune log", corpus, seal: &|bytes| seal_records(bytes), memory: (16 << 10, 64), decode: &decode }
        .run();
}

#[test]
fn fuzz_pruned_mark() {
    let decode =
        |bytes: &[u8]| canonical(prune::decode_mark(bytes).map(|(database, done)| prune::encode_mark(database, done)));
    let corpus = vec![content("database/pruned.hex")];
    Target { name: "pruned mark", corpus, seal: &unsealed, memory: (256, 4), decode: &decode }.run();
}

/// A whole file: header, kept bytes, table.
#[test]
fn fuzz_pruned_segment() {
    let path = Path::new("segment");
    let decode = |bytes: &[u8]| {
        let vfs = with_file("segment", bytes);
        let Ok(header) = bytes.get(..256).map_or(Err(()), |head| SegmentHeader::decode(head).map_err(drop)) else {
            return Decoded::Refused;
        };
        let file = vfs.open(path, OpenMode::Read).expect("memory");
        let Ok(view) = pruned_view(file, &header, path) else { return Decoded::Refused };
        // What is read at once and what is read in parts is the same, and only missing bytes are more than there were.
        let len = view.len().expect("memory");
        if len > 1 << 20 {
            return Decoded::Loose;
        }
        let whole = view.read_at(0, len as usize).expect("all of it is there");
        let mut parts = Vec::new();
        while parts.len() < whole.len() {
            let part = (whole.len() - parts.len()).min(1 + parts.len() % 61);
            parts.extend_from_slice(&view.read_at(parts.len() as u64, part).expect("all of it is there"));
        }
        assert!(whole == parts);
        assert!(view.read_at(len, 1).is_err());
        Decoded::Loose
    };
    let seal = |bytes: &mut Vec<u8>| {
        if bytes.len() >= 264 {
            // The table is as long as its number of rows says, and the header knows of it.
            let rows = u32::from_be_bytes(bytes[76..80].try_into().expect("4 bytes"));
            let at = bytes.len() - 8;
            bytes[at..at + 4].copy_from_slice(&rows.to_be_bytes());
            let table = (rows as usize).saturating_mul(40).saturating_add(8).min(bytes.len() - 256);
            let from = bytes.len() - table;
            seal_crc(&mut bytes[from..], 0);
            let kept = (from - 256) as u64;
            bytes[88..96].copy_from_slice(&kept.to_be_bytes());
            seal_crc(&mut bytes[..256], 0);
        }
    };
    let corpus = golden("database/pruned-segment.hex");
    // A view has the missing bytes as zeros, up to the length that was bounded above, twice.
    Target { name: "pruned segment", corpus, seal: &seal, memory: (5 << 20, 32), decode: &decode }.run();
}

/// The forms that were once read although nothing writes them.
#[test]
fn content_has_one_form() {
    let bytes = content("database/checkpoint.hex");
    let malformed = |at: usize, change: &dyn Fn(&mut [u8])| {
        let mut bytes = bytes.clone();
        change(&mut bytes[at..]);
        assert!(Checkpoint::decode(&bytes).is_err(), "byte {at}");
    };
    // A log id is there or is zeros; without one there is no membership.
    malformed(16, &|flag| flag[0] = 0);
    malformed(33, &|membership| membership[..17].fill(0));
    // An entry that says that it is compressed, and then that it is not.
    let form = [1, 0x42, 0xbc];
    let mut record = record_corpus()[2].clone();
    let at = record.windows(3).position(|bytes| bytes == form).expect("700 in plain");
    record.splice(at..at + 3, [0]);
    seal_record(&mut record);
    let record = Record::decode(TX, LOG_INDEX, record.into()).expect("the checksum is right");
    assert!(record.entries().any(|entry| entry.is_err()));
}

/// The length in plain, then the stored bytes.
#[test]
fn fuzz_lz4_value() {
    let decode = |bytes: &[u8]| {
        let Some((plain_len, stored)) = bytes.split_first_chunk() else { return Decoded::Refused };
        let plain_len = u32::from_be_bytes(*plain_len);
        let plain = compression::plain(ValueForm::Lz4 { plain_len }, Bytes::copy_from_slice(stored));
        match plain {
            None => Decoded::Refused,
            Some(plain) => {
                assert_eq!(plain.len(), plain_len as usize);
                Decoded::Loose
            }
        }
    };
    let input = |value: &[u8]| [&(value.len() as u32).to_be_bytes()[..], &lz4_flex::block::compress(value)].concat();
    let words: Vec<u8> = (0..3000_u32).map(|n| (n * n % 97) as u8).collect();
    let corpus = vec![input(&[7; 100]), input(&[0; 5000]), input(&words)];
    Target { name: "lz4 value", corpus, seal: &unsealed, memory: (1024, LZ4_EXPANSION_MAX + 4), decode: &decode }.run();
}

#[test]
fn fuzz_varints() {
    let decode = |bytes: &[u8]| {
        let mut reader = Reader::new(bytes);
        let mut again = Vec::new();
        while reader.left() > 0 {
            let Ok(value) = reader.varint() else { return Decoded::Refused };
            again.put_varint(value);
        }
        Decoded::Canonical(again)
    };
    let mut all = Vec::new();
    for value in [0, 0x3f, 0x40, 0x3fff, 0x4000, 0x3fff_ffff, 0x4000_0000, (1 << 62) - 1] {
        all.put_varint(value);
    }
    Target { name: "varints", corpus: vec![all], seal: &unsealed, memory: (128, 4), decode: &decode }.run();
}

#[test]
fn fuzz_metadata() {
    let transactions = |bytes: &[u8]| canonical(TxMetadata::from_bytes(bytes).and_then(|metadata| metadata.to_bytes()));
    let corpus = vec![TxMetadata { truncated_up_to: Some(TxId(2)), extra: b"extra".to_vec() }.to_bytes().unwrap()];
    Target { name: "tx metadata", corpus, seal: &unsealed, memory: (512, 8), decode: &transactions }.run();
    let entries = |bytes: &[u8]| canonical(KvMetadata::from_bytes(bytes).map(|metadata| metadata.to_bytes()));
    let corpus = vec![KvMetadata { deleted: true, expires_at: Some(-1), non_indexable: true }.to_bytes()];
    Target { name: "entry metadata", corpus, seal: &unsealed, memory: (512, 8), decode: &entries }.run();
}

fn exported(values_gone: bool) -> export::ExportedTx {
    let metadata = KvMetadata { expires_at: Some(9), ..KvMetadata::default() };
    let value = |bytes: &[u8]| match values_gone {
        true => export::ExportedValue::Gone(digest::sha256(bytes)),
        false => export::ExportedValue::Present(bytes.to_vec()),
    };
    let entries = [&b"first"[..], b"second"].map(|text| export::ExportedEntry {
        key: text.to_vec(),
        metadata,
        value: value(text),
    });
    let header = header_of(1_700_000_000, 1, TxMetadata::default(), 2, digest::ZERO);
    export::ExportedTx { header, entries: entries.to_vec(), values_gone }
}

#[test]
fn fuzz_header_and_export() {
    let header = |bytes: &[u8]| canonical(TxHeader::from_bytes(bytes).and_then(|header| header.to_bytes()));
    let corpus = vec![exported(false).header.to_bytes().unwrap()];
    Target { name: "tx header", corpus, seal: &unsealed, memory: (1024, 8), decode: &header }.run();
    // The closing flag may be missing.
    let export = |bytes: &[u8]| loose(export::decode(bytes));
    let corpus = vec![export::encode(&exported(false)).unwrap(), export::encode(&exported(true)).unwrap()];
    Target { name: "export", corpus, seal: &unsealed, memory: (1024, 32), decode: &export }.run();
}

#[test]
fn fuzz_stored_forms() {
    let value = |bytes: &[u8]| loose(kv::parse_value(bytes));
    let corpus = vec![kv::set_value(b"value"), kv::reference_value(TxId(7), b"key")];
    Target { name: "stored value", corpus, seal: &unsealed, memory: (256, 4), decode: &value }.run();
    let member =
        |bytes: &[u8]| canonical(kv::parse_zadd_key(bytes).map(|m| kv::zadd_key(m.set, m.score, m.key, m.at_tx)));
    let corpus = vec![kv::zadd_key(b"set", -1.5, b"key", TxId(7))];
    Target { name: "sorted set member", corpus, seal: &unsealed, memory: (256, 4), decode: &member }.run();
}

//! The bytes of the log layer, held equal in three places: the code, `testdata/log` (made by an encoder that shares nothing
//! with the code), and the blocks of `docs/format.md`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use alhambra_ledger::digest::sha256;
use alhambra_ledger::ids::{DatabaseId, LogId};
use alhambra_storage::format::{self, SegmentHeader, SidecarHeader};
use alhambra_storage::segment::{Frame, FrameKind, Ledger, LedgerOptions, LedgerSpec, RecoveryFloor};
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::vfs::{OpenMode, Vfs};
use bytes::Bytes;

const NAMES: [&str; 4] = ["segment-header", "frame", "frame-empty", "sidecar"];

fn text(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/log/{name}.hex"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Bytes of a golden file: hexadecimal digits, remarks from `#` to the end of the line.
fn golden(name: &str) -> Vec<u8> {
    let text = text(name);
    let digits = text.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    let digits: String = digits.collect();
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    assert!(rest.is_empty());
    pairs.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn database() -> DatabaseId {
    DatabaseId(std::array::from_fn(|at| at as u8))
}

fn two_frames() -> [Frame; 2] {
    [
        Frame { log_id: LogId::new(3, 7), kind: FrameKind::Command, payload: Bytes::from_static(b"Alhambra") },
        Frame { log_id: LogId::new(3, 8), kind: FrameKind::Blank, payload: Bytes::new() },
    ]
}

#[test]
fn frames_are_the_golden_bytes() {
    for (frame, name) in two_frames().iter().zip(["frame", "frame-empty"]) {
        let expected = golden(name);
        let mut bytes = Vec::new();
        format::encode_frame(frame, &mut bytes);
        assert_eq!(bytes, expected, "{name}");
        assert_eq!(format::frame_bytes(frame.payload.len()), expected.len() as u64);
        // Whatever stands behind it.
        bytes.extend_from_slice(b"next");
        assert_eq!(format::decode_frame(&bytes.into()).unwrap(), (frame.clone(), expected.len()));
    }
}

#[test]
fn headers_are_the_golden_bytes() {
    let header = SegmentHeader {
        database: database(),
        number: 1,
        first_offset: 300,
        first_log_id: LogId::new(3, 7),
        segment_bytes: 320,
        generation: 0,
        hole_count: 0,
        frame_bytes: 0,
        kept_bytes: 0,
    };
    assert_eq!(header.encode(), golden("segment-header"));
    assert_eq!(SegmentHeader::decode(&golden("segment-header")), Ok(header));

    let bytes = golden("sidecar");
    let (head, body) = bytes.split_at(132);
    let sidecar = SidecarHeader {
        database: database(),
        number: 1,
        first_offset: 300,
        first_log_id: LogId::new(3, 7),
        last_log_id: LogId::new(3, 8),
        frame_count: 2,
        frame_bytes: 58,
        digest: sha256(&[golden("frame"), golden("frame-empty")].concat()),
        generation: 0,
        offsets_crc: crc32c::crc32c(body),
    };
    assert_eq!(sidecar.encode(), head);
    assert_eq!(SidecarHeader::decode(head), Ok(sidecar));
    assert_eq!(format::encode_offsets(&[0, 33]), body);
    assert_eq!(format::decode_offsets(&sidecar, body), Ok(vec![0, 33]));
    assert_eq!(sidecar.file_bytes(), bytes.len() as u64);
}

/// A ledger whose second segment is the golden one, header, frames and sidecar.
#[test]
fn files_are_made_of_the_golden_bytes() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let spec = LedgerSpec { database: database(), segment_bytes: 320 };
    let (floor, options) = (RecoveryFloor::default(), LedgerOptions::default());
    let (ledger, _) = Ledger::open(Arc::clone(&vfs), Path::new("ledger"), spec, floor, options).unwrap();
    let membership = |term, index, bytes: usize| Frame {
        log_id: LogId::new(term, index),
        kind: FrameKind::Membership,
        payload: vec![7; bytes].into(),
    };
    ledger.stage(&[membership(2, 5, 0), membership(3, 6, 250)]).unwrap();
    ledger.stage(&two_frames()).unwrap();
    ledger.flush().unwrap();
    let read = |path: &Path, bytes: usize| vfs.open(path, OpenMode::Read).unwrap().read_at(0, bytes).unwrap();
    let segment = [golden("segment-header"), golden("frame"), golden("frame-empty")].concat();
    let open = [segment.clone(), vec![0; 320 - 58]].concat();
    assert_eq!(ledger.segment_path(1), Path::new("ledger/0000000001.seg"));
    assert_eq!(read(&ledger.segment_path(1), open.len()), open);

    ledger.stage(&[membership(3, 9, 270)]).unwrap();
    ledger.flush().unwrap();
    assert_eq!(read(&ledger.segment_path(1), segment.len()), segment);
    assert_eq!(ledger.sidecar_path(1), Path::new("ledger/0000000001.idx"));
    assert_eq!(read(&ledger.sidecar_path(1), 140), golden("sidecar"));
    let names: Vec<String> = vfs.read_dir(Path::new("ledger")).unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["0000000000.idx", "0000000000.seg", "0000000001.idx", "0000000001.seg", "0000000002.seg"]);
}

#[test]
fn the_document_shows_the_golden_bytes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/format.md");
    let document = fs::read_to_string(path).unwrap();
    for name in NAMES {
        let block = format!("`storage/testdata/log/{name}.hex`:\n\n```\n{}```\n", text(name));
        assert!(document.contains(&block), "docs/format.md must show {name}.hex as it is");
    }
}

//! Failure guarded against: damaged, foreign or missing files are served, or repaired into something else.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::ids::{DatabaseId, LogId};
use alhambra_storage::Error;
use alhambra_storage::error::Damage;
use alhambra_storage::format::{self, SegmentHeader, SidecarHeader};
use alhambra_storage::segment::{Frame, FrameKind, LedgerOptions, LedgerReport, LedgerSpec};
use alhambra_storage::segment::{Ledger, Position};
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::vfs::{OpenMode, Vfs};
use bytes::Bytes;

use crate::ledger_support::*;

const SEGMENT_BYTES: u64 = 300;

/// Three segments, of three, three and two frames of 95 bytes; and files as they are on disk.
struct Sample {
    frames: Vec<Frame>,
    files: Vec<(PathBuf, Bytes)>,
}

fn sample() -> Sample {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let frames: Vec<Frame> = (0..8).map(|index| frame(1 + index / 4, index, 70)).collect();
    let (ledger, _) = open(&vfs, SEGMENT_BYTES, None).unwrap();
    ledger.stage(&frames).unwrap();
    ledger.flush().unwrap();
    let sizes: Vec<u64> = ledger.segments().iter().map(|segment| segment.frame_bytes).collect();
    assert_eq!(sizes, [285, 285, 190]);
    let names = vfs.read_dir(Path::new(DIR)).unwrap();
    let read = |name: &String| {
        let path = Path::new(DIR).join(name);
        let file = vfs.open(&path, OpenMode::Read).unwrap();
        let bytes = file.read_at(0, file.len().unwrap() as usize).unwrap();
        (path, bytes)
    };
    Sample { frames, files: names.iter().map(|(name, _)| read(name)).collect() }
}

fn disk(files: &[(PathBuf, Bytes)]) -> Arc<dyn Vfs> {
    let mem = MemVfs::new();
    mem.create_dir_all(Path::new(DIR)).unwrap();
    for (path, bytes) in files {
        put(&mem, path, bytes);
    }
    Arc::new(mem)
}

fn put(vfs: &dyn Vfs, path: &Path, bytes: &[u8]) {
    let file = vfs.open(path, OpenMode::Create).unwrap();
    file.set_len(0).unwrap();
    file.write_at(0, bytes).unwrap();
    file.sync_data().unwrap();
    vfs.sync_dir(Path::new(DIR)).unwrap();
}

fn seg(number: u64) -> PathBuf {
    Path::new(DIR).join(format!("000000000{number}.seg"))
}

fn idx(number: u64) -> PathBuf {
    Path::new(DIR).join(format!("000000000{number}.idx"))
}

impl Sample {
    /// The files with one of them changed; removed when the change says so.
    fn with(&self, path: &Path, change: impl Fn(Vec<u8>) -> Option<Vec<u8>>) -> Arc<dyn Vfs> {
        let mut files = self.files.clone();
        let at = files.iter().position(|(other, _)| other == path).expect("the sample has this file");
        match change(files[at].1.to_vec()) {
            Some(bytes) => files[at].1 = bytes.into(),
            None => drop(files.remove(at)),
        }
        disk(&files)
    }

    fn bytes(&self, path: &Path) -> &Bytes {
        &self.files.iter().find(|(other, _)| other == path).expect("the sample has this file").1
    }

    fn last_index(&self) -> Option<u64> {
        self.frames.last().map(|frame| frame.log_id.index.0)
    }
}

/// Reads frame by frame; each is right or an error, and the wrong one is returned never.
fn readable(ledger: &Ledger, expected: &[Frame]) -> Vec<Result<(), Error>> {
    let read = |(position, frame): (Position, Frame)| {
        let index = frame.log_id.index;
        let result = ledger.read(index, index.next().unwrap(), 0);
        result.map(|found| assert_eq!(found, [(position, frame)]))
    };
    with_positions(expected).into_iter().map(read).collect()
}

/// Which frame of a segment file a byte belongs to; `None` for header and padding.
fn frame_at(offset: usize, frame_count: usize) -> Option<usize> {
    let at = offset.checked_sub(HEADER_BYTES as usize)? / 95;
    (at < frame_count).then_some(at)
}

fn assert_corrupted(error: &Error, number: u64, at: u64, context: &str) {
    let Error::Corrupted { path, segment, offset, .. } = error else { panic!("{context}: {error}") };
    assert_eq!((path, *segment, *offset), (&seg(number), Some(number), at), "{context}: {error}");
}

#[test]
fn every_flipped_bit_is_noticed_or_does_no_harm() {
    let sample = sample();
    for (path, bytes) in &sample.files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let number = u64::from(name.as_bytes()[9] - b'0');
        let frame_count = [3, 3, 2][number as usize];
        for offset in 0..bytes.len() {
            for mask in [0x01, 0x80] {
                let context = format!("{name} byte {offset} mask {mask:#x}");
                let vfs = sample.with(path, |mut bytes| {
                    bytes[offset] ^= mask;
                    Some(bytes)
                });
                let opened = open(&vfs, SEGMENT_BYTES, sample.last_index());
                let frame = frame_at(offset, frame_count);
                if name.ends_with(".idx") {
                    // Derived: made anew at open or when it is first needed.
                    let (ledger, report) = opened.unwrap();
                    assert!(readable(&ledger, &sample.frames).iter().all(Result::is_ok), "{context}");
                    assert_eq!(report.sidecars_rebuilt, u64::from(offset < 132), "{context}");
                    for number in 0..3 {
                        let kept = ledger.digest(number).unwrap();
                        assert_eq!(kept, ledger.recompute_digest(number).unwrap(), "{context}");
                    }
                } else if offset < HEADER_BYTES as usize {
                    // What it says is known otherwise; that of the newest is written again, the others wait for a mend, and
                    // nothing is read by them.
                    let (ledger, report) = opened.unwrap();
                    assert_eq!(report.headers_restored, 1, "{context}");
                    for (at, result) in readable(&ledger, &sample.frames).into_iter().enumerate() {
                        match result {
                            Ok(()) => assert!(number == 2 || at / 3 != number as usize, "{context}: served"),
                            Err(error) => assert_corrupted(&error, number, 0, &context),
                        }
                    }
                    drop(ledger);
                    let again = open(&vfs, SEGMENT_BYTES, sample.last_index()).unwrap().1;
                    assert_eq!(again.headers_restored, u64::from(number < 2), "{context}");
                } else if let Some(frame) = frame {
                    let frame_offset = HEADER_BYTES + 95 * frame as u64;
                    if number == 2 {
                        assert_corrupted(&opened.unwrap_err(), number, frame_offset, &context);
                        continue;
                    }
                    let (ledger, _) = opened.unwrap();
                    for (at, result) in readable(&ledger, &sample.frames).into_iter().enumerate() {
                        match result {
                            Ok(()) => assert_ne!(at, number as usize * 3 + frame, "{context}: served"),
                            Err(error) => {
                                assert_eq!(at, number as usize * 3 + frame, "{context}");
                                assert_corrupted(&error, number, frame_offset, &context);
                            }
                        }
                    }
                    assert_ne!(ledger.digest(number).unwrap(), ledger.recompute_digest(number).unwrap(), "{context}");
                } else {
                    // Padding of the open segment: cleaned.
                    let (ledger, report) = opened.unwrap();
                    assert_eq!(number, 2, "closed segments have no padding");
                    assert!(report.cut_bytes > 0, "{context}");
                    assert!(readable(&ledger, &sample.frames).iter().all(Result::is_ok), "{context}");
                    assert_eq!(open(&vfs, SEGMENT_BYTES, sample.last_index()).unwrap().1.cut_bytes, 0, "{context}");
                }
            }
        }
    }
}

#[test]
fn a_flipped_frame_of_a_closed_segment_without_sidecar_is_noticed_at_open() {
    let sample = sample();
    for offset in HEADER_BYTES as usize..(HEADER_BYTES + 285) as usize {
        let mut files: Vec<_> = sample.files.iter().filter(|(path, _)| *path != idx(1)).cloned().collect();
        let at = files.iter().position(|(path, _)| *path == seg(1)).unwrap();
        let mut bytes = files[at].1.to_vec();
        bytes[offset] ^= 0x10;
        files[at].1 = bytes.into();
        let error = open(&disk(&files), SEGMENT_BYTES, sample.last_index()).unwrap_err();
        let frame = frame_at(offset, 3).unwrap() as u64;
        assert_corrupted(&error, 1, HEADER_BYTES + 95 * frame, &format!("byte {offset}"));
    }
}

#[test]
fn every_truncation_is_noticed_or_does_no_harm() {
    let sample = sample();
    for (path, bytes) in &sample.files {
        let name = path.file_name().unwrap().to_str().unwrap();
        for len in 0..bytes.len() {
            let vfs = sample.with(path, |bytes| Some(bytes[..len].to_vec()));
            let opened = open(&vfs, SEGMENT_BYTES, sample.last_index());
            let harmless = name.ends_with(".idx") || (*path == seg(2) && len as u64 >= HEADER_BYTES + 190);
            if harmless {
                let (ledger, _) = opened.unwrap();
                assert!(readable(&ledger, &sample.frames).iter().all(Result::is_ok), "{name} of {len} bytes");
            } else if *path == seg(2) {
                let error = opened.unwrap_err();
                assert!(matches!(error, Error::Corrupted { .. }), "{name} of {len} bytes: {error}");
            } else {
                // What it was is known from the sidecar; whoever reads what is gone is told.
                let (ledger, _) = opened.unwrap();
                assert_eq!(ledger.last_log_id().map(|id| id.index.0), sample.last_index());
                let read = readable(&ledger, &sample.frames);
                assert!(read.iter().any(Result::is_err), "{name} of {len} bytes");
                let noticed = |error: &Error| matches!(error, Error::Corrupted { segment: Some(_), .. });
                assert!(
                    read.iter().flat_map(|read| read.as_ref().err()).all(noticed),
                    "{name} of {len} bytes: {read:?}"
                );
            }
        }
    }
}

#[test]
fn above_the_floor_a_bad_frame_is_a_torn_tail_and_below_it_is_corruption() {
    let sample = sample();
    // The second frame of the open segment, log index 7.
    let vfs = || {
        sample.with(&seg(2), |mut bytes| {
            bytes[HEADER_BYTES as usize + 95 + 50] ^= 1;
            Some(bytes)
        })
    };
    let error = open(&vfs(), SEGMENT_BYTES, Some(7)).unwrap_err();
    assert_corrupted(&error, 2, HEADER_BYTES + 95, "below");
    let vfs = vfs();
    let (ledger, report) = open(&vfs, SEGMENT_BYTES, Some(6)).unwrap();
    assert_eq!(report.cut_bytes, 95);
    assert_eq!(read_all(&ledger, 1000).unwrap(), with_positions(&sample.frames[..7]));
    drop(ledger);
    let file = vfs.open(&seg(2), OpenMode::Read).unwrap();
    let rest = file.read_at(HEADER_BYTES + 95, (file.len().unwrap() - HEADER_BYTES - 95) as usize).unwrap();
    assert!(rest.iter().all(|byte| *byte == 0), "the cut is zeroed");
    assert_eq!(open(&vfs, SEGMENT_BYTES, Some(6)).unwrap().1, LedgerReport::default());

    // The same for the first frame: the segment goes, and the one before takes frames again.
    let vfs = sample.with(&seg(2), |mut bytes| {
        bytes[HEADER_BYTES as usize + 50] ^= 1;
        Some(bytes)
    });
    assert_corrupted(&open(&vfs, SEGMENT_BYTES, Some(6)).unwrap_err(), 2, HEADER_BYTES, "below");
    let (ledger, report) = open(&vfs, SEGMENT_BYTES, Some(5)).unwrap();
    assert_eq!(report.cut_bytes, 190);
    assert_eq!(ledger.last_log_id(), Some(LogId::new(2, 5)));
    assert!(!vfs.exists(&seg(2)).unwrap() && !vfs.exists(&idx(1)).unwrap());
    ledger.stage(&[frame(9, 6, 70)]).unwrap();
    ledger.flush().unwrap();
    assert_eq!(ledger.segments()[2].first_log_id, LogId::new(9, 6), "the header is of the frame that is there");
}

#[test]
fn missing_files_have_their_own_errors() {
    let sample = sample();
    // The sidecar of the one before tells of the newest.
    for number in [0, 1, 2] {
        let error = open(&sample.with(&seg(number), |_| None), SEGMENT_BYTES, None).unwrap_err();
        assert!(matches!(error, Error::SegmentMissing { number: found, .. } if found == number), "{error}");
    }
    // Without that as well only the floor can.
    let vfs = sample.with(&seg(2), |_| None);
    vfs.remove_file(&idx(1)).unwrap();
    let error = open(&vfs, SEGMENT_BYTES, Some(6)).unwrap_err();
    assert!(matches!(error, Error::Corrupted { damage: Damage::Missing, .. }), "{error}");
    let (ledger, _) = open(&vfs, SEGMENT_BYTES, Some(5)).unwrap();
    assert_eq!(ledger.last_log_id(), Some(LogId::new(2, 5)));
    // Nothing at all.
    let error = open(&disk(&[]), SEGMENT_BYTES, Some(0)).unwrap_err();
    assert!(matches!(error, Error::Corrupted { damage: Damage::Missing, .. }), "{error}");
}

#[test]
fn other_files_in_the_folder_do_no_harm() {
    let sample = sample();
    let mut files = sample.files.clone();
    for name in ["0000000003.new", "README", "1.seg", "00000000xx.seg", "0000000009.idx"] {
        files.push((Path::new(DIR).join(name), Bytes::from_static(b"not ours")));
    }
    let vfs = disk(&files);
    vfs.create_dir_all(&Path::new(DIR).join("0000000003.seg")).unwrap();
    let (ledger, _) = open(&vfs, SEGMENT_BYTES, sample.last_index()).unwrap();
    assert_eq!(read_all(&ledger, 1000).unwrap(), with_positions(&sample.frames));
    assert!(
        !vfs.exists(&Path::new(DIR).join("0000000003.new")).unwrap(),
        "a segment that never got its name is removed"
    );
    assert!(vfs.exists(&Path::new(DIR).join("README")).unwrap());
}

fn header(sample: &Sample, number: u64) -> SegmentHeader {
    SegmentHeader::decode(sample.bytes(&seg(number))).unwrap()
}

/// The sample with the header of a segment replaced.
fn with_header(sample: &Sample, number: u64, header: &[u8]) -> Arc<dyn Vfs> {
    sample.with(&seg(number), |mut bytes| {
        bytes[..HEADER_BYTES as usize].copy_from_slice(header);
        Some(bytes)
    })
}

#[test]
fn files_of_another_database_version_or_size_are_refused_by_name() {
    let sample = sample();
    let other = DatabaseId([7; 16]);
    let options = LedgerOptions::default();
    let spec = LedgerSpec { database: other, segment_bytes: SEGMENT_BYTES };
    let error = Ledger::open(disk(&sample.files), Path::new(DIR), spec, floor(None), options).unwrap_err();
    assert!(
        matches!(&error, Error::ForeignDatabase { path, expected, found }
            if *path == seg(0) && *expected == other && *found == DATABASE),
        "{error}"
    );
    // One foreign segment among ours.
    let foreign = SegmentHeader { database: other, ..header(&sample, 1) };
    let error = open(&with_header(&sample, 1, &foreign.encode()), SEGMENT_BYTES, None).unwrap_err();
    assert!(matches!(&error, Error::ForeignDatabase { path, .. } if *path == seg(1)), "{error}");

    let error = open(&disk(&sample.files), SEGMENT_BYTES + 1, None).unwrap_err();
    assert!(matches!(error, Error::SegmentSizeMismatch { expected: 301, found: 300, .. }), "{error}");
    for bad in [0, 255, (1 << 30) + 1] {
        let error = open(&disk(&[]), bad, None).unwrap_err();
        assert!(matches!(error, Error::SegmentSizeInvalid { segment_bytes, .. } if segment_bytes == bad), "{error}");
    }

    // A newer version has a checksum that holds.
    let mut newer = header(&sample, 2).encode();
    newer[9] = 2;
    let crc = crc32c::crc32c(&newer[..252]).to_be_bytes();
    newer[252..].copy_from_slice(&crc);
    let error = open(&with_header(&sample, 2, &newer), SEGMENT_BYTES, None).unwrap_err();
    assert!(matches!(&error, Error::UnsupportedVersion { path, found: 2, supported: 1 } if *path == seg(2)), "{error}");
}

#[test]
fn segments_that_do_not_continue_each_other_are_refused() {
    let sample = sample();
    let good = header(&sample, 1);
    let forged = [
        SegmentHeader { number: 2, ..good },
        SegmentHeader { first_offset: good.first_offset + 1, ..good },
        SegmentHeader { first_log_id: LogId::new(1, 4), ..good },
        SegmentHeader { first_log_id: LogId::new(1, 2), ..good },
        SegmentHeader { first_log_id: LogId::new(0, 3), ..good },
    ];
    for forged in forged {
        let error = open(&with_header(&sample, 1, &forged.encode()), SEGMENT_BYTES, None).unwrap_err();
        assert!(matches!(error, Error::Corrupted { segment: Some(_), .. }), "{forged:?}: {error}");
    }
    // A whole segment with the sidecar of another, or in the place of another.
    for (from, to) in [(idx(0), idx(1)), (seg(0), seg(1)), (seg(1), seg(2))] {
        let vfs = sample.with(&to, |_| Some(sample.bytes(&from).to_vec()));
        match open(&vfs, SEGMENT_BYTES, sample.last_index()) {
            Ok((ledger, report)) => {
                assert_eq!((to, report.sidecars_rebuilt), (idx(1), 1));
                assert_eq!(read_all(&ledger, 1000).unwrap(), with_positions(&sample.frames));
            }
            Err(error) => {
                assert!(to != idx(1) && matches!(error, Error::Corrupted { damage: Damage::Chain, .. }), "{error}");
            }
        }
    }
}

/// A whole frame in the wrong place: what an old frame behind a cut would look like.
#[test]
fn frames_with_a_valid_checksum_are_still_refused_out_of_place() {
    let sample = sample();
    let forge = |log_id: LogId, at: usize| {
        let forged = Frame { log_id, kind: FrameKind::Command, payload: Bytes::from(vec![1; 70]) };
        let mut bytes = Vec::new();
        format::encode_frame(&forged, &mut bytes);
        sample.with(&seg(2), |mut file| {
            let start = HEADER_BYTES as usize + at * 95;
            file[start..start + 95].copy_from_slice(&bytes);
            Some(file)
        })
    };
    // Where log index 7 of term 2 belongs, and where 6 does, which the header names.
    for (log_id, at) in [
        (LogId::new(2, 6), 1),
        (LogId::new(2, 8), 1),
        (LogId::new(1, 7), 1),
        (LogId::new(3, 6), 0),
        (LogId::new(2, 7), 0),
    ] {
        let error = open(&forge(log_id, at), SEGMENT_BYTES, Some(7)).unwrap_err();
        assert_corrupted(&error, 2, HEADER_BYTES + 95 * at as u64, &format!("{log_id} at {at}"));
        assert!(matches!(error, Error::Corrupted { damage: Damage::Sequence, .. }), "{error}");
        let (ledger, report) = open(&forge(log_id, at), SEGMENT_BYTES, Some(5)).unwrap();
        assert_eq!(read_all(&ledger, 1000).unwrap(), with_positions(&sample.frames[..6 + at]));
        assert_eq!(report.cut_bytes, 95 * (2 - at as u64));
    }
    // Behind the end, after padding: as if the first sector of a write had been lost and the second not.
    let vfs = sample.with(&seg(2), |mut file| {
        let end = HEADER_BYTES as usize + 190;
        file.resize(end + 1000, 0);
        file[end + 512] = 1;
        Some(file)
    });
    assert_eq!(open(&vfs, SEGMENT_BYTES, Some(7)).unwrap().1.cut_bytes, 513);

    // A kind that no version writes.
    let mut bytes = Vec::new();
    format::encode_frame(&frame(2, 7, 70), &mut bytes);
    for kind in [0, 4, 255] {
        bytes[24] = kind;
        let crc = crc32c::crc32c(&bytes[8..]).to_be_bytes();
        bytes[4..8].copy_from_slice(&crc);
        assert_eq!(format::decode_frame(&Bytes::from(bytes.clone())).unwrap_err(), Damage::Field);
    }
}

#[test]
fn a_damaged_frame_in_what_a_cut_keeps_stops_the_cut() {
    let sample = sample();
    let vfs = sample.with(&seg(1), |mut bytes| {
        bytes[HEADER_BYTES as usize + 10] ^= 1;
        Some(bytes)
    });
    let (ledger, _) = open(&vfs, SEGMENT_BYTES, sample.last_index()).unwrap();
    let error = ledger.truncate_after(Some(sample.frames[4].log_id.index)).unwrap_err();
    assert_corrupted(&error, 1, HEADER_BYTES, "cut");
    assert!(!ledger.is_poisoned());
    assert_eq!(ledger.last_log_id(), Some(LogId::new(2, 7)), "nothing has changed");
    assert!(vfs.exists(&seg(2)).unwrap());
    ledger.truncate_after(Some(sample.frames[1].log_id.index)).unwrap();
    assert_eq!(read_all(&ledger, 1000).unwrap(), with_positions(&sample.frames[..2]));
}

#[test]
fn a_sidecar_with_a_valid_checksum_and_wrong_offsets_is_not_believed() {
    let sample = sample();
    for offsets in [vec![0, 95, 95], vec![1, 95, 190], vec![0, 190, 95], vec![0, 95, 285]] {
        let body = format::encode_offsets(&offsets);
        let good = SidecarHeader::decode(sample.bytes(&idx(0))).unwrap();
        let forged = SidecarHeader { offsets_crc: crc32c::crc32c(&body), ..good };
        let vfs = sample.with(&idx(0), |_| Some([forged.encode(), body.clone()].concat()));
        let (ledger, _) = open(&vfs, SEGMENT_BYTES, sample.last_index()).unwrap();
        assert!(readable(&ledger, &sample.frames).iter().all(Result::is_ok), "{offsets:?}");
    }
}

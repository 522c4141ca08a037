//! Fuzz targets of blocks, whole runs and manifests; see `crate::fuzz`. Everything that reads a block is called on it.

use alhambra_fuzz::{Decoded, Target};

use super::block::{Block, BlockWriter, By, Child, filter};
use super::run::{FOOTER_BYTES, HEADER_BYTES, RunInfo, file_name};
use super::version::Stored;
use super::writer::RunWriter;
use super::*;
use crate::fuzz::{golden, seal_crc};
use crate::vfs::OpenMode;
use crate::vfs::mem::MemVfs;

const DATABASE: DatabaseId = DatabaseId([7; 16]);
const FIRST_TX: TxId = TxId(10);

fn versions(number: u64) -> Vec<Stored> {
    let version = |tx: u64| Stored {
        tx: TxId(tx),
        entry: tx as u32 % 7,
        deleted: tx.is_multiple_of(2),
        expires_at: tx.is_multiple_of(3).then_some(tx as i64 - 5),
    };
    (0..=number % 4).map(|n| version(10 + number + n * 5)).collect()
}

fn key(number: u64) -> Vec<u8> {
    format!("key-{number:03}").into_bytes()
}

fn leaf(keys: u64) -> Vec<u8> {
    let mut writer = BlockWriter::leaf();
    for number in 0..keys {
        writer.put_cell(FIRST_TX, &key(number), number % 3, &versions(number));
    }
    writer.finish()
}

fn inner(lowest: bool) -> Vec<u8> {
    let mut writer = BlockWriter::inner(lowest);
    for number in 0..5 {
        let child = Child { offset: 64 + number * 100, len: 100, newest_tx: TxId(20 + number) };
        let filter = lowest.then(|| filter::build(&[filter::hash(&key(number))]));
        writer.put_child(FIRST_TX, &key(number), TxId(10 + number), number, child, filter.as_deref());
    }
    writer.finish()
}

/// Everything that is done with a block. What it says may be nonsense; it must be refused or answered.
fn use_block(block: &Block) -> std::result::Result<(), crate::wire::Malformed> {
    for wanted in [key(0), key(3), b"".to_vec(), vec![0xff; 20]] {
        for by in [By::Tx(TxId(12)), By::Tx(TxId(u64::MAX)), By::Count(0), By::Count(u64::MAX)] {
            block.last_restart(FIRST_TX, &wanted, by)?;
            if block.is_leaf() {
                let Some(cell) = block.cell(FIRST_TX, &wanted, by)? else { continue };
                cell.newest(TxId(12))?;
                cell.newest(TxId(u64::MAX))?;
            }
        }
        block.first_restart(FIRST_TX, &wanted, false)?;
        block.first_restart(FIRST_TX, &wanted, true)?;
    }
    if block.is_leaf() {
        let mut cells = block.cells_from(0, FIRST_TX)?;
        while cells.advance()? {
            cells.cell().versions()?;
        }
        return Ok(());
    }
    for number in 0..block.restarts() {
        let (_, bits) = block.child(number, FIRST_TX)?;
        filter::may_contain(bits, filter::hash(b"key"));
    }
    Ok(())
}

#[test]
fn fuzz_block() {
    let decode = |bytes: &[u8]| match Block::open(Bytes::copy_from_slice(bytes)) {
        Ok(block) if use_block(&block).is_ok() => Decoded::Loose,
        _ => Decoded::Refused,
    };
    let seal = |bytes: &mut Vec<u8>| seal_crc(bytes, 0);
    let corpus = vec![leaf(1), leaf(40), inner(true), inner(false)];
    Target { name: "index block", corpus, seal: &seal, memory: (16 << 10, 8), decode: &decode }.run();
}

#[test]
fn fuzz_index_manifest() {
    let decode = |bytes: &[u8]| {
        let found = Manifest::decode(bytes);
        found.map_or(Decoded::Refused, |(database, manifest)| Decoded::Canonical(manifest.encode(database)))
    };
    let framed = &golden("index/manifest.hex")[0];
    let corpus = vec![framed[16..framed.len() - 4].to_vec(), Manifest::default().encode(DATABASE)];
    Target { name: "index manifest", corpus, seal: &|_| {}, memory: (512, 8), decode: &decode }.run();
}

/// Two levels: a root over some leaves.
fn run_file() -> (RunInfo, Vec<u8>) {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let dir = Path::new("");
    let mut writer = RunWriter::create(&vfs, dir, DATABASE, 1, FIRST_TX, TxId(1000)).unwrap();
    for number in 0..500 {
        writer.add(&key(number), &versions(number)).unwrap();
    }
    let info = writer.finish().unwrap();
    let file = vfs.open(Path::new(&file_name(1)), OpenMode::Read).unwrap();
    let bytes = file.read_at(0, info.file_bytes as usize).unwrap();
    (info, bytes.to_vec())
}

/// Reads a run in every way.
fn use_run(run: &Arc<Run>) -> Result<()> {
    let mut walk = run.cells();
    while let Some((_, cell)) = walk.next_cell()? {
        cell.newest(TxId(100)).map_err(|_| run.bad_cell())?;
    }
    for wanted in [key(0), key(7), key(499), b"absent".to_vec()] {
        run.newest(&wanted, TxId(u64::MAX))?;
        run.count(&wanted, TxId(100))?;
        run.versions(&wanted, TxId(u64::MAX), 0, 10, &mut Vec::new())?;
        run.versions(&wanted, TxId(u64::MAX), 2, 1, &mut Vec::new())?;
    }
    for desc in [false, true] {
        for range in [KeyRange::all(), KeyRange::prefix(Bytes::from_static(b"key-1"))] {
            let mut cursor = run.cursor(range, TxId(20), TxId(100), desc);
            while cursor.next_key()?.is_some() {}
        }
    }
    Ok(())
}

/// Makes the header and the footer's counts and checksum those of the run, and the checksum of each block that the footer or
/// the root names.
fn seal_run(info: &RunInfo, header: &[u8], bytes: &mut Vec<u8>) {
    let (header_len, footer_len) = (HEADER_BYTES as usize, FOOTER_BYTES as usize);
    bytes.resize(bytes.len().max(header_len + footer_len), 0);
    bytes[..header_len].copy_from_slice(header);
    let footer_at = bytes.len() - footer_len;
    let (front, footer) = bytes.split_at_mut(footer_at);
    footer[24..32].copy_from_slice(&info.keys.to_be_bytes());
    footer[32..40].copy_from_slice(&info.versions.to_be_bytes());
    seal_crc(footer, 8);
    footer[56..].copy_from_slice(b"ALHINEND");
    let offset = u64::from_be_bytes(footer[..8].try_into().unwrap());
    let len = u32::from_be_bytes(footer[8..12].try_into().unwrap());
    // What a root says may be nonsense: places that are not in the file are left alone.
    let mut seal_at = |offset: u64, len: u32| -> Option<Block> {
        let at = usize::try_from(offset).ok()?;
        let block = front.get_mut(at..at.checked_add(len as usize)?)?;
        seal_crc(block, 0);
        Block::open(Bytes::copy_from_slice(block)).ok()
    };
    let Some(root) = seal_at(offset, len).filter(|root| !root.is_leaf()) else { return };
    let children = (0..root.restarts()).filter_map(|number| Some(root.child(number, info.first_tx).ok()?.0));
    for child in children.collect::<Vec<_>>() {
        seal_at(child.offset, child.len);
    }
    // A child that lies over the root has broken it.
    seal_at(offset, len);
}

#[test]
fn fuzz_run() {
    let (info, bytes) = run_file();
    let cache = Arc::new(BlockCache::new(1 << 20));
    let header = bytes[..HEADER_BYTES as usize].to_vec();
    let seal = |bytes: &mut Vec<u8>| seal_run(&info, &header, bytes);
    let decode = |bytes: &[u8]| {
        let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
        let file = vfs.open(Path::new(&file_name(1)), OpenMode::CreateNew).unwrap();
        file.write_at(0, bytes).unwrap();
        let info = RunInfo { file_bytes: bytes.len() as u64, ..info };
        let used = Run::open(&vfs, Path::new(""), DATABASE, info, &cache).and_then(|run| use_run(&Arc::new(run)));
        if used.is_ok() { Decoded::Loose } else { Decoded::Refused }
    };
    Target { name: "index run", corpus: vec![bytes], seal: &seal, memory: (2 << 20, 64), decode: &decode }.run();
}

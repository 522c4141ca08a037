//! The bytes of every format of this half of the crate, held by files: a small database is made in a fixed way and dumped.
//! `docs/format.md` describes the same bytes; a difference is a decision, taken with `ALHAMBRA_UPDATE_GOLDEN=1`.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_ledger::Digest;
use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::ids::{LogId, LogIndex, TxId};
use alhambra_storage::command::{
    Citation, Command, Compression, ForeignHeader, Precondition, ProposalEntry, Prune, PruneTarget, RequestId, Seal,
    Settings, TxProposal, ValueForm,
};
use alhambra_storage::reads::Reads;
use alhambra_storage::segment::FrameKind;
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::{Database, Options};
use bytes::Bytes;

use crate::import_source;
use crate::large_tx;
use crate::model::Metadata;
use crate::replicas::files;
use crate::support::{self, commit, commit_command, dir, open};

fn hex(bytes: &[u8]) -> String {
    let mut out = String::new();
    for line in bytes.chunks(32) {
        for byte in line {
            write!(out, "{byte:02x}").expect("a string takes all");
        }
        out.push('\n');
    }
    out
}

/// Compares with, or writes, `testdata/<name>`.
fn golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    if std::env::var_os("ALHAMBRA_UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().expect("in a folder")).expect("writable checkout");
        std::fs::write(&path, found).expect("writable checkout");
    }
    let want = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(found, want, "{}", path.display());
}

fn entry(key: &'static [u8], metadata: &Metadata, value: &'static [u8]) -> ProposalEntry {
    ProposalEntry::plain(Bytes::from_static(key), metadata.bytes().into(), Bytes::from_static(value))
}

fn full_proposal() -> TxProposal {
    TxProposal {
        request: Some(RequestId { client: [0xc1; 16], sequence: 9, floor: LogIndex(4) }),
        metadata: Bytes::new(),
        entries: vec![
            entry(b"\0k1", &Metadata::default(), b"\0first value"),
            entry(b"\0k2", &Metadata { deleted: true, ..Metadata::default() }, b""),
            entry(b"\0k3", &Metadata { expires_at: Some(-2), non_indexable: true, deleted: false }, b"\0x"),
        ],
        preconditions: vec![
            Precondition::MustExist(Bytes::from_static(b"\0k1")),
            Precondition::MustNotExist(Bytes::from_static(b"\0k4")),
            Precondition::NotModifiedAfter { key: Bytes::from_static(b"\0k1"), tx: TxId(7) },
        ],
        read_set: None,
        foreign: None,
    }
}

fn becoming_proposal() -> TxProposal {
    let preconditions = vec![Precondition::Becomes(TxId(9))];
    TxProposal { preconditions, ..small_proposal(b"\0k1", b"\x01\0\0\0\0\0\0\0\x09\0k2") }
}

fn small_proposal(key: &'static [u8], value: &'static [u8]) -> TxProposal {
    TxProposal {
        request: Some(RequestId { client: [0xc2; 16], sequence: 1, floor: LogIndex(0) }),
        metadata: Bytes::new(),
        entries: vec![entry(key, &Metadata::default(), value)],
        ..TxProposal::default()
    }
}

/// Made by hand: another release of the compressor may choose other bytes, but these mean the same for ever.
fn compressed_proposal() -> TxProposal {
    // Literals 00 and 'a', then 113 bytes from one byte before, then five literals.
    let block = [&[0x2f][..], &[0, b'a', 1, 0, 94], &[0x50], b"aaaaa"].concat();
    let mut proposal = small_proposal(b"\0k4", b"");
    proposal.request = None;
    proposal.entries[0].value = block.into();
    proposal.entries[0].form = ValueForm::Lz4 { plain_len: 120 };
    proposal
}

/// Each way in which a range is written, and both times.
fn reading_proposal() -> TxProposal {
    let mut reads = Reads::new(TxId(9));
    reads.key(b"\0k1");
    reads.between(b"\0k2", Some(b"\0k4\0"));
    reads.prefix(b"\x02R.");
    reads.between(b"\x03", None);
    for expires_at in [1_700_000_000, 1_700_000_009] {
        reads.is_live(&KvMetadata { expires_at: Some(expires_at), ..KvMetadata::default() }, 1_700_000_002);
    }
    TxProposal { read_set: reads.finish(), ..small_proposal(b"\0k1", b"\0v") }
}

/// Of an old server: header version 0, a tree that lags behind.
fn foreign_proposal() -> TxProposal {
    let foreign = ForeignHeader {
        id: TxId(9),
        ts: -3,
        version: 0,
        eh: Digest([0xe1; 32]),
        bl_tx_id: TxId(6),
        bl_root: Digest([0xb1; 32]),
        prev_alh: Digest([0xa1; 32]),
    };
    TxProposal { foreign: Some(Box::new(foreign)), ..small_proposal(b"\0k1", b"\0v") }
}

fn foreign_without_value() -> TxProposal {
    let mut proposal = foreign_proposal();
    proposal.entries[0].form = ValueForm::Gone;
    proposal.entries[0].value = Bytes::from_static(&[0xf1; 32]);
    proposal
}

/// With a copy of what must outlive the truncation.
fn marker() -> TxProposal {
    PruneTarget::marker(None, TxId(5), vec![entry(b"\x02CTL.", &Metadata::default(), b"a catalog")])
}

fn prune(target: PruneTarget) -> Command {
    Command::Prune(Prune { order: Some(Citation { tx: TxId(33), alh: [0xe1; 32] }), target })
}

fn seal() -> Seal {
    Seal {
        segment: 3,
        generation: 1,
        digest: [0xd1; 32],
        last_tx: TxId(77),
        alh: [0xa1; 32],
        rejected: vec![(100, 0), (100, 2), (300, 0)],
    }
}

/// Each kind of command, with its bytes.
fn commands() -> Vec<(&'static str, Command)> {
    let settings =
        Settings { exclude_commit_time: true, quota_bytes: 1 << 40, quota_tx_per_second: 500, ..Settings::DEFAULT };
    let lz4 = Settings { compression: Compression::Lz4, ..Settings::DEFAULT };
    let truncation = TxProposal { metadata: Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 0, 5]), ..TxProposal::default() };
    vec![
        ("genesis", support::genesis()),
        ("configure", Command::Configure(settings)),
        ("batch_empty", Command::Batch { ts: -1, proposals: Vec::new() }),
        ("batch_one_entry", Command::Batch { ts: 1_700_000_000, proposals: vec![small_proposal(b"\0k1", b"\0v")] }),
        ("batch_full", Command::Batch { ts: 1_700_000_001, proposals: vec![full_proposal(), truncation] }),
        ("configure_lz4", Command::Configure(lz4)),
        ("batch_compressed", Command::Batch { ts: 1_700_000_002, proposals: vec![compressed_proposal()] }),
        ("seal", Command::Seal(seal())),
        ("configure_replica", Command::Configure(Settings { replica: true, ..Settings::DEFAULT })),
        ("batch_foreign", Command::Batch { ts: 1_700_000_005, proposals: vec![foreign_proposal()] }),
        ("batch_foreign_gone", Command::Batch { ts: 1_700_000_005, proposals: vec![foreign_without_value()] }),
        ("batch_becomes", Command::Batch { ts: 1_700_000_004, proposals: vec![becoming_proposal()] }),
        ("batch_read_set", Command::Batch { ts: 1_700_000_003, proposals: vec![reading_proposal()] }),
        ("prune_before", prune(PruneTarget::Before { tx: TxId(5), ts: 1_700_000_003, marker: marker() })),
        ("prune_versions", prune(PruneTarget::Versions { prefix: Bytes::from_static(b"\0k"), keep: 3 })),
        ("prune_value", Command::Prune(Prune { order: None, target: PruneTarget::Value { tx: TxId(9), entry: 1 } })),
    ]
}

#[test]
fn commands_have_the_bytes_of_the_format() {
    let mut out = String::new();
    for (name, command) in commands() {
        let bytes = command.encode();
        assert_eq!(Command::decode(&bytes).expect("own bytes"), command);
        writeln!(out, "{name}\n{}", hex(&bytes)).expect("a string takes all");
    }
    golden("command.hex", &out);
}

#[test]
fn malformed_commands_are_refused() {
    for (name, command) in commands() {
        let bytes = command.encode();
        for cut in 0..bytes.len() {
            Command::decode(&bytes.slice(..cut)).expect_err(name);
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        Command::decode(&Bytes::from(longer)).expect_err(name);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.to_vec();
                flipped[at] ^= 1 << bit;
                // Whatever still makes sense has one form: no two byte strings mean the same.
                if let Ok(read) = Command::decode(&Bytes::from(flipped.clone())) {
                    assert_eq!(read.encode(), flipped, "{name} at {at}");
                }
            }
        }
    }
    let newer = Command::decode(&Bytes::from_static(&[2, 3]));
    assert!(matches!(newer, Err(alhambra_storage::command::DecodeError::UnsupportedVersion { version: 2 })));
}

#[test]
fn a_one_entry_proposal_costs_at_most_30_bytes_besides_the_client_id() {
    let bytes = |proposals| Command::Batch { ts: 1, proposals }.encode().len();
    let one = small_proposal(b"\0a key of 20 bytes ..", &[7; 100]);
    let (key, value) = (one.entries[0].key.len(), one.entries[0].value.len());
    let overhead = bytes(vec![one.clone(), one.clone()]) - bytes(vec![one.clone()]) - key - value - 16;
    assert_eq!(overhead, 23);
    assert!(one.encoded_len_max() >= 16 + overhead + key + value);
}

/// A database of a few transactions, one rejected proposal, two sealed segments.
fn database() -> (Arc<dyn Vfs>, Database) {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = open(&vfs, &dir()).expect("an empty disk");
    commit(&db, FrameKind::Membership, Bytes::from_static(b"members")).expect("applies");
    commit_command(&db, &support::genesis()).expect("applies");
    for n in 0..5u8 {
        let mut full = full_proposal();
        full.request = Some(RequestId { client: [0xc1; 16], sequence: u64::from(n), floor: LogIndex(0) });
        if n == 0 {
            full.preconditions.clear();
        }
        let again = small_proposal(b"\0k1", b"\0v");
        let batch = Command::Batch { ts: 1_700_000_000 + i64::from(n), proposals: vec![full, again] };
        commit_command(&db, &batch).expect("applies");
    }
    let settings = Settings { value_len_max: 120, ..support::settings() };
    commit_command(&db, &Command::Configure(settings)).expect("applies");
    commit_command(&db, &Command::Batch { ts: 1_700_000_006, proposals: vec![compressed_proposal()] })
        .expect("applies");
    let last = db.applied().tx;
    let entry = db.tx(last).expect("applied").entries.remove(0);
    assert_eq!(db.value(&entry).expect("S4"), [&[0][..], &[b'a'; 119]].concat());
    commit_command(&db, &support::batch(7, &[support::put("", b"rejected"), support::put("k", &[0x55; 40])]))
        .expect("applies");
    db.ledger().settle().expect("healthy disk");
    for seal in db.pending_seals().expect("healthy disk") {
        commit_command(&db, &Command::Seal(seal)).expect("applies");
    }
    let marker = PruneTarget::marker(None, TxId(3), Vec::new());
    for target in [
        PruneTarget::Value { tx: TxId(1), entry: 2 },
        PruneTarget::Before { tx: TxId(3), ts: 1_700_000_007, marker },
        PruneTarget::Versions { prefix: Bytes::from_static(b"\0k"), keep: 2 },
    ] {
        commit_command(&db, &prune(target)).expect("applies");
    }
    while db.prune_step(LogIndex(u64::MAX)).expect("healthy disk").rewritten.is_some() {}
    for seal in db.pending_seals().expect("healthy disk") {
        commit_command(&db, &Command::Seal(seal)).expect("applies");
    }
    db.save_vote(b"a vote").expect("healthy disk");
    db.save_committed(LogId::new(1, 5)).expect("healthy disk");
    db.set_purge_mark(LogId::new(1, 2)).expect("healthy disk");
    db.checkpoint().expect("healthy disk");
    (vfs, db)
}

#[test]
fn files_have_the_bytes_of_the_format() {
    let (vfs, db) = database();
    let manifest = db.manifest().expect("healthy disk");
    drop(db);
    for folder in ["tx", "commit", "aht", "seal", "prune"] {
        let mut out = String::new();
        for (name, bytes) in files(&vfs, &dir().join(folder)) {
            writeln!(out, "{}\n{}", name.display(), hex(&bytes)).expect("a string takes all");
        }
        golden(&format!("database/{folder}.hex"), &out);
    }
    let mut small = files(&vfs, &dir());
    for name in ["checkpoint", "vote", "marks", "pruned"] {
        golden(&format!("database/{name}.hex"), &hex(&small.remove(&PathBuf::from(name)).expect("written")));
    }
    let segment = files(&vfs, &dir().join("ledger")).remove(Path::new("0000000000.seg")).expect("written");
    assert_eq!(segment[72..76], [0, 0, 0, 3], "pruned");
    golden("database/pruned-segment.hex", &hex(&segment));
    golden("database/manifest.hex", &hex(&manifest.encode()));
}

#[test]
fn records_of_imported_transactions_have_the_bytes_of_the_format() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = large_tx::open(&vfs, Options::default());
    commit_command(&db, &Command::Configure(import_source::replica())).expect("applies");
    let mut txs: Vec<_> = import_source::chain("chain_lagging").txs.into_iter().map(|(bytes, _)| bytes).collect();
    txs[6] = import_source::without_values(&txs[6]);
    commit_command(&db, &import_source::batch(&txs[..7])).expect("applies");
    assert_eq!(db.applied().tx, TxId(7));
    db.checkpoint().expect("healthy disk");
    drop(db);
    let file = files(&vfs, &dir().join("tx")).remove(Path::new("0000000000.log")).expect("written");
    golden("database/tx-imported.hex", &hex(&file));
}

#[test]
fn a_record_with_groups_has_the_bytes_of_the_format() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let db = large_tx::open(&vfs, Options::default());
    let names: Vec<Bytes> = (0..18).map(|n| Bytes::from(format!("\0k{n:02}"))).collect();
    let value = Bytes::from_static(b"\0v");
    let entries = names.iter().map(|key| ProposalEntry::plain(key.clone(), Bytes::new(), value.clone())).collect();
    large_tx::commit(&db, entries);
    db.checkpoint().expect("healthy disk");
    drop(db);
    let file = files(&vfs, &dir().join("tx")).remove(Path::new("0000000000.log")).expect("written");
    golden("database/tx-groups.hex", &hex(&file));
}

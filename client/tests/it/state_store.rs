//! The contract of a state store, run on every implementation, and what only the file one can get wrong.

use alhambra_client::{Advanced, Evidence, FileStateStore, MemoryStateStore, StateError, StateId, StateStore};
use alhambra_client::{TrustedState, TxId};
use alhambra_ledger::digest::sha256;

fn id(server_uuid: &str, database: &str) -> StateId {
    StateId { server_uuid: server_uuid.into(), database: database.into() }
}

fn state(database: &str, tx: u64) -> TrustedState {
    TrustedState { database: database.into(), tx: TxId(tx), alh: sha256(&tx.to_be_bytes()) }
}

/// What every implementation must do.
fn conformance(store: &dyn StateStore) {
    let (a, five, six) = (id("u1", "db"), state("db", 5), state("db", 6));
    assert_eq!(store.load(&a).unwrap(), None);
    assert_eq!(store.advance(&a, None, &five).unwrap(), Advanced::Stored);
    assert_eq!(store.load(&a).unwrap(), Some(five.clone()));

    // Others are not touched, whatever their names have in common.
    for other in [id("u1", "Db"), id("u2", "db"), id("u1", "db-x"), id("u1-db", ""), id("u1", "../db"), id("u1", "ü")]
    {
        assert_eq!(store.load(&other).unwrap(), None, "{other:?}");
        let one = state(&other.database, 1);
        assert_eq!(store.advance(&other, None, &one).unwrap(), Advanced::Stored);
        assert_eq!(store.load(&other).unwrap(), Some(one));
    }
    assert_eq!(store.load(&a).unwrap(), Some(five.clone()));

    // Forward, and the same again.
    assert_eq!(store.advance(&a, Some(&five), &six).unwrap(), Advanced::Stored);
    assert_eq!(store.advance(&a, Some(&six), &six).unwrap(), Advanced::Stored);

    // Somebody who has missed it is told, and nothing changes.
    assert_eq!(store.advance(&a, Some(&five), &state("db", 7)).unwrap(), Advanced::Changed(six.clone()));
    assert_eq!(store.advance(&a, None, &state("db", 7)).unwrap(), Advanced::Changed(six.clone()));

    // Never backward, never sideways [V2].
    let sideways = TrustedState { alh: sha256(b"another history"), ..six.clone() };
    for bad in [five, sideways, state("other", 7)] {
        let refused = store.advance(&a, Some(&six), &bad);
        assert!(matches!(refused, Err(StateError::Backward { .. })), "{refused:?}");
    }
    assert_eq!(store.load(&a).unwrap(), Some(six));
}

fn evidence() -> Evidence {
    Evidence {
        call: "verified_get".into(),
        step: "linear proof".into(),
        server_uuid: "u1".into(),
        endpoint: "127.0.0.1:3322".into(),
        database: "db".into(),
        trusted_tx: 5,
        trusted_alh: sha256(b"").to_string(),
        request: "01".into(),
        reply: "02".into(),
        claimed_state: String::new(),
    }
}

#[test]
fn memory() {
    let store = MemoryStateStore::new();
    conformance(&store);
    assert_eq!(store.keep_evidence(&evidence()).unwrap(), None);
    assert_eq!(store.evidence(), [evidence()]);
}

#[test]
fn files() {
    let dir = tempfile::tempdir().unwrap();
    conformance(&FileStateStore::open(dir.path().join("made/on/demand")).unwrap());
}

#[test]
fn a_file_is_read_by_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let a = id("u1", "db");
    FileStateStore::open(dir.path()).unwrap().advance(&a, None, &state("db", 5)).unwrap();
    let store = FileStateStore::open(dir.path()).unwrap();
    assert_eq!(store.load(&a).unwrap(), Some(state("db", 5)));
    // The bytes, so that the format does not change unnoticed.
    let golden = format!(
        "{{\n  \"format\": 1,\n  \"server_uuid\": \"u1\",\n  \"database\": \"db\",\n  \"tx\": 5,\n  \"alh\": \"{}\"\n}}\n",
        state("db", 5).alh
    );
    assert_eq!(std::fs::read_to_string(store.path(&a)).unwrap(), golden);
    assert_eq!(store.path(&a), dir.path().join("state-u1-db.json"));
}

#[test]
fn a_file_that_is_none_is_an_error_not_a_first_contact() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStateStore::open(dir.path()).unwrap();
    let (a, b) = (id("u1", "db"), id("u1", "other"));
    store.advance(&a, None, &state("db", 5)).unwrap();
    let good = std::fs::read_to_string(store.path(&a)).unwrap();
    for bad in ["", "{}", &good[..good.len() / 2], "null"] {
        std::fs::write(store.path(&a), bad).unwrap();
        assert!(matches!(store.load(&a), Err(StateError::BadFile { .. })), "{bad}");
        assert!(matches!(store.advance(&a, None, &state("db", 9)), Err(StateError::BadFile { .. })), "{bad}");
    }
    for bad in [
        good.replace("\"format\": 1", "\"format\": 2"),
        good.replace("\"u1\"", "\"u2\""),
        good.replace("\"alh\": \"", "\"alh\": \"x"),
    ] {
        std::fs::write(store.path(&a), &bad).unwrap();
        assert!(matches!(store.load(&a), Err(StateError::ForeignFile { .. })), "{bad}");
    }
    // The state of one database copied over that of another.
    std::fs::write(store.path(&a), &good).unwrap();
    std::fs::copy(store.path(&a), store.path(&b)).unwrap();
    assert!(matches!(store.load(&b), Err(StateError::ForeignFile { .. })));
}

/// Two writers from one state: one of them is told, however they interleave.
#[test]
fn two_writers_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let a = id("u1", "db");
    FileStateStore::open(dir.path()).unwrap().advance(&a, None, &state("db", 1)).unwrap();
    for round in 1..=50 {
        let from = state("db", round);
        let writers: Vec<_> = (0..2)
            .map(|writer: u8| {
                let (path, a, from) = (dir.path().to_owned(), a.clone(), from.clone());
                std::thread::spawn(move || {
                    // Each its own store, as two processes have.
                    let store = FileStateStore::open(path).unwrap();
                    let new = if writer == 0 {
                        state("db", from.tx.get() + 1)
                    } else {
                        TrustedState { alh: sha256(b"the other"), ..state("db", from.tx.get() + 1) }
                    };
                    (store.advance(&a, Some(&from), &new).unwrap(), new)
                })
            })
            .collect();
        let results: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        let stored: Vec<_> = results.iter().filter(|(result, _)| *result == Advanced::Stored).collect();
        assert_eq!(stored.len(), 1, "round {round}: {results:?}");
        let store = FileStateStore::open(dir.path()).unwrap();
        assert_eq!(store.load(&a).unwrap().as_ref(), Some(&stored[0].1));
        // Begin the next round from a known state.
        std::fs::remove_file(store.path(&a)).unwrap();
        store.advance(&a, None, &state("db", round + 1)).unwrap();
    }
}

#[test]
fn evidence_files_are_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStateStore::open(dir.path()).unwrap();
    let first = store.keep_evidence(&evidence()).unwrap().unwrap();
    let second = store.keep_evidence(&Evidence { step: "fork".into(), ..evidence() }).unwrap().unwrap();
    assert_ne!(first, second);
    let read: Evidence = serde_json::from_slice(&std::fs::read(first).unwrap()).unwrap();
    assert_eq!(read, evidence());
}

//! Honest servers: every verified call succeeds and moves the trusted state.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alhambra_client::{
    Advanced, Client, Error, Evidence, KeyValue, MemoryStateStore, Operation, Options, StateError, StateId, StateStore,
    TxId,
};
use alhambra_ledger::entry::KvMetadata;
use alhambra_ledger::state::TrustedState;

use crate::chain::{Chain, Stored};
use crate::fake::{Cluster, Fake, signing_key};

#[tokio::test]
async fn sets_and_gets_from_the_first_transaction_on() {
    let cluster = Cluster::new(Chain::new(1));
    let fake = Fake::start(&cluster);
    let (client, _) = fake.client().await;
    assert_eq!(client.trusted_state().await.unwrap(), None);
    for n in 1..=9_u64 {
        let (key, value) = (format!("k{n}"), format!("v{n}"));
        let set = client.verified_set(key.clone(), value.clone()).await.unwrap();
        assert_eq!((set.header.id, &set.state), (TxId(n), &cluster.state()));
        let got = client.verified_get(key).await.unwrap();
        assert_eq!((got.value.value, got.value.tx), (value.into(), TxId(n)));
        assert_eq!(client.trusted_state().await.unwrap(), Some(cluster.state()));
    }
    // An older entry: the state stays where it is, and is the target of the proof.
    let got = client.verified_get("k3").await.unwrap();
    assert_eq!((got.header.id, got.state), (TxId(3), cluster.state()));
}

#[tokio::test]
async fn proofs_span_what_others_wrote() {
    let cluster = Cluster::new(Chain::with_txs(1, 3));
    let fake = Fake::start(&cluster);
    let (client, _) = fake.client().await;
    for n in 4..=40 {
        cluster.chain.lock().unwrap().commit(vec![Stored::pair(b"other", format!("{n}").as_bytes())]);
        if n % 5 == 0 {
            let got = client.verified_get("other").await.unwrap();
            assert_eq!(got.value.value, format!("{n}"));
            let check = client.verify_state().await.unwrap();
            assert_eq!(check.before, Some(check.now.clone()));
        }
        let check = client.verify_state().await.unwrap();
        assert_eq!(check.now, cluster.state());
        for tx in [1, n / 2, n] {
            let verified = client.verified_tx_by_id(TxId(tx)).await.unwrap();
            assert_eq!((verified.header.id, verified.state), (TxId(tx), cluster.state()));
        }
    }
}

#[tokio::test]
async fn several_pairs_attributes_versions_and_references() {
    let cluster = Cluster::new(Chain::new(1));
    let fake = Fake::start(&cluster);
    let (client, _) = fake.client().await;
    let expiring = KvMetadata { expires_at: Some(4_000_000_000), ..KvMetadata::default() };
    let pairs: Vec<_> = (0..7)
        .map(|n| KeyValue { metadata: expiring, ..KeyValue::new(format!("p{n}"), format!("first {n}")) })
        .collect();
    client.verified_set_all(pairs).await.unwrap();
    client.verified_set("p4", "second").await.unwrap();
    let got = client.verified_get_at("p4", TxId(1)).await.unwrap();
    assert_eq!((got.value.value.as_ref(), got.value.metadata), (b"first 4".as_slice(), expiring));
    assert_eq!(client.verified_get("p4").await.unwrap().value.value.as_ref(), b"second");

    let tx = cluster.chain.lock().unwrap().commit(vec![Stored::reference(b"r", b"p5")]);
    let got = client.verified_get("r").await.unwrap();
    assert_eq!((got.value.key.as_ref(), got.value.value.as_ref()), (b"p5".as_slice(), b"first 5".as_slice()));
    assert_eq!(got.header.id, tx);
    assert!(client.verified_get("nothing").await.unwrap_err().is_key_not_found());
}

#[tokio::test]
async fn signed_states_are_accepted_with_the_key() {
    let cluster = Cluster::new(Chain::with_txs(1, 3));
    let (key, pem) = signing_key(7);
    *cluster.key.lock().unwrap() = Some(key);
    let fake = Fake::start(&cluster);
    let (client, _) = fake.client_with(Options { server_public_key: Some(pem), ..Options::default() }).await;
    client.verified_set("a", "b").await.unwrap();
    client.verified_get("k2").await.unwrap();
    cluster.chain.lock().unwrap().commit(vec![Stored::pair(b"other", b"")]);
    assert!(client.verify_state().await.unwrap().signed);
}

#[tokio::test]
async fn clients_that_share_a_store_prove_against_each_others_states() {
    let cluster = Cluster::new(Chain::with_txs(1, 3));
    let fake = Fake::start(&cluster);
    let (one, store) = fake.client().await;
    one.verify_state().await.unwrap();
    let id = alhambra_client::StateId { server_uuid: one.server_uuid().await, database: "defaultdb".into() };
    // While the answer is under way, another process moves the state on.
    let (cluster_too, store_too, id_too) = (cluster.clone(), store.clone(), id.clone());
    let mut moved = false;
    *cluster.on_entry.lock().unwrap() = Some(Box::new(move |_| {
        if !std::mem::replace(&mut moved, true) {
            let before = store_too.load(&id_too).unwrap();
            cluster_too.chain.lock().unwrap().commit(vec![Stored::pair(b"other", b"x")]);
            store_too.advance(&id_too, before.as_ref(), &cluster_too.state()).unwrap();
        }
    }));
    let got = one.verified_get("k2").await.unwrap();
    assert_eq!(got.state, cluster.state());
    assert_eq!(fake.count("verifiable_tx_by_id"), 1);
    assert_eq!(store.load(&id).unwrap(), Some(cluster.state()));
}

#[tokio::test]
async fn calls_run_on_other_threads_and_at_once() {
    let cluster = Cluster::new(Chain::new(1));
    let fake = Fake::start(&cluster);
    let (client, _) = fake.client().await;
    let tasks: Vec<_> = (0..20)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.verified_set(format!("t{n}"), "v").await.map(|set| set.header.id) })
        })
        .collect();
    let mut ids = Vec::new();
    for task in tasks {
        ids.push(task.await.unwrap().unwrap().get());
    }
    ids.sort_unstable();
    assert_eq!(ids, (1..=20).collect::<Vec<_>>());
    assert_eq!(client.trusted_state().await.unwrap(), Some(cluster.state()));
}

/// A store on a disk that may be full.
#[derive(Default)]
struct Full {
    is_full: AtomicBool,
    states: MemoryStateStore,
}

impl StateStore for Full {
    fn load(&self, id: &StateId) -> Result<Option<TrustedState>, StateError> {
        self.states.load(id)
    }

    fn advance(
        &self,
        id: &StateId,
        expected: Option<&TrustedState>,
        new: &TrustedState,
    ) -> Result<Advanced, StateError> {
        if self.is_full.load(Ordering::SeqCst) {
            let (path, source) = (PathBuf::from("state"), io::ErrorKind::StorageFull.into());
            return Err(StateError::Io { operation: "writing", path, source });
        }
        self.states.advance(id, expected, new)
    }

    fn keep_evidence(&self, evidence: &Evidence) -> Result<Option<PathBuf>, StateError> {
        self.states.keep_evidence(evidence)
    }
}

#[tokio::test]
async fn a_write_whose_state_cannot_be_kept_is_told_as_done_and_a_read_as_not_verified() {
    let cluster = Cluster::new(Chain::new(1));
    let fake = Fake::start(&cluster);
    let store = Arc::new(Full::default());
    let options = Options { state_store: Some(store.clone()), ..Options::default() };
    let client = Client::connect(vec![fake.endpoint.clone()], options).await.unwrap();
    client.verified_set("k", "1").await.unwrap();
    store.is_full.store(true, Ordering::SeqCst);
    let error = client.verified_set("k", "2").await.unwrap_err();
    assert!(matches!(error, Error::NotKept { .. }), "{error}");
    let more = [Operation::Set(KeyValue::new("k", "3"))];
    let error = client.verified_exec_all(&more).await.unwrap_err();
    assert!(matches!(error, Error::NotKept { .. }), "{error}");
    assert_eq!((cluster.state().tx, fake.count("verifiable_set"), fake.count("exec_all")), (TxId(3), 2, 1));
    let error = client.verified_get("k").await.unwrap_err();
    assert!(matches!(error, Error::State(_)), "{error}");
    // Nothing was trusted meanwhile, and it goes on from there.
    assert_eq!(client.trusted_state().await.unwrap().unwrap().tx, TxId(1));
    store.is_full.store(false, Ordering::SeqCst);
    assert_eq!(client.verified_get("k").await.unwrap().value.value, "3");
    assert_eq!(client.trusted_state().await.unwrap(), Some(cluster.state()));
}

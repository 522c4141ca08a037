//! Several operations in one transaction, by the client library against a real node.

use alhambra_client::{Client, KeyValue, Operation, Options, TxId, Version};
use alhambra_ledger::kv;

use crate::support::{Demo, free_base_port};

#[tokio::test(flavor = "multi_thread")]
async fn operations_are_one_transaction_and_proven() {
    let home = tempfile::tempdir().unwrap();
    let demo = Demo::start(&home.path().join("demo"), 1, free_base_port(1));
    let client = Client::connect(demo.endpoints(), Options::default()).await.unwrap();
    client.verified_set("old", "0").await.unwrap();
    let reference = |key: &'static str, target: &'static str, version| Operation::Reference {
        key: key.into(),
        target: target.into(),
        version,
    };
    let member =
        |set: &'static str, version| Operation::Member { set: set.into(), score: 1.0, key: "invoice".into(), version };
    let operations = [
        Operation::Set(KeyValue::new("invoice", "EUR 1")),
        reference("latest", "invoice", Version::Newest),
        reference("first", "invoice", Version::Own),
        reference("before", "old", Version::At(TxId(1))),
        member("open", Version::Newest),
        member("amounts", Version::Own),
    ];
    let proven = client.verified_exec_all(&operations).await.unwrap();
    assert_eq!((proven.header.id, proven.header.nentries), (TxId(2), 6));
    assert_eq!(client.trusted_state().await.unwrap(), Some(proven.state));
    client.verified_set("invoice", "EUR 2").await.unwrap();
    for (key, value) in [("latest", "EUR 2"), ("first", "EUR 1"), ("before", "0")] {
        assert_eq!(client.verified_get(key).await.unwrap().value.value, value, "{key}");
    }
    let keys: Vec<_> = client.tx_by_id(TxId(2)).await.unwrap().entries.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys[5], kv::zadd_key(b"amounts", 1.0, b"invoice", TxId(2)));
    assert_eq!(client.exec_all(&operations[..1]).await.unwrap().id, TxId(4));

    // Refused as a whole: nothing is written.
    for wrong in
        [&[][..], &[reference("r", "absent", Version::Newest)], &[operations[0].clone(), operations[0].clone()]]
    {
        client.verified_exec_all(wrong).await.unwrap_err();
    }
    assert_eq!(client.verify_state().await.unwrap().now.tx, TxId(4));
    assert_eq!(demo.stop(), Some(0));
}

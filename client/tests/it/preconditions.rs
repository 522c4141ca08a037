//! Conditions of writes: they travel with every call that takes them, and one that does not hold is told apart.

use alhambra_client::{Client, Error, KeyValue, Operation, Precondition, TxId};
use alhambra_proto::code::{Code, text};

use crate::chain::Chain;
use crate::fake::{Cluster, Fake};

/// The writes that take conditions.
const WRITES: [&str; 8] = [
    "set",
    "set_all",
    "set_reference",
    "exec_all",
    "verified_set",
    "verified_set_all",
    "verified_set_reference",
    "verified_exec_all",
];

/// Makes a write of `key` with the name of [`WRITES`].
async fn write(client: &Client, name: &str, key: &'static str, conditions: &[Precondition]) -> Result<TxId, Error> {
    let pairs = || vec![KeyValue::new(key, "v"), KeyValue::new("other", "v")];
    let operations = [Operation::set(key, "v"), Operation::set("other", "v")];
    let header = match name {
        "set" => client.set_if(key, "v", conditions).await?,
        "set_all" => client.set_all_if(pairs(), conditions).await?,
        "set_reference" => client.set_reference_if(key, "k1", TxId(0), conditions).await?,
        "exec_all" => client.exec_all_if(&operations, conditions).await?,
        "verified_set" => client.verified_set_if(key, "v", conditions).await?.header,
        "verified_set_all" => client.verified_set_all_if(pairs(), conditions).await?.header,
        "verified_set_reference" => client.verified_set_reference_if(key, "k1", TxId(0), conditions).await?.header,
        "verified_exec_all" => client.verified_exec_all_if(&operations, conditions).await?.header,
        _ => panic!("{name} is no write"),
    };
    Ok(header.id)
}

#[tokio::test]
async fn every_write_is_done_only_if_all_conditions_hold() {
    // Keys k1 to k4, each written by the transaction of its number.
    let cluster = Cluster::new(Chain::with_txs(1, 4));
    let fake = Fake::start(&cluster);
    let (client, _) = fake.client().await;
    client.verify_state().await.unwrap();
    let holding = [
        Precondition::key_must_exist("k2"),
        Precondition::key_must_not_exist("never"),
        Precondition::key_not_modified_after("k3", TxId(3)),
        Precondition::key_not_modified_after("never", TxId(1)),
    ];
    let failing = [
        (Precondition::key_must_exist("never"), "precondition failed: KeyMustExist"),
        (Precondition::key_must_not_exist("k2"), "precondition failed: KeyMustNotExist"),
        (Precondition::key_not_modified_after("k3", TxId(2)), "precondition failed: KeyNotModifiedAfterTxID"),
    ];
    for name in WRITES {
        let before = (cluster.state(), client.trusted_state().await.unwrap());
        for (condition, told) in &failing {
            let conditions = [&holding[..], std::slice::from_ref(condition)].concat();
            let refused = write(&client, name, "new", &conditions).await.unwrap_err();
            assert!(refused.is_precondition_failed(), "{name}: {refused:?}");
            assert_eq!(refused.status().unwrap().message(), *told, "{name}");
            assert_eq!((cluster.state(), client.trusted_state().await.unwrap()), before, "{name}: nothing was written");
        }
        let written = write(&client, name, "new", &holding).await.unwrap();
        assert_eq!(written, before.0.tx.next().unwrap(), "{name}");
        if name.starts_with("verified") {
            assert_eq!(client.trusted_state().await.unwrap(), Some(cluster.state()), "{name} is proven as without");
        }
    }
}

#[tokio::test]
async fn of_two_who_read_the_same_one_writes() {
    let cluster = Cluster::new(Chain::with_txs(1, 4));
    let fake = Fake::start(&cluster);
    let (client, _) = fake.client().await;
    let read = client.verified_get("k2").await.unwrap().value;
    let unchanged = [Precondition::key_not_modified_after("k2", read.tx)];
    client.verified_set_if("k2", "mine", &unchanged).await.unwrap();
    let refused = client.verified_set_if("k2", "yours", &unchanged).await.unwrap_err();
    assert!(refused.is_precondition_failed(), "{refused:?}");
    assert_eq!(client.get("k2").await.unwrap().value, "mine");
}

#[tokio::test]
async fn other_refusals_are_no_failed_conditions() {
    let fake = Fake::start(&Cluster::new(Chain::new(1)));
    let (client, _) = fake.client().await;
    for (status, expected) in [
        (text::KEY_MUST_EXIST.status(), true),
        (text::KEY_MUST_NOT_EXIST.status(), true),
        (text::KEY_MODIFIED.status(), true),
        (text::PRECONDITION_TX.status(), false),
        (text::STREAM_VALUES_TOO_LONG.status(), false),
        (text::READ_CONFLICT.status(), false),
        (Code::OutcomeUnknown.status("precondition failed: KeyMustExist"), false),
    ] {
        fake.refuse(status.clone());
        let error = client.set_if("k", "v", &[Precondition::key_must_exist("k")]).await.unwrap_err();
        assert_eq!(error.is_precondition_failed(), expected, "{status:?}");
    }
}

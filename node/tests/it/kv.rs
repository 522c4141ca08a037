//! Writing: sets, deletions, preconditions, limits at the edge and one past it.

use alhambra_proto::schema;
use alhambra_proto::schema::precondition::{
    KeyMustExistPrecondition, KeyMustNotExistPrecondition, KeyNotModifiedAfterTxPrecondition, Precondition,
};
use bytes::Bytes;
use tonic::Code;

use crate::support::*;

fn must_exist(key: &str) -> schema::Precondition {
    let condition = KeyMustExistPrecondition { key: bytes(key) };
    schema::Precondition { precondition: Some(Precondition::KeyMustExist(condition)) }
}

fn must_not_exist(key: &str) -> schema::Precondition {
    let condition = KeyMustNotExistPrecondition { key: bytes(key) };
    schema::Precondition { precondition: Some(Precondition::KeyMustNotExist(condition)) }
}

fn not_modified_after(key: &str, tx_id: u64) -> schema::Precondition {
    let condition = KeyNotModifiedAfterTxPrecondition { key: bytes(key), tx_id };
    schema::Precondition { precondition: Some(Precondition::KeyNotModifiedAfterTx(condition)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_is_one_transaction_with_exactly_its_entries() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let first = client.set_all(vec![kv("b", "1"), kv("a", "2"), kv("empty", "")]).await.unwrap();
    assert_eq!((first.id, first.nentries, first.version, first.bl_tx_id), (1, 3, 1, 0));
    assert!(first.ts > 1_700_000_000, "seconds");
    assert!(first.metadata.is_some_and(|metadata| metadata.extra.is_empty() && metadata.truncated_tx_id == 0));
    let second = client.set("b", "3").await.unwrap();
    assert_eq!((second.id, second.nentries, second.bl_tx_id), (2, 1, 1));
    let entry = client.get("b").await.unwrap();
    assert_eq!((entry.tx, entry.revision, &entry.value[..], &entry.metadata), (2, 2, &b"3"[..], &None));
    assert_eq!(client.get("empty").await.unwrap().value, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_writes_say_why_and_write_nothing() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let illegal = "illegal arguments";
    let duplicated = "duplicated keys are not supported in single batch transaction";
    refused(client.set("", "v").await, Code::InvalidArgument, illegal, "");
    refused(client.set_all(vec![]).await, Code::Unknown, "no entries provided", "");
    refused(client.set_all(vec![kv("k", "1"), kv("k", "2")]).await, Code::InvalidArgument, duplicated, "");
    refused(client.delete(&[]).await, Code::Unknown, "no entries provided", "");
    refused(client.delete(&[""]).await, Code::InvalidArgument, illegal, "");
    refused(client.delete(&["k"]).await, Code::Unknown, "tbtree: key not found", "");
    assert_eq!(client.state().await.unwrap().tx_id, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_at_the_edge_and_refuse_one_past_it() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let longest = "k".repeat(1023);
    client.set(&longest, "v").await.unwrap();
    assert_eq!(client.get(&longest).await.unwrap().key.len(), 1023);
    let too_long = "k".repeat(1024);
    refused(client.set(&too_long, "v").await, Code::Unknown, "max key length exceeded", "");
    refused(client.get(&too_long).await, Code::Unknown, "tbtree: key not found", "");
    refused(client.delete(&[&too_long]).await, Code::Unknown, "tbtree: key not found", "");
    let scan = schema::ScanRequest { prefix: bytes(&too_long), ..Default::default() };
    refused(client.scan(scan).await, Code::Unknown, "tbtree: illegal arguments", "");
    let scan = schema::ScanRequest { seek_key: bytes(&too_long), ..Default::default() };
    refused(client.scan(scan).await, Code::Unknown, "tbtree: illegal arguments", "");
    let scan = schema::ScanRequest { end_key: bytes(&too_long), prefix: bytes("k"), ..Default::default() };
    assert_eq!(client.scan(scan).await.unwrap().len(), 1, "the end has no limit");
    let prefix = schema::KeyPrefix { prefix: bytes(&too_long) };
    let counted = client.inner.clone().count(client.request(prefix)).await;
    refused(counted, Code::Unknown, "tbtree: illegal arguments", "");

    let entries = |count: usize| (0..count).map(|n| kv(&format!("e{n}"), "v")).collect::<Vec<_>>();
    assert_eq!(client.set_all(entries(1024)).await.unwrap().nentries, 1024);
    let many = "max number of entries per tx exceeded";
    refused(client.set_all(entries(1025)).await, Code::Unknown, many, "");

    let conditions = |count: usize| vec![must_not_exist("nothing"); count];
    client.set_if(entries(1), conditions(1024)).await.unwrap();
    let many = "invalid precondition: too many preconditions";
    refused(client.set_if(entries(1), conditions(1025)).await, Code::Unknown, many, "");

    for limit in [0, 2500] {
        client.scan(schema::ScanRequest { limit, ..Default::default() }).await.unwrap();
    }
    let beyond = "result size limit exceeded: the specified limit (2501) is larger than the maximum allowed one (2500)";
    let scan = schema::ScanRequest { limit: 2501, ..Default::default() };
    refused(client.scan(scan).await, Code::Unknown, beyond, "");
    let history = schema::HistoryRequest { key: bytes("e0"), limit: 2501, ..Default::default() };
    refused(client.history(history).await, Code::Unknown, beyond, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_may_have_32_mib_and_a_value_nearly_as_much() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let message = |value_len: usize| schema::SetRequest {
        k_vs: vec![schema::KeyValue { key: bytes("k"), value: Bytes::from(vec![7; value_len]), metadata: None }],
        ..Default::default()
    };
    let overhead = prost::Message::encoded_len(&message(33_000_000)) - 33_000_000;
    let edge = (32 << 20) - overhead;
    client.inner.clone().set(client.request(message(edge))).await.unwrap();
    assert_eq!(client.get("k").await.unwrap().value.len(), edge);
    let text = "grpc: received message larger than max (33554433 vs. 33554432)";
    let refusal = client.inner.clone().set(client.request(message(edge + 1))).await;
    refused(refusal, Code::ResourceExhausted, text, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_a_database_are_its_own() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let number = |value| Some(schema::NullableUint32 { value });
    let settings = schema::DatabaseNullableSettings {
        max_key_len: number(32),
        max_value_len: number(5),
        max_tx_entries: number(2),
        ..Default::default()
    };
    let create = schema::CreateDatabaseRequest { name: "small".into(), settings: Some(settings), if_not_exists: false };
    let created = client.inner.clone().create_database_v2(client.request(create)).await.unwrap().into_inner();
    assert_eq!(created.settings.unwrap().max_key_len, number(32));
    let small = Client::on(&node, "small").await;
    small.set(&"k".repeat(31), "1234").await.unwrap();
    refused(small.set(&"k".repeat(32), "1").await, Code::Unknown, "max key length exceeded", "");
    refused(small.set("k", "12345").await, Code::Unknown, "max value length exceeded", "");
    small.set_all(vec![kv("a", ""), kv("b", "")]).await.unwrap();
    let three = small.set_all(vec![kv("a", ""), kv("b", ""), kv("c", "")]).await;
    refused(three, Code::Unknown, "max number of entries per tx exceeded", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_hides_the_newest_value_and_nothing_else() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    client.set_all(vec![kv("a", "1"), kv("b", "2")]).await.unwrap();
    let header = client.delete(&["a"]).await.unwrap();
    assert_eq!((header.id, header.nentries), (2, 1));
    refused(client.get("a").await, Code::Unknown, "tbtree: key not found", "");
    // Nothing is written when one of the keys is missing, or is there twice.
    refused(client.delete(&["b", "a"]).await, Code::Unknown, "tbtree: key not found", "");
    refused(client.delete(&["b", "b"]).await, Code::Unknown, "tbtree: key not found", "");
    assert_eq!(client.get("b").await.unwrap().value, "2");
    client.set_all(vec![expiring("old", "x", 1)]).await.unwrap();
    refused(client.delete(&["old"]).await, Code::Unknown, "tbtree: key not found: expired entry", "");
    refused(client.delete(&["b", "old"]).await, Code::Unknown, "tbtree: key not found: expired entry", "");
    let beyond = schema::DeleteKeysRequest { keys: vec![bytes("b")], since_tx: 99, no_wait: false };
    refused(client.inner.clone().delete(client.request(beyond)).await, Code::Unknown, "tx not found", "");
    let back = client.set("a", "3").await.unwrap();
    assert_eq!((back.id, client.get("a").await.unwrap().revision), (4, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn preconditions_are_judged_at_the_newest_state() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    client.set_all(vec![kv("there", "1"), kv("gone", "1")]).await.unwrap();
    client.delete(&["gone"]).await.unwrap();
    client.set_all(vec![expiring("old", "x", 1)]).await.unwrap();
    let value = || vec![kv("k", "v")];
    for fine in [
        must_exist("there"),
        must_not_exist("nothing"),
        must_not_exist("gone"),
        must_not_exist("old"),
        not_modified_after("there", 1),
        not_modified_after("gone", 2),
        not_modified_after("nothing", 1),
        not_modified_after("there", 999),
    ] {
        client.set_if(value(), vec![fine.clone()]).await.unwrap_or_else(|status| panic!("{fine:?}: {status:?}"));
    }
    let before = client.state().await.unwrap().tx_id;
    for (condition, name) in [
        (must_exist("nothing"), "KeyMustExist"),
        (must_exist("gone"), "KeyMustExist"),
        (must_exist("old"), "KeyMustExist"),
        (must_not_exist("there"), "KeyMustNotExist"),
        (not_modified_after("gone", 1), "KeyNotModifiedAfterTxID"),
    ] {
        let text = format!("precondition failed: {name}");
        refused(client.set_if(value(), vec![condition]).await, Code::FailedPrecondition, &text, "23000");
    }
    let two = vec![must_exist("there"), must_not_exist("there"), must_exist("nothing")];
    let text = "precondition failed: KeyMustNotExist";
    refused(client.set_if(value(), two).await, Code::FailedPrecondition, text, "23000");
    for (condition, text) in [
        (schema::Precondition::default(), "invalid precondition: null"),
        (must_exist(""), "invalid precondition: null key"),
        (must_exist(&"k".repeat(1024)), "invalid precondition: invalid precondition: max key length exceeded"),
        (not_modified_after("k", 0), "invalid precondition: invalid precondition: invalid transaction ID"),
    ] {
        refused(client.set_if(value(), vec![condition]).await, Code::Unknown, text, "");
    }
    assert_eq!(client.state().await.unwrap().tx_id, before);
}

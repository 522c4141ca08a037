//! Reading keys: versions, ranges, histories, counts.

use alhambra_proto::schema;
use tonic::{Code, Response};

use crate::support::*;

fn key_request(key: &str) -> schema::KeyRequest {
    schema::KeyRequest { key: bytes(key), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn get_finds_the_version_that_is_asked_for() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    for value in ["one", "two"] {
        client.set("k", value).await.unwrap();
    }
    client.delete(&["k"]).await.unwrap();
    client.set("k", "four").await.unwrap();
    client.set("other", "x").await.unwrap();
    let at_tx = |at_tx| schema::KeyRequest { at_tx, ..key_request("k") };
    let at_revision = |at_revision| schema::KeyRequest { at_revision, ..key_request("k") };

    for (request, value, tx, revision) in [
        (key_request("k"), "four", 4, 4),
        (at_tx(1), "one", 1, 0),
        (at_tx(2), "two", 2, 0),
        (at_revision(1), "one", 1, 1),
        (at_revision(4), "four", 4, 4),
        (at_revision(-2), "two", 2, 2),
        (at_revision(-3), "one", 1, 1),
        (schema::KeyRequest { since_tx: 5, ..key_request("k") }, "four", 4, 4),
        (schema::KeyRequest { since_tx: 1, ..at_revision(2) }, "two", 2, 2),
        (schema::KeyRequest { no_wait: true, ..key_request("k") }, "four", 4, 4),
    ] {
        let entry = client.get_of(request.clone()).await.unwrap_or_else(|status| panic!("{request:?}: {status:?}"));
        assert_eq!((entry.value, entry.tx, entry.revision), (bytes(value), tx, revision), "{request:?}");
    }
    let missing = "tbtree: key not found";
    let invalid = "invalid key revision number";
    for (request, code, text) in [
        (key_request(""), Code::Unknown, "illegal arguments: empty key"),
        (key_request("nothing"), Code::Unknown, missing),
        (at_tx(3), Code::Unknown, missing),
        (at_tx(5), Code::Unknown, missing),
        (at_tx(6), Code::Unknown, "tx not found"),
        (at_revision(3), Code::Unknown, missing),
        (at_revision(-1), Code::Unknown, missing),
        (at_revision(5), Code::Unknown, invalid),
        (at_revision(-4), Code::Unknown, invalid),
        (at_revision(i64::MIN), Code::Unknown, invalid),
        (
            schema::KeyRequest { since_tx: 1, ..at_tx(1) },
            Code::Unknown,
            "illegal arguments: SinceTx should not be specified when AtTx is used",
        ),
        (
            schema::KeyRequest { at_revision: 1, ..at_tx(1) },
            Code::Unknown,
            "illegal arguments: AtRevision should not be specified when AtTx is used",
        ),
        (
            schema::KeyRequest { since_tx: 6, ..key_request("k") },
            Code::Unknown,
            "illegal arguments: SinceTx must not be greater than the current transaction ID",
        ),
    ] {
        refused(client.get_of(request).await, code, text, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_decides_what_is_seen_where() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let far = 4_000_000_000;
    client.set_all(vec![expiring("later", "v", far), expiring("now", "v", 1)]).await.unwrap();
    let hidden = schema::KvMetadata { non_indexable: true, ..Default::default() };
    client.set_all(vec![schema::KeyValue { metadata: Some(hidden), ..kv("hidden", "h") }]).await.unwrap();
    let deleted = schema::KvMetadata { deleted: true, ..Default::default() };
    client.set_all(vec![schema::KeyValue { metadata: Some(deleted), ..kv("dead", "d") }]).await.unwrap();
    let nothing = schema::KvMetadata::default();
    client.set_all(vec![schema::KeyValue { metadata: Some(nothing), ..kv("plain", "p") }]).await.unwrap();

    let later = client.get("later").await.unwrap();
    assert_eq!(later.metadata.unwrap().expiration.unwrap().expires_at, far);
    assert_eq!(client.get("plain").await.unwrap().metadata, None);
    let expired = "tbtree: key not found: expired entry";
    refused(client.get("now").await, Code::Unknown, expired, "");
    refused(client.get_of(schema::KeyRequest { at_tx: 1, ..key_request("now") }).await, Code::Unknown, expired, "");
    refused(client.get("hidden").await, Code::Unknown, "tbtree: key not found", "");
    let found = client.get_of(schema::KeyRequest { at_tx: 2, ..key_request("hidden") }).await.unwrap();
    assert_eq!((found.value, found.revision), (bytes("h"), 0));
    refused(client.get("dead").await, Code::Unknown, "tbtree: key not found", "");

    assert_eq!(keys(&client.scan(schema::ScanRequest::default()).await.unwrap()), ["later", "plain"]);
    let list = schema::KeyListRequest {
        keys: ["plain", "now", "", "nothing", "later", "plain", "dead", "hidden"]
            .iter()
            .map(|key| bytes(key))
            .collect(),
        since_tx: 0,
    };
    let found = client.inner.clone().get_all(client.request(list)).await.unwrap().into_inner().entries;
    assert_eq!(keys(&found), ["plain", "later", "plain"]);
    let count = client.inner.clone().count_all(client.request(())).await.unwrap().into_inner().count;
    assert_eq!(count, 4, "expired and deleted keys count");
    let history = |key: &str| schema::HistoryRequest { key: bytes(key), ..Default::default() };
    let now = client.history(history("now")).await.unwrap();
    assert_eq!((now.len(), now[0].expired, &now[0].value[..]), (1, true, &b""[..]));
    let dead = client.history(history("dead")).await.unwrap();
    assert!(dead[0].metadata.as_ref().unwrap().deleted);
    assert_eq!(dead[0].value, "d", "written by Set, so its value is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_walk_the_range_in_both_directions() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    client.set_all(["a1", "a2", "a3", "a4", "b1"].map(|key| kv(key, key)).to_vec()).await.unwrap();
    client.delete(&["a2"]).await.unwrap();
    let scan = |prefix: &str, seek: &str, end: &str| schema::ScanRequest {
        prefix: bytes(prefix),
        seek_key: bytes(seek),
        end_key: bytes(end),
        ..Default::default()
    };
    let desc = |request| schema::ScanRequest { desc: true, ..request };
    let cases: [(schema::ScanRequest, &[&str]); 14] = [
        (scan("", "", ""), &["a1", "a3", "a4", "b1"]),
        (scan("a", "", ""), &["a1", "a3", "a4"]),
        (scan("x", "", ""), &[]),
        (scan("a", "a1", ""), &["a3", "a4"]),
        (schema::ScanRequest { inclusive_seek: true, ..scan("a", "a1", "") }, &["a1", "a3", "a4"]),
        (scan("a", "A", ""), &["a1", "a3", "a4"]),
        (scan("", "a1", "a4"), &["a3"]),
        (schema::ScanRequest { inclusive_end: true, ..scan("", "a1", "a4") }, &["a3", "a4"]),
        (desc(scan("", "", "")), &["b1", "a4", "a3", "a1"]),
        (desc(scan("a", "", "")), &["a4", "a3", "a1"]),
        (desc(scan("a", "a4", "")), &["a3", "a1"]),
        (desc(scan("a", "b1", "a1")), &["a4", "a3"]),
        (schema::ScanRequest { offset: 1, limit: 1, ..scan("a", "", "") }, &["a3"]),
        (schema::ScanRequest { offset: 9, ..scan("a", "", "") }, &[]),
    ];
    for (request, expected) in cases {
        assert_eq!(keys(&client.scan(request.clone()).await.unwrap()), expected, "{request:?}");
    }
    assert_eq!(client.scan(scan("a3", "", "")).await.unwrap()[0].revision, 1);
    let beyond = schema::ScanRequest { since_tx: 3, ..Default::default() };
    refused(client.scan(beyond).await, Code::InvalidArgument, "illegal arguments", "");
    let beyond = schema::KeyListRequest { keys: vec![], since_tx: 3 };
    let refusal = client.inner.clone().get_all(client.request(beyond)).await;
    refused(refusal, Code::InvalidArgument, "illegal arguments", "");
    let count = |prefix: &str| {
        let (mut inner, request) = (client.inner.clone(), client.request(schema::KeyPrefix { prefix: bytes(prefix) }));
        async move { inner.count(request).await.map(Response::into_inner).unwrap().count }
    };
    assert_eq!((count("a").await, count("b").await, count("c").await), (4, 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_have_every_version() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    client.set("k", "1").await.unwrap();
    client.delete(&["k"]).await.unwrap();
    client.set("k", "3").await.unwrap();
    let request = |offset, limit, desc| schema::HistoryRequest { key: bytes("k"), offset, limit, desc, since_tx: 0 };
    let revisions = |entries: Vec<schema::Entry>| entries.iter().map(|entry| entry.revision).collect::<Vec<_>>();
    for (offset, limit, desc, expected) in [
        (0, 0, false, vec![1, 2, 3]),
        (0, 0, true, vec![3, 2, 1]),
        (1, 1, false, vec![2]),
        (1, 1, true, vec![2]),
        (2, 5, true, vec![1]),
        (4, 0, false, vec![]),
        (4, 0, true, vec![]),
    ] {
        let found = client.history(request(offset, limit, desc)).await.unwrap();
        assert_eq!(revisions(found), expected, "{offset} {limit} {desc}");
    }
    let all = client.history(request(0, 0, false)).await.unwrap();
    assert_eq!(pairs(&all)[1], ("k".into(), String::new()));
    assert!(all[1].metadata.as_ref().unwrap().deleted && all[0].metadata.is_none());
    refused(client.history(request(3, 0, false)).await, Code::Unknown, "tbtree: no more entries", "");
    refused(client.history(request(0, -1, false)).await, Code::Unknown, "tbtree: illegal arguments", "");
    let unknown = schema::HistoryRequest { key: bytes("nothing"), ..Default::default() };
    refused(client.history(unknown).await, Code::Unknown, "tbtree: key not found", "");
    let beyond = schema::HistoryRequest { since_tx: 4, ..request(0, 0, false) };
    refused(client.history(beyond).await, Code::InvalidArgument, "illegal arguments", "");
}

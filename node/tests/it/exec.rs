//! References, sorted sets and ExecAll: rules, texts, and what readers see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alhambra_proto::schema;
use alhambra_proto::schema::op::Operation;
use alhambra_proto::schema::precondition::{KeyMustNotExistPrecondition, Precondition};
use tonic::{Code, Response, Status};

use crate::support::*;

const NOT_FOUND: &str = "tbtree: key not found";
const ILLEGAL: &str = "illegal arguments";

fn reference(key: &str, target: &str) -> schema::ReferenceRequest {
    schema::ReferenceRequest { key: bytes(key), referenced_key: bytes(target), ..Default::default() }
}

fn bound(key: &str, target: &str, at_tx: u64) -> schema::ReferenceRequest {
    schema::ReferenceRequest { at_tx, bound_ref: true, ..reference(key, target) }
}

fn member(set: &str, score: f64, key: &str) -> schema::ZAddRequest {
    schema::ZAddRequest { set: bytes(set), score, key: bytes(key), ..Default::default() }
}

fn op(operation: Operation) -> schema::Op {
    schema::Op { operation: Some(operation) }
}

fn exec(operations: Vec<schema::Op>) -> schema::ExecAllRequest {
    schema::ExecAllRequest { operations, ..Default::default() }
}

fn absent(key: &str) -> schema::Precondition {
    let condition = KeyMustNotExistPrecondition { key: bytes(key) };
    schema::Precondition { precondition: Some(Precondition::KeyMustNotExist(condition)) }
}

impl Client {
    async fn refer(&self, request: schema::ReferenceRequest) -> Result<schema::TxHeader, Status> {
        self.inner.clone().set_reference(self.request(request)).await.map(Response::into_inner)
    }

    async fn z_add(&self, request: schema::ZAddRequest) -> Result<schema::TxHeader, Status> {
        self.inner.clone().z_add(self.request(request)).await.map(Response::into_inner)
    }

    async fn exec(&self, request: schema::ExecAllRequest) -> Result<schema::TxHeader, Status> {
        self.inner.clone().exec_all(self.request(request)).await.map(Response::into_inner)
    }

    async fn z_scan(&self, request: schema::ZScanRequest) -> Result<Vec<schema::ZEntry>, Status> {
        Ok(self.inner.clone().z_scan(self.request(request)).await?.into_inner().entries)
    }

    async fn whole_set(&self, set: &str) -> Vec<(f64, String)> {
        let found = self.z_scan(schema::ZScanRequest { set: bytes(set), ..Default::default() }).await.unwrap();
        found.iter().map(|z| (z.score, String::from_utf8(z.key.to_vec()).unwrap())).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_leads_to_the_newest_value_or_to_the_one_it_is_bound_to() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    client.set("target", "old").await.unwrap();
    let header = client.refer(reference("free", "target")).await.unwrap();
    assert_eq!((header.id, header.nentries), (2, 1));
    client.refer(bound("tied", "target", 1)).await.unwrap();
    client.set("target", "new").await.unwrap();

    let free = client.get("free").await.unwrap();
    assert_eq!((&free.key[..], &free.value[..], free.tx, free.revision), (&b"target"[..], &b"new"[..], 4, 2));
    let by = free.referenced_by.unwrap();
    assert_eq!((by.tx, &by.key[..], by.at_tx, by.revision), (2, &b"free"[..], 0, 1));
    let tied = client.get("tied").await.unwrap();
    assert_eq!((&tied.value[..], tied.tx, tied.revision), (&b"old"[..], 1, 0));
    assert_eq!(tied.referenced_by.unwrap().at_tx, 1);

    // A bound one outlives its target; the other is left out of scans, and its key can be made a reference again.
    client.delete(&["target"]).await.unwrap();
    refused(client.get("free").await, Code::Unknown, NOT_FOUND, "");
    assert_eq!(client.get("tied").await.unwrap().value, "old");
    assert_eq!(keys(&client.scan(schema::ScanRequest::default()).await.unwrap()), ["target"]);
    client.set("other", "x").await.unwrap();
    client.refer(reference("free", "other")).await.unwrap();
    let free = client.get("free").await.unwrap();
    assert_eq!((free.value, free.referenced_by.unwrap().revision), (bytes("x"), 2));
    // Histories show the bare reference.
    let history = schema::HistoryRequest { key: bytes("free"), ..Default::default() };
    let versions = client.history(history).await.unwrap();
    assert_eq!(versions.last().unwrap().value, b"\0\0\0\0\0\0\0\0\0other"[..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_reference_is_refused_and_nothing_is_written() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    client.set_all(vec![kv("value", "v"), expiring("gone", "v", 1)]).await.unwrap();
    client.refer(reference("ref", "value")).await.unwrap();
    client.set("deleted", "v").await.unwrap();
    client.delete(&["deleted"]).await.unwrap();
    let last = client.state().await.unwrap().tx_id;
    let expired = "tbtree: key not found: expired entry";
    let to_reference = "referenced key cannot be a reference";
    let has_value = "final key cannot be converted into a reference";
    for (request, code, text) in [
        (reference("", "value"), Code::InvalidArgument, ILLEGAL),
        (reference("r", ""), Code::InvalidArgument, ILLEGAL),
        (bound("r", "value", 0), Code::InvalidArgument, ILLEGAL),
        (schema::ReferenceRequest { at_tx: 1, ..reference("r", "value") }, Code::InvalidArgument, ILLEGAL),
        (reference("r", "absent"), Code::Unknown, NOT_FOUND),
        (reference("r", "deleted"), Code::Unknown, NOT_FOUND),
        (reference("r", "gone"), Code::Unknown, expired),
        (reference("r", "ref"), Code::Unknown, to_reference),
        (bound("r", "ref", 2), Code::Unknown, to_reference),
        (bound("r", "value", 2), Code::Unknown, NOT_FOUND),
        (bound("r", "value", last + 1), Code::Unknown, "tx not found"),
        (reference("value", "value"), Code::Unknown, has_value),
        (reference("gone", "value"), Code::Unknown, expired),
        (reference(&"k".repeat(1024), "value"), Code::Unknown, "max key length exceeded"),
    ] {
        refused(client.refer(request.clone()).await, code, text, "");
        // A member of a set has the same rules for what it leads to.
        if request.key == "r" {
            let schema::ReferenceRequest { referenced_key: key, at_tx, bound_ref, .. } = request;
            let member = schema::ZAddRequest { key, at_tx, bound_ref, ..member("set", 1.0, "") };
            refused(client.z_add(member).await, code, text, "");
        }
    }
    refused(client.z_add(member("", 1.0, "value")).await, Code::InvalidArgument, ILLEGAL, "");
    let conditional = schema::ReferenceRequest { preconditions: vec![absent("value")], ..reference("r", "value") };
    refused(client.refer(conditional).await, Code::FailedPrecondition, "precondition failed: KeyMustNotExist", "23000");
    assert_eq!(client.state().await.unwrap().tx_id, last);
    // The key of a deleted value may become a reference, and a reference another one.
    client.refer(reference("deleted", "value")).await.unwrap();
    client.refer(bound("deleted", "value", 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_is_read_by_score_in_both_directions() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    client.set_all(["a", "b", "c", "d"].map(|key| kv(key, &key.repeat(2))).to_vec()).await.unwrap();
    for (score, key) in [(3.0, "c"), (1.0, "a"), (-1.0, "d"), (2.0, "b"), (2.5, "a")] {
        client.z_add(member("s", score, key)).await.unwrap();
    }
    let all = client.whole_set("s").await;
    let named = |key: &str| key.to_owned();
    assert_eq!(all, [(1.0, named("a")), (2.0, named("b")), (2.5, named("a")), (3.0, named("c")), (-1.0, named("d"))]);
    // The same again is one member more of the same, not another one.
    client.z_add(member("s", 1.0, "a")).await.unwrap();
    assert_eq!(client.whole_set("s").await, all);
    assert!(client.whole_set("other").await.is_empty());

    let scan = schema::ZScanRequest { set: bytes("s"), ..Default::default() };
    let scores = async |request| {
        client.z_scan(request).await.unwrap().iter().map(|z: &schema::ZEntry| z.score).collect::<Vec<_>>()
    };
    let between = schema::ZScanRequest {
        min_score: Some(schema::Score { score: 2.0 }),
        max_score: Some(schema::Score { score: 3.0 }),
        ..scan.clone()
    };
    assert_eq!(scores(between.clone()).await, [2.0, 2.5, 3.0]);
    assert_eq!(scores(schema::ZScanRequest { desc: true, ..between.clone() }).await, [2.5, 2.0]);
    assert_eq!(scores(schema::ZScanRequest { offset: 1, limit: 1, ..between.clone() }).await, [2.5]);
    let seek = schema::ZScanRequest { seek_key: bytes("b"), seek_score: 2.0, limit: 2, ..scan.clone() };
    assert_eq!(scores(seek.clone()).await, [2.5, 3.0]);
    assert_eq!(scores(schema::ZScanRequest { inclusive_seek: true, ..seek }).await, [2.0, 2.5]);

    // One whose value is gone uses up its place.
    client.delete(&["b"]).await.unwrap();
    assert_eq!(scores(schema::ZScanRequest { limit: 2, ..scan.clone() }).await, [1.0]);
    assert_eq!(scores(schema::ZScanRequest { offset: 2, limit: 1, ..scan.clone() }).await, [2.5]);
    let found = client.z_scan(schema::ZScanRequest { limit: 1, ..scan.clone() }).await.unwrap();
    let entry = found[0].entry.as_ref().unwrap();
    assert_eq!((&found[0].set[..], &entry.value[..], entry.revision, found[0].at_tx), (&b"s"[..], &b"aa"[..], 1, 0));

    refused(client.z_scan(schema::ZScanRequest::default()).await, Code::InvalidArgument, ILLEGAL, "");
    let long = |len: usize| schema::ZScanRequest { set: bytes(&"s".repeat(len)), ..Default::default() };
    assert_eq!(client.z_scan(long(1007)).await.unwrap(), []);
    for len in [1008, 1015, 1024] {
        refused(client.z_scan(long(len)).await, Code::Unknown, "tbtree: illegal arguments", "");
    }
    let beyond = "result size limit exceeded: the specified limit (2501) is larger than the maximum allowed one (2500)";
    refused(client.z_scan(schema::ZScanRequest { limit: 2501, ..scan }).await, Code::Unknown, beyond, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_of_one_request_are_one_transaction() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    client.set("before", "b").await.unwrap();
    let own = |reference: schema::ReferenceRequest| schema::ReferenceRequest { bound_ref: true, ..reference };
    let header = client
        .exec(exec(vec![
            op(Operation::Kv(kv("new", "n"))),
            op(Operation::Ref(reference("free", "new"))),
            op(Operation::Ref(own(reference("tied", "new")))),
            op(Operation::Ref(reference("older", "before"))),
            op(Operation::ZAdd(schema::ZAddRequest { bound_ref: true, ..member("s", 1.0, "new") })),
            op(Operation::ZAdd(member("s", 2.0, "before"))),
        ]))
        .await
        .unwrap();
    assert_eq!((header.id, header.nentries), (2, 6));
    client.set("new", "changed").await.unwrap();
    for (key, value) in [("free", "changed"), ("tied", "n"), ("older", "b")] {
        assert_eq!(client.get(key).await.unwrap().value, value, "{key}");
    }
    assert_eq!(client.get("tied").await.unwrap().referenced_by.unwrap().at_tx, 2);
    let set = client.z_scan(schema::ZScanRequest { set: bytes("s"), ..Default::default() }).await.unwrap();
    assert_eq!((set[0].at_tx, set[0].entry.as_ref().unwrap().value.clone()), (2, bytes("n")));
    assert_eq!((set[1].at_tx, set[1].entry.as_ref().unwrap().value.clone()), (0, bytes("b")));

    let contained = schema::ExecAllRequest {
        no_wait: true,
        ..exec(vec![op(Operation::Kv(kv("self", "s"))), op(Operation::Ref(own(reference("selfref", "self"))))])
    };
    assert_eq!(client.exec(contained).await.unwrap().id, 4);
    assert_eq!(client.get("selfref").await.unwrap().referenced_by.unwrap().at_tx, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_transaction_is_refused_as_a_whole() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    client.set("value", "v").await.unwrap();
    let new = || op(Operation::Kv(kv("k", "v")));
    let refer = |request| op(Operation::Ref(request));
    let own = |key: &str, target: &str| bound(key, target, 0);
    let member_of = |key: &str| op(Operation::ZAdd(member("s", 1.0, key)));
    let duplicated = "rpc error: code = InvalidArgument desc = duplicated keys are not supported in single batch \
                      transaction: key/reference 'k'";
    let no_wait = "no wait operation must be self-contained: illegal arguments: ";
    let unbound = format!(
        "{no_wait}can only set references to keys added within same transaction, please use bound references with AtTx set to 0"
    );
    let foreign = format!("{no_wait}can not create a reference to a key that was not set in the same transaction");
    let foreign_member =
        format!("{no_wait}can not create a reference into a set for a key that was not set in the same transaction");
    let own_member = |key: &str| op(Operation::ZAdd(schema::ZAddRequest { bound_ref: true, ..member("s", 1.0, key) }));
    for (self_contained, operations, code, text) in [
        (false, vec![], Code::InvalidArgument, "empty set"),
        (false, vec![new(), schema::Op { operation: None }], Code::InvalidArgument, "operation is not set"),
        (false, vec![new(), new()], Code::InvalidArgument, duplicated),
        (false, vec![new(), refer(reference("k", "value"))], Code::InvalidArgument, duplicated),
        (
            false,
            vec![new(), member_of("value"), op(Operation::ZAdd(member("s", 9.0, "value")))],
            Code::InvalidArgument,
            "duplicated index inside zAdd insertions are not supported in single batch transaction",
        ),
        (false, vec![op(Operation::Kv(kv("", "v")))], Code::InvalidArgument, ILLEGAL),
        (
            false,
            vec![new(), refer(schema::ReferenceRequest { at_tx: 1, ..reference("r", "k") })],
            Code::InvalidArgument,
            ILLEGAL,
        ),
        (false, vec![refer(reference("r", "k")), new()], Code::Unknown, NOT_FOUND),
        (false, vec![new(), refer(reference("r", "k")), refer(reference("r2", "r"))], Code::Unknown, NOT_FOUND),
        (
            false,
            vec![new(), refer(reference("value", "k"))],
            Code::Unknown,
            "final key cannot be converted into a reference",
        ),
        (true, vec![new(), refer(reference("r", "k"))], Code::Unknown, &unbound),
        (true, vec![new(), refer(bound("r", "value", 1))], Code::Unknown, &unbound),
        (true, vec![new(), member_of("k")], Code::Unknown, &unbound),
        (true, vec![new(), refer(own("r", "value"))], Code::Unknown, &foreign),
        (true, vec![new(), own_member("value")], Code::Unknown, &foreign_member),
    ] {
        let request = schema::ExecAllRequest { no_wait: self_contained, ..exec(operations) };
        refused(client.exec(request).await, code, text, "");
    }
    let guarded = |preconditions| schema::ExecAllRequest { preconditions, ..exec(vec![new()]) };
    let failed = "precondition failed: KeyMustNotExist";
    refused(client.exec(guarded(vec![absent("value")])).await, Code::FailedPrecondition, failed, "23000");
    let long = "invalid precondition: max key length exceeded";
    refused(client.exec(guarded(vec![absent(&"k".repeat(1024))])).await, Code::Unknown, long, "");
    assert_eq!(client.state().await.unwrap().tx_id, 1, "nothing was written");
    client.exec(guarded(vec![absent("k")])).await.unwrap();
}

/// Each reference is bound to the very transaction that writes it, among writers that want nothing of the kind; none of them is
/// told of a conflict.
#[tokio::test(flavor = "multi_thread")]
async fn references_to_their_own_transaction_hold_among_other_writers() {
    const CLIENTS: u64 = 3;
    const EACH: u64 = 10;
    const WRITERS: u64 = 12;
    let node = single().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for n in 0..WRITERS {
        let (client, stop) = (Client::on(&node, "defaultdb").await, stop.clone());
        writers.push(tokio::spawn(async move {
            let mut written = 0;
            while !stop.load(Ordering::Relaxed) {
                client.set(&format!("other{n}"), "v").await.unwrap();
                written += 1;
            }
            written
        }));
    }
    let mut tasks = Vec::new();
    for n in 0..CLIENTS {
        let client = Client::on(&node, "defaultdb").await;
        tasks.push(tokio::spawn(async move {
            for m in 0..EACH {
                let (key, name) = (format!("k{n}-{m}"), format!("r{n}-{m}"));
                let own = bound(&name, &key, 0);
                let operations = vec![op(Operation::Kv(kv(&key, "v"))), op(Operation::Ref(own))];
                let header = client.exec(exec(operations)).await.unwrap();
                let found = client.get(&name).await.unwrap();
                assert_eq!((found.tx, found.referenced_by.unwrap().at_tx), (header.id, header.id));
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += writer.await.unwrap();
    }
    let client = Client::on(&node, "defaultdb").await;
    assert_eq!(client.state().await.unwrap().tx_id, CLIENTS * EACH + written, "one transaction each");
}

//! replicateTx: real exports of another server, and those of an own cluster, into databases in replica mode.

use std::time::Duration;

use alhambra_ledger::Digest;
use alhambra_ledger::header::TxHeader;
use alhambra_ledger::ids::TxId;
use alhambra_ledger::proof::{DualProof, verify_dual};
use alhambra_proto::schema;
use alhambra_proto::schema::Chunk;
use bytes::Bytes;
use futures::stream;
use serde_json::Value;
use tonic::{Code, Response, Status};

use crate::cluster::Cluster;
use crate::streams::{chunk, cut};
use crate::support::*;

/// The stream of each transaction of a database of the sample, with the Alh that it has there.
fn sample(database: &str) -> Vec<(Vec<u8>, String)> {
    let hex = |text: &str| {
        text.as_bytes()
            .chunks(2)
            .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
            .collect()
    };
    let lines = include_str!("../../../ledger/testdata/export-sample.jsonl").lines();
    let all = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|line| line["database"] == database)
        .map(|line| (hex(line["chunk_content_hex"].as_str().unwrap()), line["alh_hex"].as_str().unwrap().to_owned()))
        .collect()
}

fn replica(value: bool) -> schema::DatabaseNullableSettings {
    schema::DatabaseNullableSettings {
        replication_settings: Some(schema::ReplicationNullableSettings {
            replica: Some(schema::NullableBool { value }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Client {
    async fn replicate(&self, chunks: Vec<Chunk>) -> Result<schema::TxHeader, Status> {
        self.inner.clone().replicate_tx(self.request(stream::iter(chunks))).await.map(Response::into_inner)
    }

    async fn create_replica(&self, name: &str) {
        self.create_with(name, Some(replica(true))).await;
    }

    async fn export_stream(&self, tx: u64) -> Vec<u8> {
        let request = schema::ExportTxRequest { tx, ..Default::default() };
        let mut chunks = self.inner.clone().export_tx(self.request(request)).await.unwrap().into_inner();
        let mut found = Vec::new();
        while let Some(chunk) = chunks.message().await.unwrap() {
            found.extend_from_slice(&chunk.content);
        }
        found
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_another_server_moves_here_with_its_hashes() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    for database in ["kvone", "notime", "oldheaders", "sql"] {
        admin.create_replica(database).await;
        let client = Client::on(&node, database).await;
        let txs = sample(database);
        for (n, (bytes, alh)) in txs.iter().enumerate() {
            let lens: &[usize] = [&[1 << 20][..], &[1, 3, 0, 1000], &[9, 65_536], &[7]][n % 4];
            let header = client.replicate(cut(bytes, lens)).await.unwrap();
            assert_eq!(header.id, n as u64 + 1);
            assert_eq!(hex(&client.state().await.unwrap().tx_hash), *alh, "{database} {}", header.id);
        }
        // Another server would get from here what came from there.
        for (n, (bytes, _)) in txs.iter().enumerate() {
            assert!(client.export_stream(n as u64 + 1).await == *bytes, "{database} {}", n + 1);
        }
        // A state that was trusted at the source leads to the newest one here.
        let last = txs.len() as u64;
        let digest = |tx: u64| txs[tx as usize - 1].1.parse::<Digest>().unwrap();
        for known in 1..=last {
            let request = schema::VerifiableTxRequest { tx: last, prove_since_tx: known, ..Default::default() };
            let found = client.inner.clone().verifiable_tx_by_id(client.request(request)).await.unwrap().into_inner();
            let proof = DualProof::try_from(found.tx.as_ref().and(found.dual_proof.as_ref()).unwrap()).unwrap();
            verify_dual(&proof, TxId(known), TxId(last), &digest(known), &digest(last)).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_behind_one_that_comes_to_nothing_wait_for_it() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    admin.create_replica("target").await;
    let client = Client::on(&node, "target").await;
    let txs = sample("kvone");
    let whole = |n: usize| vec![chunk(txs[n - 1].0.clone())];
    for n in 1..=3 {
        client.replicate(whole(n)).await.unwrap();
    }
    let mut changed = txs[3].0.clone();
    let at = changed.len() - 4;
    changed[at] ^= 1;
    let behind = futures::future::join_all((5..=20).rev().map(|n| client.replicate(whole(n))));
    let fourth = async { (client.replicate(vec![chunk(changed)]).await, client.replicate(whole(4)).await) };
    let (behind, (wrong, right)) = tokio::join!(behind, fourth);
    refused(wrong, Code::Unknown, "illegal arguments: entries hash (Eh) differs", "");
    assert_eq!(right.unwrap().id, 4);
    let ids: Vec<u64> = behind.into_iter().map(|header| header.unwrap().id).collect();
    assert_eq!(ids, (5..=20).rev().collect::<Vec<_>>());
    assert_eq!(hex(&client.state().await.unwrap().tx_hash), txs[19].1);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_the_words_of_the_compatible_server() {
    let mut config = config();
    config.request_timeout = Duration::from_secs(2);
    let node = single_with(config).await;
    let admin = Client::on(&node, "defaultdb").await;
    admin.create("ordinary").await;
    admin.create_replica("target").await;
    let txs = sample("kvone");
    let ordinary = Client::on(&node, "ordinary").await;
    let whole = |n: usize| vec![chunk(txs[n - 1].0.clone())];
    refused(ordinary.replicate(whole(1)).await, Code::Unknown, "database is NOT a replica", "");
    refused(ordinary.replicate(whole(5)).await, Code::Unknown, "database is NOT a replica", "");

    let client = Client::on(&node, "target").await;
    let read_only = "database is read-only because it's a replica";
    refused(client.set("k", "v").await, Code::Unknown, read_only, "");
    for n in 1..=3 {
        client.replicate(whole(n)).await.unwrap();
    }
    for n in 1..=3 {
        refused(client.replicate(whole(n)).await, Code::Unknown, "tx already committed", "");
    }
    let other = sample("notime");
    let blroot = "illegal arguments: attempt to commit a tx with invalid blRoot";
    refused(client.replicate(vec![chunk(other[3].0.clone())]).await, Code::Unknown, blroot, "");
    let mut changed = txs[3].0.clone();
    let at = changed.len() - 4;
    changed[at] ^= 1;
    let eh = "illegal arguments: entries hash (Eh) differs";
    refused(client.replicate(vec![chunk(changed.clone())]).await, Code::Unknown, eh, "");
    let skipped = client.with("skip-integrity-check", "true").with("wait-for-indexing", "F");
    refused(skipped.replicate(vec![chunk(changed)]).await, Code::Unknown, eh, "");
    let odd = client.with("skip-integrity-check", "yes").replicate(whole(4)).await;
    refused(odd, Code::Unknown, "strconv.ParseBool: parsing \"yes\": invalid syntax", "");
    refused(client.replicate(vec![]).await, Code::Unknown, "EOF", "");
    let bytes = &txs[3].0;
    for len in [3, 8, 9, bytes.len() - 1] {
        refused(client.replicate(vec![chunk(bytes[..len].to_vec())]).await, Code::Unknown, "EOF", "");
    }
    let short = [&(20_u64).to_be_bytes()[..], &bytes[8..28]].concat();
    refused(client.replicate(vec![chunk(short)]).await, Code::InvalidArgument, "illegal arguments", "");
    let huge = client.replicate(vec![chunk(u64::MAX.to_be_bytes().to_vec())]).await.unwrap_err();
    assert_eq!(huge.code(), Code::ResourceExhausted, "{huge:?}");
    // What never comes is waited for, to the deadline.
    let missing = client.replicate(whole(6)).await;
    let gap = "the transactions before this one did not come by the deadline; surely not applied";
    refused(missing, Code::Cancelled, gap, "");
    assert_eq!(client.state().await.unwrap().tx_id, 3);
    // Bytes behind it mean nothing.
    let longer = [&((bytes.len() as u64 - 8 + 5).to_be_bytes())[..], &bytes[8..], &[9; 5]].concat();
    let header = client.replicate(vec![chunk([&longer[..], b"and more"].concat())]).await.unwrap();
    assert_eq!((header.id, hex(&client.state().await.unwrap().tx_hash)), (4, txs[3].1.clone()));
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_come_in_any_order_to_any_node_and_users_follow_after_the_cut_over() {
    let cluster = Cluster::start(Duration::from_secs(30)).await;
    let admin = Client::on(cluster.node(0), "defaultdb").await;
    admin.create_replica("moved").await;
    let txs = sample("kvone");
    let mut clients = Vec::new();
    for n in 0..3 {
        clients.push(Client::on(cluster.node(n), "moved").await);
    }
    // A gap is no error: the later ones wait.
    let sent = (txs.iter().enumerate().rev()).map(|(n, (bytes, _))| {
        let client = clients[n % 3].clone();
        async move { client.replicate(cut(bytes, &[n + 1])).await.map(|header| header.id) }
    });
    let ids: Vec<Result<u64, _>> = futures::future::join_all(sent).await.into_iter().rev().collect();
    let expected: Vec<u64> = (1..=txs.len() as u64).collect();
    let ids: Vec<u64> = ids.iter().map(|id| *id.as_ref().unwrap_or_else(|_| panic!("{ids:#?}"))).collect();
    assert_eq!(ids, expected);
    for client in &clients {
        let state = client.state().await.unwrap();
        assert_eq!((state.tx_id, hex(&state.tx_hash)), (31, txs[30].1.clone()));
        assert_eq!(client.get("key000").await.unwrap().value, Bytes::from_static(b"value 14"), "the newest of several");
    }
    refused(clients[1].set("k", "v").await, Code::Unknown, "database is read-only because it's a replica", "");

    admin.update("moved", replica(false)).await.unwrap();
    eventually("the cut-over", || async { clients[2].set("k", "v").await.is_ok() }).await;
    let written = clients[0].set("k", "w").await.unwrap();
    let written = TxHeader::try_from(&written).unwrap();
    assert!(written.id.get() > 31 && written.is_linked(), "{written:?}");
    let digest = |hex: &str| hex.parse::<Digest>().unwrap();
    for known in [1, 17, 31] {
        let request = schema::VerifiableTxRequest { tx: written.id.get(), prove_since_tx: known, ..Default::default() };
        let client = &clients[known as usize % 3];
        let found = client.inner.clone().verifiable_tx_by_id(client.request(request)).await.unwrap().into_inner();
        let proof = DualProof::try_from(found.tx.as_ref().and(found.dual_proof.as_ref()).unwrap()).unwrap();
        let (s, alh_s) = (TxId(known), digest(&txs[known as usize - 1].1));
        verify_dual(&proof, s, written.id, &alh_s, &written.alh().unwrap()).unwrap();
    }
    refused(clients[1].replicate(vec![chunk(txs[0].0.clone())]).await, Code::Unknown, "database is NOT a replica", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_replica_mode_of_the_default_database_can_be_changed() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    let mut more = replica(true);
    more.max_concurrency = Some(schema::NullableUint32 { value: 5 });
    refused(admin.update("defaultdb", more).await, Code::Internal, "database is reserved", "XX000");
    // What it is already: an order that is given again, because its answer was lost.
    admin.update("defaultdb", replica(false)).await.unwrap();
    admin.update("defaultdb", replica(true)).await.unwrap();
    let txs = sample("oldheaders");
    admin.replicate(vec![chunk(txs[0].0.clone())]).await.expect("replica mode is in force at once");
    admin.update("defaultdb", replica(false)).await.unwrap();
    admin.set("k", "v").await.expect("the cut-over is in force at once");
    assert_eq!(admin.export_stream(1).await, txs[0].0);
}

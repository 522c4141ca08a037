//! What a node takes at once with its default settings.

use std::time::Duration;

use alhambra_proto::schema;
use alhambra_proto::schema::immu_service_client::ImmuServiceClient;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tonic::{Code, Streaming};

use crate::cluster::Cluster;
use crate::streams::{chunk, framed};
use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_sessions_work_and_one_more_is_refused() {
    let node = single().await;
    let channel = channel(&node).await;
    let client = || Client { inner: ImmuServiceClient::new(channel.clone()), headers: vec![] };
    let opened: Vec<String> = futures::stream::iter(0..1000)
        .map(|_| async { client().open("immudb", PASSWORD, "defaultdb").await.unwrap().session_id })
        .buffer_unordered(1000)
        .collect()
        .await;
    let refused = client().open("immudb", PASSWORD, "defaultdb").await.unwrap_err();
    assert_eq!(refused.message(), "can not create new session: max sessions number reached");

    // All of them write at the same time, and none is refused for being one of many.
    let calls: FuturesUnordered<_> = (opened.iter().enumerate())
        .map(|(n, session)| {
            let client = client().with("sessionid", session);
            async move { client.set(&format!("k{n}"), "v").await.map(|header| header.id) }
        })
        .collect();
    let mut txs: Vec<u64> = calls.map(Result::unwrap).collect().await;
    txs.sort_unstable();
    assert_eq!(txs, (1..=1000).collect::<Vec<_>>(), "each its own transaction");

    let one = client().with("sessionid", &opened[0]);
    one.inner.clone().close_session(one.request(())).await.unwrap();
    client().open("immudb", PASSWORD, "defaultdb").await.unwrap();
    node.shutdown().await;
}

/// The same through a cluster: as many writers on each node as one of them leads.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clients_write_at_once_through_three_nodes_and_none_is_refused() {
    let cluster = Cluster::start(Duration::from_secs(60)).await;
    let mut sessions = Vec::new();
    for n in 0..3 {
        let channel = channel(cluster.node(n)).await;
        let client = || Client { inner: ImmuServiceClient::new(channel.clone()), headers: vec![] };
        let opened: Vec<Client> = futures::stream::iter(0..333)
            .map(|_| async {
                let session = client().open("immudb", PASSWORD, "defaultdb").await.unwrap().session_id;
                client().with("sessionid", session)
            })
            .buffer_unordered(333)
            .collect()
            .await;
        sessions.extend(opened);
    }
    let calls: FuturesUnordered<_> = (sessions.iter().enumerate())
        .map(|(n, client)| async move { client.set(&format!("k{n}"), "v").await.map(|header| header.id) })
        .collect();
    let mut txs: Vec<u64> = calls.map(Result::unwrap).collect().await;
    txs.sort_unstable();
    assert_eq!(txs, (1..=999).collect::<Vec<_>>(), "each its own transaction");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_streams_are_open_at_once_and_end_well() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let value = "x".repeat(300_000);
    client.set("large", &value).await.unwrap();

    // A hundred that have sent a part, a hundred that have read a part.
    let mut writers = Vec::new();
    for n in 0..100_u64 {
        let (tx, rx) = tokio::sync::mpsc::channel(1);
        let (client, n) = (Client::anonymous(&node).await.with("sessionid", &client.headers[0].1), n);
        let request = client.request(tokio_stream::wrappers::ReceiverStream::new(rx));
        let call = tokio::spawn(async move { client.inner.clone().stream_set(request).await });
        let all = framed(&[format!("streamed{n}").into_bytes(), vec![7; 10_000]]);
        tx.send(chunk(all[..5_000].to_vec())).await.unwrap();
        writers.push((tx, call, all));
    }
    let mut readers: Vec<Streaming<schema::Chunk>> = Vec::new();
    for _ in 0..100 {
        let client = Client::anonymous(&node).await.with("sessionid", &client.headers[0].1);
        let request = schema::KeyRequest { key: bytes("large"), ..Default::default() };
        let mut reader = client.inner.clone().stream_get(client.request(request)).await.unwrap().into_inner();
        assert_eq!(reader.next().await.unwrap().unwrap().content.len(), 8 + 5, "the key");
        readers.push(reader);
    }
    client.set("beside", "them").await.unwrap();
    for (tx, call, all) in writers {
        tx.send(chunk(all[5_000..].to_vec())).await.unwrap();
        drop(tx);
        call.await.unwrap().unwrap();
    }
    for mut reader in readers {
        let mut len = 0;
        while let Some(part) = reader.next().await {
            len += part.unwrap().content.len();
        }
        assert_eq!(len, 8 + value.len());
    }
    let streamed = schema::ScanRequest { prefix: bytes("streamed"), ..Default::default() };
    assert_eq!(client.scan(streamed).await.unwrap().len(), 100);
    assert_eq!(client.get("absent").await.unwrap_err().code(), Code::Unknown);
    node.shutdown().await;
}

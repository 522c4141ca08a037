//! Three nodes: any of them answers any call, and none of them ever hangs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alhambra_ledger::ids::TxId;
use alhambra_node::{Config, Env, Node, NodeHandle};
use alhambra_proto::cluster::TakeServerUuidRequest;
use alhambra_proto::cluster::cluster_service_client::ClusterServiceClient;
use alhambra_proto::code::{Applied, Code as Outcome};
use alhambra_proto::schema;
use alhambra_storage::vfs::mem::MemVfs;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::own_address::own_address;
use crate::support::*;

/// Three nodes of one cluster.
pub struct Cluster {
    configs: Vec<Config>,
    disks: Vec<MemVfs>,
    nodes: Vec<Option<NodeHandle>>,
    /// Of all nodes.
    pub clock: Arc<Shifted>,
}

impl Cluster {
    pub async fn start(request_timeout: Duration) -> Self {
        Self::start_with(|config| config.request_timeout = request_timeout).await
    }

    pub async fn start_with(change: impl Fn(&mut Config)) -> Self {
        let own: Vec<SocketAddr> = (0..3).map(|_| own_address()).collect();
        let peers: Vec<String> = own.iter().map(SocketAddr::to_string).collect();
        let configs: Vec<Config> = (own.iter())
            .map(|own| {
                let mut config = config();
                config.address = own.ip().to_string();
                config.peer_port = own.port();
                config.peers = peers.clone();
                config.bootstrap_expect = 3;
                config.insecure_peers = true;
                change(&mut config);
                config
            })
            .collect();
        let disks = vec![MemVfs::new(), MemVfs::new(), MemVfs::new()];
        let mut cluster = Self { configs, disks, nodes: vec![None, None, None], clock: Shifted::new() };
        for n in 0..3 {
            cluster.start_node(n).await;
        }
        for n in 0..3 {
            assert!(
                cluster.node(n).wait_ready(Instant::now() + PATIENCE).await,
                "{:?}",
                cluster.node(n).groups().ready()
            );
        }
        cluster
    }

    pub async fn start_node(&mut self, n: usize) {
        let tried = async {
            loop {
                // The node that was stopped may take a moment to let go of its port, and another port may have become that one.
                let env = Env { clock: self.clock.clone(), ..env(&self.disks[n]) };
                match Node::start(self.configs[n].clone(), env).await {
                    Ok(node) => return node,
                    Err(error) => eprintln!("node {n}: {error}"),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        self.nodes[n] = Some(tokio::time::timeout(PATIENCE, tried).await.expect("the node starts"));
    }

    pub fn disk(&self, n: usize) -> &MemVfs {
        &self.disks[n]
    }

    pub fn node(&self, n: usize) -> &NodeHandle {
        self.nodes[n].as_ref().unwrap()
    }

    pub async fn stop(&mut self, n: usize) {
        if let Some(node) = self.nodes[n].take() {
            node.shutdown().await;
        }
    }

    /// Which node leads the default database.
    fn leader(&self) -> usize {
        let leads = |n: &usize| {
            self.nodes[*n]
                .as_ref()
                .is_some_and(|node| node.groups().group_by_name("defaultdb").is_some_and(|group| group.is_leader()))
        };
        (0..3).find(leads).expect("somebody leads")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_answers_any_call() {
    let cluster = Cluster::start(Duration::from_secs(10)).await;
    let mut clients = Vec::new();
    for n in 0..3 {
        clients.push(Client::on(cluster.node(n), "defaultdb").await);
    }
    let mut uuids = std::collections::BTreeSet::new();
    for (n, client) in clients.iter().enumerate() {
        let key = format!("k{n}");
        let header = client.set(&key, "v").await.unwrap();
        // Acknowledged here, so seen everywhere from now on, and at once.
        for other in &clients {
            assert_eq!(other.get(&key).await.unwrap().tx, header.id);
            let request = schema::KeyRequest { key: bytes(&key), at_tx: header.id, ..Default::default() };
            assert_eq!(other.get_of(request).await.unwrap().value, "v");
            let request = schema::VerifiableGetRequest {
                key_request: Some(schema::KeyRequest { key: bytes(&key), ..Default::default() }),
                prove_since_tx: header.id,
            };
            other.inner.clone().verifiable_get(other.request(request)).await.unwrap();
        }
        let reply = client.inner.clone().health(client.request(())).await.unwrap();
        uuids.insert(reply.metadata().get("immudb-uuid").unwrap().to_str().unwrap().to_owned());
    }
    assert_eq!(uuids.len(), 1, "one cluster, one UUID");
    // Operators see what the leader has sent to the others.
    let metrics = page(cluster.node(cluster.leader()), "/metrics").await.1;
    for name in ["alhambra_link_frames_sent_total", "alhambra_link_packets_sent_total"] {
        let line = metrics.lines().find(|line| line.starts_with(&format!("{name}{{lane=\"append\"}}")));
        let count = line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        assert!(count.is_some_and(|count| count > 0), "{name}: {line:?} in\n{metrics}");
    }
    assert!(metrics.contains("alhambra_raft_snapshots_received_total 0"), "{metrics}");

    // A database that one node creates can be used through every node, also before its first command is applied there.
    for round in 0..8 {
        let name = format!("fresh{round}");
        let database = schema::Database { database_name: name.clone() };
        clients[0].inner.clone().create_database(clients[0].request(database)).await.unwrap();
        for n in 0..3 {
            Client::on(cluster.node(n), &name).await.set(&format!("n{n}"), "v").await.unwrap();
        }
    }
    // All replicas have the same history.
    let states = async || {
        let mut states = Vec::new();
        for client in &clients {
            states.push(client.state().await.unwrap());
        }
        states
    };
    let states = states().await;
    assert!(states.iter().all(|state| *state == states[0]), "{states:?}");
    // Only a quorum says that a state does not exist, also through a follower.
    for client in &clients {
        let request = schema::VerifiableGetRequest {
            key_request: Some(schema::KeyRequest { key: bytes("k0"), ..Default::default() }),
            prove_since_tx: 999,
        };
        let refusal = client.inner.clone().verifiable_get(client.request(request)).await;
        refused(refusal, Code::InvalidArgument, "illegal state", "");
    }
}

/// Holds a call to its time and to an error that says whether it may have been applied.
fn typed(status: &Status, took: Duration, at_most: Duration) -> Applied {
    assert!(took < at_most, "took {took:?}: {status:?}");
    let outcome = Outcome::of(status).unwrap_or_else(|| panic!("no outcome in {status:?}"));
    let expected = match outcome.applied() {
        Applied::No => Code::Unavailable,
        Applied::Unknown => Code::DeadlineExceeded,
    };
    assert_eq!(status.code(), expected, "{status:?}");
    outcome.applied()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_every_call_ends_in_time_and_writes_resume_by_themselves() {
    let request_timeout = Duration::from_millis(1500);
    let mut cluster = Cluster::start(request_timeout).await;
    let survivor = cluster.leader();
    let client = Client::on(cluster.node(survivor), "defaultdb").await;
    let header = client.set("k", "before").await.unwrap();
    let others: Vec<usize> = (0..3).filter(|n| *n != survivor).collect();
    for n in &others {
        cluster.stop(*n).await;
    }
    let slack = Duration::from_secs(3);
    // With no deadline of the client, and with one of its own.
    for own in [None, Some(Duration::from_millis(700))] {
        let timed = |mut request: tonic::Request<schema::SetRequest>| {
            if let Some(own) = own {
                request.set_timeout(own);
            }
            request
        };
        let began = Instant::now();
        let request = timed(client.request(schema::SetRequest { k_vs: vec![kv("k", "during")], ..Default::default() }));
        let status = client.inner.clone().set(request).await.unwrap_err();
        typed(&status, began.elapsed(), own.unwrap_or(request_timeout) + slack);
    }
    let began = Instant::now();
    let status = client.get("k").await.unwrap_err();
    assert_eq!(typed(&status, began.elapsed(), request_timeout + slack), Applied::No);
    let began = Instant::now();
    let beyond = schema::VerifiableGetRequest {
        key_request: Some(schema::KeyRequest { key: bytes("k"), ..Default::default() }),
        prove_since_tx: 999,
    };
    let status = client.inner.clone().verifiable_get(client.request(beyond)).await.unwrap_err();
    assert_ne!(status.message(), "illegal state", "nobody can know");
    typed(&status, began.elapsed(), request_timeout + slack);

    // What never changes, and what is known to be enough, can be read all the same.
    let at = schema::KeyRequest { key: bytes("k"), at_tx: header.id, ..Default::default() };
    assert_eq!(client.get_of(at).await.unwrap().value, "before");
    let local = client.with("alhambra-read-level", "local");
    let request = local.request(schema::KeyRequest { key: bytes("k"), ..Default::default() });
    let reply = local.inner.clone().get(request).await.unwrap();
    assert_eq!(reply.metadata().get("alhambra-read-level").unwrap(), "local");
    assert_eq!(reply.get_ref().value, "before");
    let wrong = client.with("alhambra-read-level", "fresh").get("k").await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    let mut again = Client::anonymous(cluster.node(survivor)).await;
    again.open("immudb", PASSWORD, "defaultdb").await.unwrap();
    let (_, body) = page(cluster.node(survivor), "/livez").await;
    assert_eq!(body, "alive\n");

    cluster.start_node(others[0]).await;
    eventually("a write after one node came back", || async { client.set("k", "after").await.is_ok() }).await;
    let reply = client.get("k").await.unwrap();
    assert_eq!(reply.value, "after");
    assert!(TxId(reply.tx) > TxId(header.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_goes_the_others_go_on() {
    let mut cluster = Cluster::start(Duration::from_secs(10)).await;
    let leader = cluster.leader();
    let follower = (0..3).find(|n| *n != leader).unwrap();
    let client = Client::on(cluster.node(follower), "defaultdb").await;
    for n in 0..20 {
        client.set(&format!("k{n}"), "v").await.unwrap();
    }
    cluster.stop(leader).await;
    // The session lives on this node, so nothing is lost but time.
    client.set("after", "v").await.unwrap();
    let count = client.inner.clone().count_all(client.request(())).await.unwrap().into_inner().count;
    assert_eq!(count, 21);
    // The node that was away catches up by itself.
    cluster.start_node(leader).await;
    assert!(cluster.node(leader).wait_ready(Instant::now() + PATIENCE).await);
    let back = Client::on(cluster.node(leader), "defaultdb").await;
    assert_eq!(back.state().await.unwrap(), client.state().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_shows_the_uuid_of_the_server_whose_place_the_cluster_takes() {
    const UUID: &str = "9m4e2mr0ui3e8a215n4g";
    let mut cluster = Cluster::start(Duration::from_secs(10)).await;
    let shown = async |cluster: &Cluster, n: usize| {
        let mut client = Client::anonymous(cluster.node(n)).await;
        let opened = client.open("immudb", PASSWORD, "defaultdb").await.unwrap();
        let client = client.with("sessionid", opened.session_id);
        let reply = client.inner.clone().keep_alive(client.request(())).await.unwrap();
        assert_eq!(reply.metadata().get("immudb-uuid").unwrap(), opened.server_uuid.as_str());
        opened.server_uuid
    };
    let own = shown(&cluster, 0).await;
    let admin = Client::on(cluster.node(1), "defaultdb").await;
    let mut calls = ClusterServiceClient::new(channel(cluster.node(1)).await);
    for wrong in ["", "9m4e2mr0ui3e8a215n4", "9M4E2MR0UI3E8A215N4G", "9m4e2mr0ui3e8a215n4gg"] {
        let request = admin.request(TakeServerUuidRequest { uuid: wrong.into() });
        let status = calls.take_server_uuid(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("20 characters"), "{status}");
    }
    assert_eq!(shown(&cluster, 1).await, own);
    calls.take_server_uuid(admin.request(TakeServerUuidRequest { uuid: UUID.into() })).await.unwrap();
    assert_eq!(shown(&cluster, 1).await, UUID, "at once where it was taken");
    for n in [0, 2] {
        eventually("the UUID on every node", async || shown(&cluster, n).await == UUID).await;
    }
    // Nothing that was given before is void, and it outlives a restart.
    admin.set("k", "v").await.unwrap();
    cluster.stop(2).await;
    cluster.start_node(2).await;
    assert!(cluster.node(2).wait_ready(Instant::now() + PATIENCE).await);
    assert_eq!(shown(&cluster, 2).await, UUID);
    // Another one in its place.
    calls.take_server_uuid(admin.request(TakeServerUuidRequest { uuid: own.clone() })).await.unwrap();
    assert_eq!(shown(&cluster, 1).await, own);
}

//! Databases that are loaded, unloaded, deleted and truncated: on every node alike, and nothing acknowledged is lost by it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use alhambra_node::Node;
use alhambra_proto::code::{Applied, Code as Outcome};
use alhambra_proto::schema;
use alhambra_storage::vfs::mem::MemVfs;
use tokio::time::Instant;
use tonic::{Code, Response, Status};

use crate::cluster::Cluster;
use crate::support::*;

const DATABASE: &str = "orders";

impl Client {
    pub async fn load(&self, database: &str) -> Result<(), Status> {
        let request = self.request(schema::LoadDatabaseRequest { database: database.to_owned() });
        let reply = self.inner.clone().load_database(request).await?.into_inner();
        assert_eq!(reply.database, database);
        Ok(())
    }

    pub async fn unload(&self, database: &str) -> Result<(), Status> {
        let request = self.request(schema::UnloadDatabaseRequest { database: database.to_owned() });
        let reply = self.inner.clone().unload_database(request).await?.into_inner();
        assert_eq!(reply.database, database);
        Ok(())
    }

    pub async fn select(&self, database: &str) -> Result<String, Status> {
        let request = self.request(schema::Database { database_name: database.to_owned() });
        Ok(self.inner.clone().use_database(request).await?.into_inner().token)
    }

    pub async fn listed(&self, database: &str) -> Option<schema::DatabaseInfo> {
        let request = self.request(schema::DatabaseListRequestV2 {});
        let list = self.inner.clone().database_list_v2(request).await.unwrap().into_inner().databases;
        list.into_iter().find(|info| info.name == database)
    }

    async fn verified_set(&self, key: &str, value: &str) -> Result<schema::TxHeader, Status> {
        let set_request = Some(schema::SetRequest { k_vs: vec![kv(key, value)], ..Default::default() });
        let request = schema::VerifiableSetRequest { set_request, prove_since_tx: 0 };
        let written = self.inner.clone().verifiable_set(self.request(request)).await?.into_inner();
        Ok(written.tx.and_then(|tx| tx.header).expect("a transaction has a header"))
    }

    async fn database_health(&self) -> Result<schema::DatabaseHealthResponse, Status> {
        self.inner.clone().database_health(self.request(())).await.map(Response::into_inner)
    }

    async fn server_info(&self) -> schema::ServerInfoResponse {
        let request = self.request(schema::ServerInfoRequest {});
        self.inner.clone().server_info(request).await.unwrap().into_inner()
    }
}

/// Holds every call that needs the database open to the answer of one that is not.
async fn is_closed(client: &Client) {
    fn closed<T: std::fmt::Debug>(result: Result<T, Status>) {
        refused(result, Code::Unknown, "already closed", "");
    }
    closed(client.set("k", "v").await);
    closed(client.get("k").await);
    closed(client.delete(&["k"]).await);
    closed(client.scan(schema::ScanRequest::default()).await);
    closed(client.state().await);
    closed(client.inner.clone().count_all(client.request(())).await);
    closed(client.inner.clone().compact_index(client.request(())).await);
    let streamed = schema::KeyRequest { key: bytes("k"), ..Default::default() };
    let streaming = client.inner.clone().stream_get(client.request(streamed)).await;
    let streamed = match streaming {
        Ok(reply) => reply.into_inner().message().await,
        Err(status) => Err(status),
    };
    closed(streamed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unloaded_database_is_listed_and_answers_about_itself_alone() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    admin.create(DATABASE).await;
    let client = Client::on(&node, DATABASE).await;
    let token = client.select(DATABASE).await.unwrap();
    client.set("k", "v").await.unwrap();
    let before = (client.state().await.unwrap(), client.settings().await.unwrap());
    assert_eq!(admin.server_info().await.num_databases, 2);

    admin.unload(DATABASE).await.unwrap();
    is_closed(&client).await;
    is_closed(&Client::anonymous(&node).await.with("authorization", token.clone())).await;
    assert!(!admin.listed(DATABASE).await.unwrap().loaded);
    assert_eq!(admin.server_info().await.num_databases, 1);
    assert!(node.groups().ready().ready, "a node without it is as ready as before");
    assert_eq!(client.settings().await.unwrap(), before.1);
    client.database_health().await.unwrap();
    let change = schema::DatabaseNullableSettings {
        max_concurrency: Some(schema::NullableUint32 { value: 7 }),
        ..Default::default()
    };
    let changed = admin.update(DATABASE, change).await.unwrap();
    assert!(!admin.listed(DATABASE).await.unwrap().loaded, "a change of the settings does not load it");
    // A session can be opened on it, and nothing be done in it yet.
    let early = Client::on(&node, DATABASE).await;
    is_closed(&early).await;
    refused(admin.select(DATABASE).await, Code::Unknown, "already closed", "");
    refused(admin.unload(DATABASE).await, Code::Unknown, "already closed", "");

    admin.load(DATABASE).await.unwrap();
    refused(admin.load(DATABASE).await, Code::Internal, "database already loaded", "XX000");
    let token = Client::anonymous(&node).await.with("authorization", token);
    for client in [&client, &early, &token] {
        assert_eq!(client.get("k").await.unwrap().value, "v");
        assert_eq!(client.state().await.unwrap(), before.0);
    }
    assert_eq!(client.settings().await.unwrap(), changed);
    assert!(admin.listed(DATABASE).await.unwrap().loaded);
    client.set("k", "w").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_load_and_unload_what() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    admin.create(DATABASE).await;
    admin.create("other").await;
    for (name, permission) in [("owner", 254), ("writer", 2)] {
        let request = schema::CreateUserRequest {
            user: bytes(name),
            password: bytes(PASSWORD),
            permission,
            database: DATABASE.into(),
        };
        admin.inner.clone().create_user(admin.request(request)).await.unwrap();
    }
    let owner = Client::session(&node, "owner", PASSWORD, DATABASE).await.unwrap();
    let writer = Client::session(&node, "writer", PASSWORD, DATABASE).await.unwrap();
    let nobody = Client::anonymous(&node).await;
    let not_yours = |name: &str| {
        format!("the database '{name}' does not exist or you do not have admin permission on this database")
    };
    for reserved in ["defaultdb", "systemdb"] {
        for client in [&admin, &writer] {
            refused(client.load(reserved).await, Code::Internal, "database is reserved", "XX000");
            refused(client.unload(reserved).await, Code::Internal, "database is reserved", "XX000");
        }
    }
    for absent in ["absent", "", "ORDERS"] {
        refused(admin.load(absent).await, Code::Unknown, "database does not exist", "");
        refused(admin.unload(absent).await, Code::Unknown, "database does not exist", "");
        refused(owner.load(absent).await, Code::Unknown, &not_yours(absent), "");
    }
    refused(nobody.load(DATABASE).await, Code::Unknown, "could not get loggedin user data", "");
    refused(nobody.unload(DATABASE).await, Code::Unknown, "could not get loggedin user data", "");
    for (client, database) in [(&writer, DATABASE), (&owner, "other")] {
        refused(client.unload(database).await, Code::Unknown, &not_yours(database), "");
        refused(client.load(database).await, Code::Unknown, &not_yours(database), "");
    }
    owner.unload(DATABASE).await.unwrap();
    refused(writer.select(DATABASE).await, Code::Unknown, "already closed", "");
    owner.load(DATABASE).await.unwrap();
    writer.set("k", "v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn unloading_lasts_over_restarts() {
    let disk = MemVfs::new();
    let start = async || {
        let node = Node::start(config(), env(&disk)).await.unwrap();
        assert!(node.wait_ready(Instant::now() + PATIENCE).await, "{:?}", node.groups().ready());
        node
    };
    let node = start().await;
    let admin = Client::on(&node, "defaultdb").await;
    admin.create(DATABASE).await;
    Client::on(&node, DATABASE).await.set("k", "v").await.unwrap();
    admin.unload(DATABASE).await.unwrap();
    node.shutdown().await;

    let node = start().await;
    is_closed(&Client::on(&node, DATABASE).await).await;
    Client::on(&node, "defaultdb").await.load(DATABASE).await.unwrap();
    node.shutdown().await;

    let node = start().await;
    assert_eq!(Client::on(&node, DATABASE).await.get("k").await.unwrap().value, "v");
    node.shutdown().await;
}

/// How often the database is closed under its writers.
const ROUNDS: u64 = 6;

#[tokio::test(flavor = "multi_thread")]
async fn unloading_under_writers_loses_nothing_and_keeps_nobody_waiting() {
    let cluster = Cluster::start(Duration::from_secs(10)).await;
    let mut admins = Vec::new();
    for n in 0..3 {
        admins.push(Client::on(cluster.node(n), "defaultdb").await);
    }
    admins[0].create(DATABASE).await;
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for n in 0..6 {
        let client = Client::on(cluster.node(n % 3), DATABASE).await;
        let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
        writers.push(tokio::spawn(async move {
            let (mut kept, mut denied) = (Vec::new(), Vec::new());
            for i in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let began = Instant::now();
                let key = format!("{n}-{i}");
                // A verified write has more to do when it is committed already.
                let result =
                    if n % 2 == 0 { client.set(&key, "v").await } else { client.verified_set(&key, "v").await };
                assert!(began.elapsed() < Duration::from_secs(15), "a write hung: {result:?}");
                match result {
                    Ok(header) => {
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                        kept.push((key, header.id));
                    }
                    // It was under way, or the database is closed.
                    Err(status) => {
                        let outcome = Outcome::of(&status);
                        assert!(status.message() == "already closed" || outcome.is_some(), "{status:?}");
                        if outcome.is_none_or(|outcome| outcome.applied() == Applied::No) {
                            denied.push((key, status));
                        }
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            }
            (kept, denied)
        }));
    }
    for round in 0..ROUNDS {
        let before = acknowledged.load(Ordering::Relaxed);
        eventually("writers get on", async || acknowledged.load(Ordering::Relaxed) > before + 50).await;
        // Any node may close it and any other open it; when one has answered, all have followed.
        let (closer, opener) = (usize::try_from(round).unwrap() % 3, usize::try_from(round + 1).unwrap() % 3);
        admins[closer].unload(DATABASE).await.unwrap();
        for (n, admin) in admins.iter().enumerate() {
            is_closed(&Client::on(cluster.node(n), DATABASE).await).await;
            assert!(!admin.listed(DATABASE).await.unwrap().loaded);
        }
        admins[opener].load(DATABASE).await.unwrap();
        for n in 0..3 {
            Client::on(cluster.node(n), DATABASE).await.set(&format!("after-{round}-{n}"), "v").await.unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    let (mut kept, mut denied) = (Vec::new(), Vec::new());
    for writer in writers {
        let (of_writer, denied_to_it) = writer.await.unwrap();
        kept.extend(of_writer);
        denied.extend(denied_to_it);
    }
    assert!(kept.len() > 150, "{}", kept.len());
    for n in 0..3 {
        let client = Client::on(cluster.node(n), DATABASE).await;
        for (key, tx) in &kept {
            assert_eq!(client.get(key).await.unwrap().tx, *tx, "{key} was acknowledged");
        }
        for (key, status) in &denied {
            assert!(client.get(key).await.is_err(), "{key} is there, and its client was told: {status:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_follows_when_it_is_back() {
    let mut cluster = Cluster::start(Duration::from_secs(10)).await;
    let admin = Client::on(cluster.node(0), "defaultdb").await;
    admin.create(DATABASE).await;
    Client::on(cluster.node(0), DATABASE).await.set("k", "v").await.unwrap();
    cluster.stop(2).await;
    admin.unload(DATABASE).await.unwrap();
    cluster.start_node(2).await;
    assert!(cluster.node(2).wait_ready(Instant::now() + PATIENCE).await);
    let closed = async || cluster.node(2).groups().group_by_name(DATABASE).is_none();
    eventually("the node that came back closes it", closed).await;
    is_closed(&Client::on(cluster.node(2), DATABASE).await).await;
    Client::on(cluster.node(2), "defaultdb").await.load(DATABASE).await.unwrap();
    for n in 0..3 {
        assert_eq!(Client::on(cluster.node(n), DATABASE).await.get("k").await.unwrap().value, "v");
    }
}

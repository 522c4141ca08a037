//! Truncated databases: values are gone from every node, and every proof still holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alhambra_ledger::ids::TxId;
use alhambra_ledger::state::TrustedState;
use alhambra_proto::code::Code as Outcome;
use alhambra_proto::schema;
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::vfs::{OpenMode, Vfs};
use tonic::{Code, Status};

use crate::cluster::Cluster;
use crate::support::*;
use crate::verified::check;

const DATABASE: &str = "orders";
const DAY_MS: i64 = 86_400_000;
const NOT_REACHED: &str = "retention period has not been reached";

impl Client {
    async fn truncate(&self, database: &str, retention_period: i64) -> Result<(), Status> {
        let request = schema::TruncateDatabaseRequest { database: database.to_owned(), retention_period };
        let reply = self.inner.clone().truncate_database(self.request(request)).await?.into_inner();
        assert_eq!(reply.database, database);
        Ok(())
    }

    async fn tx(&self, tx: u64) -> schema::Tx {
        let request = self.request(schema::TxRequest { tx, ..Default::default() });
        self.inner.clone().tx_by_id(request).await.unwrap().into_inner()
    }

    async fn prove(&self, state: &mut TrustedState, tx: u64) {
        let request = schema::VerifiableTxRequest { tx, prove_since_tx: state.tx.get(), ..Default::default() };
        let proven = self.inner.clone().verifiable_tx_by_id(self.request(request)).await.unwrap().into_inner();
        check(state, &proven);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_truncated_is_refused() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    admin.create(DATABASE).await;
    let client = Client::on(&node, DATABASE).await;
    for reserved in ["defaultdb", "systemdb"] {
        refused(admin.truncate(reserved, DAY_MS).await, Code::Internal, "database is reserved", "XX000");
    }
    for absent in ["absent", ""] {
        refused(admin.truncate(absent, DAY_MS).await, Code::Unknown, "database does not exist", "");
    }
    let nobody = Client::anonymous(&node).await;
    refused(nobody.truncate(DATABASE, DAY_MS).await, Code::Unknown, "could not get loggedin user data", "");
    let text = "rpc error: code = InvalidArgument desc = illegal arguments: invalid retention period for database 'orders'. \
                RetentionPeriod should at least '24h0m0s' hours";
    for period in [1, DAY_MS - 1, -1, i64::MIN] {
        refused(admin.truncate(DATABASE, period).await, Code::InvalidArgument, text, "");
    }
    // Nothing there, and nothing old enough.
    refused(admin.truncate(DATABASE, DAY_MS).await, Code::Unknown, NOT_REACHED, "");
    for n in 0..5 {
        client.set(&format!("k{n}"), "v").await.unwrap();
    }
    for period in [DAY_MS, 30 * DAY_MS, i64::MAX] {
        refused(admin.truncate(DATABASE, period).await, Code::Unknown, NOT_REACHED, "");
    }
    admin.unload(DATABASE).await.unwrap();
    refused(admin.truncate(DATABASE, DAY_MS).await, Code::Unknown, "already closed", "");
    admin.load(DATABASE).await.unwrap();
    assert_eq!(client.state().await.unwrap().tx_id, 5, "refusals change nothing");
    assert_eq!(client.get("k0").await.unwrap().value, "v");
}

/// The text of the record in `systemdb` that the newest prune cites.
fn cited(node: &alhambra_node::NodeHandle) -> String {
    let prunes = node.groups().group_by_name(DATABASE).unwrap().database().prunes().unwrap();
    let order = prunes.last().unwrap().order.unwrap();
    let system = node.groups().group_by_name("systemdb").unwrap().database().clone();
    assert_eq!(system.alh(order.tx).unwrap().0, order.alh);
    let record = system.tx(order.tx).unwrap();
    String::from_utf8(system.value(&record.entries[0]).unwrap().to_vec()).unwrap()
}

/// Closed segments of the database, by name.
fn segments(disk: &MemVfs) -> BTreeMap<PathBuf, Vec<u8>> {
    let databases = Path::new("/data/databases");
    let names = disk.read_dir(databases).unwrap();
    let folder = names.iter().find(|(name, _)| name.starts_with(DATABASE)).unwrap();
    let ledger = databases.join(&folder.0).join("ledger");
    let mut found = BTreeMap::new();
    for (name, _) in disk.read_dir(&ledger).unwrap().into_iter().filter(|(name, _)| name.ends_with(".seg")) {
        let file = disk.open(&ledger.join(&name), OpenMode::Read).unwrap();
        let len = usize::try_from(file.len().unwrap()).unwrap();
        found.insert(PathBuf::from(name), file.read_at(0, len).unwrap().to_vec());
    }
    found.pop_last();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn old_values_are_gone_from_every_node_and_their_proofs_hold() {
    let cluster = Cluster::start_with(|config| {
        config.request_timeout = Duration::from_secs(20);
        config.segment_size = 64 << 10;
    })
    .await;
    cluster.clock.days(-3);
    let admin = Client::on(cluster.node(0), "defaultdb").await;
    admin.create(DATABASE).await;
    let mut clients = Vec::new();
    for n in 0..3 {
        clients.push(Client::on(cluster.node(n), DATABASE).await);
    }
    let mut early = TrustedState::empty(DATABASE.into());
    let mut last_old = 0;
    for n in 0..30 {
        let value = format!("old-{n} is secret ").repeat(300);
        last_old = clients[n % 3].set(&format!("old-{n}"), &value).await.unwrap().id;
    }
    clients[0].prove(&mut early, 10).await;
    assert!((0..3).all(|n| contents(cluster.disk(n)).windows(16).any(|part| part == b"old-3 is secret ")));
    cluster.clock.days(0);
    for n in 0..30 {
        clients[n % 3].set(&format!("new-{n}"), &"new ".repeat(1200)).await.unwrap();
    }
    refused(admin.truncate(DATABASE, 30 * DAY_MS).await, Code::Unknown, NOT_REACHED, "");

    // Whichever node is asked: two of the three do not lead.
    let follower = (0..3)
        .find(|n| !cluster.node(*n).groups().group_by_name(DATABASE).unwrap().is_leader())
        .expect("one of them leads");
    Client::on(cluster.node(follower), "defaultdb").await.truncate(DATABASE, DAY_MS).await.unwrap();

    // The marker: a transaction without entries that says what was kept first.
    let marker = clients[follower].tx(last_old + 31).await;
    let header = marker.header.unwrap();
    assert_eq!((header.id, header.nentries, marker.entries.len()), (last_old + 31, 0, 0));
    assert_eq!(header.metadata.unwrap().truncated_tx_id, last_old);
    refused(admin.truncate(DATABASE, DAY_MS).await, Code::Unknown, NOT_REACHED, "");
    for (n, client) in clients.iter().enumerate() {
        let status = client.get("old-3").await.unwrap_err();
        assert_eq!(Outcome::of(&status), Some(Outcome::KeyNotFound), "{status:?}");
        assert!(status.message().ends_with("was pruned; its hash and proofs are still there"), "{status:?}");
        assert_eq!(client.get("old-29").await.unwrap().tx, last_old, "the newest of them is kept");
        assert!(client.get("new-29").await.is_ok());
        let listed = keys(&client.scan(schema::ScanRequest::default()).await.unwrap());
        assert_eq!(listed.len(), 31, "scans leave them out: {listed:?}");
        // What was trusted before goes on, over the marker, and what is gone is proven by its hash.
        let mut state = early.clone();
        for tx in [3, 10, last_old, last_old + 5, last_old + 31] {
            client.prove(&mut state, tx).await;
        }
        client.prove(&mut TrustedState::empty(DATABASE.into()), 1).await;
        // The prune says which transaction of systemdb ordered it.
        let database = cluster.node(n).groups().group_by_name(DATABASE).unwrap().database().clone();
        let prunes = database.prunes().unwrap();
        assert_eq!(prunes.len(), 1);
        let text = cited(cluster.node(n));
        assert!(
            text.contains(&format!(r#""before":{last_old},"#)) && text.contains(r#""ordered_by":"immudb""#),
            "{text}"
        );
        assert_eq!(database.truncated_before(), TxId(last_old));
    }
    // The bytes go in the background, and in the end all replicas have the same.
    for n in 0..3 {
        let gone = async || !contents(cluster.disk(n)).windows(16).any(|part| part == b"old-3 is secret ");
        eventually("the bytes are gone", gone).await;
    }
    let equal = async || {
        let found = [0, 1, 2].map(|n| segments(cluster.disk(n)));
        found[0].len() > 3 && found.iter().all(|segments| *segments == found[0])
    };
    eventually("closed segments are equal files", equal).await;
    for client in &clients {
        let mut state = early.clone();
        for tx in [3, last_old + 31] {
            client.prove(&mut state, tx).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_with_a_retention_period_is_truncated_by_itself() {
    let cluster = Cluster::start(Duration::from_secs(20)).await;
    cluster.clock.days(-3);
    let admin = Client::on(cluster.node(0), "defaultdb").await;
    admin.create(DATABASE).await;
    admin.create("kept").await;
    let client = Client::on(cluster.node(1), DATABASE).await;
    let kept = Client::on(cluster.node(1), "kept").await;
    for n in 0..5 {
        client.set(&format!("old-{n}"), "old").await.unwrap();
        kept.set(&format!("old-{n}"), "old").await.unwrap();
    }
    cluster.clock.days(0);
    client.set("new", "new").await.unwrap();
    let retention = |period: i64| schema::DatabaseNullableSettings {
        truncation_settings: Some(schema::TruncationNullableSettings {
            retention_period: Some(schema::NullableMilliseconds { value: period }),
            ..Default::default()
        }),
        ..Default::default()
    };
    // Nothing is so old; another period is looked at at once, not after the frequency of a day.
    admin.update(DATABASE, retention(30 * DAY_MS)).await.unwrap();
    let shown = client.settings().await.unwrap().truncation_settings.unwrap();
    assert_eq!(shown.retention_period.map(|period| period.value), Some(30 * DAY_MS));
    admin.update(DATABASE, retention(DAY_MS)).await.unwrap();
    for n in 0..3 {
        let client = Client::on(cluster.node(n), DATABASE).await;
        eventually("old values are gone", async || client.get("old-0").await.is_err()).await;
        let status = client.get("old-0").await.unwrap_err();
        assert!(status.message().ends_with("was pruned; its hash and proofs are still there"), "{status:?}");
        assert_eq!(client.get("new").await.unwrap().value, "new");
        let text = cited(cluster.node(n));
        assert!(
            text.contains(&format!(r#""retention_ms":{DAY_MS},"#))
                && text.contains(r#""ordered_by":"setting retention-period""#),
            "{text}"
        );
        assert_eq!(Client::on(cluster.node(n), "kept").await.get("old-0").await.unwrap().value, "old");
    }
    client.prove(&mut TrustedState::empty(DATABASE.into()), 2).await;
}

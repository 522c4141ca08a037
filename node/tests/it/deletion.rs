//! Deleted databases: gone for good on every node, also on one that was away, and nothing of them in one of the same name.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alhambra_ledger::ids::{DatabaseId, GroupId};
use alhambra_proto::schema;
use alhambra_storage::removal::remove;
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::faulty::{Fault, FaultyVfs};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::cluster::Cluster;
use crate::support::*;

const DATABASE: &str = "orders";

impl Client {
    async fn delete_database(&self, database: &str) -> Result<(), Status> {
        let request = self.request(schema::DeleteDatabaseRequest { database: database.to_owned() });
        let reply = self.inner.clone().delete_database(request).await?.into_inner();
        assert_eq!(reply.database, database);
        Ok(())
    }

    async fn give(&self, user: &str, permission: u32, database: &str) {
        let (username, database) = (user.to_owned(), database.to_owned());
        let request = schema::ChangePermissionRequest { action: 0, username, database, permission };
        self.inner.clone().change_permission(self.request(request)).await.unwrap();
    }

    async fn make_user(&self, user: &str, permission: u32, database: &str) {
        let (user, password, database) = (bytes(user), bytes(PASSWORD), database.to_owned());
        let request = schema::CreateUserRequest { user, password, permission, database };
        self.inner.clone().create_user(self.request(request)).await.unwrap();
    }
}

/// Names in the folder of the databases.
fn folders(disk: &MemVfs) -> Vec<String> {
    disk.read_dir(Path::new("/data/databases")).unwrap().into_iter().map(|(name, _)| name).collect()
}

fn has_folder_of(disk: &MemVfs, name: &str) -> bool {
    folders(disk).iter().any(|folder| folder.starts_with(&format!("{name}.")))
}

fn holds(disk: &MemVfs, text: &str) -> bool {
    contents(disk).windows(text.len()).any(|part| part == text.as_bytes())
}

/// Group and id of a database, as a node knows it.
fn identity(cluster: &Cluster, n: usize) -> (GroupId, DatabaseId) {
    let record = cluster.node(n).groups().meta().database(DATABASE).unwrap();
    (record.group, record.id)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_unloaded_can_be_deleted_and_by_whom() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    admin.create(DATABASE).await;
    admin.create("other").await;
    admin.make_user("owner", 254, DATABASE).await;
    admin.make_user("writer", 2, DATABASE).await;
    admin.give("owner", 1, "other").await;
    let owner = Client::session(&node, "owner", PASSWORD, DATABASE).await.unwrap();
    let writer = Client::session(&node, "writer", PASSWORD, DATABASE).await.unwrap();
    let not_yours = |name: &str| {
        format!("the database '{name}' does not exist or you do not have admin permission on this database")
    };
    for reserved in ["defaultdb", "systemdb"] {
        refused(admin.delete_database(reserved).await, Code::Internal, "database is reserved", "XX000");
    }
    for absent in ["absent", ""] {
        refused(admin.delete_database(absent).await, Code::Unknown, "database does not exist", "");
    }
    refused(writer.delete_database(DATABASE).await, Code::Unknown, &not_yours(DATABASE), "");
    refused(owner.delete_database("other").await, Code::Unknown, &not_yours("other"), "");
    let nobody = Client::anonymous(&node).await;
    refused(nobody.delete_database(DATABASE).await, Code::Unknown, "could not get loggedin user data", "");
    refused(owner.delete_database(DATABASE).await, Code::Unknown, "cannot delete an open database", "");
    writer.set("k", "v").await.unwrap();

    owner.unload(DATABASE).await.unwrap();
    refused(writer.delete_database(DATABASE).await, Code::Unknown, &not_yours(DATABASE), "");
    let selected = Client::on(&node, DATABASE).await;
    owner.delete_database(DATABASE).await.unwrap();
    refused(admin.delete_database(DATABASE).await, Code::Unknown, "database does not exist", "");
    refused(admin.load(DATABASE).await, Code::Unknown, "database does not exist", "");
    refused(selected.get("k").await, Code::Unknown, "database does not exist", "");
    refused(selected.settings().await, Code::Unknown, "database does not exist", "");
    refused(admin.select(DATABASE).await, Code::NotFound, "'orders' does not exist", "3F000");
    assert!(admin.listed(DATABASE).await.is_none());
    // Those who had rights in it have none any more, and lost their sessions with them; other rights stay.
    refused(writer.get("k").await, Code::PermissionDenied, "session not found", "08001");
    let opened = Client::session(&node, "writer", PASSWORD, DATABASE).await;
    assert_eq!(told(&opened.err().unwrap()).1, "database does not exist");
    Client::session(&node, "owner", PASSWORD, "other").await.unwrap();
    // The name begins anew, also for them.
    admin.create(DATABASE).await;
    let opened = Client::session(&node, "writer", PASSWORD, DATABASE).await;
    let text = "Logged in user does not have permission on this database";
    assert_eq!(told(&opened.err().unwrap()), (Code::PermissionDenied, text.to_owned(), String::new()));
    let fresh = Client::on(&node, DATABASE).await;
    assert_eq!(fresh.state().await.unwrap().tx_id, 0);
    refused(fresh.get("k").await, Code::Unknown, "tbtree: key not found", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_removes_the_old_and_serves_the_new() {
    let mut cluster = Cluster::start(Duration::from_secs(10)).await;
    let admin = Client::on(cluster.node(0), "defaultdb").await;
    admin.create(DATABASE).await;
    let client = Client::on(cluster.node(0), DATABASE).await;
    for n in 0..20 {
        client.set(&format!("old-{n}"), "the old secret").await.unwrap();
    }
    let old = identity(&cluster, 0);
    for n in 0..3 {
        let applied = async || {
            cluster.node(n).groups().group_by_name(DATABASE).is_some() && holds(cluster.disk(n), "the old secret")
        };
        eventually("every node has it", applied).await;
    }
    // It knows the database as one that is loaded, when it is back.
    cluster.stop(2).await;
    admin.unload(DATABASE).await.unwrap();
    admin.delete_database(DATABASE).await.unwrap();
    assert!(!has_folder_of(cluster.disk(0), DATABASE), "gone when the call has answered");
    eventually("the others remove it too", async || !has_folder_of(cluster.disk(1), DATABASE)).await;
    admin.create(DATABASE).await;
    let new = identity(&cluster, 0);
    assert!(new.0 > old.0 && new.1 != old.1, "{old:?} {new:?}");
    let fresh = Client::on(cluster.node(0), DATABASE).await;
    assert_eq!(fresh.set("new", "value").await.unwrap().id, 1);
    assert!(has_folder_of(cluster.disk(2), DATABASE));

    cluster.start_node(2).await;
    eventually("the node that was away removes the old", async || !holds(cluster.disk(2), "the old secret")).await;
    assert!(cluster.node(2).wait_ready(Instant::now() + PATIENCE).await);
    eventually("and serves the new", async || {
        let group = cluster.node(2).groups().group_by_name(DATABASE);
        group.is_some_and(|group| group.id() == new.0 && group.database().applied().tx.get() == 1)
    })
    .await;
    assert_eq!(folders(cluster.disk(2)), folders(cluster.disk(0)));
    let there = Client::on(cluster.node(2), DATABASE).await;
    assert_eq!(there.get("new").await.unwrap().value, "value");
    refused(there.get("old-1").await, Code::Unknown, "tbtree: key not found", "");
    assert_eq!(there.state().await.unwrap(), fresh.state().await.unwrap());
    let (disks, texts) = ([0, 1, 2].map(|n| cluster.disk(n)), ["the old secret", "old-7"]);
    // What systemdb keeps of it is that it was, and who ended it.
    assert!(disks.iter().all(|disk| !holds(disk, texts[0]) && !holds(disk, texts[1])));
    assert!(disks.iter().all(|disk| holds(disk, r#""deleted_by":"immudb""#)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_a_crash_cut_is_finished_and_strangers_stay() {
    let mut cluster = Cluster::start(Duration::from_secs(10)).await;
    let admin = Client::on(cluster.node(0), "defaultdb").await;
    admin.create(DATABASE).await;
    Client::on(cluster.node(0), DATABASE).await.set("k", "the old secret").await.unwrap();
    let id = identity(&cluster, 0).1;
    admin.unload(DATABASE).await.unwrap();
    eventually("it is closed there too", async || cluster.node(2).groups().group_by_name(DATABASE).is_none()).await;
    cluster.stop(2).await;
    admin.delete_database(DATABASE).await.unwrap();
    // As if the machine had gone down in the middle of it.
    let disk = cluster.disk(2).clone();
    let folder: PathBuf = Path::new("/data/databases").join(format!("{DATABASE}.{}", &id.to_string()[..8]));
    let faulty = FaultyVfs::new(Arc::new(disk.clone()));
    faulty.fail_after(9, Fault::Crash);
    remove(&faulty, &folder, id).unwrap_err();
    disk.crash(Crash::PowerLoss);
    assert!(disk.exists(&folder.join("removed")).unwrap(), "{:?}", disk.read_dir(&folder));
    // Folders of nobody, one of them with the name of the deleted database.
    for strange in ["strange", "orders.00000000", "other.11111111"] {
        disk.create_dir_all(&Path::new("/data/databases").join(strange)).unwrap();
    }
    cluster.start_node(2).await;
    eventually("the rest is removed", async || !disk.exists(&folder).unwrap()).await;
    assert!(cluster.node(2).wait_ready(Instant::now() + PATIENCE).await);
    let left = folders(&disk);
    for strange in ["strange", "orders.00000000", "other.11111111"] {
        assert!(left.iter().any(|name| name == strange), "{left:?}");
    }
    assert!(!holds(&disk, "the old secret"));
}

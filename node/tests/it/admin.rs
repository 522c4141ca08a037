//! Administration of databases: settings, the index, and sessions by their other name.

use alhambra_proto::model;
use alhambra_proto::model::authorization_service_client::AuthorizationServiceClient;
use alhambra_proto::schema;
use tonic::{Code, Response, Status};

use crate::support::*;

const DATABASE: &str = "orders";

fn truth(value: bool) -> Option<schema::NullableBool> {
    Some(schema::NullableBool { value })
}

fn number(value: u32) -> Option<schema::NullableUint32> {
    Some(schema::NullableUint32 { value })
}

impl Client {
    pub async fn create(&self, name: &str) {
        self.create_with(name, None).await;
    }

    pub async fn create_with(&self, name: &str, settings: Option<schema::DatabaseNullableSettings>) {
        let request = schema::CreateDatabaseRequest { name: name.to_owned(), settings, if_not_exists: false };
        self.inner.clone().create_database_v2(self.request(request)).await.unwrap();
    }

    pub async fn update(
        &self,
        database: &str,
        settings: schema::DatabaseNullableSettings,
    ) -> Result<schema::DatabaseNullableSettings, Status> {
        let request = schema::UpdateDatabaseRequest { database: database.to_owned(), settings: Some(settings) };
        let reply = self.inner.clone().update_database_v2(self.request(request)).await?.into_inner();
        assert_eq!(reply.database, database);
        Ok(reply.settings.unwrap())
    }

    pub async fn settings(&self) -> Result<schema::DatabaseNullableSettings, Status> {
        let request = self.request(schema::DatabaseSettingsRequest {});
        Ok(self.inner.clone().get_database_settings_v2(request).await?.into_inner().settings.unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_change_one_by_one_and_come_into_force() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    admin.create(DATABASE).await;
    let client = Client::on(&node, DATABASE).await;
    let before = client.settings().await.unwrap();
    assert_eq!((before.sync_frequency.unwrap().value, before.max_key_len), (20, number(1024)));
    assert!(client.set("k", "v").await.unwrap().ts > 0);

    let change = schema::DatabaseNullableSettings {
        exclude_commit_time: truth(true),
        max_concurrency: number(7),
        ..Default::default()
    };
    let changed = admin.update(DATABASE, change.clone()).await.unwrap();
    let expected = schema::DatabaseNullableSettings {
        exclude_commit_time: change.exclude_commit_time,
        max_concurrency: change.max_concurrency,
        ..before.clone()
    };
    assert_eq!(changed, expected, "nothing else changes");
    assert_eq!(client.settings().await.unwrap(), expected);
    assert_eq!(client.set("k", "v").await.unwrap().ts, 0, "commit times are left out at once");

    // The deprecated calls speak of the same settings.
    let old = client.inner.clone().get_database_settings(client.request(())).await.unwrap().into_inner();
    assert_eq!((old.database_name.as_str(), old.exclude_commit_time, old.max_key_len), (DATABASE, true, 1024));
    let request = schema::DatabaseSettings { exclude_commit_time: false, ..old };
    admin.inner.clone().update_database(admin.request(request)).await.unwrap();
    assert_eq!(client.settings().await.unwrap().exclude_commit_time, truth(false));
    assert!(client.set("k", "v").await.unwrap().ts > 0, "commit times are back at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_change_is_refused_and_nothing_else_changes_with_it() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    admin.create(DATABASE).await;
    let client = Client::on(&node, DATABASE).await;
    let before = client.settings().await.unwrap();
    type Settings = schema::DatabaseNullableSettings;
    let some = || Settings { max_concurrency: number(9), ..Default::default() };
    let node_size = schema::IndexNullableSettings { max_node_size: number(1), ..Default::default() };
    for (change, name) in [
        (Settings { file_size: number(1), ..some() }, "file size"),
        (Settings { max_key_len: number(1), ..some() }, "max key length"),
        (Settings { max_value_len: number(1), ..some() }, "max value length"),
        (Settings { max_tx_entries: number(1), ..some() }, "max number of entries per transaction"),
        (Settings { embedded_values: truth(true), ..some() }, "embedded values"),
        (Settings { prealloc_files: truth(true), ..some() }, "prealloc files"),
        (Settings { index_settings: Some(node_size), ..some() }, "max node size"),
    ] {
        let text = format!(
            "rpc error: code = InvalidArgument desc = illegal arguments: {name} can not be changed after database creation \
             ('{DATABASE}')"
        );
        refused(admin.update(DATABASE, change).await, Code::InvalidArgument, &text, "");
    }
    let impossible = Settings { read_tx_pool_size: number(0), ..some() };
    let text = "rpc error: code = InvalidArgument desc = illegal arguments: rpc error: code = InvalidArgument desc = illegal \
                arguments: invalid read tx pool size (0) for database 'orders'";
    refused(admin.update(DATABASE, impossible).await, Code::InvalidArgument, text, "");
    for reserved in ["defaultdb", "systemdb"] {
        refused(admin.update(reserved, some()).await, Code::Internal, "database is reserved", "XX000");
    }
    for absent in ["absent", ""] {
        refused(admin.update(absent, some()).await, Code::Unknown, "database does not exist", "");
    }
    let request = schema::UpdateDatabaseRequest { database: DATABASE.to_owned(), settings: None };
    let refusal = admin.inner.clone().update_database_v2(admin.request(request)).await;
    refused(refusal, Code::InvalidArgument, "illegal arguments", "");
    let nobody = Client::anonymous(&node).await;
    refused(nobody.update(DATABASE, some()).await, Code::Unknown, "could not get loggedin user data", "");
    // The same values are no change.
    admin.update(DATABASE, Settings { max_key_len: number(1024), ..Default::default() }).await.unwrap();
    assert_eq!(client.settings().await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_change_settings_at_once_lose_nothing() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    admin.create(DATABASE).await;
    let changes = (0..12u32).map(|n| {
        let admin = admin.clone();
        async move {
            let one = schema::DatabaseNullableSettings::default();
            let change = match n % 3 {
                0 => schema::DatabaseNullableSettings { max_concurrency: number(100 + n), ..one },
                1 => schema::DatabaseNullableSettings { max_io_concurrency: number(100 + n), ..one },
                _ => schema::DatabaseNullableSettings { tx_log_cache_size: number(100 + n), ..one },
            };
            admin.update(DATABASE, change.clone()).await.unwrap();
        }
    });
    futures::future::join_all(changes).await;
    let after = Client::on(&node, DATABASE).await.settings().await.unwrap();
    for changed in [after.max_concurrency, after.max_io_concurrency, after.tx_log_cache_size] {
        assert!((100..112).contains(&changed.unwrap().value), "{changed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_is_flushed_and_compacted_by_order() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    for n in 0..50 {
        client.set(&format!("k{n}"), "v").await.unwrap();
    }
    let flush = async |cleanup_percentage: f32| {
        let request = client.request(schema::FlushIndexRequest { cleanup_percentage, synced: true });
        client.inner.clone().flush_index(request).await.map(Response::into_inner)
    };
    for share in [0.0, 50.0, 100.0] {
        assert_eq!(flush(share).await.unwrap().database, "defaultdb");
    }
    for share in [-0.1, 100.1, f32::NAN, f32::INFINITY] {
        refused(flush(share).await, Code::Unknown, "tbtree: illegal arguments: invalid cleanupPercentage", "");
    }
    let database = node.groups().group_by_name("defaultdb").unwrap().database().clone();
    assert_eq!(database.checkpoint_position(), database.applied().log_id, "everything is in its files");
    let compacted = client.inner.clone().compact_index(client.request(())).await;
    if let Err(status) = compacted {
        assert_eq!(told(&status).1, "tbtree: compaction threshold not yet reached");
    }
    assert!(!database.index_work_due(), "there is nothing left to merge");
    assert_eq!(client.get("k49").await.unwrap().value, "v");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_the_other_service_is_a_session() {
    let node = single().await;
    let mut service = AuthorizationServiceClient::new(channel(&node).await);
    let request = |password: &str| model::OpenSessionRequest {
        username: "immudb".into(),
        password: password.into(),
        database: "DefaultDB".into(),
    };
    refused(service.open_session(request("wrong")).await, Code::Unknown, "invalid user name or password", "08004");
    let opened = service.open_session(request(PASSWORD)).await.unwrap().into_inner();
    assert_eq!(opened.expiration_timestamp, 0, "there is no limit of age");
    assert!(opened.inactivity_timestamp > 1_700_000_000, "seconds");
    let client = Client::anonymous(&node).await.with("sessionid", opened.session_id);
    client.set("k", "v").await.unwrap();
    service.keep_alive(client.request(model::KeepAliveRequest {})).await.unwrap();
    service.close_session(client.request(model::CloseSessionRequest {})).await.unwrap();
    refused(client.get("k").await, Code::PermissionDenied, "session not found", "08001");
    let closed = service.close_session(model::CloseSessionRequest {}).await;
    refused(closed, Code::Unknown, "no session auth data provided", "28000");
}

//! The traps of the protocol sheet (section 21), each with a test that would fail if we fell into it. Those that other tests
//! show already are listed in [`SHOWN`] with the place; the others are here.

use std::time::Duration;

use alhambra_proto::schema;
use prost::Message;
use tonic::{Code, Status};

use crate::cluster::Cluster;
use crate::support::*;

/// Number, file and name of the test.
const SHOWN: &[(u8, &str, &str)] = &[
    (1, "tests/it/traps.rs", "trap_01_codes_and_texts_are_the_originals"),
    (2, "tests/it/verified.rs", "a_state_that_the_ledger_does_not_have_is_refused_in_the_words_of_each_call"),
    (3, "tests/it/traps.rs", "trap_03_a_session_wins_over_a_token_and_other_headers_are_ignored"),
    (4, "tests/it/sessions.rs", "an_unknown_session_breaks_every_unary_call_and_an_empty_one_too"),
    (4, "tests/it/streams.rs", "streams_find_out_about_sessions_themselves"),
    (5, "tests/it/traps.rs", "trap_05_only_opening_a_session_lowers_the_case"),
    (6, "tests/it/sessions.rs", "use_database_in_a_session_switches_it_and_answers_a_token"),
    (7, "tests/it/kv.rs", "one_request_is_one_transaction_with_exactly_its_entries"),
    (8, "tests/it/traps.rs", "trap_08_headers_are_plain"),
    (9, "tests/it/cluster.rs", "any_node_answers_any_call"),
    (10, "tests/it/traps.rs", "trap_10_a_node_behind_waits_and_what_does_not_exist_is_refused"),
    (14, "tests/it/streams.rs", "stream_replies_are_aligned_and_requests_are_cut_anywhere"),
    (15, "src/method.rs", "the_table_has_exactly_the_calls_of_the_descriptors"),
    (17, "tests/it/traps.rs", "trap_17_times_have_their_units"),
    (18, "tests/it/permissions.rs", "every_call_as_every_kind_of_user_is_as_the_sheet_says"),
    (19, "tests/it/reads.rs", "histories_have_every_version"),
    (20, "src/service/zset.rs", "negative_scores_follow_all_others"),
    (21, "tests/it/traps.rs", "trap_21_a_short_page_is_not_the_end"),
    (22, "tests/it/kv.rs", "the_limits_of_a_database_are_its_own"),
    (23, "tests/it/traps.rs", "trap_23_the_version_is_three_numbers"),
    (24, "tests/it/traps.rs", "trap_24_each_call_has_its_own_words_for_an_unknown_database"),
    (26, "tests/it/users.rs", "every_change_of_a_user_ends_its_sessions_and_tokens"),
    (26, "tests/it/users.rs", "a_change_through_one_node_ends_sessions_and_tokens_on_all"),
    (27, "tests/it/users.rs", "grant_and_revoke_reset_all_sql_privileges"),
    (28, "tests/it/traps.rs", "trap_28_no_wait_still_waits_for_the_commit"),
    (29, "tests/it/rest.rs", "what_rest_writes_grpc_reads_and_the_other_way_round"),
    (30, "src/service/zset.rs", "upward_both_bounds_count_and_downward_the_greatest_does_not"),
    (31, "tests/it/admin.rs", "the_index_is_flushed_and_compacted_by_order"),
];

/// Traps of SQL, which is not built yet.
const SQL: [u8; 5] = [11, 12, 13, 16, 25];

#[test]
fn every_trap_has_a_test_or_is_of_sql() {
    for number in 1..=31 {
        let shown = SHOWN.iter().filter(|(trap, ..)| *trap == number).count();
        assert_eq!(shown > 0, !SQL.contains(&number), "trap {number}");
    }
    for (trap, file, name) in SHOWN {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let source = std::fs::read_to_string(&path).unwrap();
        let places: Vec<_> = source.match_indices(&format!("fn {name}()")).collect();
        assert_eq!(places.len(), 1, "trap {trap}: {name} in {file}");
        let before = &source[source[..places[0].0].trim_end().rfind("\n\n").unwrap_or(0)..places[0].0];
        assert!(before.contains("test]") || before.contains("test("), "trap {trap}: {name} is no test");
    }
}

fn plain(status: &Status) {
    assert!(status.details().is_empty(), "{status:?} has details");
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_01_codes_and_texts_are_the_originals() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let status = client.get("absent").await.unwrap_err();
    assert!(status.code() == Code::Unknown && status.message().ends_with("key not found"), "{status:?}");
    plain(&status);
    client.set("k", "v").await.unwrap();
    let beyond = schema::TxRequest { tx: 99, ..Default::default() };
    let status = client.inner.clone().tx_by_id(client.request(beyond)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unknown, "tx not found"));
    plain(&status);
    let status = Client::anonymous(&node).await.open("immudb", "wrong", "defaultdb").await.unwrap_err();
    refused::<()>(Err(status.clone()), Code::Unknown, "invalid user name or password", &told(&status).2);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_03_a_session_wins_over_a_token_and_other_headers_are_ignored() {
    let node = single().await;
    let session = Client::on(&node, "defaultdb").await;
    // What Go sends with everything, what Java sends with everything, and a token of somebody else.
    for (header, value) in
        [("authorization", "Bearer "), ("transactionid", "c8a2t6qg8h8h7q5m8q0g"), ("authorization", "x")]
    {
        let both = session.with(header, value);
        both.set("k", "v").await.unwrap();
        assert_eq!(&*both.get("k").await.unwrap().value, b"v", "{header}");
    }
    let empty = Client::anonymous(&node).await.with("authorization", "Bearer ");
    empty.inner.clone().health(empty.request(())).await.unwrap();
    let mut again = empty.clone();
    again.open("immudb", PASSWORD, "defaultdb").await.unwrap();
    assert_eq!(empty.get("k").await.unwrap_err().message(), "not logged in");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_05_only_opening_a_session_lowers_the_case() {
    let node = single().await;
    let client = Client::on(&node, "DefaultDB").await;
    assert_eq!(client.state().await.unwrap().db, "defaultdb");
    let other = schema::Database { database_name: "DefaultDB".into() };
    let status = client.inner.clone().use_database(client.request(other)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "'DefaultDB' does not exist"));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_08_headers_are_plain() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    for n in 1..=5_u64 {
        let header = client.set("k", "v").await.unwrap();
        assert_eq!((header.id, header.version, header.bl_tx_id), (n, 1, n - 1));
        assert!(header.metadata.is_none_or(|metadata| metadata.encoded_len() == 0), "SDKs cannot hash it");
    }
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_10_a_node_behind_waits_and_what_does_not_exist_is_refused() {
    let cluster = Cluster::start(Duration::from_secs(10)).await;
    let mut clients = Vec::new();
    for n in 0..3 {
        clients.push(Client::on(cluster.node(n), "defaultdb").await);
    }
    for round in 0..20 {
        let writer = &clients[round % 3];
        let tx = writer.set("k", &round.to_string()).await.unwrap().id;
        for reader in &clients {
            // The floor that an SDK carries to another node at once, also with a read that looks at nothing newer.
            let reader = reader.with("alhambra-read-level", "local");
            let request = schema::KeyRequest { key: bytes("k"), since_tx: tx, ..Default::default() };
            assert_eq!(reader.get_of(request).await.unwrap().tx, tx);
            let beyond = schema::KeyRequest { key: bytes("k"), since_tx: tx + 1, ..Default::default() };
            let status = reader.get_of(beyond).await.unwrap_err();
            assert!(status.message().starts_with("illegal arguments"), "{status:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_17_times_have_their_units() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let now_s = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    let is_now = |seconds: i64| (now_s - 60..now_s + 600).contains(&seconds);
    assert!(is_now(client.set("k", "v").await.unwrap().ts), "seconds");
    let health = client.inner.clone().database_health(client.request(())).await.unwrap().into_inner();
    assert!(is_now(health.last_request_completed_at / 1000), "milliseconds");
    let info = client.inner.clone().server_info(client.request(schema::ServerInfoRequest {})).await.unwrap();
    assert!(is_now(info.into_inner().started_at), "seconds");
    let request = schema::DatabaseListRequestV2::default();
    let list = client.inner.clone().database_list_v2(client.request(request)).await.unwrap().into_inner();
    assert!(is_now(list.databases[0].created_at as i64), "seconds");
    client.set_all(vec![expiring("gone", "v", now_s - 1), expiring("there", "v", now_s + 3600)]).await.unwrap();
    assert!(client.get("gone").await.is_err() && client.get("there").await.is_ok(), "seconds");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_21_a_short_page_is_not_the_end() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    for key in ["t1", "t2"] {
        client.set(key, key).await.unwrap();
    }
    for (key, target) in [("a1", "t1"), ("a2", "t2"), ("a3", "t2")] {
        let (key, referenced_key) = (bytes(key), bytes(target));
        let request = schema::ReferenceRequest { key, referenced_key, ..Default::default() };
        client.inner.clone().set_reference(client.request(request)).await.unwrap();
    }
    client.delete(&["t1"]).await.unwrap();
    let page = async |offset: u64, limit: u64| {
        let request = schema::ScanRequest { prefix: bytes("a"), offset, limit, ..Default::default() };
        keys(&client.scan(request).await.unwrap()).len()
    };
    assert_eq!(page(0, 1).await, 0, "the reference that leads nowhere used the page up");
    assert_eq!(page(1, 1).await, 1, "and more follows");
    assert_eq!(page(0, 0).await, 2);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_23_the_version_is_three_numbers() {
    let node = single().await;
    let client = Client::anonymous(&node).await;
    let version = client.inner.clone().health(client.request(())).await.unwrap().into_inner().version;
    // The original has a commit after a dash, or nothing.
    let numbers = version.split('-').next().unwrap();
    let numbers: Vec<u32> = numbers.split('.').map(|part| part.parse().unwrap()).collect();
    assert_eq!(numbers, [1, 11, 1]);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_24_each_call_has_its_own_words_for_an_unknown_database() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let said = |status: Status| (status.code(), status.message().to_owned());
    let nowhere = || schema::Database { database_name: "nowhere".into() };
    let used = client.inner.clone().use_database(client.request(nowhere())).await.unwrap_err();
    assert_eq!(said(used), (Code::NotFound, "'nowhere' does not exist".into()));
    let opened = Client::anonymous(&node).await.open("immudb", PASSWORD, "nowhere").await.unwrap_err();
    assert_eq!(said(opened), (Code::Unknown, "database does not exist".into()));
    let settings = Some(schema::DatabaseNullableSettings::default());
    let update = schema::UpdateDatabaseRequest { database: "nowhere".into(), settings };
    let updated = client.inner.clone().update_database_v2(client.request(update)).await.unwrap_err();
    assert_eq!(said(updated), (Code::Unknown, "database does not exist".into()));
    let (username, database) = ("eve".to_owned(), "nowhere".to_owned());
    let grant = schema::ChangePermissionRequest { action: 0, username, database: database.clone(), permission: 1 };
    let granted = client.inner.clone().change_permission(client.request(grant)).await.unwrap_err();
    assert_eq!(said(granted), (Code::InvalidArgument, "database does not exist".into()));
    let (user, password) = (bytes("eve"), bytes("Pass-1234"));
    let create = schema::CreateUserRequest { user, password, permission: 1, database };
    let created = client.inner.clone().create_user(client.request(create)).await.unwrap_err();
    assert_eq!(said(created), (Code::Unknown, "database nowhere does not exist".into()));
    // A token comes with a session, too.
    let here = schema::Database { database_name: "defaultdb".into() };
    assert!(!client.inner.clone().use_database(client.request(here)).await.unwrap().into_inner().token.is_empty());
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_28_no_wait_still_waits_for_the_commit() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    for n in 1..=50 {
        let request = schema::SetRequest { k_vs: vec![kv("k", &n.to_string())], no_wait: true, ..Default::default() };
        let header = client.inner.clone().set(client.request(request)).await.unwrap().into_inner();
        assert_eq!(client.state().await.unwrap().tx_id, header.id, "it is committed");
        assert_eq!(header.id, n);
    }
    // Reads that know the flag wait nevertheless: the newest is there.
    let scan = schema::ScanRequest { prefix: bytes("k"), since_tx: 50, no_wait: true, ..Default::default() };
    assert_eq!(client.scan(scan).await.unwrap()[0].tx, 50);
    let add = schema::ZAddRequest { set: bytes("s"), score: 1.0, key: bytes("k"), no_wait: true, ..Default::default() };
    assert_eq!(client.inner.clone().z_add(client.request(add)).await.unwrap().into_inner().id, 51);
    let scan = schema::ZScanRequest { set: bytes("s"), since_tx: 51, no_wait: true, ..Default::default() };
    let found = client.inner.clone().z_scan(client.request(scan)).await.unwrap().into_inner().entries;
    assert_eq!(found[0].entry.as_ref().unwrap().tx, 50);
    let by_id = schema::TxRequest { tx: 51, since_tx: 51, no_wait: true, ..Default::default() };
    assert!(client.inner.clone().tx_by_id(client.request(by_id)).await.unwrap().into_inner().header.is_some());
    node.shutdown().await;
}

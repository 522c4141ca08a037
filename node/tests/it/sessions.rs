//! Logging in and out: sessions, tokens, the order of the checks, and the UUID in every reply.

use alhambra_node::Node;
use alhambra_proto::model;
use alhambra_proto::model::authorization_service_client::AuthorizationServiceClient;
use alhambra_proto::schema;
use alhambra_storage::vfs::mem::MemVfs;
use tokio::time::Instant;
use tonic::Code;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn opening_a_session_checks_in_order_and_the_uuid_is_in_every_reply() {
    let node = single().await;
    let mut client = Client::anonymous(&node).await;
    let denied = "invalid user name or password";
    refused(client.open("immudb", "wrong", "defaultdb").await, Code::Unknown, denied, "08004");
    refused(client.open("nobody", PASSWORD, "defaultdb").await, Code::Unknown, denied, "08004");
    refused(client.open("immudb", "", "nosuch").await, Code::Unknown, denied, "08004");
    refused(client.open("immudb", PASSWORD, "nosuch").await, Code::Unknown, "database does not exist", "");
    refused(client.open("immudb", PASSWORD, "").await, Code::Unknown, "database does not exist", "");

    let opened = client.open("immudb", PASSWORD, "DefaultDB").await.unwrap();
    assert_eq!(opened.server_uuid.len(), 20);
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    assert!(opened.session_id.len() < 512 && opened.session_id.bytes().all(safe), "{}", opened.session_id);
    let client = client.with("sessionid", &opened.session_id);
    assert_eq!(client.state().await.unwrap().db, "defaultdb");

    let reply = client.inner.clone().health(client.request(())).await.unwrap();
    assert_eq!(reply.metadata().get("immudb-uuid").unwrap(), opened.server_uuid.as_str());
    assert_eq!(reply.metadata().get("alhambra-version").unwrap(), env!("CARGO_PKG_VERSION"));
    assert!(reply.get_ref().status && reply.get_ref().version.starts_with("1.11.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_session_breaks_every_unary_call_and_an_empty_one_too() {
    let node = single().await;
    let anonymous = Client::anonymous(&node).await;
    for (value, code, text, details) in [
        ("nosuch", Code::PermissionDenied, "session not found", "08001"),
        ("", Code::Unknown, "no sessionID provided", "28000"),
    ] {
        let client = anonymous.with("sessionid", value);
        let mut inner = client.inner.clone();
        refused(inner.health(client.request(())).await, code, text, details);
        refused(inner.server_info(client.request(schema::ServerInfoRequest {})).await, code, text, details);
        refused(inner.keep_alive(client.request(())).await, code, text, details);
        refused(inner.login(client.request(schema::LoginRequest::default())).await, code, text, details);
        refused(inner.list_users(client.request(())).await, code, text, details);
        refused(client.get("k").await, code, text, details);
        let mut other = AuthorizationServiceClient::new(channel(&node).await);
        refused(other.open_session(client.request(model::OpenSessionRequest::default())).await, code, text, details);
        // The session beats a token, also an empty one.
        refused(client.with("authorization", "Bearer ").get("k").await, code, text, details);
    }
    // Only OpenSession does not look at it.
    let mut stale = anonymous.with("sessionid", "nosuch");
    stale.open("immudb", PASSWORD, "defaultdb").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_when_closed_or_idle_and_their_number_is_bounded() {
    let mut config = config();
    config.max_sessions = 2;
    config.session_timeout = std::time::Duration::from_millis(200);
    config.sessions_guard_check_interval = std::time::Duration::from_millis(100);
    let node = single_with(config).await;
    let client = Client::on(&node, "defaultdb").await;
    client.inner.clone().keep_alive(client.request(())).await.unwrap();
    client.inner.clone().close_session(client.request(())).await.unwrap();
    refused(client.get("k").await, Code::PermissionDenied, "session not found", "08001");

    let idle = Client::on(&node, "defaultdb").await;
    eventually("the end of the idle session", || async {
        page(&node, "/metrics").await.1.lines().any(|line| line == "immudb_active_sessions 0")
    })
    .await;
    refused(idle.state().await, Code::PermissionDenied, "session not found", "08001");

    let mut client = Client::anonymous(&node).await;
    let tried = async {
        loop {
            if let Err(status) = client.open("immudb", PASSWORD, "defaultdb").await {
                return status;
            }
        }
    };
    let status = tokio::time::timeout(PATIENCE, tried).await.unwrap();
    let text = "can not create new session: max sessions number reached";
    assert_eq!(told(&status), (Code::Internal, text.into(), "XX000".into()));
    let cause = alhambra_proto::code::Details::of(&status).unwrap().cause;
    assert_eq!(cause, "can not create new session");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_a_session_say_what_is_missing() {
    let node = single().await;
    let anonymous = Client::anonymous(&node).await;
    for client in [anonymous.clone(), anonymous.with("authorization", "Bearer "), anonymous.with("authorization", "")] {
        let mut inner = client.inner.clone();
        inner.health(client.request(())).await.unwrap();
        inner.server_info(client.request(schema::ServerInfoRequest {})).await.unwrap();
        let none = "no session auth data provided";
        refused(inner.keep_alive(client.request(())).await, Code::Unknown, none, "28000");
        refused(inner.close_session(client.request(())).await, Code::Unknown, none, "28000");
        refused(client.get("k").await, Code::Unknown, "not logged in", "28000");
        refused(client.set("k", "v").await, Code::Unknown, "not logged in", "28000");
        refused(inner.logout(client.request(())).await, Code::Unknown, "not logged in", "28000");
        let database = schema::Database { database_name: "defaultdb".into() };
        refused(inner.use_database(client.request(database.clone())).await, Code::Unauthenticated, "Please login", "");
        refused(inner.database_list(client.request(())).await, Code::Unknown, "please login", "");
        let list = schema::DatabaseListRequestV2 {};
        refused(inner.database_list_v2(client.request(list)).await, Code::Unknown, "please login", "");
        let text = "could not get loggedin user data";
        refused(inner.create_database(client.request(database)).await, Code::Unknown, text, "");
    }
    for token in ["garbage", "bearer x", "Bearer x"] {
        let client = anonymous.with("authorization", token);
        refused(client.get("k").await, Code::Internal, "invalid token", "XX000");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_select_databases_and_end_with_the_last_logout() {
    let mut config = config();
    config.admin_password = Some(alhambra_node::config::Secret::new("immudb"));
    let node = single_with(config).await;
    let anonymous = Client::anonymous(&node).await;
    let mut inner = anonymous.inner.clone();
    let login = schema::LoginRequest { user: bytes("immudb"), password: bytes("immudb") };
    let logged_in = inner.login(anonymous.request(login.clone())).await.unwrap().into_inner();
    assert_eq!(logged_in.warning, "immudb user has the default password: please change it to ensure proper security");
    let wrong = schema::LoginRequest { user: bytes("immudb"), password: bytes("x") };
    refused(inner.login(anonymous.request(wrong)).await, Code::Unknown, "invalid user name or password", "08004");

    // While there is nothing but the default database, a fresh token selects it; the prefix is optional.
    let first = anonymous.with("authorization", &logged_in.token);
    first.set("k", "v").await.unwrap();
    anonymous.with("authorization", format!("Bearer {}", logged_in.token)).get("k").await.unwrap();
    refused(inner.keep_alive(first.request(())).await, Code::Unknown, "no session auth data provided", "28000");

    let name = schema::Database { database_name: "other".into() };
    inner.create_database(first.request(name.clone())).await.unwrap();
    let second = inner.login(anonymous.request(login)).await.unwrap().into_inner().token;
    let second = anonymous.with("authorization", format!("Bearer {second}"));
    refused(second.get("k").await, Code::Unknown, "please select a database first", "");
    let used = inner.use_database(second.request(name)).await.unwrap().into_inner().token;
    let used = anonymous.with("authorization", format!("Bearer {used}"));
    assert_eq!(used.state().await.unwrap().db, "other");
    let unknown = schema::Database { database_name: "Other".into() };
    refused(inner.use_database(used.request(unknown)).await, Code::NotFound, "'Other' does not exist", "3F000");

    inner.logout(second.request(())).await.unwrap();
    used.state().await.unwrap();
    inner.logout(first.request(())).await.unwrap();
    refused(used.state().await, Code::Unknown, "not logged in", "28000");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_refused_in_the_words_of_each_call() {
    let clock = Shifted::new();
    let env = alhambra_raft::env::Env { clock: clock.clone(), ..env(&MemVfs::new()) };
    let node = Node::start(config(), env).await.unwrap();
    assert!(node.wait_ready(Instant::now() + PATIENCE).await);
    let anonymous = Client::anonymous(&node).await;
    let login = schema::LoginRequest { user: bytes("immudb"), password: bytes(PASSWORD) };
    let token = anonymous.inner.clone().login(anonymous.request(login)).await.unwrap().into_inner().token;
    let client = anonymous.with("authorization", format!("Bearer {token}"));
    client.set("k", "v").await.unwrap();
    // A token lives for a day.
    clock.days(2);
    const EXPIRED: &str = "token has expired: token validation error";
    let mut inner = client.inner.clone();
    refused(client.get("k").await, Code::PermissionDenied, EXPIRED, "");
    refused(client.set("k", "w").await, Code::PermissionDenied, EXPIRED, "");
    refused(client.state().await, Code::PermissionDenied, EXPIRED, "");
    refused(inner.list_users(client.request(())).await, Code::Unknown, EXPIRED, "");
    refused(inner.logout(client.request(())).await, Code::Unknown, EXPIRED, "");
    refused(client.select("defaultdb").await, Code::PermissionDenied, EXPIRED, "");
    let listed = inner.database_list_v2(client.request(schema::DatabaseListRequestV2 {})).await;
    refused(listed, Code::Unknown, "please login", "");
    refused(inner.database_list(client.request(())).await, Code::Unknown, "please login", "");
    refused(client.load("defaultdb").await, Code::Unknown, "could not get loggedin user data", "");
    clock.days(0);
    assert_eq!(client.get("k").await.unwrap().value, "v", "nothing was written, and nobody was logged out");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn use_database_in_a_session_switches_it_and_answers_a_token() {
    let node = single().await;
    let client = Client::on(&node, "defaultdb").await;
    let mut inner = client.inner.clone();
    let name = schema::Database { database_name: "second".into() };
    inner.create_database(client.request(name.clone())).await.unwrap();
    let token = inner.use_database(client.request(name)).await.unwrap().into_inner().token;
    assert_eq!(client.state().await.unwrap().db, "second");
    let anonymous = Client::anonymous(&node).await;
    let by_token = anonymous.with("authorization", format!("Bearer {token}"));
    assert_eq!(by_token.state().await.unwrap().db, "second", "a token of a session works by itself");

    // systemdb may be read by the administrator, and nothing more.
    let system = schema::Database { database_name: "systemdb".into() };
    inner.use_database(client.request(system)).await.unwrap();
    client.state().await.unwrap();
    refused(client.set("k", "v").await, Code::Internal, "permission denied", "XX000");
    refused(inner.database_health(client.request(())).await, Code::Internal, "permission denied", "XX000");
}

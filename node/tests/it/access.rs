//! Authentication off, and maintenance mode: every call compared with the protocol sheet (4, 4.4, 6, 13, 14), who is served, and
//! that a node with authentication on gives nothing away because another one has it off.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use alhambra_node::claim::{Claim, Kind};
use alhambra_node::config::Secret;
use alhambra_node::keys::NodeKey;
use alhambra_node::{Config, Env, Node, NodeError, NodeHandle};
use alhambra_proto::schema;
use alhambra_raft::env::{BoxIo, Listener, Net};
use alhambra_storage::vfs::mem::MemVfs;
use bytes::Bytes;
use futures::future::BoxFuture;
use prost::Message;
use serde_json::json;
use tokio::time::{Instant, timeout};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::cluster::Cluster;
use crate::permissions::{DATABASE, Needs, SHEET, SQL, has_secret, message, populate, raw};
use crate::rest::{b64, send};
use crate::support::*;

const AUTH_DISABLED: &str = "server is running with authentication disabled, please enable authentication to login";
const ONLY_WITH_AUTH: &str = "this command is available only with authentication on";
const LOCAL_ONLY: &str = "server has authentication disabled: only local connections are accepted";

/// Code, text, and the code in the details or "".
type Refusal = (Code, &'static str, &'static str);

pub fn off() -> Config {
    let mut config = config();
    config.auth = false;
    config
}

pub fn maintenance() -> Config {
    let mut config = off();
    config.maintenance = true;
    config
}

pub async fn start(config: Config, disk: &MemVfs) -> NodeHandle {
    let node = Node::start(config, env(disk)).await.expect("the node starts");
    assert!(node.wait_ready(Instant::now() + PATIENCE).await, "{:?}", node.groups().ready());
    node
}

/// A disk with the databases and users of the permission tests.
pub async fn populated_disk() -> MemVfs {
    let disk = MemVfs::new();
    let node = start(config(), &disk).await;
    populate(&node).await;
    node.shutdown().await;
    disk
}

async fn use_database(client: &Client, name: &str) -> Result<String, Status> {
    let request = schema::Database { database_name: name.to_owned() };
    Ok(client.inner.clone().use_database(client.request(request)).await?.into_inner().token)
}

/// Nobody, on a node in maintenance mode, with a database.
pub async fn nobody_on(node: &NodeHandle, database: &str) -> Client {
    let client = Client::anonymous(node).await;
    let token = use_database(&client, database).await.unwrap();
    client.with("authorization", format!("Bearer {token}"))
}

fn headers(client: &Client) -> MetadataMap {
    client.request(()).metadata().clone()
}

/// What every call without a login is refused with, whatever it needs; the inner `Option` is none for calls that are served.
fn always_refused(service: &str, name: &str) -> Option<Option<Refusal>> {
    match (service, name) {
        (_, "OpenSession" | "Login" | "Logout") => Some(Some((Code::Unknown, AUTH_DISABLED, "08P01"))),
        (_, "CloseSession" | "KeepAlive") => Some(Some((Code::Unknown, "no session auth data provided", "28000"))),
        (_, "UpdateAuthConfig" | "UpdateMTLSConfig") => {
            Some(Some((Code::Internal, "operation not supported", "XX000")))
        }
        (_, "DatabaseList" | "DatabaseListV2") => Some(Some((Code::Unknown, ONLY_WITH_AUTH, ""))),
        (_, "Health" | "ServerInfo") => Some(None),
        _ => None,
    }
}

/// Section 4 and 14.
fn refusal_when_off(name: &str, needs: Needs) -> Option<Refusal> {
    match name {
        "ChangePermission" | "ChangeSQLPrivileges" => return Some((Code::Unknown, "not logged in", "28000")),
        "UseDatabase" | "ListUsers" | "CreateUser" | "ChangePassword" | "SetActiveUser" => {
            return Some((Code::Unknown, ONLY_WITH_AUTH, ""));
        }
        _ => {}
    }
    match needs {
        Needs::Read | Needs::Write | Needs::Admin => None,
        Needs::System | Needs::Named => Some((Code::InvalidArgument, "authentication must be on", "")),
        other => panic!("{name} needs {other:?}"),
    }
}

/// Section 4.4: only what is marked M, on the database of the token.
fn refusal_in_maintenance(name: &str, marked: bool, has_token: bool) -> Option<Refusal> {
    if !marked {
        Some((Code::InvalidArgument, "operation not allowed in maintenance mode", ""))
    } else if has_token || name == "UseDatabase" {
        None
    } else {
        Some((Code::Unknown, "please select database first", ""))
    }
}

/// Every call of all services, with what is wrong about its answer.
async fn every_call(
    channel: &Channel,
    headers: &MetadataMap,
    refusal: impl Fn(&str, Needs, bool) -> Option<Refusal>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut tried = BTreeSet::new();
    for (number, method) in alhambra_node::method::ALL.iter().enumerate() {
        let (service, name) = (method.service.rsplit('.').next().unwrap(), method.name);
        let row = SHEET.iter().find(|(row, ..)| service != "DocumentService" && *row == name);
        let expected = match (always_refused(service, name), row) {
            (Some(refusal), _) => refusal,
            (None, Some(&(_, needs, marked))) => refusal(name, needs, marked),
            (None, None) if service == "DocumentService" => refusal(name, Needs::Read, true),
            (None, None) if service == "ClusterService" => refusal(name, Needs::System, false),
            (None, None) => {
                assert!(SQL.contains(&name), "{name} has no row");
                let marked =
                    matches!(name, "SQLQuery" | "UnarySQLQuery" | "ListTables" | "DescribeTable" | "VerifiableSQLGet");
                // Those of transactions need a session and are not built, as the others.
                if marked || name == "SQLExec" { refusal(name, Needs::Read, marked) } else { None }
            }
        };
        let is_built = row.is_some() || ["AuthorizationService", "ClusterService"].contains(&service);
        let messages = if row.is_some() { message(name, number) } else { vec![Bytes::new()] };
        let reply = raw(channel, headers, method.path, messages).await;
        let as_expected = match (&reply, expected) {
            // What is not built is so behind the gate.
            (Err(status), _) if !is_built && status.code() == Code::Unimplemented => true,
            (Err(status), Some((code, text, details))) => told(status) == (code, text.to_owned(), details.to_owned()),
            (Err(status), None) => is_of_the_call_itself(status),
            (Ok(_), expected) => expected.is_none(),
        };
        if !as_expected {
            wrong.push(format!("{service}/{name}: {reply:?}, expected {expected:?}"));
        }
        tried.insert(method.path);
    }
    assert_eq!(tried.len(), 94);
    wrong
}

/// Whether a call was let in and then refused for what it says.
fn is_of_the_call_itself(status: &Status) -> bool {
    let texts = ["illegal arguments", "no entries provided", "empty set", "EOF", "tx not found", "'' does not exist"];
    let begins = ["illegal arguments: ", "tbtree: ", "StreamSet receives", "StreamVerifiableSet received"];
    texts.contains(&status.message())
        || begins.iter().any(|begin| status.message().starts_with(begin))
        || status.message() == "database is NOT a replica"
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_without_authentication_is_as_the_sheet_says() {
    let node = single_with(off()).await;
    let channel = channel(&node).await;
    let nobody = Client::anonymous(&node).await;
    nobody.set("key", "value").await.unwrap();
    for client in [nobody.clone(), nobody.with("authorization", "Bearer "), nobody.with("authorization", "Bearer")] {
        let wrong = every_call(&channel, &headers(&client), |name, needs, _| refusal_when_off(name, needs)).await;
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
    // Whoever calls is on the default database, with everything in it.
    assert_eq!(nobody.state().await.unwrap().db, "defaultdb");
    assert_eq!(&*nobody.get("key").await.unwrap().value, b"value");
    let exported = schema::ExportTxRequest { tx: 1, ..Default::default() }.encode_to_vec();
    let path = "/immudb.schema.ImmuService/exportTx";
    assert!(raw(&channel, &headers(&nobody), path, vec![exported.into()]).await.unwrap().len() > 100);

    // Nobody has a session, and no token counts: a call never goes to another database than the one it was meant for.
    let with = nobody.with("sessionid", "A".repeat(44));
    refused(with.get("key").await, Code::PermissionDenied, "session not found", "08001");
    refused(nobody.with("sessionid", "").get("key").await, Code::Unknown, "no sessionID provided", "28000");
    let get = schema::KeyRequest { key: bytes("key"), ..Default::default() }.encode_to_vec();
    let refusal = raw(&channel, &headers(&with), "/immudb.schema.ImmuService/streamGet", vec![get.into()]).await;
    refused(refusal, Code::InvalidArgument, "no session found", "22023");
    refused(nobody.with("authorization", "Bearer x").get("key").await, Code::Internal, "invalid token", "XX000");
    let (head, _) = page(&node, "/readyz").await;
    assert!(head.contains("200"), "{head}");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_users_count_for_nothing_while_authentication_is_off() {
    let disk = MemVfs::new();
    let node = start(config(), &disk).await;
    let client = Client::anonymous(&node).await;
    let login = schema::LoginRequest { user: bytes("immudb"), password: bytes(PASSWORD) };
    let token = client.inner.clone().login(login).await.unwrap().into_inner().token;
    let session = Client::on(&node, "defaultdb").await.headers;
    client.with("authorization", token.clone()).set("key", "value").await.unwrap();
    node.shutdown().await;
    for config in [off(), maintenance()] {
        let node = start(config, &disk).await;
        let client = Client::anonymous(&node).await.with("authorization", token.clone());
        refused(client.get("key").await, Code::Unknown, "not logged in", "28000");
        let client = Client { headers: session.clone(), ..client };
        refused(client.get("key").await, Code::PermissionDenied, "session not found", "08001");
        node.shutdown().await;
    }
    // And count again afterwards.
    let node = start(config(), &disk).await;
    let client = Client::anonymous(&node).await.with("authorization", token);
    assert_eq!(&*client.get("key").await.unwrap().value, b"value");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_in_maintenance_mode_is_as_the_sheet_says() {
    let disk = populated_disk().await;
    let node = start(maintenance(), &disk).await;
    let channel = channel(&node).await;
    let nobody = Client::anonymous(&node).await;
    for client in [nobody.clone(), nobody.with("authorization", "Bearer ")] {
        let wrong =
            every_call(&channel, &headers(&client), |name, _, marked| refusal_in_maintenance(name, marked, false))
                .await;
        assert!(wrong.is_empty(), "without a token: {}", wrong.join("\n"));
    }
    for database in ["defaultdb", DATABASE, "systemdb"] {
        let client = nobody_on(&node, database).await;
        let before = client.state().await.unwrap();
        assert_eq!(before.db, database);
        let wrong =
            every_call(&channel, &headers(&client), |name, _, marked| refusal_in_maintenance(name, marked, true)).await;
        assert!(wrong.is_empty(), "in {database}: {}", wrong.join("\n"));
        assert_eq!(client.state().await.unwrap(), before, "nothing was written");
    }
    let client = nobody_on(&node, DATABASE).await;
    assert!(has_secret(&client.get("key").await.unwrap().value));
    let users = client.inner.clone().list_users(client.request(())).await.unwrap().into_inner().users;
    assert_eq!(users.len(), 6, "the sysadmin sees all");

    // UseDatabase asks for no login, and is otherwise as ever.
    refused(use_database(&nobody, "nowhere").await, Code::NotFound, "'nowhere' does not exist", "3F000");
    assert!(use_database(&nobody.with("authorization", "Bearer x"), DATABASE).await.is_ok());
    let refusal = use_database(&nobody.with("sessionid", "A".repeat(44)), DATABASE).await;
    refused(refusal, Code::PermissionDenied, "session not found", "08001");
    let token = use_database(&nobody, DATABASE).await.unwrap();
    // The version, what is claimed, and the signature.
    let begin = token.len() - token.trim_start_matches("Bearer ").len();
    for at in (begin..token.len()).step_by(7).chain([begin, token.len() - 40, token.len() - 2]) {
        let status = nobody.with("authorization", altered(&token, at)).get("key").await.unwrap_err();
        let told = [(Code::Internal, "invalid token"), (Code::Unknown, "not logged in")];
        assert!(told.contains(&(status.code(), status.message())), "at {at}: {status:?}");
    }
    assert!(nobody.with("authorization", token.clone()).get("key").await.is_ok());
    node.shutdown().await;

    // The token ends with the mode.
    let node = start(config(), &disk).await;
    let client = Client::anonymous(&node).await.with("authorization", token);
    refused(client.get("key").await, Code::Unknown, "not logged in", "28000");
    refused(use_database(&client, "defaultdb").await, Code::Unauthenticated, "Please login", "");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_authentication_protects_is_not_laid_open() {
    let disk = populated_disk().await;
    let node = start(off(), &disk).await;
    let ended = timeout(PATIENCE, node.wait()).await.expect("the node ends");
    assert!(matches!(ended, Err(NodeError::AuthMustBeOn)), "{ended:?}");
    let refusal = Client::anonymous(&node).await.get("key").await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied, "{refusal:?}");
    node.shutdown().await;
}

/// Sockets whose other ends are said to be elsewhere.
#[derive(Debug)]
struct From(Arc<dyn Net>, &'static str);

struct FromListener(Box<dyn Listener>, &'static str);

impl Net for From {
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async {
            let listener = self.0.listen(addr).await?;
            Ok(Box::new(FromListener(listener, self.1)) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<BoxIo>> {
        self.0.connect(addr)
    }
}

impl Listener for FromListener {
    fn local_addr(&self) -> io::Result<String> {
        self.0.local_addr()
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxIo, String)>> {
        Box::pin(async { Ok((self.0.accept().await?.0, self.1.to_owned())) })
    }
}

async fn start_from(config: Config, peer: &'static str) -> NodeHandle {
    let env = env(&MemVfs::new());
    let env = Env { net: Arc::new(From(env.net.clone(), peer)), ..env };
    let node = Node::start(config, env).await.expect("the node starts");
    assert!(node.wait_ready(Instant::now() + PATIENCE).await, "{:?}", node.groups().ready());
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn only_this_machine_is_served_without_authentication() {
    for mut config in [off(), maintenance()] {
        let node = start_from(config.clone(), "192.0.2.7:4711").await;
        let channel = channel(&node).await;
        for method in alhambra_node::method::ALL {
            for forwarded in [None, Some("x-forwarded-for"), Some("x-real-ip")] {
                let mut headers = MetadataMap::new();
                if let Some(name) = forwarded {
                    headers.insert(name, "127.0.0.1".parse().unwrap());
                }
                let status = raw(&channel, &headers, method.path, vec![Bytes::new()]).await.unwrap_err();
                let expected = (Code::PermissionDenied, LOCAL_ONLY.to_owned(), String::new());
                assert_eq!(told(&status), expected, "{}", method.path);
                assert!(status.metadata().get("alhambra-code").is_none());
            }
        }
        let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        let status = raw(&channel, &MetadataMap::new(), reflection, vec![]).await.unwrap_err();
        assert_eq!(status.message(), LOCAL_ONLY);
        let answer = send(&node, "GET", "/api/health", &[("X-Forwarded-For", "127.0.0.1")], b"").await;
        assert_eq!(answer.error(), (403, 7, LOCAL_ONLY.to_owned()));
        // Operators look from elsewhere.
        assert!(page(&node, "/livez").await.0.contains("200"));
        node.shutdown().await;

        config.devmode = true;
        let node = start_from(config, "192.0.2.7:4711").await;
        let client = Client::anonymous(&node).await;
        client.inner.clone().health(client.request(())).await.unwrap();
        assert_eq!(client.get("key").await.unwrap_err().code(), Code::Unknown);
        node.shutdown().await;
    }
    // As seen on a socket that takes both families.
    let node = start_from(off(), "[::ffff:127.0.0.1]:4711").await;
    Client::anonymous(&node).await.set("key", "value").await.unwrap();
    node.shutdown().await;
    // With authentication on, nothing depends on where a caller is.
    let node = start_from(config(), "192.0.2.7:4711").await;
    Client::on(&node, "defaultdb").await.set("key", "value").await.unwrap();
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rest_is_served_as_the_calls_are() {
    let node = single_with(off()).await;
    let set = json!({ "KVs": [{ "key": b64("key"), "value": b64("value") }] }).to_string();
    assert_eq!(send(&node, "POST", "/api/db/set", &[], set.as_bytes()).await.status, 200);
    let get = format!("/api/db/get/{}", b64("key"));
    assert_eq!(send(&node, "GET", &get, &[], b"").await.json()["value"], b64("value"));
    let login = json!({ "user": b64("immudb"), "password": b64(PASSWORD) }).to_string();
    let answer = send(&node, "POST", "/api/login", &[], login.as_bytes()).await;
    assert_eq!(answer.error(), (500, 2, AUTH_DISABLED.to_owned()));
    assert_eq!(answer.json()["details"][0]["code"], "08P01");
    let open = json!({ "username": "immudb", "password": PASSWORD, "database": "defaultdb" }).to_string();
    let answer = send(&node, "POST", "/api/v2/authorization/session/open", &[], open.as_bytes()).await;
    assert_eq!(answer.error(), (500, 2, AUTH_DISABLED.to_owned()));
    let answer = send(&node, "POST", "/api/db/create/v2", &[], br#"{"name":"x"}"#).await;
    assert_eq!(answer.error(), (400, 3, "authentication must be on".to_owned()));
    node.shutdown().await;

    let node = single_with(maintenance()).await;
    assert_eq!(send(&node, "GET", &get, &[], b"").await.error(), (500, 2, "please select database first".to_owned()));
    let token = send(&node, "GET", "/api/db/use/defaultdb", &[], b"").await.json();
    let token = token["token"].as_str().unwrap();
    let state = send(&node, "GET", "/api/db/state", &[("Authorization", token)], b"").await.json();
    assert_eq!(state["db"], "defaultdb");
    let answer = send(&node, "POST", "/api/db/set", &[("Authorization", token)], set.as_bytes()).await;
    assert_eq!(answer.error(), (400, 3, "operation not allowed in maintenance mode".to_owned()));
    node.shutdown().await;
}

/// Node 0 has authentication on, node 1 off, node 2 is in maintenance mode.
async fn mixed() -> Cluster {
    let number = Cell::new(0);
    Cluster::start_with(|config| {
        config.auth = number.get() == 0;
        config.maintenance = number.replace(number.get() + 1) == 2;
        config.admin_password = Some(Secret::new(PASSWORD));
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_authentication_on_gives_nothing_away_because_others_have_it_off() {
    let cluster = mixed().await;
    let (on, off, mending) = (cluster.node(0), cluster.node(1), cluster.node(2));
    let somebody = Client::on(on, "defaultdb").await;
    let nobody = Client::anonymous(off).await;

    // What nobody writes on the node that allows it goes through whoever leads, and is seen by those who are somebody.
    for n in 0..3 {
        nobody.set(&format!("k{n}"), "from nobody").await.unwrap();
    }
    assert_eq!(&*somebody.get("k2").await.unwrap().value, b"from nobody");
    somebody.set("mine", "from somebody").await.unwrap();
    assert_eq!(&*nobody.get("mine").await.unwrap().value, b"from somebody");
    let reader = nobody_on(mending, "defaultdb").await;
    assert_eq!(&*reader.get("mine").await.unwrap().value, b"from somebody");

    // Nobody is nobody elsewhere, whatever was shown to get in there.
    let token = reader.headers[0].1.clone();
    let elsewhere = Client::anonymous(on).await;
    refused(elsewhere.get("mine").await, Code::Unknown, "not logged in", "28000");
    refused(elsewhere.set("k", "v").await, Code::Unknown, "not logged in", "28000");
    let with_token = elsewhere.with("authorization", token.clone());
    refused(with_token.get("mine").await, Code::Unknown, "not logged in", "28000");
    refused(use_database(&with_token, "defaultdb").await, Code::Unauthenticated, "Please login", "");
    let refusal = with_token.inner.clone().list_users(with_token.request(())).await;
    refused(refusal, Code::Unknown, "not logged in", "28000");
    let answer = send(on, "GET", "/api/db/state", &[("Authorization", &token)], b"").await;
    assert_eq!(answer.error(), (500, 2, "not logged in".to_owned()));
    assert_eq!(send(on, "GET", "/api/db/state", &[], b"").await.error(), (500, 2, "not logged in".to_owned()));
    let on_off = Client::anonymous(off).await.with("authorization", token.clone());
    refused(on_off.get("mine").await, Code::Unknown, "not logged in", "28000");
    // Nor does a session get around what the others do not allow, and it lives on where it is known.
    for node in [off, mending] {
        let there = Client { headers: somebody.headers.clone(), ..Client::anonymous(node).await };
        refused(there.get("mine").await, Code::PermissionDenied, "session not found", "08001");
    }
    somebody.get("mine").await.unwrap();

    // Not even with the key of a node is nobody made somebody.
    let read = Claim::read(token.trim_start_matches("Bearer ")).unwrap();
    assert_eq!((read.claim.kind, &*read.claim.user), (Kind::Anonymous, ""));
    let key = NodeKey::open(&env(cluster.disk(2)), Path::new("/data")).unwrap();
    assert!(read.is_signed_by(&key.public_key()));
    let now = read.claim.issued_ms;
    for kind in [Kind::Token, Kind::Session, Kind::Anonymous] {
        for user in ["", "*", "nobody"] {
            for epoch in [TxId(0), TxId(1), TxId(u64::MAX)] {
                let id = [7; 16];
                let claim =
                    Claim { kind, id, user: user.to_owned(), epoch, expires_ms: now + 60_000, ..read.claim.clone() };
                let text = claim.sign(&key);
                let by_token = elsewhere.with("authorization", text.clone()).get("mine").await;
                let by_session = elsewhere.with("sessionid", text).get("mine").await;
                assert!(by_token.is_err() && by_session.is_err(), "{claim:?}: {by_token:?} {by_session:?}");
            }
        }
    }

    // As soon as there is something to protect, the node without authentication protects it by serving nobody.
    let create = schema::Database { database_name: "orders".into() };
    somebody.inner.clone().create_database(somebody.request(create)).await.unwrap();
    eventually("the node without authentication closes", || async {
        nobody.get("mine").await.is_err_and(|status| status.code() == Code::PermissionDenied)
    })
    .await;
    assert_eq!(nobody.set("k", "v").await.unwrap_err().code(), Code::PermissionDenied);
    assert!(timeout(std::time::Duration::from_millis(200), off.wait()).await.is_err(), "it goes on as a replica");
    somebody.set("mine", "still").await.unwrap();
    assert_eq!(&*reader.get("mine").await.unwrap().value, b"still");
}

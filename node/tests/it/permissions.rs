//! Every call as every kind of user, compared with the permission column of the protocol sheet (section 6).

use std::collections::BTreeSet;

use alhambra_node::NodeHandle;
use alhambra_node::rest::gateway::AsItIs;
use alhambra_proto::{cluster, model, schema};
use bytes::Bytes;
use futures::StreamExt;
use prost::Message;
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::support::*;

/// What the sheet says a caller needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    AnyUser,
    Session,
    Read,
    Write,
    Admin,
    /// Administration of databases: system administrators only.
    System,
    /// Administration of the database that the message names.
    Named,
    /// Administration of users, which depends on who is meant; see [`refusal_of_user_call`].
    Users,
}
use Needs::{Admin, AnyUser, Named, Nothing, Read, Session, System, Users, Write};

/// Name, need, and column M: whether the call works in maintenance mode, and with `systemdb` selected.
pub const SHEET: &[(&str, Needs, bool)] = &[
    ("OpenSession", Nothing, false),
    ("CloseSession", Session, false),
    ("KeepAlive", Session, false),
    ("Login", Nothing, false),
    ("Logout", AnyUser, false),
    ("UpdateAuthConfig", Nothing, false),
    ("UpdateMTLSConfig", Nothing, false),
    ("ServerInfo", Nothing, true),
    ("Health", Nothing, true),
    ("DatabaseHealth", Read, false),
    ("CurrentState", Read, true),
    ("ListUsers", AnyUser, true),
    ("CreateUser", Users, false),
    ("ChangePassword", Users, false),
    ("ChangePermission", Users, false),
    ("ChangeSQLPrivileges", Users, false),
    ("SetActiveUser", Users, false),
    ("Set", Write, false),
    ("Get", Read, true),
    ("GetAll", Write, true),
    ("Delete", Write, false),
    ("ExecAll", Write, false),
    ("Scan", Read, true),
    ("History", Read, true),
    ("Count", Read, true),
    ("CountAll", Read, true),
    ("SetReference", Write, false),
    ("ZAdd", Write, false),
    ("ZScan", Read, true),
    ("TxById", Read, true),
    ("TxScan", Read, true),
    ("VerifiableSet", Write, false),
    ("VerifiableGet", Read, true),
    ("VerifiableTxById", Read, true),
    ("VerifiableSetReference", Write, false),
    ("VerifiableZAdd", Write, false),
    ("streamGet", Read, true),
    ("streamSet", Write, false),
    ("streamVerifiableGet", Read, true),
    ("streamVerifiableSet", Write, false),
    ("streamScan", Read, true),
    ("streamZScan", Read, true),
    ("streamHistory", Read, true),
    ("streamExecAll", Write, false),
    ("exportTx", Admin, true),
    ("streamExportTx", Admin, true),
    ("replicateTx", Admin, true),
    ("CreateDatabase", System, false),
    ("CreateDatabaseWith", System, false),
    ("CreateDatabaseV2", System, false),
    ("LoadDatabase", Named, false),
    ("UnloadDatabase", Named, false),
    ("DeleteDatabase", Named, false),
    ("DatabaseList", AnyUser, false),
    ("DatabaseListV2", AnyUser, false),
    ("UseDatabase", AnyUser, true),
    ("UpdateDatabase", Named, false),
    ("UpdateDatabaseV2", Named, false),
    ("GetDatabaseSettings", Read, false),
    ("GetDatabaseSettingsV2", Read, false),
    ("FlushIndex", Admin, true),
    ("CompactIndex", Admin, true),
    ("TruncateDatabase", Named, false),
];

/// Calls of SQL, which no node serves yet.
pub const SQL: [&str; 11] = [
    "NewTx",
    "Commit",
    "Rollback",
    "TxSQLExec",
    "TxSQLQuery",
    "SQLExec",
    "SQLQuery",
    "UnarySQLQuery",
    "ListTables",
    "DescribeTable",
    "VerifiableSQLGet",
];

/// The database in which everybody's right is tried.
pub const DATABASE: &str = "alpha";
/// Another one, which only the stranger may enter.
pub const ELSEWHERE: &str = "beta";
/// The one that is administrated.
const TARGET: &str = "gamma";
/// In every value of [`DATABASE`]; nobody from elsewhere may see it.
pub const SECRET: &[u8] = b"the secret of alpha";

/// One kind of user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Who {
    name: &'static str,
    user: Option<&'static str>,
    database: &'static str,
    /// 0 none, 1 to 3 for reading, writing, administrating the selected database.
    right: u8,
    administrates_target: bool,
}

const fn who(name: &'static str, user: Option<&'static str>, database: &'static str, right: u8, target: bool) -> Who {
    Who { name, user, database, right, administrates_target: target }
}

const EVERYBODY: [Who; 8] = [
    who("nobody", None, DATABASE, 0, false),
    who("nobody with an empty token", None, DATABASE, 0, false),
    who("reader", Some("reader"), DATABASE, 1, false),
    who("writer", Some("writer"), DATABASE, 2, false),
    who("admin", Some("admin"), DATABASE, 3, true),
    who("stranger", Some("stranger"), ELSEWHERE, 3, false),
    who("root", Some("immudb"), DATABASE, 3, true),
    who("root in systemdb", Some("immudb"), "systemdb", 3, true),
];

/// How somebody says who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum By {
    Session,
    Token,
}

/// One kind of user, logged in in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Login {
    who: Who,
    by: By,
}

impl Login {
    /// Each kind in each way.
    pub fn all() -> Vec<Login> {
        EVERYBODY.into_iter().flat_map(|who| [By::Session, By::Token].map(|by| Login { who, by })).collect()
    }

    /// The headers of a new login; none while it is not possible.
    pub async fn try_on(self, node: &NodeHandle) -> Option<MetadataMap> {
        try_log_in(node, self.who, self.by).await.ok()
    }

    /// Whether bytes have what this user must not see.
    pub fn sees_wrongly(self, reply: &[u8]) -> bool {
        (self.who.database != DATABASE || self.who.right == 0) && has_secret(reply)
    }
}

async fn log_in(node: &NodeHandle, who: Who, by: By) -> MetadataMap {
    try_log_in(node, who, by).await.unwrap()
}

async fn try_log_in(node: &NodeHandle, who: Who, by: By) -> Result<MetadataMap, Status> {
    let mut headers = MetadataMap::new();
    let mut client = Client::anonymous(node).await;
    let password = if who.user == Some("immudb") { PASSWORD } else { "Pass-1234" };
    match (who.user, by) {
        (None, _) if who.name.ends_with("token") => _ = headers.insert("authorization", "Bearer ".parse().unwrap()),
        (None, _) => {}
        (Some(user), By::Session) => {
            let opened = client.open(user, password, who.database).await?;
            headers.insert("sessionid", opened.session_id.parse().unwrap());
        }
        (Some(user), By::Token) => {
            let login = schema::LoginRequest { user: bytes(user), password: bytes(password) };
            let login = client.inner.login(login).await?.into_inner();
            let client = client.with("authorization", format!("Bearer {}", login.token));
            let database = schema::Database { database_name: who.database.to_owned() };
            let used = client.inner.clone().use_database(client.request(database)).await?.into_inner();
            headers.insert("authorization", format!("Bearer {}", used.token).parse().unwrap());
        }
    }
    Ok(headers)
}

/// Makes a call with messages that are encoded already and gathers what comes back, up to a bound.
pub async fn raw(
    channel: &Channel,
    headers: &MetadataMap,
    path: &str,
    messages: Vec<Bytes>,
) -> Result<Vec<u8>, Status> {
    let call = async {
        let mut client = Grpc::new(channel.clone()).max_decoding_message_size(usize::MAX);
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(futures::stream::iter(messages));
        *request.metadata_mut() = headers.clone();
        let path = path.parse().unwrap();
        let mut replies = client.streaming(request, path, AsItIs).await?.into_inner();
        let mut all = Vec::new();
        while all.len() < 1 << 20
            && let Some(reply) = replies.next().await
        {
            all.extend(reply?);
        }
        Ok(all)
    };
    tokio::time::timeout(PATIENCE, call).await.unwrap_or_else(|_| panic!("{path:?} hangs"))
}

/// A message that would be taken from somebody with the right, where an empty one would not get as far.
pub fn message(name: &str, number: usize) -> Vec<Bytes> {
    let fresh = format!("fresh{number}");
    let one = |bytes: Vec<u8>| vec![Bytes::from(bytes)];
    let database = TARGET.to_owned();
    let username = "victim".to_owned();
    match name {
        "streamSet" | "streamVerifiableSet" | "streamExecAll" | "replicateTx" => vec![],
        "CreateUser" => {
            let (user, password) = (bytes(&fresh), bytes("Pass-1234"));
            one(schema::CreateUserRequest { user, password, permission: 1, database }.encode_to_vec())
        }
        "ChangePassword" => {
            let (user, new_password) = (bytes("victim"), bytes("Pass-1234"));
            one(schema::ChangePasswordRequest { user, new_password, ..Default::default() }.encode_to_vec())
        }
        "ChangePermission" => {
            one(schema::ChangePermissionRequest { action: 0, username, database, permission: 1 }.encode_to_vec())
        }
        "ChangeSQLPrivileges" => {
            let privileges = vec!["SELECT".to_owned()];
            one(schema::ChangeSqlPrivilegesRequest { action: 0, username, database, privileges }.encode_to_vec())
        }
        "SetActiveUser" => one(schema::SetActiveUserRequest { active: true, username }.encode_to_vec()),
        "CreateDatabase" => one(schema::Database { database_name: fresh }.encode_to_vec()),
        "CreateDatabaseWith" => {
            one(schema::DatabaseSettings { database_name: fresh, ..Default::default() }.encode_to_vec())
        }
        "CreateDatabaseV2" => one(schema::CreateDatabaseRequest { name: fresh, ..Default::default() }.encode_to_vec()),
        "LoadDatabase" => one(schema::LoadDatabaseRequest { database }.encode_to_vec()),
        "UnloadDatabase" => one(schema::UnloadDatabaseRequest { database }.encode_to_vec()),
        "DeleteDatabase" => one(schema::DeleteDatabaseRequest { database }.encode_to_vec()),
        "TruncateDatabase" => one(schema::TruncateDatabaseRequest { database, ..Default::default() }.encode_to_vec()),
        "UpdateDatabase" => {
            one(schema::DatabaseSettings { database_name: database, ..Default::default() }.encode_to_vec())
        }
        "UpdateDatabaseV2" => {
            let settings = Some(schema::DatabaseNullableSettings::default());
            one(schema::UpdateDatabaseRequest { database, settings }.encode_to_vec())
        }
        _ => one(vec![]),
    }
}

/// How the sheet says that a call is refused; none if it is not.
fn refusal(name: &str, needs: Needs, in_systemdb: bool, who: Who, by: By) -> Option<(Code, String)> {
    let unknown = |text: &str| Some((Code::Unknown, text.to_owned()));
    let denied = || Some((Code::Internal, "permission denied".to_owned()));
    let logged_in = who.user.is_some();
    match needs {
        Nothing if name.starts_with("Update") => Some((Code::Internal, "operation not supported".into())),
        Nothing => None,
        Session if !logged_in || by == By::Token => unknown("no session auth data provided"),
        Session => None,
        AnyUser if logged_in => None,
        AnyUser => match name {
            "UseDatabase" => Some((Code::Unauthenticated, "Please login".into())),
            "DatabaseList" | "DatabaseListV2" => unknown("please login"),
            _ => unknown("not logged in"),
        },
        Read | Write | Admin => {
            let wanted = match needs {
                Read => 1,
                Write => 2,
                _ => 3,
            };
            if !logged_in {
                unknown("not logged in")
            } else if who.right < wanted || (who.database == "systemdb" && !in_systemdb) {
                denied()
            } else {
                None
            }
        }
        System | Named if !logged_in => unknown("could not get loggedin user data"),
        System if who.user == Some("immudb") => None,
        System => unknown("loggedin user does not have permissions for this operation"),
        Named if who.administrates_target => None,
        Named => unknown("the database 'gamma' does not exist or you do not have admin permission on this database"),
        Users => refusal_of_user_call(name, who),
    }
}

fn refusal_of_user_call(name: &str, who: Who) -> Option<(Code, String)> {
    let unknown = |text: &str| Some((Code::Unknown, text.to_owned()));
    let nowhere = "user is not system admin nor admin in any of the databases";
    match (name, who.name) {
        (_, nobody) if nobody.starts_with("nobody") => unknown("not logged in"),
        (_, "root" | "root in systemdb") => None,
        ("ChangePassword" | "SetActiveUser", "reader" | "writer") => unknown(nowhere),
        // The victim was created by the system administrator.
        ("ChangePassword", _) => unknown("user victim was not found or it was not created by you"),
        ("SetActiveUser", _) => unknown("victim was not created by you"),
        (_, "admin") => None,
        ("CreateUser", _) => unknown("you do not have permission on this database"),
        _ => Some((Code::PermissionDenied, "you do not have permission on this database".into())),
    }
}

/// Every text that refuses somebody for who it is.
fn is_refusal(status: &Status) -> bool {
    let texts = [
        "permission denied",
        "not logged in",
        "please login",
        "Please login",
        "no session auth data provided",
        "could not get loggedin user data",
        "loggedin user does not have permissions for this operation",
        "you do not have permission on this database",
        "Logged in user does not have permission on this database",
        "user is not system admin nor admin in any of the databases",
    ];
    let ends = ["or you do not have admin permission on this database", "not created by you"];
    texts.contains(&status.message()) || ends.iter().any(|end| status.message().ends_with(end))
}

/// A node with the databases and users of this test.
pub async fn populated() -> NodeHandle {
    let node = single().await;
    populate(&node).await;
    node
}

/// Makes the databases and users of this test.
pub async fn populate(node: &NodeHandle) {
    let root = Client::on(node, "defaultdb").await;
    for name in [DATABASE, ELSEWHERE, TARGET] {
        let request = schema::CreateDatabaseRequest { name: name.to_owned(), ..Default::default() };
        root.inner.clone().create_database_v2(root.request(request)).await.unwrap();
    }
    let users = [
        ("reader", 1, DATABASE),
        ("writer", 2, DATABASE),
        ("admin", 254, DATABASE),
        ("stranger", 254, ELSEWHERE),
        ("victim", 1, TARGET),
    ];
    for (user, permission, database) in users {
        let (user, password, database) = (bytes(user), bytes("Pass-1234"), database.to_owned());
        let request = schema::CreateUserRequest { user, password, permission, database };
        root.inner.clone().create_user(root.request(request)).await.unwrap();
    }
    let (username, database) = ("admin".to_owned(), TARGET.to_owned());
    let grant = schema::ChangePermissionRequest { action: 0, username, database, permission: 254 };
    root.inner.clone().change_permission(root.request(grant)).await.unwrap();
    let alpha = Client::on(node, DATABASE).await;
    alpha.set("key", std::str::from_utf8(SECRET).unwrap()).await.unwrap();
    Client::on(node, ELSEWHERE).await.set("key", "nothing special").await.unwrap();
}

pub fn has_secret(reply: &[u8]) -> bool {
    reply.windows(SECRET.len()).any(|window| window == SECRET)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_as_every_kind_of_user_is_as_the_sheet_says() {
    let node = populated().await;
    let channel = channel(&node).await;
    let observer = Client::on(&node, DATABASE).await;
    let mut logins = std::collections::HashMap::new();
    let mut wrong = Vec::new();
    let mut tried = 0;
    for (number, &(name, needs, in_systemdb)) in SHEET.iter().enumerate() {
        for (at, who) in EVERYBODY.into_iter().enumerate() {
            for by in [By::Session, By::Token] {
                // Some calls end what they are made with.
                if matches!(name, "CloseSession" | "Logout") || !logins.contains_key(&(at, by)) {
                    logins.insert((at, by), log_in(&node, who, by).await);
                }
                let headers = &logins[&(at, by)];
                let before = observer.state().await.unwrap();
                let path = format!("/immudb.schema.ImmuService/{name}");
                let number = (number * EVERYBODY.len() + at) * 2 + usize::from(by == By::Token);
                let reply = raw(&channel, headers, &path, message(name, number)).await;
                if matches!(name, "CloseSession" | "Logout") {
                    logins.remove(&(at, by));
                }
                if name == "UnloadDatabase" && reply.is_ok() {
                    // So that it cannot be deleted, which would take the rights in it along.
                    observer.load(TARGET).await.unwrap();
                }
                let expected = refusal(name, needs, in_systemdb, who, by);
                let as_expected = match (&reply, &expected) {
                    (Err(status), Some((code, text))) => status.code() == *code && status.message() == text,
                    (Err(status), None) => !is_refusal(status) && status.code() != Code::Unimplemented,
                    (Ok(reply), None) => !(has_secret(reply) && who.database != DATABASE),
                    (Ok(_), Some(_)) => false,
                };
                if !as_expected {
                    wrong.push(format!("{name} as {} by {by:?}: {reply:?}, expected {expected:?}", who.name));
                }
                if who.right < 2 || who.database != DATABASE {
                    assert_eq!(before, observer.state().await.unwrap(), "{name} as {}", who.name);
                }
                tried += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_right_shows_is_shown_and_elsewhere_nothing_is() {
    let node = populated().await;
    let channel = channel(&node).await;
    let get = schema::KeyRequest { key: bytes("key"), ..Default::default() }.encode_to_vec();
    for who in EVERYBODY {
        for by in [By::Session, By::Token] {
            let headers = log_in(&node, who, by).await;
            let reply = raw(&channel, &headers, "/immudb.schema.ImmuService/Get", vec![get.clone().into()]).await;
            assert_eq!(
                reply.is_ok_and(|reply| has_secret(&reply)),
                who.database == DATABASE && who.right > 0,
                "{who:?}"
            );
            // Nobody gets into a database without a right there.
            for database in [DATABASE, ELSEWHERE, TARGET, "systemdb", "defaultdb"] {
                let request = schema::Database { database_name: database.to_owned() }.encode_to_vec();
                let used =
                    raw(&channel, &headers, "/immudb.schema.ImmuService/UseDatabase", vec![request.into()]).await;
                let may = who.user == Some("immudb")
                    || (who.right > 0 && who.database == database)
                    || (database == TARGET && who.administrates_target);
                assert_eq!(used.is_ok(), may, "{} into {database}", who.name);
                let Some(user) = who.user else { continue };
                let password = if user == "immudb" { PASSWORD } else { "Pass-1234" };
                let opened = Client::anonymous(&node).await.open(user, password, database).await;
                assert_eq!(opened.is_ok(), may, "{} into {database}", who.name);
            }
        }
    }
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sheet_of_this_test_is_complete_and_sql_is_not_served() {
    let node = populated().await;
    let channel = channel(&node).await;
    let listed: BTreeSet<&str> = SHEET.iter().map(|(name, ..)| *name).chain(SQL).collect();
    let described: BTreeSet<&str> = (alhambra_node::method::ALL.iter())
        .filter(|method| method.service == "immudb.schema.ImmuService")
        .map(|method| method.name)
        .collect();
    assert_eq!(listed, described);
    let root = log_in(&node, EVERYBODY[6], By::Session).await;
    for name in SQL {
        let path = format!("/immudb.schema.ImmuService/{name}");
        let status = raw(&channel, &root, &path, vec![Bytes::new()]).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{name} is served: give it a row");
    }
    // The sessions of the other service are the same sessions.
    let service = |name: &str| format!("/immudb.model.AuthorizationService/{name}");
    for who in EVERYBODY {
        for by in [By::Session, By::Token] {
            let headers = log_in(&node, who, by).await;
            for name in ["KeepAlive", "CloseSession"] {
                let reply = raw(&channel, &headers, &service(name), vec![Bytes::new()]).await;
                let may = who.user.is_some() && by == By::Session;
                assert_eq!(reply.is_ok(), may, "{name} as {} by {by:?}", who.name);
            }
        }
    }
    // Our own call is the administrator's.
    let take = cluster::TakeServerUuidRequest { uuid: "9m4e2mr0ui3e8a215n4g".into() }.encode_to_vec();
    for who in EVERYBODY {
        for by in [By::Session, By::Token] {
            let headers = log_in(&node, who, by).await;
            let path = "/alhambra.cluster.ClusterService/TakeServerUuid";
            let reply = raw(&channel, &headers, path, vec![take.clone().into()]).await;
            assert_eq!(reply.is_ok(), who.user == Some("immudb"), "{} by {by:?}", who.name);
        }
    }
    let login =
        model::OpenSessionRequest { username: "reader".into(), password: "wrong".into(), database: "alpha".into() };
    let status = raw(&channel, &MetadataMap::new(), &service("OpenSession"), vec![login.encode_to_vec().into()]).await;
    assert_eq!(status.unwrap_err().message(), "invalid user name or password");
    node.shutdown().await;
}

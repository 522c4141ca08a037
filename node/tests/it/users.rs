//! Users: who may do what to whom, and that a change ends what the user has open, on every node.

use std::path::Path;
use std::time::Duration;

use alhambra_node::Node;
use alhambra_proto::schema;
use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::vfs::{OpenMode, Vfs};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::cluster::Cluster;
use crate::support::*;

const GRANT: i32 = 0;
const REVOKE: i32 = 1;

impl Client {
    async fn create_user(&self, user: &str, password: &str, permission: u32, database: &str) -> Result<(), Status> {
        let (user, password, database) = (bytes(user), bytes(password), database.to_owned());
        let request = schema::CreateUserRequest { user, password, permission, database };
        self.inner.clone().create_user(self.request(request)).await.map(|_| ())
    }

    async fn change_password(&self, user: &str, old: &str, new: &str) -> Result<(), Status> {
        let (user, old_password, new_password) = (bytes(user), bytes(old), bytes(new));
        let request = schema::ChangePasswordRequest { user, old_password, new_password };
        self.inner.clone().change_password(self.request(request)).await.map(|_| ())
    }

    async fn change_permission(&self, action: i32, user: &str, database: &str, permission: u32) -> Result<(), Status> {
        let (username, database) = (user.to_owned(), database.to_owned());
        let request = schema::ChangePermissionRequest { action, username, database, permission };
        self.inner.clone().change_permission(self.request(request)).await.map(|_| ())
    }

    async fn change_privileges(
        &self,
        action: i32,
        user: &str,
        database: &str,
        privileges: &[&str],
    ) -> Result<(), Status> {
        let (username, database) = (user.to_owned(), database.to_owned());
        let privileges = privileges.iter().map(|name| (*name).to_owned()).collect();
        let request = schema::ChangeSqlPrivilegesRequest { action, username, database, privileges };
        self.inner.clone().change_sql_privileges(self.request(request)).await.map(|_| ())
    }

    async fn set_active(&self, user: &str, active: bool) -> Result<(), Status> {
        let request = schema::SetActiveUserRequest { active, username: user.to_owned() };
        self.inner.clone().set_active_user(self.request(request)).await.map(|_| ())
    }

    async fn users(&self) -> Result<Vec<schema::User>, Status> {
        Ok(self.inner.clone().list_users(self.request(())).await?.into_inner().users)
    }

    async fn user(&self, name: &str) -> schema::User {
        let users = self.users().await.unwrap();
        users.into_iter().find(|user| user.user == name).unwrap_or_else(|| panic!("{name} is not listed"))
    }

    async fn create_database(&self, name: &str) {
        let database = schema::Database { database_name: name.to_owned() };
        self.inner.clone().create_database(self.request(database)).await.unwrap();
    }

    /// A token of this user for this database.
    async fn token(&self, user: &str, password: &str, database: &str) -> Self {
        let login = schema::LoginRequest { user: bytes(user), password: bytes(password) };
        let token = self.inner.clone().login(self.request(login)).await.unwrap().into_inner().token;
        let logged_in = self.with("authorization", token);
        let database = schema::Database { database_name: database.to_owned() };
        let token = self.inner.clone().use_database(logged_in.request(database)).await.unwrap().into_inner().token;
        self.with("authorization", token)
    }
}

fn names(users: &[schema::User]) -> Vec<&str> {
    users.iter().map(|user| std::str::from_utf8(&user.user).unwrap()).collect()
}

fn permissions(user: &schema::User) -> Vec<(&str, u32)> {
    user.permissions.iter().map(|held| (&*held.database, held.permission)).collect()
}

fn privileges(user: &schema::User) -> Vec<(&str, &str)> {
    user.sql_privileges.iter().map(|held| (&*held.database, &*held.privilege)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_created_listed_and_log_in() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    // Without a database it is the default one as long as there is no other.
    admin.create_user("zoe", "secret of zoe", 1, "").await.unwrap();
    admin.create_database("orders").await;
    let text = "database name can not be empty when there are multiple databases";
    refused(admin.create_user("abe", "pw", 1, "").await, Code::Unknown, text, "");
    admin.create_user("abe", "secret of abe", 254, "orders").await.unwrap();
    refused(admin.create_user("abe", "other", 1, "orders").await, Code::Unknown, "user already exists", "");
    refused(admin.create_user("new", "pw", 1, "nope").await, Code::Unknown, "database nope does not exist", "");
    let form = "username can only contain letters, digits and underscores";
    refused(admin.create_user("no way", "pw", 1, "orders").await, Code::InvalidArgument, form, "");

    let users = admin.users().await.unwrap();
    assert_eq!(names(&users), ["abe", "immudb", "zoe"]);
    assert_eq!(permissions(&users[1]), [("*", 255)]);
    let zoe = &users[2];
    assert_eq!((permissions(zoe), privileges(zoe)), (vec![("defaultdb", 1)], vec![("defaultdb", "SELECT")]));
    assert_eq!((zoe.active, &*zoe.createdby), (true, "immudb"));
    assert!(zoe.createdat.ends_with(" +0000 UTC") && zoe.createdat.as_bytes()[4] == b'-', "{}", zoe.createdat);

    // The new users have their rights and no others.
    let abe = Client::session(&node, "abe", "secret of abe", "orders").await.unwrap();
    abe.set("k", "v").await.unwrap();
    let denied = "Logged in user does not have permission on this database";
    let outside = Client::session(&node, "abe", "secret of abe", "defaultdb").await;
    refused(outside.map(|_| ()), Code::PermissionDenied, denied, "");
    let system = Client::session(&node, "abe", "secret of abe", "systemdb").await;
    refused(system.map(|_| ()), Code::PermissionDenied, denied, "");
    let wrong = Client::session(&node, "abe", "secret of zoe", "orders").await;
    refused(wrong.map(|_| ()), Code::Unknown, "invalid user name or password", "08004");
    let zoe = Client::session(&node, "zoe", "secret of zoe", "defaultdb").await.unwrap();
    zoe.scan(schema::ScanRequest::default()).await.unwrap();
    refused(zoe.set("k", "v").await, Code::Internal, "permission denied", "XX000");

    // An administrator makes users of its database, and sees only those.
    abe.create_user("bob", "secret of bob", 2, "orders").await.unwrap();
    assert_eq!(abe.user("bob").await.createdby, "abe");
    assert_eq!(names(&abe.users().await.unwrap()), ["abe", "bob"]);
    assert_eq!(names(&zoe.users().await.unwrap()), ["zoe"]);
    let text = "you do not have permission on this database";
    refused(abe.create_user("eve", "pw", 1, "defaultdb").await, Code::Unknown, text, "");
    refused(zoe.create_user("eve", "pw", 1, "defaultdb").await, Code::Unknown, text, "");
}

/// systemdb is a ledger that never forgets: what stands in it in clear once, stands there for ever.
#[tokio::test(flavor = "multi_thread")]
async fn passwords_are_nowhere_in_clear() {
    let disk = MemVfs::new();
    let node = Node::start(config(), env(&disk)).await.unwrap();
    assert!(node.wait_ready(Instant::now() + PATIENCE).await);
    let admin = Client::on(&node, "defaultdb").await;
    let passwords = ["first-Secret-of-eve", "second-Secret-of-eve", "new-Secret-of-immudb"];
    admin.create_user("eve", passwords[0], 1, "defaultdb").await.unwrap();
    admin.change_password("eve", "", passwords[1]).await.unwrap();
    admin.change_password("immudb", PASSWORD, passwords[2]).await.unwrap();
    Client::session(&node, "immudb", passwords[2], "systemdb").await.unwrap().get("user/eve").await.unwrap();
    node.shutdown().await;
    let stored = contents(&disk);
    let holds = |text: &str| stored.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("user/eve") && holds("$argon2id$"), "the search looks at the right bytes");
    for password in passwords.iter().chain([&PASSWORD]) {
        assert!(!holds(password), "{password}");
    }
    // Nor is the key with which this node signs sessions: what every node knows of it is the public one.
    let file = disk.open(Path::new("/data/session.key"), OpenMode::Read).unwrap();
    let text = file.read_at(0, usize::try_from(file.len().unwrap()).unwrap()).unwrap();
    let secret = std::str::from_utf8(&text).unwrap().lines().nth(1).unwrap();
    let bytes: Vec<u8> = secret.as_bytes().chunks(2).map(unhex).collect();
    assert_eq!(bytes.len(), 32);
    let times = |what: &[u8]| stored.windows(what.len()).filter(|window| *window == what).count();
    assert_eq!((times(secret.as_bytes()), times(&bytes)), (1, 0), "once, in its own file");
}

fn unhex(digits: &[u8]) -> u8 {
    u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_administrator_gives_its_password_to_change_it() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    for old in ["", "wrong"] {
        let refusal = admin.change_password("immudb", old, "next").await;
        refused(refusal, Code::PermissionDenied, "old password is incorrect", "");
    }
    refused(admin.change_password("", "", "next").await, Code::Unknown, "username can not be empty", "");
    refused(admin.change_password("immudb", PASSWORD, "").await, Code::Unknown, "password is empty", "");
    admin.state().await.unwrap();
    admin.change_password("immudb", PASSWORD, "next").await.unwrap();
    // Its own session too.
    refused(admin.state().await, Code::PermissionDenied, "session not found", "08001");
    let old = Client::session(&node, "immudb", PASSWORD, "defaultdb").await;
    refused(old.map(|_| ()), Code::Unknown, "invalid user name or password", "08004");
    Client::session(&node, "immudb", "next", "defaultdb").await.unwrap().state().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_on_users_without_a_login_say_so() {
    let node = single().await;
    let anonymous = Client::anonymous(&node).await;
    for (token, code, text, details) in
        [("", Code::Unknown, "not logged in", "28000"), ("garbage", Code::Internal, "invalid token", "XX000")]
    {
        let client = anonymous.with("authorization", token);
        refused(client.users().await, code, text, details);
        refused(client.create_user("", "", 0, "").await, code, text, details);
        refused(client.change_password("", "", "").await, code, text, details);
        refused(client.change_permission(GRANT, "", "", 0).await, code, text, details);
        refused(client.change_privileges(GRANT, "", "", &[]).await, code, text, details);
        refused(client.set_active("", true).await, code, text, details);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inactive_users_stay_out_until_they_are_active_again() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    admin.create_user("eve", "pw", 2, "defaultdb").await.unwrap();
    admin.set_active("eve", false).await.unwrap();
    assert!(!admin.user("eve").await.active);
    let out = Client::session(&node, "eve", "pw", "defaultdb").await;
    refused(out.map(|_| ()), Code::Unknown, "user is not active", "08004");
    let refusal = admin.change_permission(GRANT, "eve", "defaultdb", 1).await;
    refused(refusal, Code::FailedPrecondition, "user eve is not active", "");
    // Its password can be changed all the same.
    admin.change_password("eve", "", "other").await.unwrap();
    admin.set_active("eve", true).await.unwrap();
    Client::session(&node, "eve", "other", "defaultdb").await.unwrap().set("k", "v").await.unwrap();
    refused(admin.set_active("immudb", false).await, Code::Unknown, "changing your own status is not allowed", "");
}

/// Trap 27 of the sheet.
#[tokio::test(flavor = "multi_thread")]
async fn grant_and_revoke_reset_all_sql_privileges() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    admin.create_database("orders").await;
    admin.create_user("eve", "pw", 1, "defaultdb").await.unwrap();
    admin.change_privileges(GRANT, "eve", "defaultdb", &["DROP", "INSERT"]).await.unwrap();
    let held = [("defaultdb", "SELECT"), ("defaultdb", "INSERT"), ("defaultdb", "DROP")];
    assert_eq!(privileges(&admin.user("eve").await), held);
    admin.change_privileges(REVOKE, "eve", "defaultdb", &["SELECT"]).await.unwrap();
    assert_eq!(privileges(&admin.user("eve").await), held[1..]);
    admin.change_permission(GRANT, "eve", "orders", 1).await.unwrap();
    let eve = admin.user("eve").await;
    assert_eq!(permissions(&eve), [("defaultdb", 1), ("orders", 1)]);
    assert_eq!(privileges(&eve), [("orders", "SELECT")]);
    admin.change_permission(REVOKE, "eve", "defaultdb", 1).await.unwrap();
    let eve = admin.user("eve").await;
    assert_eq!((permissions(&eve), privileges(&eve)), (vec![("orders", 1)], vec![("defaultdb", "SELECT")]));
    let text = "user eve doesn't have permission on database defaultdb";
    let refusal = admin.change_privileges(GRANT, "eve", "defaultdb", &["DROP"]).await;
    refused(refusal, Code::FailedPrecondition, text, "");
}

/// Trap 26 of the sheet, on the node that made the change: by the time it is answered.
#[tokio::test(flavor = "multi_thread")]
async fn every_change_of_a_user_ends_its_sessions_and_tokens() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    let anonymous = Client::anonymous(&node).await;
    admin.create_user("eve", "pw", 1, "defaultdb").await.unwrap();
    admin.create_user("bystander", "pw", 1, "defaultdb").await.unwrap();
    let bystander = Client::session(&node, "bystander", "pw", "defaultdb").await.unwrap();
    // Whatever it was before: a change that sets the same again is one.
    for change in 0..5 {
        let before = admin.user("eve").await.createdat;
        let session = Client::session(&node, "eve", "pw", "defaultdb").await.unwrap();
        let token = anonymous.token("eve", "pw", "defaultdb").await;
        session.state().await.unwrap();
        token.state().await.unwrap();
        match change {
            0 => admin.change_password("eve", "", "pw").await.unwrap(),
            1 => admin.change_permission(GRANT, "eve", "defaultdb", 2).await.unwrap(),
            2 => admin.change_privileges(REVOKE, "eve", "defaultdb", &["DROP"]).await.unwrap(),
            3 => admin.change_privileges(GRANT, "eve", "defaultdb", &[]).await.unwrap(),
            _ => admin.set_active("eve", true).await.unwrap(),
        }
        refused(session.state().await, Code::PermissionDenied, "session not found", "08001");
        refused(token.state().await, Code::Unknown, "not logged in", "28000");
        assert_ne!(admin.user("eve").await.createdat, before, "change {change}");
    }
    bystander.state().await.unwrap();
    admin.state().await.unwrap();
}

/// Trap 26 of the sheet, in a cluster.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_through_one_node_ends_sessions_and_tokens_on_all() {
    let cluster = Cluster::start(Duration::from_secs(10)).await;
    let admin = Client::on(cluster.node(0), "defaultdb").await;
    admin.create_user("eve", "pw", 254, "defaultdb").await.unwrap();
    for change in 0..4 {
        let mut open = Vec::new();
        for n in 0..3 {
            let node = cluster.node(n);
            // Any node knows a user as soon as it is made.
            let session = Client::session(node, "eve", "pw", "defaultdb").await.unwrap();
            let token = Client::anonymous(node).await.token("eve", "pw", "defaultdb").await;
            session.state().await.unwrap();
            token.state().await.unwrap();
            open.push((session, token));
        }
        match change {
            0 => admin.change_permission(GRANT, "eve", "defaultdb", 254).await.unwrap(),
            1 => admin.change_privileges(REVOKE, "eve", "defaultdb", &["DROP"]).await.unwrap(),
            2 => admin.change_password("eve", "", "pw").await.unwrap(),
            _ => admin.set_active("eve", false).await.unwrap(),
        }
        for (session, token) in &open {
            // Nobody acts on users with rights that were taken away, not even for a moment on a node that lags.
            refused(session.users().await, Code::PermissionDenied, "session not found", "08001");
            refused(session.state().await, Code::PermissionDenied, "session not found", "08001");
            refused(token.users().await, Code::Unknown, "not logged in", "28000");
        }
    }
    // Without another call on users the other nodes come to it by themselves.
    admin.set_active("eve", true).await.unwrap();
    let mut open = Vec::new();
    for n in 0..3 {
        open.push(Client::session(cluster.node(n), "eve", "pw", "defaultdb").await.unwrap());
    }
    admin.set_active("eve", false).await.unwrap();
    for session in &open {
        eventually("the end of the session", || async {
            match session.state().await {
                Ok(_) => false,
                Err(status) => status.message() == "session not found",
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_one_user_through_several_nodes_are_all_kept() {
    let cluster = Cluster::start(Duration::from_secs(20)).await;
    let mut admins = Vec::new();
    for n in 0..3 {
        admins.push(Client::on(cluster.node(n), "defaultdb").await);
    }
    admins[0].create_user("eve", "pw", 1, "defaultdb").await.unwrap();
    let wanted = ["CREATE", "INSERT", "UPDATE", "DELETE", "DROP", "ALTER"];
    let calls = wanted.iter().enumerate().map(|(at, name)| {
        let admin = admins[at % 3].clone();
        async move { admin.change_privileges(GRANT, "eve", "defaultdb", &[name]).await }
    });
    for result in futures::future::join_all(calls).await {
        result.unwrap();
    }
    for admin in &admins {
        let eve = admin.user("eve").await;
        let held: Vec<&str> = privileges(&eve).into_iter().map(|(_, name)| name).collect();
        assert_eq!(held, ["SELECT", "CREATE", "INSERT", "UPDATE", "DELETE", "DROP", "ALTER"]);
    }
    // One name is made once.
    let calls = admins.iter().map(|admin| admin.create_user("bob", "pw", 1, "defaultdb"));
    let made = futures::future::join_all(calls).await;
    assert_eq!(made.iter().filter(|result| result.is_ok()).count(), 1, "{made:?}");
    for result in made.into_iter().filter(Result::is_err) {
        refused(result, Code::Unknown, "user already exists", "");
    }
}

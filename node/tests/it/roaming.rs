//! Sessions and tokens of one node on the others: used there, surviving their owner, ended everywhere at once, never on a
//! database that they have left, and never forged.

use std::time::Duration;

use alhambra_node::claim::Claim;
use alhambra_proto::schema;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::cluster::Cluster;
use crate::support::*;

const TIMEOUT: Duration = Duration::from_secs(10);

/// The same headers, sent to each node.
async fn everywhere(cluster: &Cluster, nodes: &[usize], client: &Client) -> Vec<Client> {
    let mut clients = Vec::new();
    for n in nodes {
        let mut there = Client::anonymous(cluster.node(*n)).await;
        there.headers.clone_from(&client.headers);
        clients.push(there);
    }
    clients
}

async fn use_database(client: &Client, name: &str) -> Result<String, Status> {
    let request = client.request(schema::Database { database_name: name.to_owned() });
    client.inner.clone().use_database(request).await.map(|reply| reply.into_inner().token)
}

async fn create_database(client: &Client, name: &str) {
    let request = client.request(schema::Database { database_name: name.to_owned() });
    client.inner.clone().create_database(request).await.unwrap();
}

async fn close(client: &Client) {
    client.inner.clone().close_session(client.request(())).await.unwrap();
}

async fn login(cluster: &Cluster, n: usize, user: &str, password: &str) -> Client {
    let client = Client::anonymous(cluster.node(n)).await;
    let request = schema::LoginRequest { user: bytes(user), password: bytes(password) };
    let reply = client.inner.clone().login(client.request(request)).await.unwrap().into_inner();
    client.with("authorization", format!("Bearer {}", reply.token))
}

async fn database_of(client: &Client) -> Result<String, Status> {
    client.state().await.map(|state| state.db)
}

#[track_caller]
fn no_session<T: std::fmt::Debug>(result: Result<T, Status>) {
    refused(result, Code::PermissionDenied, "session not found", "08001");
}

#[track_caller]
fn not_logged_in<T: std::fmt::Debug>(result: Result<T, Status>) {
    refused(result, Code::Unknown, "not logged in", "28000");
}

/// Until every node has opened it.
async fn await_database(cluster: &Cluster, name: &str) {
    for n in 0..3 {
        eventually("the database on every node", || async {
            cluster.node(n).groups().ready().groups.iter().any(|group| group.name == name && group.ready)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_used_switched_and_closed_through_any_node() {
    let cluster = Cluster::start(TIMEOUT).await;
    let client = Client::on(cluster.node(0), "defaultdb").await;
    create_database(&client, "second").await;
    await_database(&cluster, "second").await;
    let there = everywhere(&cluster, &[0, 1, 2], &client).await;
    for (n, client) in there.iter().enumerate() {
        client.set(&format!("k{n}"), "v").await.unwrap();
        client.inner.clone().keep_alive(client.request(())).await.unwrap();
        assert_eq!(database_of(client).await.unwrap(), "defaultdb");
    }
    // Whichever node takes the call, all answer from the new database from then on.
    for (n, name) in [(0, "second"), (1, "defaultdb"), (2, "second"), (2, "second")] {
        use_database(&there[n], name).await.unwrap();
        for client in &there {
            assert_eq!(database_of(client).await.unwrap(), name);
        }
    }
    assert!(there[0].get("k0").await.is_err() && there[1].get("k1").await.is_err(), "those are in the first database");
    refused(use_database(&there[1], "no").await, Code::NotFound, "'no' does not exist", "3F000");

    close(&there[2]).await;
    for client in &there {
        no_session(database_of(client).await);
        no_session(client.inner.clone().keep_alive(client.request(())).await);
        let request = client.request(schema::KeyRequest::default());
        // The error may come before the stream or in it.
        let stream = async { client.inner.clone().stream_get(request).await?.into_inner().message().await };
        refused(stream.await, Code::InvalidArgument, "no session found", "22023");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_survives_its_owner_on_the_database_that_it_has_selected() {
    let mut cluster = Cluster::start(TIMEOUT).await;
    let plain = Client::on(cluster.node(0), "defaultdb").await;
    create_database(&plain, "second").await;
    create_database(&plain, "third").await;
    await_database(&cluster, "second").await;
    await_database(&cluster, "third").await;
    let switched = Client::on(cluster.node(0), "defaultdb").await;
    use_database(&switched, "second").await.unwrap();
    let elsewhere = Client::on(cluster.node(0), "defaultdb").await;
    use_database(&everywhere(&cluster, &[1], &elsewhere).await[0], "second").await.unwrap();
    let closed = Client::on(cluster.node(0), "defaultdb").await;
    close(&closed).await;

    cluster.stop(0).await;
    for (session, name) in [(&plain, "defaultdb"), (&switched, "second"), (&elsewhere, "second")] {
        for client in everywhere(&cluster, &[1, 2], session).await {
            assert_eq!(database_of(&client).await.unwrap(), name);
            client.set(name, "after").await.unwrap();
            client.inner.clone().keep_alive(client.request(())).await.unwrap();
        }
    }
    for client in everywhere(&cluster, &[1, 2], &closed).await {
        no_session(database_of(&client).await);
    }
    // Switched and closed without the owner.
    let (first, second) = (everywhere(&cluster, &[1, 2], &plain).await, everywhere(&cluster, &[1, 2], &switched).await);
    for (n, name) in [(0, "third"), (1, "second"), (0, "third")] {
        use_database(&first[n], name).await.unwrap();
        for client in &first {
            assert_eq!(database_of(client).await.unwrap(), name);
        }
    }
    close(&second[0]).await;
    for client in &second {
        no_session(database_of(client).await);
    }

    // The owner comes back with nothing in its memory.
    cluster.start_node(0).await;
    assert!(cluster.node(0).wait_ready(Instant::now() + PATIENCE).await);
    for n in [0, 1, 2] {
        for (session, name) in [(&plain, "third"), (&elsewhere, "second")] {
            assert_eq!(database_of(&everywhere(&cluster, &[n], session).await[0]).await.unwrap(), name, "node {n}");
        }
        for session in [&closed, &switched] {
            no_session(database_of(&everywhere(&cluster, &[n], session).await[0]).await);
        }
    }
    use_database(&everywhere(&cluster, &[2], &plain).await[0], "defaultdb").await.unwrap();
    for client in everywhere(&cluster, &[0, 1, 2], &plain).await {
        assert_eq!(database_of(&client).await.unwrap(), "defaultdb");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_selection_reaches_the_owner_that_nobody_has_told_of_it() {
    let cluster = Cluster::start(TIMEOUT).await;
    let client = Client::on(cluster.node(0), "defaultdb").await;
    create_database(&client, "second").await;
    await_database(&cluster, "second").await;
    let there = everywhere(&cluster, &[0, 1, 2], &client).await;
    let id = Claim::read(&client.headers[0].1).unwrap().claim.id;
    // What UseDatabase does first. Nothing more: its node was cut off, or its client has gone.
    for (n, name) in [(1, "second"), (0, "defaultdb"), (2, "second")] {
        cluster.node(n).groups().meta().put_session(&id, name, Instant::now() + TIMEOUT).await.unwrap();
        let there = &there;
        eventually("the database in the session", || async move {
            for client in there {
                if database_of(client).await.unwrap() != name {
                    return false;
                }
            }
            true
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_valid_on_every_node_also_when_its_node_is_down_or_was_started_again() {
    let mut cluster = Cluster::start(TIMEOUT).await;
    let token = login(&cluster, 0, "immudb", PASSWORD).await;
    for client in everywhere(&cluster, &[1, 2, 0], &token).await {
        client.set("k", "v").await.unwrap();
    }
    let there = everywhere(&cluster, &[1, 2], &token).await;
    create_database(&there[0], "second").await;
    await_database(&cluster, "second").await;
    let bound = use_database(&there[1], "second").await.unwrap();
    let bound = token.with("authorization", format!("Bearer {bound}"));
    cluster.stop(0).await;
    // A node that verifies it for the first time only now, too.
    let again = login(&cluster, 1, "immudb", PASSWORD).await;
    for n in [1, 2] {
        for (client, name) in [(&token, "defaultdb"), (&bound, "second")] {
            assert_eq!(database_of(&everywhere(&cluster, &[n], client).await[0]).await.unwrap(), name);
        }
        let status = database_of(&everywhere(&cluster, &[n], &again).await[0]).await;
        refused(status, Code::Unknown, "please select a database first", "");
    }
    cluster.start_node(0).await;
    assert!(cluster.node(0).wait_ready(Instant::now() + PATIENCE).await);
    for (client, name) in [(&token, "defaultdb"), (&bound, "second")] {
        assert_eq!(database_of(&everywhere(&cluster, &[0], client).await[0]).await.unwrap(), name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_logout_through_whatever_node_ends_all_tokens_of_the_user_on_all_nodes() {
    let cluster = Cluster::start(TIMEOUT).await;
    let session = Client::on(cluster.node(0), "defaultdb").await;
    let first = login(&cluster, 0, "immudb", PASSWORD).await;
    let second = login(&cluster, 1, "immudb", PASSWORD).await;
    let third = login(&cluster, 1, "immudb", PASSWORD).await;
    for (token, n) in [(&first, 2), (&third, 0)] {
        let there = &everywhere(&cluster, &[n], token).await[0];
        there.inner.clone().logout(there.request(())).await.unwrap();
        for token in [&first, &second, &third] {
            for client in everywhere(&cluster, &[0, 1, 2], token).await {
                assert_eq!(database_of(&client).await.unwrap(), "defaultdb");
            }
        }
    }
    let there = &everywhere(&cluster, &[2], &first).await[0];
    there.inner.clone().logout(there.request(())).await.unwrap();
    for token in [&first, &second, &third] {
        for client in everywhere(&cluster, &[0, 1, 2], token).await {
            not_logged_in(database_of(&client).await);
            not_logged_in(client.inner.clone().logout(client.request(())).await);
        }
    }
    assert_eq!(database_of(&session).await.unwrap(), "defaultdb", "sessions are not concerned");
    not_logged_in(session.inner.clone().logout(session.request(())).await);
    // With a new login the old ones are invalid rather than nobody's.
    let fresh = login(&cluster, 0, "immudb", PASSWORD).await;
    assert_eq!(database_of(&fresh).await.unwrap(), "defaultdb");
    let there = &everywhere(&cluster, &[0], &second).await[0];
    refused(database_of(there).await, Code::Internal, "invalid token", "XX000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_a_user_ends_its_sessions_and_tokens_on_all_nodes_before_it_is_answered() {
    let mut cluster = Cluster::start(TIMEOUT).await;
    let admin = Client::on(cluster.node(0), "defaultdb").await;
    let create = schema::CreateUserRequest {
        user: bytes("eve"),
        password: bytes("Old-pass-1!"),
        permission: 2,
        database: "defaultdb".into(),
    };
    admin.inner.clone().create_user(admin.request(create)).await.unwrap();
    let change = |password: &str| schema::ChangePasswordRequest {
        user: bytes("eve"),
        new_password: bytes(password),
        ..Default::default()
    };
    let passwords = ["Old-pass-1!", "New-pass-1!", "New-pass-2!"];
    for round in 0..2 {
        let opened = Client::session(cluster.node(1), "eve", passwords[round], "defaultdb").await.unwrap();
        let token = login(&cluster, 1, "eve", passwords[round]).await;
        let nodes: &[usize] = if round == 0 { &[0, 1, 2] } else { &[0, 1] };
        if round == 1 {
            // A node that is down is not waited for.
            cluster.stop(2).await;
            eventually("a leader after one node went", || async { admin.set("k", "v").await.is_ok() }).await;
        }
        let mut clients = everywhere(&cluster, nodes, &opened).await;
        clients.extend(everywhere(&cluster, nodes, &token).await);
        for client in &clients {
            client.set("k", "v").await.unwrap();
        }
        let began = Instant::now();
        admin.inner.clone().change_password(admin.request(change(passwords[round + 1]))).await.unwrap();
        let (sessions, tokens) = clients.split_at(nodes.len());
        for client in sessions {
            no_session(client.get("k").await);
        }
        for client in tokens {
            not_logged_in(client.get("k").await);
        }
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn altered_and_forged_claims_are_refused_by_owner_and_others_alike() {
    let cluster = Cluster::start(TIMEOUT).await;
    let session = Client::on(cluster.node(0), "defaultdb").await;
    let token = login(&cluster, 0, "immudb", PASSWORD).await;
    let id = session.headers[0].1.clone();
    let text = token.headers[0].1.strip_prefix("Bearer ").unwrap().to_owned();
    let (by_session, by_token) =
        (everywhere(&cluster, &[0, 1], &session).await, everywhere(&cluster, &[0, 1], &token).await);
    for client in &by_session {
        for at in 0..id.len() {
            no_session(client.with("sessionid", altered(&id, at)).get("k").await);
        }
        // A token is no session, and the other way round.
        no_session(client.with("sessionid", &text).get("k").await);
        assert_eq!(database_of(client).await.unwrap(), "defaultdb");
    }
    for client in &by_token {
        for at in 0..text.len() {
            let status = client.with("authorization", altered(&text, at)).get("k").await.unwrap_err();
            let invalid = (Code::Internal, "invalid token".to_owned(), "XX000".to_owned());
            // Without the key that it says, nobody can tell more.
            let nobody = (Code::Unknown, "not logged in".to_owned(), "28000".to_owned());
            assert!([invalid, nobody].contains(&told(&status)), "character {at}: {status:?}");
        }
        let as_token = client.with("authorization", &id);
        refused(as_token.get("k").await, Code::Internal, "invalid token", "XX000");
        assert_eq!(database_of(client).await.unwrap(), "defaultdb");
    }
    // With the owner down the others judge the signature alone.
    let mut cluster = cluster;
    cluster.stop(0).await;
    let survivor = &everywhere(&cluster, &[1], &session).await[0];
    for at in 0..id.len() {
        no_session(survivor.with("sessionid", altered(&id, at)).get("k").await);
    }
    assert_eq!(database_of(survivor).await.unwrap(), "defaultdb");
    // A node that can ask nobody needs nobody to refuse what is made up, and who may be anybody is not looked at.
    cluster.stop(1).await;
    let began = Instant::now();
    let alone = &everywhere(&cluster, &[2], &session).await[0];
    no_session(alone.with("sessionid", altered(&id, id.len() - 10)).get("k").await);
    let alone = &everywhere(&cluster, &[2], &token).await[0];
    let forged = alone.with("authorization", altered(&text, text.len() - 10));
    refused(forged.get("k").await, Code::Internal, "invalid token", "XX000");
    let unknown = alone.with("authorization", altered(&text, 40));
    unknown.inner.clone().health(unknown.request(())).await.unwrap();
    assert!(began.elapsed() < TIMEOUT / 2, "{:?}", began.elapsed());
}

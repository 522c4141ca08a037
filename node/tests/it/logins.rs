//! Wrong passwords: slow for whoever sends them, on whatever way they come, and cheap for the node.

use std::time::Duration;

use alhambra_node::{NodeHandle, config::Secret};
use alhambra_proto::model;
use alhambra_proto::model::authorization_service_client::AuthorizationServiceClient;
use alhambra_proto::schema;
use tonic::{Code, Status};

use crate::support::*;

const DENIED: &str = "invalid user name or password";
/// As `node::limits` has them.
const FREE: usize = 5;

#[track_caller]
fn throttled<T: std::fmt::Debug>(result: Result<T, Status>) {
    let status = result.expect_err("the call is refused");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().starts_with("too many wrong passwords: no login is tried for the next "), "{status:?}");
}

#[track_caller]
fn denied<T: std::fmt::Debug>(result: Result<T, Status>) {
    refused(result, Code::Unknown, DENIED, "08004");
}

async fn login(client: &Client, user: &str, password: &str) -> Result<String, Status> {
    let request = schema::LoginRequest { user: bytes(user), password: bytes(password) };
    client.inner.clone().login(client.request(request)).await.map(|reply| reply.into_inner().token)
}

async fn authorize(node: &NodeHandle, user: &str, password: &str) -> Result<String, Status> {
    let mut other = AuthorizationServiceClient::new(channel(node).await);
    let (username, password) = (user.to_owned(), password.to_owned());
    let request = model::OpenSessionRequest { username, password, database: "defaultdb".into() };
    other.open_session(request).await.map(|reply| reply.into_inner().session_id)
}

async fn counter(node: &NodeHandle, name: &str) -> u64 {
    let (_, text) = page(node, "/metrics").await;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    line.map_or(0, |number| number.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_does_not_tell_whether_there_is_such_a_user() {
    let node = single().await;
    let client = Client::anonymous(&node).await;
    let mut told = Vec::new();
    for user in ["immudb", "nobody"] {
        let status = login(&client, user, "wrong").await.unwrap_err();
        told.push((status.message().to_owned(), status.details().to_vec()));
        let cause = alhambra_proto::code::Details::of(&status).unwrap().cause;
        assert_eq!(cause, "no user has this name and this password");
    }
    assert_eq!(told[0], told[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_are_slowed_down_on_every_way_in() {
    let node = single().await;
    let mut client = Client::anonymous(&node).await;
    let admin = Client::on(&node, "defaultdb").await;
    // Those of all ways in are counted together.
    for n in 0..FREE + 1 {
        match n % 3 {
            0 => denied(client.open("immudb", "wrong", "defaultdb").await),
            1 => denied(login(&client, "immudb", "wrong").await),
            _ => denied(authorize(&node, "immudb", "wrong").await),
        }
    }
    let hashes = counter(&node, "alhambra_password_hashes_total").await;
    throttled(client.open("immudb", "wrong", "defaultdb").await);
    throttled(login(&client, "immudb", "wrong").await);
    throttled(authorize(&node, "immudb", "wrong").await);
    throttled(client.open("immudb", PASSWORD, "defaultdb").await);
    let change = |old: &str| schema::ChangePasswordRequest {
        user: bytes("immudb"),
        old_password: bytes(old),
        new_password: bytes("New-pass-1!"),
    };
    throttled(admin.inner.clone().change_password(admin.request(change(PASSWORD))).await);
    assert_eq!(counter(&node, "alhambra_password_hashes_total").await, hashes, "refused unseen");
    assert_eq!(counter(&node, "alhambra_logins_refused_total").await, 5);
    // Another name is not concerned, nor is whoever is in already.
    denied(client.open("nobody", "wrong", "defaultdb").await);
    admin.set("k", "v").await.unwrap();

    // It passes by itself, and the right password makes it be forgotten.
    eventually("the end of the wait", || async { client.clone().open("immudb", PASSWORD, "defaultdb").await.is_ok() })
        .await;
    for _ in 0..FREE {
        denied(client.open("immudb", "wrong", "defaultdb").await);
    }
    client.open("immudb", PASSWORD, "defaultdb").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_of_the_old_password_are_logins_that_failed() {
    let node = single().await;
    let admin = Client::on(&node, "defaultdb").await;
    let change = |old: &str| schema::ChangePasswordRequest {
        user: bytes("immudb"),
        old_password: bytes(old),
        new_password: bytes("New-pass-1!"),
    };
    for _ in 0..FREE + 1 {
        let reply = admin.inner.clone().change_password(admin.request(change("guess"))).await;
        refused(reply, Code::PermissionDenied, "old password is incorrect", "");
    }
    throttled(admin.inner.clone().change_password(admin.request(change(PASSWORD))).await);
    throttled(Client::anonymous(&node).await.open("immudb", PASSWORD, "defaultdb").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_guesses_many_passwords_at_once_gets_no_more_tries() {
    let node = single().await;
    let client = Client::anonymous(&node).await;
    let mut tries = Vec::new();
    for _ in 0..60 {
        let mut client = client.clone();
        tries.push(tokio::spawn(async move { client.open("immudb", "wrong", "defaultdb").await.unwrap_err() }));
    }
    let mut seen = 0;
    for tried in tries {
        let status = tried.await.unwrap();
        if status.message() == DENIED {
            seen += 1;
        } else {
            throttled::<()>(Err(status));
        }
    }
    // One more may have its turn before the failure of the one before is noted.
    assert!((FREE + 1..=FREE + 3).contains(&seen), "{seen}");
    // A node compares the password that it was started with once, when it has time.
    let hashes = counter(&node, "alhambra_password_hashes_total").await;
    assert!((seen as u64..=seen as u64 + 1).contains(&hashes), "{hashes} for {seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_name_costs_what_a_wrong_password_costs() {
    let mut config = config();
    config.admin_password = Some(Secret::new(PASSWORD));
    let node = single_with(config).await;
    let mut client = Client::anonymous(&node).await;
    let mut before = counter(&node, "alhambra_password_hashes_total").await;
    for (user, password) in
        [("immudb", "wrong"), ("nobody", "wrong"), ("", ""), ("nobody", ""), ("", ""), ("immudb", "")]
    {
        denied(client.open(user, password, "defaultdb").await);
        let after = counter(&node, "alhambra_password_hashes_total").await;
        assert_eq!(after - before, 1, "{user:?} {password:?}");
        before = after;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_logins_at_once_hold_up_nobody_who_is_in() {
    let mut config = config();
    config.password_hash_memory = 16 << 10;
    config.request_timeout = PATIENCE;
    let node = single_with(config).await;
    let admin = Client::on(&node, "defaultdb").await;
    let client = Client::anonymous(&node).await;
    let mut tries = Vec::new();
    for n in 0..300 {
        let mut client = client.clone();
        // Names of their own, from an address that has not failed yet.
        tries.push(tokio::spawn(async move { client.open(&format!("u{n}"), "wrong", "defaultdb").await.unwrap_err() }));
    }
    eventually("an answer", || async {
        // Who is in already does not wait for it.
        let began = tokio::time::Instant::now();
        admin.set("k", "v").await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5));
        tries.iter().any(tokio::task::JoinHandle::is_finished)
    })
    .await;
    let (mut hashed, mut slowed_down) = (0, 0);
    for tried in tries {
        let status = tried.await.unwrap();
        match (status.code(), status.message()) {
            (Code::ResourceExhausted, text) => {
                assert!(text.starts_with("too many wrong passwords"), "{status:?}");
                slowed_down += 1;
            }
            (code, text) => {
                assert_eq!((code, text), (Code::Unknown, DENIED));
                hashed += 1;
            }
        }
    }
    // One at a time, and after twenty failures of the address hardly more: the others waited for their turn in vain.
    assert!((20..30).contains(&hashed) && hashed + slowed_down == 300, "{hashed} {slowed_down}");
}

//! Servers at which nobody logs in: those in maintenance mode give tokens.

use std::sync::Arc;

use alhambra_client::{Client, Options};

use crate::chain::Chain;
use crate::fake::{Cluster, Fake};

fn options() -> Options {
    Options { login: false, ..Options::default() }
}

async fn scene() -> (Arc<Cluster>, Fake, Client) {
    let cluster = Cluster::new(Chain::new(1));
    let fake = Fake::start(&cluster);
    let (client, _) = fake.client_with(options()).await;
    (cluster, fake, client)
}

/// What is trusted is kept under the identity, so nothing may be kept under none.
#[tokio::test]
async fn a_node_that_is_of_no_cluster_yet_is_passed_over() {
    let cluster = Cluster::new(Chain::new(1));
    let (new, formed) = (Fake::start(&cluster), Fake::start(&cluster));
    new.set_uuid("");
    let client = Client::connect(vec![new.endpoint.clone(), formed.endpoint.clone()], options()).await.unwrap();
    assert_eq!((client.endpoint(), &*client.server_uuid().await), (&*formed.endpoint, "d7l3kq8s9pmc73fn1g20"));
    client.verified_set("k", "v").await.unwrap();
    assert_eq!((new.count("verifiable_set"), formed.count("verifiable_set")), (0, 1));
}

#[tokio::test]
async fn a_token_that_is_no_good_any_more_is_replaced_and_the_write_done_once() {
    let (cluster, fake, client) = scene().await;
    client.set("k", "1").await.unwrap();
    fake.forget_sessions();
    client.set("k", "2").await.unwrap();
    client.verified_set("k", "3").await.unwrap();
    assert_eq!((cluster.state().tx.get(), fake.count("use_database"), fake.count("open_session")), (3, 2, 0));
}

#[tokio::test]
async fn a_database_that_is_not_served_is_not_selected() {
    let (_cluster, fake, client) = scene().await;
    client.set("k", "v").await.unwrap();
    assert!(client.use_database("elsewhere").await.unwrap_err().is_database_not_found());
    assert_eq!(client.database().await, "defaultdb");
    // The token is that of the selection, and both stay.
    let tokens = fake.count("use_database");
    assert_eq!(client.verified_get("k").await.unwrap().value.value, "v");
    assert_eq!(fake.count("use_database"), tokens);
    client.use_database("defaultdb").await.unwrap();
    assert_eq!(client.verified_get("k").await.unwrap().value.value, "v");
}

//! Endpoints that refuse, vanish or stay silent.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alhambra_client::{Client, Error, Options};
use alhambra_proto::code::{Code, text};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::Status;

use crate::chain::Chain;
use crate::fake::{Cluster, Fake, Fate};

pub async fn two() -> (Arc<Cluster>, Fake, Fake, Client) {
    let cluster = Cluster::new(Chain::new(1));
    let (one, two) = (Fake::start(&cluster), Fake::start(&cluster));
    let endpoints = vec![one.endpoint.clone(), two.endpoint.clone()];
    let client = Client::connect(endpoints, Options::default()).await.unwrap();
    (cluster, one, two, client)
}

pub fn txs(cluster: &Cluster) -> u64 {
    cluster.state().tx.get()
}

#[tokio::test]
async fn a_write_surely_not_applied_goes_to_the_next_endpoint_once() {
    let (cluster, one, two, client) = two().await;
    for code in [Code::NotLeader, Code::Starting, Code::NoQuorum] {
        let before = txs(&cluster);
        let at = if client.endpoint() == one.endpoint { &one } else { &two };
        at.refuse(code.status("not here"));
        client.set("k", "v").await.unwrap();
        assert_ne!(client.endpoint(), at.endpoint, "{code:?}");
        assert_eq!(txs(&cluster), before + 1, "{code:?}");
    }
    // Sessions are kept for the way back.
    assert_eq!((one.count("open_session"), two.count("open_session")), (1, 1));
}

#[tokio::test]
async fn an_overloaded_endpoint_is_asked_again_later() {
    let (cluster, one, two, client) = two().await;
    (0..3).for_each(|_| one.refuse(Code::Overloaded.status("queue is full")));
    client.set("k", "v").await.unwrap();
    assert_eq!((txs(&cluster), one.count("set"), two.count("set")), (1, 4, 0));
}

#[tokio::test]
async fn a_lost_session_is_made_anew_and_the_write_done_once() {
    let (cluster, one, _two, client) = two().await;
    client.set("k", "1").await.unwrap();
    one.forget_sessions();
    client.set("k", "2").await.unwrap();
    client.verified_set("k", "3").await.unwrap();
    assert_eq!((txs(&cluster), one.count("open_session")), (3, 2));
}

#[tokio::test]
async fn an_unknown_outcome_is_told_and_never_retried() {
    let (cluster, one, two, client) = two().await;
    for (count, code) in
        [(1, tonic::Code::Unavailable), (2, tonic::Code::Cancelled), (3, tonic::Code::DeadlineExceeded)]
    {
        for node in [&one, &two] {
            *node.node.fate.lock().unwrap() = Some(Fate::AppliedThen(code));
        }
        let error = client.set("k", "v").await.unwrap_err();
        assert!(matches!(error, Error::OutcomeUnknown { call: "set", .. }), "{error:?}");
        assert_eq!(txs(&cluster), count);
        // Reading decides.
        assert_eq!(client.get("k").await.unwrap().tx.get(), count);
    }
    for fake in [&one, &two] {
        *fake.node.fate.lock().unwrap() = None;
        fake.refuse(Code::OutcomeUnknown.status("proposed"));
    }
    let error = client.set("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error:?}");
    assert_eq!((txs(&cluster), error.code()), (3, Some(Code::OutcomeUnknown)));
}

#[tokio::test]
async fn a_silent_server_costs_a_write_its_deadline_and_no_more() {
    let cluster = Cluster::new(Chain::new(1));
    let fake = Fake::start(&cluster);
    let options = Options { request_timeout: Duration::from_millis(400), ..Options::default() };
    let (client, _) = fake.client_with(options).await;
    *fake.node.fate.lock().unwrap() = Some(Fate::AppliedThenSilent);
    let begin = Instant::now();
    let error = client.set("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error:?}");
    assert!((400..3_000).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
    assert_eq!(txs(&cluster), 1);
}

#[tokio::test]
async fn reads_go_on_when_an_endpoint_vanishes() {
    let (_cluster, one, two, client) = two().await;
    client.verified_set("k", "v").await.unwrap();
    drop(one);
    client.verified_get("k").await.unwrap();
    assert_eq!(client.endpoint(), two.endpoint);
    client.verified_set("k", "w").await.unwrap();
}

#[tokio::test]
async fn a_dead_first_endpoint_is_passed_over_at_login() {
    let cluster = Cluster::new(Chain::new(1));
    let fake = Fake::start(&cluster);
    // Bound and closed again: nobody listens there.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let client = Client::connect(vec![closed, fake.endpoint.clone()], Options::default()).await.unwrap();
    client.set("k", "v").await.unwrap();
    assert_eq!(txs(&cluster), 1);
}

#[tokio::test]
async fn nobody_there_is_unavailable_by_the_deadline() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    // Takes connections, never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoints = vec![closed, silent.local_addr().unwrap().to_string()];
    let options = Options { request_timeout: Duration::from_millis(700), ..Options::default() };
    let begin = Instant::now();
    let Err(error) = Client::connect(endpoints, options).await else { panic!("connected to nobody") };
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn an_endpoint_of_another_server_is_refused() {
    let (_cluster, one, two, client) = two().await;
    two.set_uuid("00000000000000000000");
    one.refuse(Code::NotLeader.status("not here"));
    let error = client.set("k", "v").await.unwrap_err();
    assert!(matches!(&error, Error::OtherServer { endpoint, .. } if *endpoint == two.endpoint), "{error:?}");
}

#[tokio::test]
async fn answers_are_answers() {
    let (_cluster, one, _two, client) = two().await;
    let password = Options { password: "wrong".into(), ..Options::default() };
    let Err(error) = Client::connect(vec![one.endpoint.clone()], password).await else { panic!("logged in") };
    assert!(error.is_login_refused(), "{error:?}");
    assert!(client.get("nothing").await.unwrap_err().is_key_not_found());
    assert!(client.use_database("nope").await.unwrap_err().is_database_not_found());
    client.use_database("defaultdb").await.unwrap();
    one.refuse(text::KEY_MUST_EXIST.status());
    let error = client.set("k", "v").await.unwrap_err();
    assert_eq!(error.details().map(|details| details.code).as_deref(), Some("23000"));
    one.refuse(Status::internal("a defect"));
    assert!(matches!(client.get("k").await.unwrap_err(), Error::Refused { .. }));
    assert!(matches!(Client::connect(Vec::new(), Options::default()).await, Err(Error::NoEndpoint)));
    let bad = Client::connect(vec!["not an endpoint".into()], Options::default()).await;
    assert!(matches!(bad, Err(Error::BadEndpoint { .. })));
    let bad = Options { server_public_key: Some("no key".into()), ..Options::default() };
    assert!(matches!(Client::connect(vec![one.endpoint.clone()], bad).await, Err(Error::BadPublicKey { .. })));
}

#[tokio::test]
async fn works_over_a_channel_that_somebody_else_made() {
    let cluster = Cluster::new(Chain::new(1));
    let fake = Fake::start(&cluster);
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", fake.endpoint)).unwrap().connect_lazy();
    let client = Client::from_channel(channel, Options::default()).await.unwrap();
    client.verified_set("k", "v").await.unwrap();
    client.close().await;
}

/// A session at another endpoint, to which a clone moves while a database is selected, has the old one selected.
#[tokio::test]
async fn a_selection_holds_at_every_endpoint_also_when_a_clone_fails_over_meanwhile() {
    let (_cluster, one, two, client) = two().await;
    // A session at both, and back at the first.
    for at in [&one, &two] {
        at.refuse(Code::NotLeader.status("not here"));
        client.set("k", "v").await.unwrap();
    }
    assert_eq!(client.endpoint(), one.endpoint);
    let (release, held) = oneshot::channel();
    *one.node.held_selection.lock().unwrap() = Some(held);
    let selecting = tokio::spawn({
        let client = client.clone();
        async move { client.use_database("second").await }
    });
    while one.node.held_selection.lock().unwrap().is_some() {
        tokio::task::yield_now().await;
    }
    one.refuse(Code::NotLeader.status("not here"));
    client.set("k", "v").await.unwrap();
    assert_eq!(client.endpoint(), two.endpoint);
    release.send(()).unwrap();
    selecting.await.unwrap().unwrap();
    for at in [&two, &one] {
        client.set("k", "v").await.unwrap();
        assert_eq!(client.endpoint(), at.endpoint);
        assert_eq!(at.node.served_in.lock().unwrap().last().unwrap(), "second");
        at.refuse(Code::NotLeader.status("not here"));
        client.set("k", "v").await.unwrap();
    }
    // Sessions that nobody needs any more are ended, not left to the server until they expire.
    let ended = async {
        while (one.count("close_session"), two.count("close_session")) != (1, 1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap();
}

/// A selection opens a session beside the one that there is, for which a full server has no room. The old one is not given up for it:
/// others may take its place.
#[tokio::test]
async fn a_selection_that_is_refused_leaves_everything_as_it_was() {
    let cluster = Cluster::new(Chain::new(1));
    let fake = Fake::start(&cluster);
    fake.node.sessions_max.store(1, Ordering::SeqCst);
    let client = Client::connect(vec![fake.endpoint.clone()], Options::default()).await.unwrap();
    let refused = client.use_database("second").await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { status, .. } if text::MAX_SESSIONS.is(status)), "{refused:?}");
    client.set("k", "v").await.unwrap();
    assert_eq!(fake.node.served_in.lock().unwrap().last().unwrap(), "defaultdb");
    assert_eq!(fake.count("close_session"), 0);
}

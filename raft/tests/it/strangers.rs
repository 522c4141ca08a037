//! A node whose data folder is of another cluster than its peers, started in every order: it never serves and ends with the
//! reason; the others serve without it.

use std::sync::Arc;
use std::time::Duration;

use alhambra_raft::forming::FormError;
use alhambra_raft::forming::company::Stranger;
use alhambra_raft::groups::{Groups, Phase, StartError};
use tokio::time::timeout;

use crate::cluster::until;
use crate::nodes::{Nodes, run, soon};

/// What waiting is for: anything that takes longer does not happen.
const LONG: Duration = Duration::from_secs(60);

/// A cluster of three and the folder of the first node of another; all stopped. The names of both clusters.
async fn two_clusters() -> (Nodes, Nodes, [String; 2]) {
    let mut names = Vec::new();
    let mut made = Vec::new();
    for _ in 0..2 {
        let mut nodes = Nodes::new(3, 3);
        for node in 0..3 {
            nodes.start(node).await;
        }
        nodes.ready().await;
        names.push(nodes.running[&0].identity().unwrap().cluster);
        nodes.stop_all().await;
        made.push(nodes);
    }
    let theirs = made.pop().unwrap();
    (made.pop().unwrap(), theirs, names.try_into().unwrap())
}

/// Starts node 0 of `ours` on the folder of node 0 of `theirs`; the error if it refuses at once.
async fn start_wrong(ours: &Nodes, theirs: &Nodes) -> Result<Arc<Groups>, StartError> {
    let mut spec = ours.spec(0);
    spec.dir = theirs.dir(0);
    Groups::start(Nodes::env(), spec).await
}

fn refuses(error: &StartError, ours: &str, theirs: &str) {
    match error {
        // Seen from the wrong node, the peers are the others.
        StartError::Form(FormError::OtherCluster { ours: own, theirs: peers, .. }) => {
            assert_eq!((own.as_str(), peers.as_str()), (theirs, ours));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_one_wrong_node_of_three_ends_and_the_others_serve_in_whatever_order_they_start() {
    run(async {
        let (mut ours, theirs, [our_name, their_name]) = two_clusters().await;
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]] {
            let mut wrong = None;
            for node in order {
                if node == 0 {
                    wrong = Some(start_wrong(&ours, &theirs).await);
                } else {
                    ours.start(node).await;
                }
            }
            match wrong.unwrap() {
                Err(error) => refuses(&error, &our_name, &their_name),
                Ok(groups) => {
                    let ended = timeout(LONG, groups.failed()).await;
                    refuses(&ended.expect("a node among strangers ends"), &our_name, &their_name);
                    assert!(!groups.ready().ready, "{:?}", groups.ready());
                    groups.shutdown(soon()).await;
                }
            }
            ours.ready().await;
            ours.stop_all().await;
        }
    });
}

#[test]
fn a_node_that_knows_one_peer_and_that_a_stranger_waits_for_another_and_says_so() {
    run(async {
        let (mut ours, theirs, [our_name, their_name]) = two_clusters().await;
        ours.start(1).await;
        let wrong = start_wrong(&ours, &theirs).await.expect("one stranger of three proves nothing");
        // The one that is wrong does not open its databases either, nor does it say that it is ready.
        let waits = |groups: &Groups, cluster: &str| {
            let ready = groups.ready();
            assert!(!ready.ready && !ready.among_peers, "{ready:?}");
            matches!(ready.phase, Phase::Forming(text) if text.contains(cluster)) && ready.groups.is_empty()
        };
        until("the wrong node to wait", || waits(&wrong, &our_name)).await;
        // The other was alone when it started, so it has opened its databases; it hears of the stranger all the same.
        let stranger = Stranger { addr: ours.addrs[0].clone(), cluster: their_name.clone() };
        let sound = ours.running[&1].clone();
        until("the stranger to be named", || sound.ready().strangers == [stranger.clone()]).await;
        assert!(!sound.ready().ready);

        ours.start(2).await;
        let ended = timeout(LONG, wrong.failed()).await;
        refuses(&ended.expect("a node among strangers ends"), &our_name, &their_name);
        wrong.shutdown(soon()).await;
        ours.ready().await;

        // With the right folder the cluster is whole, and no stranger is left.
        ours.start(0).await;
        ours.ready().await;
        until("the stranger to be forgotten", || sound.ready().strangers.is_empty()).await;
        drop(sound);
        ours.stop_all().await;
    });
}

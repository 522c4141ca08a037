//! Three replicas that work, and what clients of any of them are promised.

use std::collections::BTreeSet;

use alhambra_ledger::ids::{LogId, LogIndex, Term, TxId};
use alhambra_raft::error::{MembershipError, ProposeError, ReadError};
use alhambra_raft::group::{Level, Role, Tuning};
use alhambra_raft::types::to_raft_log_id;
use alhambra_storage::apply::Outcome;
use alhambra_storage::command::{RequestId, Settings};
use futures::future::join_all;
use openraft::impls::Vote;
use openraft::impls::leader_id_std::LeaderId;
use openraft::raft::VoteRequest;

use crate::cluster::{Cluster, after, get, node, peek, put, revisions, run, set, settled, until};

#[test]
fn a_write_through_any_node_is_seen_through_every_node() {
    run(async {
        let cluster = Cluster::three().await;
        for writer in 1..=3 {
            let key = format!("from-{writer}");
            let tx = put(&cluster.group(writer), &key, "v").await.unwrap();
            for reader in 1..=3 {
                assert_eq!(
                    get(&cluster.group(reader), &key).await.unwrap().as_deref(),
                    Some("v"),
                    "{writer} -> {reader}"
                );
                let point = cluster.group(reader).barrier(Level::AtLeast(tx), after(1)).await.unwrap();
                assert!(point.tx >= tx);
            }
        }
        cluster.assert_equal().await;
    });
}

/// Whoever begins a group asks for votes before its first entry is anywhere else. When it is gone then, the others have a vote and
/// no entry, with which the core takes neither elections nor another beginning.
#[test]
fn a_group_whose_beginner_is_gone_after_the_votes_is_begun_by_the_others() {
    run(async {
        let mut cluster = Cluster::unformed(3, 64 << 20, false, Tuning::default(), Settings::DEFAULT).await;
        for id in [1, 3] {
            let vote = Vote { leader_id: LeaderId { term: 1, voted_for: 2 }, committed: false };
            let first = Some(to_raft_log_id(LogId { term: Term(0), index: LogIndex(0) }));
            let request = VoteRequest { vote, last_log_id: first, leadership_transfer: false };
            let answer = cluster.group(id).raft().vote(request).await.unwrap();
            assert!(answer.vote_granted, "{answer:?}");
        }
        cluster.stop(2).await;
        let begun = cluster.group(1).initialize([(1, node(1))].into()).await;
        assert!(matches!(begun, Err(MembershipError::AlreadyInitialised)), "{begun:?}");
        cluster.first_members = (1..=3).map(|id| (id, node(id).addr)).collect();
        for id in [1, 3] {
            cluster.stop(id).await;
            cluster.start(id).await;
        }
        let leader = cluster.leader().await;
        put(&cluster.group(leader), "first", "v").await.unwrap();
        cluster.start(2).await;
        put(&cluster.group(2), "second", "v").await.unwrap();
        cluster.assert_equal().await;
    });
}

#[test]
fn many_clients_share_log_entries_and_each_gets_its_own_transaction() {
    run(async {
        let cluster = Cluster::three().await;
        let leader = cluster.leader().await;
        put(&cluster.group(leader), "first", "v").await.unwrap();
        let before = cluster.group(leader).status().last_log.unwrap().index.get();
        let groups: Vec<_> = (1..=3).map(|id| cluster.group(id)).collect();
        let writes = (0..300).map(|n| {
            let group = groups[n % 3].clone();
            async move { put(&group, &format!("k{n}"), "v").await.unwrap() }
        });
        let txs: BTreeSet<TxId> = join_all(writes).await.into_iter().collect();
        assert_eq!(txs.len(), 300);
        let entries = cluster.group(leader).status().last_log.unwrap().index.get() - before;
        assert!(entries <= 30, "300 writes took {entries} log entries");
        cluster.assert_equal().await;
    });
}

#[test]
fn one_request_id_commits_once() {
    run(async {
        let cluster = Cluster::three().await;
        let follower = cluster.follower().await;
        let request = Some(RequestId { client: [7; 16], sequence: 1, floor: LogIndex(0) });
        let mut proposal = set("once", "v");
        proposal.request = request;
        let mut outcomes = Vec::new();
        for group in [cluster.group(follower), cluster.group(1), cluster.group(2), cluster.group(3)] {
            outcomes.push(group.propose(proposal.clone(), after(5_000)).await.unwrap());
        }
        assert!(matches!(outcomes[0], Outcome::Committed { .. }));
        assert!(outcomes.iter().all(|o| *o == outcomes[0]), "{outcomes:?}");
        assert_eq!(revisions(&cluster.group(follower), "once"), 1);
    });
}

#[test]
fn a_lost_answer_is_asked_for_again_and_nothing_is_written_twice() {
    run(async {
        let cluster = Cluster::three().await;
        let follower = cluster.group(cluster.follower().await);
        for n in 0..5 {
            cluster.lose_next_answer();
            let tx = put(&follower, "lossy", &n.to_string()).await.unwrap();
            assert_eq!(revisions(&follower, "lossy"), n + 1, "after transaction {tx}");
        }
    });
}

#[test]
fn writes_go_on_after_the_leader_was_cut_off_and_its_tail_is_cut() {
    run(async {
        let cluster = Cluster::three().await;
        let old = cluster.leader().await;
        put(&cluster.group(old), "before", "v").await.unwrap();
        cluster.isolate(old, true);
        // The old leader takes this but cannot commit it. It must say so by the deadline.
        let stuck = cluster.group(old).propose(set("stuck", "v"), after(400)).await;
        assert_eq!(stuck, Err(ProposeError::OutcomeUnknown));
        let began = tokio::time::Instant::now();
        let new = cluster.leader_other_than(old).await;
        put(&cluster.group(new), "after", "v").await.unwrap();
        assert!(began.elapsed().as_millis() < 3_000, "writes went on after {:?}", began.elapsed());
        cluster.isolate(old, false);
        until("the old leader follows", || cluster.group(old).status().role == Role::Follower).await;
        assert_eq!(get(&cluster.group(old), "after").await.unwrap().as_deref(), Some("v"));
        cluster.assert_equal().await;
        for id in 1..=3 {
            assert_eq!(peek(&cluster.group(id), "stuck"), None, "node {id}");
        }
    });
}

#[test]
fn a_cut_off_leader_serves_no_linearizable_reads() {
    run(async {
        let cluster = Cluster::three().await;
        let old = cluster.leader().await;
        put(&cluster.group(old), "k", "1").await.unwrap();
        cluster.isolate(old, true);
        let new = cluster.leader_other_than(old).await;
        put(&cluster.group(new), "k", "2").await.unwrap();
        let refused = cluster.group(old).barrier(Level::Linearizable, after(2_000)).await;
        assert_eq!(refused, Err(ReadError::NoQuorum));
        let local = cluster.group(old).barrier(Level::Local, after(1)).await.unwrap();
        assert!(local.tx < cluster.group(new).database().applied().tx);
        cluster.isolate(old, false);
        assert_eq!(get(&cluster.group(old), "k").await.unwrap().as_deref(), Some("2"));
    });
}

#[test]
fn only_a_quorum_says_that_a_transaction_does_not_exist() {
    run(async {
        let mut cluster = Cluster::three().await;
        let leader = cluster.leader().await;
        let follower = cluster.follower().await;
        let newest = put(&cluster.group(leader), "k", "v").await.unwrap();
        let asked = TxId(newest.get() + 5);
        for id in [leader, follower] {
            let refused = cluster.group(id).barrier(Level::AtLeast(asked), after(5_000)).await;
            assert_eq!(refused, Err(ReadError::BeyondLedger { asked, latest: newest }), "node {id}");
        }
        for id in 1..=3 {
            if id != follower {
                cluster.stop(id).await;
            }
        }
        let alone = cluster.group(follower).barrier(Level::AtLeast(asked), after(5_000)).await;
        assert!(
            matches!(alone, Err(ReadError::NoQuorum | ReadError::Unavailable { .. })),
            "without a quorum nobody knows: {alone:?}"
        );
    });
}

#[test]
fn reads_that_come_together_share_a_round() {
    run(async {
        let cluster = Cluster::three().await;
        let follower = cluster.group(cluster.follower().await);
        put(&follower, "k", "v").await.unwrap();
        let began = tokio::time::Instant::now();
        let reads = (0..500).map(|_| follower.barrier(Level::Linearizable, after(10_000)));
        for read in join_all(reads).await {
            read.unwrap();
        }
        // One hop and one heartbeat round, perhaps two of each; not five hundred.
        assert!(began.elapsed().as_millis() < 100, "500 reads took {:?}", began.elapsed());
    });
}

/// Three nodes whose queues have room for two writes of a thousand bytes; one more may be on its way.
async fn with_a_small_queue() -> Cluster {
    let small = Tuning { queue_bytes_max: 3_000, batches_in_flight_max: 1, ..Tuning::default() };
    Cluster::tuned(3, 64 << 20, true, small).await
}

#[test]
fn whoever_finds_a_full_queue_waits_for_room() {
    run(async {
        let cluster = with_a_small_queue().await;
        let group = cluster.group(cluster.leader().await);
        // One of them is larger than all the room.
        let writes = (0..200).map(|n| {
            let (group, len) = (group.clone(), if n == 50 { 5_000 } else { 1_000 });
            async move { group.propose(set(&format!("k{n}"), &"x".repeat(len)), after(5_000)).await }
        });
        for result in join_all(writes).await {
            assert!(matches!(result, Ok(Outcome::Committed { .. })), "{result:?}");
        }
    });
}

#[test]
fn who_finds_no_room_in_time_is_refused_and_not_written() {
    run(async {
        let cluster = with_a_small_queue().await;
        let group = cluster.group(cluster.leader().await);
        (1..=3).for_each(|id| cluster.hold_disk(id, true));
        let writes = (0..20).map(|n| {
            let group = group.clone();
            async move { group.propose(set(&format!("k{n}"), &"x".repeat(1_000)), after(500)).await }
        });
        let results = join_all(writes).await;
        (1..=3).for_each(|id| cluster.hold_disk(id, false));
        let refused: Vec<usize> =
            (0..20).filter(|n| matches!(results[*n], Err(ProposeError::Overloaded { .. }))).collect();
        assert!(refused.len() >= 15, "room is for two, and one is on its way: {results:?}");
        put(&group, "last", "v").await.unwrap();
        for n in refused {
            assert_eq!(peek(&group, &format!("k{n}")), None, "what was refused is not written");
        }
    });
}

#[test]
fn leadership_is_handed_over() {
    run(async {
        let cluster = Cluster::three().await;
        let old = cluster.leader().await;
        let to = cluster.follower().await;
        put(&cluster.group(old), "k", "1").await.unwrap();
        settled(cluster.group(old).transfer_leader(to).await);
        until("the other node leads", || cluster.group(to).is_leader()).await;
        put(&cluster.group(old), "k", "2").await.unwrap();
        cluster.assert_equal().await;
    });
}

#[test]
fn voters_are_added_and_removed() {
    run(async {
        let mut cluster = Cluster::three().await;
        put(&cluster.group(1), "k", "v").await.unwrap();
        cluster.start(4).await;
        let leader = cluster.leader().await;
        settled(cluster.group(leader).add_learner(4, crate::cluster::node(4), after(20_000)).await);
        let gone = cluster.follower().await;
        let voters: BTreeSet<u64> = (1..=4).filter(|id| *id != gone).collect();
        settled(cluster.group(leader).change_voters(voters.clone(), after(20_000)).await);
        assert_eq!(cluster.group(leader).status().voters.into_keys().collect::<BTreeSet<_>>(), voters);
        assert_eq!(get(&cluster.group(4), "k").await.unwrap().as_deref(), Some("v"));
        put(&cluster.group(4), "k", "2").await.unwrap();
        cluster.assert_equal().await;
    });
}

#[test]
fn a_group_is_initialised_once() {
    run(async {
        let cluster = Cluster::three().await;
        for id in 1..=3 {
            let again = cluster.group(id).initialize([(id, crate::cluster::node(id))].into()).await;
            assert!(
                matches!(again, Err(alhambra_raft::error::MembershipError::AlreadyInitialised)),
                "node {id}: {again:?}"
            );
        }
    });
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let history = || {
        run(async {
            let cluster = Cluster::three().await;
            let began = tokio::time::Instant::now();
            let old = cluster.leader().await;
            let groups: Vec<_> = (1..=3).map(|id| cluster.group(id)).collect();
            let writes = |round: usize| {
                let groups = &groups;
                join_all((0..50).map(move |n| async move { put(&groups[n % 3], &format!("{round}-{n}"), "v").await }))
            };
            let first = writes(0).await;
            cluster.isolate(old, true);
            let new = cluster.leader_other_than(old).await;
            cluster.isolate(old, false);
            let second = writes(1).await;
            cluster.assert_equal().await;
            let end = cluster.group(new).status();
            (old, new, first, second, end.last_log, cluster.group(new).database().applied().alh, began.elapsed())
        })
    };
    assert_eq!(history(), history());
}

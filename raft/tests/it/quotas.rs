//! Quotas of a database: taken up to the limit, refused one past it, with a type that says what to do, wherever the call
//! came in; nothing refused is applied.

use std::time::Duration;

use alhambra_ledger::ids::LogIndex;
use alhambra_raft::error::{ProposeError, WriteLimit};
use alhambra_raft::group::Tuning;
use alhambra_storage::apply::Outcome;
use alhambra_storage::command::{RequestId, Settings};

use crate::cluster::{Cluster, after, peek, put, run, set};

async fn cluster(settings: Settings) -> Cluster {
    Cluster::with_settings(3, 64 << 20, true, Tuning::default(), settings).await
}

#[test]
fn a_database_grows_to_its_quota_and_not_beyond() {
    run(async {
        const QUOTA: u64 = 20_000;
        let cluster = cluster(Settings { quota_bytes: QUOTA, ..Settings::DEFAULT }).await;
        let leader = cluster.group(cluster.leader().await);
        let mut taken = 0;
        loop {
            let key = format!("k{taken}");
            let proposal = set(&key, &"v".repeat(700));
            let needed = {
                // With the request id that every proposal gets.
                let mut proposal = proposal.clone();
                proposal.request = Some(RequestId { client: [0; 16], sequence: 1, floor: LogIndex(0) });
                proposal.encoded_len_max() as u64
            };
            let used = leader.database().size_bytes();
            match leader.propose(proposal, after(5_000)).await {
                Ok(Outcome::Committed { .. }) => {
                    assert!(used + needed <= QUOTA, "{used} and {needed} are taken");
                    taken += 1;
                }
                Err(ProposeError::LimitExceeded(limit)) => {
                    assert!(used + needed > QUOTA, "{used} and {needed} are refused");
                    let expected =
                        WriteLimit::QuotaBytes { used_bytes: used, needed_bytes: needed, quota_bytes: QUOTA };
                    assert_eq!(limit, expected);
                    assert!(limit.to_string().contains("prune or raise the quota"), "{limit}");
                    assert_eq!(peek(&leader, &key), None);
                    // A smaller one, exactly at the limit, and one byte past it.
                    let overhead = needed - 700;
                    let room = usize::try_from(QUOTA - used - overhead).expect("the quota leaves room for the head");
                    let one_more = leader.propose(set(&key, &"v".repeat(room + 1)), after(5_000)).await;
                    assert!(matches!(one_more, Err(ProposeError::LimitExceeded(_))), "{one_more:?}");
                    assert_eq!(leader.database().size_bytes(), used, "a refusal takes nothing");
                    put(&leader, &key, &"v".repeat(room)).await.unwrap();
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(taken > 10);
        let follower = cluster.group(cluster.follower().await);
        let forwarded = follower.propose(set("more", &"v".repeat(700)), after(5_000)).await;
        assert!(matches!(forwarded, Err(ProposeError::LimitExceeded(WriteLimit::QuotaBytes { .. }))), "{forwarded:?}");
        cluster.assert_equal().await;
        assert!(leader.status().refused[1] >= 3);
    });
}

#[test]
fn so_many_transactions_a_second_and_not_one_more() {
    run(async {
        let cluster = cluster(Settings { quota_tx_per_second: 10, ..Settings::DEFAULT }).await;
        let leader = cluster.group(cluster.leader().await);
        put(&leader, "genesis is applied", "v").await.unwrap();
        for round in 0..3 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let began = tokio::time::Instant::now();
            // All at the same moment: in virtual time nothing passes between them.
            let writes = (0..25).map(|n| {
                let group = leader.clone();
                async move { group.propose(set(&format!("r{round}-{n}"), "v"), after(5_000)).await }
            });
            let answers = futures::future::join_all(writes).await;
            let taken = answers.iter().filter(|answer| answer.is_ok()).count();
            assert_eq!(taken, 10, "round {round}");
            let limit = WriteLimit::QuotaTransactions { per_second: 10 };
            for answer in answers.iter().filter(|answer| answer.is_err()) {
                assert_eq!(*answer, Err(ProposeError::LimitExceeded(limit)));
            }
            // A tenth of a second pays for one more.
            tokio::time::sleep_until(began + Duration::from_millis(99)).await;
            let early = leader.propose(set("early", "v"), after(5_000)).await;
            assert_eq!(early, Err(ProposeError::LimitExceeded(limit)));
            tokio::time::sleep_until(began + Duration::from_millis(100)).await;
            put(&leader, &format!("r{round}-paid"), "v").await.unwrap();
        }
        cluster.assert_equal().await;
        assert_eq!(peek(&leader, "early"), None);
    });
}

#[test]
fn a_retry_is_the_same_transaction_and_is_not_charged_again() {
    run(async {
        let cluster = cluster(Settings { quota_tx_per_second: 10, ..Settings::DEFAULT }).await;
        let leader = cluster.group(cluster.leader().await);
        put(&leader, "genesis is applied", "v").await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let floor = LogIndex(0);
        let request = |sequence| {
            let mut proposal = set(&format!("k{sequence}"), "v");
            proposal.request = Some(RequestId { client: [7; 16], sequence, floor });
            proposal
        };
        // All at the same moment: in virtual time nothing passes between them.
        let writes = (0..30).map(|n| {
            let (group, proposal) = (leader.clone(), request(n % 10));
            async move {
                // From this node and from another, as after an answer that was lost.
                match n / 10 {
                    0 | 1 => group.propose(proposal, after(5_000)).await,
                    _ => group.serve_propose(proposal, after(5_000)).await.map(Outcome::from),
                }
            }
        });
        let one_more = leader.propose(request(10), after(5_000));
        let (answers, one_more) = futures::join!(futures::future::join_all(writes), one_more);
        for n in 0..30 {
            assert!(matches!(answers[n], Ok(Outcome::Committed { .. })), "{:?}", answers[n]);
            assert_eq!(answers[n], answers[n % 10], "a transaction of its own");
        }
        let limit = WriteLimit::QuotaTransactions { per_second: 10 };
        assert_eq!(one_more, Err(ProposeError::LimitExceeded(limit)));
        // What was refused was not charged: it is when it is taken.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let again = (10..21).map(|n| {
            let group = leader.clone();
            let proposal = request(n);
            async move { group.propose(proposal, after(5_000)).await }
        });
        let answers = futures::future::join_all(again).await;
        assert!(answers[..10].iter().all(Result::is_ok), "{answers:?}");
        assert_eq!(answers[10], Err(ProposeError::LimitExceeded(limit)));
        cluster.assert_equal().await;
    });
}

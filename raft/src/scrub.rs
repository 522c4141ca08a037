//! Finding rot before a reader does, and mending it: every replica reads its files again, at a pace that all groups of a node
//! share, derives again what is derived, and fetches segments from the other members.
//!
//! Whose bytes count is not for one replica to say. Where the digest that a replica remembers of a segment is the sealed one,
//! rot in its file is only its own: it fetches the segment. Where they differ, either may be wrong, so all members are
//! asked, and what more than half of the voters remember counts (`majority`); a leader that learns that the seal is the
//! wrong one proposes a corrected one. Nothing takes a segment's place that does not hash to what was agreed on, so neither
//! a rotten leader nor a rotten sender does harm.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use alhambra_ledger::Digest;
use alhambra_ledger::ids::GroupId;
use alhambra_storage::error::Error as StorageError;
use alhambra_storage::plant::{Plant, is_planted};
use alhambra_storage::{Damaged, SegmentRepair, SegmentVersion, SegmentVote};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use crate::forward::{Forward, SEGMENT_PART_BYTES_MAX, SegmentPart};
use crate::group::Replica;
use crate::strand::{Chain, Strand};

/// Read again per second and node unless configured, bytes: 10 GB take less than an hour.
pub const SCRUB_BYTES_PER_SECOND_DEFAULT: u64 = 4 << 20;
/// From the end of one pass to the beginning of the next, milliseconds: six hours.
pub const SCRUB_INTERVAL_MS_DEFAULT: u64 = 6 * 3600 * 1000;

/// Bytes of one step: short, so that whoever shares the thread gets turns.
const STEP_BYTES: u64 = 256 << 10;
/// A replica that starts has other things to do first.
const FIRST_PASS_WAIT: Duration = Duration::from_secs(30);
/// How often a replica looks for damage that readers came upon and for seals that do not fit.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// What could not be mended is tried again after this.
const RETRY_WAIT: Duration = Duration::from_secs(10);
/// A member reads a whole segment before it answers.
const VOTE_WAIT: Duration = Duration::from_secs(30);
/// A part of a segment has to come within this.
pub(crate) const PART_WAIT: Duration = Duration::from_secs(15);

/// How fast the groups of a node together read their files again.
#[derive(Debug)]
pub struct ScrubPace {
    bytes_per_second: u64,
    /// When what has been read so far is paid for.
    paid: Mutex<Option<Instant>>,
}

impl ScrubPace {
    /// At most so many bytes per second; 0: nothing is read, and only what readers come upon is mended.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, paid: Mutex::default() }
    }

    /// Waits until `bytes` more may be read, whoever read before.
    async fn take(&self, bytes: u64) {
        let until = {
            let mut paid = self.paid.lock();
            let now = Instant::now();
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.max(1));
            let wait = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            let until = paid.map_or(now, |paid| paid.max(now)) + wait;
            *paid = Some(until);
            until
        };
        sleep_until(until).await;
    }
}

/// What reading the files of a replica again has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Bytes read.
    pub bytes: u64,
    /// Pieces of damage that a pass came upon.
    pub mismatches: u64,
    /// Pieces of damage that were mended.
    pub repaired: u64,
    /// Pieces of damage that could not be mended yet.
    pub waiting: u64,
    /// End of the last complete pass since the start, Unix milliseconds.
    pub last_pass_ms: Option<i64>,
}

/// The scrub of one replica.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    bytes: AtomicU64,
    mismatches: AtomicU64,
    repaired: AtomicU64,
    waiting: AtomicU64,
    /// 0 for none.
    last_pass_ms: AtomicI64,
    seals_due: AtomicBool,
    /// Segments that a member has asked this leader about: it may have rotted before it hashed, and then its memory and the
    /// seal that it proposed say the same.
    questioned: Mutex<BTreeSet<u64>>,
}

impl Scrub {
    pub(crate) fn status(&self) -> ScrubStatus {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let last_pass_ms = self.last_pass_ms.load(Ordering::Relaxed);
        ScrubStatus {
            bytes: load(&self.bytes),
            mismatches: load(&self.mismatches),
            repaired: load(&self.repaired),
            waiting: load(&self.waiting),
            last_pass_ms: (last_pass_ms != 0).then_some(last_pass_ms),
        }
    }

    /// Whether there may be a seal to propose since this was asked last, though nothing was applied.
    pub(crate) fn take_seals_due(&self) -> bool {
        self.seals_due.swap(false, Ordering::AcqRel)
    }
}

/// The version that more than half of the voters remember, at least two of them: a replica alone is no witness against its
/// own seal. Who does not answer counts against everybody; so does who has lost more values of it, or fewer, until all have
/// lost the same.
pub(crate) fn majority(voters: &BTreeSet<u64>, votes: &BTreeMap<u64, SegmentVote>) -> Option<SegmentVersion> {
    let mut counts: BTreeMap<SegmentVersion, usize> = BTreeMap::new();
    for (_, vote) in votes.iter().filter(|(node, _)| voters.contains(node)) {
        *counts.entry(vote.version).or_default() += 1;
    }
    counts.into_iter().find(|(_, count)| *count >= 2 && count * 2 > voters.len()).map(|(version, _)| version)
}

/// Which version of a segment is to be here; none when nobody can say.
pub(crate) fn agreed(
    own: &SegmentVote,
    sealed: Option<Digest>,
    questioned: bool,
    voters: &BTreeSet<u64>,
    votes: &BTreeMap<u64, SegmentVote>,
) -> Option<SegmentVersion> {
    // Memory and seal are two witnesses. Where they differ, or nothing is sealed, the voters are asked; also where a member
    // doubts the leader, who may have made the seal from what is in its memory.
    let certain = sealed == Some(own.version.digest) && !questioned;
    let available = own.whole || votes.values().any(|vote| vote.whole && vote.version == own.version);
    if certain && available {
        return Some(own.version);
    }
    if is_planted(Plant::OverwriteOnDispute) {
        return votes.first_key_value().map(|(_, vote)| vote.version);
    }
    // The others may have written it again without pruned values: then the own version is nowhere to be had. One of which
    // values are gone here never becomes one that has them.
    let known = majority(voters, votes).filter(|version| version.generation >= own.version.generation);
    known.filter(|version| !certain || version.generation > own.version.generation)
}

/// What nodes hold of a segment, as far as they answer.
pub(crate) async fn ask(
    forward: &dyn Forward,
    group: GroupId,
    segment: u64,
    nodes: impl Iterator<Item = u64>,
) -> BTreeMap<u64, SegmentVote> {
    let deadline = Instant::now() + VOTE_WAIT;
    let asked = nodes.map(|node| async move {
        let vote = forward.segment_vote(group, node, segment, deadline).await;
        vote.map(|vote| (node, vote))
    });
    futures::future::join_all(asked).await.into_iter().flatten().collect()
}

/// A node from which a segment can be had.
pub(crate) struct Sender<'a> {
    pub(crate) forward: &'a dyn Forward,
    pub(crate) group: GroupId,
    pub(crate) node: u64,
}

impl Sender<'_> {
    /// Receives what stands behind the header of a segment and has it written by `write`, on the strand. Answers `sink`, and
    /// whether all of it came and was written; nothing when the executor has stopped.
    pub(crate) async fn receive<S: Send + 'static>(
        &self,
        segment: u64,
        vote: &SegmentVote,
        strand: &Strand,
        mut sink: S,
        write: fn(&mut S, &[u8]) -> alhambra_storage::Result<()>,
    ) -> Result<(S, bool), ()> {
        let Self { forward, group, node } = *self;
        let mut offset = 0;
        while offset < vote.bytes {
            let left = vote.bytes - offset;
            let len = u32::try_from(left).map_or(SEGMENT_PART_BYTES_MAX, |left| left.min(SEGMENT_PART_BYTES_MAX));
            let part = SegmentPart { segment, generation: vote.version.generation, offset, len };
            let bytes = forward.segment_part(group, node, part, Instant::now() + PART_WAIT).await;
            let Some(bytes) = bytes.filter(|bytes| bytes.len() == len as usize) else {
                tracing::warn!(%group, segment, node, "a segment was not received");
                return Ok((sink, false));
            };
            let write = move || {
                let written = write(&mut sink, &bytes);
                (sink, written)
            };
            let written;
            (sink, written) = strand.run(write).await.map_err(drop)?;
            if let Err(e) = written {
                tracing::warn!(%group, segment, node, error = %Chain(&e), "a part of a segment cannot be written");
                return Ok((sink, false));
            }
            offset += u64::from(len);
        }
        Ok((sink, true))
    }
}

/// What came of asking the members about a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// It is here as more than half of the voters have it.
    Settled,
    /// They do not agree, or it could not be fetched: to be asked again.
    Open,
    /// Nothing can be said about it here: there is no such segment, or it is not closed.
    Nothing,
}

impl Replica {
    /// Has the leader look for seals to propose although nothing is applied: a segment was mended, or written again.
    pub(crate) fn look_for_seals(&self) {
        self.scrub.seals_due.store(true, Ordering::Release);
        self.seals_due.notify_one();
    }

    /// Runs for as long as the replica.
    pub(crate) async fn run_scrub(self: Arc<Self>) {
        let interval = Duration::from_millis(self.tuning.scrub_interval_ms);
        let reads = self.tuning.scrub_pace.bytes_per_second > 0;
        let mut next_pass = Instant::now() + interval.min(FIRST_PASS_WAIT);
        let mut next_look = Instant::now() + LOOK_INTERVAL;
        loop {
            let reading = reads && Instant::now() >= next_pass;
            if reading {
                match self.scrub_step().await {
                    Ok(true) => next_pass = Instant::now() + interval,
                    Ok(false) => {}
                    // The executor has stopped, and so has this replica.
                    Err(()) => return,
                }
            } else {
                let until = if reads { next_look.min(next_pass) } else { next_look };
                sleep_until(until).await;
            }
            if Instant::now() >= next_look {
                let Ok(all_whole) = self.mend().await else { return };
                next_look = Instant::now() + if all_whole { LOOK_INTERVAL } else { RETRY_WAIT };
            }
        }
    }

    /// Reads a little, and waits as long as that costs; whether a pass has ended.
    async fn scrub_step(&self) -> Result<bool, ()> {
        let database = self.database.clone();
        let step = match self.strands.scrub.run(move || database.scrub_step(STEP_BYTES)).await {
            Ok(Ok(step)) => step,
            Ok(Err(e)) => {
                tracing::warn!(group = %self.group, error = %Chain(&e), "files cannot be read again now");
                sleep(RETRY_WAIT).await;
                return Ok(false);
            }
            Err(_) => return Err(()),
        };
        self.scrub.bytes.fetch_add(step.bytes, Ordering::Relaxed);
        self.scrub.mismatches.fetch_add(step.found.len() as u64, Ordering::Relaxed);
        if step.pass_completed {
            self.scrub.last_pass_ms.store(self.env.clock.now_unix_ms(), Ordering::Relaxed);
            tracing::debug!(group = %self.group, bytes = step.progress.done_bytes, "all files were read again");
        }
        self.tuning.scrub_pace.take(step.bytes).await;
        Ok(step.pass_completed)
    }

    /// Mends what is known to be damaged, and looks into what others doubt; whether nothing is left.
    async fn mend(&self) -> Result<bool, ()> {
        let questioned = std::mem::take(&mut *self.scrub.questioned.lock());
        let mut open = false;
        for segment in questioned {
            // Nobody may ask again: the others may have settled it among themselves. Only a leader corrects a seal.
            if self.mend_segment(segment, true).await? == Asked::Open && self.leader() == Some(self.node_id) {
                self.scrub.questioned.lock().insert(segment);
                open = true;
            }
        }
        let database = self.database.clone();
        let mended = self.strands.scrub.run(move || {
            database.compare_seals()?;
            if database.damaged().is_empty() { Ok(None) } else { database.mend(None).map(Some) }
        });
        let mended = match mended.await {
            Ok(Ok(None)) => {
                self.scrub.waiting.store(0, Ordering::Relaxed);
                return Ok(!open);
            }
            Ok(Ok(Some(mended))) => mended,
            Ok(Err(e)) => {
                self.stop_if_misled(&e);
                tracing::warn!(group = %self.group, error = %Chain(&e), "damage cannot be mended now");
                return Ok(false);
            }
            Err(_) => return Err(()),
        };
        self.scrub.repaired.fetch_add(mended.repaired.len() as u64, Ordering::Relaxed);
        if !mended.repaired.is_empty() {
            self.look_for_seals();
            self.state_machine.look_for_index_work();
        }
        let mut left = 0;
        for (what, error) in mended.waiting {
            let repaired = match what {
                Damaged::Segment(segment) => self.mend_segment(segment, false).await? == Asked::Settled,
                _ => false,
            };
            if repaired {
                self.scrub.repaired.fetch_add(1, Ordering::Relaxed);
            } else {
                left += 1;
                tracing::error!(group = %self.group, ?what, error = %Chain(&error), "damage is not mended");
            }
        }
        self.scrub.waiting.store(left, Ordering::Relaxed);
        Ok(left == 0 && !open)
    }

    /// Asks the members about a segment and fetches it, or keeps it, as they say; whether it is what counts then.
    async fn mend_segment(&self, segment: u64, questioned: bool) -> Result<Asked, ()> {
        let database = self.database.clone();
        let own = self.strands.scrub.run(move || {
            let vote = database.segment_vote(segment)?;
            Ok(vote.map(|vote| (vote, database.agreed_digest(segment, vote.version.generation))))
        });
        let own: alhambra_storage::Result<_> = own.await.map_err(drop)?;
        // It has no digest before it is closed, so there is nothing to compare with what others have.
        let Ok(Some((own, sealed))) = own else { return Ok(Asked::Nothing) };
        let membership = self.raft_metrics().membership_config;
        let voters: BTreeSet<u64> = membership.membership().voter_ids().collect();
        let others = membership.membership().nodes().map(|(id, _)| *id).filter(|node| *node != self.node_id);
        let mut votes = ask(&*self.forward, self.group, segment, others).await;
        votes.insert(self.node_id, own);
        let Some(agreed) = agreed(&own, sealed, questioned, &voters, &votes) else {
            tracing::error!(group = %self.group, segment, ?votes, "no majority of the voters agrees on a segment");
            return Ok(Asked::Open);
        };
        let mut settled = own.whole && own.version == agreed;
        if settled {
            let database = self.database.clone();
            let done = self.strands.scrub.run(move || database.settle_segment(segment, agreed)).await;
            settled = done.map_err(drop)?.is_ok();
        } else {
            let holds = |vote: &SegmentVote| vote.whole && vote.version == agreed;
            for (node, vote) in votes.iter().filter(|(node, vote)| **node != self.node_id && holds(vote)) {
                if self.fetch_segment(*node, segment, vote).await? {
                    settled = true;
                    break;
                }
            }
        }
        if settled {
            if own.version != agreed || !questioned {
                tracing::warn!(group = %self.group, segment, "a segment is what the group agrees on again");
            }
            self.look_for_seals();
            // An index that is being rebuilt may have waited for this segment.
            self.state_machine.look_for_index_work();
        }
        Ok(if settled { Asked::Settled } else { Asked::Open })
    }

    /// Replaces a segment by that of a node, if that is what its vote says; whether it was.
    async fn fetch_segment(&self, node: u64, segment: u64, vote: &SegmentVote) -> Result<bool, ()> {
        let database = self.database.clone();
        let agreed = vote.version;
        let begun = self.strands.scrub.run(move || database.begin_segment_repair(segment, agreed)).await;
        let mut repair = match begun.map_err(drop)? {
            Ok(repair) => repair,
            Err(e) => {
                tracing::warn!(group = %self.group, segment, error = %Chain(&e), "a segment cannot be replaced now");
                return Ok(false);
            }
        };
        let came;
        let from = Sender { forward: &*self.forward, group: self.group, node };
        (repair, came) = from.receive(segment, vote, &self.strands.scrub, repair, SegmentRepair::write).await?;
        if !came {
            self.strands.scrub.submit(move || drop(repair));
            return Ok(false);
        }
        let database = self.database.clone();
        match self.strands.scrub.run(move || repair.finish(&database)).await.map_err(drop)? {
            Ok(()) => Ok(true),
            Err(e) if self.stop_if_misled(&e) => Ok(true),
            Err(e) => {
                tracing::error!(group = %self.group, segment, node, error = %Chain(&e), "a received segment is not the right one");
                Ok(false)
            }
        }
    }

    /// Ends this replica when it has derived something from what was not agreed on: opened again it derives everything anew.
    fn stop_if_misled(&self, error: &StorageError) -> bool {
        let misled = matches!(error, StorageError::DerivedFromRot { .. });
        if misled {
            self.failure.fail("this replica is not what the group agreed on", error);
        }
        misled
    }

    /// For another member.
    pub(crate) async fn own_segment_vote(&self, segment: u64) -> Option<SegmentVote> {
        let database = self.database.clone();
        let vote = self.strands.scrub.run(move || database.segment_vote(segment)).await.ok()?.ok()??;
        if self.leader() == Some(self.node_id) {
            self.scrub.questioned.lock().insert(segment);
        }
        Some(vote)
    }

    /// For another member.
    pub(crate) async fn own_segment_part(&self, part: SegmentPart) -> Option<Bytes> {
        if part.len > SEGMENT_PART_BYTES_MAX {
            return None;
        }
        let database = self.database.clone();
        let SegmentPart { segment, generation, offset, len } = part;
        let read = move || database.read_segment(segment, generation, offset, len as usize);
        self.strands.scrub.run(read).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_half_of_the_voters_decide() {
        // Digests by node, from 1, `-` for no answer; how many of them vote; what counts.
        let cases = [
            ("a", 1, None),
            ("aa", 2, Some('a')),
            ("aab", 3, Some('a')),
            ("baa", 3, Some('a')),
            ("abc", 3, None),
            ("aa-", 3, Some('a')),
            ("a--", 3, None),
            ("ab", 2, None),
            ("aabba", 5, Some('a')),
            // Members without a vote do not count.
            ("aabbbb", 3, Some('a')),
        ];
        for (digests, voters, counts) in cases {
            let votes = (1..).zip(digests.chars()).filter(|(_, of)| *of != '-').map(|(node, of)| (node, vote(0, of)));
            let counts = counts.map(|of| vote(0, of).version);
            assert_eq!(majority(&(1..=voters).collect(), &votes.collect()), counts, "{digests}");
        }
    }

    fn vote(generation: u32, of: char) -> SegmentVote {
        let digest = Digest([u8::try_from(of).expect("ascii"); 32]);
        SegmentVote { version: SegmentVersion { generation, digest }, bytes: 1, whole: true }
    }

    #[test]
    fn a_version_is_taken_that_two_witnesses_know_or_a_majority_has_lost_as_much_of() {
        let rotten = |vote: SegmentVote| SegmentVote { whole: false, ..vote };
        let (a, b, p, q) = (vote(0, 'a'), vote(0, 'b'), vote(3, 'p'), vote(3, 'q'));
        // Own vote, what is sealed of the own generation, the two others, what is to be here.
        let cases = [
            (a, Some(a), [a, a], Some(a)),
            // Rot here alone: one other is enough, since memory and seal say the same.
            (rotten(a), Some(a), [a, b], Some(a)),
            // Nobody has it.
            (rotten(a), Some(a), [rotten(a), b], None),
            // The others have pruned it, both or one of them.
            (rotten(a), Some(a), [p, p], Some(p)),
            (rotten(a), Some(a), [p, a], Some(a)),
            (rotten(a), Some(a), [p, q], None),
            // Memory and seal differ.
            (a, Some(b), [b, b], Some(b)),
            (a, Some(b), [a, b], Some(a)),
            (rotten(a), Some(b), [p, p], Some(p)),
            (a, None, [a, b], Some(a)),
            // Pruned here and disputed: those that have lost nothing are no help.
            (p, Some(q), [a, a], None),
            (p, Some(q), [q, q], Some(q)),
            (p, Some(q), [p, a], Some(p)),
        ];
        for (number, (own, sealed, others, wanted)) in cases.into_iter().enumerate() {
            let votes = BTreeMap::from([(1, own), (2, others[0]), (3, others[1])]);
            let sealed = sealed.map(|vote| vote.version.digest);
            let found = agreed(&own, sealed, false, &(1..=3).collect(), &votes);
            assert_eq!(found, wanted.map(|vote| vote.version), "case {number}");
        }
        // A leader that sealed its own rot believes the others as soon as they doubt it, and stays as it is without them.
        for (others, wanted) in [([b, b], Some(b)), ([a, b], Some(a)), ([b, p], None)] {
            let votes = BTreeMap::from([(1, a), (2, others[0]), (3, others[1])]);
            let found = agreed(&a, Some(a.version.digest), true, &(1..=3).collect(), &votes);
            assert_eq!(found, wanted.map(|vote| vote.version), "{others:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pace_is_shared() {
        let pace = Arc::new(ScrubPace::new(1000));
        let began = Instant::now();
        let many = (0..4).map(|_| {
            let pace = pace.clone();
            async move {
                for _ in 0..5 {
                    pace.take(100).await;
                }
            }
        });
        futures::future::join_all(many).await;
        assert_eq!(began.elapsed().as_millis(), 2000, "2,000 bytes at 1,000 per second");
        sleep(Duration::from_secs(5)).await;
        let began = Instant::now();
        pace.take(500).await;
        assert_eq!(began.elapsed().as_millis(), 500, "idle time is not saved up");
    }
}

//! Mending a replica that does not open, because what it has to read first has rotted: the most usual moment to come upon rot is
//! a restart. The segment is fetched from the other members, by the rules of [`crate::scrub`], and the database is opened again.
//!
//! Whose bytes count is decided as in a replica that is open. What is remembered here of the segment (its sidecar) and what was
//! sealed are two witnesses; where they differ, or one is missing, more than half of the voters have to remember the same. A
//! replica that has lost the sidecar as well, or the whole file, is no witness and takes what more than half of the voters say. Nothing
//! takes the segment's place that does not hash to that. Nothing else of the replica is touched: it keeps its vote, its promises
//! and every log entry that it has acknowledged, and it answers nobody before it is open.
//!
//! The newest segment has no digest yet. Of a frame in it that has rotted although it was durable, the others are asked for what
//! their logs hold in its place, up to an entry that all have in common ([`DamagedLog`]); more than half of the voters have to
//! hold the same, among whom this replica counts when what is left of the frame fits. The log is never cut there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use alhambra_storage::database::DatabaseSpec;
use alhambra_storage::error::Error as StorageError;
use alhambra_storage::{DamagedLog, FetchedSegment, SegmentVersion, SegmentVote, TailPiece, Unopened, limits};
use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use crate::codec;
use crate::env::Env;
use crate::forward::{Forward, SegmentPart};
use crate::group::GroupSpec;
use crate::scrub::{PART_WAIT, Sender, agreed, ask, majority};
use crate::strand::{Chain, Strands};

/// Bytes of a log that are asked for at once: most often the first entry will do.
const TAIL_PART_BYTES: u32 = 256 << 10;

const NOBODY: &str = "there is no other member that could have it whole; put the right file back from a copy";

const FORGOTTEN: &str = "the others have forgotten values of it, and what is known here to be committed does not reach behind it; put the file back \
    from a copy of this very folder, or give the node an empty disk and a new name";

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mending {
    /// What stands in the segment at this byte behind its header, and on to its end if it is closed, is what the group agrees
    /// on, and durable: the database is to be opened again.
    Mended {
        /// The one that was to be mended, or the newest, when that had to be mended first.
        segment: u64,
        /// Bytes behind its header.
        offset: u64,
    },
    /// It is here as the group has it, so that this is what counts: the database is to be opened again in that knowledge.
    Agreed {
        /// Its number.
        segment: u64,
        /// What more than half of the voters have.
        version: SegmentVersion,
    },
    /// Not yet, and why: the same call may do it later.
    Waits(String),
    /// Nothing that others have can help.
    Hopeless(String),
}

/// Tries to mend a segment of a database that is not open, whose members are at least `members`, this node included; first the
/// newest one, when nothing can be seen of the others before. Ends within the time that members have to answer, and that the
/// bytes take.
pub async fn mend(
    env: &Env,
    spec: &GroupSpec,
    segment: u64,
    members: &BTreeSet<u64>,
    forward: &dyn Forward,
) -> Mending {
    let strands = Strands::new(&env.executor, spec.group);
    let attempt = Attempt { spec, segment, members, forward, strands };
    match attempt.run(env).await {
        Ok(mending) => mending,
        Err(Stopped) => Mending::Waits("this node stops".to_owned()),
    }
}

/// The executor has stopped.
struct Stopped;

/// What this replica itself says of the segment.
enum Own {
    /// Its memory, and what was sealed of that generation.
    Remembered { vote: SegmentVote, sealed: Option<alhambra_ledger::Digest> },
    /// Nothing but where it begins and ends, and how often it has lost values.
    Forgotten { generation: u32 },
}

struct Attempt<'a> {
    spec: &'a GroupSpec,
    segment: u64,
    members: &'a BTreeSet<u64>,
    forward: &'a dyn Forward,
    strands: Strands,
}

impl Attempt<'_> {
    async fn run(mut self, env: &Env) -> Result<Mending, Stopped> {
        let (vfs, dir) = (env.vfs.clone(), self.spec.dir.clone());
        let spec = DatabaseSpec { id: self.spec.database, segment_bytes: self.spec.segment_bytes };
        let unopened = match self.on_strand(move || Unopened::open(vfs, &dir, spec)).await? {
            Ok(unopened) => Arc::new(unopened),
            Err(error @ (StorageError::Corrupted { .. } | StorageError::SegmentMissing { .. })) => {
                // A closed segment may be damaged as well: then the newest comes first.
                if let StorageError::Corrupted { segment: Some(newest), .. } = error {
                    self.segment = newest;
                }
                return self.mend_log(env, &error).await;
            }
            Err(error) => return Ok(self.waits(&Chain(&error).to_string())),
        };
        let members = self.voters(unopened.membership());
        if members.len() == 1 {
            return Ok(Mending::Hopeless(self.cannot(NOBODY)));
        }
        let (looked, segment) = (unopened.clone(), self.segment);
        let look = move || {
            if let Some(generation) = looked.forgotten(segment) {
                return Ok(Some(Own::Forgotten { generation }));
            }
            let vote = looked.segment_vote(segment)?;
            Ok(vote
                .map(|vote| Own::Remembered { vote, sealed: looked.sealed_digest(segment, vote.version.generation) }))
        };
        let looked: alhambra_storage::Result<_> = self.on_strand(look).await?;
        let own = match looked {
            Ok(Some(own)) => own,
            Ok(None) => {
                return Ok(Mending::Hopeless(self.cannot("it is the newest one, of which nothing is agreed on yet")));
            }
            Err(error) => return Ok(self.waits(&Chain(&error).to_string())),
        };
        self.replace(&unopened, own, &members).await
    }

    /// All that may vote: those whom the last checkpoint knows, and those whom the caller does. Who is counted in vain only makes
    /// it harder to agree.
    fn voters(&self, membership: Option<&Bytes>) -> BTreeSet<u64> {
        let mut voters = self.members.clone();
        voters.insert(self.spec.node_id);
        if let Some(Ok(membership)) = membership.map(|bytes| codec::decode_membership(bytes)) {
            voters.extend(membership.voter_ids());
        }
        voters
    }

    async fn replace(&self, unopened: &Arc<Unopened>, own: Own, voters: &BTreeSet<u64>) -> Result<Mending, Stopped> {
        let (group, segment, me) = (self.spec.group, self.segment, self.spec.node_id);
        let others = voters.iter().copied().filter(|node| *node != me);
        let mut votes = ask(self.forward, group, segment, others).await;
        let heard = votes.len();
        let (agreed, generation, unhurt) = match own {
            Own::Remembered { vote, sealed } => {
                votes.insert(me, vote);
                let agreed = agreed(&vote, sealed, false, voters, &votes);
                (agreed, vote.version.generation, agreed == Some(vote.version) && vote.whole)
            }
            Own::Forgotten { generation } => {
                let agreed = majority(voters, &votes).filter(|agreed| agreed.generation >= generation);
                (agreed, generation, false)
            }
        };
        let Some(agreed) = agreed else {
            return Ok(self.waits(&format!(
                "{heard} of {} other members answer, and no whole copy is agreed on",
                voters.len() - 1
            )));
        };
        if unhurt {
            return Ok(Mending::Agreed { segment, version: agreed });
        }
        if agreed.generation > generation && !unopened.takes_later_generation(segment) {
            // One that has not answered may still have them, if it is there at all.
            let all = heard + 1 == voters.len();
            return Ok(if all { Mending::Hopeless(self.cannot(FORGOTTEN)) } else { self.waits(FORGOTTEN) });
        }
        for (node, vote) in votes.iter().filter(|(node, vote)| **node != me && vote.whole && vote.version == agreed) {
            if self.fetch(unopened, *node, vote, agreed).await? {
                tracing::warn!(%group, name = self.spec.name, segment, node,
                    "a segment that had rotted was fetched from another member before the database is opened");
                return Ok(Mending::Mended { segment, offset: 0 });
            }
        }
        Ok(self.waits("no member could send it whole"))
    }

    async fn fetch(
        &self,
        unopened: &Arc<Unopened>,
        node: u64,
        vote: &SegmentVote,
        agreed: SegmentVersion,
    ) -> Result<bool, Stopped> {
        let (group, segment) = (self.spec.group, self.segment);
        let begun = unopened.clone();
        let fetched = match self.on_strand(move || begun.begin_segment_repair(segment, agreed)).await? {
            Ok(fetched) => fetched,
            Err(e) => {
                tracing::warn!(%group, segment, error = %Chain(&e), "a segment cannot be replaced now");
                return Ok(false);
            }
        };
        let from = Sender { forward: self.forward, group, node };
        let received = from.receive(segment, vote, &self.strands.scrub, fetched, FetchedSegment::write).await;
        let (fetched, came) = received.map_err(|()| Stopped)?;
        let unopened = unopened.clone();
        let finish = move || if came { unopened.finish_segment_repair(&fetched).map(|()| true) } else { Ok(false) };
        match self.on_strand(finish).await? {
            Ok(replaced) => Ok(replaced),
            Err(e) => {
                tracing::error!(%group, segment, node, error = %Chain(&e), "a received segment is not the right one");
                Ok(false)
            }
        }
    }

    /// Mends the newest segment, which is why the log did not open.
    async fn mend_log(&self, env: &Env, refused: &StorageError) -> Result<Mending, Stopped> {
        let (vfs, dir) = (env.vfs.clone(), self.spec.dir.clone());
        let spec = DatabaseSpec { id: self.spec.database, segment_bytes: self.spec.segment_bytes };
        let log = match self.on_strand(move || DamagedLog::find(&vfs, &dir, spec)).await? {
            Ok(Some(log)) if log.segment() == self.segment => Arc::new(log),
            Ok(_) | Err(StorageError::Corrupted { .. } | StorageError::SegmentMissing { .. }) => {
                return Ok(Mending::Hopeless(self.cannot(&Chain(refused).to_string())));
            }
            Err(error) => return Ok(self.waits(&Chain(&error).to_string())),
        };
        let voters = self.voters(log.membership());
        if voters.len() == 1 {
            return Ok(Mending::Hopeless(self.cannot(NOBODY)));
        }
        let mut pieces: BTreeMap<Bytes, usize> = BTreeMap::new();
        for node in voters.iter().copied().filter(|node| *node != self.spec.node_id) {
            if let Some(piece) = self.piece_of(&log, node).await? {
                *pieces.entry(piece).or_default() += 1;
            }
        }
        let (group, segment, offset) = (self.spec.group, self.segment, log.offset());
        let heard: usize = pieces.values().sum();
        for (piece, holders) in pieces {
            let (log, voters) = (log.clone(), voters.len());
            let put = move || {
                // As in `majority`: a replica alone is no witness.
                let holders = holders + usize::from(log.speaks_for(&piece)?);
                let agreed = holders >= 2 && holders * 2 > voters;
                if agreed { log.mend(&piece).map(|()| true) } else { Ok(false) }
            };
            match self.on_strand(put).await? {
                Ok(true) => {
                    tracing::warn!(%group, name = self.spec.name, segment, offset,
                        "log entries that had rotted were fetched from other members before the database is opened");
                    return Ok(Mending::Mended { segment, offset });
                }
                Ok(false) => {}
                Err(error) => return Ok(self.waits(&Chain(&error).to_string())),
            }
        }
        Ok(self.waits(&format!("{heard} of {} hold its newest entries, and too few the same", voters.len() - 1)))
    }

    /// What a node's log holds in the place of the damage, as far as that is of use.
    async fn piece_of(&self, log: &Arc<DamagedLog>, node: u64) -> Result<Option<Bytes>, Stopped> {
        let most = self.spec.segment_bytes.saturating_add(limits::FRAME_PAYLOAD_BYTES_MAX as u64);
        let mut bytes = BytesMut::new();
        while (bytes.len() as u64) < most {
            let offset = log.offset() + bytes.len() as u64;
            let part = SegmentPart { segment: log.segment(), generation: 0, offset, len: TAIL_PART_BYTES };
            let deadline = Instant::now() + PART_WAIT;
            let came = self.forward.segment_part(self.spec.group, node, part, deadline).await;
            let Some(came) = came.filter(|came| !came.is_empty() && came.len() <= TAIL_PART_BYTES as usize) else {
                return Ok(None);
            };
            bytes.extend_from_slice(&came);
            let (judge, seen) = (log.clone(), bytes.clone().freeze());
            let judged = self.on_strand(move || judge.judge(&seen).map(|piece| (piece, seen))).await?;
            match judged {
                Ok((TailPiece::Fits(len), seen)) => return Ok(Some(seen.slice(..len))),
                Ok((TailPiece::Short, _)) => {}
                Ok((TailPiece::Unfit, _)) => {
                    tracing::warn!(group = %self.spec.group, segment = log.segment(), offset, node,
                        "what a member holds in the place of rotten log entries is not of this log");
                    return Ok(None);
                }
                Err(error) => {
                    tracing::warn!(group = %self.spec.group, error = %Chain(&error), "rotten log entries cannot be compared");
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    async fn on_strand<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, Stopped> {
        self.strands.scrub.run(job).await.map_err(|_| Stopped)
    }

    fn waits(&self, why: &str) -> Mending {
        let (segment, name) = (self.segment, &self.spec.name);
        Mending::Waits(format!("segment {segment} of {name} has rotted; waiting for other members: {why}"))
    }

    fn cannot(&self, why: &str) -> String {
        let (segment, name) = (self.segment, &self.spec.name);
        format!("segment {segment} of {name} has rotted and cannot be fetched from other members: {why}")
    }
}

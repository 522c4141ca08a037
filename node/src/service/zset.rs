//! Sorted sets: reading a set by score.
//!
//! Members stand in the order of their stored keys: the bits of the score, the length of the key, the key, the transaction.
//! So negative scores follow all others, the most negative last; the keys are hashed, another order cannot be had.

use alhambra_ledger::ids::TxId;
use alhambra_ledger::kv::{self, SortedSetMember};
use alhambra_proto::code::text;
use alhambra_storage::index::ScanSpec;
use alhambra_storage::plant::{Plant, is_planted};
use bytes::Bytes;

use super::kv::{is_absence, over, settings};
use super::transaction::ZEntry;
use super::walk::{LiveKeys, view};
use super::{App, result_limit};
use crate::context::Context;
use crate::error::Result;

/// Which members of a set are asked for.
#[derive(Clone, Debug, Default)]
pub struct ZScan {
    /// Name of the set.
    pub set: Bytes,
    /// Member to begin at; empty to begin at the score bound.
    pub seek_key: Bytes,
    /// Its score.
    pub seek_score: f64,
    /// The transaction to which it is bound.
    pub seek_at_tx: TxId,
    /// Whether it counts itself.
    pub inclusive_seek: bool,
    /// Most members; 0 for the maximum.
    pub limit: u64,
    /// From the greatest down.
    pub desc: bool,
    /// Smallest score.
    pub min_score: Option<f64>,
    /// Greatest score.
    pub max_score: Option<f64>,
    /// Transaction that must be seen.
    pub since_tx: TxId,
    /// Members to leave out first.
    pub offset: u64,
}

impl ZScan {
    /// Whether the score is within the bounds, both of which count. One that is no number is.
    fn admits(&self, score: f64) -> bool {
        !self.min_score.is_some_and(|min| score < min) && !self.max_score.is_some_and(|max| score > max)
    }

    /// The stored keys that are walked.
    fn range(&self) -> ScanSpec {
        let prefix = Bytes::from(kv::zset_prefix(&self.set));
        let at_score = |score: f64| Bytes::from([&prefix[..], &score.to_bits().to_be_bytes()].concat());
        let (start, start_inclusive) = if !self.seek_key.is_empty() {
            let seek = kv::zadd_key(&self.set, self.seek_score, &self.seek_key, self.seek_at_tx);
            (Some(Bytes::from(seek)), self.inclusive_seek)
        } else if self.desc {
            // The key of every member is behind its score, so the members of exactly this score are not met.
            (Some(at_score(self.max_score.unwrap_or(f64::MAX))), false)
        } else {
            (self.min_score.map(at_score), true)
        };
        ScanSpec { prefix, start, start_inclusive, end: None, end_inclusive: true, desc: self.desc }
    }
}

/// Members of a set, read one by one as they are taken. Those outside the bounds, and those whose value is gone, have used up
/// their place in offset and limit.
pub struct ZScanWalk {
    scan: ZScan,
    keys: LiveKeys,
}

impl ZScanWalk {
    /// Checks the request and takes the view.
    pub async fn begin(app: &App, cx: &Context, scan: ZScan) -> Result<Self> {
        if scan.set.is_empty() {
            return Err(text::ILLEGAL_ARGUMENTS.into());
        }
        let limit = result_limit(scan.limit)?;
        let key_len_max = settings(cx).await?.key_len_max;
        let range = scan.range();
        let too_long = |start: &Bytes| over(start.len(), key_len_max);
        // A score is behind the set in each key, also where the scan begins with none.
        if over(range.prefix.len() + size_of::<f64>(), key_len_max) || range.start.as_ref().is_some_and(too_long) {
            return Err(text::TREE_ILLEGAL_ARGUMENTS.into());
        }
        let view = view(cx, scan.since_tx).await?;
        Ok(Self { keys: LiveKeys::new(app, view, Some(&range), scan.offset, limit), scan })
    }

    /// The next member; none at the end.
    pub async fn next(&mut self, cx: &Context) -> Result<Option<ZEntry>> {
        while let Some((key, _)) = self.keys.next().await? {
            let SortedSetMember { set, score, key: member, at_tx } = kv::parse_zadd_key(&key)?;
            if !self.scan.admits(score) {
                continue;
            }
            let (set, member) = (key.slice_ref(set), key.slice_ref(member));
            let of = if is_planted(Plant::FollowBoundMembers) { TxId(0) } else { at_tx };
            match self.keys.reader(cx).target(of, member.clone()) {
                Ok(entry) => return Ok(Some(ZEntry { set, key: member, score, at_tx, entry: Some(entry) })),
                Err(error) if is_absence(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// Reads members of a set.
pub async fn scan(app: &App, cx: &Context, scan: ZScan) -> Result<Vec<ZEntry>> {
    let mut walk = ZScanWalk::begin(app, cx, scan).await?;
    let mut out = Vec::new();
    while let Some(member) = walk.next(cx).await? {
        out.push(member);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members of the set `s`, and of others around it, in stored order.
    fn stored(scores: &[f64]) -> Vec<(f64, Bytes)> {
        let mut all: Vec<_> =
            scores.iter().map(|score| (*score, Bytes::from(kv::zadd_key(b"s", *score, b"k", TxId(0))))).collect();
        for other in [&b"r"[..], b"t", b"ss", b""] {
            all.push((f64::NAN, Bytes::from(kv::zadd_key(other, 1.0, b"k", TxId(0)))));
        }
        all.sort_by(|a, b| a.1.cmp(&b.1));
        all
    }

    fn walk(scan: &ZScan, scores: &[f64]) -> Vec<f64> {
        let spec = scan.range();
        let mut keys: Vec<_> = stored(scores).into_iter().filter(|(_, key)| key.starts_with(&spec.prefix)).collect();
        if spec.desc {
            keys.reverse();
        }
        let from = |key: &Bytes| match &spec.start {
            None => true,
            Some(start) if key == start => spec.start_inclusive,
            Some(start) => (key > start) != spec.desc,
        };
        keys.into_iter().filter(|(score, key)| from(key) && scan.admits(*score)).map(|(score, _)| score).collect()
    }

    const SCORES: [f64; 7] = [-2.0, -1.0, -0.0, 0.0, 1.0, 2.5, f64::INFINITY];

    fn of(scan: ZScan) -> Vec<f64> {
        walk(&ZScan { set: Bytes::from_static(b"s"), ..scan }, &SCORES)
    }

    #[test]
    fn negative_scores_follow_all_others() {
        assert_eq!(of(ZScan::default()), [0.0, 1.0, 2.5, f64::INFINITY, -0.0, -1.0, -2.0]);
        assert!(of(ZScan::default())[4].is_sign_negative());
    }

    #[test]
    fn upward_both_bounds_count_and_downward_the_greatest_does_not() {
        let bounds = ZScan { min_score: Some(1.0), max_score: Some(2.5), ..ZScan::default() };
        assert_eq!(of(bounds.clone()), [1.0, 2.5]);
        assert_eq!(of(ZScan { desc: true, ..bounds }), [1.0]);
        assert_eq!(of(ZScan { desc: true, ..ZScan::default() }), [2.5, 1.0, 0.0], "neither infinite nor negative ones");
    }

    #[test]
    fn a_seek_begins_exactly_there_and_the_bounds_only_filter() {
        let seek = ZScan { seek_key: Bytes::from_static(b"k"), seek_score: 2.5, ..ZScan::default() };
        assert_eq!(of(ZScan { desc: true, ..seek.clone() }), [1.0, 0.0]);
        let inclusive = ZScan { inclusive_seek: true, ..seek };
        assert_eq!(of(ZScan { desc: true, ..inclusive.clone() }), [2.5, 1.0, 0.0]);
        assert_eq!(of(inclusive.clone()), [2.5, f64::INFINITY, -0.0, -1.0, -2.0]);
        let bounded = ZScan { desc: true, max_score: Some(2.5), min_score: Some(1.0), ..inclusive };
        assert_eq!(of(bounded), [2.5, 1.0], "with a seek the greatest counts");
    }
}

//! An independent executor that runs transactions one at a time, from the words of the specification: a map of histories,
//! filters over all of it, no ranges, no read sets. Imports none of the judged code. It also says what a run has looked at,
//! by predicate, so that a refusal can be judged.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Condition, Metadata, h};

pub type Key = Vec<u8>;

/// Which keys a scan is about.
#[derive(Clone, Debug)]
pub struct Span {
    pub prefix: Key,
    /// Bound in the direction of the scan, and whether it is inside.
    pub start: Option<(Key, bool)>,
    pub end: Option<(Key, bool)>,
    pub desc: bool,
}

impl Span {
    /// Whether `a` comes before `b` in the scan.
    fn before(&self, a: &[u8], b: &[u8]) -> bool {
        if self.desc { a > b } else { a < b }
    }

    fn holds(&self, key: &[u8]) -> bool {
        key.starts_with(&self.prefix)
            && self.start.as_ref().is_none_or(|(start, inside)| self.before(start, key) || (*inside && key == start))
            && self.end.as_ref().is_none_or(|(end, inside)| self.before(key, end) || (*inside && key == end))
    }
}

#[derive(Clone, Debug)]
pub enum Op {
    Get(Key),
    Exists(Key),
    History {
        key: Key,
        offset: u64,
        limit: usize,
        desc: bool,
    },
    /// The first `take` entries; each is deleted at once with `deleting`.
    Scan {
        span: Span,
        take: usize,
        deleting: bool,
    },
    /// A value made from everything seen so far.
    Set {
        key: Key,
        expires_at: Option<i64>,
        non_indexable: bool,
    },
    Delete(Key),
    Require(Condition),
    Savepoint,
    /// To the savepoint of this number, of those that are there.
    RollBack(usize),
}

/// A value that depends on who writes it and on everything seen before.
pub fn value_of(name: u32, written: usize, seen: &[String]) -> Vec<u8> {
    let digest = h(&[seen.join("\n").as_bytes()]);
    [&name.to_be_bytes()[..], &(written as u32).to_be_bytes(), &digest[..8]].concat()
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub key: Key,
    pub metadata: Metadata,
    pub value: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Version {
    tx: u64,
    written: Written,
}

/// All versions of all keys.
#[derive(Clone, Debug, Default)]
pub struct Store {
    versions: BTreeMap<Key, Vec<Version>>,
    pub last_tx: u64,
}

impl Store {
    pub fn commit(&mut self, entries: &[Written]) -> u64 {
        self.last_tx += 1;
        for written in entries.iter().filter(|written| !written.metadata.non_indexable) {
            let version = Version { tx: self.last_tx, written: written.clone() };
            self.versions.entry(written.key.clone()).or_default().push(version);
        }
        self.last_tx
    }

    fn seen(&self, key: &[u8], at: u64) -> Vec<&Version> {
        self.versions.get(key).into_iter().flatten().filter(|version| version.tx <= at).collect()
    }

    /// The first condition that does not hold now.
    pub fn failing(&self, conditions: &[Condition], now: i64) -> Option<u32> {
        let newest = |key: &Key| self.versions.get(key).and_then(|versions| versions.last());
        let live = |key: &Key| {
            newest(key).is_some_and(|version| {
                let md = &version.written.metadata;
                !md.deleted && md.expires_at.is_none_or(|at| at > now)
            })
        };
        let fails = |condition: &Condition| match condition {
            Condition::MustExist(key) => !live(key),
            Condition::MustNotExist(key) => live(key),
            Condition::NotModifiedAfter(key, tx) => newest(key).is_some_and(|version| version.tx > *tx),
            Condition::Becomes(tx) => self.last_tx + 1 != *tx,
        };
        conditions.iter().position(fails).map(|n| n as u32)
    }

    /// Keys that were written after transaction `since`.
    pub fn changed(&self, since: u64) -> BTreeSet<&Key> {
        let changed = |versions: &[Version]| versions.iter().any(|version| version.tx > since);
        self.versions.iter().filter(|(_, versions)| changed(versions)).map(|(key, _)| key).collect()
    }
}

/// What a run has looked at in the store.
#[derive(Clone, Debug)]
enum Look {
    Key(Key),
    Scan {
        span: Span,
        /// The last entry that was looked at; none when all were.
        through: Option<Key>,
        /// Hidden by own writes.
        hidden: BTreeSet<Key>,
    },
}

/// One transaction on one state of the store, at one time.
#[derive(Clone, Debug)]
pub struct Run {
    name: u32,
    at: u64,
    now: i64,
    pub seen: Vec<String>,
    looks: Vec<Look>,
    /// Expiries that decided something: (when, whether it had not come).
    times: Vec<(i64, bool)>,
    own: Vec<Written>,
    pub conditions: Vec<Condition>,
    /// Own writes and conditions as they were.
    savepoints: Vec<(Vec<Written>, Vec<Condition>)>,
    written: usize,
}

impl Run {
    pub fn new(name: u32, at: u64, now: i64) -> Self {
        Self {
            name,
            at,
            now,
            seen: Vec::new(),
            looks: Vec::new(),
            times: Vec::new(),
            own: Vec::new(),
            conditions: Vec::new(),
            savepoints: Vec::new(),
            written: 0,
        }
    }

    /// What is to be committed: of each key the last write.
    pub fn entries(&self) -> Vec<Written> {
        let last = |n: usize| self.own[n + 1..].iter().all(|later| later.key != self.own[n].key);
        (0..self.own.len()).filter(|n| last(*n)).map(|n| self.own[n].clone()).collect()
    }

    /// Whether something that was looked at has a version after the state of this run.
    pub fn is_overtaken(&self, store: &Store) -> bool {
        store.changed(self.at).into_iter().any(|key| {
            self.looks.iter().any(|look| match look {
                Look::Key(only) => only == key,
                Look::Scan { span, through, hidden } => {
                    span.holds(key)
                        && !hidden.contains(key)
                        && through.as_ref().is_none_or(|through| !span.before(through, key))
                }
            })
        })
    }

    /// Whether something that was looked at has expired at `now`, or has not yet, other than it was seen.
    pub fn is_outdated(&self, now: i64) -> bool {
        self.times.iter().any(|(at, live)| (*at > now) != *live)
    }

    fn own(&self, key: &[u8]) -> Option<&Written> {
        self.own.iter().rfind(|written| written.key == key).filter(|written| !written.metadata.non_indexable)
    }

    fn is_live(&mut self, metadata: &Metadata) -> bool {
        if metadata.deleted {
            return false;
        }
        let Some(at) = metadata.expires_at else { return true };
        self.times.push((at, at > self.now));
        at > self.now
    }

    fn get(&mut self, store: &Store, key: &Key) -> Option<Written> {
        let found = match self.own(key) {
            Some(own) => own.clone(),
            None => {
                self.looks.push(Look::Key(key.clone()));
                store.seen(key, self.at).last()?.written.clone()
            }
        };
        self.is_live(&found.metadata).then_some(found)
    }

    fn write(&mut self, written: Written) {
        let since = self.savepoints.last().map_or(0, |(own, _)| own.len());
        self.written += 1;
        match self.own[since..].iter_mut().find(|before| before.key == written.key) {
            Some(before) => *before = written,
            None => self.own.push(written),
        }
    }

    pub fn step(&mut self, store: &Store, op: &Op) {
        match op {
            Op::Get(key) => {
                let found = self.get(store, key).map(|written| written.value);
                self.seen.push(format!("{found:?}"));
            }
            Op::Exists(key) => {
                let found = self.get(store, key).is_some();
                self.seen.push(format!("{found}"));
            }
            Op::History { key, offset, limit, desc } => self.history(store, key, *offset as usize, *limit, *desc),
            Op::Scan { span, take, deleting } => self.scan(store, span, *take, *deleting),
            Op::Set { key, expires_at, non_indexable } => {
                let metadata = Metadata { deleted: false, expires_at: *expires_at, non_indexable: *non_indexable };
                let value = value_of(self.name, self.written, &self.seen);
                self.write(Written { key: key.clone(), metadata, value });
            }
            Op::Delete(key) => self.delete(key),
            Op::Require(condition) => self.conditions.push(condition.clone()),
            Op::Savepoint => self.savepoints.push((self.own.clone(), self.conditions.clone())),
            Op::RollBack(n) => {
                if !self.savepoints.is_empty() {
                    self.savepoints.truncate(n % self.savepoints.len() + 1);
                    (self.own, self.conditions) = self.savepoints.last().expect("one is left").clone();
                }
            }
        }
    }

    fn delete(&mut self, key: &Key) {
        let metadata = Metadata { deleted: true, ..Metadata::default() };
        self.write(Written { key: key.clone(), metadata, value: Vec::new() });
    }

    fn history(&mut self, store: &Store, key: &Key, offset: usize, limit: usize, desc: bool) {
        let mut all: Vec<(Written, bool)> =
            store.seen(key, self.at).into_iter().map(|version| (version.written.clone(), true)).collect();
        let committed = all.len();
        all.extend(self.own(key).map(|own| (own.clone(), false)));
        if desc {
            all.reverse();
        }
        let answer: Vec<&(Written, bool)> = all.iter().skip(offset).take(limit).collect();
        // Versions are added at the new end: which answers would show it?
        let depends = if desc {
            limit > 0 && !(offset == 0 && limit == 1 && all.len() > committed)
        } else {
            committed.saturating_sub(offset).min(limit) < limit
        };
        if depends {
            self.looks.push(Look::Key(key.clone()));
        }
        self.seen.push(format!("{answer:?}"));
    }

    fn scan(&mut self, store: &Store, span: &Span, take: usize, deleting: bool) {
        let (mut last, mut hidden, mut taken) = (None::<Key>, BTreeSet::new(), 0);
        while taken < take {
            let own = self.own.iter().filter(|written| self.own(&written.key).is_some()).map(|written| &written.key);
            let committed = store.versions.keys().filter(|key| !store.seen(key, self.at).is_empty());
            let ahead = own
                .chain(committed)
                .filter(|key| span.holds(key) && last.as_ref().is_none_or(|last| span.before(last, key)));
            let next = if span.desc { ahead.max() } else { ahead.min() }.cloned();
            let Some(key) = next else {
                self.looks.push(Look::Scan { span: span.clone(), through: None, hidden });
                self.seen.push("end".to_owned());
                return;
            };
            let found = match self.own(&key) {
                Some(own) => {
                    hidden.insert(key.clone());
                    own.clone()
                }
                None => store.seen(&key, self.at).last().expect("filtered").written.clone(),
            };
            last = Some(key.clone());
            if self.is_live(&found.metadata) {
                taken += 1;
                self.seen.push(format!("{key:?} {:?}", found.value));
                if deleting {
                    self.delete(&key);
                }
            }
        }
        if let Some(last) = last {
            self.looks.push(Look::Scan { span: span.clone(), through: Some(last), hidden });
        }
    }
}

//! Transactions are serializable: many at once, interleaved at random on two replicas, judged by an executor that runs one at
//! a time. What is committed has seen what it would see alone, at its place; what is refused had looked at something that
//! changed.

use std::cell::Cell;
use std::sync::Arc;

use alhambra_ledger::ids::{LogId, LogIndex, TxId};
use alhambra_storage::apply::{Outcome, Rejection};
use alhambra_storage::command::{Command, Precondition, ProposalEntry, RequestId, Settings, TxProposal};
use alhambra_storage::segment::{Frame, FrameKind};
use alhambra_storage::transaction::{Found, Savepoint, Source};
use alhambra_storage::vfs::Vfs;
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::{Database, ScanSpec, Transaction};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::model::{Condition, Metadata};
use crate::replicas::files;
use crate::serial::{Key, Op, Run, Span, Store, Written, value_of};
use crate::support::{DATABASE, apply_through, dir, open, spec};

/// Room for whatever the workload makes.
fn settings() -> Settings {
    Settings { key_len_max: 64, value_len_max: 64, tx_entries_max: 64, ..Settings::DEFAULT }
}

fn own(key: &[u8]) -> Bytes {
    Bytes::copy_from_slice(key)
}

/// The judged transaction, driven like [`Run`].
struct Real {
    name: u32,
    transaction: Transaction,
    seen: Vec<String>,
    savepoints: Vec<Savepoint>,
    written: usize,
}

impl Real {
    fn written(&self, found: &Found) -> Written {
        let metadata = Metadata {
            deleted: found.metadata.deleted,
            expires_at: found.metadata.expires_at,
            non_indexable: found.metadata.non_indexable,
        };
        let value = self.transaction.value(found).expect("S4").to_vec();
        Written { key: found.key.to_vec(), metadata, value }
    }

    fn step(&mut self, op: &Op) {
        let tx = &mut self.transaction;
        match op {
            Op::Get(key) => {
                let found = tx.get(key).expect("healthy").map(|found| self.written(&found).value);
                self.seen.push(format!("{found:?}"));
            }
            Op::Exists(key) => {
                let found = tx.exists(key).expect("healthy");
                self.seen.push(format!("{found}"));
            }
            Op::History { key, offset, limit, desc } => {
                let found = tx.history(key, *offset, *limit, *desc).expect("healthy");
                let answer: Vec<(Written, bool)> = (found.iter())
                    .map(|found| (self.written(found), matches!(found.source, Source::Committed(_))))
                    .collect();
                self.seen.push(format!("{answer:?}"));
            }
            Op::Scan { span, take, deleting } => self.scan(span, *take, *deleting),
            Op::Set { key, expires_at, non_indexable } => {
                let value = value_of(self.name, self.written, &self.seen).into();
                let metadata = Metadata { deleted: false, expires_at: *expires_at, non_indexable: *non_indexable };
                self.written += 1;
                match (expires_at, non_indexable) {
                    (None, false) => tx.set(own(key), value),
                    (Some(at), false) => tx.set_expiring(own(key), value, *at),
                    _ => tx.write(ProposalEntry::plain(own(key), metadata.bytes().into(), value)),
                }
                .expect("within limits");
            }
            Op::Delete(key) => {
                self.written += 1;
                tx.delete(own(key)).expect("within limits");
            }
            Op::Require(condition) => {
                let condition = match condition {
                    Condition::MustExist(key) => Precondition::MustExist(own(key)),
                    Condition::MustNotExist(key) => Precondition::MustNotExist(own(key)),
                    Condition::NotModifiedAfter(key, tx) => {
                        Precondition::NotModifiedAfter { key: own(key), tx: TxId(*tx) }
                    }
                    Condition::Becomes(tx) => Precondition::Becomes(TxId(*tx)),
                };
                tx.require(condition).expect("within limits");
            }
            Op::Savepoint => self.savepoints.push(tx.savepoint().expect("few")),
            Op::RollBack(n) => {
                if !self.savepoints.is_empty() {
                    self.savepoints.truncate(n % self.savepoints.len() + 1);
                    tx.roll_back_to(*self.savepoints.last().expect("one is left")).expect("exists");
                }
            }
        }
    }

    fn scan(&mut self, span: &Span, take: usize, deleting: bool) {
        let bound = |bound: &Option<(Key, bool)>| {
            (bound.as_ref().map(|(key, _)| own(key)), bound.as_ref().is_some_and(|b| b.1))
        };
        let ((start, start_inclusive), (end, end_inclusive)) = (bound(&span.start), bound(&span.end));
        let spec = ScanSpec { prefix: own(&span.prefix), start, start_inclusive, end, end_inclusive, desc: span.desc };
        let mut scan = self.transaction.scan(&spec);
        for _ in 0..take {
            let Some(found) = scan.next(&mut self.transaction).expect("healthy") else {
                self.seen.push("end".to_owned());
                return;
            };
            self.seen.push(format!("{:?} {:?}", found.key.to_vec(), self.written(&found).value));
            if deleting {
                self.written += 1;
                self.transaction.delete(found.key).expect("within limits");
            }
        }
    }
}

fn a_key() -> impl Strategy<Value = Key> {
    vec(prop::sample::select(vec![0x00, b'k', 0xff]), 1..3)
}

fn a_time() -> impl Strategy<Value = i64> {
    98..108i64
}

fn a_span() -> impl Strategy<Value = Span> {
    let prefix = prop_oneof![2 => Just(Vec::new()), 1 => vec(prop::sample::select(vec![0x00, b'k', 0xff]), 1..2)];
    let bound = || prop::option::weighted(0.4, (a_key(), any::<bool>()));
    (prefix, bound(), bound(), any::<bool>()).prop_map(|(prefix, start, end, desc)| Span { prefix, start, end, desc })
}

fn an_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => a_key().prop_map(Op::Get),
        1 => a_key().prop_map(Op::Exists),
        2 => (a_key(), 0..3u64, 0..4usize, any::<bool>())
            .prop_map(|(key, offset, limit, desc)| Op::History { key, offset, limit, desc }),
        3 => (a_span(), prop_oneof![0..3usize, Just(100)], prop::bool::weighted(0.2))
            .prop_map(|(span, take, deleting)| Op::Scan { span, take, deleting }),
        6 => (a_key(), prop::option::weighted(0.3, a_time()), prop::bool::weighted(0.1))
            .prop_map(|(key, expires_at, non_indexable)| Op::Set { key, expires_at, non_indexable }),
        2 => a_key().prop_map(Op::Delete),
        1 => prop_oneof![
            a_key().prop_map(Condition::MustExist),
            a_key().prop_map(Condition::MustNotExist),
            (a_key(), 0..20u64).prop_map(|(key, tx)| Condition::NotModifiedAfter(key, tx)),
            (0..20u64).prop_map(Condition::Becomes),
        ].prop_map(Op::Require),
        1 => Just(Op::Savepoint),
        1 => (0..4usize).prop_map(Op::RollBack),
    ]
}

/// A transaction on its way.
struct Active {
    ops: Vec<Op>,
    done: usize,
    real: Real,
    model: Run,
}

/// One replica and its disk; `db` is taken away for a moment to restart.
struct Replica {
    disk: MemVfs,
    db: Option<Database>,
}

impl Replica {
    fn new() -> Self {
        let disk = MemVfs::new();
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        Self { db: Some(open(&vfs, &dir()).expect("an empty disk")), disk }
    }

    fn db(&self) -> &Database {
        self.db.as_ref().expect("open but for a moment in restart")
    }

    fn take(&self, frames: Vec<Frame>) -> Vec<Outcome> {
        let Some(last) = frames.last().map(|frame| frame.log_id.index.0) else { return Vec::new() };
        self.db().ledger().stage(&frames).expect("healthy disk");
        self.db().ledger().flush().expect("healthy disk");
        apply_through(self.db(), last).expect("applies")
    }

    /// Takes a checkpoint, loses the power, goes on.
    fn restart(&mut self) {
        self.db().checkpoint().expect("healthy disk");
        self.db = None;
        self.disk.crash(Crash::PowerLoss);
        let vfs: Arc<dyn Vfs> = Arc::new(self.disk.clone());
        self.db = Some(open(&vfs, &dir()).expect("reopens"));
    }
}

/// How often each kind of end was seen, so that a test that meets none of them fails.
#[derive(Debug, Default)]
struct Met {
    committed: Cell<u32>,
    overtaken: Cell<u32>,
    outdated: Cell<u32>,
    condition: Cell<u32>,
    on_follower: Cell<u32>,
}

fn count(cell: &Cell<u32>) {
    cell.set(cell.get() + 1);
}

/// The leader, a follower that lags, and the executor.
struct World<'a> {
    met: &'a Met,
    leader: Replica,
    follower: Replica,
    /// Log entries that the follower does not have yet, with the outcomes of the leader.
    behind: Vec<Frame>,
    outcomes: Vec<Outcome>,
    caught_up: usize,
    store: Store,
    clock: i64,
    index: u64,
}

impl World<'_> {
    fn log(&mut self, command: &Command) -> Vec<Outcome> {
        let frame = Frame { log_id: LogId::new(1, self.index), kind: FrameKind::Command, payload: command.encode() };
        self.index += 1;
        let outcomes = self.leader.take(vec![frame.clone()]);
        self.behind.push(frame);
        self.outcomes.extend(outcomes.iter().cloned());
        outcomes
    }

    fn catch_up(&mut self) {
        let outcomes = self.follower.take(std::mem::take(&mut self.behind));
        assert_eq!(outcomes, self.outcomes[self.caught_up..], "every replica decides alike");
        self.caught_up = self.outcomes.len();
    }

    fn begin(&self, name: u32, ops: Vec<Op>, now: i64, on_follower: bool) -> Active {
        let db = if on_follower { self.follower.db() } else { self.leader.db() };
        let transaction = db.begin(now).expect("initialised");
        let at = transaction.snapshot().tx().0;
        let real = Real { name, transaction, seen: Vec::new(), savepoints: Vec::new(), written: 0 };
        Active { ops, done: 0, real, model: Run::new(name, at, now) }
    }

    fn step(&self, active: &mut Active) {
        let op = &active.ops[active.done];
        active.done += 1;
        active.real.step(op);
        active.model.step(&self.store, op);
        assert_eq!(active.real.seen, active.model.seen, "{op:?}");
    }

    /// Commits transactions in one batch and judges every outcome. Answers the proposals.
    fn commit(&mut self, ts: i64, ready: Vec<Active>) -> Vec<(TxProposal, Outcome)> {
        self.clock = self.clock.max(ts);
        let (mut proposals, mut runs) = (Vec::new(), Vec::new());
        for Active { ops, real, model, .. } in ready {
            assert!(!real.transaction.reads().is_coarsened());
            assert_eq!(real.transaction.is_read_only(), model.entries().is_empty());
            let mut proposal = real.transaction.into_proposal();
            proposal.request = Some(RequestId { client: [1; 16], sequence: u64::from(real.name), floor: LogIndex(0) });
            proposals.push(proposal);
            runs.push((real.name, ops, model));
        }
        let outcomes = self.log(&Command::Batch { ts, proposals: proposals.clone() });
        assert_eq!(outcomes.len(), proposals.len());
        for ((proposal, outcome), run) in proposals.iter().zip(&outcomes).zip(&runs) {
            self.judge(proposal, outcome, run);
        }
        proposals.into_iter().zip(outcomes).collect()
    }

    fn judge(&mut self, proposal: &TxProposal, outcome: &Outcome, (name, ops, run): &(u32, Vec<Op>, Run)) {
        let entries: Vec<Written> = (proposal.entries.iter().zip(run.entries()))
            .map(|(entry, want)| {
                assert_eq!(entry.metadata, want.metadata.bytes());
                Written { key: entry.key.to_vec(), metadata: want.metadata, value: entry.value.to_vec() }
            })
            .collect();
        assert_eq!(entries, run.entries());
        assert_eq!(proposal.preconditions.len(), run.conditions.len());
        let rejection = match outcome {
            Outcome::Committed { tx, .. } => {
                assert!(!run.is_outdated(self.clock) && !run.is_overtaken(&self.store), "a conflict was missed");
                assert_eq!(self.store.failing(&run.conditions, self.clock), None);
                // Alone, at its place, at its time.
                let mut alone = Run::new(*name, self.store.last_tx, self.clock);
                ops.iter().for_each(|op| alone.step(&self.store, op));
                assert_eq!(alone.seen, run.seen, "has seen what it would see alone");
                assert_eq!(alone.entries(), entries);
                assert_eq!(self.store.commit(&entries), tx.0);
                return count(&self.met.committed);
            }
            Outcome::Rejected(rejection) => rejection,
            Outcome::Pruned { .. } => panic!("no answer to a proposal"),
        };
        match rejection {
            Rejection::NoEntries => assert!(entries.is_empty()),
            Rejection::Conflict { range: None } => {
                assert!(run.is_outdated(self.clock), "nothing has expired, nor had");
                count(&self.met.outdated);
            }
            Rejection::Conflict { range: Some(range) } => {
                assert!(!run.is_outdated(self.clock), "the time is looked at first");
                assert!(run.is_overtaken(&self.store), "nothing that it has read was changed");
                let reads = proposal.read_set.as_ref().expect("it has read");
                let changed = self.store.changed(reads.snapshot().0);
                let first = reads.ranges().iter().position(|range| changed.iter().any(|key| range.contains(key)));
                assert_eq!(first, Some(*range as usize));
                count(&self.met.overtaken);
            }
            Rejection::Precondition { index } => {
                assert!(!run.is_outdated(self.clock) && !run.is_overtaken(&self.store), "conflicts come first");
                assert_eq!(self.store.failing(&run.conditions, self.clock), Some(*index));
                count(&self.met.condition);
            }
            other => panic!("the workload makes no {other:?}"),
        }
    }
}

fn run(met: &Met, programs: Vec<(Vec<Op>, i64, bool)>, schedule: &[(u8, i64)]) {
    let mut world = World {
        met,
        leader: Replica::new(),
        follower: Replica::new(),
        behind: Vec::new(),
        outcomes: Vec::new(),
        caught_up: 0,
        store: Store::default(),
        clock: i64::MIN,
        index: 0,
    };
    world.log(&Command::Genesis { database: DATABASE, segment_bytes: spec().segment_bytes, settings: settings() });
    world.catch_up();
    let mut programs = (1u32..).zip(programs);
    let (mut active, mut ready, mut all): (Vec<Active>, Vec<Active>, Vec<(TxProposal, Outcome)>) = Default::default();
    let mut steps = schedule.iter().cycle();
    let mut exhausted = false;
    while !exhausted || !active.is_empty() || !ready.is_empty() {
        let (choice, ts) = *steps.next().expect("not empty");
        if choice % 7 == 0 {
            world.catch_up();
        }
        match choice % 5 {
            0 if !exhausted => match programs.next() {
                Some((name, (ops, now, on_follower))) => {
                    if on_follower && !world.behind.is_empty() {
                        count(&met.on_follower);
                    }
                    active.push(world.begin(name, ops, now, on_follower));
                }
                None => exhausted = true,
            },
            1 if !ready.is_empty() => all.extend(world.commit(ts, std::mem::take(&mut ready))),
            _ if !active.is_empty() => {
                let n = usize::from(choice) / 5 % active.len();
                if active[n].done < active[n].ops.len() {
                    world.step(&mut active[n]);
                } else {
                    ready.push(active.swap_remove(n));
                }
            }
            _ if !ready.is_empty() && exhausted => all.extend(world.commit(ts, std::mem::take(&mut ready))),
            _ => {}
        }
        if active.is_empty() && !exhausted && choice % 5 != 0 {
            // Nothing to do but to begin: a schedule may never say so, nor that what is ready commits.
            match programs.next() {
                Some((name, (ops, now, on_follower))) => active.push(world.begin(name, ops, now, on_follower)),
                None => exhausted = true,
            }
        }
    }
    // The refusals are remembered like the commits, on every replica, also after it has lost its memory.
    world.catch_up();
    world.follower.restart();
    for (proposal, outcome) in &all {
        let again = world.log(&Command::Batch { ts: 200, proposals: vec![proposal.clone()] });
        assert_eq!(again, std::slice::from_ref(outcome));
    }
    world.catch_up();
    let (a, b) = (world.leader.db(), world.follower.db());
    a.checkpoint().expect("healthy disk");
    b.checkpoint().expect("healthy disk");
    assert_eq!(a.applied(), b.applied());
    let disk = |replica: &Replica| -> Arc<dyn Vfs> { Arc::new(replica.disk.clone()) };
    for folder in ["tx", "commit", "aht", "seal"] {
        let folder = dir().join(folder);
        assert_eq!(files(&disk(&world.leader), &folder), files(&disk(&world.follower), &folder));
    }
    let checkpoint = std::path::Path::new("checkpoint");
    assert_eq!(files(&disk(&world.leader), &dir())[checkpoint], files(&disk(&world.follower), &dir())[checkpoint]);
}

#[test]
fn interleaved_transactions_are_as_if_run_one_after_the_other() {
    let met = Met::default();
    let programs = vec((vec(an_op(), 1..8), a_time(), any::<bool>()), 4..24);
    let schedule = vec((any::<u8>(), 96..108i64), 8..64);
    let config = Config { cases: 512, source_file: Some(file!()), ..Config::default() };
    let judged = TestRunner::new(config).run(&(programs, schedule), |(programs, schedule)| {
        run(&met, programs, &schedule);
        Ok(())
    });
    judged.unwrap_or_else(|failed| panic!("{failed}"));
    for (what, often) in [
        ("committed", &met.committed),
        ("conflicts by a write", &met.overtaken),
        ("conflicts by the time", &met.outdated),
        ("preconditions that fail", &met.condition),
        ("begun on a follower that lags", &met.on_follower),
    ] {
        println!("{what}: {}", often.get());
        assert!(often.get() >= 20, "{met:?}: hardly any {what}");
    }
}

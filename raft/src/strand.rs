//! Blocking work of one group, in order, off the async threads.

use std::fmt;
use std::io;
use std::sync::Arc;

use alhambra_ledger::ids::GroupId;
use tokio::sync::{oneshot, watch};

use crate::env::Executor;

/// Strands of a node, by number, which no group's are: together here, because a number used twice makes one wait for the other.
pub mod of_node {
    /// Identity and promise.
    pub const FILES: u64 = u64::MAX;
    /// Looking after the disk: whoever waits for a slow one must not hold this up.
    pub const DISK: u64 = u64::MAX - 1;
    /// Giving memory back, which waits for the disk; by itself, and by order one database at a time.
    pub const MEMORY: u64 = u64::MAX - 2;
    /// Hashing passwords, which takes long on purpose.
    pub const HASHING: u64 = u64::MAX - 3;
    /// Removing the files of deleted databases.
    pub const REMOVAL: u64 = u64::MAX - 4;
    /// Files of snapshots that are sent; those that come for a group use this one with the group's id in it.
    pub const SNAPSHOT: u64 = 1 << 63;
}

/// One strand of the executor.
#[derive(Clone, Debug)]
pub(crate) struct Strand {
    executor: Arc<dyn Executor>,
    number: u64,
}

/// The strands of one group.
#[derive(Clone, Debug)]
pub(crate) struct Strands {
    /// Writes and syncs of the log and votes: whatever must stay in order.
    pub(crate) log: Strand,
    /// Checkpoints, manifests and marks: long, and not in the way of the log.
    pub(crate) background: Strand,
    /// Reads of the log that probably are not in memory.
    pub(crate) reads: Strand,
    /// Runs of the index, in short steps, so that whoever shares the thread gets turns.
    pub(crate) index: Strand,
    /// Reading files again, and repairs: long, and in nobody's way.
    pub(crate) scrub: Strand,
}

impl Strands {
    /// The strands of a group.
    pub(crate) fn new(executor: &Arc<dyn Executor>, group: GroupId) -> Self {
        // Whatever number of threads the executor spreads them over: the logs of neighbouring groups are on different
        // threads, and so are the strands of one group.
        let strand = |n: u64| Strand { executor: executor.clone(), number: group.get() + n * 0x1_0000_0001 };
        Self { log: strand(0), background: strand(1), reads: strand(2), index: strand(3), scrub: strand(4) }
    }
}

impl Strand {
    /// Queues a job.
    pub(crate) fn submit(&self, job: impl FnOnce() + Send + 'static) {
        self.executor.submit(self.number, Box::new(job));
    }

    /// Queues a job and waits for what it answers. The job runs even when the caller goes away.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (answer, receiver) = oneshot::channel();
        self.submit(move || {
            let _ = answer.send(job());
        });
        receiver.await.map_err(|_| io::Error::other("the executor has stopped"))
    }
}

/// The first reason for which a replica stopped itself.
#[derive(Clone)]
pub(crate) struct FailureCell(watch::Sender<Option<Arc<str>>>);

impl Default for FailureCell {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl FailureCell {
    /// Keeps the reason unless there is one already, and says it in the log.
    pub(crate) fn fail(&self, what: &'static str, error: &(dyn std::error::Error + 'static)) -> io::Error {
        let reason: Arc<str> = format!("{what}: {}", Chain(error)).into();
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                tracing::error!(%reason, "this replica stops");
                *first = Some(reason.clone());
            }
            is_first
        });
        io::Error::other(reason.to_string())
    }

    /// The reason, if the replica stopped itself.
    pub(crate) fn get(&self) -> Option<Arc<str>> {
        self.0.borrow().clone()
    }

    /// Whether there is a reason.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Waits until there is a reason.
    pub(crate) async fn failed(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(Option::is_some).await;
    }
}

impl fmt::Debug for FailureCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.get(), f)
    }
}

/// An error with all its causes.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.0, f)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

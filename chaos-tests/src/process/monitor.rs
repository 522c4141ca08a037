//! Looks at the nodes a few times a second: who says that it leads, how much memory each has.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::cluster::{leads, resident_bytes};

const EVERY: Duration = Duration::from_millis(400);

/// What was seen of one node at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Since the run began.
    pub at: Duration,
    /// Which node.
    pub node: usize,
    /// What it says about leading; nothing when it does not answer.
    pub leads: Option<bool>,
    /// The term of the group then.
    pub term: Option<u64>,
    /// Resident memory, bytes; 0 when it does not run.
    pub resident: u64,
}

/// Samples until it is dropped.
#[derive(Debug)]
pub struct Monitor {
    samples: Arc<Mutex<Vec<Sample>>>,
    processes: Arc<Mutex<Vec<Option<u32>>>>,
    task: JoinHandle<()>,
}

impl Monitor {
    /// Begins to look at the nodes behind these addresses of metrics.
    pub fn start(begin: Instant, metrics: Vec<String>) -> Self {
        let samples: Arc<Mutex<Vec<Sample>>> = Arc::default();
        let processes = Arc::new(Mutex::new(vec![None; metrics.len()]));
        let (kept, known) = (samples.clone(), processes.clone());
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(EVERY);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let at = begin.elapsed();
                let said = futures::future::join_all(metrics.iter().map(|address| leads(address))).await;
                for (node, said) in said.into_iter().enumerate() {
                    let process: Option<u32> = known.lock()[node];
                    let resident = process.and_then(resident_bytes).unwrap_or(0);
                    let (leads, term) = said.unzip();
                    kept.lock().push(Sample { at, node, leads, term, resident });
                }
            }
        });
        Self { samples, processes, task }
    }

    /// Tells the processes of the nodes, which change.
    pub fn know(&self, processes: Vec<Option<u32>>) {
        *self.processes.lock() = processes;
    }

    /// Everything seen so far.
    pub fn samples(&self) -> Vec<Sample> {
        self.samples.lock().clone()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

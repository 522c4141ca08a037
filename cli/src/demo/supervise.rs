//! Keeps the node processes of a demo running, and makes sure that none of them outlives it.
//!
//! Each child holds the read end of a pipe whose write end only the demo has (its standard input). Closing it asks the
//! child to stop in order; when the demo itself dies, however it dies, the system closes it. Children run in process
//! groups of their own, so that Ctrl-C reaches the demo alone and each child is asked to stop exactly once.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time;

use crate::demo::plan::NodePlan;

/// A node that died is started again after this time.
pub const RESTART_AFTER: Duration = Duration::from_secs(3);
/// A node that was asked to stop is killed after this time.
const STOP_WITHIN: Duration = Duration::from_secs(15);

/// Something that happened to a node.
#[derive(Debug)]
pub enum Event {
    /// It runs as this process.
    Started {
        /// Node number, from 1.
        number: u16,
        /// Process id.
        process_id: u32,
    },
    /// Its process ended although nobody asked it to.
    Died {
        /// Node number, from 1.
        number: u16,
        /// How it ended.
        status: ExitStatus,
    },
    /// It could not be started at all.
    NotStarted {
        /// Node number, from 1.
        number: u16,
        /// Why.
        error: std::io::Error,
    },
}

/// The running children.
pub struct Supervisor {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    events: mpsc::Receiver<Event>,
}

impl Supervisor {
    /// Starts one child per node; `arguments` belong to the node at the same place.
    pub fn start(binary: PathBuf, nodes: &[NodePlan], arguments: Vec<Vec<String>>) -> Supervisor {
        let (stop, stopped) = watch::channel(false);
        let (report, events) = mpsc::channel(64);
        let mut tasks = JoinSet::new();
        for (node, arguments) in nodes.iter().zip(arguments) {
            let keeper = Keeper { node: node.clone(), binary: binary.clone(), arguments, report: report.clone() };
            tasks.spawn(keeper.keep(stopped.clone()));
        }
        Supervisor { stop, tasks, events }
    }

    /// Waits for the next thing that happens to a node.
    pub async fn event(&mut self) -> Event {
        self.events.recv().await.expect("keepers hold the other end until they are told to stop")
    }

    /// Stops all nodes in order and waits until every process is gone.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        self.events.close();
        while self.tasks.join_next().await.is_some() {}
    }
}

struct Keeper {
    node: NodePlan,
    binary: PathBuf,
    arguments: Vec<String>,
    report: mpsc::Sender<Event>,
}

impl Keeper {
    async fn keep(self, mut stopped: watch::Receiver<bool>) {
        let number = self.node.number;
        while !*stopped.borrow() {
            let event = match self.spawn() {
                Ok(mut child) => {
                    // Taken out, because waiting for a child closes its standard input.
                    let leash = child.stdin.take();
                    if let Some(process_id) = child.id() {
                        self.tell(Event::Started { number, process_id }).await;
                    }
                    let ended = tokio::select! {
                        ended = child.wait() => Some(ended),
                        () = told(&mut stopped) => None,
                    };
                    match ended {
                        Some(Ok(status)) => Event::Died { number, status },
                        Some(Err(error)) => Event::NotStarted { number, error },
                        None => {
                            drop(leash);
                            return stop_child(child).await;
                        }
                    }
                }
                Err(error) => Event::NotStarted { number, error },
            };
            self.tell(event).await;
            tokio::select! {
                () = time::sleep(RESTART_AFTER) => {}
                () = told(&mut stopped) => return,
            }
        }
    }

    /// Nobody listens any more once the demo is stopping; then the event does not matter.
    async fn tell(&self, event: Event) {
        let _ = self.report.send(event).await;
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(&self.node.log)?;
        Command::new(&self.binary)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }
}

/// Waits until the demo stops; its end without a word counts too.
async fn told(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn stop_child(mut child: Child) {
    if time::timeout(STOP_WITHIN, child.wait()).await.is_err() {
        // It had its time; an unsynced tail is what the ledger is made to survive.
        let _ = child.kill().await;
    }
}

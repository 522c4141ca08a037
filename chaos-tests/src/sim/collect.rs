//! After healing: demands that every node takes a write, waits until all have the same newest transaction and the same bytes in
//! closed segments, then reads every ledger whole and recomputes its chain.

use std::time::Duration;

use super::client::{DATABASE, Session};
use super::setup::NAMES;
use super::shared::Shared;
use crate::check::acked_durable::Ledger;
use crate::model::chain;

/// What the nodes show.
pub struct Final {
    /// Transaction, key and value of every entry, the same on all nodes.
    pub ledger: Ledger,
    /// Nodes that were read, by number, with the Alh of every transaction.
    pub alhs: Vec<(usize, Vec<[u8; 32]>)>,
    /// How long it took from the end of the faults until the nodes were alike.
    pub healed_in: Duration,
}

/// Transactions of one answer.
const BATCH: u32 = 500;
/// Key of the writes that show progress after healing; the judge leaves them out.
pub const HEALED_KEY: &[u8] = b"healed";

fn pause() -> tokio::time::Sleep {
    tokio::time::sleep(Duration::from_millis(500))
}

/// Reads everything, or says why that cannot be.
pub async fn collect(
    shared: &Shared,
    nodes: usize,
    patience: Duration,
    sealed: impl Fn(&[usize]) -> Result<(), String>,
) -> Result<Final, String> {
    let begin = tokio::time::Instant::now();
    let until = begin + patience;
    let outside = shared.borrow().outside.clone();
    let inside: Vec<usize> = (0..nodes).filter(|i| !outside.contains(i)).collect();
    let mut last = String::new();
    // The healed cluster takes a write through each node, and all of them come to have it.
    for node in &inside {
        loop {
            if tokio::time::Instant::now() > until {
                return Err(format!(
                    "liveness: {} takes no write within {patience:?} after healing: {last}",
                    NAMES[*node]
                ));
            }
            let written = match Session::open(NAMES[*node], DATABASE).await {
                Ok(mut session) => session.set(HEALED_KEY, format!("healed-{node}").as_bytes()).await,
                Err(e) => Err(e),
            };
            match written {
                Ok(_) => break,
                Err(e) => last = e.to_string(),
            }
            pause().await;
        }
    }
    let mut sessions = loop {
        let (mut states, mut open) = (Vec::new(), Vec::new());
        for node in &inside {
            match Session::open(NAMES[*node], DATABASE).await {
                Ok(mut session) => {
                    states.push(session.local_state().await.map_err(|e| format!("{}: {e}", NAMES[*node])));
                    open.push((*node, session));
                }
                Err(e) => states.push(Err(format!("{}: {e}", NAMES[*node]))),
            }
        }
        if states.iter().all(|state| state.is_ok() && state == &states[0]) {
            break open;
        }
        if tokio::time::Instant::now() > until {
            return Err(format!("liveness: the nodes did not converge within {patience:?} after healing: {states:?}"));
        }
        pause().await;
    };
    // What has rotted is found and mended by itself.
    while let Err(differ) = sealed(&inside) {
        if tokio::time::Instant::now() > until {
            return Err(format!("R2: within {patience:?} after healing nobody mended it: {differ}"));
        }
        pause().await;
    }
    let healed_in = begin.elapsed();
    for node in &outside {
        if Session::open(NAMES[*node], DATABASE).await.is_ok() {
            return Err(format!("M2: {} has lost its disk and serves under its old name", NAMES[*node]));
        }
    }
    let mut result = Final { ledger: Vec::new(), alhs: Vec::new(), healed_in };
    for (i, (node, session)) in sessions.iter_mut().enumerate() {
        let (ledger, alhs) = read(*node, session, until).await?;
        if i > 0 && ledger != result.ledger {
            return Err(format!("R2: {} shows other entries than {}", NAMES[*node], NAMES[inside[0]]));
        }
        result.ledger = ledger;
        result.alhs.push((*node, alhs));
    }
    Ok(result)
}

/// The whole ledger of one node. What has rotted there is mended from the others when a reader comes upon it, so a read may fail
/// for a while.
async fn read(
    node: usize,
    session: &mut Session,
    until: tokio::time::Instant,
) -> Result<(Ledger, Vec<[u8; 32]>), String> {
    let (mut ledger, mut transactions) = (Ledger::new(), Vec::new());
    loop {
        let first = transactions.len() as u64 + 1;
        let batch = match session.transactions(first, BATCH).await {
            Ok(batch) => batch,
            Err(e) if tokio::time::Instant::now() > until => {
                return Err(format!("{}: from {first} on: {e}", NAMES[node]));
            }
            Err(_) => {
                pause().await;
                if let Ok(open) = Session::open(NAMES[node], DATABASE).await {
                    *session = open;
                }
                continue;
            }
        };
        if batch.is_empty() {
            break;
        }
        for shown in batch {
            for (key, value) in &shown.values {
                let strip = |bytes: &[u8]| bytes.get(1..).unwrap_or_default().to_vec();
                if strip(key) != HEALED_KEY {
                    ledger.push((shown.chain.id, strip(key), strip(value)));
                }
            }
            transactions.push(shown.chain);
        }
    }
    let alhs = chain::check(&transactions).map_err(|b| format!("{}: transaction {}: {}", NAMES[node], b.tx, b.rule))?;
    Ok((ledger, alhs))
}

//! The order of transactions that another server made: they have their numbers already, and apply takes them in no other order.
//!
//! Each waits until the one before it is applied here, or was handed on from here. So many are on their way at once, and one batch
//! of the proposer holds as many as come. That one was handed on is a hint and no promise: it may come to nothing, and then
//! apply refuses the ones behind it as a gap, which changes nothing; whoever brought them waits for the one before and tries again.

use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use tokio::sync::watch;

use crate::state_machine::Applied;

/// Whose turn it is at one place where transactions are handed on.
#[derive(Clone, Debug)]
pub(crate) struct Turns(Arc<watch::Sender<TxId>>);

impl Turns {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(TxId(0))))
    }

    /// Waits for the turn of this transaction, which is also when it is applied already; `None` when the replica is gone. That is
    /// later than its end for whoever holds it.
    pub(crate) async fn wait(&self, tx: TxId, mut applied: watch::Receiver<Applied>) -> Option<Turn> {
        let mut handed_on = self.0.subscribe();
        loop {
            let reached = applied.borrow_and_update().tx;
            // A second copy of one that is on its way waits for what becomes of the first.
            if reached.next() >= Some(tx) || handed_on.borrow_and_update().next() == Some(tx) {
                return Some(Turn { turns: self.clone(), tx, is_handed_on: false });
            }
            tokio::select! {
                changed = applied.changed() => changed.ok()?,
                changed = handed_on.changed() => changed.ok()?,
            }
        }
    }

    fn hand_on(&self, tx: TxId) {
        self.0.send_if_modified(|newest| {
            let is_newer = tx > *newest;
            *newest = tx.max(*newest);
            is_newer
        });
    }

    /// Nothing from this transaction on counts as handed on.
    fn take_back(&self, tx: TxId) {
        self.0.send_if_modified(|newest| {
            let is_counted = tx <= *newest;
            if is_counted {
                *newest = TxId(tx.get().saturating_sub(1));
            }
            is_counted
        });
    }
}

/// The turn of a transaction. Dropped before [`Turn::committed`], whoever is behind it waits for the transaction itself.
#[derive(Debug)]
pub struct Turn {
    turns: Turns,
    tx: TxId,
    is_handed_on: bool,
}

impl Turn {
    /// Lets the next one go.
    pub fn hand_on(&mut self) {
        self.is_handed_on = true;
        self.turns.hand_on(self.tx);
    }

    /// It is in the ledger.
    pub fn committed(mut self) {
        self.is_handed_on = false;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.is_handed_on {
            self.turns.take_back(self.tx);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn applied(tx: u64) -> Applied {
        Applied { log_id: None, tx: TxId(tx) }
    }

    #[tokio::test]
    async fn each_goes_behind_the_one_before() {
        let (at, watched) = watch::channel(applied(4));
        let turns = Turns::new();
        let wait = |tx: u64| turns.wait(TxId(tx), watched.clone());
        let mut fifth = wait(5).now_or_never().unwrap().unwrap();
        assert!(wait(6).now_or_never().is_none(), "the fifth was not handed on");
        fifth.hand_on();
        let mut sixth = wait(6).now_or_never().unwrap().unwrap();
        sixth.hand_on();
        assert!(wait(8).now_or_never().is_none());
        let mut second_copy = Box::pin(wait(6));
        assert!(second_copy.as_mut().now_or_never().is_none(), "it is on its way");

        // The fifth comes to nothing, so the sixth will be refused, and nobody goes on before the fifth is there.
        drop(fifth);
        assert!(second_copy.as_mut().now_or_never().is_none() && wait(7).now_or_never().is_none());
        drop(sixth);
        let mut again = wait(5).now_or_never().unwrap().unwrap();
        again.hand_on();
        at.send(applied(5)).unwrap();
        again.committed();
        assert!(second_copy.now_or_never().is_some());
        assert!(wait(3).now_or_never().is_some(), "it is there, which apply tells");
        drop(at);
        assert!(wait(9).now_or_never().unwrap().is_none(), "the replica has ended");
    }

    #[tokio::test]
    async fn whoever_waits_is_woken() {
        let (at, watched) = watch::channel(applied(0));
        let turns = Turns::new();
        let waiting: Vec<_> = (1..=20)
            .rev()
            .map(|tx| {
                let (turns, watched) = (turns.clone(), watched.clone());
                tokio::spawn(async move {
                    let mut turn = turns.wait(TxId(tx), watched).await.unwrap();
                    turn.hand_on();
                    turn.committed();
                    tx
                })
            })
            .collect();
        for (waiting, tx) in waiting.into_iter().zip((1..=20).rev()) {
            assert_eq!(waiting.await.unwrap(), tx);
        }
        drop(at);
    }
}

//! Telling others how far the applier has come: callbacks for async callers, a condition for synchronous ones.

use std::fmt;
use std::time::Duration;

use alhambra_ledger::ids::{LogIndex, TxId};
use parking_lot::{Condvar, Mutex, RwLock};

/// Called with the newest transaction and the log index that was applied.
pub type OnApplied = Box<dyn Fn(TxId, LogIndex) + Send + Sync>;

#[derive(Default)]
pub(crate) struct Waiting {
    callbacks: RwLock<Vec<OnApplied>>,
    lock: Mutex<()>,
    advanced: Condvar,
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} callbacks", self.callbacks.read().len())
    }
}

impl Waiting {
    pub(crate) fn on_applied(&self, f: OnApplied) {
        self.callbacks.write().push(f);
    }

    /// Everything up to here is visible to readers.
    pub(crate) fn advance(&self, tx: TxId, index: LogIndex) {
        for callback in &*self.callbacks.read() {
            callback(tx, index);
        }
        // Taken so that a waiter is either before its look at the mark or asleep.
        drop(self.lock.lock());
        self.advanced.notify_all();
    }

    pub(crate) fn wait(&self, tx: TxId, timeout: Duration, newest: impl Fn() -> TxId) -> bool {
        if newest() >= tx {
            return true;
        }
        let mut guard = self.lock.lock();
        self.advanced.wait_while_for(&mut guard, |()| newest() < tx, timeout);
        newest() >= tx
    }
}

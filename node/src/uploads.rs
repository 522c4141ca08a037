//! Memory of messages that are arriving, for the whole node: however many clients send large ones at once, there is a bound.
//!
//! A message is held until its call has an answer, because the handler decodes it as a whole or gathers its parts. The first
//! bytes of each call are free, so that small calls go through while large ones fill the rest. What finds no room is refused
//! at once: waiting would let calls that are half there wait for each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use alhambra_proto::code::Code;
use tonic::Status;

/// Bytes of each call that are not counted.
const FREE_BYTES: u64 = 64 << 10;
/// Least bound, bytes: two of the largest streams.
const BYTES_MIN: u64 = 64 << 20;

/// What all calls of a node hold together.
#[derive(Debug)]
pub struct Uploads {
    held: AtomicU64,
    max: u64,
}

impl Uploads {
    /// An eighth of the node's memory budget, and room for two of the largest streams at least.
    pub fn new(memory_budget: u64) -> Arc<Self> {
        Arc::new(Self { held: AtomicU64::new(0), max: (memory_budget / 8).max(BYTES_MIN) })
    }

    /// Bytes held now.
    pub fn bytes(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> Result<(), Status> {
        let taken = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(bytes).filter(|held| *held <= self.max)
        });
        taken.map(drop).map_err(|held| {
            let max = self.max;
            Code::Overloaded.status(format!(
                "large requests of all clients hold {held} of {max} bytes on this node; try again, nothing was applied"
            ))
        })
    }

    /// Nothing of a call that begins is held yet. Of a call whose messages are `answered` one by one only the newest part is.
    pub fn begin(self: &Arc<Self>, answered: bool) -> Arc<Share> {
        Arc::new(Share { uploads: self.clone(), received: AtomicU64::new(0), charged: AtomicU64::new(0), answered })
    }
}

/// What one call holds. Given back when the last of its owners is gone.
#[derive(Debug)]
pub struct Share {
    uploads: Arc<Uploads>,
    /// Bytes that have come, since the last that was answered.
    received: AtomicU64,
    /// Those of them that count.
    charged: AtomicU64,
    answered: bool,
}

impl Share {
    /// Counts bytes that have come.
    pub fn receive(&self, bytes: u64) -> Result<(), Status> {
        // Nobody else changes the two: a body is read by one task.
        let received = if self.answered { bytes } else { self.received.load(Ordering::Relaxed).saturating_add(bytes) };
        let (before, now) = (self.charged.load(Ordering::Relaxed), received.saturating_sub(FREE_BYTES));
        if now > before {
            self.uploads.take(now - before)?;
        } else {
            self.uploads.held.fetch_sub(before - now, Ordering::Relaxed);
        }
        self.received.store(received, Ordering::Relaxed);
        self.charged.store(now, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.uploads.held.fetch_sub(*self.charged.get_mut(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_is_given_back_and_what_does_not_fit_is_refused() {
        let uploads = Uploads::new(0);
        let (first, second) = (uploads.begin(false), uploads.begin(false));
        first.receive(FREE_BYTES).unwrap();
        assert_eq!(uploads.bytes(), 0, "small calls are free");
        first.receive(1 << 20).unwrap();
        second.receive(FREE_BYTES + (BYTES_MIN - (1 << 20))).unwrap();
        assert_eq!(uploads.bytes(), BYTES_MIN);
        let refused = first.receive(1).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("67108864 of 67108864 bytes"), "{refused}");
        uploads.begin(false).receive(FREE_BYTES).unwrap();
        assert_eq!(uploads.bytes(), BYTES_MIN, "a refusal holds nothing");
        drop(second);
        assert_eq!(uploads.bytes(), 1 << 20);
        first.receive(1).unwrap();
        drop(first);
        assert_eq!(uploads.bytes(), 0);
    }

    #[test]
    fn of_answered_messages_only_the_newest_is_held() {
        let uploads = Uploads::new(0);
        let share = uploads.begin(true);
        for _ in 0..1000 {
            share.receive(FREE_BYTES + 7).unwrap();
        }
        assert_eq!(uploads.bytes(), 7);
        share.receive(3).unwrap();
        assert_eq!(uploads.bytes(), 0);
    }
}

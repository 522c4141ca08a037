//! Memory of messages that are arriving, for the whole node: however many clients send large ones at once, there is a bound.
//!
//! A message is held until its call has an answer, because the handler decodes it as a whole or gathers its parts. The first
//! bytes of each call are free, so that small calls go through while large ones fill the rest. What finds no room is refused
//! at once: waiting would let calls that are half there wait for each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alhambra_proto::code::Code;
use tokio::time::{Instant, timeout_at};
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
        Arc::new(Share {
            uploads: self.clone(),
            received: AtomicU64::new(0),
            charged: AtomicU64::new(0),
            answered,
            began: Instant::now(),
            newest_ms: AtomicU64::new(0),
        })
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
    began: Instant,
    /// When the newest bytes came, milliseconds after `began`.
    newest_ms: AtomicU64,
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
        if bytes > 0 {
            self.newest_ms.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn newest(&self) -> Instant {
        self.began + Duration::from_millis(self.newest_ms.load(Ordering::Relaxed))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.uploads.held.fetch_sub(*self.charged.get_mut(), Ordering::Relaxed);
    }
}

/// When a call has to have an answer.
#[derive(Clone, Debug)]
pub enum Due {
    /// As its client says.
    At(Instant),
    /// So long after the newest bytes of its request: what comes slowly may take its time, and what does not come may not.
    Behind(Arc<Share>, Duration),
}

impl Due {
    /// As of now.
    pub fn instant(&self) -> Instant {
        match self {
            Self::At(at) => *at,
            Self::Behind(share, patience) => share.newest() + *patience,
        }
    }

    /// What the work comes to; nothing if it is not done `grace` after the call was due.
    pub async fn outlast<T>(&self, grace: Duration, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        loop {
            let due = self.instant();
            match timeout_at(due + grace, &mut work).await {
                Ok(done) => return Some(done),
                Err(_) if self.instant() > due => {}
                Err(_) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

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

    #[tokio::test(start_paused = true)]
    async fn what_goes_on_coming_is_waited_for_and_what_stops_is_not() {
        let share = Uploads::new(0).begin(false);
        let begin = Instant::now();
        let slow = async {
            for _ in 0..10 {
                sleep(Duration::from_millis(2_900)).await;
                share.receive(1).unwrap();
            }
            // Nothing comes in these.
            for _ in 0..10 {
                sleep(Duration::from_secs(1)).await;
                share.receive(0).unwrap();
            }
        };
        let due = Due::Behind(share.clone(), Duration::from_secs(3));
        assert_eq!(due.outlast(Duration::from_millis(25), slow).await, None);
        assert_eq!(begin.elapsed(), Duration::from_millis(29_000 + 3_025));
        assert_eq!(due.instant() - begin, Duration::from_secs(32));
        let begin = Instant::now();
        let due = Due::At(begin + Duration::from_secs(1));
        let work = async {
            sleep(Duration::from_millis(900)).await;
            7
        };
        assert_eq!(due.outlast(Duration::ZERO, work).await, Some(7));
        assert_eq!(due.outlast(Duration::ZERO, std::future::pending::<()>()).await, None);
        assert_eq!(begin.elapsed(), Duration::from_secs(1));
    }
}

//! Memory of messages that are arriving, for the whole node: however many clients send large ones at once, there is a bound.
//!
//! A message is held until its call has an answer, because the handler decodes it as a whole or gathers its parts. The first
//! bytes of each call are free, so that small calls go through while large ones fill the rest. What finds no room is refused
//! at once: waiting would let calls that are half there wait for each other.
//!
//! Where a client gives a call no time of its own, what comes steadily may take its time, and what stands still is given up.

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
/// What comes more slowly than this, bytes per second, counts as standing still.
const RATE_MIN: u64 = 16 << 10;

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

    /// Nothing of a call that `began` is held yet. Of a call whose messages are `answered` one by one only the newest part is. It may
    /// stand still for as long as `patience`.
    pub fn begin(self: &Arc<Self>, answered: bool, began: Instant, patience: Duration) -> Arc<Share> {
        Arc::new(Share {
            uploads: self.clone(),
            received: AtomicU64::new(0),
            charged: AtomicU64::new(0),
            answered,
            began,
            entered: Instant::now(),
            patience,
            due_us: AtomicU64::new(micros(patience)),
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
    /// When the call came, and when its body began to be read: in between others may have been asked about its caller.
    began: Instant,
    entered: Instant,
    patience: Duration,
    /// When it is due, microseconds after `began`.
    due_us: AtomicU64,
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
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
        // Bytes buy the time that they may take, of which no more is kept than one may stand still.
        let bought = bytes.saturating_mul(1_000_000) / RATE_MIN;
        let due = self.due_us.load(Ordering::Relaxed).saturating_add(bought);
        self.due_us.store(due.min(micros(self.began.elapsed() + self.patience)), Ordering::Relaxed);
        Ok(())
    }

    /// All has come: the time that it took to come is not that of the call.
    fn restart(&self) {
        self.due_us.store(micros(self.entered.elapsed() + self.patience), Ordering::Relaxed);
    }

    fn due(&self) -> Instant {
        self.began + Duration::from_micros(self.due_us.load(Ordering::Relaxed))
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
    /// As its request comes: slowly, but steadily.
    Behind(Arc<Share>),
}

impl Due {
    /// As of now.
    pub fn instant(&self) -> Instant {
        match self {
            Self::At(at) => *at,
            Self::Behind(share) => share.due(),
        }
    }

    /// The request has come whole: the call has as much time as one whose request comes at once, unless its client has said otherwise.
    pub fn restart(&self) {
        if let Self::Behind(share) = self {
            share.restart();
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

    fn begin(uploads: &Arc<Uploads>, answered: bool) -> Arc<Share> {
        uploads.begin(answered, Instant::now(), Duration::from_secs(10))
    }

    #[test]
    fn what_counts_is_given_back_and_what_does_not_fit_is_refused() {
        let uploads = Uploads::new(0);
        let (first, second) = (begin(&uploads, false), begin(&uploads, false));
        first.receive(FREE_BYTES).unwrap();
        assert_eq!(uploads.bytes(), 0, "small calls are free");
        first.receive(1 << 20).unwrap();
        second.receive(FREE_BYTES + (BYTES_MIN - (1 << 20))).unwrap();
        assert_eq!(uploads.bytes(), BYTES_MIN);
        let refused = first.receive(1).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("67108864 of 67108864 bytes"), "{refused}");
        begin(&uploads, false).receive(FREE_BYTES).unwrap();
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
        let share = begin(&uploads, true);
        for _ in 0..1000 {
            share.receive(FREE_BYTES + 7).unwrap();
        }
        assert_eq!(uploads.bytes(), 7);
        share.receive(3).unwrap();
        assert_eq!(uploads.bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_steadily_is_waited_for_and_what_stands_still_is_not() {
        let patience = Duration::from_secs(3);
        let (begin, grace) = (Instant::now(), Duration::from_millis(25));
        let share = Uploads::new(0).begin(false, begin, patience);
        let due = Due::Behind(share.clone());
        // So much, so often, so many times; then nothing.
        let send = async |bytes: u64, every_ms: u64, times: u32| {
            for _ in 0..times {
                sleep(Duration::from_millis(every_ms)).await;
                share.receive(bytes).unwrap();
            }
            std::future::pending::<()>().await;
        };
        // At the least rate for as long as it likes.
        assert_eq!(due.outlast(grace, send(RATE_MIN, 1_000, 60)).await, None);
        assert_eq!(begin.elapsed(), Duration::from_millis(60_000 + 3_000 + 25));

        // A byte now and then buys nothing, however much came before.
        due.restart();
        let begin = Instant::now();
        let drips = async {
            share.receive(1 << 20).unwrap();
            send(1, 1_000, 60).await;
        };
        assert_eq!(due.outlast(grace, drips).await, None);
        let took = begin.elapsed();
        assert!((patience..patience + Duration::from_millis(100)).contains(&took), "{took:?}");

        // At half the rate for twice the patience.
        due.restart();
        let begin = Instant::now();
        assert_eq!(due.outlast(Duration::ZERO, send(RATE_MIN / 20, 100, 600)).await, None);
        let took = begin.elapsed();
        assert!((Duration::from_millis(5_900)..Duration::from_millis(6_100)).contains(&took), "{took:?}");

        // As a client says, whatever comes.
        let due = Due::At(Instant::now() + Duration::from_secs(1));
        due.restart();
        let work = async {
            sleep(Duration::from_millis(900)).await;
            7
        };
        assert_eq!(due.outlast(Duration::ZERO, work).await, Some(7));
        let begin = Instant::now();
        assert_eq!(due.outlast(Duration::ZERO, send(1 << 20, 10, 600)).await, None);
        assert_eq!(begin.elapsed(), Duration::from_millis(100));
    }
}

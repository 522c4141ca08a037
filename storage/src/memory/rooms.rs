//! How the proposals of all databases of a process share what may wait: a busy database must not keep the others out.
//!
//! ```text
//! half    kept for the databases, an equal share for each
//! half    common: whoever comes first
//! beyond  one proposal of a database of which nothing waits, whatever its size
//! ```
//!
//! A proposal takes its place from the share of its database, else from the common half, else it is the one beyond. So all
//! together never take more than the budget and one proposal; whatever the others do, a database has its share as soon as what
//! waited when there were fewer of them has gone; and a proposal that is larger than a share comes through as well.

use std::sync::Arc;

use parking_lot::Mutex;

/// What waits of all databases.
#[derive(Debug)]
pub(super) struct Rooms {
    bytes_max: u64,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    databases: u64,
    /// Of the shares, together.
    shares: u64,
    common: u64,
    /// Of the one proposal beyond.
    beyond: u64,
}

impl Taken {
    const fn sum(&self) -> u64 {
        self.shares + self.common + self.beyond
    }
}

/// Where the proposals of one database wait. Its share is given back when it and all its proposals are dropped.
#[derive(Debug)]
pub struct Room(Arc<Place>);

#[derive(Debug)]
struct Place {
    rooms: Arc<Rooms>,
    /// Of this database; changed under the lock of `rooms` only.
    taken: Mutex<OfDatabase>,
}

#[derive(Debug, Default)]
struct OfDatabase {
    share: u64,
    proposals: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Share,
    Common,
    Beyond,
}

/// The part that a proposal takes while it waits; given back when dropped.
#[derive(Debug)]
pub struct Waiting {
    place: Arc<Place>,
    bytes: u64,
    from: From,
}

impl Rooms {
    /// So many bytes may wait.
    pub(super) fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { bytes_max, taken: Mutex::default() })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.taken.lock().sum()
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// A room for one more database.
    pub(super) fn open(self: &Arc<Self>) -> Room {
        self.taken.lock().databases += 1;
        Room(Arc::new(Place { rooms: Arc::clone(self), taken: Mutex::default() }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.rooms.taken.lock().databases -= 1;
    }
}

impl Room {
    /// Bytes that wait, of all databases.
    pub fn bytes(&self) -> u64 {
        self.0.rooms.bytes()
    }

    /// Bytes that may wait, of all databases.
    pub fn bytes_max(&self) -> u64 {
        self.0.rooms.bytes_max()
    }

    /// Takes `bytes` for a proposal of this database; `None` when too much waits.
    pub fn take(&self, bytes: u64) -> Option<Waiting> {
        let rooms = &*self.0.rooms;
        let half = rooms.bytes_max / 2;
        let mut all = rooms.taken.lock();
        let mut own = self.0.taken.lock();
        let share = half / all.databases.max(1);
        let from = if own.share + bytes <= share && all.shares + bytes <= half {
            own.share += bytes;
            all.shares += bytes;
            From::Share
        } else if all.common + bytes <= rooms.bytes_max - half {
            all.common += bytes;
            From::Common
        } else if own.proposals == 0 && all.beyond == 0 {
            all.beyond = bytes;
            From::Beyond
        } else {
            return None;
        };
        own.proposals += 1;
        Some(Waiting { place: Arc::clone(&self.0), bytes, from })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut all = self.place.rooms.taken.lock();
        let mut own = self.place.taken.lock();
        own.proposals -= 1;
        match self.from {
            From::Share => {
                own.share -= self.bytes;
                all.shares -= self.bytes;
            }
            From::Common => all.common -= self.bytes,
            From::Beyond => all.beyond = 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 1000;

    /// Fills a room with proposals of one size.
    fn fill(room: &Room, bytes: u64) -> Vec<Waiting> {
        std::iter::from_fn(|| room.take(bytes)).collect()
    }

    #[test]
    fn a_busy_database_leaves_each_of_the_others_its_share_and_not_a_byte_more() {
        let rooms = Rooms::new(MAX);
        let [busy, quiet, third] = [(); 3].map(|()| rooms.open());
        let busy_ones = fill(&busy, 1);
        // Its own share and the common half.
        assert_eq!(busy_ones.len(), 166 + 500);
        assert!(busy.take(1).is_none());
        for other in [&quiet, &third] {
            let theirs = other.take(166).expect("a whole share is free");
            assert!(other.take(1).is_none(), "one byte past it");
            drop(theirs);
        }
        let kept: Vec<Waiting> = [&quiet, &third].map(|other| fill(other, 1)).into_iter().flatten().collect();
        assert_eq!(kept.len(), 2 * 166);
        assert!(rooms.bytes() <= MAX);
        drop((busy_ones, kept));
        assert_eq!(rooms.bytes(), 0);
    }

    #[test]
    fn one_proposal_that_is_larger_than_a_share_comes_through_at_a_time() {
        let rooms = Rooms::new(MAX);
        let [busy, quiet, third] = [(); 3].map(|()| rooms.open());
        let _busy_ones = fill(&busy, 1);
        let large = quiet.take(5 * MAX).expect("nothing of this database waits");
        assert!(quiet.take(1).is_some(), "its share is not taken by that");
        assert!(third.take(MAX).is_none(), "one at a time");
        drop(large);
        assert!(third.take(MAX).is_some());
        assert!(busy.take(1).is_none(), "much of it waits already");
    }

    #[test]
    fn with_more_databases_shares_are_smaller_and_the_sum_is_the_same() {
        let rooms = Rooms::new(MAX);
        let first = rooms.open();
        let mut early = fill(&first, 1);
        assert_eq!(early.len(), 1000, "alone it has everything");
        let second = rooms.open();
        let exception = second.take(1).expect("the one beyond");
        assert!(second.take(1).is_none(), "the shares are still the first one's");
        assert_eq!(rooms.bytes(), MAX + 1);
        // Its oldest are the ones of the share.
        early.drain(..250);
        assert_eq!(fill(&second, 1).len(), 250);
        drop((exception, early));
        drop(second);
        assert_eq!(fill(&first, 1).len(), 1000);
        assert_eq!(rooms.bytes(), 0);
    }
}

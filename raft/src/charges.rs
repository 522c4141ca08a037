//! Which requests were charged to a quota of transactions lately: a retry, from whichever node it comes, is the same
//! transaction and is not charged again.
//!
//! Node-local, as the quota itself: another leader charges once more for what it sees for the first time.

use std::collections::{BTreeSet, VecDeque};

use alhambra_storage::command::RequestId;

/// A retry that comes after more than this many other requests is charged again.
const CHARGES_KEPT: usize = 4096;

type Key = ([u8; 16], u64);

/// See the module. Takes about 50 bytes for each request that is kept.
#[derive(Debug, Default)]
pub(crate) struct Charges {
    known: BTreeSet<Key>,
    /// The same, oldest first.
    order: VecDeque<Key>,
}

const fn key(request: &RequestId) -> Key {
    // The floor is what the client has seen, and may have risen since.
    (request.client, request.sequence)
}

impl Charges {
    /// Whether it was charged before.
    pub(crate) fn contains(&self, request: &RequestId) -> bool {
        self.known.contains(&key(request))
    }

    /// It is charged now.
    pub(crate) fn note(&mut self, request: &RequestId) {
        if !self.known.insert(key(request)) {
            return;
        }
        self.order.push_back(key(request));
        if self.order.len() > CHARGES_KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use alhambra_ledger::ids::LogIndex;

    use super::*;

    fn request(client: u8, sequence: u64, floor: u64) -> RequestId {
        RequestId { client: [client; 16], sequence, floor: LogIndex(floor) }
    }

    #[test]
    fn a_request_is_known_until_so_many_others_have_come() {
        let mut charges = Charges::default();
        charges.note(&request(1, 1, 0));
        charges.note(&request(1, 1, 0));
        assert!(charges.contains(&request(1, 1, 9)), "whatever its floor is by now");
        assert!(!charges.contains(&request(2, 1, 0)) && !charges.contains(&request(1, 2, 0)));
        let others = CHARGES_KEPT as u64;
        for sequence in 0..others - 1 {
            charges.note(&request(2, sequence, 0));
        }
        assert!(charges.contains(&request(1, 1, 0)));
        charges.note(&request(2, others, 0));
        assert!(!charges.contains(&request(1, 1, 0)), "one more");
        assert!(charges.contains(&request(2, 0, 0)));
        assert_eq!((charges.known.len(), charges.order.len()), (CHARGES_KEPT, CHARGES_KEPT));
    }
}

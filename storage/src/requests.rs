//! The outcomes of the newest requests, so that a retry is answered and not carried out again. Replicated state: equal on
//! all replicas at the same log position, part of the checkpoint.
//!
//! The window is counted in outcomes, refusals included. What was forgotten is summed up by one number: the log entry of the newest
//! forgotten outcome. A request whose floor is that entry or a later one cannot be among the forgotten, for it was first sent when
//! that entry was already applied where it was made. Every outcome moves the log, so a replica that is not far behind always has a
//! floor that is high enough; transactions would not do, because refusals make none.

use std::collections::{HashMap, VecDeque};

use alhambra_ledger::ids::{LogIndex, TxId};

use crate::apply::Rejection;
use crate::command::RequestId;
use crate::import::ImportRefusal;
use crate::wire::{Malformed, Put, Reader};

/// An outcome without what the tx log knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    Committed(TxId),
    Rejected(Rejection),
}

/// What is known about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Not carried out so far.
    New,
    /// Carried out, with this outcome.
    Before(Kept),
    /// Nobody can tell.
    TooOld,
}

#[derive(Clone, Debug)]
struct Slot {
    client: [u8; 16],
    sequence: u64,
    /// The log entry that it came with.
    decided_at: LogIndex,
    kept: Kept,
}

/// The table.
#[derive(Clone, Debug)]
pub(crate) struct Requests {
    capacity: usize,
    window: VecDeque<Slot>,
    /// Number of the slot, counted from the first ever recorded. Looked up only, never iterated.
    numbers: HashMap<([u8; 16], u64), u64>,
    /// Number of the first slot of the window.
    first: u64,
    /// `decided_at` of the newest forgotten outcome.
    forgotten: Option<LogIndex>,
}

impl Requests {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, window: VecDeque::new(), numbers: HashMap::new(), first: 0, forgotten: None }
    }

    /// Memory that the table takes, about, bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let number = size_of::<(([u8; 16], u64), u64)>() + 1;
        (self.window.capacity() * size_of::<Slot>() + self.numbers.capacity() * number) as u64
    }

    pub(crate) fn look_up(&self, request: &RequestId) -> Seen {
        if let Some(number) = self.numbers.get(&(request.client, request.sequence)) {
            let slot = &self.window[(number - self.first) as usize];
            return Seen::Before(slot.kept.clone());
        }
        if self.forgotten.is_some_and(|index| request.floor < index) { Seen::TooOld } else { Seen::New }
    }

    /// Remembers an outcome; `decided_at` is the log entry that the request came with and never falls.
    pub(crate) fn record(&mut self, request: &RequestId, decided_at: LogIndex, kept: Kept) {
        if self.window.len() == self.capacity
            && let Some(oldest) = self.window.pop_front()
        {
            self.numbers.remove(&(oldest.client, oldest.sequence));
            self.first += 1;
            self.forgotten = Some(oldest.decided_at);
        }
        let number = self.first + self.window.len() as u64;
        self.numbers.insert((request.client, request.sequence), number);
        self.window.push_back(Slot { client: request.client, sequence: request.sequence, decided_at, kept });
    }

    pub(crate) fn encode_into(&self, out: &mut Vec<u8>) {
        out.put_u64(self.forgotten.map_or(0, |index| index.0));
        out.put_u8(u8::from(self.forgotten.is_some()));
        out.put_varint(self.window.len() as u64);
        for slot in &self.window {
            out.put_bytes(&slot.client);
            out.put_u64(slot.sequence);
            out.put_varint(slot.decided_at.0);
            match &slot.kept {
                Kept::Committed(tx) => {
                    out.put_u8(0);
                    out.put_varint(tx.0);
                }
                Kept::Rejected(rejection) => {
                    let (code, number) = rejection_code(rejection);
                    out.put_u8(code);
                    out.put_varint(u64::from(number));
                }
            }
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>, capacity: usize) -> Result<Self, Malformed> {
        let mut table = Self::new(capacity);
        let forgotten = LogIndex(reader.u64()?);
        let is_some = reader.u8()?;
        let count = reader.count(27)?;
        if is_some > 1 || (is_some == 0 && forgotten != LogIndex(0)) || count > capacity {
            return Err(Malformed);
        }
        for _ in 0..count {
            let (client, sequence) = (reader.array()?, reader.u64()?);
            let decided_at = LogIndex(reader.varint()?);
            let kept = match (reader.u8()?, reader.varint()?) {
                (0, tx) => Kept::Committed(TxId(tx)),
                (code, number) => Kept::Rejected(rejection_of(code, number)?),
            };
            table.record(&RequestId { client, sequence, floor: LogIndex(0) }, decided_at, kept);
        }
        table.forgotten = (is_some == 1).then_some(forgotten);
        Ok(table)
    }
}

fn rejection_code(rejection: &Rejection) -> (u8, u32) {
    match rejection {
        Rejection::Precondition { index } => (1, *index),
        Rejection::NotInitialised => (2, 0),
        Rejection::NoEntries => (3, 0),
        Rejection::NullKey => (4, 0),
        Rejection::KeyTooLong => (5, 0),
        Rejection::ValueTooLong => (6, 0),
        Rejection::TooManyEntries => (7, 0),
        Rejection::DuplicateKey => (8, 0),
        Rejection::MetadataUnsupported => (9, 0),
        Rejection::MetadataInvalid => (10, 0),
        Rejection::RequestTooOld => (11, 0),
        Rejection::ValueForm => (12, 0),
        Rejection::Conflict { range } => (13, range.map_or(0, |range| range + 1)),
        Rejection::SnapshotAhead => (14, 0),
        Rejection::NothingToPrune => (15, 0),
        Rejection::Replica => (16, 0),
        Rejection::Import(refusal) => (17, refusal.number()),
    }
}

fn rejection_of(code: u8, number: u64) -> Result<Rejection, Malformed> {
    let index = u32::try_from(number).map_err(|_| Malformed)?;
    let rejection = match code {
        1 => Rejection::Precondition { index },
        2 => Rejection::NotInitialised,
        3 => Rejection::NoEntries,
        4 => Rejection::NullKey,
        5 => Rejection::KeyTooLong,
        6 => Rejection::ValueTooLong,
        7 => Rejection::TooManyEntries,
        8 => Rejection::DuplicateKey,
        9 => Rejection::MetadataUnsupported,
        10 => Rejection::MetadataInvalid,
        11 => Rejection::RequestTooOld,
        12 => Rejection::ValueForm,
        13 => Rejection::Conflict { range: index.checked_sub(1) },
        14 => Rejection::SnapshotAhead,
        15 => Rejection::NothingToPrune,
        16 => Rejection::Replica,
        17 => Rejection::Import(*ImportRefusal::ALL.get(index as usize).ok_or(Malformed)?),
        _ => return Err(Malformed),
    };
    // Most have no number: then it is 0.
    if rejection_code(&rejection) == (code, index) { Ok(rejection) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(sequence: u64, floor: u64) -> RequestId {
        RequestId { client: [1; 16], sequence, floor: LogIndex(floor) }
    }

    #[test]
    fn a_retry_in_the_window_is_answered_and_an_older_floor_refused() {
        let mut table = Requests::new(3);
        for n in 1..=5u64 {
            assert_eq!(table.look_up(&request(n, n - 1)), Seen::New);
            table.record(&request(n, n - 1), LogIndex(n), Kept::Committed(TxId(n)));
        }
        for n in 3..=5 {
            assert_eq!(table.look_up(&request(n, 0)), Seen::Before(Kept::Committed(TxId(n))));
        }
        // Requests 1 and 2 are forgotten; 2 came with entry 2.
        assert_eq!(table.look_up(&request(1, 0)), Seen::TooOld);
        assert_eq!(table.look_up(&request(2, 1)), Seen::TooOld);
        assert_eq!(table.look_up(&request(9, 1)), Seen::TooOld, "could have been among the forgotten");
        assert_eq!(table.look_up(&request(9, 2)), Seen::New, "first sent after every forgotten outcome");
    }

    #[test]
    fn the_table_survives_its_bytes() {
        let mut table = Requests::new(4);
        for n in 1..=6u64 {
            let kept = match n {
                2 => Kept::Rejected(Rejection::Precondition { index: 2 }),
                4 => Kept::Rejected(Rejection::Conflict { range: None }),
                6 => Kept::Rejected(Rejection::Conflict { range: Some(6) }),
                _ => Kept::Committed(TxId(n)),
            };
            table.record(&request(n, 0), LogIndex(n), kept);
        }
        let mut bytes = Vec::new();
        table.encode_into(&mut bytes);
        let mut reader = Reader::new(&bytes);
        let read = Requests::read(&mut reader, 4).expect("whole");
        assert_eq!(reader.finish(), Ok(()));
        for n in 1..=8 {
            for floor in 0..4 {
                assert_eq!(read.look_up(&request(n, floor)), table.look_up(&request(n, floor)));
            }
        }
        let mut again = Vec::new();
        read.encode_into(&mut again);
        assert_eq!(again, bytes);
        for code in 1..=17 {
            let rejection = rejection_of(code, 0).expect("known");
            assert_eq!(rejection_code(&rejection).0, code);
        }
        assert_eq!(rejection_of(18, 0), Err(Malformed));
        assert_eq!(rejection_of(6, 1), Err(Malformed), "a number where there is none");
        for (number, refusal) in (0..).zip(ImportRefusal::ALL) {
            assert_eq!(rejection_of(17, number), Ok(Rejection::Import(refusal)));
            assert_eq!(rejection_code(&Rejection::Import(refusal)), (17, number as u32));
        }
        assert_eq!(rejection_of(17, ImportRefusal::ALL.len() as u64), Err(Malformed));
    }
}

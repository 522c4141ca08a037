//! What nodes say to each other about sessions and users, and its bytes. Not kept anywhere: a format byte, a kind, fields in
//! big-endian order; names with a length of two bytes. [`crate::service::peers`] asks and answers.

use alhambra_ledger::ids::TxId;
use alhambra_raft::meta::SessionId;
use bytes::Bytes;

use crate::limits::ENDS_PER_MESSAGE;
use crate::session::ended::End;

const FORMAT: u8 = 1;
/// Longest text in a message: a session id.
const TEXT_LEN_MAX: usize = 1023;

/// What a node asks another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A call came with this id of a session of yours: is it alive? It counts as used now.
    Touch {
        /// The id.
        text: String,
    },
    /// Answer when you have applied `systemdb` up to this transaction and ended what it ends.
    Settle {
        /// The transaction.
        tx: TxId,
        /// A session whose record is to be looked at again.
        session: Option<SessionId>,
    },
    /// These sessions have ended.
    Ended(Vec<End>),
    /// Which sessions have ended?
    Ends {
        /// Those behind this number of yours.
        after: u64,
    },
    /// How many logins of this user through you has no Logout taken back?
    Logins {
        /// The user.
        user: String,
        /// One fewer from now on, if there is any; the answer is what is left.
        take: bool,
    },
    /// What does your clock say?
    Clock,
}

/// What it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Ask::Touch`]: it lives.
    Lives {
        /// The transaction that selected the database; 0 for the first.
        tx: TxId,
        /// The selected database.
        database: String,
    },
    /// To [`Ask::Touch`]: there is no such session, or not any more.
    IsOver,
    /// To [`Ask::Touch`]: that cannot be told now.
    Unsure,
    /// It is done.
    Done,
    /// To [`Ask::Ends`].
    Ends {
        /// Random number of the process that answers: the count begins anew with another.
        process: u64,
        /// What was issued by then it cannot vouch for.
        floor_ms: i64,
        /// Number of the last of these; that of the question when there are no more.
        last: u64,
        /// The ends.
        ends: Vec<End>,
    },
    /// To [`Ask::Logins`]: whether one was taken, and how many are left.
    Logins {
        /// Whether there was one to take.
        taken: bool,
        /// What is left.
        left: u64,
    },
    /// To [`Ask::Clock`].
    Clock {
        /// Milliseconds since 1970-01-01 UTC.
        unix_ms: i64,
    },
}

fn begin(kind: u8) -> Vec<u8> {
    vec![FORMAT, kind]
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    // What is longer is cut, and is then no name of anything.
    let mut end = text.len().min(TEXT_LEN_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.extend(u16::try_from(end).expect("bounded").to_be_bytes());
    out.extend(&text.as_bytes()[..end]);
}

fn put_ends(out: &mut Vec<u8>, ends: &[End]) {
    let ends = &ends[..ends.len().min(ENDS_PER_MESSAGE)];
    out.extend(u32::try_from(ends.len()).expect("bounded").to_be_bytes());
    for end in ends {
        out.extend(end.issued_ms.to_be_bytes());
        out.extend(end.id);
    }
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_be_bytes)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.array()? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    fn text(&mut self) -> Option<String> {
        let len = usize::from(u16::from_be_bytes(self.array()?));
        let (head, tail) = self.0.split_at_checked(len).filter(|_| len <= TEXT_LEN_MAX)?;
        self.0 = tail;
        std::str::from_utf8(head).ok().map(str::to_owned)
    }

    fn ends(&mut self) -> Option<Vec<End>> {
        let count = usize::try_from(u32::from_be_bytes(self.array()?)).ok()?;
        if count > ENDS_PER_MESSAGE {
            return None;
        }
        (0..count).map(|_| Some(End { issued_ms: self.i64()?, id: self.array()? })).collect()
    }

    fn end<T>(&self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

impl Ask {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let out = match self {
            Self::Touch { text } => {
                let mut out = begin(1);
                put_text(&mut out, text);
                out
            }
            Self::Settle { tx, session } => {
                let mut out = begin(2);
                out.extend(tx.get().to_be_bytes());
                out.push(u8::from(session.is_some()));
                out.extend(session.unwrap_or_default());
                out
            }
            Self::Ended(ends) => {
                let mut out = begin(3);
                put_ends(&mut out, ends);
                out
            }
            Self::Ends { after } => {
                let mut out = begin(4);
                out.extend(after.to_be_bytes());
                out
            }
            Self::Logins { user, take } => {
                let mut out = begin(5);
                put_text(&mut out, user);
                out.push(u8::from(*take));
                out
            }
            Self::Clock => begin(6),
        };
        out.into()
    }

    /// From its bytes; none for what is no question.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = Input(bytes);
        let [FORMAT, kind] = input.array()? else { return None };
        let ask = match kind {
            1 => Self::Touch { text: input.text()? },
            2 => {
                let (tx, is_some, session) = (TxId(input.u64()?), input.flag()?, input.array()?);
                if !is_some && session != SessionId::default() {
                    return None;
                }
                Self::Settle { tx, session: is_some.then_some(session) }
            }
            3 => Self::Ended(input.ends()?),
            4 => Self::Ends { after: input.u64()? },
            5 => Self::Logins { user: input.text()?, take: input.flag()? },
            6 => Self::Clock,
            _ => return None,
        };
        input.end(ask)
    }
}

impl Answer {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let out = match self {
            Self::Lives { tx, database } => {
                let mut out = begin(1);
                out.extend(tx.get().to_be_bytes());
                put_text(&mut out, database);
                out
            }
            Self::IsOver => begin(2),
            Self::Unsure => begin(3),
            Self::Done => begin(4),
            Self::Ends { process, floor_ms, last, ends } => {
                let mut out = begin(5);
                out.extend(process.to_be_bytes());
                out.extend(floor_ms.to_be_bytes());
                out.extend(last.to_be_bytes());
                put_ends(&mut out, ends);
                out
            }
            Self::Logins { taken, left } => {
                let mut out = begin(6);
                out.push(u8::from(*taken));
                out.extend(left.to_be_bytes());
                out
            }
            Self::Clock { unix_ms } => {
                let mut out = begin(7);
                out.extend(unix_ms.to_be_bytes());
                out
            }
        };
        out.into()
    }

    /// From its bytes; none for what is no answer.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = Input(bytes);
        let [FORMAT, kind] = input.array()? else { return None };
        let answer = match kind {
            1 => Self::Lives { tx: TxId(input.u64()?), database: input.text()? },
            2 => Self::IsOver,
            3 => Self::Unsure,
            4 => Self::Done,
            5 => Self::Ends { process: input.u64()?, floor_ms: input.i64()?, last: input.u64()?, ends: input.ends()? },
            6 => Self::Logins { taken: input.flag()?, left: input.u64()? },
            7 => Self::Clock { unix_ms: input.i64()? },
            _ => return None,
        };
        input.end(answer)
    }
}

#[cfg(test)]
mod tests {
    use alhambra_fuzz::{Decoded, Target};

    use super::*;

    const ID: SessionId = [9; 16];

    fn asks() -> Vec<Ask> {
        vec![
            Ask::Touch { text: "AQER".into() },
            Ask::Settle { tx: TxId(7), session: None },
            Ask::Settle { tx: TxId(7), session: Some(ID) },
            Ask::Ended(vec![End { issued_ms: -1, id: ID }, End { issued_ms: 5, id: [1; 16] }]),
            Ask::Ends { after: u64::MAX },
            Ask::Logins { user: "eve".into(), take: true },
            Ask::Clock,
        ]
    }

    fn answers() -> Vec<Answer> {
        vec![
            Answer::Lives { tx: TxId(3), database: "orders".into() },
            Answer::IsOver,
            Answer::Unsure,
            Answer::Done,
            Answer::Ends { process: 1, floor_ms: 2, last: 3, ends: vec![End { issued_ms: 4, id: ID }] },
            Answer::Logins { taken: false, left: 2 },
            Answer::Clock { unix_ms: -5 },
        ]
    }

    #[test]
    fn messages_are_read_back_and_refused_when_cut_prolonged_or_of_another_version() {
        fn hold<T: PartialEq + std::fmt::Debug>(value: &T, bytes: &[u8], decode: impl Fn(&[u8]) -> Option<T>) {
            assert_eq!(decode(bytes).as_ref(), Some(value));
            for len in 0..bytes.len() {
                assert_eq!(decode(&bytes[..len]), None, "{len} bytes of {value:?}");
            }
            assert_eq!(decode(&[bytes, &[0]].concat()), None, "{value:?}");
            for (at, byte) in [(0, 2), (1, 0), (1, 99)] {
                let mut other = bytes.to_vec();
                other[at] = byte;
                assert_eq!(decode(&other), None, "{value:?}");
            }
        }
        for ask in asks() {
            hold(&ask, &ask.encode(), Ask::decode);
        }
        for answer in answers() {
            hold(&answer, &answer.encode(), Answer::decode);
        }
    }

    #[test]
    fn fuzz_messages_about_sessions() {
        fn fuzz<T>(name: &str, corpus: Vec<Bytes>, decode: impl Fn(&[u8]) -> Option<T>, encode: impl Fn(&T) -> Bytes) {
            let decode = |bytes: &[u8]| match decode(bytes) {
                Some(message) => Decoded::Canonical(encode(&message).to_vec()),
                None => Decoded::Refused,
            };
            let corpus = corpus.into_iter().map(|bytes| bytes.to_vec()).collect();
            Target { name, corpus, seal: &|_| {}, memory: (1024, 8), decode: &decode }.run();
        }
        fuzz("question about sessions", asks().iter().map(Ask::encode).collect(), Ask::decode, Ask::encode);
        fuzz("answer about sessions", answers().iter().map(Answer::encode).collect(), Answer::decode, Answer::encode);
    }

    #[test]
    fn a_forged_count_or_length_takes_no_memory() {
        let mut many = Ask::Ended(Vec::new()).encode().to_vec();
        many[2..6].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(Ask::decode(&many), None);
        let mut long = Ask::Touch { text: String::new() }.encode().to_vec();
        long[2..4].copy_from_slice(&u16::MAX.to_be_bytes());
        assert_eq!(Ask::decode(&long), None);
        let cut = Ask::Touch { text: "ä".repeat(1000) };
        assert_eq!(Ask::decode(&cut.encode()), Some(Ask::Touch { text: "ä".repeat(511) }));
    }
}

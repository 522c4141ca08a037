//! Fuzz targets of what nodes say to each other: whatever bytes come, decoding does not panic, holds no more memory than its
//! bound, and what decodes comes back the same after it is encoded again.

use std::fmt::Debug;

use alhambra_fuzz::{Decoded, Meter, Target};
use alhambra_ledger::ids::{LogIndex, TxId};
use alhambra_raft::codec::{decode_membership, decode_vote, encode_membership, encode_vote};
use alhambra_raft::disk::DiskReport;
use alhambra_raft::envelope::*;
use alhambra_raft::forward::ReadIndex;
use bytes::Bytes;
use openraft::raft::VoteRequest;

use crate::envelopes::{append, install, members, proposal, truncation, vote};

#[global_allocator]
static METER: Meter = Meter;

/// Memory for an empty message and for each of its bytes. A text or list whose length is forged gets 1 MiB before the first
/// of its bytes is missed, and no message has more than one of them at once.
const MEMORY: (usize, usize) = (2 << 20, 64);

fn target<T: Debug, E>(
    name: &str,
    corpus: Vec<Bytes>,
    decode: impl Fn(&Bytes) -> Result<T, E>,
    encode: impl Fn(T) -> Bytes,
) {
    let decode = |bytes: &[u8]| {
        let Ok(message) = decode(&Bytes::copy_from_slice(bytes)) else { return Decoded::Refused };
        let said = format!("{message:?}");
        let again = decode(&encode(message)).ok().map(|message| format!("{message:?}"));
        assert_eq!(again.as_ref(), Some(&said), "another message after it was encoded");
        Decoded::Loose
    };
    let corpus = corpus.into_iter().map(|bytes| bytes.to_vec()).collect();
    Target { name, corpus, seal: &|_| {}, memory: MEMORY, decode: &decode }.run();
}

#[test]
fn fuzz_membership_and_vote() {
    target("membership", vec![encode_membership(&members())], |b| decode_membership(b), |m| encode_membership(&m));
    let votes = vec![encode_vote(&vote(3, 2, true)), encode_vote(&vote(u64::MAX, 1, false))];
    target("raft vote", votes, |b| decode_vote(b), |v| encode_vote(&v));
}

#[test]
fn fuzz_messages_between_nodes() {
    let request = VoteRequest { vote: vote(3, 2, false), last_log_id: append().prev_log_id, leadership_transfer: true };
    target("vote request", vec![encode_vote_request(&request)], decode_vote_request, |r| encode_vote_request(&r));
    target("append", vec![encode_append(append())], decode_append, encode_append);
    target("install", vec![encode_install(&install())], decode_install, |i| encode_install(&i));
    target("propose", vec![encode_propose(proposal())], decode_propose, encode_propose);
    target("truncation", vec![encode_truncation(truncation())], decode_truncation, encode_truncation);
    let fetch = Fetch { transfer: 9, name: "tx/0".into(), offset: 1 << 20, len: 5 };
    target("fetch", vec![encode_fetch(&fetch)], decode_fetch, |f| encode_fetch(&f));
    let disk = DiskReport { free_bytes: 1 << 40, low_bytes: 64 << 20, low: true };
    target("disk", vec![encode_disk(&disk)], decode_disk, |d| encode_disk(&d));
    let index = Ok(ReadIndex { index: LogIndex(9), tx: TxId(4) });
    target("read index reply", vec![encode_read_index_reply(&index)], decode_read_index_reply, |r| {
        encode_read_index_reply(&r)
    });
    target("segment ask", vec![encode_segment_ask(7)], decode_segment_ask, encode_segment_ask);
}

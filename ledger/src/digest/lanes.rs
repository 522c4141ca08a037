//! Two SHA-256 computations at once with the SHA instructions of x86-64 processors. One computation alone waits for the
//! result of each instruction; a second one fills the gaps. Used for building trees, where equal-sized inputs come in
//! masses, and for other messages that come many at a time. Whether the processor has the instructions is asked at run
//! time; `docs/adr/0001-unsafe-sha-ni.md` says why this module may use `unsafe`, which it does in exactly one expression
//! per entry point.
#![allow(unsafe_code)]

use core::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi64, _mm_set_epi32, _mm_set_epi64x, _mm_sha256msg1_epu32,
    _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi32,
};

use super::{Digest, LEAF, NODE, Vec};

/// Round constants: the first 32 bits of the fractional parts of the cube roots of the first 64 primes.
const K: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98,
    0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
    0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8,
    0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819,
    0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
    0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
    0xc67178f2,
];

/// Hashes an even number of leaves, if the processor can; returns the others.
pub(super) fn leaves<'a>(payloads: &'a [Digest], out: &mut Vec<Digest>) -> &'a [Digest] {
    if !available() {
        return payloads;
    }
    let (couples, rest) = payloads.as_chunks::<2>();
    for [a, b] in couples {
        let (a, b) = (leaf_block(a), leaf_block(b));
        // SAFETY: `available` found every target feature that `hash_two` is compiled for.
        out.extend(unsafe { hash_two([&[a], &[b]]) });
    }
    rest
}

/// Hashes an even number of nodes, if the processor can; returns the others.
pub(super) fn nodes<'a>(pairs: &'a [[Digest; 2]], out: &mut Vec<Digest>) -> &'a [[Digest; 2]] {
    if !available() {
        return pairs;
    }
    let (couples, rest) = pairs.as_chunks::<2>();
    for [a, b] in couples {
        let (a, b) = (node_blocks(a), node_blocks(b));
        // SAFETY: `available` found every target feature that `hash_two` is compiled for.
        out.extend(unsafe { hash_two([&a, &b]) });
    }
    rest
}

/// Longest message that is hashed in a lane, in blocks, padding included. Longer ones are rare, and copying them costs.
const BLOCKS_MAX: usize = 16;

/// Hashes all messages of [`super::sha256_each`], if the processor can: each with another one of as many blocks.
pub(super) fn each(out: &mut [Digest], mut write: impl FnMut(usize, &mut Vec<u8>)) -> bool {
    if !available() {
        return false;
    }
    // SAFETY: `available` found every target feature that `hash_two` is compiled for.
    let two = |a: &[u8], b: &[u8]| unsafe { hash_two([a.as_chunks().0, b.as_chunks().0]) };
    // For each number of blocks, a message that waits for another one.
    let mut single: [Option<(usize, Vec<u8>)>; BLOCKS_MAX + 1] = [const { None }; BLOCKS_MAX + 1];
    let mut spare = Vec::new();
    let mut message = Vec::new();
    for number in 0..out.len() {
        message.clear();
        write(number, &mut message);
        let blocks = (message.len() + PADDING_MIN).div_ceil(64);
        if blocks > BLOCKS_MAX {
            out[number] = super::sha256(&message);
            continue;
        }
        pad(&mut message);
        match single[blocks].take() {
            Some((first, other)) => {
                [out[first], out[number]] = two(&other, &message);
                spare = other;
            }
            None => {
                single[blocks] = Some((number, core::mem::replace(&mut message, core::mem::take(&mut spare))));
            }
        }
    }
    for (number, padded) in single.into_iter().flatten() {
        [out[number], _] = two(&padded, &padded);
    }
    true
}

/// Bytes that padding adds at least: a one bit and the length.
const PADDING_MIN: usize = 9;

/// Pads a message to whole blocks.
fn pad(message: &mut Vec<u8>) {
    let bits = u64::try_from(message.len()).expect("a message is in memory") * 8;
    let end = (message.len() + PADDING_MIN).next_multiple_of(64);
    message.push(0x80);
    message.resize(end - 8, 0);
    message.extend_from_slice(&bits.to_be_bytes());
}

/// Whether this processor has the instructions. Asked once, then remembered by the standard library.
fn available() -> bool {
    std::arch::is_x86_feature_detected!("sha")
        && std::arch::is_x86_feature_detected!("sse4.1")
        && std::arch::is_x86_feature_detected!("ssse3")
}

/// The padded 33-byte message of a leaf.
fn leaf_block(payload: &Digest) -> [u8; 64] {
    let mut block = [0; 64];
    block[0] = LEAF;
    block[1..33].copy_from_slice(&payload.0);
    block[33] = 0x80;
    block[56..].copy_from_slice(&(33u64 * 8).to_be_bytes());
    block
}

/// The padded 65-byte message of a node: its last byte starts a second block.
fn node_blocks([left, right]: &[Digest; 2]) -> [[u8; 64]; 2] {
    let [mut first, mut second] = [[0; 64]; 2];
    first[0] = NODE;
    first[1..33].copy_from_slice(&left.0);
    first[33..].copy_from_slice(&right.0[..31]);
    second[0] = right.0[31];
    second[1] = 0x80;
    second[56..].copy_from_slice(&(65u64 * 8).to_be_bytes());
    [first, second]
}

/// State words in the order in which the instructions want them: a b e f in one register, c d g h in the other, the
/// first named in the highest 32 bits.
#[derive(Clone, Copy)]
struct State {
    abef: __m128i,
    cdgh: __m128i,
}

/// Digests of two padded messages with the same number of blocks.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
#[inline]
fn hash_two(messages: [&[[u8; 64]]; 2]) -> [Digest; 2] {
    let start = State {
        abef: set([0x6a09e667, 0xbb67ae85, 0x510e527f, 0x9b05688c]),
        cdgh: set([0x3c6ef372, 0xa54ff53a, 0x1f83d9ab, 0x5be0cd19]),
    };
    let mut states = [start; 2];
    let [first, second] = messages;
    for (a, b) in first.iter().zip(second) {
        compress_two(&mut states, a, b);
    }
    states.map(|state| finish(&state))
}

/// One block into each state. The two lanes are independent; the compiler interleaves their instructions.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
#[inline]
fn compress_two(states: &mut [State; 2], a: &[u8; 64], b: &[u8; 64]) {
    let before = *states;
    let [mut x, mut y] = before;
    let [mut wx, mut wy] = [words(a), words(b)];
    for (group, k) in K.as_chunks::<4>().0.iter().enumerate() {
        let slot = group % 4;
        if group >= 4 {
            wx[slot] = schedule(&wx, slot);
            wy[slot] = schedule(&wy, slot);
        }
        let k = set([k[3], k[2], k[1], k[0]]);
        let (kx, ky) = (_mm_add_epi32(wx[slot], k), _mm_add_epi32(wy[slot], k));
        x.cdgh = _mm_sha256rnds2_epu32(x.cdgh, x.abef, kx);
        y.cdgh = _mm_sha256rnds2_epu32(y.cdgh, y.abef, ky);
        x.abef = _mm_sha256rnds2_epu32(x.abef, x.cdgh, _mm_shuffle_epi32::<0x0e>(kx));
        y.abef = _mm_sha256rnds2_epu32(y.abef, y.cdgh, _mm_shuffle_epi32::<0x0e>(ky));
    }
    *states = [add(&before[0], &x), add(&before[1], &y)];
}

#[target_feature(enable = "sse2")]
#[inline]
fn add(a: &State, b: &State) -> State {
    State { abef: _mm_add_epi32(a.abef, b.abef), cdgh: _mm_add_epi32(a.cdgh, b.cdgh) }
}

/// The next four words of the message schedule; they take the place of the oldest four, at `slot`.
#[target_feature(enable = "sha,sse2,ssse3")]
#[inline]
fn schedule(w: &[__m128i; 4], slot: usize) -> __m128i {
    let [oldest, second, third, newest] = [w[slot], w[(slot + 1) % 4], w[(slot + 2) % 4], w[(slot + 3) % 4]];
    let sum = _mm_add_epi32(_mm_sha256msg1_epu32(oldest, second), _mm_alignr_epi8::<4>(newest, third));
    _mm_sha256msg2_epu32(sum, newest)
}

/// Four words, the first in the highest bits.
#[target_feature(enable = "sse2")]
#[inline]
fn set([d, c, b, a]: [u32; 4]) -> __m128i {
    _mm_set_epi32(d.cast_signed(), c.cast_signed(), b.cast_signed(), a.cast_signed())
}

/// The sixteen message words of a block, four in a register, the first in the lowest bits.
#[target_feature(enable = "sse2")]
#[inline]
fn words(block: &[u8; 64]) -> [__m128i; 4] {
    let mut out = [set([0; 4]); 4];
    for (register, bytes) in out.iter_mut().zip(block.as_chunks::<16>().0) {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (low, high) =
            (u64::from(word(4)) << 32 | u64::from(word(0)), u64::from(word(12)) << 32 | u64::from(word(8)));
        *register = _mm_set_epi64x(high.cast_signed(), low.cast_signed());
    }
    out
}

/// The state as a digest.
#[target_feature(enable = "sse2,sse4.1")]
#[inline]
fn finish(state: &State) -> Digest {
    let (ab, ef) = (_mm_extract_epi64::<1>(state.abef), _mm_extract_epi64::<0>(state.abef));
    let (cd, gh) = (_mm_extract_epi64::<1>(state.cdgh), _mm_extract_epi64::<0>(state.cdgh));
    let mut out = [0; 32];
    for (bytes, words) in out.as_chunks_mut::<8>().0.iter_mut().zip([ab, cd, ef, gh]) {
        *bytes = words.to_be_bytes();
    }
    Digest(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{leaf, node, sha256};

    /// Runs only where the instructions exist; elsewhere the portable path is the only one and there is nothing to
    /// compare.
    #[test]
    fn lanes_equal_portable() {
        if !available() {
            return;
        }
        let inputs: Vec<Digest> = (0..64u8).map(|n| sha256(&[n])).chain([Digest([0; 32]), Digest([255; 32])]).collect();
        let mut got = Vec::new();
        assert!(leaves(&inputs, &mut got).is_empty());
        assert_eq!(got, inputs.iter().map(leaf).collect::<Vec<_>>());
        let pairs = inputs.as_chunks::<2>().0;
        got.clear();
        assert_eq!(nodes(pairs, &mut got).len(), pairs.len() % 2);
        let expected: Vec<_> = pairs.iter().map(|[l, r]| node(l, r)).take(got.len()).collect();
        assert_eq!(got, expected);
    }
}

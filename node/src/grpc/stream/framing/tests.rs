//! The framing against a model that knows the whole byte stream, and on forged bytes.

use alhambra_fuzz::{Decoded, Meter, Target};
use proptest::prelude::*;

use super::*;

#[global_allocator]
static METER: Meter = Meter;

/// What a decoder finds in these chunks, and whether it ends between messages.
fn decode(chunks: impl IntoIterator<Item = Bytes>) -> (Vec<Bytes>, bool) {
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    for chunk in chunks {
        decoder.push(chunk);
        while let Some(message) = decoder.message() {
            found.push(message);
        }
    }
    (found, decoder.length_bytes == 0 && decoder.rest.is_empty())
}

/// The same by the words of the sheet, from the whole byte stream.
fn model(stream: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let mut found = Vec::new();
    let mut at = 0;
    while at + 8 <= stream.len() {
        let claimed = stream[at..at + 8].iter().fold(0_u128, |sum, byte| sum * 256 + u128::from(*byte));
        if claimed > (stream.len() - at - 8) as u128 {
            break;
        }
        let end = at + 8 + claimed as usize;
        found.push(stream[at + 8..end].to_vec());
        at = end;
    }
    (found, at == stream.len())
}

/// Cuts a byte stream at the given places, taken modulo its length.
fn cut(stream: &[u8], places: &[usize]) -> Vec<Bytes> {
    let mut places: Vec<usize> = places.iter().map(|place| place % (stream.len() + 1)).collect();
    places.sort_unstable();
    let mut chunks = Vec::new();
    let mut from = 0;
    for to in places.into_iter().chain([stream.len()]) {
        chunks.push(Bytes::copy_from_slice(&stream[from..to]));
        from = to;
    }
    chunks
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..40),
        1 => (65_500_usize..65_560, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
        1 => (131_040_usize..131_080, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
    ]
}

proptest! {
    #[test]
    fn sent_chunks_keep_messages_apart_and_are_found_again(
        messages in proptest::collection::vec(payload(), 0..6),
        places in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let mut stream = Vec::new();
        for message in &messages {
            let chunks: Vec<Bytes> = chunks(message.clone().into()).collect();
            // By the words of the sheet: the length and 65,528 bytes, then 65,536 each.
            let framed = [&(message.len() as u64).to_be_bytes()[..], message].concat();
            let expected: Vec<&[u8]> = framed.chunks(65_536).collect();
            prop_assert_eq!(chunks.iter().map(|chunk| &chunk[..]).collect::<Vec<_>>(), expected);
            stream.extend(framed);
        }
        prop_assert_eq!(model(&stream), (messages.clone(), true));
        let (found, between) = decode(cut(&stream, &places));
        prop_assert!(between);
        prop_assert_eq!(found, messages);
    }

    #[test]
    fn any_bytes_cut_anywhere_are_what_the_model_finds(
        pieces in proptest::collection::vec(
            prop_oneof![
                (0_u64..30).prop_map(|len| len.to_be_bytes().to_vec()),
                any::<u64>().prop_map(|len| len.to_be_bytes().to_vec()),
                proptest::collection::vec(any::<u8>(), 0..30),
            ],
            0..12,
        ),
        places in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let stream = pieces.concat();
        let (found, between) = decode(cut(&stream, &places));
        let (expected, expected_between) = model(&stream);
        prop_assert_eq!((found, between), (expected.into_iter().map(Bytes::from).collect(), expected_between));
    }
}

#[test]
fn borders_of_the_first_chunk() {
    for (len, lens) in [
        (0, vec![8]),
        (1, vec![9]),
        (65_527, vec![65_535]),
        (65_528, vec![65_536]),
        (65_529, vec![65_536, 1]),
        (131_064, vec![65_536, 65_536]),
        (131_065, vec![65_536, 65_536, 1]),
    ] {
        let found: Vec<usize> = chunks(vec![7; len].into()).map(|chunk| chunk.len()).collect();
        assert_eq!(found, lens, "{len}");
    }
}

#[test]
fn a_length_is_seen_before_its_bytes_and_costs_nothing() {
    let (announced, peak) = Meter::peak_of(|| {
        let mut decoder = Decoder::default();
        for byte in u64::MAX.to_be_bytes() {
            assert_eq!((decoder.announced(), decoder.has_length()), (None, false));
            decoder.push(Bytes::copy_from_slice(&[byte]));
        }
        assert_eq!(decoder.message(), None);
        for _ in 0..10 {
            decoder.push(Bytes::from_static(b"0123456789"));
            assert_eq!(decoder.message(), None);
        }
        decoder.announced()
    });
    assert_eq!(announced, Some(u64::MAX));
    assert!(peak < 1024, "{peak} bytes for a forged length");
}

#[test]
fn a_message_in_one_chunk_is_not_copied() {
    let chunk: Bytes = chunks(vec![1; 1000].into()).next().unwrap();
    let (start, len) = (chunk.as_ptr() as usize, chunk.len());
    let (found, _) = decode([chunk]);
    assert_eq!(found.len(), 1);
    assert!((start..start + len).contains(&(found[0].as_ptr() as usize)));
}

#[test]
fn fuzz_framing() {
    for step in [1, 3, 8, 4096] {
        let decode = |input: &[u8]| match decode(input.chunks(step).map(Bytes::copy_from_slice)) {
            (_, false) => Decoded::Refused,
            (found, true) => Decoded::Canonical(
                found.into_iter().flat_map(|found| chunks(found).collect::<Vec<_>>()).flatten().collect(),
            ),
        };
        let framed = |messages: &[&[u8]]| -> Vec<u8> {
            messages.iter().flat_map(|message| chunks(Bytes::copy_from_slice(message))).flatten().collect()
        };
        let corpus = vec![framed(&[]), framed(&[b"key", b"value"]), framed(&[b"", b"", &[9; 300]])];
        // Makes the last length right.
        let seal = |input: &mut Vec<u8>| {
            let (found, _) = model(input);
            let at: usize = found.iter().map(|message| 8 + message.len()).sum();
            if let Some(len) = (input.len() - at).checked_sub(8) {
                input[at..at + 8].copy_from_slice(&(len as u64).to_be_bytes());
            }
        };
        let name = format!("framing in chunks of {step}");
        Target { name: &name, corpus, seal: &seal, memory: (1024, 40), decode: &decode }.run();
    }
}

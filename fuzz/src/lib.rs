//! Fuzzing of decoders on a stable compiler: wrong bytes made from right ones, and what must hold for each.
//!
//! A [`Target`] has a corpus of inputs that decode. Inputs are made by changing those, mostly many small changes, and most
//! are sealed afterwards: checksums are made right again, because no decoder reads on behind a wrong one. What decodes joins
//! the corpus, so that later inputs lie further from the first. For every input:
//!
//! - decoding does not panic and comes to an end;
//! - it never holds more memory than the target's bound for the length of the input ([`Meter`] counts);
//! - what decodes has, encoded again, the same bytes, where the format is canonical.
//!
//! Plain tests try a fixed number of inputs from a fixed seed. With `ALHAMBRA_FUZZ_SECONDS` each target runs for so long from
//! a seed of its own, which it prints; `ALHAMBRA_FUZZ_SEED` repeats it. A failure prints seed, number and bytes of the input.
//!
//! Nothing here knows a format. Used by tests only.

mod meter;
mod mutate;

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

pub use meter::Meter;
use mutate::{Mutator, Random};

/// Inputs that a target tries when no time is set.
const INPUTS_PLAIN: u64 = 3000;
/// Seed of plain tests.
const SEED_PLAIN: u64 = 1;
/// Inputs between two looks at the clock.
const INPUTS_PER_LOOK: u64 = 64;

/// What came of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// It is not in the form that the decoder asks for.
    Refused,
    /// It decodes, and this is what it is when encoded again: must be the input.
    Canonical(Vec<u8>),
    /// It decodes, in a form of which there are several.
    Loose,
}

/// A decoder and what must hold for it.
pub struct Target<'a> {
    /// Printed, and found by this name.
    pub name: &'a str,
    /// Inputs that decode.
    pub corpus: Vec<Vec<u8>>,
    /// Makes checksums and lengths right, as far as the decoder looks at them first.
    pub seal: &'a dyn Fn(&mut Vec<u8>),
    /// Memory for the empty input, bytes, and for each byte of input: decoding and encoding again.
    pub memory: (usize, usize),
    /// Decodes and encodes again.
    pub decode: &'a dyn Fn(&[u8]) -> Decoded,
}

/// Says which input it was when the decoder panics.
struct OnPanic<'a> {
    name: &'a str,
    seed: u64,
    number: u64,
    input: &'a [u8],
}

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.input.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("fuzz {}: seed {} input {} is {hex}", self.name, self.seed, self.number);
        }
    }
}

fn number_from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

impl Target<'_> {
    /// Tries inputs as the environment says.
    ///
    /// # Panics
    /// When something does not hold; when the corpus is not what it should be; without a [`Meter`] as the allocator.
    pub fn run(self) {
        let seconds = number_from_env("ALHAMBRA_FUZZ_SECONDS");
        let seed = number_from_env("ALHAMBRA_FUZZ_SEED").unwrap_or_else(|| match seconds {
            Some(_) => RandomState::new().hash_one(self.name),
            None => SEED_PLAIN,
        });
        self.run_with(seed, seconds.map(Duration::from_secs));
    }

    #[allow(clippy::disallowed_methods, reason = "how long to try is real time; nothing that is tested sees it")]
    fn run_with(self, seed: u64, time: Option<Duration>) {
        let begin = Instant::now();
        println!("fuzz {}: seed {seed}", self.name);
        assert!(Meter::peak_of(|| std::hint::black_box(vec![1_u8; 100])).1 >= 100, "the meter is not the allocator");
        for (number, input) in (0..).zip(&self.corpus) {
            assert_ne!(self.try_one(seed, number, input), Decoded::Refused, "{}: corpus {number}", self.name);
        }
        let (mut number, mut refused, mut accepted) = (0_u64, 0_u64, 0_u64);
        let mut mutator = Mutator::new(Random::new(seed), self.corpus.clone());
        loop {
            let more = match time {
                None => number < INPUTS_PLAIN,
                Some(time) => !number.is_multiple_of(INPUTS_PER_LOOK) || begin.elapsed() < time,
            };
            if !more {
                break;
            }
            let input = mutator.next_input(self.seal);
            match self.try_one(seed, number, &input) {
                Decoded::Refused => refused += 1,
                Decoded::Canonical(_) | Decoded::Loose => {
                    accepted += 1;
                    mutator.keep(input);
                }
            }
            number += 1;
        }
        println!("fuzz {}: {number} inputs, {accepted} decoded", self.name);
        assert!(refused > 0, "{}: no input was refused", self.name);
    }

    fn try_one(&self, seed: u64, number: u64, input: &[u8]) -> Decoded {
        let _on_panic = OnPanic { name: self.name, seed, number, input };
        let (decoded, peak) = Meter::peak_of(|| (self.decode)(input));
        let bound = self.memory.0 + self.memory.1 * input.len();
        assert!(peak <= bound, "{}: {peak} bytes of memory for {} of input, bound {bound}", self.name, input.len());
        if let Decoded::Canonical(again) = &decoded {
            assert!(again == input, "{}: encoded again it is {again:02x?}", self.name);
        }
        decoded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static METER: Meter = Meter;

    /// A length byte, then so many bytes whose sum is the last byte.
    fn seal(input: &mut Vec<u8>) {
        if input.len() < 2 {
            input.resize(2, 0);
        }
        let last = input.len() - 1;
        input[0] = (last - 1) as u8;
        input[last] = input[1..last].iter().fold(0, |sum, byte| sum ^ byte);
    }

    fn body(input: &[u8]) -> Option<&[u8]> {
        let (len, rest) = input.split_first()?;
        let (sum, body) = rest.split_last()?;
        (body.len() == usize::from(*len) && body.iter().fold(0, |sum, byte| sum ^ byte) == *sum).then_some(body)
    }

    fn run(decode: &dyn Fn(&[u8]) -> Decoded) {
        let corpus = vec![vec![0, 0], vec![3, 1, 2, 3, 0]];
        Target { name: "test", corpus, seal: &seal, memory: (64, 2), decode }.run_with(7, None);
    }

    fn encode(body: &[u8]) -> Vec<u8> {
        let mut out = [&[0], body, &[0]].concat();
        seal(&mut out);
        out
    }

    #[test]
    fn a_sound_decoder_passes() {
        run(&|input| body(input).map_or(Decoded::Refused, |body| Decoded::Canonical(encode(body))));
    }

    #[test]
    #[should_panic(expected = "index out of bounds")]
    fn a_panic_behind_the_checksum_is_found() {
        run(&|input| {
            let Some(body) = body(input) else { return Decoded::Refused };
            if body.first() == Some(&0xff) {
                std::hint::black_box(body[body.len() + 1 - usize::from(body.len() < 2)]);
            }
            Decoded::Loose
        });
    }

    #[test]
    #[should_panic(expected = "bytes of memory")]
    fn memory_for_a_forged_length_is_found() {
        run(&|input| {
            let Some(body) = body(input) else { return Decoded::Refused };
            let claimed = body.first().map_or(0, |first| usize::from(*first) * 100);
            std::hint::black_box(Vec::<u8>::with_capacity(claimed));
            Decoded::Loose
        });
    }

    #[test]
    #[should_panic(expected = "encoded again")]
    fn a_second_form_is_found() {
        run(&|input| {
            let Some(body) = body(input) else { return Decoded::Refused };
            let end = body.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            Decoded::Canonical(encode(&body[..end]))
        });
    }

    #[test]
    fn a_seed_repeats_its_inputs() {
        let inputs = |seed| {
            let mut mutator = Mutator::new(Random::new(seed), vec![vec![1, 2, 3]]);
            (0..100).map(|_| mutator.next_input(&seal)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(5), inputs(5));
        assert_ne!(inputs(5), inputs(6));
    }
}

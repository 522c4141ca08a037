//! Wrong bytes from right ones.

/// Longest input, bytes, unless the corpus has a longer one.
const INPUT_BYTES_MAX: usize = 4096;
/// Inputs that are kept beside the first ones.
const KEPT_MAX: usize = 256;
/// Changes to one input.
const CHANGES_MAX: u64 = 6;

/// Bytes at which length fields, flags and variable-length integers change their meaning.
const EDGES: [u8; 10] = [0, 1, 2, 0x3f, 0x40, 0x7f, 0x80, 0xbf, 0xc0, 0xff];
/// Numbers at which they do.
const NUMBERS: [u64; 8] =
    [0, 1, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x3fff_ffff_ffff_ffff, 0x7fff_ffff_ffff_ffff, 0xffff_ffff_ffff_ffff];

/// SplitMix64: the next number follows from a counter alone.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// Makes inputs.
#[derive(Debug)]
pub(crate) struct Mutator {
    random: Random,
    corpus: Vec<Vec<u8>>,
    /// How many of the corpus were there at the start; these stay.
    first: usize,
    len_max: usize,
}

impl Mutator {
    pub(crate) fn new(random: Random, corpus: Vec<Vec<u8>>) -> Self {
        assert!(!corpus.is_empty(), "a corpus has at least one input");
        let longest = corpus.iter().map(Vec::len).max().unwrap_or(0);
        Self { random, first: corpus.len(), corpus, len_max: INPUT_BYTES_MAX.max(2 * longest) }
    }

    /// An input that decodes is changed further.
    pub(crate) fn keep(&mut self, input: Vec<u8>) {
        if self.corpus.len() < self.first + KEPT_MAX {
            self.corpus.push(input);
        } else {
            let at = self.first + self.random.below(KEPT_MAX);
            self.corpus[at] = input;
        }
    }

    pub(crate) fn next_input(&mut self, seal: &dyn Fn(&mut Vec<u8>)) -> Vec<u8> {
        let mut input = match self.random.below(20) {
            0 => {
                let len = self.random.below(200);
                self.random.bytes(len)
            }
            _ => self.any().clone(),
        };
        for _ in 0..=self.random.next() % CHANGES_MAX {
            self.change(&mut input);
        }
        input.truncate(self.len_max);
        if self.random.below(8) != 0 {
            seal(&mut input);
        }
        input
    }

    fn any(&mut self) -> &Vec<u8> {
        // Half of them from the first ones, or these would be lost among their descendants.
        let from = if self.random.below(2) == 0 { self.first } else { self.corpus.len() };
        let at = self.random.below(from);
        &self.corpus[at]
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let random = &mut self.random;
        if input.is_empty() {
            *input = random.bytes(8);
            return;
        }
        let at = random.below(input.len());
        let len = 1 + random.below((input.len() - at).min(40));
        match random.below(10) {
            0 => input[at] ^= 1 << random.below(8),
            1 => input[at] = random.pick(&EDGES),
            2 => input[at] = random.next() as u8,
            3 => input[at] = input[at].wrapping_add(random.pick(&[1, 0xff])),
            4 => {
                let number = random.pick(&NUMBERS).wrapping_add(random.pick(&[0, 1, u64::MAX]));
                let bytes = &number.to_be_bytes()[8 - random.pick(&[2, 4, 8])..];
                let len = bytes.len().min(input.len() - at);
                input[at..at + len].copy_from_slice(&bytes[..len]);
            }
            5 => {
                input.drain(at..at + len);
            }
            6 => {
                let inserted = random.bytes(len);
                input.splice(at..at, inserted);
            }
            7 => {
                // The same again, somewhere.
                let copied = input[at..at + len].to_vec();
                let to = random.below(input.len());
                input.splice(to..to, copied);
            }
            8 => input.truncate(at),
            _ => {
                // The front of this one, the back of another.
                let other = self.any().clone();
                let from = self.random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
}

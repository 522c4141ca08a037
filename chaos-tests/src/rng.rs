//! SplitMix64: what everything that a seed decides is drawn from. Our own, so that no seed changes its meaning with the version of
//! a library.

/// The state of a generator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// A generator whose whole output follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator that follows from `seed` and `purpose`; those of different purposes do not disturb each other.
    pub fn of(seed: u64, purpose: &str) -> Self {
        Self(purpose.bytes().fold(seed, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)))
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_what_others_draw() {
        // The first values for seed 1234567 that the authors of the generator give.
        let mut rng = SplitMix64::new(1_234_567);
        assert_eq!([rng.draw(), rng.draw()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
        assert_ne!(SplitMix64::of(1, "a").draw(), SplitMix64::of(1, "b").draw());
        assert_eq!(SplitMix64::of(1, "a").draw(), SplitMix64::of(1, "a").draw());
    }
}

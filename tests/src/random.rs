//! Reproducible randomness for loads and contents: SplitMix64, whose whole state is one number that a failure can print.

/// A generator that gives the same numbers for the same seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator for `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Bytes that don't compress.
    pub fn noise(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&self.next_u64().to_le_bytes()[..word.len()]);
        }
        bytes
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`; `bound` is not 0. The bias of the remainder doesn't matter to a load.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below 0");
        self.next_u64() % bound
    }

    /// True in `percent` of 100 cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// The seed of a test: `BACKHAUL_SEED` where it is set, else `default`; printed, so that a failure names it.
#[must_use]
pub fn seed(default: u64) -> u64 {
    let seed = std::env::var("BACKHAUL_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    eprintln!("seed {seed} (BACKHAUL_SEED={seed} runs it again)");
    seed
}

//! Random choices as pure functions of counters.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a choice is for; choices with other purposes are independent.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// Order of the sources within a block.
    Block = 1,
    /// Order of a source's records within an epoch.
    Epoch = 2,
    /// Reasoning off, and where a trace is cut.
    Trace = 3,
    /// Turn, budget and sampling of a prompt that the model answers itself.
    Rollout = 4,
    /// First values of an adapter.
    Adapter = 5,
}

/// Numbers for (seed, purpose, a, b).
pub(crate) struct Draws(ChaCha8Rng);

impl Draws {
    pub(crate) fn new(seed: u64, purpose: Purpose, a: u64, b: u64) -> Self {
        let mut key = [0; 32];
        for (bytes, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, a, b]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform below `n`, to within n/2⁵³.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.share() * n as f64) as usize).min(n - 1)
    }

    /// Uniform in [0, 1).
    pub(crate) fn share(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A permutation of `0..n` by a Feistel network of four rounds on the next power of four; values
/// outside are sent round again.
pub(crate) struct Permutation {
    n: u64,
    half_bits: u32,
    keys: [u64; 4],
}

impl Permutation {
    pub(crate) fn new(n: u64, mut draws: Draws) -> Self {
        let bits = 64 - n.saturating_sub(1).leading_zeros();
        Self { n, half_bits: bits.div_ceil(2).max(1), keys: [(); 4].map(|()| draws.next_u64()) }
    }

    /// Where `index < n` goes.
    pub(crate) fn at(&self, index: u64) -> u64 {
        assert!(index < self.n, "index {index} of {}", self.n);
        let mask = (1 << self.half_bits) - 1;
        let mut value = index;
        loop {
            let (mut left, mut right) = (value >> self.half_bits, value & mask);
            for key in self.keys {
                (left, right) = (right, left ^ (mix(right ^ key) & mask));
            }
            value = left << self.half_bits | right;
            if value < self.n {
                return value;
            }
        }
    }
}

/// The finalizer of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_visits_each_index_once_and_mixes() {
        for n in [1, 2, 3, 5, 16, 17, 1000, 4096] {
            let order = |seed| {
                let permutation = Permutation::new(n, Draws::new(seed, Purpose::Epoch, 0, 0));
                (0..n).map(|i| permutation.at(i)).collect::<Vec<_>>()
            };
            let mut sorted = order(1);
            sorted.sort_unstable();
            assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            if n >= 1000 {
                let fixed = order(1).iter().zip(0..).filter(|&(&a, b)| a == b).count();
                let same = order(1).iter().zip(order(2)).filter(|&(&a, b)| a == b).count();
                assert!(fixed < 12 && same < 12, "{fixed} {same}");
            }
        }
    }

    #[test]
    fn draws_depend_on_every_counter() {
        let first = |seed, purpose, a, b| Draws::new(seed, purpose, a, b).next_u64();
        let base = first(1, Purpose::Trace, 2, 3);
        assert_eq!(base, first(1, Purpose::Trace, 2, 3));
        assert_ne!(base, first(2, Purpose::Trace, 2, 3));
        assert_ne!(base, first(1, Purpose::Epoch, 2, 3));
        assert_ne!(base, first(1, Purpose::Trace, 3, 3));
        assert_ne!(base, first(1, Purpose::Trace, 2, 4));
        let mut draws = Draws::new(0, Purpose::Trace, 0, 0);
        let mean = (0..10_000).map(|_| draws.share()).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}

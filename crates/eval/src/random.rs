//! Counter-based randomness: an example's draws are a ChaCha8 stream with key = (seed, task and
//! split) and stream id = index, so no example depends on another.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The draws of one example.
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    /// The stream of example `index` of what `domain` numbers.
    pub(crate) fn new(seed: u64, domain: u64, index: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&domain.to_le_bytes());
        let mut stream = ChaCha8Rng::from_seed(key);
        stream.set_stream(index);
        Self(stream)
    }

    /// Uniform in `0..n`; `n` is at least 1.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "nothing to choose from");
        // The high half of a 128-bit product: its bias is below n / 2^64.
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    /// Uniform in `low..=high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below((high - low + 1) as usize) as u64
    }

    /// True in `percent` of 100 cases.
    pub(crate) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of `items`.
    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Puts `items` in random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end + 1));
        }
    }

    /// `n` different ones of `items`, in random order.
    pub(crate) fn sample<T: Copy>(&mut self, items: &[T], n: usize) -> Vec<T> {
        let mut all = items.to_vec();
        self.shuffle(&mut all);
        all.truncate(n);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_a_function_of_seed_domain_and_index() {
        let draws = |seed, domain, index| {
            let mut random = Random::new(seed, domain, index);
            [(); 4].map(|()| random.below(1 << 40))
        };
        assert_eq!(draws(1, 2, 3), draws(1, 2, 3));
        for other in [draws(0, 2, 3), draws(1, 0, 3), draws(1, 2, 0)] {
            assert_ne!(other, draws(1, 2, 3));
        }
    }

    #[test]
    fn every_value_comes_about_as_often() {
        let mut random = Random::new(7, 0, 0);
        let mut counts = [0_u32; 10];
        (0..10_000).for_each(|_| counts[random.below(10)] += 1);
        assert!(counts.iter().all(|n| (850..1150).contains(n)), "{counts:?}");
        let mut items = random.sample(&[1, 2, 3, 4, 5], 5);
        items.sort_unstable();
        assert_eq!(items, [1, 2, 3, 4, 5]);
    }
}

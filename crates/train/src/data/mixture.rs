//! Which record is sample `i` of a run.
//!
//! Samples come in blocks of [`BLOCK`]. A block holds of each source the share that its weight
//! says, rounded so that the count over all blocks so far is off by less than one (the heaviest
//! source takes the rest), mixed in an order of the block's own. So the number of samples that a
//! source gave before is known by counting within one block, and a file is gone through epoch by
//! epoch, each in an order of its own, every record once.

use super::draw::{Draws, Permutation, Purpose};

/// Samples of a block.
const BLOCK: u64 = 1024;
/// Most sources: beyond, the heaviest could owe more than a block's rounding holds.
pub(crate) const MAX_SOURCES: usize = 32;
/// Weights are parts of 2³².
const WHOLE: u128 = 1 << 32;

/// A mixture of sources by weight.
#[derive(Debug, Clone)]
pub struct Mixture {
    seed: u64,
    sources: Vec<Share>,
    /// The heaviest.
    rest: usize,
}

#[derive(Debug, Clone)]
struct Share {
    /// Of [`WHOLE`].
    weight: u128,
    num_records: Option<u64>,
}

/// A record of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Index of the source.
    pub source: usize,
    /// Index of the record in it.
    pub record: u64,
    /// How often the source was gone through before; 0 for a generator.
    pub epoch: u64,
}

impl Mixture {
    /// `sources` are weight and number of records (`None`: without end), at least one source.
    ///
    /// # Panics
    /// On no or more than 32 sources, weights that are not positive, and empty sources.
    pub fn new(seed: u64, sources: &[(f64, Option<u64>)]) -> Self {
        assert!((1..=MAX_SOURCES).contains(&sources.len()), "{} sources", sources.len());
        let valid = |&(weight, records): &(f64, _)| weight > 0.0 && records != Some(0);
        assert!(sources.iter().all(valid), "weights and sizes {sources:?}");
        let sum: f64 = sources.iter().map(|(weight, _)| weight).sum();
        let share = |&(weight, num_records): &(f64, _)| {
            let weight = (weight / sum * WHOLE as f64) as u128;
            Share { weight, num_records }
        };
        let sources: Vec<Share> = sources.iter().map(share).collect();
        let heaviest = (0..sources.len()).rev().max_by_key(|&i| sources[i].weight);
        Self { seed, rest: heaviest.expect("there are sources"), sources }
    }

    /// Sample `index` of the run.
    pub fn pick(&self, index: u64) -> Pick {
        let (block, slot) = (index / BLOCK, index % BLOCK);
        let order = Permutation::new(BLOCK, Draws::new(self.seed, Purpose::Block, block, 0));
        let before: Vec<u64> = (0..self.sources.len()).map(|s| self.num_before(s, block)).collect();
        let mut ends = Vec::with_capacity(before.len());
        for (source, before) in before.iter().enumerate() {
            let quota = self.num_before(source, block + 1) - before;
            ends.push(ends.last().unwrap_or(&0) + quota);
        }
        let source_of = |slot| ends.partition_point(|&end| end <= order.at(slot));
        let source = source_of(slot);
        let earlier = (0..slot).filter(|&other| source_of(other) == source).count() as u64;
        self.record(source, before[source] + earlier)
    }

    /// Samples of a source in the blocks before `block`.
    fn num_before(&self, source: usize, block: u64) -> u64 {
        let total = u128::from(block) * u128::from(BLOCK);
        let floor = |share: &Share| total * share.weight / WHOLE;
        if source != self.rest {
            return floor(&self.sources[source]) as u64;
        }
        let others = self.sources.iter().enumerate().filter(|&(i, _)| i != self.rest);
        (total - others.map(|(_, share)| floor(share)).sum::<u128>()) as u64
    }

    /// Record for the `count`-th sample of a source.
    fn record(&self, source: usize, count: u64) -> Pick {
        let Some(num_records) = self.sources[source].num_records else {
            return Pick { source, record: count, epoch: 0 };
        };
        let epoch = count / num_records;
        let draws = Draws::new(self.seed, Purpose::Epoch, source as u64, epoch);
        let record = Permutation::new(num_records, draws).at(count % num_records);
        Pick { source, record, epoch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn every_record_comes_once_an_epoch_and_weights_hold() {
        let sources = [(3.0, Some(1000)), (1.0, None), (0.0005, Some(2)), (2.0, Some(7))];
        let mixture = Mixture::new(5, &sources);
        let picks: Vec<Pick> = (0..40 * BLOCK).map(|i| mixture.pick(i)).collect();
        let mut seen: HashMap<(usize, u64), Vec<u64>> = HashMap::new();
        for pick in &picks {
            seen.entry((pick.source, pick.epoch)).or_default().push(pick.record);
        }
        for (&(source, epoch), records) in &mut seen {
            records.sort_unstable();
            assert!(records.windows(2).all(|w| w[0] < w[1]), "source {source} epoch {epoch}");
        }
        let full = (0..5).all(|epoch| seen[&(0, epoch)] == (0..1000).collect::<Vec<_>>());
        assert!(full, "whole epochs of the first source");
        let sum: f64 = sources.iter().map(|s| s.0).sum();
        for (source, (weight, _)) in sources.iter().enumerate() {
            let count = picks.iter().filter(|p| p.source == source).count() as f64;
            let want = weight / sum * picks.len() as f64;
            assert!((count - want).abs() <= 4.0, "source {source}: {count} for {want}");
        }
        // In order: the first epoch of a source is over before its second begins.
        let epochs = |source| picks.iter().filter(move |p| p.source == source).map(|p| p.epoch);
        assert!((0..4).all(|source| epochs(source).is_sorted()));
        // A generator gives each of its records once, without gaps.
        let generated = &seen[&(1, 0)];
        assert_eq!(*generated, (0..generated.len() as u64).collect::<Vec<_>>());
    }

    #[test]
    fn the_seed_changes_the_order() {
        let picks = |seed| {
            let mixture = Mixture::new(seed, &[(1.0, Some(50)), (1.0, Some(50))]);
            (0..100).map(|i| mixture.pick(i)).collect::<Vec<_>>()
        };
        assert_eq!(picks(1), picks(1));
        assert_ne!(picks(1), picks(2));
    }
}

//! What is measured, in which order, and what the time does not allow.
//!
//! Points run in rounds, each point once a round, so that a drift of the machine's speed meets
//! all of them. A point whose estimate exceeds the time left is skipped with its reason; the
//! first prefill and plain decoding always run.

use crate::size;
use serde::Serialize;
use std::fmt;

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Point {
    /// Reading a prompt of `tokens` tokens.
    Prefill { tokens: usize },
    /// Generating behind `depth` tokens for `batch` sequences at once.
    Decode { depth: usize, batch: usize },
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefill { tokens } => write!(f, "prefill {tokens}"),
            Self::Decode { depth: 0, batch: 1 } => write!(f, "decode"),
            Self::Decode { depth, batch: 1 } => write!(f, "decode at {depth}"),
            Self::Decode { depth: 0, batch } => write!(f, "decode × {batch}"),
            Self::Decode { depth, batch } => write!(f, "decode × {batch} at {depth}"),
        }
    }
}

/// The points: prefills, decoding by depth for one sequence, decoding by batch from the start.
pub(crate) fn points(prefill: &[usize], depth: &[usize], batch: &[usize]) -> Vec<Point> {
    let sorted = |list: &[usize]| {
        let mut list = list.to_vec();
        list.sort_unstable();
        list.dedup();
        list
    };
    let prefill = sorted(prefill).into_iter().map(|tokens| Point::Prefill { tokens });
    let by_depth = sorted(depth).into_iter().map(|depth| Point::Decode { depth, batch: 1 });
    let by_batch = sorted(batch).into_iter().map(|batch| Point::Decode { depth: 0, batch });
    let mut points: Vec<Point> = prefill.collect();
    // Depth last: filling deep contexts takes the most time.
    for point in by_batch.chain(by_depth) {
        if !points.contains(&point) {
            points.push(point);
        }
    }
    points
}

/// Speeds known so far, for estimates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Seconds per token of a prompt.
    pub(crate) prefill: f64,
    /// Seconds per step of one sequence.
    pub(crate) step: f64,
}

impl Pace {
    /// Seconds that one pass over `point` takes at most, about; `filled` is the depth already
    /// reached, `steps` the tokens that a decode point generates.
    pub(crate) fn estimate(&self, point: Point, filled: usize, steps: usize) -> f64 {
        match point {
            Point::Prefill { tokens } => self.prefill * tokens as f64,
            Point::Decode { depth, batch } => {
                let fill = self.prefill * depth.saturating_sub(filled) as f64;
                fill + self.step * (steps * batch) as f64
            }
        }
    }
}

/// Why `point` is left out; `None` where it runs. `first` says whether it is the first of its
/// kind, which always runs.
pub(crate) fn skip_reason(estimate: f64, left: f64, total: f64, first: bool) -> Option<String> {
    if first || estimate <= left {
        return None;
    }
    let needed = (total - left.max(0.0) + estimate).ceil();
    Some(format!("takes up to {:.0} s; --seconds {needed:.0} allows it", estimate.ceil()))
}

/// Why a point that needs `needed` bytes is left out where `available` are.
pub(crate) fn memory_reason(needed: u64, available: Option<u64>) -> Option<String> {
    let available = available.filter(|&available| needed > available)?;
    Some(format!("needs {}, available are {}", size::bytes(needed), size::bytes(available)))
}

/// Median, least and most of some samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) samples: usize,
}

impl Spread {
    /// Of at least one sample; of an even number the mean of the middle two is the median.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
            _ => sorted[middle],
        };
        Some(Self { median, min, max, samples: sorted.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_come_once_each_and_cheap_ones_first() {
        let names: Vec<_> =
            points(&[2048, 512, 512], &[4096, 0], &[8, 1]).iter().map(Point::to_string).collect();
        assert_eq!(
            names,
            ["prefill 512", "prefill 2048", "decode", "decode × 8", "decode at 4096"]
        );
        assert!(points(&[], &[], &[]).is_empty());
    }

    #[test]
    fn estimates_count_filling_only_from_the_depth_reached() {
        let pace = Pace { prefill: 0.5, step: 2.0 };
        assert_eq!(pace.estimate(Point::Prefill { tokens: 10 }, 0, 3), 5.0);
        assert_eq!(pace.estimate(Point::Decode { depth: 10, batch: 1 }, 0, 3), 11.0);
        assert_eq!(pace.estimate(Point::Decode { depth: 10, batch: 2 }, 8, 3), 13.0);
        assert_eq!(pace.estimate(Point::Decode { depth: 0, batch: 1 }, 8, 3), 6.0);
    }

    #[test]
    fn what_takes_too_long_is_skipped_with_the_time_it_needs() {
        assert_eq!(skip_reason(5.0, 6.0, 60.0, false), None);
        assert_eq!(skip_reason(500.0, 6.0, 60.0, true), None);
        let reason = skip_reason(500.0, 6.0, 60.0, false).unwrap();
        assert_eq!(reason, "takes up to 500 s; --seconds 554 allows it");
    }

    #[test]
    fn what_does_not_fit_is_skipped_with_the_memory_it_needs() {
        assert_eq!(memory_reason(5 << 30, None), None);
        assert_eq!(memory_reason(5 << 30, Some(5 << 30)), None);
        let reason = memory_reason(5 << 30, Some(3 << 29)).unwrap();
        assert_eq!(reason, "needs 5.00 GiB, available are 1.50 GiB");
    }

    #[test]
    fn spread_of_samples() {
        let spread = Spread::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.median, spread.min, spread.max, spread.samples), (2.0, 1.0, 3.0, 3));
        assert_eq!(Spread::of(&[4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of(&[]), None);
    }
}

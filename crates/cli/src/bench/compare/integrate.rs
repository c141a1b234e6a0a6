//! Integrals over a span of tokens from values at a few sampled positions.
//!
//! The value between two samples is the line through them; before the first and behind the last
//! it is theirs. For a value that grows linearly with depth, as attention makes it, that is exact
//! up to the ends, whose errors cancel.

use serde::Serialize;

/// A value at a position.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// Tokens before it; the middle of what was timed.
    pub(crate) depth: f64,
    /// Seconds per token of a prompt, or seconds per step.
    pub(crate) seconds: f64,
}

/// `count` positions from `first` to `last`, evenly spread and both included.
pub(crate) fn positions(first: usize, last: usize, count: usize) -> Vec<usize> {
    let span = last.saturating_sub(first);
    let at = |i: usize| first + span * i / (count - 1).max(1);
    let mut positions: Vec<usize> = (0..count).map(at).collect();
    positions.dedup();
    positions
}

/// The integral of the line through `samples` from `from` to `to`, by the trapezoid rule.
///
/// # Panics
/// If there is no sample.
pub(crate) fn integral(samples: &[Sample], from: f64, to: f64) -> f64 {
    let inside =
        samples.iter().map(|sample| sample.depth).filter(|&depth| from < depth && depth < to);
    let corners: Vec<f64> = std::iter::once(from).chain(inside).chain([to]).collect();
    let trapezoid = |ends: &[f64]| {
        (ends[1] - ends[0]) * (value(samples, ends[0]) + value(samples, ends[1])) / 2.0
    };
    corners.windows(2).map(trapezoid).sum()
}

/// The value of the line at `depth`.
fn value(samples: &[Sample], depth: f64) -> f64 {
    let behind = samples.iter().position(|sample| sample.depth >= depth);
    match behind {
        None => samples.last().expect("at least one sample").seconds,
        Some(0) => samples[0].seconds,
        Some(i) => {
            let (a, b) = (samples[i - 1], samples[i]);
            a.seconds + (b.seconds - a.seconds) * (depth - a.depth) / (b.depth - a.depth)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(pairs: &[(f64, f64)]) -> Vec<Sample> {
        pairs.iter().map(|&(depth, seconds)| Sample { depth, seconds }).collect()
    }

    #[test]
    fn a_line_is_integrated_exactly() {
        // 2 + 3x from 10 to 20: 20 + 1.5 · (400 − 100).
        let line = |x: f64| (x, 2.0 + 3.0 * x);
        let full = samples(&[line(10.0), line(12.0), line(20.0)]);
        assert_eq!(integral(&full, 10.0, 20.0), 470.0);
        assert_eq!(integral(&full, 11.0, 11.0), 0.0);
        // Samples in the middle of slices: the flat ends cancel.
        let middles = samples(&[line(11.0), line(15.0), line(19.0)]);
        assert!((integral(&middles, 10.0, 20.0) - 470.0).abs() < 1e-9);
    }

    #[test]
    fn a_kink_at_a_sample_counts_and_one_sample_is_a_constant() {
        let kink = samples(&[(0.0, 1.0), (5.0, 1.0), (10.0, 3.0)]);
        assert_eq!(integral(&kink, 0.0, 10.0), 15.0);
        assert_eq!(integral(&kink, 4.0, 6.0), 1.0 + 1.2);
        assert_eq!(integral(&samples(&[(7.0, 0.5)]), 0.0, 100.0), 50.0);
    }

    #[test]
    fn positions_include_both_ends_and_none_twice() {
        assert_eq!(positions(8, 24, 5), [8, 12, 16, 20, 24]);
        assert_eq!(positions(3, 4, 5), [3, 4]);
        assert_eq!(positions(9, 2, 3), [9]);
        assert_eq!(positions(1, 9, 1), [1]);
    }
}

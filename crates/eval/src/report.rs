//! What was measured: accuracy with its interval, tokens, form and speed at each budget.

use crate::budget::Budget;
use serde::Serialize;
use std::collections::BTreeMap;

/// Standard deviations of a normal distribution that hold 95 % of it.
const Z: f64 = 1.959_963_984_540_054;

/// A share of right answers, with its 95 % Wilson interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// Right answers.
    pub correct: usize,
    /// Examples.
    pub total: usize,
    /// `correct / total`; 0 of nothing.
    pub share: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Accuracy {
    /// Of `correct` right answers among `total`.
    #[must_use]
    pub fn new(correct: usize, total: usize) -> Self {
        let (low, high) = wilson(correct, total);
        Self { correct, total, share: correct as f64 / total.max(1) as f64, low, high }
    }
}

/// A share of examples that something happened in, with its 95 % Wilson interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// Examples that it happened in.
    pub count: usize,
    /// Examples.
    pub total: usize,
    /// `count / total`; 0 of nothing.
    pub share: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Rate {
    /// Of `count` examples among `total`.
    #[must_use]
    pub fn new(count: usize, total: usize) -> Self {
        let Accuracy { share, low, high, .. } = Accuracy::new(count, total);
        Self { count, total, share, low, high }
    }
}

/// The 95 % score interval of a binomial share (Wilson 1927):
/// `(p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)`. Of nothing it is 0 to 1.
#[must_use]
pub fn wilson(correct: usize, total: usize) -> (f64, f64) {
    assert!(correct <= total, "{correct} of {total}");
    if total == 0 {
        return (0.0, 1.0);
    }
    let (n, z2) = (total as f64, Z * Z);
    let p = correct as f64 / n;
    let middle = p + z2 / (2.0 * n);
    let width = Z * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z2 / n;
    (((middle - width) / scale).max(0.0), ((middle + width) / scale).min(1.0))
}

/// One task at one budget. Shares are of examples, in 0 to 1; tokens are means per example.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Name of the task or of the file.
    pub task: String,
    /// The budget: `off`, tokens, or `inf`.
    pub budget: Budget,
    /// Right answers.
    pub accuracy: Accuracy,
    /// Tokens thought, without tags and what the engine inserted.
    pub thinking_tokens: f64,
    /// Tokens of answers and calls.
    pub answer_tokens: f64,
    /// Examples whose thinking the budget cut.
    pub cut: f64,
    /// Examples with exactly one closing tag in each generated turn, or none with thinking off.
    pub well_formed: f64,
    /// Examples that ran into `max_tokens` or the context limit.
    pub unfinished: f64,
    /// Of the examples with functions, those with an invented result: a reply at a turn that was
    /// asked, the first wrong one included, holds a number that stands in no turn before it (see
    /// [`Example::invents`](crate::Example::invents)). `None` without functions.
    pub invented: Option<Rate>,
    /// Generated tokens less than at `inf`, in percent of those; `None` where that was not measured.
    pub saved_percent: Option<f64>,
    /// Wall time.
    pub seconds: f64,
    /// Generated tokens of all examples over the wall time.
    pub tokens_per_second: f64,
    /// Right answers at each difficulty.
    pub by_difficulty: BTreeMap<u32, Accuracy>,
}

/// A measurement of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Its name.
    pub model: String,
    /// 0 is greedy.
    pub temperature: f32,
    /// Seed of examples and of sampling.
    pub seed: u64,
    /// What the examples are of: a split with its phrasing, or a file.
    pub data: String,
    /// By task, then by budget as asked for.
    pub results: Vec<Row>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_literature() {
        // R: prop.test(x, n, correct = FALSE)$conf.int
        for (correct, total, low, high) in [
            (0, 10, 0.0, 0.277_533),
            (10, 10, 0.722_467, 1.0),
            (81, 263, 0.255_289, 0.366_165),
            (50, 100, 0.403_832, 0.596_168),
        ] {
            let (found_low, found_high) = wilson(correct, total);
            assert!((found_low - low).abs() < 1e-4, "{correct}/{total}: {found_low}");
            assert!((found_high - high).abs() < 1e-4, "{correct}/{total}: {found_high}");
        }
        assert_eq!(wilson(0, 0), (0.0, 1.0));
    }
}

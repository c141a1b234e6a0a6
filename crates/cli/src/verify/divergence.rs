//! How far two next-token distributions are apart: KL(expected ‖ found) of the softmax of logits,
//! in nats, in f64.
//!
//! Rounded activations move every logit a little; what matters is how much they move the
//! distribution that tokens are drawn from.

use serde::Serialize;

/// Divergence over the rows of logits seen so far.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Divergence {
    rows: usize,
    sum: f64,
    /// Of the worst row; NaN once a row was not finite.
    pub(crate) max: f64,
}

impl Divergence {
    /// Takes in one row.
    pub(crate) fn add(&mut self, expected: impl Iterator<Item = f32> + Clone, found: &[f32]) {
        let kl = divergence(expected, found);
        self.rows += 1;
        self.sum += kl;
        self.max = if kl > self.max || kl.is_nan() { kl } else { self.max };
    }

    /// Takes in all rows of another.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.sum += other.sum;
        self.max = super::difference::worse(self.max, other.max);
    }

    /// Mean over the rows; `None` before the first.
    pub(crate) fn mean(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.sum / self.rows as f64)
    }
}

/// Σ p (ln p − ln q); not negative but for rounding.
fn divergence(expected: impl Iterator<Item = f32> + Clone, found: &[f32]) -> f64 {
    let log_sum = |values: &mut dyn Iterator<Item = f64>, largest: f64| {
        largest + values.map(|v| (v - largest).exp()).sum::<f64>().ln()
    };
    let wide = expected.map(f64::from);
    let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::NEG_INFINITY, f64::max);
    let mut found = found.iter().map(|v| f64::from(*v));
    let top = largest(&mut wide.clone());
    let p_sum = log_sum(&mut wide.clone(), top);
    let top = largest(&mut found.clone());
    let q_sum = log_sum(&mut found.clone(), top);
    wide.map(|p| (p, found.next().unwrap_or(f64::NAN)))
        .map(|(p, q)| (p - p_sum).exp() * ((p - p_sum) - (q - q_sum)))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_zero_for_equal_rows_and_known_for_others() {
        let mut all = Divergence::default();
        assert_eq!(all.mean(), None);
        all.add([1.0, 2.0, 3.0].into_iter(), &[2.0, 3.0, 4.0]);
        assert!(all.mean().unwrap().abs() < 1e-15, "a shift changes nothing");
        // p = (1/2, 1/2), q = (3/4, 1/4).
        let mut one = Divergence::default();
        one.add([0.0, 0.0].into_iter(), &[3f32.ln(), 0.0]);
        let want = 0.5 * (0.5f64 / 0.75).ln() + 0.5 * 2f64.ln();
        assert!((one.mean().unwrap() - want).abs() < 1e-7);
        all.merge(&one);
        assert!((all.mean().unwrap() - want / 2.0).abs() < 1e-7 && all.max == one.max);
        all.add([0.0, 1.0].into_iter(), &[f32::NAN, 0.0]);
        assert!(all.mean().unwrap().is_nan() && all.max.is_nan());
    }
}

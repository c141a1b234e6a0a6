//! Partial selection: the k largest of a row, or the smallest top set that holds a share of the mass.
//!
//! Both work without sorting the vocabulary. Rank is descending value, then ascending token id; it is
//! a total order on rows without NaN, so every result is unique.

use std::cmp::Ordering;

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) value: f32,
    pub(super) token: u32,
}

impl Candidate {
    pub(super) fn rank(&self, other: &Self) -> Ordering {
        other.value.total_cmp(&self.value).then(self.token.cmp(&other.token))
    }
}

/// Fills `out` with the `k` largest values of `row`, in no order; values of −infinity are skipped.
pub(super) fn largest(row: &[f32], k: usize, out: &mut Vec<Candidate>) {
    out.clear();
    if k == 0 {
        return;
    }
    // Collect whatever beats the k-th best known so far; shrink to k when the buffer is full. Ids
    // ascend, so a later equal value ranks behind and is skipped.
    let capacity = k.saturating_mul(4).max(256);
    let mut threshold = f32::NEG_INFINITY;
    for (i, &value) in row.iter().enumerate() {
        if value > threshold {
            out.push(Candidate { value, token: i as u32 });
            if out.len() == capacity {
                out.select_nth_unstable_by(k - 1, Candidate::rank);
                out.truncate(k);
                threshold = out[k - 1].value;
            }
        }
    }
    if out.len() > k {
        out.select_nth_unstable_by(k - 1, Candidate::rank);
        out.truncate(k);
    }
}

/// How many of `sorted` it takes until the tokens before hold at least `share` of the mass.
pub(super) fn mass_prefix(sorted: &[Candidate], share: f32) -> usize {
    if share >= 1.0 {
        return sorted.len();
    }
    let total: f64 = sorted.iter().map(|c| f64::from(c.value)).sum();
    prefix(sorted, &mut 0.0, f64::from(share) * total)
}

/// Fills `out` so that its first n entries, n being the result, are the tokens kept by top-p at
/// `share` < 1 of `weights`, in rank order.
pub(super) fn nucleus(weights: &[f32], share: f32, out: &mut Vec<Candidate>) -> usize {
    let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    // Tokens below (1 − share)/V of the mass hold less than 1 − share together: the others suffice.
    // The factor keeps clear of rounding.
    let floor = (1.0 - f64::from(share)) * total / weights.len() as f64 * 0.999;
    out.clear();
    for (i, &value) in weights.iter().enumerate() {
        if f64::from(value) > floor {
            out.push(Candidate { value, token: i as u32 });
        }
    }
    // Rank in growing pieces: usually the first one reaches the mass.
    let target = f64::from(share) * total;
    let (mut done, mut piece, mut mass) = (0, 64, 0.0);
    while done < out.len() {
        let end = out.len().min(done + piece);
        if end < out.len() {
            out[done..].select_nth_unstable_by(end - done, Candidate::rank);
        }
        out[done..end].sort_unstable_by(Candidate::rank);
        let kept = prefix(&out[done..end], &mut mass, target);
        done += kept;
        if done < end {
            break;
        }
        piece *= 4;
    }
    done
}

/// Adds masses from `mass` on and counts the tokens before which it is below `target`.
pub(super) fn prefix(sorted: &[Candidate], mass: &mut f64, target: f64) -> usize {
    let kept = sorted.iter().take_while(|c| {
        let keep = *mass < target;
        *mass += f64::from(c.value);
        keep
    });
    kept.count()
}

//! Cross entropy fused with the output head: `−log softmax(x·wᵀ)[label]` and its gradients, a block
//! of rows and a tile of the vocabulary at a time; no \[T, V\] matrix.
//!
//! With q the softmax of a row: `dlogits = weight·scale·(q − onehot(label))`, `dx = dlogits·w`,
//! `dw += dlogitsᵀ·x`. Rows of weight 0 cost nothing. `dw` is a left fold over the rows.
//!
//! Source: Wijmans et al. 2024 (cut cross entropy), without its skipping of small gradients.

use crate::Cpu;
use crate::buffer::{Chunks, MatRef};
pub use crate::ops::logits::HeadGradients;
use crate::ops::logits::{Head, ROWS, learned_rows};
use crate::simd::{Simd, WithSimd, dispatch};

/// What is predicted from every row of x.
#[derive(Clone, Copy)]
pub struct Labels<'a> {
    /// Ids below V, \[T\]; ignored where the weight is 0.
    pub ids: &'a [u32],
    /// Shares of the loss, \[T\].
    pub weights: &'a [f32],
}

/// Writes `log softmax(x·wᵀ)[label]` of every row of non-zero weight to `logprobs` \[T\] and, where
/// asked for, the gradients of `scale · Σ weight · (−logprob)`; returns that sum without `scale`.
///
/// # Panics
/// If the shapes disagree or a label is not below V.
pub fn linear_cross_entropy(
    cpu: &Cpu,
    x: MatRef,
    w: MatRef,
    labels: Labels,
    scale: f32,
    logprobs: &mut [f32],
    mut gradients: Option<HeadGradients>,
) -> f64 {
    let rows = learned_rows(labels.weights);
    assert_eq!([labels.ids.len(), labels.weights.len(), logprobs.len()], [x.rows(); 3], "labels");
    assert_eq!(x.cols(), w.cols(), "hidden size of x and w");
    if let Some(g) = &mut gradients {
        (0..x.rows()).for_each(|t| g.x.row_mut(t).fill(0.0));
    }
    let (mut head, mut loss) = (Head::new(w, 1.0), 0.0);
    for rows in rows.chunks(ROWS) {
        let label = |i: usize| labels.ids[rows[i]] as usize;
        let mut of_label = vec![0.0; rows.len()];
        head.start(cpu, x, rows, |tile, logits| {
            for (i, row) in logits.chunks_exact(tile.len()).enumerate() {
                assert!(label(i) < w.rows(), "label {} of {} ids", label(i), w.rows());
                if tile.contains(&label(i)) {
                    of_label[i] = row[label(i) - tile.start];
                }
            }
        });
        for (i, &t) in rows.iter().enumerate() {
            logprobs[t] = of_label[i] - head.lse[i];
            loss -= f64::from(labels.weights[t]) * f64::from(logprobs[t]);
        }
        let Some(g) = &mut gradients else { continue };
        for tile in head.tiles() {
            let lse = std::mem::take(&mut head.lse);
            let logits = head.tile(cpu, tile.clone());
            let parts = Chunks::new(logits, tile.len());
            cpu.pool().for_parts_sized(20 * rows.len() * tile.len(), parts, |i, row| {
                let weight = labels.weights[rows[i]] * scale;
                dispatch(cpu.isa(), Softmax { row, lse: lse[i], weight });
                if tile.contains(&label(i)) {
                    row[label(i) - tile.start] -= weight;
                }
            });
            head.lse = lse;
            head.back(cpu, tile, &mut g.w);
        }
        head.scatter(rows, &mut g.x);
    }
    loss
}

/// `row = weight · e^(row − lse)`.
pub(crate) struct Softmax<'a> {
    pub(crate) row: &'a mut [f32],
    pub(crate) lse: f32,
    pub(crate) weight: f32,
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (lse, weight) = (s.splat(self.lse), s.splat(self.weight));
        for v in self.row.chunks_mut(S::LANES) {
            s.store_partial(s.mul(weight, s.exp(s.sub(s.load_partial(v), lse))), v);
        }
    }
}

/// Gradients of x and w of one call, for tests: `[dx | dw]`.
#[cfg(test)]
pub(crate) fn gradient_vec(
    (rows, vocab, h): (usize, usize, usize),
    call: impl FnOnce(HeadGradients),
) -> Vec<f32> {
    let mut out = vec![0.0; (rows + vocab) * h];
    let (x, w) = out.split_at_mut(rows * h);
    let [x, w] = [x, w].map(|v| crate::MatMut::new(v, h));
    call(HeadGradients { x, w });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{
        assert_same_bits, central_differences, on_every_cpu, relative_error, values,
    };

    #[test]
    fn loss_and_gradients_agree_with_the_formula() {
        // The last case has more than one tile of the vocabulary.
        for (rows, vocab, h) in [(5, 7, 3), (600, 33, 4), (3, 8200, 1)] {
            let (x, w) = (values(rows * h, 1), values(vocab * h, 2));
            let ids: Vec<u32> = (0..rows).map(|t| (t * 37 % vocab) as u32).collect();
            let weights: Vec<f32> = (0..rows).map(|t| [1.0, 0.0, 0.5][t % 3]).collect();
            let loss = |flat: &[f64]| {
                let (x, w) = flat.split_at(rows * h);
                let mut loss = 0.0;
                for (t, x) in x.chunks(h).enumerate().filter(|(t, _)| weights[*t] != 0.0) {
                    let logit = |w: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
                    let logits: Vec<f64> = w.chunks(h).map(logit).collect();
                    let lse = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
                    loss += f64::from(weights[t]) * (lse - logits[ids[t] as usize]);
                }
                loss
            };
            let want = (rows < 100 && vocab < 100).then(|| central_differences(&[&x, &w], loss));
            let flat: Vec<f64> = x.iter().chain(&w).map(|v| f64::from(*v)).collect();
            let want_loss = loss(&flat);
            for (isa, got) in on_every_cpu(|cpu| {
                let (x, w) = (MatRef::new(&x, h), MatRef::new(&w, h));
                let labels = Labels { ids: &ids, weights: &weights };
                let (mut logprobs, mut loss) = (vec![0.0; rows], 0.0);
                let mut got = gradient_vec((rows, vocab, h), |g| {
                    loss = linear_cross_entropy(cpu, x, w, labels, 2.0, &mut logprobs, Some(g));
                });
                got.push(loss as f32);
                got
            }) {
                let (loss, got) = got.split_last().unwrap();
                let error = (f64::from(*loss) / want_loss - 1.0).abs();
                assert!(error < 2e-6, "{isa} {vocab}: loss {loss} {want_loss}");
                if let Some(want) = &want {
                    let want: Vec<f64> = want.iter().map(|v| 2.0 * v).collect();
                    assert!(relative_error(got, &want) < 2e-6, "{isa} {rows}×{vocab}");
                }
                // Gradients of a softmax sum to nothing over the vocabulary.
                let dw: f32 = got[rows * h..].iter().step_by(h).sum();
                assert!(dw.abs() < 1e-3, "{isa} {vocab}: {dw}");
            }
        }
    }

    #[test]
    fn rows_in_several_calls_fold_to_the_same_bits() {
        let (rows, vocab, h) = (300, 40, 16);
        let (x, w) = (values(rows * h, 1), values(vocab * h, 2));
        let (x, w) = (MatRef::new(&x, h), MatRef::new(&w, h));
        let ids: Vec<u32> = (0..rows).map(|t| (t * 37 % vocab) as u32).collect();
        on_every_cpu(|cpu| {
            let run = |cuts: &[usize]| {
                gradient_vec((rows, vocab, h), |mut g| {
                    for cut in cuts.windows(2) {
                        let (from, len) = (cut[0], cut[1] - cut[0]);
                        let (ids, weights) = (&ids[from..cut[1]], vec![1.0; len]);
                        let labels = Labels { ids, weights: &weights };
                        let (x, mut logprobs) = (x.rows_at(from, len), vec![0.0; len]);
                        let dx = g.x.reborrow().rows_at(from, len);
                        let g = HeadGradients { x: dx, w: g.w.reborrow() };
                        linear_cross_entropy(cpu, x, w, labels, 1.0, &mut logprobs, Some(g));
                    }
                })
            };
            let whole = run(&[0, 300]);
            assert_same_bits(&run(&[0, 1, 100, 300]), &whole, "parts");
            whole
        });
    }
}

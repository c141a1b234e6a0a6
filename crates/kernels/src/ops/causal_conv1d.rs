//! Depthwise causal convolution along the sequence, then SiLU.
//!
//! `out[t, c] = silu(bias[c] + Σ_k weight[k, c] · in[t − (K−1) + k, c])`, k = 0 … K−1, where
//! `in` at negative times is the state: the last K−1 inputs before this call, oldest first.
//! Shapes: x and out \[T, C\], weight \[K, C\] (a tap's channels are contiguous; the last tap
//! multiplies the current input), bias \[C\], state \[K−1, C\].
//!
//! The sum starts with the bias and takes the taps in order for every T, so a sequence gives the
//! same bits whole, in pieces and token by token.
//!
//! Source: `causal_conv1d_fn` and `causal_conv1d_update` of Dao-AILab/causal-conv1d.

use crate::Cpu;
use crate::buffer::{MatMut, MatRef};
use crate::simd::{Simd, WithSimd, array, dispatch};

/// Rows that a worker takes at a time.
const TILE_ROWS: usize = 32;
/// Columns of a tile: taps and rows stay in the first cache, and rows are read a page at a time.
const TILE_COLS: usize = 1024;

/// Convolves x, applies SiLU and moves `state` on to the last K−1 inputs.
///
/// # Panics
/// If the shapes disagree.
pub fn causal_conv1d(
    cpu: &Cpu,
    x: MatRef,
    weight: &[f32],
    bias: Option<&[f32]>,
    state: &mut [f32],
    out: MatMut,
) {
    let (rows, cols) = (x.rows(), x.cols());
    assert_eq!((rows, cols), (out.rows(), out.cols()), "conv: input and output");
    assert!(!weight.is_empty() && weight.len().is_multiple_of(cols), "conv: weight");
    assert_eq!(state.len() + cols, weight.len(), "conv: state of K−1 rows");
    assert!(bias.is_none_or(|b| b.len() == cols), "conv: bias");
    if rows == 0 {
        return;
    }
    let (isa, weight) = (cpu.isa(), MatRef::new(weight, cols));
    let past = MatRef::new(state, cols);
    let operations = rows * cols * (2 * weight.rows() + 20);
    let across = cols.div_ceil(TILE_COLS);
    cpu.pool().for_parts_sized(operations, out.tiles(TILE_ROWS, TILE_COLS), |i, out| {
        let (first, from, cols) = (i / across * TILE_ROWS, i % across * TILE_COLS, out.cols());
        let [x, past, weight] = [x, past, weight].map(|m| m.columns(from, cols));
        let bias = bias.map(|b| &b[from..from + cols]);
        dispatch(isa, Tile { conv: Conv { x, past, weight, bias }, first, out });
    });
    shift_state(x, MatMut::new(state, cols));
}

/// Moves `state` \[K−1, C\] on: the last K−1 rows of itself followed by x.
pub(crate) fn shift_state(x: MatRef, mut state: MatMut) {
    let (rows, width) = (x.rows(), state.rows());
    let kept = width.saturating_sub(rows);
    for r in 0..kept {
        let (mut to, mut from) = state.reborrow().split_rows(r + 1);
        to.row_mut(r).copy_from_slice(from.row_mut(width - kept - 1));
    }
    for r in kept..width {
        state.row_mut(r).copy_from_slice(x.row(rows + r - width));
    }
}

/// Rows of the state, as wide as the columns that are worked on.
pub(crate) trait Past: Copy {
    /// K − 1.
    fn rows(&self) -> usize;
    /// Row `r`, oldest first.
    fn row(&self, r: usize) -> &[f32];
}

impl Past for MatRef<'_> {
    #[inline(always)]
    fn rows(&self) -> usize {
        MatRef::rows(*self)
    }
    #[inline(always)]
    fn row(&self, r: usize) -> &[f32] {
        MatRef::row(*self, r)
    }
}

/// Some columns of a state that is written later.
#[derive(Clone, Copy)]
pub(crate) struct OwnPast<'a> {
    pub(crate) matrix: &'a MatMut<'a>,
    pub(crate) from: usize,
    pub(crate) cols: usize,
}

impl Past for OwnPast<'_> {
    #[inline(always)]
    fn rows(&self) -> usize {
        self.matrix.rows()
    }
    #[inline(always)]
    fn row(&self, r: usize) -> &[f32] {
        &self.matrix.row(r)[self.from..self.from + self.cols]
    }
}

/// Some columns of a convolution: all operands are cut to them.
#[derive(Clone, Copy)]
pub(crate) struct Conv<'a, P> {
    /// All rows.
    pub(crate) x: MatRef<'a>,
    /// The state before x.
    pub(crate) past: P,
    pub(crate) weight: MatRef<'a>,
    pub(crate) bias: Option<&'a [f32]>,
}

impl<P: Past> Conv<'_, P> {
    /// The input `K − 1 − k` steps before row `t`.
    #[inline(always)]
    fn input(&self, t: usize, k: usize) -> &[f32] {
        let past = self.past.rows();
        if t + k < past { self.past.row(t + k) } else { self.x.row(t + k - past) }
    }

    /// The outputs of row `t`.
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, t: usize, out: &mut [f32]) {
        match self.weight.rows() {
            4 => self.taps::<S, 4>(s, t, out),
            _ => self.any_taps(s, t, out),
        }
    }

    /// [`Self::row`] with a number of taps that is known: sums stay in registers.
    #[inline(always)]
    fn taps<S: Simd, const K: usize>(&self, s: S, t: usize, out: &mut [f32]) {
        let cols = out.len();
        let inputs: [&[f32]; K] = array!(K, k => &self.input(t, k)[..cols]);
        let weights: [&[f32]; K] = array!(K, k => &self.weight.row(k)[..cols]);
        let whole = cols / S::LANES * S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            let mut sum = self.bias.map_or(s.zero(), |bias| s.load(&bias[at..]));
            for k in 0..K {
                sum = s.fma(s.load(&weights[k][at..]), s.load(&inputs[k][at..]), sum);
            }
            s.store(s.silu(sum), &mut out[at..]);
        }
        if whole < cols {
            let mut sum = self.bias.map_or(s.zero(), |bias| s.load_partial(&bias[whole..]));
            for k in 0..K {
                let weight = s.load_partial(&weights[k][whole..]);
                sum = s.fma(weight, s.load_partial(&inputs[k][whole..]), sum);
            }
            s.store_partial(s.silu(sum), &mut out[whole..]);
        }
    }

    #[inline(always)]
    fn any_taps<S: Simd>(&self, s: S, t: usize, out: &mut [f32]) {
        match self.bias {
            Some(bias) => out.copy_from_slice(bias),
            None => out.fill(0.0),
        }
        for k in 0..self.weight.rows() {
            let last = k + 1 == self.weight.rows();
            let (inputs, weights) = (self.input(t, k), self.weight.row(k));
            let taps = inputs.chunks(S::LANES).zip(weights.chunks(S::LANES));
            for ((x, w), out) in taps.zip(out.chunks_mut(S::LANES)) {
                let sum = s.fma(s.load_partial(w), s.load_partial(x), s.load_partial(out));
                s.store_partial(if last { s.silu(sum) } else { sum }, out);
            }
        }
    }
}

/// The outputs of the rows from `first` on.
pub(crate) struct Tile<'a, P> {
    pub(crate) conv: Conv<'a, P>,
    pub(crate) first: usize,
    pub(crate) out: MatMut<'a>,
}

impl<P: Past> WithSimd for Tile<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for t in 0..self.out.rows() {
            self.conv.row(s, self.first + t, self.out.row_mut(t));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_near, assert_same_bits, on_every_cpu, values};

    /// The formula in f64.
    fn naive(x: MatRef, w: &[f32], bias: Option<&[f32]>, state: &[f32]) -> Vec<f64> {
        let (cols, past) = (x.cols(), state.len() / x.cols());
        let input = |t: usize, c: usize| {
            f64::from(if t < past { state[t * cols + c] } else { x.row(t - past)[c] })
        };
        let mut out = Vec::new();
        for t in 0..x.rows() {
            for c in 0..cols {
                let taps = (0..=past).map(|k| f64::from(w[k * cols + c]) * input(t + k, c));
                let sum = taps.sum::<f64>() + bias.map_or(0.0, |b| f64::from(b[c]));
                out.push(sum / (1.0 + (-sum).exp()));
            }
        }
        out
    }

    #[test]
    fn agrees_with_the_formula_whole_in_pieces_and_step_by_step() {
        for (rows, cols, taps) in
            [(0, 5, 4), (1, 7, 4), (2, 600, 4), (9, 37, 4), (9, 37, 1), (40, 4111, 3)]
        {
            let x = values(rows * (cols + 9), 1);
            let x = MatRef::new(&x, cols + 9).columns(4, cols);
            let (w, b, past) =
                (values(taps * cols, 2), values(cols, 3), values((taps - 1) * cols, 4));
            for bias in [Some(&b[..]), None] {
                let run = |cpu: &Cpu, pieces: &[usize]| {
                    let (mut state, mut out) = (past.clone(), vec![f32::NAN; rows * cols]);
                    let mut from = 0;
                    for &len in pieces {
                        let out = MatMut::new(&mut out[from * cols..(from + len) * cols], cols);
                        causal_conv1d(cpu, x.rows_at(from, len), &w, bias, &mut state, out);
                        from += len;
                    }
                    assert_eq!(from, rows);
                    [out, state].concat()
                };
                let history: Vec<f32> =
                    past.iter().copied().chain((0..rows).flat_map(|t| x.row(t)).copied()).collect();
                for (isa, whole) in on_every_cpu(|cpu| run(cpu, &[rows])) {
                    let what = format!("{isa} {rows}×{cols}, {taps} taps");
                    let (out, state) = whole.split_at(rows * cols);
                    assert_near(out, &naive(x, &w, bias, &past), 1e-6, &what);
                    assert_same_bits(state, &history[rows * cols..], &what);
                    let cpu = Cpu::new(isa, 2);
                    assert_same_bits(&run(&cpu, &vec![1; rows]), &whole, &what);
                    assert_same_bits(&run(&cpu, &[rows / 3, rows - rows / 3]), &whole, &what);
                }
            }
        }
    }
}

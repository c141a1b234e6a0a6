//! The convolution of a group's columns over one document, forward and backward.
//!
//! It reads and writes them where they lie among those of the other groups; what is the group's alone
//! lies densely.

use super::{Scratch, Sizes};
use crate::buffer::{MatMut, MatRef};
use crate::ops::mamba_split_conv1d_scan::MixerParams;
use crate::simd::{Simd, WithSimd, array};

/// Rows that are fetched ahead of columns of a wide matrix: nothing fetches them by itself.
pub(super) const ROWS_AHEAD: usize = 16;
/// The number of taps of every model of the family; others are slower.
const TAPS: usize = 4;

/// Columns that lie side by side, in `x | B | C` of all groups and of one.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) there: usize,
    pub(super) here: usize,
    pub(super) len: usize,
}

/// Copies taps and bias of the runs.
pub(super) fn gather_taps(p: &MixerParams, sizes: Sizes, runs: [Run; 3], weight: &mut Vec<f32>) {
    weight.clear();
    weight.resize((sizes.taps + 1) * sizes.conv(), 0.0);
    let rows = p.conv_weight.chunks_exact(p.ssd.conv_dim()).chain(p.conv_bias);
    for (row, to) in rows.zip(weight.chunks_exact_mut(sizes.conv())) {
        for Run { there, here, len } in runs {
            to[here..here + len].copy_from_slice(&row[there..there + len]);
        }
    }
}

/// The convolution's outputs and their slopes.
pub(super) struct ConvForward<'a> {
    pub(super) sizes: Sizes,
    pub(super) x: MatRef<'a>,
    pub(super) runs: [Run; 3],
    pub(super) w: &'a mut Scratch,
}

impl WithSimd for ConvForward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for run in self.runs {
            let whole = self.sizes.strips::<S>(run);
            for i in (0..whole).step_by(S::LANES) {
                self.strip(s, run, i);
            }
            if whole < run.len {
                self.rows(s, run, whole);
            }
        }
    }
}

impl ConvForward<'_> {
    /// A vector of columns, down the rows: what the next rows need stays in registers.
    #[inline(always)]
    fn strip<S: Simd>(&mut self, s: S, run: Run, i: usize) {
        let (x, width, here) = (self.x, self.sizes.conv(), run.here + i);
        let Scratch { conv: [out, slope, _], weight, .. } = &mut *self.w;
        let (taps, bias) = load_taps(s, weight, width, here);
        let mut past = [s.zero(); TAPS];
        for t in 0..x.rows() {
            if t + ROWS_AHEAD < x.rows() {
                s.prefetch(&x.row(t + ROWS_AHEAD)[run.there + i..]);
            }
            push(&mut past, s.load(&x.row(t)[run.there + i..]));
            let mut sum = bias;
            for k in 0..TAPS {
                sum = s.fma(past[k], taps[k], sum);
            }
            let (value, rise) = silu_and_slope(s, sum);
            s.store(value, &mut out[t * width + here..]);
            s.store(rise, &mut slope[t * width + here..]);
        }
    }

    /// Any number of taps and the columns from `first` on, row by row.
    #[inline(always)]
    fn rows<S: Simd>(&mut self, s: S, Run { there, here, len }: Run, first: usize) {
        let (x, width, taps) = (self.x, self.sizes.conv(), self.sizes.taps);
        let Scratch { conv: [out, slope, _], weight, .. } = &mut *self.w;
        for t in 0..x.rows() {
            for i in (first..len).step_by(S::LANES) {
                let (at, end) = (here + i, here + len);
                let mut sum = s.load_partial(&weight[taps * width + at..taps * width + end]);
                for k in (taps - 1).saturating_sub(t)..taps {
                    let input = &x.row(t + k + 1 - taps)[there + i..there + len];
                    let tap = &weight[k * width + at..k * width + end];
                    sum = s.fma(s.load_partial(input), s.load_partial(tap), sum);
                }
                let (value, rise) = silu_and_slope(s, sum);
                s.store_partial(value, &mut out[t * width + at..t * width + end]);
                s.store_partial(rise, &mut slope[t * width + at..t * width + end]);
            }
        }
    }
}

/// `v · σ(v)`, and its derivative.
#[inline(always)]
fn silu_and_slope<S: Simd>(s: S, v: S::V) -> (S::V, S::V) {
    let one = s.splat(1.0);
    let gate = s.div(one, s.add(one, s.exp(s.sub(s.zero(), v))));
    let value = s.mul(v, gate);
    (value, s.mul(gate, s.fma(s.sub(one, gate), v, one)))
}

/// From the gradients of the outputs to those of the inputs, the taps and the bias.
pub(super) struct ConvBackward<'a, 'm> {
    pub(super) sizes: Sizes,
    pub(super) x: MatRef<'a>,
    pub(super) runs: [Run; 3],
    pub(super) w: &'a mut Scratch,
    /// Of the runs.
    pub(super) dx: [&'a mut MatMut<'m>; 3],
    pub(super) dweight: &'a mut [f32],
}

impl WithSimd for ConvBackward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let [_, slope, g] = &mut self.w.conv;
        g.iter_mut().zip(&*slope).for_each(|(g, slope)| *g *= slope);
        for (j, run) in self.runs.into_iter().enumerate() {
            let whole = self.sizes.strips::<S>(run);
            for i in (0..whole).step_by(S::LANES) {
                self.strip(s, j, i);
            }
            if whole < run.len {
                self.rows(s, j, whole);
            }
        }
    }
}

impl ConvBackward<'_, '_> {
    /// A vector of columns of run `j`, down the rows.
    #[inline(always)]
    fn strip<S: Simd>(&mut self, s: S, j: usize, i: usize) {
        let (x, dx, width) = (self.x, &mut *self.dx[j], self.sizes.conv());
        let (there, here) = (self.runs[j].there + i, self.runs[j].here + i);
        let Scratch { conv: [_, _, g], weight, .. } = &mut *self.w;
        let (taps, _) = load_taps(s, weight, width, here);
        let (mut dtaps, mut dbias) = load_taps(s, self.dweight, width, here);
        // Gradients of rows t ..= t + K − 1, and inputs of rows t − (K − 1) ..= t.
        let (mut later, mut past) = ([s.zero(); TAPS], [s.zero(); TAPS]);
        for t in 0..x.rows() + TAPS - 1 {
            let next = match t < x.rows() {
                true => s.load(&g[t * width + here..]),
                false => s.zero(),
            };
            push(&mut later, next);
            let Some(t) = t.checked_sub(TAPS - 1) else { continue };
            if t + ROWS_AHEAD < x.rows() {
                s.prefetch(&dx.row(t + ROWS_AHEAD)[i..]);
            }
            push(&mut past, s.load(&x.row(t)[there..]));
            dbias = s.add(dbias, later[0]);
            let mut sum = s.zero();
            for k in 0..TAPS {
                dtaps[k] = s.fma(later[0], past[k], dtaps[k]);
                sum = s.fma(later[TAPS - 1 - k], taps[k], sum);
            }
            s.store(sum, &mut dx.row_mut(t)[i..]);
        }
        for (k, value) in dtaps.into_iter().chain([dbias]).enumerate() {
            s.store(value, &mut self.dweight[k * width + here..]);
        }
    }

    /// Any number of taps and the columns of run `j` from `first` on, row by row.
    #[inline(always)]
    fn rows<S: Simd>(&mut self, s: S, j: usize, first: usize) {
        let (x, dx, width, taps) = (self.x, &mut *self.dx[j], self.sizes.conv(), self.sizes.taps);
        let Run { there, here, len } = self.runs[j];
        let (g, weight, dweight) = (&self.w.conv[2], &self.w.weight, &mut *self.dweight);
        for t in 0..x.rows() {
            for i in (first..len).step_by(S::LANES) {
                let (at, end) = (here + i, here + len);
                let g_t = s.load_partial(&g[t * width + at..t * width + end]);
                let dbias = &mut dweight[taps * width + at..taps * width + end];
                s.store_partial(s.add(s.load_partial(dbias), g_t), dbias);
                let mut sum = s.zero();
                for k in 0..taps {
                    if t + k + 1 >= taps {
                        let input = &x.row(t + k + 1 - taps)[there + i..there + len];
                        let to = &mut dweight[k * width + at..k * width + end];
                        let new = s.fma(g_t, s.load_partial(input), s.load_partial(to));
                        s.store_partial(new, to);
                    }
                    let later = t + taps - 1 - k;
                    if later < x.rows() {
                        let g = s.load_partial(&g[later * width + at..later * width + end]);
                        let tap = s.load_partial(&weight[k * width + at..k * width + end]);
                        sum = s.fma(g, tap, sum);
                    }
                }
                s.store_partial(sum, &mut dx.row_mut(t)[i..]);
            }
        }
    }
}

impl Sizes {
    /// So many of a run's first columns are taken as strips: whole vectors, if the taps are the usual
    /// ones.
    #[inline(always)]
    fn strips<S: Simd>(self, run: Run) -> usize {
        if self.taps == TAPS { run.len / S::LANES * S::LANES } else { 0 }
    }
}

/// A vector of columns of the taps, and of the bias behind them.
#[inline(always)]
fn load_taps<S: Simd>(s: S, weight: &[f32], width: usize, here: usize) -> ([S::V; TAPS], S::V) {
    let taps = array!(TAPS, k => s.load(&weight[k * width + here..]));
    (taps, s.load(&weight[TAPS * width + here..]))
}

#[inline(always)]
fn push<V: Copy>(window: &mut [V; TAPS], value: V) {
    for k in 1..TAPS {
        window[k - 1] = window[k];
    }
    window[TAPS - 1] = value;
}

//! The convolution of a group's columns over one document, forward again and backward.
//!
//! It reads and writes them where they lie among those of the other groups; what is the group's alone
//! lies densely.

use super::{Scratch, Sizes};
use crate::buffer::{MatMut, MatRef};
use crate::ops::mamba_split_conv1d_scan::MixerParams;
use crate::simd::{Simd, WithSimd};

/// Rows that are fetched ahead.
pub(super) const ROWS_AHEAD: usize = 4;

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

/// Sums and outputs of the convolution.
pub(super) struct ConvForward<'a> {
    pub(super) sizes: Sizes,
    pub(super) x: MatRef<'a>,
    pub(super) runs: [Run; 3],
    pub(super) w: &'a mut Scratch,
}

impl WithSimd for ConvForward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { sizes: Sizes { taps, .. }, x, runs, w } = self;
        let (width, [sums, out, _]) = (self.sizes.conv(), &mut w.conv);
        for t in 0..x.rows() {
            for Run { there, here, len } in runs {
                if t + ROWS_AHEAD < x.rows() {
                    fetch(s, &x.row(t + ROWS_AHEAD)[there..there + len]);
                }
                let place = t * width + here..t * width + here + len;
                let (sums, out) = (&mut sums[place.clone()], &mut out[place]);
                for i in (0..len).step_by(S::LANES) {
                    let weight = |k: usize| &w.weight[k * width + here..][i..len];
                    let mut sum = s.load_partial(weight(taps));
                    for k in (taps - 1).saturating_sub(t)..taps {
                        let input = &x.row(t + k + 1 - taps)[there..there + len];
                        let (input, tap) = (s.load_partial(&input[i..]), s.load_partial(weight(k)));
                        sum = s.fma(input, tap, sum);
                    }
                    s.store_partial(sum, &mut sums[i..]);
                    s.store_partial(s.silu(sum), &mut out[i..]);
                }
            }
        }
    }
}

/// Asks for the lines of columns of a wide matrix, whose next rows nothing fetches by itself.
#[inline(always)]
pub(super) fn fetch<S: Simd>(s: S, columns: &[f32]) {
    columns.chunks(16).for_each(|line| s.prefetch(line));
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
    fn run<S: Simd>(self, s: S) {
        let Self { sizes: Sizes { taps, .. }, x, runs, w, dx, dweight } = self;
        let (width, [sums, _, g]) = (self.sizes.conv(), &mut w.conv);
        let one = s.splat(1.0);
        for (sum, g) in sums.chunks(S::LANES).zip(g.chunks_mut(S::LANES)) {
            let v = s.load_partial(sum);
            let gate = s.div(one, s.add(one, s.exp(s.sub(s.zero(), v))));
            let slope = s.mul(gate, s.fma(v, s.sub(one, gate), one));
            s.store_partial(s.mul(s.load_partial(g), slope), g);
        }
        for (Run { there, here, len }, dx) in runs.into_iter().zip(dx) {
            for t in 0..x.rows() {
                if t + ROWS_AHEAD < x.rows() {
                    fetch(s, dx.row(t + ROWS_AHEAD));
                }
                let dx = dx.row_mut(t);
                for i in (0..len).step_by(S::LANES) {
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
                            let tap = &w.weight[k * width + at..k * width + end];
                            sum = s.fma(g, s.load_partial(tap), sum);
                        }
                    }
                    s.store_partial(sum, &mut dx[i..]);
                }
            }
        }
    }
}

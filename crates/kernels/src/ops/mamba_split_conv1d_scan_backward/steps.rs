//! The steps Δ of a group's heads over one document, forward again and backward.

use crate::buffer::{MatMut, MatRef};
use crate::ops::ssd::{SsdParams, StepSizes};
use crate::simd::{Simd, WithSimd};

/// Δ of the heads of a group, token by token.
pub(super) struct Steps<'a> {
    pub(super) p: &'a SsdParams<'a>,
    pub(super) first: usize,
    pub(super) dt: MatRef<'a>,
    pub(super) delta: &'a mut [f32],
}

impl WithSimd for Steps<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { p, first, dt, delta } = self;
        for (t, delta) in delta.chunks_exact_mut(dt.cols()).enumerate() {
            StepSizes { p, first, dt: dt.row(t), delta }.run(s);
        }
    }
}

/// `d raw = dΔ · σ(raw + bias)` where no limit is active, else 0.
pub(super) struct StepsBackward<'a> {
    pub(super) limit: (f32, f32),
    pub(super) dt: MatRef<'a>,
    pub(super) bias: &'a [f32],
    pub(super) dbias: &'a mut [f32],
    /// Δ and its gradient.
    pub(super) delta: &'a [Vec<f32>; 2],
    pub(super) ddt: MatMut<'a>,
}

impl WithSimd for StepsBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { limit: (least, most), dt, bias, dbias, delta: [delta, ddelta], mut ddt } = self;
        let (heads, one) = (bias.len(), s.splat(1.0));
        for t in 0..dt.rows() {
            let (here, raw) = (t * heads..(t + 1) * heads, dt.row(t));
            let (delta, ddelta, ddt) = (&delta[here.clone()], &ddelta[here], ddt.row_mut(t));
            for i in (0..heads).step_by(S::LANES) {
                let raw = s.add(s.load_partial(&raw[i..]), s.load_partial(&bias[i..]));
                let slope = s.div(one, s.add(one, s.exp(s.sub(s.zero(), raw))));
                s.store_partial(s.mul(s.load_partial(&ddelta[i..]), slope), &mut ddt[i..]);
            }
            for h in 0..heads {
                let free = delta[h] > least && delta[h] < most || delta[h] == 0.0;
                if !free {
                    ddt[h] = 0.0;
                }
                dbias[h] += ddt[h];
            }
        }
    }
}

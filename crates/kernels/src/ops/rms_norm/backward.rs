//! Gradients of the norms.
//!
//! With `r = 1/√(mean(x²) + eps)`, `n = x·r` and g the gradient of `out = n·w`:
//! `dw += Σ_rows g·n`, `dx = r·(g·w − n·mean(g·w·n))`. The gated norm takes `x = y·silu(z)`:
//! `dy = dx·silu(z)`, `dz = dx·y·silu'(z)`.
//!
//! Sums over rows are left folds: documents one after the other give the bits of all at once.

use crate::Cpu;
use crate::buffer::{Chunks, MatMut, MatRef};
use crate::simd::{Simd, WithSimd, array, dispatch};

/// Values that a worker takes at a time, rounded to rows.
const VALUES_PER_PART: usize = 8 * 1024;
/// Columns that a worker sums over the rows.
const COLUMNS_PER_PART: usize = 64;

/// Adds the gradient of [`super::rms_norm`]'s input to `dx` and that of its weight to `dweight`.
///
/// # Panics
/// If the shapes disagree: x, dout and dx `[T, D]`, weight and dweight `[D]`.
pub fn rms_norm_backward(
    cpu: &Cpu,
    x: MatRef,
    weight: &[f32],
    eps: f32,
    dout: MatRef,
    dx: MatMut,
    dweight: &mut [f32],
) {
    let (rows, cols) = (x.rows(), x.cols());
    assert_eq!([dout.rows(), dx.rows()], [rows; 2], "norm: rows of the gradients");
    assert_eq!([dout.cols(), dx.cols(), weight.len(), dweight.len()], [cols; 4], "norm: columns");
    let (isa, height) = (cpu.isa(), (VALUES_PER_PART / cols).max(1));
    let mut scales = vec![0.0; rows];
    let parts = (dx.row_panels(height), Chunks::new(&mut scales, height));
    cpu.pool().for_parts_sized(8 * rows * cols, parts, |i, (dx, scales)| {
        let (x, dout) = (x.rows_at(i * height, dx.rows()), dout.rows_at(i * height, dx.rows()));
        dispatch(isa, Inputs { x, weight, eps, dout, dx, scales });
    });
    let parts = Chunks::new(dweight, COLUMNS_PER_PART);
    cpu.pool().for_parts_sized(2 * rows * cols, parts, |i, dweight| {
        let from = i * COLUMNS_PER_PART;
        let (x, dout) = (x.columns(from, dweight.len()), dout.columns(from, dweight.len()));
        dispatch(isa, Weights { x, dout, scales: &scales, dweight });
    });
}

struct Weights<'a> {
    x: MatRef<'a>,
    dout: MatRef<'a>,
    /// r of every row.
    scales: &'a [f32],
    dweight: &'a mut [f32],
}

impl WithSimd for Weights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (r, scale) in self.scales.iter().enumerate() {
            let values = self.x.row(r).iter().zip(self.dout.row(r));
            for (to, (x, g)) in self.dweight.iter_mut().zip(values) {
                *to += g * (x * scale);
            }
        }
    }
}

struct Inputs<'a> {
    x: MatRef<'a>,
    weight: &'a [f32],
    eps: f32,
    dout: MatRef<'a>,
    dx: MatMut<'a>,
    /// r of every row.
    scales: &'a mut [f32],
}

impl WithSimd for Inputs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let len = self.x.cols() as f32;
        for (r, scale) in self.scales.iter_mut().enumerate() {
            let (x, g) = (self.x.row(r), self.dout.row(r));
            let (mut squares, mut dots) = (s.zero(), s.zero());
            let parts = x.chunks(S::LANES).zip(g.chunks(S::LANES));
            for ((x, g), w) in parts.zip(self.weight.chunks(S::LANES)) {
                let (x, g, w) = (s.load_partial(x), s.load_partial(g), s.load_partial(w));
                squares = s.fma(x, x, squares);
                dots = s.fma(s.mul(g, w), x, dots);
            }
            *scale = 1.0 / (s.sum(squares) / len + self.eps).sqrt();
            let (scale, pull) = (*scale, -s.sum(dots) / len * *scale * *scale * *scale);
            let (scale, pull) = (s.splat(scale), s.splat(pull));
            let parts = x.chunks(S::LANES).zip(g.chunks(S::LANES));
            let parts = parts.zip(self.weight.chunks(S::LANES));
            for (((x, g), w), dx) in parts.zip(self.dx.row_mut(r).chunks_mut(S::LANES)) {
                let (x, g, w) = (s.load_partial(x), s.load_partial(g), s.load_partial(w));
                let d = s.fma(x, pull, s.mul(s.mul(g, w), scale));
                s.store_partial(s.add(s.load_partial(dx), d), dx);
            }
        }
    }
}

/// One group of one row of the gated norm.
pub(crate) struct Gated<'a> {
    pub(crate) y: &'a [f32],
    pub(crate) z: &'a [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
    pub(crate) dout: &'a [f32],
}

/// Writes the gradients of y and z and adds that of the weight.
#[inline(always)]
pub(crate) fn gated_group_backward<S: Simd>(
    s: S,
    row: Gated,
    dy: &mut [f32],
    dz: &mut [f32],
    dweight: &mut [f32],
) {
    let Gated { y, z, weight, eps, dout } = row;
    let len = y.len() as f32;
    let inputs = [y, z, dout, weight];
    let (one, mut squares, mut dots) = (s.splat(1.0), s.zero(), s.zero());
    let starts = || (0..y.len()).step_by(S::LANES);
    // σ(z) and x wait where their gradients go.
    for i in starts() {
        let [y, z, g, w] = array!(4, j => s.load_partial(&inputs[j][i..]));
        let gate = s.div(one, s.add(one, s.exp(s.sub(s.zero(), z))));
        let x = s.mul(y, s.mul(z, gate));
        s.store_partial(gate, &mut dz[i..]);
        s.store_partial(x, &mut dy[i..]);
        squares = s.fma(x, x, squares);
        dots = s.fma(s.mul(g, w), x, dots);
    }
    let scale = 1.0 / (s.sum(squares) / len + eps).sqrt();
    let pull = s.splat(-s.sum(dots) / len * scale * scale * scale);
    let scale = s.splat(scale);
    for i in starts() {
        let [y, z, g, w] = array!(4, j => s.load_partial(&inputs[j][i..]));
        let (gate, x) = (s.load_partial(&dz[i..]), s.load_partial(&dy[i..]));
        let dx = s.fma(x, pull, s.mul(s.mul(g, w), scale));
        // silu'(z) = σ(z)·(1 + z·(1 − σ(z)))
        let slope = s.mul(gate, s.fma(z, s.sub(one, gate), one));
        s.store_partial(s.mul(dx, s.mul(z, gate)), &mut dy[i..]);
        s.store_partial(s.mul(s.mul(dx, y), slope), &mut dz[i..]);
        let dw = &mut dweight[i..];
        s.store_partial(s.fma(g, s.mul(x, scale), s.load_partial(dw)), dw);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{
        assert_near, assert_same_bits, central_differences, on_every_cpu, values,
    };

    #[test]
    fn gradients_are_the_slopes_and_fold_over_rows() {
        let (rows, cols, eps) = (7, 37, 1e-5);
        let (x, weight, dout) = (values(rows * cols, 1), values(cols, 2), values(rows * cols, 3));
        let loss = |v: &[f64]| {
            let (x, weight) = v.split_at(rows * cols);
            let row = |(x, g): (&[f64], &[f32])| {
                let mean = x.iter().map(|v| v * v).sum::<f64>() / cols as f64;
                let scale = 1.0 / (mean + eps).sqrt();
                let out = x.iter().zip(weight).map(|(x, w)| x * scale * w);
                out.zip(g).map(|(o, g)| o * f64::from(*g)).sum::<f64>()
            };
            x.chunks(cols).zip(dout.chunks(cols)).map(row).sum::<f64>()
        };
        let want = central_differences(&[&x, &weight], loss);
        let run = |cpu: &Cpu, cuts: &[usize]| {
            let mut got = vec![0.0; rows * cols + cols];
            let (dx, dw) = got.split_at_mut(rows * cols);
            let mut dx = MatMut::new(dx, cols);
            for cut in cuts.windows(2) {
                let (from, len) = (cut[0], cut[1] - cut[0]);
                let [x, g] = [&x, &dout].map(|m| MatRef::new(m, cols).rows_at(from, len));
                let dx = dx.reborrow().rows_at(from, len);
                rms_norm_backward(cpu, x, &weight, eps as f32, g, dx, dw);
            }
            got
        };
        for (isa, got) in on_every_cpu(|cpu| run(cpu, &[0, 7])) {
            assert_near(&got, &want, 2e-5, &isa.to_string());
            assert_same_bits(&run(&Cpu::new(isa, 2), &[0, 1, 4, 7]), &got, "row by row");
        }
    }
}

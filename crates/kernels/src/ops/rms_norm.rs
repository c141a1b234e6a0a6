//! Root-mean-square norms, in f32.
//!
//! - [`rms_norm`]: `out = x · w / √(mean(x²) + eps)` over each row of D values.
//! - [`gated_rms_norm`]: `u = y · silu(z)`, then the same over each of G groups of D / G values
//!   of u; the gate comes first (the norm at the end of a Mamba-2 mixer, `norm_before_gate`
//!   false). The weight has D values in both.
//!
//! Sources: Zhang and Sennrich 2019; `RMSNormGated` of state-spaces/mamba.

mod backward;

pub use backward::rms_norm_backward;
pub(crate) use backward::{Gated, gated_group_backward};

use crate::Cpu;
use crate::buffer::{MatMut, MatRef};
use crate::simd::{Simd, WithSimd, dispatch};

/// Values that a worker takes at a time, rounded to rows.
const VALUES_PER_PART: usize = 8 * 1024;

/// `out = x · weight / √(mean(x²) + eps)` row by row.
///
/// # Panics
/// If the shapes disagree: x and out `[T, D]`, weight `[D]`.
pub fn rms_norm(cpu: &Cpu, x: MatRef, weight: &[f32], eps: f32, out: MatMut) {
    norm(cpu, x, None, weight, 1, eps, out);
}

/// `u = y · silu(z)`; out = `u · weight / √(mean(u²) + eps)` row by row, the mean over each of
/// `n_groups` groups of columns.
///
/// # Panics
/// If the shapes disagree: y, z and out `[T, D]`, weight `[D]`, D a multiple of `n_groups`.
pub fn gated_rms_norm(
    cpu: &Cpu,
    y: MatRef,
    z: MatRef,
    weight: &[f32],
    n_groups: usize,
    eps: f32,
    out: MatMut,
) {
    assert_eq!((z.rows(), z.cols()), (y.rows(), y.cols()), "gate");
    norm(cpu, y, Some(z), weight, n_groups, eps, out);
}

fn norm(
    cpu: &Cpu,
    x: MatRef,
    gate: Option<MatRef>,
    weight: &[f32],
    n_groups: usize,
    eps: f32,
    out: MatMut,
) {
    let (rows, cols) = (x.rows(), x.cols());
    assert_eq!((rows, cols), (out.rows(), out.cols()), "norm: input and output");
    assert_eq!(weight.len(), cols, "norm: weight");
    assert!(n_groups > 0 && cols.is_multiple_of(n_groups), "{cols} columns, {n_groups} groups");
    let (isa, width) = (cpu.isa(), cols / n_groups);
    let height = (VALUES_PER_PART / cols).max(1);
    let operations = rows * cols * if gate.is_some() { 20 } else { 4 };
    cpu.pool().for_parts_sized(operations, out.row_panels(height), |i, out| {
        let (from, len) = (i * height, out.rows());
        let (x, gate) = (x.rows_at(from, len), gate.map(|z| z.rows_at(from, len)));
        dispatch(isa, Norm { x, gate, weight, width, eps, out });
    });
}

struct Norm<'a> {
    x: MatRef<'a>,
    gate: Option<MatRef<'a>>,
    weight: &'a [f32],
    /// Columns of a group.
    width: usize,
    eps: f32,
    out: MatMut<'a>,
}

impl WithSimd for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for r in 0..self.x.rows() {
            for from in (0..self.x.cols()).step_by(self.width) {
                let group = from..from + self.width;
                let (x, w) = (&self.x.row(r)[group.clone()], &self.weight[group.clone()]);
                let out = &mut self.out.row_mut(r)[group.clone()];
                if let Some(z) = self.gate {
                    out.copy_from_slice(x);
                    gate_and_scale(s, out, &z.row(r)[group], w, self.eps);
                } else {
                    scale_by_weight(s, x, w, inverse_rms(s, x, self.eps), out);
                }
            }
        }
    }
}

/// The gated norm of one group of some rows, in place: y becomes the output.
pub(crate) struct GateInPlace<'a> {
    pub(crate) y: MatMut<'a>,
    pub(crate) z: MatRef<'a>,
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
}

impl WithSimd for GateInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for r in 0..self.y.rows() {
            gate_and_scale(s, self.y.row_mut(r), self.z.row(r), self.weight, self.eps);
        }
    }
}

/// One group of a gated norm in place: y becomes the output.
#[inline(always)]
pub(crate) fn gate_and_scale<S: Simd>(s: S, y: &mut [f32], z: &[f32], weight: &[f32], eps: f32) {
    let (len, z) = (y.len(), &z[..y.len()]);
    let gated = |y: S::V, z: S::V| s.mul(y, s.silu(z));
    let (mut acc, step) = ([s.zero(); 4], 4 * S::LANES);
    let whole = len / step * step;
    for (y, z) in y[..whole].chunks_exact_mut(step).zip(z.chunks_exact(step)) {
        for i in 0..4 {
            let u = gated(s.load(&y[i * S::LANES..]), s.load(&z[i * S::LANES..]));
            s.store(u, &mut y[i * S::LANES..]);
            acc[i] = s.fma(u, u, acc[i]);
        }
    }
    for (y, z) in y[whole..].chunks_mut(S::LANES).zip(z[whole..].chunks(S::LANES)) {
        let u = gated(s.load_partial(y), s.load_partial(z));
        s.store_partial(u, y);
        acc[0] = s.fma(u, u, acc[0]);
    }
    scale_in_place(s, weight, scale_of(s, acc, len, eps), y);
}

#[inline(always)]
fn inverse_rms<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let mut acc = [s.zero(); 4];
    let blocks = x.chunks_exact(4 * S::LANES);
    let rest = blocks.remainder();
    for block in blocks {
        for i in 0..4 {
            let v = s.load(&block[i * S::LANES..]);
            acc[i] = s.fma(v, v, acc[i]);
        }
    }
    for part in rest.chunks(S::LANES) {
        let v = s.load_partial(part);
        acc[0] = s.fma(v, v, acc[0]);
    }
    scale_of(s, acc, x.len(), eps)
}

/// `1 / √(mean + eps)` from partial sums of squares.
#[inline(always)]
fn scale_of<S: Simd>(s: S, acc: [S::V; 4], len: usize, eps: f32) -> f32 {
    let sum = s.sum(s.add(s.add(acc[0], acc[1]), s.add(acc[2], acc[3])));
    1.0 / (sum / len as f32 + eps).sqrt()
}

#[inline(always)]
fn scale_by_weight<S: Simd>(s: S, x: &[f32], w: &[f32], scale: f32, out: &mut [f32]) {
    let scale = s.splat(scale);
    let parts = x.chunks(S::LANES).zip(w.chunks(S::LANES)).zip(out.chunks_mut(S::LANES));
    for ((x, w), out) in parts {
        s.store_partial(s.mul(s.mul(s.load_partial(x), scale), s.load_partial(w)), out);
    }
}

#[inline(always)]
fn scale_in_place<S: Simd>(s: S, w: &[f32], scale: f32, out: &mut [f32]) {
    let scale = s.splat(scale);
    for (w, out) in w.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
        s.store_partial(s.mul(s.mul(s.load_partial(out), scale), s.load_partial(w)), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_near, on_every_cpu, values};

    /// The formula in f64.
    fn naive(x: MatRef, z: Option<MatRef>, weight: &[f32], groups: usize, eps: f32) -> Vec<f64> {
        let mut out = Vec::new();
        for r in 0..x.rows() {
            let gate = |c: usize| match z {
                Some(z) => {
                    let z = f64::from(z.row(r)[c]);
                    z / (1.0 + (-z).exp())
                }
                None => 1.0,
            };
            let u: Vec<f64> = (0..x.cols()).map(|c| f64::from(x.row(r)[c]) * gate(c)).collect();
            let width = x.cols() / groups;
            for (g, u) in u.chunks(width).enumerate() {
                let mean = u.iter().map(|v| v * v).sum::<f64>() / width as f64;
                let scale = 1.0 / (mean + f64::from(eps)).sqrt();
                out.extend((0..width).map(|c| u[c] * scale * f64::from(weight[g * width + c])));
            }
        }
        out
    }

    #[test]
    fn both_norms_agree_with_the_formula() {
        for (rows, cols, groups) in [(0, 8, 2), (1, 1, 1), (3, 37, 1), (1, 2560, 2), (70, 666, 6)] {
            // Columns of a wider matrix: the stride differs from the width.
            let (x, z) = (values(rows * (cols + 5), 1), values(rows * (cols + 3), 2));
            let z: Vec<f32> = z.iter().map(|v| v * 12.0).collect();
            let weight = values(cols, 3);
            let x = MatRef::new(&x, cols + 5).columns(5, cols);
            let z = MatRef::new(&z, cols + 3).columns(1, cols);
            let plain = on_every_cpu(|cpu| {
                let mut out = vec![f32::NAN; rows * cols];
                rms_norm(cpu, x, &weight, 1e-5, MatMut::new(&mut out, cols));
                out
            });
            let gated = on_every_cpu(|cpu| {
                let mut out = vec![f32::NAN; rows * cols];
                gated_rms_norm(cpu, x, z, &weight, groups, 1e-5, MatMut::new(&mut out, cols));
                out
            });
            for ((isa, plain), (_, gated)) in plain.iter().zip(&gated) {
                let what = format!("{isa} {rows}×{cols}/{groups}");
                assert_near(plain, &naive(x, None, &weight, 1, 1e-5), 1e-6, &what);
                assert_near(gated, &naive(x, Some(z), &weight, groups, 1e-5), 2e-6, &what);
            }
        }
    }

    #[test]
    fn a_bad_row_stays_alone_and_zeros_stay_zero() {
        let mut x = values(3 * 40, 4);
        x[45] = f32::NAN;
        x[80..].fill(0.0);
        for (isa, out) in on_every_cpu(|cpu| {
            let mut out = vec![0.0; 120];
            let x = MatRef::new(&x, 40);
            gated_rms_norm(cpu, x, x, &[1.0; 40], 2, 1e-5, MatMut::new(&mut out, 40));
            out
        }) {
            assert!(out[..40].iter().all(|v| v.is_finite()), "{isa}");
            assert!(out[40..60].iter().all(|v| v.is_nan()), "{isa}");
            assert!(out[60..80].iter().all(|v| v.is_finite()), "{isa}");
            assert!(out[80..].iter().all(|v| *v == 0.0), "{isa}");
        }
    }
}

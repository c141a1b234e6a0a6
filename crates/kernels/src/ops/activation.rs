//! Functions of single values.
//!
//! - [`relu2`], [`relu2_of`]: `max(x, 0)²`, in place or not (So et al. 2021, "Primer"), NaN stays
//!   NaN.
//! - [`relu2_backward`]: its gradient, `dx ← 2·max(x, 0)·dx`, and its value once more.
//! - [`add_assign`], [`add_of`]: `x + y`, the residual stream, in place or not; [`add_values`] and
//!   [`zero_values`] for vectors.
//! - `softplus`: `ln(1 + eˣ)`, without overflow and without loss for small arguments.

use crate::Cpu;
use crate::buffer::{Chunks, MatMut, MatRef};
use crate::simd::{Simd, WithSimd, dispatch};

/// Values that a worker takes at a time, rounded to rows.
const VALUES_PER_PART: usize = 16 * 1024;

/// `x ← max(x, 0)²`.
pub fn relu2(cpu: &Cpu, x: MatMut) {
    let (isa, operations) = (cpu.isa(), 2 * x.rows() * x.cols());
    let height = (VALUES_PER_PART / x.cols()).max(1);
    cpu.pool().for_parts_sized(operations, x.row_panels(height), |_, x| dispatch(isa, Relu2(x)));
}

/// `out ← max(x, 0)²`.
///
/// # Panics
/// If the shapes disagree.
pub fn relu2_of(cpu: &Cpu, x: MatRef, out: MatMut) {
    assert_eq!((x.rows(), x.cols()), (out.rows(), out.cols()), "relu²: value and output");
    let (isa, operations) = (cpu.isa(), 2 * x.rows() * x.cols());
    let height = (VALUES_PER_PART / x.cols()).max(1);
    cpu.pool().for_parts_sized(operations, out.row_panels(height), |i, out| {
        let x = x.rows_at(i * height, out.rows());
        dispatch(isa, Relu2Of { x, out });
    });
}

/// `dx ← 2·max(x, 0)·dx`, from the gradient of `max(x, 0)²` to that of x, and `out ← max(x, 0)²` for
/// who needs it again.
///
/// # Panics
/// If the shapes disagree.
pub fn relu2_backward(cpu: &Cpu, x: MatRef, out: MatMut, dx: MatMut) {
    let shape = (x.rows(), x.cols());
    assert_eq!([(out.rows(), out.cols()), (dx.rows(), dx.cols())], [shape; 2], "relu²: gradient");
    let (isa, operations) = (cpu.isa(), 3 * x.rows() * x.cols());
    let height = (VALUES_PER_PART / x.cols()).max(1);
    let parts = (out.row_panels(height), dx.row_panels(height));
    cpu.pool().for_parts_sized(operations, parts, |i, (out, dx)| {
        let x = x.rows_at(i * height, dx.rows());
        dispatch(isa, Relu2Backward { x, out, dx });
    });
}

struct Relu2Backward<'a> {
    x: MatRef<'a>,
    out: MatMut<'a>,
    dx: MatMut<'a>,
}

impl WithSimd for Relu2Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for r in 0..self.x.rows() {
            let out = self.out.row_mut(r).chunks_mut(S::LANES);
            let dx = self.dx.row_mut(r).chunks_mut(S::LANES);
            for ((x, out), dx) in self.x.row(r).chunks(S::LANES).zip(out).zip(dx) {
                let v = s.max(s.zero(), s.load_partial(x));
                s.store_partial(s.mul(v, v), out);
                s.store_partial(s.mul(s.add(v, v), s.load_partial(dx)), dx);
            }
        }
    }
}

struct Relu2Of<'a> {
    x: MatRef<'a>,
    out: MatMut<'a>,
}

impl WithSimd for Relu2Of<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for r in 0..self.x.rows() {
            let out = self.out.row_mut(r).chunks_mut(S::LANES);
            for (x, out) in self.x.row(r).chunks(S::LANES).zip(out) {
                let v = s.max(s.zero(), s.load_partial(x));
                s.store_partial(s.mul(v, v), out);
            }
        }
    }
}

struct Relu2<'a>(MatMut<'a>);

impl WithSimd for Relu2<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for r in 0..self.0.rows() {
            for x in self.0.row_mut(r).chunks_mut(S::LANES) {
                // The value is the second operand: `max` keeps it where it is NaN.
                let v = s.max(s.zero(), s.load_partial(x));
                s.store_partial(s.mul(v, v), x);
            }
        }
    }
}

/// `x ← x + y`.
///
/// # Panics
/// If the shapes disagree.
pub fn add_assign(cpu: &Cpu, x: MatMut, y: MatRef) {
    assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "sum of two matrices");
    let (isa, operations) = (cpu.isa(), x.rows() * x.cols());
    let height = (VALUES_PER_PART / x.cols()).max(1);
    cpu.pool().for_parts_sized(operations, x.row_panels(height), |i, x| {
        let y = y.rows_at(i * height, x.rows());
        dispatch(isa, AddAssign { x, y });
    });
}

struct AddAssign<'a> {
    x: MatMut<'a>,
    y: MatRef<'a>,
}

impl WithSimd for AddAssign<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for r in 0..self.x.rows() {
            let x = self.x.row_mut(r).chunks_mut(S::LANES);
            for (x, y) in x.zip(self.y.row(r).chunks(S::LANES)) {
                s.store_partial(s.add(s.load_partial(x), s.load_partial(y)), x);
            }
        }
    }
}

/// `out ← x + y`.
///
/// # Panics
/// If the shapes disagree.
pub fn add_of(cpu: &Cpu, x: MatRef, y: MatRef, out: MatMut) {
    let shape = (out.rows(), out.cols());
    assert_eq!([(x.rows(), x.cols()), (y.rows(), y.cols())], [shape; 2], "sum of two matrices");
    let (isa, operations) = (cpu.isa(), x.rows() * x.cols());
    let height = (VALUES_PER_PART / x.cols()).max(1);
    cpu.pool().for_parts_sized(operations, out.row_panels(height), |i, out| {
        let [x, y] = [x, y].map(|m| m.rows_at(i * height, out.rows()));
        dispatch(isa, AddOf { x, y, out });
    });
}

struct AddOf<'a> {
    x: MatRef<'a>,
    y: MatRef<'a>,
    out: MatMut<'a>,
}

impl WithSimd for AddOf<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for r in 0..self.x.rows() {
            let out = self.out.row_mut(r).chunks_mut(S::LANES);
            let values = self.x.row(r).chunks(S::LANES).zip(self.y.row(r).chunks(S::LANES));
            for ((x, y), out) in values.zip(out) {
                s.store_partial(s.add(s.load_partial(x), s.load_partial(y)), out);
            }
        }
    }
}

/// `x ← x + y` of vectors.
///
/// # Panics
/// If the lengths disagree.
pub fn add_values(cpu: &Cpu, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "sum of two vectors");
    cpu.pool().for_parts_sized(x.len(), Chunks::new(x, VALUES_PER_PART), |i, x| {
        let y = &y[i * VALUES_PER_PART..][..x.len()];
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    });
}

/// `x ← 0` of a vector.
pub fn zero_values(cpu: &Cpu, x: &mut [f32]) {
    cpu.pool().for_parts_sized(x.len(), Chunks::new(x, VALUES_PER_PART), |_, x| x.fill(0.0));
}

/// `ln(1 + e^x)` = max(x, 0) + ln(1 + e^−|x|), NaN for NaN, within 3e-7 of its value.
///
/// The logarithm is the series of 2·artanh(z), z = e/(2 + e) ≤ 1/3: eight terms leave 2e-9.
#[inline(always)]
pub(crate) fn softplus<S: Simd>(s: S, x: S::V) -> S::V {
    // In `max` the second operand survives where it is NaN.
    let size = s.max(s.sub(s.zero(), x), x);
    let e = s.exp(s.sub(s.zero(), size));
    let z = s.div(e, s.add(s.splat(2.0), e));
    let square = s.mul(z, z);
    let mut p = s.splat(2.0 / 15.0);
    for k in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        p = s.fma(p, square, s.splat(2.0 / k));
    }
    s.fma(p, z, s.max(s.zero(), x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::ops::testing::{assert_near, assert_same_bits, on_every_cpu, values};

    #[test]
    fn relu2_agrees_with_the_formula_and_keeps_nan() {
        for (rows, cols) in [(0, 3), (1, 1), (5, 37), (40, 3000)] {
            let mut x = values(rows * (cols + 2), 1);
            if let Some(v) = x.first_mut() {
                *v = f32::NAN;
            }
            let width = cols + 2;
            for (isa, got) in on_every_cpu(|cpu| {
                let (mut in_place, mut out) = (x.clone(), x.clone());
                relu2(cpu, MatMut::new(&mut in_place, width).columns(0, cols));
                let to = MatMut::new(&mut out, width).columns(0, cols);
                relu2_of(cpu, MatRef::new(&x, width).columns(0, cols), to);
                assert_same_bits(&out, &in_place, "not in place");
                out
            }) {
                for (i, (&got, &x)) in got.iter().zip(&x).enumerate() {
                    let want =
                        if i % width >= cols || x.is_nan() { x } else { x.max(0.0) * x.max(0.0) };
                    assert!(got == want || (got.is_nan() && want.is_nan()), "{isa} {i}: {got}");
                }
            }
        }
    }

    #[test]
    fn relu2_backward_is_the_slope() {
        let (x, dx) = (values(5 * 37, 1), values(5 * 37, 2));
        for (isa, got) in on_every_cpu(|cpu| {
            let (mut dx, [mut out, mut want]) =
                (dx.clone(), [vec![0.0; 5 * 37], vec![0.0; 5 * 37]]);
            let x = MatRef::new(&x, 37);
            relu2_backward(cpu, x, MatMut::new(&mut out, 37), MatMut::new(&mut dx, 37));
            relu2_of(cpu, x, MatMut::new(&mut want, 37));
            assert_same_bits(&out, &want, "the value once more");
            dx
        }) {
            for (i, got) in got.iter().enumerate() {
                let (x, d, h) = (f64::from(x[i]), f64::from(dx[i]), 1e-4);
                let f = |x: f64| x.max(0.0).powi(2) * d;
                let want = (f(x + h) - f(x - h)) / (2.0 * h);
                assert!((f64::from(*got) - want).abs() < 1e-4, "{isa} {i}: {got} {want}");
            }
        }
    }

    #[test]
    fn add_assign_adds() {
        for (rows, cols) in [(0, 3), (1, 1), (5, 37), (40, 3000)] {
            let (x, y) = (values(rows * cols, 1), values(rows * (cols + 1), 2));
            let y = MatRef::new(&y, cols + 1).columns(1, cols);
            let want: Vec<f32> =
                (0..rows * cols).map(|i| x[i] + y.row(i / cols)[i % cols]).collect();
            for (isa, got) in on_every_cpu(|cpu| {
                let (mut sum, mut out) = (x.clone(), vec![0.0; x.len()]);
                add_assign(cpu, MatMut::new(&mut sum, cols), y);
                add_of(cpu, MatRef::new(&x, cols), y, MatMut::new(&mut out, cols));
                assert_same_bits(&out, &sum, "not in place");
                sum
            }) {
                assert_same_bits(&got, &want, &format!("{isa} {rows}×{cols}"));
            }
        }
    }

    #[test]
    fn vectors_are_added_and_emptied() {
        let (x, y) = (values(40_001, 1), values(40_001, 2));
        on_every_cpu(|cpu| {
            let (mut sum, mut none) = (x.clone(), x.clone());
            add_values(cpu, &mut sum, &y);
            zero_values(cpu, &mut none);
            assert!(sum.iter().zip(x.iter().zip(&y)).all(|(sum, (x, y))| *sum == x + y));
            assert!(none.iter().all(|v| *v == 0.0));
            sum
        });
    }

    struct Softplus<'a>(&'a mut [f32]);

    impl WithSimd for Softplus<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for x in self.0.chunks_mut(S::LANES) {
                s.store_partial(softplus(s, s.load_partial(x)), x);
            }
        }
    }

    #[test]
    fn softplus_is_accurate_everywhere() {
        let x: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.02).collect();
        for isa in Isa::available() {
            let mut y = x.clone();
            dispatch(isa, Softplus(&mut y));
            for (x, y) in x.iter().zip(&y) {
                let want = f64::from(*x).exp().ln_1p();
                assert_near(&[y / want as f32], &[1.0], 3e-7, &format!("{isa}: softplus({x})"));
            }
            let mut edges = [-1e4, 1e30, f32::NEG_INFINITY, f32::INFINITY, f32::NAN];
            dispatch(isa, Softplus(&mut edges));
            assert_eq!(edges[..4], [0.0, 1e30, 0.0, f32::INFINITY], "{isa}");
            assert!(edges[4].is_nan(), "{isa}");
        }
    }
}

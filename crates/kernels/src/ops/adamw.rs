//! The AdamW step and the norm of a gradient, over flat slices of f32.
//!
//! [`adamw`], with g = `gradient_scale` · gradient and step number t from 1:
//!
//! ```text
//! m ← β₁·m + (1 − β₁)·g           v ← β₂·v + (1 − β₂)·g²
//! p ← p − lr·λ·p − lr · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)
//! ```
//! Decay is decoupled: λ shrinks p and touches no moment. Only IEEE operations that every
//! instruction set rounds alike are used (no fused product and sum), so the step has the same bits
//! on all of them. [`sum_of_squares`] adds in f64: [`BLOCK`] values at a time in eight lanes, then
//! the blocks in order, so that a vector cut at multiples of `BLOCK` can be summed in parts.
//!
//! Source: Loshchilov and Hutter 2019, algorithm 2; the order of operations is PyTorch's.

use crate::Cpu;
use crate::buffer::Chunks;
use crate::simd::{Simd, WithSimd, dispatch};

/// Values of a block of [`sum_of_squares`], and that a worker takes at a time.
pub const BLOCK: usize = 4096;

/// The numbers of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate.
    pub lr: f32,
    /// β₁ and β₂.
    pub betas: (f32, f32),
    /// ε.
    pub eps: f32,
    /// λ; 0 where nothing decays.
    pub weight_decay: f32,
    /// t: 1 for the first step.
    pub step: u64,
    /// Factor on the gradient, such as that of clipping.
    pub gradient_scale: f32,
}

/// One step of AdamW; `exp_avg` is m, `exp_avg_sq` is v.
///
/// # Panics
/// If the lengths differ or the step is 0.
pub fn adamw(
    cpu: &Cpu,
    step: &AdamWStep,
    parameters: &mut [f32],
    gradient: &[f32],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
) {
    let len = parameters.len();
    assert_eq!([gradient.len(), exp_avg.len(), exp_avg_sq.len()], [len; 3], "AdamW: lengths");
    let (isa, factors) = (cpu.isa(), Factors::of(step));
    let moments = (Chunks::new(exp_avg, BLOCK), Chunks::new(exp_avg_sq, BLOCK));
    let parts = (Chunks::new(parameters, BLOCK), moments);
    cpu.pool().for_parts_sized(16 * len, parts, |i, (p, (m, v))| {
        let g = &gradient[i * BLOCK..i * BLOCK + p.len()];
        dispatch(isa, Update { factors, p, g, m, v });
    });
}

/// What is the same for every value.
#[derive(Clone, Copy)]
struct Factors {
    scale: f32,
    /// 1 − lr·λ.
    keep: f32,
    betas: (f32, f32),
    /// 1 − β₁ and 1 − β₂.
    rest: (f32, f32),
    /// lr / (1 − β₁ᵗ).
    rate: f32,
    /// √(1 − β₂ᵗ).
    root: f32,
    eps: f32,
}

impl Factors {
    fn of(step: &AdamWStep) -> Self {
        assert!(step.step > 0, "the first step is 1");
        // In f64, as PyTorch computes them.
        let (b1, b2) = (f64::from(step.betas.0), f64::from(step.betas.1));
        let power = |b: f64| 1.0 - b.powf(step.step as f64);
        let lr = f64::from(step.lr);
        Self {
            scale: step.gradient_scale,
            keep: (1.0 - lr * f64::from(step.weight_decay)) as f32,
            betas: step.betas,
            rest: ((1.0 - b1) as f32, (1.0 - b2) as f32),
            rate: (lr / power(b1)) as f32,
            root: power(b2).sqrt() as f32,
            eps: step.eps,
        }
    }
}

struct Update<'a> {
    factors: Factors,
    p: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl WithSimd for Update<'_> {
    type Output = ();

    /// A plain loop, which the compiler turns into vectors of the instruction set it is compiled
    /// for; the root is why it is not written against [`Simd`].
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let f = self.factors;
        let values = self.p.iter_mut().zip(self.g).zip(self.m.iter_mut().zip(self.v.iter_mut()));
        for ((p, g), (m, v)) in values {
            let g = g * f.scale;
            *m = f.betas.0 * *m + f.rest.0 * g;
            *v = f.betas.1 * *v + f.rest.1 * (g * g);
            *p = *p * f.keep - f.rate * (*m / (v.sqrt() / f.root + f.eps));
        }
    }
}

/// Σ x², in f64 and in an order that depends on the length alone; not finite if a value is not.
#[must_use]
pub fn sum_of_squares(cpu: &Cpu, values: &[f32]) -> f64 {
    squares_of_blocks(cpu, values).iter().sum()
}

/// Σ x² of every [`BLOCK`] values, which [`sum_of_squares`] adds in order.
#[must_use]
pub fn squares_of_blocks(cpu: &Cpu, values: &[f32]) -> Vec<f64> {
    let mut sums = vec![0.0f64; values.len().div_ceil(BLOCK)];
    let isa = cpu.isa();
    cpu.pool().for_parts_sized(2 * values.len(), Chunks::new(&mut sums, 1), |i, sum| {
        let end = values.len().min((i + 1) * BLOCK);
        sum[0] = dispatch(isa, Squares(&values[i * BLOCK..end]));
    });
    sums
}

struct Squares<'a>(&'a [f32]);

impl WithSimd for Squares<'_> {
    type Output = f64;

    /// A plain loop, as in [`Update`]: products of f32 are exact in f64.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f64 {
        let mut lanes = [0.0f64; 8];
        let blocks = self.0.chunks_exact(8);
        let rest = blocks.remainder();
        for block in blocks {
            for i in 0..8 {
                lanes[i] += f64::from(block[i]) * f64::from(block[i]);
            }
        }
        for (lane, value) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(*value) * f64::from(*value);
        }
        lanes.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_near, assert_same_bits, on_every_cpu, values};

    /// The formula in f64 over several steps: parameters, m, v.
    fn naive(hyper: AdamWStep, steps: u64, p: &[f32], g: &[f32]) -> Vec<f64> {
        let (b1, b2) = (f64::from(hyper.betas.0), f64::from(hyper.betas.1));
        let (lr, decay) = (f64::from(hyper.lr), f64::from(hyper.weight_decay));
        let mut p: Vec<f64> = p.iter().map(|v| f64::from(*v)).collect();
        let (mut m, mut v) = (vec![0.0; p.len()], vec![0.0; p.len()]);
        for t in 1..=steps {
            for i in 0..p.len() {
                let g = f64::from(g[i]) * f64::from(hyper.gradient_scale) * t as f64;
                m[i] = b1 * m[i] + (1.0 - b1) * g;
                v[i] = b2 * v[i] + (1.0 - b2) * g * g;
                let (mean, square) =
                    (m[i] / (1.0 - b1.powi(t as i32)), v[i] / (1.0 - b2.powi(t as i32)));
                p[i] -= lr * decay * p[i];
                p[i] -= lr * mean / (square.sqrt() + f64::from(hyper.eps));
            }
        }
        [p, m, v].concat()
    }

    #[test]
    fn steps_agree_with_the_formula_and_have_the_same_bits_everywhere() {
        for (len, weight_decay) in [(1, 0.0), (37, 0.1), (3 * BLOCK + 5, 0.1)] {
            let hyper = AdamWStep {
                lr: 3e-2,
                betas: (0.9, 0.95),
                eps: 1e-8,
                weight_decay,
                step: 1,
                gradient_scale: 0.25,
            };
            let (p, g) = (values(len, 1), values(len, 2));
            let results = on_every_cpu(|cpu| {
                let (mut p, mut m, mut v) = (p.clone(), vec![0.0; len], vec![0.0; len]);
                for step in 1..=5u64 {
                    let g: Vec<f32> = g.iter().map(|g| g * step as f32).collect();
                    adamw(cpu, &AdamWStep { step, ..hyper }, &mut p, &g, &mut m, &mut v);
                }
                [p, m, v].concat()
            });
            for (isa, got) in &results {
                assert_near(got, &naive(hyper, 5, &p, &g), 2e-6, &format!("{isa} {len}"));
                assert_same_bits(got, &results[0].1, &format!("{isa} {len}"));
            }
        }
    }

    #[test]
    fn squares_are_summed_in_one_order_and_in_parts() {
        for len in [0, 1, 7, BLOCK - 1, 9 * BLOCK + 13] {
            let x = values(len, 3);
            let want: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
            let bits = on_every_cpu(|cpu| {
                let sum = sum_of_squares(cpu, &x);
                assert!((sum - want).abs() <= 1e-13 * want, "{len}: {sum} ≠ {want}");
                let bits = sum.to_bits();
                vec![f32::from_bits((bits >> 32) as u32), f32::from_bits(bits as u32)]
            });
            for (isa, got) in &bits {
                assert_same_bits(got, &bits[0].1, &format!("{isa} {len}"));
            }
        }
    }

    #[test]
    fn a_bad_value_shows_in_the_sum() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = values(3 * BLOCK, 3);
            x[2 * BLOCK + 17] = bad;
            for isa in crate::Isa::available() {
                assert!(!sum_of_squares(&Cpu::new(isa, 2), &x).is_finite(), "{isa} {bad}");
            }
        }
        let large = vec![f32::MAX; 10];
        assert!(sum_of_squares(&Cpu::new(crate::Isa::best(), 1), &large).is_finite());
    }
}

//! Encoding to IQ4_NL: 4.5 bits per value for every row length that 32 divides.
//!
//! A block of 32 values holds a scale d (f16) and 16 levels that lie denser around zero, as
//! weights do. Among [`TRIALS`] scales that map the largest value near an end of the levels, the
//! one of least squared error wins: for each, values go to their nearest level and d is refitted,
//! `d = Σ x·l / Σ l²`. No calibration data enters.
//!
//! Format: ggml's IQ4_NL (`kvalues_iq4nl`); the search is our own.

use crate::isa::Isa;
use crate::ops::quantize::IQ4_NL_LEVELS;
use crate::simd::{Simd, WithSimd, dispatch};
use half::f16;

/// Values of a block.
const LEN: usize = 32;
/// Scales tried for each sign.
const TRIALS: usize = 12;

/// Encodes whole blocks of 32 values to 18 bytes each.
///
/// # Panics
/// If the lengths disagree.
pub(crate) fn encode(x: &[f32], out: &mut [u8]) {
    let (blocks, rest) = x.as_chunks::<LEN>();
    let (bytes, left) = out.as_chunks_mut::<18>();
    assert!(rest.is_empty() && left.is_empty() && blocks.len() == bytes.len(), "whole blocks");
    dispatch(Isa::best(), Encode(blocks, bytes));
}

struct Encode<'a>(&'a [[f32; LEN]], &'a mut [[u8; 18]]);

impl WithSimd for Encode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (x, b) in self.0.iter().zip(self.1) {
            block(x, b);
        }
    }
}

#[inline(always)]
fn block(x: &[f32; LEN], b: &mut [u8; 18]) {
    let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let (mut best, mut best_gain) = (0.0, 0.0);
    if largest > 0.0 && largest.is_finite() {
        for trial in 0..2 * TRIALS {
            let sign = if trial % 2 == 0 { 1.0 } else { -1.0 };
            // The largest value lands between levels 0.8 and 1.15 times the outermost.
            let end = 127.0 * (0.8 + 0.35 * (trial / 2) as f32 / (TRIALS - 1) as f32);
            let (d, gain) = fit(x, sign * end / largest);
            if gain > best_gain {
                (best, best_gain) = (d, gain);
            }
        }
    }
    let d = f16::from_f32(best);
    b[..2].copy_from_slice(&d.to_le_bytes());
    let d = d.to_f32();
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let mut q = [0u8; LEN];
    for (q, x) in q.iter_mut().zip(x) {
        *q = nearest(x * inverse).0;
    }
    for j in 0..LEN / 2 {
        b[2 + j] = q[j] | q[j + LEN / 2] << 4;
    }
}

/// The least-squares scale for the levels that `inverse` assigns, and by how much it lowers the
/// squared error: `(Σ x·l)² / Σ l²`.
#[inline(always)]
fn fit(x: &[f32; LEN], inverse: f32) -> (f32, f32) {
    let mut levels = [0.0; LEN];
    for (l, x) in levels.iter_mut().zip(x) {
        *l = nearest(x * inverse).1;
    }
    // Eight sums of four: a fixed order that vectorizes.
    let (mut products, mut squares) = ([0.0; 8], [0.0; 8]);
    for i in 0..LEN {
        products[i % 8] += x[i] * levels[i];
        squares[i % 8] += levels[i] * levels[i];
    }
    let (product, square) = (products.iter().sum::<f32>(), squares.iter().sum::<f32>());
    if square > 0.0 { (product / square, product * product / square) } else { (0.0, 0.0) }
}

/// Index and value of the level next to `v`.
#[inline(always)]
fn nearest(v: f32) -> (u8, f32) {
    let (mut index, mut level) = (0u8, f32::from(IQ4_NL_LEVELS[0]));
    for k in 1..16 {
        let (low, high) = (f32::from(IQ4_NL_LEVELS[k - 1]), f32::from(IQ4_NL_LEVELS[k]));
        let above = v > 0.5 * (low + high);
        index += u8::from(above);
        level += if above { high - low } else { 0.0 };
    }
    (index, level)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::ops::quantize::{dequantize_row, quantize_row};
    use crate::ops::testing::values;

    fn squared_error(dtype: DType, x: &[f32]) -> f64 {
        let mut data = vec![0; dtype.row_bytes(x.len()).unwrap()];
        let mut back = vec![0.0; x.len()];
        quantize_row(dtype, x, &mut data);
        dequantize_row(Isa::Scalar, dtype, &data, &mut back);
        x.iter().zip(&back).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    }

    /// Sums of uniform values are near the normal distribution of weights.
    #[test]
    fn the_error_on_normal_weights_is_clearly_below_q4_0() {
        let parts: Vec<Vec<f32>> = (0..8).map(|i| values(32 * 400, i)).collect();
        let x: Vec<f32> = (0..32 * 400).map(|i| parts.iter().map(|p| p[i]).sum()).collect();
        let [ours, q4_0] = [DType::Iq4Nl, DType::Q4_0].map(|d| squared_error(d, &x));
        assert!(ours < 0.75 * q4_0, "{ours} against {q4_0}");
    }

    #[test]
    fn values_on_the_levels_come_back_exactly_and_odd_blocks_are_sane() {
        let d = 0.03125f32;
        let x: Vec<f32> = (0..32).map(|i| d * f32::from(IQ4_NL_LEVELS[(i * 7 + 3) % 16])).collect();
        assert_eq!(squared_error(DType::Iq4Nl, &x), 0.0);
        let negated: Vec<f32> = x.iter().map(|v| -v).collect();
        assert_eq!(squared_error(DType::Iq4Nl, &negated), 0.0);
        assert_eq!(squared_error(DType::Iq4Nl, &[0.0; 32]), 0.0);
        let mut one = [0.0; 32];
        one[9] = -3.0;
        // The format has no zero: the level next to it is 1 of 127.
        assert!(squared_error(DType::Iq4Nl, &one) < 32.0 * (3.0f64 / 100.0).powi(2));
    }
}

//! The product of rows of bf16 with packed panels of bf16 on a matrix unit, sums in f32.
//!
//! The unit adds up tiles of 16 pairs along k in ascending order for any number of rows, so bits
//! depend on the two rows alone. They differ from those of [`super::bf16`], which has another order.
//!
//! Blocking: few rows go through a pair of panels from end to end, so that weights are one stream.
//! With many rows a chunk of all rows stays in the second cache while it meets a worker's panels,
//! and a chunk of two panels in the first.

use super::format::{GROUP_BYTES, ROWS};
use super::{Epilogue, finish};
use crate::arch::tiles::{COLUMNS, PairRows, Start, Tiles};
use crate::buffer::{MatMut, on_line};
use crate::ops::q8_rows::Bf16Rows;
use crate::simd::{Simd, WithSimd};

/// Up to so many rows weights are read in one stream.
pub(crate) const FEW_ROWS: usize = 32;
/// Most sums of a part of several pairs of panels: 128 KiB, which nobody counts.
pub(crate) const MOST_SUMS: usize = 1 << 15;
/// Pairs of a chunk for more rows; whole tiles.
const CHUNK_PAIRS: usize = 256;

/// Some panels against all rows of activations.
pub(crate) struct Panels<'a> {
    pub(crate) tiles: Tiles,
    pub(crate) x: &'a Bf16Rows,
    /// The panels' bytes.
    pub(crate) data: &'a [u8],
    /// The panels' columns of the output.
    pub(crate) out: MatMut<'a>,
    pub(crate) epilogue: Epilogue,
    pub(crate) sums: &'a mut Vec<f32>,
}

impl WithSimd for Panels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { tiles, x, data, mut out, epilogue, sums } = self;
        let (rows, pairs) = (x.rows(), x.cols().div_ceil(2));
        let bytes = pairs * GROUP_BYTES;
        let count = data.len() / bytes;
        let width = (count * ROWS).next_multiple_of(COLUMNS);
        let sums = on_line(sums, rows * width);
        let chunk = if rows > FEW_ROWS { CHUNK_PAIRS } else { pairs };
        let x: &[u8] = bytemuck::cast_slice(x.words());
        for from in (0..pairs).step_by(chunk) {
            let here = chunk.min(pairs - from);
            let a = PairRows { bytes: &x[4 * from..], stride: 4 * pairs };
            for first in (0..count).step_by(2) {
                // A last panel without a partner is multiplied twice.
                let b = [first, (first + 1).min(count - 1)].map(|panel| PairRows {
                    bytes: &data[panel * bytes + from * GROUP_BYTES..][..here * GROUP_BYTES],
                    stride: GROUP_BYTES,
                });
                let sums = MatMut::new(sums, width).columns(first * ROWS, COLUMNS);
                let start = if from == 0 { Start::Zero } else { Start::Output };
                tiles.multiply(here, a, b, sums, start);
            }
        }
        for (t, sums) in sums.chunks_exact(width).enumerate() {
            let to = out.row_mut(t).chunks_mut(S::LANES);
            for (sums, to) in sums.chunks_exact(S::LANES).zip(to) {
                finish(s, s.load(sums), epilogue, to);
            }
        }
    }
}

//! Activations rounded to int8 or bf16, once for all the matrices that read them.
//!
//! **int8**: every 32 values of a row share a scale, `d = max |x| / 127`, `q = round(x / d)` with
//! ties to even (ggml's Q8_0 with the scale in f32). Beside the bytes lie what products with
//! unsigned weights need: `−8 Σ q` of every 16 and every 32 values, exact, and `d Σ q`.
//! A value that is not finite makes its scale NaN, so that it reaches every product of its row.
//!
//! **bf16**: rounded to nearest, ties to even; two values to a word.
//!
//! Invariants: a row depends on its own values alone. Columns beyond the row's end are zeros. The
//! buffers only grow, so rows of a size seen before allocate nothing.

use crate::Cpu;
use crate::buffer::{Chunks, MatRef, line_start, on_line};
use crate::simd::{Simd, WithSimd, bf16_bits, dispatch};

/// Values that share a scale.
pub const BLOCK: usize = 32;
/// 32-bit words of a block of bytes.
pub(crate) const WORDS: usize = BLOCK / 4;

/// Values that a worker takes at a time, rounded to rows.
const VALUES_PER_PART: usize = 16 * 1024;

/// Rows of int8, `[T, K]` with K rounded up to a whole block.
#[derive(Default)]
pub struct Q8Rows {
    rows: usize,
    cols: usize,
    /// Four values to a word.
    words: Vec<u32>,
    /// d and d Σ q of every block.
    factors: Vec<[f32; 2]>,
    /// −8 Σ q of every block.
    offsets: Vec<i32>,
    /// −8 Σ q of every half block.
    half_offsets: Vec<i32>,
}

impl Q8Rows {
    /// Rounds the rows of `x`.
    pub fn quantize(&mut self, cpu: &Cpu, x: MatRef) {
        let (rows, cols) = (x.rows(), x.cols());
        let blocks = cols.div_ceil(BLOCK);
        (self.rows, self.cols) = (rows, cols);
        let words = on_line(&mut self.words, rows * blocks * WORDS);
        grow(&mut self.factors, rows * blocks);
        grow(&mut self.offsets, rows * blocks);
        grow(&mut self.half_offsets, rows * blocks * 2);
        let height = (VALUES_PER_PART / cols.max(1)).max(1);
        let part = height * blocks;
        let parts = (
            (
                Chunks::new(words, part * WORDS),
                Chunks::new(&mut self.factors[..rows * blocks], part),
            ),
            (
                Chunks::new(&mut self.offsets[..rows * blocks], part),
                Chunks::new(&mut self.half_offsets[..rows * blocks * 2], part * 2),
            ),
        );
        let isa = cpu.isa();
        let task = |i: usize, ((words, factors), (offsets, half_offsets))| {
            let first = i * height;
            dispatch(isa, Quantize { x, first, words, factors, offsets, half_offsets });
        };
        cpu.pool().for_parts_sized(rows * cols * 4, parts, task);
    }

    /// T.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// K.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All rows.
    pub(crate) fn view(&self) -> Q8View<'_> {
        let blocks = self.rows * self.cols.div_ceil(BLOCK);
        Q8View {
            rows: self.rows,
            blocks: self.cols.div_ceil(BLOCK),
            words: &self.words[line_start(&self.words)..][..blocks * WORDS],
            factors: &self.factors[..blocks],
            offsets: &self.offsets[..blocks],
            half_offsets: &self.half_offsets[..2 * blocks],
        }
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let words = self.words.capacity() + 2 * self.factors.capacity();
        4 * (words + self.offsets.capacity() + self.half_offsets.capacity())
    }
}

fn grow<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.reserve_exact(len - buffer.len());
        buffer.resize(len, T::default());
    }
}

/// Some rows that follow each other; see [`Q8Rows`].
#[derive(Clone, Copy)]
pub(crate) struct Q8View<'a> {
    pub(crate) rows: usize,
    /// Blocks of a row.
    pub(crate) blocks: usize,
    /// The bytes of all rows, one after the other.
    pub(crate) words: &'a [u32],
    /// d and d Σ q of the blocks of all rows.
    pub(crate) factors: &'a [[f32; 2]],
    offsets: &'a [i32],
    half_offsets: &'a [i32],
}

impl<'a> Q8View<'a> {
    /// Row `r`.
    #[inline(always)]
    pub(crate) fn row(&self, r: usize) -> Q8Row<'a> {
        let Q8View { words, factors, offsets, half_offsets, .. } = self.rows_at(r, 1);
        Q8Row { words, factors, offsets, half_offsets }
    }

    /// The rows `from .. from + rows`.
    #[inline(always)]
    pub(crate) fn rows_at(&self, from: usize, rows: usize) -> Self {
        let at = from * self.blocks..(from + rows) * self.blocks;
        Self {
            rows,
            blocks: self.blocks,
            words: &self.words[at.start * WORDS..at.end * WORDS],
            factors: &self.factors[at.clone()],
            half_offsets: &self.half_offsets[at.start * 2..at.end * 2],
            offsets: &self.offsets[at],
        }
    }
}

/// One row; see [`Q8Rows`].
#[derive(Clone, Copy)]
pub(crate) struct Q8Row<'a> {
    pub(crate) words: &'a [u32],
    pub(crate) factors: &'a [[f32; 2]],
    pub(crate) offsets: &'a [i32],
    pub(crate) half_offsets: &'a [i32],
}

struct Quantize<'a> {
    x: MatRef<'a>,
    /// First row.
    first: usize,
    words: &'a mut [u32],
    factors: &'a mut [[f32; 2]],
    offsets: &'a mut [i32],
    half_offsets: &'a mut [i32],
}

impl WithSimd for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let blocks = self.x.cols().div_ceil(BLOCK);
        for (i, [scale, sum]) in self.factors.iter_mut().enumerate() {
            let (row, from) = (self.x.row(self.first + i / blocks), i % blocks * BLOCK);
            let words: &mut [u8] = bytemuck::cast_slice_mut(&mut self.words[i * WORDS..][..WORDS]);
            let half: [f32; 2] = if from + BLOCK <= row.len() {
                block(s, &row[from..from + BLOCK], scale, words)
            } else {
                let mut last = [0.0; BLOCK];
                last[..row.len() - from].copy_from_slice(&row[from..]);
                block(s, &last, scale, words)
            };
            if cfg!(target_endian = "big") {
                self.words[i * WORDS..][..WORDS].iter_mut().for_each(|w| *w = w.swap_bytes());
            }
            *sum = *scale * (half[0] + half[1]);
            self.half_offsets[2 * i] = -8 * half[0] as i32;
            self.half_offsets[2 * i + 1] = -8 * half[1] as i32;
            self.offsets[i] = self.half_offsets[2 * i] + self.half_offsets[2 * i + 1];
        }
    }
}

/// One block; returns Σ q of its halves.
#[inline(always)]
fn block<S: Simd>(s: S, x: &[f32], scale: &mut f32, bytes: &mut [u8]) -> [f32; 2] {
    // `x · 0` is NaN where x is not finite, whatever the maximum made of it.
    let (mut largest, mut poison) = (s.zero(), s.zero());
    for part in x.chunks_exact(S::LANES) {
        let v = s.load(part);
        largest = s.max(largest, s.max(v, s.sub(s.zero(), v)));
        poison = s.fma(v, s.zero(), poison);
    }
    let largest = s.max_lane(largest);
    *scale = largest / 127.0 + s.sum(poison);
    // Of values so small that the quotient is infinite nothing is left.
    let inverse = s.splat(if largest > 127.0 / f32::MAX { 127.0 / largest } else { 0.0 });
    let limit = s.splat(127.0);
    let mut half = [s.zero(); 2];
    let parts = x.chunks_exact(S::LANES).zip(bytes.chunks_exact_mut(S::LANES));
    for (i, (part, to)) in parts.enumerate() {
        // The limit is the second operand: a NaN becomes a number, and the scale is NaN already.
        let q = s.min(s.round(s.mul(s.load(part), inverse)), limit);
        s.store_i8(q, to);
        half[i * S::LANES / 16] = s.add(half[i * S::LANES / 16], q);
    }
    [s.sum(half[0]), s.sum(half[1])]
}

/// Rows of bf16, `[T, K]` with K rounded up to an even number.
#[derive(Default)]
pub struct Bf16Rows {
    rows: usize,
    cols: usize,
    /// Two values to a word, the first in the low half.
    words: Vec<u32>,
}

impl Bf16Rows {
    /// Rounds the rows of `x`.
    pub fn round(&mut self, cpu: &Cpu, x: MatRef) {
        (self.rows, self.cols) = (x.rows(), x.cols());
        let width = x.cols().div_ceil(2);
        let words = on_line(&mut self.words, x.rows() * width);
        let height = (VALUES_PER_PART / x.cols().max(1)).max(1);
        let parts = Chunks::new(words, height * width);
        let isa = cpu.isa();
        cpu.pool().for_parts_sized(x.rows() * x.cols() * 2, parts, |i, words| {
            dispatch(isa, RoundRows { x, first: i * height, words });
        });
    }

    /// T.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// K.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The words of row `r`.
    #[inline(always)]
    pub(crate) fn row(&self, r: usize) -> &[u32] {
        let width = self.cols.div_ceil(2);
        &self.words()[r * width..(r + 1) * width]
    }

    /// All rows, one after the other.
    pub(crate) fn words(&self) -> &[u32] {
        &self.words[line_start(&self.words)..][..self.rows * self.cols.div_ceil(2)]
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        4 * self.words.capacity()
    }
}

struct RoundRows<'a> {
    x: MatRef<'a>,
    /// First row.
    first: usize,
    words: &'a mut [u32],
}

impl WithSimd for RoundRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (r, to) in self.words.chunks_mut(self.x.cols().div_ceil(2)).enumerate() {
            round_pairs(s, self.x.row(self.first + r), to);
        }
    }
}

/// Values that lie side by side as pairs of bf16; a zero behind an odd one.
#[inline(always)]
pub(crate) fn round_pairs<S: Simd>(s: S, values: &[f32], to: &mut [u32]) {
    let halves: &mut [u16] = bytemuck::cast_slice_mut(to);
    let whole = values.len() - values.len() % S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        s.store_bf16(s.load(&values[at..]), &mut halves[at..]);
    }
    for (v, to) in values[whole..].iter().zip(&mut halves[whole..]) {
        *to = bf16_bits(*v);
    }
    if values.len() % 2 == 1 {
        halves[values.len()] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{on_every_cpu, values};

    fn quantized(cpu: &Cpu, x: MatRef) -> Q8Rows {
        let mut q = Q8Rows::default();
        q.quantize(cpu, x);
        q
    }

    #[test]
    fn rows_are_near_and_sums_are_exact_on_every_isa() {
        let (rows, cols) = (13, 75);
        let x = values(rows * (cols + 3), 1);
        let x = MatRef::new(&x, cols + 3).columns(2, cols);
        let all = on_every_cpu(|cpu| {
            let q = quantized(cpu, x);
            let mut out = Vec::new();
            for r in 0..rows {
                let row = q.view().row(r);
                let bytes: &[i8] = bytemuck::cast_slice(row.words);
                assert_eq!(bytes.len(), 96);
                for (b, bytes) in bytes.chunks(BLOCK).enumerate() {
                    let sum = |bytes: &[i8]| bytes.iter().map(|&v| i32::from(v)).sum::<i32>();
                    assert_eq!(row.offsets[b], -8 * sum(bytes));
                    assert_eq!(row.half_offsets[2 * b + 1], -8 * sum(&bytes[16..]));
                    assert_eq!(row.factors[b][1], row.factors[b][0] * sum(bytes) as f32);
                }
                for (i, &v) in bytes.iter().enumerate() {
                    let d = row.factors[i / BLOCK][0];
                    let want = if i < cols { x.row(r)[i] } else { 0.0 };
                    assert!((f32::from(v) * d - want).abs() <= 0.5001 * d, "{r} {i}");
                    out.push(f32::from(v) * d);
                }
            }
            out
        });
        assert!(all.windows(2).all(|w| w[0].1 == w[1].1), "every ISA rounds alike");
    }

    #[test]
    fn a_bad_value_poisons_its_block_and_zeros_stay_zero() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![0.0; 96];
            (x[3], x[40]) = (1.0, bad);
            for (isa, scales) in on_every_cpu(|cpu| {
                let factors = &quantized(cpu, MatRef::new(&x, 96)).factors;
                factors.iter().map(|[scale, _]| *scale).collect()
            }) {
                assert!(scales[1].is_nan() && scales[2] == 0.0, "{isa} {bad}: {scales:?}");
                assert!((scales[0] - 1.0 / 127.0).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn the_smallest_values_become_zeros() {
        let x: Vec<f32> = (0..32).map(|i| (i - 16) as f32 * 1e-39).collect();
        on_every_cpu(|cpu| {
            let q = quantized(cpu, MatRef::new(&x, 32));
            let row = q.view().row(0);
            assert!(row.words.iter().all(|w| *w == 0), "{:x?}", row.words);
            assert_eq!((row.factors[0][1], row.offsets), (0.0, &[0][..]));
            vec![row.factors[0][0]]
        });
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        let mut x = values(4 * 33, 5);
        (x[0], x[1], x[2]) = (f32::NAN, 1e-40, f32::INFINITY);
        for (isa, words) in on_every_cpu(|cpu| {
            let mut rows = Bf16Rows::default();
            rows.round(cpu, MatRef::new(&x, 33));
            (0..4).flat_map(|r| rows.row(r).to_vec()).map(f32::from_bits).collect::<Vec<_>>()
        }) {
            for (r, row) in words.chunks(17).enumerate() {
                for i in 0..34 {
                    let got =
                        half::bf16::from_bits((row[i / 2].to_bits() >> (16 * (i % 2))) as u16);
                    let want = half::bf16::from_f32(if i < 33 { x[r * 33 + i] } else { 0.0 });
                    assert!(got == want || got.is_nan() && want.is_nan(), "{isa} {r} {i}");
                }
            }
        }
    }
}

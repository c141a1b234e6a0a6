//! `out = x · wᵀ`: x is \[T, K\] f32, w is \[N, K\] in any weight format, out is \[T, N\] f32.
//!
//! Weights decode to f32 exactly and products accumulate in f32. K is cut into blocks of
//! `BLOCK_K`; within a block the lanes of one vector take every `LANES`-th product and are added
//! in a fixed order at its end; block sums are added in order. **So an output's bits depend on its
//! row of x, its row of w and the instruction set alone** — not on T, on the tile it fell in or
//! on the number of threads: a GEMV is the same sum as a row of a GEMM.
//!
//! Blocking: a worker takes a panel of `PANEL` rows of w, decodes one K block of it into a
//! scratch that stays in L2, and multiplies register tiles of rows of x with rows of w.

use crate::buffer::{MatMut, MatRef};
use crate::dtype::{DType, WeightRef};
use crate::ops::quantize::decode;
use crate::simd::{Simd, WithSimd, array, dispatch};
use crate::{Cpu, Isa};
use std::cell::RefCell;

/// Length of a block of the reduction; a multiple of every format's block.
const BLOCK_K: usize = 1024;
/// Rows of w that a worker handles together.
const PANEL: usize = 32;
/// Below this many multiply-adds the call stays on the calling thread.
const INLINE_WORK: usize = 32 * 1024;

thread_local! {
    /// Decoded panel of one worker: PANEL × BLOCK_K values.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `out = x · wᵀ`.
///
/// # Panics
/// If the shapes disagree: x `[T, K]`, w `[N, K]`, out `[T, N]`.
pub fn gemm(cpu: &Cpu, x: MatRef, w: WeightRef, out: MatMut) {
    assert_eq!((x.cols(), w.rows()), (w.cols(), out.cols()), "x·wᵀ: reduction and columns");
    assert_eq!(x.rows(), out.rows(), "x·wᵀ: rows");
    if x.rows() == 0 {
        return;
    }
    let isa = cpu.isa();
    let parallel = x.rows() * w.rows() * w.cols() > INLINE_WORK;
    if parallel {
        let task = |i, out| panel(isa, x, w, i * PANEL, out);
        cpu.pool().for_parts(out.column_panels(PANEL), task);
    } else {
        let mut out = out;
        for from in (0..w.rows()).step_by(PANEL) {
            let cols = PANEL.min(w.rows() - from);
            panel(isa, x, w, from, out.reborrow().columns(from, cols));
        }
    }
}

fn panel(isa: Isa, x: MatRef, w: WeightRef, from: usize, out: MatMut) {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.resize(PANEL * BLOCK_K, 0.0);
        dispatch(isa, Panel { x, w, from, out, scratch });
    });
}

struct Panel<'a> {
    x: MatRef<'a>,
    w: WeightRef<'a>,
    /// First row of w.
    from: usize,
    /// The columns of the output that belong to the panel.
    out: MatMut<'a>,
    scratch: &'a mut [f32],
}

impl WithSimd for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for k in (0..self.w.cols()).step_by(BLOCK_K) {
            let len = BLOCK_K.min(self.w.cols() - k);
            self.decode_block(k, len);
            if const { S::REGISTERS >= 32 } {
                self.rows::<S, 6>(s, k, len);
            } else {
                self.rows::<S, 3>(s, k, len);
            }
        }
    }
}

impl Panel<'_> {
    #[inline(always)]
    fn decode_block(&mut self, k: usize, len: usize) {
        for r in 0..self.out.cols() {
            let data = self.w.row_part(self.from + r, k, len);
            let row = &mut self.scratch[r * BLOCK_K..r * BLOCK_K + len];
            match (self.w.dtype(), bytemuck::try_cast_slice(data)) {
                (DType::F32, Ok(values)) if cfg!(target_endian = "little") => {
                    row.copy_from_slice(values);
                }
                (dtype, _) => decode(dtype, data, row),
            }
        }
    }

    /// All rows of x in tiles of `M`, then one by one.
    #[inline(always)]
    fn rows<S: Simd, const M: usize>(&mut self, s: S, k: usize, len: usize) {
        let mut t = 0;
        while t + M <= self.x.rows() {
            self.columns::<S, M, 4>(s, t, k, len);
            t += M;
        }
        while t < self.x.rows() {
            // One row: more rows of w at a time, to hide the latency of the additions.
            if const { S::REGISTERS >= 32 } {
                self.columns::<S, 1, 8>(s, t, k, len);
            } else {
                self.columns::<S, 1, 4>(s, t, k, len);
            }
            t += 1;
        }
    }

    #[inline(always)]
    fn columns<S: Simd, const M: usize, const N: usize>(
        &mut self,
        s: S,
        t: usize,
        k: usize,
        len: usize,
    ) {
        let x: [&[f32]; M] = array!(M, i => &self.x.row(t + i)[k..k + len]);
        let cols = self.out.cols();
        let mut n = 0;
        while n + N <= cols {
            let w: [&[f32]; N] = array!(N, j => weights(self.scratch, n + j, len));
            self.add(t, n, k == 0, tile(s, x, w, len));
            n += N;
        }
        while n < cols {
            self.add(t, n, k == 0, tile(s, x, [weights(self.scratch, n, len)], len));
            n += 1;
        }
    }

    #[inline(always)]
    fn add<const M: usize, const N: usize>(
        &mut self,
        t: usize,
        n: usize,
        first: bool,
        sums: [[f32; N]; M],
    ) {
        for (i, sums) in sums.iter().enumerate() {
            let out = &mut self.out.row_mut(t + i)[n..n + N];
            for (o, v) in out.iter_mut().zip(sums) {
                *o = if first { *v } else { *o + v };
            }
        }
    }
}

#[inline(always)]
fn weights(scratch: &[f32], row: usize, len: usize) -> &[f32] {
    &scratch[row * BLOCK_K..row * BLOCK_K + len]
}

/// Dot products of `M` rows of x with `N` rows of w, all of length `len`.
#[inline(always)]
fn tile<S: Simd, const M: usize, const N: usize>(
    s: S,
    x: [&[f32]; M],
    w: [&[f32]; N],
    len: usize,
) -> [[f32; N]; M] {
    let mut acc = [[s.zero(); N]; M];
    let whole = len - len % S::LANES;
    let mut k = 0;
    while k < whole {
        let w: [S::V; N] = array!(N, j => s.load(&w[j][k..]));
        for i in 0..M {
            let x = s.load(&x[i][k..]);
            for j in 0..N {
                acc[i][j] = s.fma(x, w[j], acc[i][j]);
            }
        }
        k += S::LANES;
    }
    if whole < len {
        for i in 0..M {
            let x = s.load_partial(&x[i][whole..]);
            for j in 0..N {
                acc[i][j] = s.fma(x, s.load_partial(&w[j][whole..]), acc[i][j]);
            }
        }
    }
    let mut sums = [[0.0; N]; M];
    for i in 0..M {
        sums[i] = s.sums(&acc[i]);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::quantize::{dequantize_row, quantize_row};

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// Plain sum in f64 over the decoded weights, and the sum of the magnitudes.
    fn naive(x: MatRef, w: WeightRef) -> Vec<(f64, f64)> {
        let mut rows = vec![0.0; w.rows() * w.cols()];
        for (r, row) in rows.chunks_mut(w.cols()).enumerate() {
            dequantize_row(Isa::Scalar, w.dtype(), w.row_part(r, 0, w.cols()), row);
        }
        let add = |(sum, size), (a, b): (&f32, &f32)| {
            let product = f64::from(*a) * f64::from(*b);
            (sum + product, size + product.abs())
        };
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).fold((0.0, 0.0), add);
        let row = |t| rows.chunks(w.cols()).map(move |w| dot(x.row(t), w));
        (0..x.rows()).flat_map(row).collect()
    }

    #[test]
    fn agrees_with_the_plain_sum_for_every_format_and_isa() {
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 2);
            for dtype in crate::ops::quantize::ENCODABLE {
                for (t, n, k) in [(1, 37, 64), (7, 70, 1280), (13, 33, 1056), (2, 5, 2080)] {
                    let x = values(t * k, 1);
                    let mut w = vec![0; dtype.row_bytes(n * k).unwrap()];
                    quantize_row(dtype, &values(n * k, 2), &mut w);
                    let (x, w) = (MatRef::new(&x, k), WeightRef::new(dtype, n, k, &w));
                    let mut out = vec![f32::NAN; t * n];
                    gemm(&cpu, x, w, MatMut::new(&mut out, n));
                    for (got, (want, size)) in out.iter().zip(naive(x, w)) {
                        let error = (f64::from(*got) - want).abs();
                        assert!(error < 4e-6 * size, "{isa} {dtype}: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_in_a_batch_and_on_any_threads() {
        let (t, n, k) = (29, 67, 2100);
        let (x, w) = (values(t * k, 3), values(n * k, 4));
        let w = WeightRef::new(DType::F32, n, k, bytemuck::cast_slice(&w));
        for isa in Isa::available() {
            let mut whole = vec![0.0; t * n];
            gemm(&Cpu::new(isa, 3), MatRef::new(&x, k), w, MatMut::new(&mut whole, n));
            let cpu = Cpu::new(isa, 1);
            for r in 0..t {
                let mut one = vec![0.0; n];
                let x = MatRef::new(&x, k).rows_at(r, 1);
                gemm(&cpu, x, w, MatMut::new(&mut one, n));
                assert_eq!(one, whole[r * n..(r + 1) * n], "{isa} row {r}");
            }
        }
    }

    #[test]
    fn no_rows_is_no_work() {
        let w = WeightRef::new(DType::F32, 3, 4, &[0; 48]);
        gemm(&Cpu::new(Isa::best(), 1), MatRef::new(&[], 4), w, MatMut::new(&mut [], 3));
    }
}

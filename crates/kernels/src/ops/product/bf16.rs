//! `out (+)= a · b` of f32 matrices whose values are rounded to bf16 on the way in, sums in f32:
//! the products of mixed-precision training (Micikevicius et al. 2018, §3: half-precision operands,
//! f32 accumulation, f32 master weights).
//!
//! **Every output is one left fold over k, two products at a time** ([`Simd::dot_bf16`]), whatever
//! the shapes and the tile it falls in. The caller cuts k into pieces; one of odd length ends with a
//! pair of which half is zero. So a gradient whose pieces are documents has the same bits whatever
//! else is packed with them, and no bits depend on the number of rows or of threads. They do depend
//! on whether the CPU has an instruction for this (AVX-512 BF16) or a matrix unit, where
//! [`super::bf16_tiles`] takes over: each rounds on its own terms.
//!
//! Blocking: as for f32, and a worker rounds its rows of a as well as its panel of b, pairs along k
//! side by side; panels are wider, so that each rounding serves more products.

use super::{Operand, Tile, Write, bf16_tiles, check, height};
use crate::arch::tiles::Tiles;
use crate::buffer::{MatMut, MatRef};
use crate::ops::q8_rows::round_pairs;
use crate::ops::tile::{MAX_ROWS, Tiled, cover};
use crate::simd::{Simd, WithSimd, array, bf16_bits, dispatch_bf16};
use crate::{Cpu, Isa};
use std::cell::RefCell;

/// Pairs of a block of the reduction.
const BLOCK_PAIRS: usize = 128;
/// Columns of the output that a worker takes together; whole vectors on every instruction set.
const PANEL: usize = 128;
/// Most rows of the output that a worker takes together; their rounded block stays in the second cache.
const PANEL_ROWS: usize = 384;
/// Pairs that are transposed together: what is read and written stays in the first cache.
const TRANSPOSED_PAIRS: usize = 32;

/// Rounded blocks of one worker; two bf16 in each value, the earlier along k in the lower half.
#[derive(Default)]
struct Scratch {
    a: Vec<u32>,
    b: Vec<u32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// `out (+)= a · b` with a `[M, K]`, b `[K, N]`, out `[M, N]`, operands rounded to bf16 (nearest,
/// ties to even) and sums in f32; `pieces` are the lengths, in order, that K is cut into.
///
/// # Panics
/// If the shapes disagree or the pieces are not K together.
pub fn product_bf16<'a, 'b>(
    cpu: &Cpu,
    a: impl Into<Operand<'a>>,
    b: impl Into<Operand<'b>>,
    pieces: &[usize],
    out: MatMut,
    write: Write,
) {
    let (a, b, isa) = (a.into(), b.into(), cpu.isa());
    check(a, b, &out);
    assert_eq!(pieces.iter().sum::<usize>(), a.cols(), "product: pieces of the reduction");
    if let Some(tiles) = Tiles::of(isa) {
        return bf16_tiles::product(cpu, tiles, (a, b), pieces, out, write);
    }
    let operations = out.rows() * out.cols() * a.cols() / 16;
    let across = out.cols().div_ceil(PANEL).max(1);
    let height = height(cpu, out.rows(), across, PANEL_ROWS, MAX_ROWS);
    cpu.pool().for_parts_sized(operations, out.tiles(height, PANEL), |i, out| {
        let (from, col) = (i / across * height, i % across * PANEL);
        panel(isa, a.rows_at(from, out.rows()), b, pieces, col, out, write);
    });
}

/// The columns of `out`, which are those of b from `col` on.
fn panel(
    isa: Isa,
    a: Operand,
    b: Operand,
    pieces: &[usize],
    col: usize,
    mut out: MatMut,
    write: Write,
) {
    if out.rows() == 0 || out.cols() == 0 {
        return;
    }
    if a.cols() == 0 && write == Write::Store {
        (0..out.rows()).for_each(|r| out.row_mut(r).fill(0.0));
    }
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.a.resize(PANEL_ROWS * BLOCK_PAIRS, 0);
        scratch.b.resize(BLOCK_PAIRS * PANEL, 0);
        let mut k = 0;
        for piece in pieces {
            let end = k + piece;
            while k < end {
                let len = (2 * BLOCK_PAIRS).min(end - k);
                let Scratch { a: to_a, b: to_b } = &mut *scratch;
                let (out, add) = (out.reborrow(), write == Write::Add || k > 0);
                dispatch_bf16(isa, Panel { a, b, k, len, col, out, add, to_a, to_b });
                k += len;
            }
        }
    });
}

/// One block of the reduction of one panel.
struct Panel<'a> {
    a: Operand<'a>,
    b: Operand<'a>,
    k: usize,
    len: usize,
    col: usize,
    out: MatMut<'a>,
    add: bool,
    to_a: &'a mut [u32],
    to_b: &'a mut [u32],
}

impl WithSimd for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { a, b, k, len, col, out, add, to_a, to_b } = self;
        let (rows, cols, pairs) = (out.rows(), out.cols(), len.div_ceil(2));
        let stride = cols.next_multiple_of(S::LANES);
        let to_b = &mut to_b[..pairs * stride];
        if b.transposed {
            transpose(s, b.matrix, (k, len), (col, cols), to_b, stride);
        } else {
            interleave(b.matrix, (k, len), (col, cols), to_b, stride);
        }
        let to_a = &mut to_a[..pairs * rows];
        let vectors = stride / S::LANES;
        if a.transposed {
            interleave(a.matrix, (k, len), (0, rows), to_a, rows);
            let op = &mut Block::<true> { a: to_a, a_stride: rows, b: to_b, stride, out, add };
            cover(s, op, 0..rows, vectors);
        } else {
            for (r, to) in to_a.chunks_exact_mut(pairs).enumerate() {
                round_pairs(s, &a.matrix.row(r)[k..k + len], to);
            }
            let op = &mut Block::<false> { a: to_a, a_stride: pairs, b: to_b, stride, out, add };
            cover(s, op, 0..rows, vectors);
        }
    }
}

/// `to[pair, c]` from the rows `k ..` and the columns `from ..` of a matrix with k as rows, zeros
/// behind the columns.
#[inline(always)]
fn interleave(
    m: MatRef,
    (k, len): (usize, usize),
    (from, width): (usize, usize),
    to: &mut [u32],
    stride: usize,
) {
    for (pair, to) in to.chunks_exact_mut(stride).enumerate() {
        let (to, padding) = to.split_at_mut(width);
        let at = k + 2 * pair;
        let first = &m.row(at)[from..from + width];
        if at + 1 < k + len {
            let second = &m.row(at + 1)[from..from + width];
            for ((to, x), y) in to.iter_mut().zip(first).zip(second) {
                *to = u32::from(bf16_bits(*x)) | u32::from(bf16_bits(*y)) << 16;
            }
        } else {
            to.iter_mut().zip(first).for_each(|(to, x)| *to = u32::from(bf16_bits(*x)));
        }
        padding.fill(0);
    }
}

/// `to[pair, c]` from the columns `k ..` of the rows `from ..` of a matrix with k as columns, zeros
/// behind its rows.
#[inline(always)]
fn transpose<S: Simd>(
    s: S,
    m: MatRef,
    (k, len): (usize, usize),
    (from, width): (usize, usize),
    to: &mut [u32],
    stride: usize,
) {
    to.chunks_exact_mut(stride).for_each(|row| row[width..].fill(0));
    let mut rounded = [0; TRANSPOSED_PAIRS];
    for at in (0..len).step_by(2 * TRANSPOSED_PAIRS) {
        let here = (2 * TRANSPOSED_PAIRS).min(len - at);
        let pairs = &mut rounded[..here.div_ceil(2)];
        for c in 0..width {
            round_pairs(s, &m.row(from + c)[k + at..k + at + here], pairs);
            let to = to[at / 2 * stride + c..].iter_mut().step_by(stride);
            to.zip(pairs.iter()).for_each(|(to, pair)| *to = *pair);
        }
    }
}

/// The rounded operands of one block: a `[rows, pairs]`, or `[pairs, rows]` if `BY_COLUMNS`.
struct Block<'a, const BY_COLUMNS: bool> {
    a: &'a [u32],
    a_stride: usize,
    /// `[pairs, stride]`.
    b: &'a [u32],
    stride: usize,
    out: MatMut<'a>,
    add: bool,
}

impl<const BY_COLUMNS: bool> Tiled for Block<'_, BY_COLUMNS> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, s: S, row: usize, col: usize) {
        let Self { a, a_stride, b, stride, out, add } = self;
        let mut tile = Tile { out, row, col };
        let mut acc = tile.load::<S, R, V>(s, *add);
        // Loops over places: an iterator of pairs stayed a call for each of them.
        if BY_COLUMNS {
            let pairs = (a.len() / *a_stride).min(b.len() / *stride);
            for pair in 0..pairs {
                let a = &a[pair * *a_stride + row..][..R];
                let a: &[u32; R] = a.try_into().expect("R values");
                add_pair(s, &mut acc, a, &b[pair * *stride + col..][..V * S::LANES]);
            }
        } else {
            let rows: [&[u32]; R] = array!(R, r => &a[(row + r) * *a_stride..][..*a_stride]);
            for pair in 0..(*a_stride).min(b.len() / *stride) {
                let b = &b[pair * *stride + col..][..V * S::LANES];
                let mut a = [0; R];
                for r in 0..R {
                    a[r] = rows[r][pair];
                }
                add_pair(s, &mut acc, &a, b);
            }
        }
        tile.store(s, acc);
    }
}

/// One pair of each of R rows times one of each of V vectors of columns.
#[inline(always)]
fn add_pair<S: Simd, const R: usize, const V: usize>(
    s: S,
    acc: &mut [[S::V; V]; R],
    a: &[u32; R],
    b: &[u32],
) {
    let b: &[u8] = bytemuck::cast_slice(b);
    let mut columns = [s.splat_i(0); V];
    for v in 0..V {
        columns[v] = s.load_i(&b[4 * v * S::LANES..]);
    }
    for r in 0..R {
        let x = s.splat_i(a[r] as i32);
        for v in 0..V {
            acc[r][v] = s.dot_bf16(acc[r][v], columns[v], x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::product::tests::{SHAPES, case};
    use crate::ops::testing::{assert_near, assert_same_bits, on_every_cpu, values};

    fn rounded(values: &[f32]) -> Vec<f32> {
        values.iter().map(|v| f32::from_bits(u32::from(bf16_bits(*v)) << 16)).collect()
    }

    /// Either operand as it is or transposed.
    fn run(
        cpu: &Cpu,
        (m, k, n): (usize, usize, usize),
        x: &[Vec<f32>; 4],
        form: usize,
    ) -> Vec<f32> {
        let mut out = vec![f32::NAN; m * n];
        let (a, a_t) = (MatRef::new(&x[0], k), MatRef::new(&x[1], m));
        let (b, b_t) = (MatRef::new(&x[2], n), MatRef::new(&x[3], k));
        let out_ = MatMut::new(&mut out, n);
        match form {
            0 => product_bf16(cpu, a, b, &[k], out_, Write::Store),
            1 => product_bf16(cpu, a_t.t(), b, &[k], out_, Write::Store),
            2 => product_bf16(cpu, a, b_t.t(), &[k], out_, Write::Store),
            _ => product_bf16(cpu, a_t.t(), b_t.t(), &[k], out_, Write::Store),
        }
        out
    }

    #[test]
    fn all_forms_are_the_product_of_rounded_operands() {
        for shape @ (m, k, n) in SHAPES.into_iter().filter(|(_, k, _)| *k > 0) {
            let (x, want) = case(m, k, n, rounded);
            let forms = [0, 1, 2, 3].map(|form| on_every_cpu(|cpu| run(cpu, shape, &x, form)));
            for (isa, (i, first)) in forms[0].iter().enumerate() {
                let what = format!("{i} {shape:?}");
                assert_near(first, &want, 1e-5, &what);
                for form in &forms[1..] {
                    assert_same_bits(&form[isa].1, first, &what);
                }
            }
        }
    }

    /// Pieces, odd ones too, one after the other give the bits of one product over all.
    #[test]
    fn adding_goes_on_with_the_fold() {
        let (m, k, n) = (20, 613, 37);
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        let (a, b) = (MatRef::new(&a, m), MatRef::new(&b, n));
        let pieces = [1, 255, 300, 57];
        on_every_cpu(|cpu| {
            let [mut whole, mut parts] = [vec![0.0; m * n], vec![0.0; m * n]];
            product_bf16(cpu, a.t(), b, &pieces, MatMut::new(&mut whole, n), Write::Add);
            let mut from = 0;
            for len in pieces {
                let (a, b) = (a.rows_at(from, len), b.rows_at(from, len));
                product_bf16(cpu, a.t(), b, &[len], MatMut::new(&mut parts, n), Write::Add);
                from += len;
            }
            assert_same_bits(&parts, &whole, "parts");
            whole
        });
    }

    /// Columns of wider matrices, a piece of no length, and no reduction at all.
    #[test]
    fn parts_of_matrices_are_operands_and_outputs() {
        let (m, k, n) = (33, 50, 20);
        let (a, b) = (values(m * 60, 1), values(k * 48, 2));
        let dense = |v: &[f32], width: usize, from: usize, cols: usize| -> Vec<f32> {
            v.chunks(width).flat_map(|row| row[from..from + cols].to_vec()).collect()
        };
        let (dense_a, dense_b) = (dense(&a, 60, 7, k), dense(&b, 48, 5, n));
        on_every_cpu(|cpu| {
            let mut want = vec![0.0; m * n];
            let (x, y) = (MatRef::new(&dense_a, k), MatRef::new(&dense_b, n));
            product_bf16(cpu, x, y, &[k], MatMut::new(&mut want, n), Write::Store);
            let mut wide = vec![7.0; m * 32];
            let (x, y) = (MatRef::new(&a, 60).columns(7, k), MatRef::new(&b, 48).columns(5, n));
            let out = MatMut::new(&mut wide, 32).columns(3, n);
            product_bf16(cpu, x, y, &[0, k, 0], out, Write::Store);
            assert_same_bits(&dense(&wide, 32, 3, n), &want, "columns");
            assert!(wide.chunks(32).all(|row| row[..3] == [7.0; 3] && row[3 + n..] == [7.0; 9]));
            let (none, out) = (MatRef::new(&[], m), MatMut::new(&mut want, n));
            product_bf16(cpu, none.t(), MatRef::new(&[], n), &[], out, Write::Store);
            assert_eq!(want, vec![0.0; m * n]);
            wide
        });
    }

    #[test]
    #[should_panic(expected = "pieces of the reduction")]
    fn pieces_that_are_not_the_reduction_are_refused() {
        let (a, b, mut out) = ([1.0; 6], [1.0; 6], [0.0; 4]);
        let (a, b) = (MatRef::new(&a, 3), MatRef::new(&b, 2));
        let cpu = Cpu::new(Isa::Scalar, 1);
        product_bf16(&cpu, a, b, &[2], MatMut::new(&mut out, 2), Write::Store);
    }
}

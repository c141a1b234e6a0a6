//! `out (+)= a · b` of f32 matrices, either operand transposed: the products of training.
//!
//! **Every output is one left fold over k**, one fused multiply-add per product, whatever the
//! shapes and the tile it falls in; with [`Write::Add`] the fold goes on from the value that is
//! there. So the bits depend on neither the number of rows nor of threads, and a gradient that is
//! added up document by document has the bits of one product over all documents.
//!
//! Blocking: a worker copies a panel of b, `BLOCK_K` by up to `PANEL` columns, into a scratch that
//! stays in the second cache, and multiplies register tiles of rows of a with it. Products of few
//! rows (those of an SSD chunk) take b from where it is, which costs less than the copy.

mod bf16;
mod bf16_tiles;

pub use bf16::product_bf16;

use crate::buffer::{MatMut, MatRef, on_line};
use crate::ops::ssd_tile::{KMajor, accumulate as accumulate_columns};
use crate::ops::tile::{MAX_ROWS, Tiled, accumulate as accumulate_rows, cover};
use crate::simd::{Simd, WithSimd, array, dispatch};
use crate::{Cpu, Isa};
use std::cell::RefCell;

/// Length of a block of the reduction.
const BLOCK_K: usize = 128;
/// Columns of the output that a worker takes together; whole vectors on every instruction set. A wide
/// panel pays where a is transposed: it is read across its rows, a cache line for each k.
const PANEL: usize = 128;
/// Most rows of the output that a worker takes together: enough to pay for the copy of b, and a block
/// of a of so many rows still has room in the second cache.
const PANEL_ROWS: usize = 1024;
/// Side of the squares in which a transposed b is copied; a power of 4.
const SQUARE: usize = 16;
/// Up to so many rows of the output read b where it lies, if its vectors are whole.
const IN_PLACE_ROWS: usize = 64;

thread_local! {
    /// A panel of b, BLOCK_K × PANEL values.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A matrix or its transpose.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    matrix: MatRef<'a>,
    transposed: bool,
}

impl<'a> From<MatRef<'a>> for Operand<'a> {
    fn from(matrix: MatRef<'a>) -> Self {
        Self { matrix, transposed: false }
    }
}

impl<'a> MatRef<'a> {
    /// The transpose, as an operand of [`product`].
    #[must_use]
    pub fn t(self) -> Operand<'a> {
        Operand { matrix: self, transposed: true }
    }
}

impl Operand<'_> {
    fn rows(self) -> usize {
        if self.transposed { self.matrix.cols() } else { self.matrix.rows() }
    }

    fn cols(self) -> usize {
        if self.transposed { self.matrix.rows() } else { self.matrix.cols() }
    }

    /// The rows `from .. from + rows`.
    fn rows_at(self, from: usize, rows: usize) -> Self {
        let Self { matrix, transposed } = self;
        let matrix =
            if transposed { matrix.columns(from, rows) } else { matrix.rows_at(from, rows) };
        Self { matrix, transposed }
    }

    /// The columns `from .. from + cols`.
    fn columns(self, from: usize, cols: usize) -> Self {
        let Self { matrix, transposed } = self;
        let matrix =
            if transposed { matrix.rows_at(from, cols) } else { matrix.columns(from, cols) };
        Self { matrix, transposed }
    }
}

/// What becomes of the values that are in the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// They are replaced.
    Store,
    /// They are the start of the sums.
    Add,
}

/// `out (+)= a · b` with a `[M, K]`, b `[K, N]`, out `[M, N]`.
///
/// # Panics
/// If the shapes disagree.
pub fn product<'a, 'b>(
    cpu: &Cpu,
    a: impl Into<Operand<'a>>,
    b: impl Into<Operand<'b>>,
    out: MatMut,
    write: Write,
) {
    let (a, b, isa) = (a.into(), b.into(), cpu.isa());
    check(a, b, &out);
    let operations = out.rows() * out.cols() * a.cols() / 8;
    let across = out.cols().div_ceil(PANEL).max(1);
    let height = height(cpu, out.rows(), across, PANEL_ROWS, MAX_ROWS);
    cpu.pool().for_parts_sized(operations, out.tiles(height, PANEL), |i, out| {
        let (from, col) = (i / across * height, i % across * PANEL);
        panel(isa, a.rows_at(from, out.rows()), b, col, out, write);
    });
}

/// Rows of the output for a worker to take together: nearly equal shares of at most `most`, and
/// where there are few, enough for all threads; whole tiles of `tile` rows.
fn height(cpu: &Cpu, rows: usize, across: usize, most: usize, tile: usize) -> usize {
    let parts = rows.div_ceil(most).max(cpu.pool().threads().div_ceil(across));
    rows.div_ceil(parts).max(1).next_multiple_of(tile)
}

/// [`product`] on the calling thread.
pub(crate) fn product_here<'a, 'b>(
    isa: Isa,
    a: impl Into<Operand<'a>>,
    b: impl Into<Operand<'b>>,
    mut out: MatMut,
    write: Write,
) {
    let (a, b) = (a.into(), b.into());
    check(a, b, &out);
    for col in (0..out.cols()).step_by(PANEL) {
        let width = PANEL.min(out.cols() - col);
        panel(isa, a, b, col, out.reborrow().columns(col, width), write);
    }
}

fn check(a: Operand, b: Operand, out: &MatMut) {
    assert_eq!(a.cols(), b.rows(), "product: reduction");
    assert_eq!((a.rows(), b.cols()), (out.rows(), out.cols()), "product: output");
}

/// The columns of `out`, which are those of b from `col` on.
fn panel(isa: Isa, a: Operand, b: Operand, col: usize, mut out: MatMut, write: Write) {
    if out.rows() == 0 || out.cols() == 0 {
        return;
    }
    if a.cols() == 0 && write == Write::Store {
        (0..out.rows()).for_each(|r| out.row_mut(r).fill(0.0));
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let scratch = on_line(scratch, BLOCK_K * PANEL);
        for k in (0..a.cols()).step_by(BLOCK_K) {
            let len = BLOCK_K.min(a.cols() - k);
            let add = write == Write::Add || k > 0;
            let out = out.reborrow();
            dispatch(isa, Panel { a, b, k, len, col, out, add, scratch });
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
    scratch: &'a mut [f32],
}

impl WithSimd for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (rows, cols) = (self.out.rows(), self.out.cols());
        let vectors = cols.div_ceil(S::LANES);
        let whole = !self.b.transposed && cols % S::LANES == 0;
        let in_place = whole && rows <= IN_PLACE_ROWS;
        if !in_place {
            self.copy(s, vectors * S::LANES);
        }
        let Self { a, b, k, len, col, out, add, scratch } = self;
        let (b, stride) = if in_place {
            let (b, stride) = b.matrix.rows_at(k, len).data();
            (&b[col..], stride)
        } else {
            (&scratch[..len * vectors * S::LANES], vectors * S::LANES)
        };
        if a.transposed {
            let op = &mut ByColumns(Block { a: a.matrix, k, len, b, stride, out, add });
            cover(s, op, 0..rows, vectors);
        } else {
            let op = &mut ByRows(Block { a: a.matrix, k, len, b, stride, out, add });
            cover(s, op, 0..rows, vectors);
        }
    }
}

impl Panel<'_> {
    /// The block of b, k as rows, `stride` values from row to row, zeros behind the columns.
    #[inline(always)]
    fn copy<S: Simd>(&mut self, s: S, stride: usize) {
        let (width, b) = (self.out.cols(), self.b.matrix);
        if !self.b.transposed {
            for (r, to) in self.scratch.chunks_exact_mut(stride).take(self.len).enumerate() {
                let from = &b.row(self.k + r)[self.col..self.col + width];
                for (to, from) in to.chunks_mut(S::LANES).zip(from.chunks(S::LANES)) {
                    s.store(s.load_partial(from), to);
                }
            }
            return;
        }
        for from in (0..self.len).step_by(SQUARE) {
            for c in (0..stride).step_by(SQUARE) {
                self.copy_turned(from, c, stride);
            }
        }
    }

    /// Up to [`SQUARE`] values along k, from `from` on, of as many rows of b, from `c` on.
    #[inline(always)]
    fn copy_turned(&mut self, from: usize, c: usize, stride: usize) {
        let (width, b) = (self.out.cols(), self.b.matrix);
        let (num, cols) = (SQUARE.min(self.len - from), SQUARE.min(stride - c));
        let mut square = [0.0; SQUARE * SQUARE];
        let rows = square.as_chunks_mut::<SQUARE>().0.iter_mut().take(cols.min(width - c));
        for (r, to) in rows.enumerate() {
            copy(&b.row(self.col + c + r)[self.k + from..self.k + from + num], to);
        }
        turn(&mut square);
        for (k, values) in square.as_chunks::<SQUARE>().0.iter().take(num).enumerate() {
            copy(values, &mut self.scratch[(from + k) * stride + c..][..cols]);
        }
    }
}

/// A copy as long as the shorter slice: a whole side of a square without a call.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    match (from.first_chunk::<SQUARE>(), to.first_chunk_mut::<SQUARE>()) {
        (Some(from), Some(to)) => *to = *from,
        _ => to.iter_mut().zip(from).for_each(|(to, v)| *to = *v),
    }
}

/// Transposes a square. Laying its halves between each other turns the bits of an index round by one,
/// and a transpose is half a turn: loops that become shuffles of vectors.
#[inline(always)]
fn turn(square: &mut [f32; SQUARE * SQUARE]) {
    let mut other = [0.0; SQUARE * SQUARE];
    for _ in 0..SQUARE.ilog2() / 2 {
        interleave(square, &mut other);
        interleave(&other, square);
    }
}

#[inline(always)]
fn interleave(from: &[f32; SQUARE * SQUARE], to: &mut [f32; SQUARE * SQUARE]) {
    const HALF: usize = SQUARE * SQUARE / 2;
    for i in 0..HALF {
        to[2 * i] = from[i];
        to[2 * i + 1] = from[HALF + i];
    }
}

/// The sums of a tile before and after the block. Tiles that end within the output need no masks.
struct Tile<'t, 'a> {
    out: &'t mut MatMut<'a>,
    row: usize,
    col: usize,
}

impl Tile<'_, '_> {
    #[inline(always)]
    fn load<S: Simd, const R: usize, const V: usize>(&self, s: S, add: bool) -> [[S::V; V]; R] {
        let mut acc = [[s.zero(); V]; R];
        let whole = self.out.cols() - self.col >= V * S::LANES;
        for r in 0..R {
            let row = &self.out.row(self.row + r)[self.col..];
            for v in 0..V {
                let values = &row[v * S::LANES..];
                if !add {
                    // Not read, but on its way before it is written.
                    s.prefetch(values);
                } else if whole {
                    acc[r][v] = s.load(values);
                } else {
                    acc[r][v] = s.load_partial(values);
                }
            }
        }
        acc
    }

    #[inline(always)]
    fn store<S: Simd, const R: usize, const V: usize>(&mut self, s: S, acc: [[S::V; V]; R]) {
        let whole = self.out.cols() - self.col >= V * S::LANES;
        for r in 0..R {
            let row = &mut self.out.row_mut(self.row + r)[self.col..];
            for v in 0..V {
                let values = &mut row[v * S::LANES..];
                if whole {
                    s.store(acc[r][v], values);
                } else {
                    s.store_partial(acc[r][v], values);
                }
            }
        }
    }
}

/// The operands of one block of the reduction.
struct Block<'a> {
    a: MatRef<'a>,
    k: usize,
    len: usize,
    /// `[len, stride]`.
    b: &'a [f32],
    stride: usize,
    out: MatMut<'a>,
    add: bool,
}

/// a as it is.
struct ByRows<'a>(Block<'a>);

impl Tiled for ByRows<'_> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, s: S, row: usize, col: usize) {
        let Block { a, k, len, b, stride, out, add } = &mut self.0;
        let a = array!(R, r => &a.row(row + r)[*k..*k + *len]);
        let mut tile = Tile { out, row, col };
        let acc = tile.load::<S, R, V>(s, *add);
        tile.store(s, accumulate_rows(s, acc, a, &b[col..], *stride));
    }
}

/// a transposed.
struct ByColumns<'a>(Block<'a>);

impl Tiled for ByColumns<'_> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, s: S, row: usize, col: usize) {
        let Block { a, k, len, b, stride, out, add } = &mut self.0;
        let (a, a_stride) = a.rows_at(*k, *len).data();
        let mut tile = Tile { out, row, col };
        let acc = tile.load::<S, R, V>(s, *add);
        let b = (&b[col..], *stride);
        tile.store(s, accumulate_columns(s, acc, (KMajor(a, a_stride), row), b, *len));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ops::testing::{assert_near, assert_same_bits, on_every_cpu, values};

    pub(in crate::ops::product) const SHAPES: [(usize, usize, usize); 7] = [
        (1, 1, 1),
        (3, 0, 5),
        (7, 33, 19),
        (65, 300, 70),
        (400, 128, 130),
        (13, 700, 64),
        (1030, 9, 5),
    ];

    /// `Σ_k a[m, k] b[k, n]` in f64 of values after `prepare`, and before it either operand as it
    /// is or transposed.
    pub(in crate::ops::product) fn case(
        m: usize,
        k: usize,
        n: usize,
        prepare: impl Fn(&[f32]) -> Vec<f32>,
    ) -> ([Vec<f32>; 4], Vec<f64>) {
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        let (exact_a, exact_b) = (prepare(&a), prepare(&b));
        let a_t = (0..m * k).map(|i| a[i % m * k + i / m]).collect();
        let b_t = (0..k * n).map(|i| b[i % k * n + i / k]).collect();
        let sum = |i: usize| {
            let (r, c) = (i / n, i % n);
            (0..k).map(|k_| f64::from(exact_a[r * k + k_]) * f64::from(exact_b[k_ * n + c])).sum()
        };
        let want = (0..m * n).map(sum).collect();
        ([a, a_t, b, b_t], want)
    }

    fn run(
        cpu: &Cpu,
        (m, k, n): (usize, usize, usize),
        x: &[Vec<f32>; 4],
        form: usize,
    ) -> Vec<f32> {
        let mut out = vec![f32::NAN; m * n];
        let [a, a_t, b, b_t] = x.each_ref().map(|v| v.as_slice());
        let (a, a_t) = (MatRef::new(a, k.max(1)), MatRef::new(a_t, m));
        let (b, b_t) = (MatRef::new(b, n), MatRef::new(b_t, k.max(1)));
        if k == 0 {
            let none = MatRef::new(&[], m);
            product(cpu, none.t(), MatRef::new(&[], n), MatMut::new(&mut out, n), Write::Store);
            return out;
        }
        let out_ = MatMut::new(&mut out, n);
        match form {
            0 => product(cpu, a, b, out_, Write::Store),
            1 => product(cpu, a_t.t(), b, out_, Write::Store),
            2 => product(cpu, a, b_t.t(), out_, Write::Store),
            _ => product(cpu, a_t.t(), b_t.t(), out_, Write::Store),
        }
        out
    }

    #[test]
    fn all_forms_agree_with_the_formula_and_each_other() {
        for shape @ (m, k, n) in SHAPES {
            let (x, want) = case(m, k, n, <[f32]>::to_vec);
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

    /// Documents one after the other give the bits of one product.
    #[test]
    fn adding_goes_on_with_the_fold() {
        let (m, k, n) = (20, 613, 37);
        let ([_, a_t, b, _], _) = case(m, k, n, <[f32]>::to_vec);
        let (a, b) = (MatRef::new(&a_t, m), MatRef::new(&b, n));
        on_every_cpu(|cpu| {
            let [mut whole, mut parts] = [vec![0.0; m * n], vec![0.0; m * n]];
            product(cpu, a.t(), b, MatMut::new(&mut whole, n), Write::Add);
            for (from, len) in [(0, 1), (1, 255), (256, 300), (556, 57)] {
                let (a, b) = (a.rows_at(from, len), b.rows_at(from, len));
                product(cpu, a.t(), b, MatMut::new(&mut parts, n), Write::Add);
            }
            assert_same_bits(&parts, &whole, "parts");
            whole
        });
    }

    #[test]
    fn a_square_is_turned() {
        let square: [f32; SQUARE * SQUARE] = std::array::from_fn(|i| i as f32);
        let mut turned = square;
        turn(&mut turned);
        for (i, value) in turned.iter().enumerate() {
            assert_eq!(*value, square[i % SQUARE * SQUARE + i / SQUARE]);
        }
    }

    #[test]
    fn on_this_thread_it_is_the_same() {
        let shape @ (m, k, n) = (65, 300, 70);
        let (x, _) = case(m, k, n, <[f32]>::to_vec);
        for (isa, want) in on_every_cpu(|cpu| run(cpu, shape, &x, 2)) {
            let mut out = vec![0.0; m * n];
            let (a, b) = (MatRef::new(&x[0], k), MatRef::new(&x[3], k));
            product_here(isa, a, b.t(), MatMut::new(&mut out, n), Write::Store);
            assert_same_bits(&out, &want, &isa.to_string());
        }
    }
}

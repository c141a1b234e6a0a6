//! [`super::product_bf16`] on a matrix unit.
//!
//! Both operands are rounded once, by all workers, into one buffer: a as `[M, pairs]`, b as panels
//! `[pairs, 16 columns]`; every piece of the reduction is filled up with zeros to whole tiles, which
//! add nothing. Then workers multiply blocks of a with panels of b.
//!
//! Sixteen rows of a or columns of b are rounded as squares of 16 by 16 pairs. They come as rows
//! where the values along k lie side by side, else as columns, and are turned where the other side
//! is wanted.

use super::{Operand, Write, height};
use crate::arch::tiles::{COLUMNS, PairRows, Start, TILE_PAIRS, Tiles};
use crate::buffer::{Chunks, MatMut, on_line};
use crate::simd::{Simd, WithSimd, dispatch_bf16};
use crate::{Cpu, Isa};
use std::cell::RefCell;
use std::ops::Range;

/// Rows of a or columns of b that are rounded together.
const GROUP: usize = 16;
/// Values along k of a square of pairs.
const DEPTH: usize = 2 * TILE_PAIRS;
/// Columns of the output that a worker takes together.
const PANEL: usize = 4 * COLUMNS;
/// Most rows of the output that a worker takes together.
const PANEL_ROWS: usize = 512;
/// Rows of two tiles, which meet a panel together.
const TALLEST: usize = 32;
/// Most words of rounded operands; larger products are cut.
const MOST_WORDS: usize = if cfg!(test) { 1 << 14 } else { 8 << 20 };
/// Pairs along k after which the next panels are multiplied: a's stay in the second cache.
const CHUNK_PAIRS: usize = 256;

thread_local! {
    /// Rounded operands.
    static WORDS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    /// A worker's sums.
    static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// See [`super::product_bf16`].
pub(super) fn product(
    cpu: &Cpu,
    tiles: Tiles,
    (a, b): (Operand, Operand),
    pieces: &[usize],
    out: MatMut,
    write: Write,
) {
    let pairs: usize = pieces.iter().map(|len| len.div_ceil(DEPTH) * TILE_PAIRS).sum();
    let a_groups = out.rows().div_ceil(GROUP);
    let b_groups = out.cols().div_ceil(COLUMNS) * (COLUMNS / GROUP);
    let group_words = GROUP * pairs;
    if (a_groups + b_groups) * group_words > MOST_WORDS && a_groups.max(b_groups) > 2 {
        for (operands, out) in halves((a, b), out) {
            product(cpu, tiles, operands, pieces, out, write);
        }
        return;
    }
    let operations = out.rows() * out.cols() * a.cols() / 128;
    WORDS.with_borrow_mut(|words| {
        let words = on_line(words, (a_groups + b_groups) * group_words);
        let parts = Chunks::new(words, group_words.max(1));
        cpu.pool().for_parts_sized((a_groups + b_groups) * group_words, parts, |i, to| {
            let group = if i < a_groups {
                Group::of_rows(a, i * GROUP, pieces, to)
            } else {
                Group::of_columns(b, (i - a_groups) * GROUP, pieces, to)
            };
            dispatch_bf16(Isa::Amx, RoundGroup(tiles, group));
        });
        let bytes: &[u8] = bytemuck::cast_slice(words);
        let (a, b) = bytes.split_at(4 * a_groups * group_words);
        let across = out.cols().div_ceil(PANEL).max(1);
        let height = height(cpu, out.rows(), across, PANEL_ROWS, TALLEST);
        cpu.pool().for_parts_sized(operations, out.tiles(height, PANEL), |i, out| {
            let (row, col) = (i / across * height, i % across * PANEL);
            let operands = (&a[4 * row * pairs..], &b[4 * col * pairs..]);
            multiply(tiles, operands, pairs, out, write);
        });
    });
}

/// The two halves of the output's longer side, each with its operands.
fn halves<'a, 'b, 'c>(
    (a, b): (Operand<'a>, Operand<'b>),
    out: MatMut<'c>,
) -> [((Operand<'a>, Operand<'b>), MatMut<'c>); 2] {
    let (rows, cols) = (out.rows(), out.cols());
    let at = (rows.max(cols) / 2).next_multiple_of(COLUMNS);
    if rows >= cols {
        let (top, bottom) = out.split_rows(at);
        [((a.rows_at(0, at), b), top), ((a.rows_at(at, rows - at), b), bottom)]
    } else {
        let (left, right) = out.split_columns(at);
        [((a, b.columns(0, at)), left), ((a, b.columns(at, cols - at)), right)]
    }
}

/// A block of the output: a begins with its rows, b with its panels.
fn multiply(tiles: Tiles, (a, b): (&[u8], &[u8]), pairs: usize, mut out: MatMut, write: Write) {
    let (rows, cols) = (out.rows(), out.cols());
    if rows == 0 || cols == 0 {
        return;
    }
    if write == Write::Store && pairs == 0 {
        (0..rows).for_each(|r| out.row_mut(r).fill(0.0));
    }
    let whole = cols - cols % COLUMNS;
    SUMS.with_borrow_mut(|sums| {
        // Columns that are fewer than a tile's are added up beside the output.
        let mut rest = MatMut::new(on_line(sums, rows * COLUMNS), COLUMNS);
        if whole < cols && write == Write::Add {
            copy(&out.reborrow().columns(whole, cols - whole), &mut rest);
        }
        for from in (0..pairs).step_by(CHUNK_PAIRS) {
            let here = CHUNK_PAIRS.min(pairs - from);
            let a = PairRows { bytes: &a[4 * from..], stride: 4 * pairs };
            for col in (0..cols).step_by(COLUMNS) {
                let b = [col, col + GROUP].map(|col| PairRows {
                    bytes: &b[4 * (col * pairs + GROUP * from)..],
                    stride: 4 * GROUP,
                });
                let out = out.reborrow();
                let to = if col < whole { out.columns(col, COLUMNS) } else { rest.reborrow() };
                let zero = from == 0 && write == Write::Store;
                tiles.multiply(here, a, b, to, if zero { Start::Zero } else { Start::Output });
            }
        }
        if whole < cols && pairs > 0 {
            copy(&rest, &mut out.columns(whole, cols - whole));
        }
    });
}

/// The columns that both have.
fn copy(from: &MatMut, to: &mut MatMut) {
    let cols = from.cols().min(to.cols());
    for r in 0..from.rows() {
        to.row_mut(r)[..cols].copy_from_slice(&from.row(r)[..cols]);
    }
}

/// What becomes 16 rows of a or a panel of b.
struct Group<'a> {
    /// The values, k along its columns (or rows, if `across`).
    values: Operand<'a>,
    /// Where the group begins, and one past the operand's last.
    from: usize,
    end: usize,
    /// Whether k runs along the rows of the stored matrix.
    across: bool,
    pieces: &'a [usize],
    to: &'a mut [u32],
    /// Whether the words are wanted as `[16, pairs]`, else `[pairs, 16]`.
    by_rows: bool,
}

impl<'a> Group<'a> {
    fn of_rows(a: Operand<'a>, from: usize, pieces: &'a [usize], to: &'a mut [u32]) -> Self {
        Self { values: a, from, end: a.rows(), across: a.transposed, pieces, to, by_rows: true }
    }

    fn of_columns(b: Operand<'a>, from: usize, pieces: &'a [usize], to: &'a mut [u32]) -> Self {
        Self { values: b, from, end: b.cols(), across: !b.transposed, pieces, to, by_rows: false }
    }
}

struct RoundGroup<'a>(Tiles, Group<'a>);

impl WithSimd for RoundGroup<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(tiles, mut group) = self;
        let pairs = group.to.len() / GROUP;
        let (mut k, mut pair) = (0, 0);
        for piece in group.pieces {
            let end = k + piece;
            while k < end {
                let depth = k..end.min(k + DEPTH);
                let at = if group.by_rows { (pair, pairs) } else { (pair * GROUP, GROUP) };
                if group.across == group.by_rows {
                    let mut square = [[0; GROUP]; TILE_PAIRS];
                    group.round(s, depth.clone(), square.as_flattened_mut(), GROUP);
                    tiles.transpose(&mut square);
                    for (row, to) in square.iter().zip(group.to[at.0..].chunks_mut(at.1)) {
                        to[..GROUP].copy_from_slice(row);
                    }
                } else {
                    let to = std::mem::take(&mut group.to);
                    group.round(s, depth.clone(), &mut to[at.0..], at.1);
                    group.to = to;
                }
                k = depth.end;
                pair += TILE_PAIRS;
            }
        }
    }
}

impl Group<'_> {
    /// Rounds the square of the values `k` into 16 rows of `to` that are `stride` words apart, zeros
    /// where the operand or the piece ends.
    #[inline(always)]
    fn round<S: Simd>(&self, s: S, k: Range<usize>, to: &mut [u32], stride: usize) {
        let group = self.from.min(self.end)..self.end.min(self.from + GROUP);
        for (i, to) in to.chunks_mut(stride).take(GROUP).enumerate() {
            let to: &mut [u8] = bytemuck::cast_slice_mut(&mut to[..GROUP]);
            let pairs = if self.across {
                let pair = k.start + 2 * i;
                // No closure: it would not be compiled for the instruction set.
                let (mut first, mut second) = (s.zero(), s.zero());
                if pair < k.end {
                    first = s.load_partial(&self.values.matrix.row(pair)[group.clone()]);
                }
                if pair + 1 < k.end {
                    second = s.load_partial(&self.values.matrix.row(pair + 1)[group.clone()]);
                }
                s.pair_bf16(first, second)
            } else if i < group.len() {
                let row = &self.values.matrix.row(group.start + i)[k.clone()];
                let (low, high) = row.split_at(row.len().min(S::LANES));
                let halves: &mut [u16] = bytemuck::cast_slice_mut(to);
                s.store_bf16(s.load_partial(low), halves);
                s.store_bf16(s.load_partial(high), &mut halves[S::LANES..]);
                continue;
            } else {
                s.splat_i(0)
            };
            s.store_i(pairs, to);
        }
    }
}

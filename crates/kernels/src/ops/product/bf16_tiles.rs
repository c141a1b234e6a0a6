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
use crate::arch::tiles::{COLUMNS, PairRows, TILE_PAIRS, Tiles};
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
/// Pairs along k after which the next panels are multiplied: a's stay in the second cache.
const CHUNK_PAIRS: usize = 256;

/// Sixteen by sixteen pairs.
type Square = [[u32; GROUP]; TILE_PAIRS];

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
        let height = height(cpu, out.rows(), across, PANEL_ROWS);
        cpu.pool().for_parts_sized(operations, out.tiles(height, PANEL), |i, out| {
            let (row, col) = (i / across * height, i % across * PANEL);
            let operands = (&a[4 * row * pairs..], &b[4 * col * pairs..]);
            multiply(tiles, operands, pairs, out, write);
        });
    });
}

/// A block of the output: a begins with its rows, b with its panels.
fn multiply(tiles: Tiles, (a, b): (&[u8], &[u8]), pairs: usize, mut out: MatMut, write: Write) {
    let (rows, cols) = (out.rows(), out.cols());
    let width = cols.next_multiple_of(COLUMNS);
    SUMS.with_borrow_mut(|sums| {
        let sums = on_line(sums, rows * width);
        match write {
            Write::Store => sums.fill(0.0),
            Write::Add => {
                for (r, sums) in sums.chunks_exact_mut(width.max(1)).enumerate() {
                    sums[..cols].copy_from_slice(out.row(r));
                }
            }
        }
        for from in (0..pairs).step_by(CHUNK_PAIRS) {
            let here = CHUNK_PAIRS.min(pairs - from);
            let a = PairRows { bytes: &a[4 * from..], stride: 4 * pairs };
            for col in (0..width).step_by(COLUMNS) {
                let b = [col, col + GROUP].map(|col| PairRows {
                    bytes: &b[4 * (col * pairs + GROUP * from)..],
                    stride: 4 * GROUP,
                });
                tiles.multiply((rows, here), a, b, &mut sums[col..], width);
            }
        }
        for (r, sums) in sums.chunks_exact(width.max(1)).enumerate() {
            out.row_mut(r).copy_from_slice(&sums[..cols]);
        }
    });
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
        let Self(tiles, group) = self;
        let stride = group.to.len() / GROUP;
        let (mut k, mut pair) = (0, 0);
        for piece in group.pieces {
            let end = k + piece;
            while k < end {
                let depth = k..end.min(k + DEPTH);
                let mut square = [[0; GROUP]; TILE_PAIRS];
                if group.across {
                    round_across(s, &group, depth.clone(), &mut square);
                } else {
                    round_along(s, &group, depth.clone(), &mut square);
                }
                if group.across == group.by_rows {
                    tiles.transpose(&mut square);
                }
                if group.by_rows {
                    for (r, row) in square.iter().enumerate() {
                        group.to[r * stride + pair..][..TILE_PAIRS].copy_from_slice(row);
                    }
                } else {
                    group.to[pair * GROUP..(pair + TILE_PAIRS) * GROUP]
                        .copy_from_slice(square.as_flattened());
                }
                k = depth.end;
                pair += TILE_PAIRS;
            }
        }
    }
}

/// A row of the square for each of the group, pairs along k.
#[inline(always)]
fn round_along<S: Simd>(s: S, group: &Group, k: Range<usize>, square: &mut Square) {
    for (i, to) in (group.from..group.end.min(group.from + GROUP)).zip(square) {
        let row = &group.values.matrix.row(i)[k.clone()];
        let (low, high) = row.split_at(row.len().min(S::LANES));
        let halves: &mut [u16] = bytemuck::cast_slice_mut(to);
        s.store_bf16(s.load_partial(low), halves);
        s.store_bf16(s.load_partial(high), &mut halves[S::LANES..]);
    }
}

/// A row of the square for each pair, the group side by side.
#[inline(always)]
fn round_across<S: Simd>(s: S, group: &Group, k: Range<usize>, square: &mut Square) {
    let cols = group.from.min(group.end)..group.end.min(group.from + GROUP);
    for (pair, to) in k.clone().step_by(2).zip(square) {
        let first = s.load_partial(&group.values.matrix.row(pair)[cols.clone()]);
        let mut second = s.zero();
        if pair + 1 < k.end {
            second = s.load_partial(&group.values.matrix.row(pair + 1)[cols.clone()]);
        }
        s.store_i(s.pair_bf16(first, second), bytemuck::cast_slice_mut(to));
    }
}

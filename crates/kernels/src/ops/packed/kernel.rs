//! The product of rows of int8 with a packed matrix, from one row to thousands.
//!
//! For a block b of 32 values: `acc ← acc + (Σ q·a − OFFSET·Σ a) · (d·s)`, and
//! `+ min · (s Σ a)` where the format has minima; the sum in brackets is exact in i32, the rest is
//! f32, blocks in ascending order. **So an output's bits depend on its row of activations and its
//! row of weights alone**: not on T, the tile, the threads; and where the last step is a fused
//! multiply-add they are the same on every instruction set.
//!
//! A tile is up to `M` rows of activations by `V` vectors of rows of weights, held in registers.
//! Rows read the packed panel as it is; in formats whose codes take work to put together, from
//! [`Format::WIDEN_ROWS`] rows on, a worker first writes the panel with a byte per code into a
//! scratch that stays in its second cache. Where the CPU has a matrix unit, many rows go to
//! [`super::byte_tiles`].

use super::format::{Format, GROUPS, Panel, ROWS, Wide, panel_bytes, widen};
use super::{Epilogue, Scratch, byte_tiles, finish};
use crate::arch::tiles::Tiles;
use crate::buffer::MatMut;
use crate::ops::q8_rows::{Q8Row, Q8View, WORDS};
use crate::ops::tile::even_share;
use crate::simd::{Simd, WithSimd, array};
use std::marker::PhantomData;
use std::ops::Range;

/// Blocks after which the next panels are fetched further.
const FETCH_BLOCKS: usize = 4;
/// Most passes at which panels are fetched ahead.
const MOST_FETCHING_PASSES: usize = 16;
/// Bytes that a fetch brings.
const CACHE_LINE: usize = 64;

/// Some panels against all rows of activations.
pub(crate) struct Panels<'a, F> {
    pub(crate) x: Q8View<'a>,
    /// The panels' bytes.
    pub(crate) data: &'a [u8],
    /// The panels' columns of the output.
    pub(crate) out: MatMut<'a>,
    pub(crate) epilogue: Epilogue,
    pub(crate) scratch: &'a mut Scratch,
    /// The CPU's matrix unit, where it has one.
    pub(crate) tiles: Option<Tiles>,
    pub(crate) format: PhantomData<F>,
}

impl<F: Format> WithSimd for Panels<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        // Panels of a tile: two where a vector is a panel, else one.
        let step = if S::LANES == ROWS { 2 } else { 1 };
        let blocks = self.x.blocks;
        let bytes = panel_bytes::<F>(blocks);
        let count = self.data.len() / bytes;
        let unit = byte_tiles::unit::<S, F>(self.tiles, self.x.rows);
        let widen_first = self.x.rows >= F::WIDEN_ROWS;
        let wide_bytes = panel_bytes::<Wide<F>>(blocks);
        if unit.is_none() && widen_first && self.scratch.wide.len() < step * wide_bytes {
            self.scratch.wide.resize(step * wide_bytes, 0);
        }
        for first in (0..count).step_by(step) {
            let here = step.min(count - first);
            let panel = |i: usize| {
                let at = (first + i.min(here - 1)) * bytes;
                Panel::new::<F>(&self.data[at..at + bytes], blocks)
            };
            let panels = [panel(0), panel(1)];
            if const { byte_tiles::fits::<S, F>() }
                && let Some(unit) = unit
            {
                let (from, end) = (first * ROWS, ((first + here) * ROWS).min(self.out.cols()));
                let out = self.out.reborrow().columns(from, end - from);
                let (x, epilogue, scratch) = (self.x, self.epilogue, &mut self.scratch.words);
                byte_tiles::Pair { x, panels, out, epilogue, scratch }.run::<S, F>(s, unit);
                continue;
            }
            let next = &self.data[((first + step) * bytes).min(self.data.len())..];
            let next = &next[..next.len().min(step * bytes)];
            if const { F::WIDEN_ROWS < usize::MAX } && widen_first {
                let wide = self.scratch.wide.chunks_exact_mut(wide_bytes);
                for (panel, to) in panels.iter().zip(wide).take(here) {
                    widen::<S, F>(s, panel, blocks, to);
                }
                let wide = |i: usize| {
                    let at = i.min(here - 1) * wide_bytes;
                    Panel::new::<Wide<F>>(&self.scratch.wide[at..at + wide_bytes], blocks)
                };
                let panels = [wide(0), wide(1)];
                rows::<S, Wide<F>>(
                    s,
                    self.x,
                    panels,
                    next,
                    here,
                    first,
                    self.epilogue,
                    &mut self.out,
                );
            } else {
                rows::<S, F>(s, self.x, panels, next, here, first, self.epilogue, &mut self.out);
            }
        }
    }
}

/// Rows of activations of a tile: as many as keep two accumulators each per vector in three quarters
/// of the registers. With 16 registers more rows were measured faster, though some of their sums
/// wait in memory.
const fn most_rows(lanes: usize) -> usize {
    match lanes {
        ROWS | 8 => 6,
        4 => 3,
        _ => 1,
    }
}

/// All rows of activations against one or two panels.
#[inline(always)]
fn rows<S: Simd, F: Format>(
    s: S,
    x: Q8View,
    panels: [Panel; 2],
    next: &[u8],
    count: usize,
    first: usize,
    epilogue: Epilogue,
    out: &mut MatMut,
) {
    let (col, end) = (first * ROWS, ((first + count) * ROWS).min(out.cols()));
    let most = most_rows(S::LANES);
    let mut shares = shares(next, x.rows.div_ceil(most));
    let mut t = 0;
    while t < x.rows {
        let height = even_share(x.rows - t, most);
        let ahead = shares.next().unwrap_or_default();
        let mut at = Tile { x, panels, ahead, t, col, end, epilogue, out: out.reborrow() };
        // Constants, so that nothing is compiled of tiles that are too large.
        match height {
            6 if const { most_rows(S::LANES) >= 6 } => at.panels::<S, F, 6>(s, count),
            5 if const { most_rows(S::LANES) >= 6 } => at.panels::<S, F, 5>(s, count),
            4 if const { most_rows(S::LANES) >= 6 } => at.panels::<S, F, 4>(s, count),
            3 if const { most_rows(S::LANES) >= 3 } => at.panels::<S, F, 3>(s, count),
            2 if const { most_rows(S::LANES) >= 3 } => at.panels::<S, F, 2>(s, count),
            _ => at.panels::<S, F, 1>(s, count),
        }
        t += height;
    }
}

/// Each pass over the panels fetches its share of the next ones, so that memory works while the
/// passes compute; for many passes the first is too small a part to matter.
#[inline(always)]
fn shares(next: &[u8], passes: usize) -> std::slice::Chunks<'_, u8> {
    let next = if passes <= MOST_FETCHING_PASSES { next } else { &[] };
    next.chunks(next.len().div_ceil(passes.max(1)).max(1))
}

struct Tile<'a> {
    x: Q8View<'a>,
    panels: [Panel<'a>; 2],
    /// What a later tile reads.
    ahead: &'a [u8],
    /// First row of activations.
    t: usize,
    /// First column of the output, and one past the last.
    col: usize,
    end: usize,
    epilogue: Epilogue,
    out: MatMut<'a>,
}

impl Tile<'_> {
    /// `count` panels: both in one pass where a vector is a panel, the last of an odd number twice,
    /// which is less code; each in two where it is half a panel, so that the codes of a block stay
    /// in registers for all rows; else one in one.
    #[inline(always)]
    fn panels<S: Simd, F: Format, const M: usize>(&mut self, s: S, count: usize) {
        match S::LANES {
            ROWS => self.passes::<S, F, M, 2>(s, 2),
            8 if const { M == 1 } => self.passes::<S, F, M, 2>(s, count),
            8 => self.passes::<S, F, M, 1>(s, count),
            4 => self.passes::<S, F, M, 4>(s, count),
            _ => self.passes::<S, F, M, 16>(s, count),
        }
    }

    #[inline(always)]
    fn passes<S: Simd, F: Format, const M: usize, const V: usize>(&mut self, s: S, count: usize) {
        for row in (0..count * ROWS).step_by(V * S::LANES) {
            self.vectors::<S, F, M, V>(s, row);
            self.ahead = &[];
        }
    }

    /// `V` vectors of rows of the panels from `row` on.
    #[inline(always)]
    fn vectors<S: Simd, F: Format, const M: usize, const V: usize>(&mut self, s: S, row: usize) {
        let x: [Q8Row; M] = array!(M, m => self.x.row(self.t + m));
        let w: [Vector; V] = array!(V, v => {
            let row = row + v * S::LANES;
            Vector { panel: &self.panels[row / ROWS], row: row % ROWS }
        });
        let acc = products::<S, F, M, V>(s, x, w, self.ahead, self.x.blocks);
        for (m, acc) in acc.iter().enumerate() {
            let out = self.out.row_mut(self.t + m);
            for (v, acc) in acc.iter().enumerate() {
                let from = self.col + row + v * S::LANES;
                if from < self.end {
                    let to = self.end.min(from + S::LANES);
                    finish(s, *acc, self.epilogue, &mut out[from..to]);
                }
            }
        }
    }
}

/// A vector of rows of weights: those of the panel from `row` on.
#[derive(Clone, Copy)]
struct Vector<'a> {
    panel: &'a Panel<'a>,
    row: usize,
}

/// Dot products of M rows of activations with V vectors of rows of weights.
#[inline(always)]
fn products<S: Simd, F: Format, const M: usize, const V: usize>(
    s: S,
    x: [Q8Row; M],
    w: [Vector; V],
    ahead: &[u8],
    blocks: usize,
) -> [[S::V; V]; M] {
    // Plain loops: a closure handed to a library function would not be compiled for the
    // instruction set.
    let mut acc = [[s.zero(); V]; M];
    let mut codes = [(&w[0].panel.codes[..0], 0); V];
    let mut words = [&x[0].words[..0]; M];
    // A loop of its own: with fetches in the loop over blocks all of it was slower.
    let span = if ahead.is_empty() { blocks.max(1) } else { FETCH_BLOCKS };
    let mut fetches = ahead.chunks(ahead.len().div_ceil(blocks.div_ceil(span).max(1)).max(1));
    for from in (0..blocks).step_by(span) {
        fetch(s, fetches.next().unwrap_or_default());
        for b in from..blocks.min(from + span) {
            for v in 0..V {
                codes[v] = (&w[v].panel.codes[b * F::CODES..(b + 1) * F::CODES], w[v].row);
            }
            for m in 0..M {
                words[m] = &x[m].words[b * WORDS..(b + 1) * WORDS];
            }
            for half in 0..1 + F::HALVES as usize {
                let mut sums = [[s.splat_i(0); V]; M];
                for m in 0..M {
                    let offsets = if F::HALVES { x[m].half_offsets } else { x[m].offsets };
                    let index = if F::HALVES { 2 * b + half } else { b };
                    sums[m] = [start::<S, F>(s, offsets, index); V];
                }
                // Numbers of groups that the compiler knows.
                match half {
                    _ if !F::HALVES => {
                        add_products::<S, F, M, V>(s, 0..GROUPS, codes, words, &mut sums)
                    }
                    0 => add_products::<S, F, M, V>(s, 0..GROUPS / 2, codes, words, &mut sums),
                    _ => add_products::<S, F, M, V>(s, GROUPS / 2..GROUPS, codes, words, &mut sums),
                }
                for v in 0..V {
                    let scales = F::scales(s, w[v].panel, b, w[v].row);
                    for m in 0..M {
                        let scale = s.mul(scales.d[half], s.splat(x[m].factors[b][0]));
                        acc[m][v] = s.fma(s.to_f32(sums[m][v]), scale, acc[m][v]);
                        if F::MIN {
                            acc[m][v] = s.fma(scales.min, s.splat(x[m].factors[b][1]), acc[m][v]);
                        }
                    }
                }
            }
        }
    }
    acc
}

/// Adds the products of `groups` of a block, whose codes begin at a row, exactly.
#[inline(always)]
fn add_products<S: Simd, F: Format, const M: usize, const V: usize>(
    s: S,
    groups: Range<usize>,
    codes: [(&[u8], usize); V],
    words: [&[u32]; M],
    sums: &mut [[S::I; V]; M],
) {
    // Groups whose products fit in the sums of 16 bits of a pair.
    let run = if S::PAIRS { (i16::MAX as usize >> F::BITS) / (2 * 127) } else { 0 };
    for first in groups.clone().step_by(run.max(1)) {
        let mut pairs = [[s.splat_i(0); V]; M];
        for group in first..groups.end.min(first + run.max(1)) {
            let mut w = [s.splat_i(0); V];
            for v in 0..V {
                w[v] = F::codes(s, codes[v].0, codes[v].1, group);
            }
            for m in 0..M {
                let a = s.splat_i(words[m][group] as i32);
                for v in 0..V {
                    if run > 0 {
                        pairs[m][v] = s.dot_pairs(pairs[m][v], w[v], a);
                    } else {
                        sums[m][v] = s.dot(sums[m][v], w[v], a, F::BITS < 8);
                    }
                }
            }
        }
        if run > 0 {
            for m in 0..M {
                for v in 0..V {
                    sums[m][v] = s.add_pairs(sums[m][v], pairs[m][v]);
                }
            }
        }
    }
}

/// Asks for `bytes`.
#[inline(always)]
pub(super) fn fetch<S: Simd>(s: S, bytes: &[u8]) {
    for line in bytes.chunks(CACHE_LINE) {
        s.prefetch_far(line);
    }
}

/// `−OFFSET Σ a`, where the sum of a block of products starts, less what [`Simd::dot`] takes itself.
#[inline(always)]
pub(super) fn start<S: Simd, F: Format>(s: S, offsets: &[i32], index: usize) -> S::I {
    match F::OFFSET - if F::BITS < 8 { 0 } else { S::HIGH_BIAS } {
        0 => s.splat_i(0),
        // Stored as −8 Σ a.
        offset => s.splat_i(offsets[index] * (offset / 8)),
    }
}

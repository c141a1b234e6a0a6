//! Attention of a tile of queries, all heads of a group, over one span of a sequence's positions,
//! and the merge of spans.
//!
//! Of a span a row keeps m = max s, l = Σ e^{s − m} and the sums o = Σ e^{s − m} v. Blocks of 64
//! positions are taken in order: `m' = max(m, max_i s_i)`, `l' = e^{m − m'} l + Σ_i e^{s_i − m'}`,
//! and o likewise. Spans merge in order in the same way: `M = max(m₁, m₂)`,
//! `L = e^{m₁ − M} l₁ + e^{m₂ − M} l₂`. Positions that a query does not see take no part in a sum
//! of its own, and a span of which it sees none is not merged, so neither the tile that a row
//! fell in nor the other queries touch its bits.

use crate::buffer::{MatMut, MatRef};
use crate::ops::kv_block::{BLOCK, Block, HeadBlock, Stored, value_stride};
use crate::ops::tile::{Cover, Element, MAX_ROWS, Tiled, accumulate, even_share};
use crate::simd::{Simd, array};
use std::ops::Range;
use std::sync::Arc;

/// Positions in a span. A function of nothing: it decides the order of sums. Large enough that
/// the results of a span are small beside its keys and values, small enough that many threads
/// find work in a cache of a few thousand positions.
pub(super) const SPAN: usize = 512;

const BLOCKS_PER_SPAN: usize = SPAN / BLOCK;

/// Spans that hold the first `len` positions.
pub(super) fn num_spans(len: usize) -> usize {
    len.div_ceil(SPAN)
}

/// The first query from the position `start` on that sees the position `at`.
pub(super) fn first_query(start: usize, at: usize) -> usize {
    at.saturating_sub(start)
}

/// f32 values that [`Sums`] needs for `rows` rows.
pub(super) fn sums_len(rows: usize, dim: usize) -> usize {
    rows * (value_stride(dim) + 2)
}

/// o, m and l of some rows, each contiguous.
pub(super) struct Sums<'a> {
    sums: &'a mut [f32],
    max: &'a mut [f32],
    norm: &'a mut [f32],
    stride: usize,
}

impl<'a> Sums<'a> {
    /// Rows in the first [`sums_len`] values of `data`.
    pub(super) fn new(data: &'a mut [f32], rows: usize, dim: usize) -> Self {
        let stride = value_stride(dim);
        let (sums, rest) = data[..sums_len(rows, dim)].split_at_mut(rows * stride);
        let (max, norm) = rest.split_at_mut(rows);
        Self { sums, max, norm, stride }
    }

    fn clear(&mut self) {
        self.sums.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.norm.fill(0.0);
    }

    /// Takes the same `rows` of a later span.
    #[inline(always)]
    pub(super) fn merge<S: Simd>(&mut self, s: S, rows: Range<usize>, later: &Sums) {
        let Sums { sums, max, norm, .. } = later;
        for r in rows {
            let largest = if max[r] > self.max[r] { max[r] } else { self.max[r] };
            let (own, other) = (weight(s, self.max[r], largest), weight(s, max[r], largest));
            self.norm[r] = own * self.norm[r] + other * norm[r];
            self.max[r] = largest;
            let (own, other) = (s.splat(own), s.splat(other));
            let row = r * self.stride..(r + 1) * self.stride;
            let later = sums[row.clone()].chunks_exact(S::LANES);
            for (to, later) in self.sums[row].chunks_exact_mut(S::LANES).zip(later) {
                s.store(s.fma(other, s.load(later), s.mul(own, s.load(to))), to);
            }
        }
    }

    /// o / l: row `t · group + j` becomes head j of row t of `out`.
    #[inline(always)]
    pub(super) fn write<S: Simd>(&self, s: S, dim: usize, out: &mut MatMut) {
        let group = out.cols() / dim;
        for t in 0..out.rows() {
            for (j, out) in out.row_mut(t).chunks_mut(dim).enumerate() {
                let row = t * group + j;
                let norm = s.splat(self.norm[row]);
                let sums = self.sums[row * self.stride..].chunks(S::LANES);
                for (out, sums) in out.chunks_mut(S::LANES).zip(sums) {
                    s.store_partial(s.div(s.load(sums), norm), out);
                }
            }
        }
    }
}

/// `e^{m − largest}`, where `largest ≥ m`; 0 where both are −∞.
#[inline(always)]
fn weight<S: Simd>(s: S, m: f32, largest: f32) -> f32 {
    if m == largest && m > f32::NEG_INFINITY {
        return 1.0;
    }
    s.max_lane(s.exp(s.splat(m - finite(largest))))
}

/// What is subtracted from scores: −∞ − (−∞) would be NaN.
#[inline(always)]
fn finite(largest: f32) -> f32 {
    if largest == f32::NEG_INFINITY { 0.0 } else { largest }
}

/// Query rows times 1 / √head_dim, `[rows · group, head_dim]`.
pub(super) fn scaled_queries(q: MatRef, dim: usize, to: &mut [f32]) {
    let scale = 1.0 / (dim as f32).sqrt();
    for (t, to) in to.chunks_mut(q.cols()).enumerate() {
        to.iter_mut().zip(q.row(t)).for_each(|(to, q)| *to = q * scale);
    }
}

/// A tile of queries.
pub(super) struct Queries<'a> {
    /// Scaled, \[rows, head_dim\]: row `t · group + j` is head j of query t.
    pub(super) q: &'a [f32],
    /// Position of the first query.
    pub(super) start: usize,
    /// Heads of a group.
    pub(super) group: usize,
    pub(super) dim: usize,
}

impl Queries<'_> {
    fn rows(&self) -> usize {
        self.q.len() / self.dim
    }

    /// The first row that sees the position `at`.
    fn first_row(&self, at: usize) -> usize {
        first_query(self.start, at) * self.group
    }

    /// Fills `out` with the results of a span of `head`; returns the rows that see some of it.
    #[inline(always)]
    pub(super) fn over<S: Simd, E: Stored>(
        &self,
        s: S,
        blocks: &[Arc<Block<E>>],
        head: usize,
        span: usize,
        out: &mut Sums,
    ) -> Range<usize> {
        out.clear();
        let rows = self.rows();
        let last = self.start + rows / self.group;
        let end = last.div_ceil(BLOCK).min((span + 1) * BLOCKS_PER_SPAN);
        let mut scores = [[0.0; BLOCK]; MAX_ROWS];
        for i in span * BLOCKS_PER_SPAN..end {
            let block = blocks[i].head(head, self.dim);
            let mut from = self.first_row(i * BLOCK);
            while from < rows {
                let height = even_share(rows - from, MAX_ROWS);
                self.tile(s, &block, i * BLOCK, from, height, &mut scores, out);
                from += height;
            }
        }
        self.first_row(span * SPAN)..rows
    }

    /// Takes the block at the position `at` into `height` rows, each of which sees some of it.
    #[inline(always)]
    fn tile<S: Simd, E: Stored>(
        &self,
        s: S,
        block: &HeadBlock<E>,
        at: usize,
        from: usize,
        height: usize,
        scores: &mut [[f32; BLOCK]; MAX_ROWS],
        out: &mut Sums,
    ) {
        // Later rows see as much or more.
        let seen: [usize; MAX_ROWS] =
            array!(MAX_ROWS, r => (self.start + (from + r) / self.group + 1 - at).min(BLOCK));
        let q = &self.q[from * self.dim..(from + height) * self.dim];
        let op = &mut Scores { q, block, dim: self.dim, scores };
        s.vectorize(Cover { op, rows: 0..height, cols: seen[height - 1] });
        let mut scale = [0.0; MAX_ROWS];
        for r in 0..height {
            let (max, norm) = (&mut out.max[from + r], &mut out.norm[from + r]);
            scale[r] = softmax::<S, E>(s, &mut scores[r], block, seen[r], max, norm);
        }
        let stride = out.stride;
        let sums = &mut out.sums[from * stride..(from + height) * stride];
        let op = &mut Output { scores, values: block.values, sums, scale, seen, stride };
        s.vectorize(Cover { op, rows: 0..height, cols: self.dim });
    }
}

/// Turns the first `seen` scores into weights `e^{s − m'}`, times the scales of values if there
/// are any, updates m and l and returns `e^{m − m'}`. Other weights are unspecified. A NaN score
/// makes its weight and l NaN, whatever m becomes.
#[inline(always)]
fn softmax<S: Simd, E: Stored>(
    s: S,
    scores: &mut [f32; BLOCK],
    block: &HeadBlock<E>,
    seen: usize,
    max: &mut f32,
    norm: &mut f32,
) -> f32 {
    scores[seen..].fill(f32::NEG_INFINITY);
    let mut largest = s.splat(*max);
    for part in scores.chunks_exact(S::LANES) {
        largest = s.max(s.load(part), largest);
    }
    let largest = s.max_lane(largest);
    let (shift, mut sum) = (s.splat(finite(largest)), s.zero());
    for (i, part) in scores.chunks_exact_mut(S::LANES).enumerate() {
        let mut weight = s.exp(s.sub(s.load(part), shift));
        sum = s.add(sum, weight);
        if E::SCALED {
            weight = s.mul(weight, s.load(&block.value_scales[i * S::LANES..]));
        }
        s.store(weight, part);
    }
    let scale = weight(s, *max, largest);
    *norm = *norm * scale + s.sum(sum);
    *max = largest;
    scale
}

/// Scores of a tile's rows: Q Kᵀ.
struct Scores<'a, 'b, E> {
    q: &'a [f32],
    block: &'a HeadBlock<'b, E>,
    dim: usize,
    scores: &'a mut [[f32; BLOCK]; MAX_ROWS],
}

impl<E: Stored> Tiled for Scores<'_, '_, E> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, s: S, row: usize, col: usize) {
        let q: [&[f32]; R] = array!(R, r => &self.q[(row + r) * self.dim..][..self.dim]);
        let acc = accumulate(s, [[s.zero(); V]; R], q, &self.block.keys[col..], BLOCK);
        for v in 0..V {
            let col = col + v * S::LANES;
            for r in 0..R {
                let mut score = acc[r][v];
                if E::SCALED {
                    score = s.mul(score, s.load(&self.block.key_scales[col..]));
                }
                s.store(score, &mut self.scores[row + r][col..]);
            }
        }
    }
}

/// Weighted values of a tile's rows: e^{m − m'} · o + P V.
struct Output<'a, E> {
    scores: &'a [[f32; BLOCK]; MAX_ROWS],
    values: &'a [E],
    sums: &'a mut [f32],
    scale: [f32; MAX_ROWS],
    seen: [usize; MAX_ROWS],
    stride: usize,
}

impl<E: Element> Tiled for Output<'_, E> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, s: S, row: usize, col: usize) {
        let mut acc = [[s.zero(); V]; R];
        for r in 0..R {
            let old = &self.sums[(row + r) * self.stride + col..][..V * S::LANES];
            for v in 0..V {
                acc[r][v] = s.mul(s.splat(self.scale[row + r]), s.load(&old[v * S::LANES..]));
            }
        }
        // Weights beyond `seen` are left out, not multiplied: a leftover value may be NaN.
        let common = self.seen[row];
        let weights: [&[f32]; R] = array!(R, r => &self.scores[row + r][..common]);
        let values = &self.values[col..];
        acc = accumulate(s, acc, weights, values, self.stride);
        for r in 0..R {
            for k in common..self.seen[row + r] {
                let weight = s.splat(self.scores[row + r][k]);
                for v in 0..V {
                    let value = E::load(s, &values[k * self.stride + v * S::LANES..]);
                    acc[r][v] = s.fma(weight, value, acc[r][v]);
                }
            }
        }
        for r in 0..R {
            let new = &mut self.sums[(row + r) * self.stride + col..][..V * S::LANES];
            for v in 0..V {
                s.store(acc[r][v], &mut new[v * S::LANES..]);
            }
        }
    }
}

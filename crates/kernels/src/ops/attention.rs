//! Causal attention of T queries over a [`KvCache`], softmax in f32, no T × T matrix.
//!
//! Query row t is at position `start + t` and sees the positions up to its own. Query head j
//! uses kv head j / (heads / kv heads):
//!
//! `out[t, j] = Σ_i p_i v_i`, `p = softmax_i(q[t, j] · k_i / √head_dim)`, i = 0 … start + t.
//!
//! Blocks of 64 positions are taken in order with a running maximum m and sum l (online softmax):
//! `m' = max(m, max_i s_i)`, `l' = e^{m − m'} l + Σ_i e^{s_i − m'}`, and the output likewise.
//!
//! **A query's bits depend on its own values and on the keys and values it sees alone**, not on T,
//! on the other queries or on the pieces the sequence came in: masked positions take no part in a
//! sum, and the order within a block is that of the positions.
//!
//! Sources: Vaswani et al. 2017; Ainslie et al. 2023 (grouped queries); Milakov and Gimelshein
//! 2018 (online softmax); Dao 2023 (FlashAttention-2).

pub use crate::ops::kv_cache::{KvCache, KvDtype};

use crate::Cpu;
use crate::buffer::{MatMut, MatRef};
use crate::ops::kv_cache::{BLOCK, Block, Blocks, value_stride};
use crate::ops::tile::{Element, MAX_ROWS, Tiled, accumulate, cover, even_share};
use crate::simd::{Simd, WithSimd, dispatch};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

/// Rows (queries × heads of a group) that a worker takes at a time: enough to pay for reading the
/// keys and values from the outer caches, few enough for its scratch to stay in the inner ones.
const ROWS_PER_PART: usize = 80;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Attention of the queries q `[T, heads · head_dim]` at the positions from `start` on; writes
/// out of the same shape. The cache already holds the queries' own positions.
///
/// # Panics
/// If the shapes disagree, `num_heads` is no multiple of the kv heads, or the cache is too short.
pub fn attention(
    cpu: &Cpu,
    q: MatRef,
    cache: &KvCache,
    start: usize,
    num_heads: usize,
    out: MatMut,
) {
    let (dim, kv_heads) = (cache.head_dim(), cache.num_kv_heads());
    assert!(num_heads.is_multiple_of(kv_heads), "{num_heads} query heads, {kv_heads} kv heads");
    assert_eq!([q.cols(), out.cols()], [num_heads * dim; 2], "columns of q and out");
    assert_eq!(q.rows(), out.rows(), "rows of q and out");
    let end = start + q.rows();
    assert!(end <= cache.len(), "queries up to position {end}, the cache holds {}", cache.len());
    let group = num_heads / kv_heads;
    let (height, width) = ((ROWS_PER_PART / group).max(1), group * dim);
    let operations = 4 * q.rows() * num_heads * dim * end;
    cpu.pool().for_parts_sized(operations, out.tiles(height, width), |i, out| {
        let (row, head) = (i / kv_heads * height, i % kv_heads);
        let q = q.columns(head * width, width).rows_at(row, out.rows());
        SCRATCH.with_borrow_mut(|scratch| {
            let part = Part { q, cache, head, start: start + row, group, out, scratch };
            dispatch(cpu.isa(), part);
        });
    });
}

struct Part<'a> {
    /// Queries of the group's heads.
    q: MatRef<'a>,
    cache: &'a KvCache,
    /// The kv head.
    head: usize,
    /// Position of the first query.
    start: usize,
    group: usize,
    out: MatMut<'a>,
    scratch: &'a mut Vec<f32>,
}

impl WithSimd for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cache = self.cache;
        match &cache.blocks {
            Blocks::F32(blocks) => self.over(s, blocks),
            Blocks::Bf16(blocks) => self.over(s, blocks),
        }
    }
}

impl Part<'_> {
    /// Rows are query-major: row `t · group + j` is head j of query t.
    #[inline(always)]
    fn over<S: Simd, E: Element>(mut self, s: S, blocks: &[Arc<Block<E>>]) {
        let (dim, rows) = (self.cache.head_dim(), self.q.rows() * self.group);
        let stride = value_stride(dim);
        let total = rows * (dim + stride + 2);
        if self.scratch.len() < total {
            self.scratch.resize(total, 0.0);
        }
        let (q, rest) = self.scratch[..total].split_at_mut(rows * dim);
        let (sums, rest) = rest.split_at_mut(rows * stride);
        let (max, norm) = rest.split_at_mut(rows);
        scaled_queries(self.q, dim, q);
        sums.fill(0.0);
        max.fill(f32::NEG_INFINITY);
        norm.fill(0.0);
        let mut scores = [[0.0; BLOCK]; MAX_ROWS];
        let mut state = State { q, sums, max, norm, scores: &mut scores, dim, stride };
        for (i, block) in
            blocks.iter().enumerate().take((self.start + self.q.rows()).div_ceil(BLOCK))
        {
            let (keys, values) = (block.keys(self.head, dim), block.values(self.head, dim));
            let seen = |t: usize| (self.start + t + 1).saturating_sub(i * BLOCK).min(BLOCK);
            // Queries that see a part of the block go alone; those that see all of it share tiles.
            let alone = (0..self.q.rows()).take_while(|t| seen(*t) < BLOCK).count();
            for t in (0..=alone).filter(|t| seen(*t) > 0) {
                let end = if t < alone { (t + 1) * self.group } else { rows };
                state.block(s, keys, values, t * self.group..end, seen(t));
            }
        }
        state.write(s, self.group, &mut self.out);
    }
}

/// Query rows times 1 / √head_dim.
#[inline(always)]
fn scaled_queries(q: MatRef, dim: usize, to: &mut [f32]) {
    let scale = 1.0 / (dim as f32).sqrt();
    for (t, to) in to.chunks_mut(q.cols()).enumerate() {
        to.iter_mut().zip(q.row(t)).for_each(|(to, q)| *to = q * scale);
    }
}

/// Running results of a part's rows.
struct State<'a> {
    /// Scaled queries \[rows, head_dim\].
    q: &'a [f32],
    /// `Σ e^{s − m} v`, \[rows, padded head_dim\].
    sums: &'a mut [f32],
    /// m of every row.
    max: &'a mut [f32],
    /// l of every row.
    norm: &'a mut [f32],
    /// Scores, then weights, of the tile's rows.
    scores: &'a mut [[f32; BLOCK]; MAX_ROWS],
    dim: usize,
    stride: usize,
}

impl State<'_> {
    /// Takes the first `seen` positions of a block into `rows`.
    #[inline(always)]
    fn block<S: Simd, E: Element>(
        &mut self,
        s: S,
        keys: &[E],
        values: &[E],
        rows: Range<usize>,
        seen: usize,
    ) {
        let mut from = rows.start;
        while from < rows.end {
            let height = even_share(rows.end - from, MAX_ROWS);
            let (q, dim) = (&self.q[from * self.dim..(from + height) * self.dim], self.dim);
            let mut scores = Scores { q, keys, dim, scores: self.scores };
            cover(s, &mut scores, 0..height, seen.div_ceil(S::LANES));
            let mut scale = [0.0; MAX_ROWS];
            for r in 0..height {
                let (max, norm) = (&mut self.max[from + r], &mut self.norm[from + r]);
                scale[r] = softmax(s, &mut self.scores[r], seen, max, norm);
            }
            let sums = &mut self.sums[from * self.stride..(from + height) * self.stride];
            let (scores, stride) = (&*self.scores, self.stride);
            let mut output = Output { scores, values, sums, scale, seen, stride };
            cover(s, &mut output, 0..height, self.dim.div_ceil(S::LANES));
            from += height;
        }
    }

    #[inline(always)]
    fn write<S: Simd>(&self, s: S, group: usize, out: &mut MatMut) {
        for t in 0..out.rows() {
            for (j, out) in out.row_mut(t).chunks_mut(self.dim).enumerate() {
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

/// Turns the first `seen` scores into `e^{s − m'}` and the others into zeros, updates m and l and
/// returns `e^{m − m'}`. A NaN score makes its weight and l NaN, whatever m becomes.
#[inline(always)]
fn softmax<S: Simd>(
    s: S,
    scores: &mut [f32; BLOCK],
    seen: usize,
    max: &mut f32,
    norm: &mut f32,
) -> f32 {
    scores[seen..].fill(f32::NEG_INFINITY);
    let mut largest = s.splat(*max);
    for part in scores.chunks(S::LANES) {
        largest = s.max(s.load(part), largest);
    }
    let largest = s.max_lane(largest);
    let (shift, mut sum) = (s.splat(largest), s.zero());
    for part in scores.chunks_mut(S::LANES) {
        let weight = s.exp(s.sub(s.load(part), shift));
        s.store(weight, part);
        sum = s.add(sum, weight);
    }
    let scale = s.max_lane(s.exp(s.splat(*max - largest)));
    *norm = *norm * scale + s.sum(sum);
    *max = largest;
    scale
}

/// Scores of a tile's rows: Q Kᵀ.
struct Scores<'a, E> {
    q: &'a [f32],
    keys: &'a [E],
    dim: usize,
    scores: &'a mut [[f32; BLOCK]; MAX_ROWS],
}

impl<E: Element> Tiled for Scores<'_, E> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, s: S, row: usize, col: usize) {
        let q: [&[f32]; R] = std::array::from_fn(|r| &self.q[(row + r) * self.dim..][..self.dim]);
        let acc = accumulate(s, [[s.zero(); V]; R], q, &self.keys[col..], BLOCK);
        for r in 0..R {
            for v in 0..V {
                s.store(acc[r][v], &mut self.scores[row + r][col + v * S::LANES..]);
            }
        }
    }
}

/// Weighted values of a tile's rows: e^{m − m'} · sums + P V.
struct Output<'a, E> {
    scores: &'a [[f32; BLOCK]; MAX_ROWS],
    values: &'a [E],
    sums: &'a mut [f32],
    scale: [f32; MAX_ROWS],
    seen: usize,
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
        let weights: [&[f32]; R] = std::array::from_fn(|r| &self.scores[row + r][..self.seen]);
        let acc = accumulate(s, acc, weights, &self.values[col..], self.stride);
        for r in 0..R {
            let new = &mut self.sums[(row + r) * self.stride + col..][..V * S::LANES];
            for v in 0..V {
                s.store(acc[r][v], &mut new[v * S::LANES..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::ops::testing::{assert_near, assert_same_bits, on_every_cpu, values};

    /// Queries, keys and values of a sequence; q is columns of a wider matrix.
    struct Case {
        rows: usize,
        heads: usize,
        kv_heads: usize,
        dim: usize,
        q: Vec<f32>,
        k: Vec<f32>,
        v: Vec<f32>,
    }

    impl Case {
        fn new(rows: usize, heads: usize, kv_heads: usize, dim: usize) -> Self {
            let q = values(rows * (heads * dim + 3), 1).iter().map(|v| v * 6.0).collect();
            let kv = |seed| values(rows * kv_heads * dim, seed);
            Self { rows, heads, kv_heads, dim, q, k: kv(2), v: kv(3) }
        }

        fn q(&self) -> MatRef<'_> {
            MatRef::new(&self.q, self.heads * self.dim + 3).columns(2, self.heads * self.dim)
        }

        fn kv(&self) -> (MatRef<'_>, MatRef<'_>) {
            let width = self.kv_heads * self.dim;
            (MatRef::new(&self.k, width), MatRef::new(&self.v, width))
        }

        /// The whole sequence in `pieces`.
        fn run(&self, cpu: &Cpu, dtype: KvDtype, pieces: &[usize]) -> Vec<f32> {
            let width = self.heads * self.dim;
            let (mut out, mut from) = (vec![f32::NAN; self.rows * width], 0);
            let mut cache = KvCache::new(dtype, self.kv_heads, self.dim);
            let (k, v) = self.kv();
            for &len in pieces {
                cache.append(k.rows_at(from, len), v.rows_at(from, len));
                let out = MatMut::new(&mut out[from * width..(from + len) * width], width);
                attention(cpu, self.q().rows_at(from, len), &cache, from, self.heads, out);
                from += len;
            }
            assert_eq!(from, self.rows);
            out
        }

        /// The formula in f64.
        fn naive(&self, dtype: KvDtype) -> Vec<f64> {
            let (k, v) = self.kv();
            let stored = |x: f32| match dtype {
                KvDtype::F32 => f64::from(x),
                KvDtype::Bf16 => half::bf16::from_f32(x).to_f64(),
            };
            let mut out = Vec::new();
            for t in 0..self.rows {
                for (j, q) in self.q().row(t).chunks(self.dim).enumerate() {
                    let at = j / (self.heads / self.kv_heads) * self.dim;
                    let score = |i: usize| {
                        let k = &k.row(i)[at..at + self.dim];
                        let dot: f64 =
                            q.iter().zip(k).map(|(q, k)| f64::from(*q) * stored(*k)).sum();
                        dot / (self.dim as f64).sqrt()
                    };
                    let scores: Vec<f64> = (0..=t).map(score).collect();
                    let max = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
                    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                    let norm: f64 = weights.iter().sum();
                    out.extend((0..self.dim).map(|c| {
                        (0..=t).map(|i| weights[i] * stored(v.row(i)[at + c])).sum::<f64>() / norm
                    }));
                }
            }
            out
        }
    }

    const SHAPES: [(usize, usize, usize, usize); 6] = [
        (0, 2, 1, 8),
        (1, 1, 1, 4),
        (5, 6, 2, 20),
        (200, 10, 2, 32),
        (131, 3, 3, 80),
        (70, 8, 1, 48),
    ];

    #[test]
    fn agrees_with_the_formula() {
        for (rows, heads, kv_heads, dim) in SHAPES {
            let case = Case::new(rows, heads, kv_heads, dim);
            for dtype in [KvDtype::F32, KvDtype::Bf16] {
                for (isa, got) in on_every_cpu(|cpu| case.run(cpu, dtype, &[rows])) {
                    assert_near(
                        &got,
                        &case.naive(dtype),
                        3e-6,
                        &format!("{isa} {dtype:?} T{rows}"),
                    );
                }
            }
        }
    }

    #[test]
    fn a_query_has_the_same_bits_in_any_pieces_and_step_by_step() {
        for (rows, heads, kv_heads, dim) in SHAPES {
            let case = Case::new(rows, heads, kv_heads, dim);
            for isa in Isa::available() {
                let cpu = Cpu::new(isa, 2);
                for dtype in [KvDtype::F32, KvDtype::Bf16] {
                    let whole = case.run(&cpu, dtype, &[rows]);
                    let steps = case.run(&cpu, dtype, &vec![1; rows]);
                    assert_same_bits(&steps, &whole, &format!("{isa} {dtype:?} steps"));
                    let pieces = [rows / 3, 0, rows / 2, rows - rows / 3 - rows / 2];
                    let pieces = case.run(&cpu, dtype, &pieces);
                    assert_same_bits(&pieces, &whole, &format!("{isa} {dtype:?} pieces"));
                }
            }
        }
    }

    #[test]
    fn nan_reaches_its_query_and_the_queries_that_see_it_and_no_other() {
        let clean = Case::new(100, 4, 2, 32);
        let row = clean.heads * clean.dim;
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 2);
            let want = clean.run(&cpu, KvDtype::F32, &[100]);
            // Query 40, head 1.
            let mut case = Case::new(100, 4, 2, 32);
            case.q[40 * (row + 3) + 2 + 32] = f32::NAN;
            let got = case.run(&cpu, KvDtype::F32, &[100]);
            let bad = 40 * row + 32..40 * row + 64;
            assert!(got[bad.clone()].iter().all(|v| v.is_nan()), "{isa}");
            assert_same_bits(&got[..bad.start], &want[..bad.start], "before");
            assert_same_bits(&got[bad.end..], &want[bad.end..], "after");
            // Key, then value, of position 70 and kv head 0.
            for key in [true, false] {
                let mut case = Case::new(100, 4, 2, 32);
                let tensor = if key { &mut case.k } else { &mut case.v };
                tensor[70 * 64..70 * 64 + 32].fill(f32::NAN);
                let got = case.run(&cpu, KvDtype::F32, &[100]);
                assert_same_bits(&got[..70 * row], &want[..70 * row], "queries before it");
                for got in got[70 * row..].chunks(row) {
                    assert!(got[..row / 2].iter().all(|v| v.is_nan()), "{isa} heads of the group");
                    assert!(got[row / 2..].iter().all(|v| v.is_finite()), "{isa} other heads");
                }
            }
        }
    }

    #[test]
    fn leftovers_of_a_longer_sequence_are_not_read() {
        let case = Case::new(40, 4, 2, 32);
        let (k, v) = case.kv();
        let bad = vec![f32::NAN; 40 * 64];
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 1);
            let mut cache = KvCache::new(KvDtype::F32, 2, 32);
            cache.append(k.rows_at(0, 3), v.rows_at(0, 3));
            cache.append(MatRef::new(&bad, 64), MatRef::new(&bad, 64));
            cache.truncate(3);
            cache.append(k.rows_at(3, 20), v.rows_at(3, 20));
            let mut got = vec![0.0; 23 * 128];
            attention(&cpu, case.q().rows_at(0, 23), &cache, 0, 4, MatMut::new(&mut got, 128));
            let want = case.run(&cpu, KvDtype::F32, &[40]);
            assert_same_bits(&got, &want[..23 * 128], &isa.to_string());
        }
    }
}

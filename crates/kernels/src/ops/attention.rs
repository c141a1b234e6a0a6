//! Causal attention of the queries of a batch, each sequence over its [`KvCache`]; softmax in f32,
//! no T × T matrix.
//!
//! Query row t of a segment is at position `past + t` and sees the positions up to its own. Query
//! head j uses kv head j / (heads / kv heads):
//!
//! `out[t, j] = Σ_i p_i v_i`, `p = softmax_i(q[t, j] · k_i / √head_dim)`, i = 0 … past + t.
//!
//! A cache is cut into spans of 512 positions; each span is summed by itself (online softmax over
//! blocks of 64) and spans are merged in order. Long prompts take the spans of a tile of queries
//! one after the other; a few queries over a long cache take them in parallel and merge after.
//!
//! **A query's bits depend on its own values and on the keys and values it sees alone**, not on T,
//! on the other queries, on the pieces the sequence came in, or on how the spans were taken.
//!
//! Sources: Vaswani et al. 2017; Ainslie et al. 2023 (grouped queries); Milakov and Gimelshein
//! 2018 (online softmax); Dao 2023 (FlashAttention-2); Dao et al. 2023 (Flash-Decoding).

mod span;
#[cfg(test)]
mod tests;

pub use crate::ops::kv_cache::{KvCache, KvDtype};

use crate::Cpu;
use crate::buffer::{Bands, Both, Chunks, Either, MatMut, MatRef};
use crate::ops::kv_block::{Block, Stored};
use crate::ops::kv_cache::{Blocks, with_blocks};
use crate::simd::{Simd, WithSimd, dispatch};
use span::{Queries, SPAN, Sums, first_query, num_spans, scaled_queries, sums_len};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

/// Rows (queries × heads of a group) that a worker takes at a time: enough to pay for reading the
/// keys and values from the outer caches, few enough for its scratch to stay in the inner ones.
const ROWS_PER_PART: usize = 80;
/// Most queries of a segment whose spans are taken in parallel.
const MAX_SPLIT_QUERIES: usize = 8;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static PLAN: RefCell<Plan> = RefCell::new(Plan::default());
}

/// The queries of one sequence.
#[derive(Clone)]
pub struct Segment<'a> {
    /// Their rows of q and out.
    pub rows: Range<usize>,
    /// Keys and values; those of the queries' own positions are in it already.
    pub cache: &'a KvCache,
    /// Position of the first query.
    pub past: usize,
}

/// Attention of the queries q `[T, heads · head_dim]` of segments `0 .. num_segments`, whose rows
/// ascend; writes the same rows of out, which has the same shape. All segments are one parallel
/// job; where caches are long, a second and much smaller one merges.
///
/// # Panics
/// If the shapes disagree, `num_heads` is no multiple of the kv heads, or a cache is too short.
pub fn attention<'c>(
    cpu: &Cpu,
    q: MatRef,
    num_segments: usize,
    segment: impl Fn(usize) -> Segment<'c> + Sync,
    num_heads: usize,
    out: MatMut,
) {
    of_segments(cpu, q, num_segments, &segment, num_heads, out);
}

/// Gives the segments by number.
type Segments<'a, 'c> = &'a (dyn Fn(usize) -> Segment<'c> + Sync);

/// [`attention`] for whatever function: compiled once, not in every crate that calls it.
fn of_segments(
    cpu: &Cpu,
    q: MatRef,
    num_segments: usize,
    segment: Segments,
    num_heads: usize,
    out: MatMut,
) {
    assert_eq!([q.rows(), q.cols()], [out.rows(), out.cols()], "shapes of q and out");
    if num_segments == 0 {
        return;
    }
    let shape = Shape::new(segment(0).cache, num_heads);
    assert_eq!(q.cols(), num_heads * shape.dim, "columns of q and out");
    // Taken, not borrowed, while tasks run on this thread too; put back with its buffers.
    let mut plan = PLAN.take();
    plan.fill(num_segments, segment, shape);
    run(cpu, q, segment, shape, &mut plan, out);
    PLAN.set(plan);
}

/// What all segments have in common.
#[derive(Clone, Copy)]
struct Shape {
    kv_heads: usize,
    dim: usize,
    group: usize,
}

impl Shape {
    fn new(cache: &KvCache, num_heads: usize) -> Self {
        let (kv_heads, dim) = (cache.num_kv_heads(), cache.head_dim());
        assert!(num_heads.is_multiple_of(kv_heads), "{num_heads} query heads, {kv_heads} kv heads");
        Self { kv_heads, dim, group: num_heads / kv_heads }
    }

    /// Columns of a group's heads.
    fn width(self) -> usize {
        self.group * self.dim
    }

    /// f32 values of the results of a span.
    fn partial_len(self, queries: usize) -> usize {
        sums_len(queries * self.group, self.dim)
    }
}

/// Who does what: tiles of queries that take all spans, and segments whose spans are split.
#[derive(Default)]
struct Plan {
    /// Rows of a tile.
    tiles: Vec<Range<usize>>,
    /// Its segment.
    tile_segments: Vec<usize>,
    /// Rows of a split segment.
    split: Vec<Range<usize>>,
    /// The segment.
    split_segments: Vec<usize>,
    /// Tasks (kv heads × spans) of the split segments before each, and of all.
    tasks: Vec<usize>,
    /// Most queries of a split segment.
    split_queries: usize,
    /// Multiply-adds times two, about.
    operations: usize,
    /// Results of spans, by task.
    partial: Vec<f32>,
}

impl Plan {
    fn fill(&mut self, num: usize, segment: Segments, shape: Shape) {
        let height = (ROWS_PER_PART / shape.group).max(1);
        let Self { tiles, tile_segments, split, split_segments, tasks, .. } = self;
        for list in [&mut *tile_segments, split_segments, tasks] {
            list.clear();
        }
        tiles.clear();
        split.clear();
        tasks.push(0);
        (self.split_queries, self.operations) = (0, 0);
        for i in 0..num {
            let Segment { rows, cache, past } = segment(i);
            let end = past + rows.len();
            assert!(end <= cache.len(), "queries up to position {end} of {}", cache.len());
            let same = [cache.num_kv_heads(), cache.head_dim()] == [shape.kv_heads, shape.dim];
            assert!(same, "all caches of a batch have one shape");
            self.operations += 4 * rows.len() * end * shape.kv_heads * shape.width();
            if num_spans(end) > 1 && (1..=MAX_SPLIT_QUERIES).contains(&rows.len()) {
                self.split_queries = self.split_queries.max(rows.len());
                split.push(rows);
                split_segments.push(i);
                tasks.push(tasks[tasks.len() - 1] + shape.kv_heads * num_spans(end));
            } else {
                for from in rows.clone().step_by(height) {
                    tiles.push(from..rows.end.min(from + height));
                    tile_segments.push(i);
                }
            }
        }
        let partials = tasks[tasks.len() - 1] * shape.partial_len(self.split_queries);
        if self.partial.len() < partials {
            self.partial.resize(partials, 0.0);
        }
    }
}

fn run(cpu: &Cpu, q: MatRef, segment: Segments, shape: Shape, plan: &mut Plan, mut out: MatMut) {
    let Plan { tiles, tile_segments, split, split_segments, tasks, partial, .. } = plan;
    let Shape { kv_heads, dim, group } = shape;
    let len = shape.partial_len(plan.split_queries).max(1);
    let partial = &mut partial[..tasks[tasks.len() - 1] * len];
    let whole = Bands::new(out.reborrow(), tiles, shape.width());
    let parts = Both(whole, Chunks::new(partial, len));
    cpu.pool().for_parts_sized(plan.operations, parts, |i, part| {
        let (segment, rows, head, work) = match part {
            Either::First(out) => {
                let tile = i / kv_heads;
                let segment = segment(tile_segments[tile]);
                (segment, tiles[tile].clone(), i % kv_heads, Work::Whole(out))
            }
            Either::Second(partial) => {
                let task = i - tiles.len() * kv_heads;
                let which = tasks.partition_point(|before| *before <= task) - 1;
                let segment = segment(split_segments[which]);
                let spans = num_spans(segment.past + segment.rows.len());
                let (head, span) = ((task - tasks[which]) / spans, (task - tasks[which]) % spans);
                let rows = segment.rows.clone();
                (segment, rows, head, Work::Span(span, partial))
            }
        };
        let start = segment.past + rows.start - segment.rows.start;
        let q = q.columns(head * shape.width(), shape.width()).rows_at(rows.start, rows.len());
        SCRATCH.with_borrow_mut(|scratch| {
            let part = Part { q, cache: segment.cache, head, start, group, work, scratch };
            dispatch(cpu.isa(), part);
        });
    });
    let partial = &*partial;
    let merged = Bands::new(out, split, shape.width());
    cpu.pool().for_parts_sized(8 * partial.len(), merged, |i, out| {
        let (which, head) = (i / kv_heads, i % kv_heads);
        let spans = (tasks[which + 1] - tasks[which]) / kv_heads;
        let partial = &partial[(tasks[which] + head * spans) * len..][..spans * len];
        let past = segment(split_segments[which]).past;
        SCRATCH.with_borrow_mut(|scratch| {
            dispatch(cpu.isa(), Merge { partial, len, past, dim, out, scratch });
        });
    });
}

/// Room for `len` values, grown where it is too small.
fn room(scratch: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    &mut scratch[..len]
}

/// What a task leaves.
enum Work<'a> {
    /// The output, from all spans.
    Whole(MatMut<'a>),
    /// The [`Sums`] of one span.
    Span(usize, &'a mut [f32]),
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
    work: Work<'a>,
    scratch: &'a mut Vec<f32>,
}

impl WithSimd for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cache = self.cache;
        with_blocks!(&cache.blocks, blocks => self.over(s, blocks));
    }
}

impl Part<'_> {
    #[inline(always)]
    fn over<S: Simd, E: Stored>(self, s: S, blocks: &[Arc<Block<E>>]) {
        let (dim, rows) = (self.cache.head_dim(), self.q.rows() * self.group);
        let sums = sums_len(rows, dim);
        let (q, rest) = room(self.scratch, rows * dim + 2 * sums).split_at_mut(rows * dim);
        let (one, total) = rest.split_at_mut(sums);
        scaled_queries(self.q, dim, q);
        let queries = Queries { q, start: self.start, group: self.group, dim };
        let (spans, first, out) = match self.work {
            Work::Whole(out) => (0..num_spans(self.start + self.q.rows()), total, Some(out)),
            Work::Span(span, partial) => (span..span + 1, partial, None),
        };
        let (mut total, mut one) = (Sums::new(first, rows, dim), Sums::new(one, rows, dim));
        // One call: its code is large.
        for span in spans.clone() {
            let own = if span == spans.start { &mut total } else { &mut one };
            let seen = queries.over(s, blocks, self.head, span, own);
            if span > spans.start {
                total.merge(s, seen, &one);
            }
        }
        if let Some(mut out) = out {
            total.write(s, dim, &mut out);
        }
    }
}

/// Merges the spans of a group's heads.
struct Merge<'a> {
    /// [`Sums`] of all spans, `len` values each.
    partial: &'a [f32],
    len: usize,
    past: usize,
    dim: usize,
    out: MatMut<'a>,
    scratch: &'a mut Vec<f32>,
}

impl WithSimd for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (queries, group) = (self.out.rows(), self.out.cols() / self.dim);
        let rows = queries * group;
        let sums = sums_len(rows, self.dim);
        let (one, total) = room(self.scratch, 2 * sums).split_at_mut(sums);
        let mut spans = self.partial.chunks_exact(self.len).map(|partial| &partial[..sums]);
        total.copy_from_slice(spans.next().expect("at least two spans"));
        let mut total = Sums::new(total, rows, self.dim);
        for (i, partial) in spans.enumerate() {
            one.copy_from_slice(partial);
            let first = first_query(self.past, (i + 1) * SPAN).min(queries);
            total.merge(s, first * group..rows, &Sums::new(one, rows, self.dim));
        }
        total.write(s, self.dim, &mut self.out);
    }
}

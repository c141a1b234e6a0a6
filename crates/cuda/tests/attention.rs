//! Attention over paged keys and values on the device: against its formula and itself.

mod emulated;

use half::bf16;
use hybra_cuda::ops::Value;
use hybra_cuda::ops::attention::{
    HeadColumns, KV_PAGE_LEN, KvLayer, KvSegments, SegmentLen, attention, attention_decode,
    attention_prefill, kv_append,
};
use hybra_cuda::{DeviceBuffer, Gpu, stride};
use std::ops::Range;

/// Uniform in −1 … 1.
fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A compute type on the host.
trait Real: Value {
    fn wide(self) -> f32;
    fn round(value: f32) -> f32;
}

impl Real for f32 {
    fn wide(self) -> f32 {
        self
    }
    fn round(value: f32) -> f32 {
        value
    }
}

impl Real for bf16 {
    fn wide(self) -> f32 {
        self.to_f32()
    }
    fn round(value: f32) -> f32 {
        bf16::from_f32(value).to_f32()
    }
}

/// Heads, kv heads, head_dim.
type Shape = [usize; 3];

/// Queries, keys and values of a sequence, one row a position.
struct Sequence {
    shape: Shape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Sequence {
    /// Scores reach ±6 or so, so that a few positions have most of the weight.
    fn new(shape: Shape, len: usize, seed: u64) -> Self {
        let [heads, kv_heads, dim] = shape;
        let q = values(len * heads * dim, 3 * seed).iter().map(|v| v * 6.0).collect();
        let kv = |seed| values(len * kv_heads * dim, seed);
        Self { shape, q, k: kv(3 * seed + 1), v: kv(3 * seed + 2) }
    }

    fn len(&self) -> usize {
        self.q.len() / self.q_width()
    }

    fn q_width(&self) -> usize {
        self.shape[0] * self.shape[2]
    }

    fn kv_width(&self) -> usize {
        self.shape[1] * self.shape[2]
    }

    /// The formula in f64 over keys and values as stored, for the positions `at`.
    fn formula<T: Real>(&self, at: Range<usize>, round_q: bool) -> Vec<f64> {
        let ([heads, kv_heads, dim], width) = (self.shape, self.kv_width());
        let [k, v] = [&self.k, &self.v].map(|x| x.iter().map(|x| T::round(*x)).collect::<Vec<_>>());
        let mut out = Vec::new();
        for t in at {
            for (j, q) in self.q[t * heads * dim..][..heads * dim].chunks(dim).enumerate() {
                let first = j / (heads / kv_heads) * dim;
                let score = |i: usize| {
                    let products = q.iter().zip(&k[i * width + first..]).map(|(q, k)| {
                        f64::from(if round_q { T::round(*q) } else { *q }) * f64::from(*k)
                    });
                    products.sum::<f64>() / (dim as f64).sqrt()
                };
                let scores: Vec<f64> = (0..=t).map(score).collect();
                let max = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let norm: f64 = weights.iter().sum();
                let value = |i: usize, c: usize| f64::from(v[i * width + first + c]);
                out.extend(
                    (0..dim).map(|c| (0..=t).map(|i| weights[i] * value(i, c)).sum::<f64>() / norm),
                );
            }
        }
        out
    }
}

/// How a batch is run.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// As the rule says.
    Rule,
    /// All by the decode kernel, for contexts up to so many positions.
    Decode(usize),
    /// All by the prefill kernel.
    Prefill,
    /// Keys and values alone.
    Append,
}

/// Sequences with their pages on the device: the second of three layers, pages in scattered order,
/// NaN where nothing was written.
struct Device<'a, T: Real> {
    gpu: &'a Gpu,
    sequences: &'a [Sequence],
    pool: DeviceBuffer<T>,
    /// Addresses of each sequence's pages.
    tables: Vec<Vec<u64>>,
}

impl<'a, T: Real> Device<'a, T> {
    fn new(gpu: &'a Gpu, sequences: &'a [Sequence]) -> Self {
        let [_, kv_heads, dim] = sequences[0].shape;
        let page_len = 3 * KvLayer::layer_bytes::<T>(kv_heads, dim) / size_of::<T>();
        let pages = |s: &Sequence| s.len().div_ceil(KV_PAGE_LEN);
        let num: usize = sequences.iter().map(pages).sum();
        let mut pool = gpu.alloc::<T>(num * page_len).unwrap();
        let nan = vec![bytemuck::pod_read_unaligned::<T>(&[0xff; 4][..size_of::<T>()]); pool.len()];
        gpu.upload(pool.slice_mut(..), &nan).unwrap();
        // Every page of every sequence elsewhere: a step that has no divisor in common with `num`.
        let common = |n: usize, d: usize| n.is_multiple_of(d) && num.is_multiple_of(d);
        let step = (num / 2 + 1..).find(|n| !(2..=*n).any(|d| common(*n, d))).unwrap();
        let mut place = (0..num).map(|i| i * step % num);
        let tables = sequences.iter().map(|s| {
            let address = |i| pool.slice(i * page_len..).ptr();
            place.by_ref().take(pages(s)).map(address).collect()
        });
        let tables = tables.collect();
        Self { gpu, sequences, pool, tables }
    }

    /// Takes the next positions of some sequences (each number and positions) as one batch; returns
    /// their outputs without padding. Queries, keys and values are columns of one matrix.
    fn run(&self, batch: &[(usize, Range<usize>)], way: Way) -> Vec<Vec<f32>> {
        let (gpu, [num_heads, num_kv_heads, head_dim]) = (self.gpu, self.sequences[0].shape);
        let (q_width, kv_width) = (num_heads * head_dim, num_kv_heads * head_dim);
        let (mut rows, mut arrays, mut pages) = (vec![], [vec![], vec![], vec![], vec![]], vec![]);
        let mut num_rows = 0;
        for (which, at) in batch {
            let s = &self.sequences[*which];
            for t in at.clone() {
                rows.extend_from_slice(&s.q[t * q_width..][..q_width]);
                rows.extend_from_slice(&s.k[t * kv_width..][..kv_width]);
                rows.extend_from_slice(&s.v[t * kv_width..][..kv_width]);
            }
            let entry = [num_rows, at.len(), at.start, pages.len()];
            arrays.iter_mut().zip(entry).for_each(|(array, x)| array.push(x as u32));
            pages.extend_from_slice(&self.tables[*which][..at.end.div_ceil(KV_PAGE_LEN)]);
            num_rows += at.len();
        }
        let rows = gpu.upload_new(&rows).unwrap();
        let [start, len, past, first_page] = arrays.map(|a| gpu.upload_new(&a).unwrap());
        let pages = gpu.upload_new(&pages).unwrap();
        let segments = KvSegments {
            start: start.slice(..),
            len: len.slice(..),
            past: past.slice(..),
            first_page: first_page.slice(..),
            pages: pages.slice(..),
        };
        let layer_offset = KvLayer::layer_bytes::<T>(num_kv_heads, head_dim);
        let layer = KvLayer { num_heads, num_kv_heads, head_dim, layer_offset, segments };
        let columns =
            |first| HeadColumns { rows: rows.slice(..), first, stride: q_width + 2 * kv_width };
        let (q, k, v) = (columns(0), columns(q_width), columns(q_width + kv_width));
        kv_append::<T>(gpu, &layer, k, v).unwrap();
        if way == Way::Append {
            return Vec::new();
        }
        let padded = stride(q_width);
        let mut out = gpu.alloc::<T>(num_rows * padded).unwrap();
        let ones = vec![bytemuck::pod_read_unaligned::<T>(&[0xff; 4][..size_of::<T>()]); out.len()];
        gpu.upload(out.slice_mut(..), &ones).unwrap();
        let to = out.slice_mut(..);
        let context = batch.iter().map(|(_, at)| at.end).max().unwrap_or(0);
        // Three rows at once: several launches, the last of which has fewer.
        let context = if let Way::Decode(least) = way { context.max(least) } else { context };
        let mut scratch = gpu.alloc::<f32>(layer.scratch_len(3, context)).unwrap();
        let room = scratch.slice_mut(..);
        match way {
            Way::Decode(_) => {
                attention_decode(gpu, &layer, 0..num_rows, context, q, to, room).unwrap();
            }
            Way::Prefill => {
                let longest = batch.iter().map(|(_, at)| at.len()).max().unwrap_or(0);
                attention_prefill(gpu, &layer, 0..batch.len(), longest, q, to).unwrap();
            }
            _ => {
                let lens =
                    |(_, at): &(usize, Range<usize>)| SegmentLen { len: at.len(), past: at.start };
                let lens: Vec<_> = batch.iter().map(lens).collect();
                attention(gpu, &layer, &lens, q, to, room).unwrap();
            }
        }
        let out = gpu.to_vec(out.slice(..)).unwrap();
        let mut rows = out.chunks(padded);
        let segment = |(_, at): &(usize, Range<usize>)| {
            let rows = rows.by_ref().take(at.len()).flat_map(|row| {
                assert!(row[q_width..].iter().all(|v| v.wide() == 0.0), "padding");
                row[..q_width].iter().map(|v| v.wide())
            });
            rows.collect()
        };
        batch.iter().map(segment).collect()
    }
}

/// The positions `at` of one sequence in one call, those before in others.
fn one<T: Real>(gpu: &Gpu, sequence: &[Sequence], at: Range<usize>, way: Way) -> Vec<f32> {
    let device = Device::<T>::new(gpu, sequence);
    device.run(&[(0, 0..at.start)], Way::Append);
    device.run(&[(0, at)], way).pop().unwrap()
}

fn assert_near(got: &[f32], want: &[f64], most: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let errors = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - want).abs());
    let worst = errors.fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a });
    assert!(worst <= most, "{what}: error {worst}, at most {most}");
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

fn assert_same_bits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let differ = got.iter().zip(want).position(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!(differ, None, "{what}: {:?}", differ.map(|i| (got[i], want[i])));
}

/// Error of an output in bf16: weights are rounded by 2⁻⁹, which moves the mean of values, at most
/// 1, by as much, and the output itself likewise. The rest is for sums in f32.
const BF16_ERROR: f64 = 2.0 / 512.0 + 1e-5;

/// Each decode kernel: 16 bytes or one value at once, matrix units; groups of 1, 3, 5 and 9 heads.
const SHAPES: [Shape; 7] =
    [[1, 1, 4], [6, 2, 20], [3, 3, 5], [9, 1, 64], [10, 2, 128], [5, 1, 24], [3, 1, 200]];

fn decode_agrees<T: Real>(gpu: &Gpu, rounds_q: impl Fn(usize) -> bool, most: f64) {
    for shape in SHAPES {
        let sequence = [Sequence::new(shape, 75, 1)];
        for at in [0..5, 60..75] {
            let want = sequence[0].formula::<T>(at.clone(), rounds_q(shape[2]));
            let got = one::<T>(gpu, &sequence, at.clone(), Way::Decode(0));
            assert_near(&got, &want, most, &format!("{shape:?} {at:?}"));
        }
    }
    // Over long contexts the errors of many weights cancel.
    let most = most / 3.0;
    for shape in [[6, 2, 20], [5, 1, 128]] {
        let sequence = [Sequence::new(shape, 1100, 2)];
        for at in [511..513, 1023..1025, 1099..1100] {
            let want = sequence[0].formula::<T>(at.clone(), rounds_q(shape[2]));
            let got = one::<T>(gpu, &sequence, at.clone(), Way::Decode(0));
            assert_near(&got, &want, most, &format!("{shape:?} {at:?}"));
        }
    }
}

#[test]
fn decode_in_f32_agrees_with_the_formula() {
    let Some(gpu) = emulated::gpu() else { return };
    decode_agrees::<f32>(gpu, |_| false, 3e-6);
}

#[test]
fn decode_in_bf16_agrees_with_the_formula() {
    let Some(gpu) = emulated::gpu() else { return };
    decode_agrees::<bf16>(gpu, |dim| dim == 64 || dim == 128, BF16_ERROR);
}

/// Head dims below, at and between those of the kernels.
#[test]
fn prefill_agrees_with_the_formula_and_decode() {
    let Some(gpu) = emulated::gpu() else { return };
    for shape in [[2, 1, 8], [3, 1, 64], [2, 2, 80], [5, 1, 128]] {
        let sequence = [Sequence::new(shape, 200, 3)];
        for at in [0..1, 0..200, 70..75, 100..200] {
            let what = format!("{shape:?} {at:?}");
            let want = sequence[0].formula::<bf16>(at.clone(), true);
            let got = one::<bf16>(gpu, &sequence, at.clone(), Way::Prefill);
            assert_near(&got, &want, BF16_ERROR, &what);
        }
        let got = one::<bf16>(gpu, &sequence, 190..200, Way::Prefill);
        let decoded = one::<bf16>(gpu, &sequence, 190..200, Way::Decode(0));
        assert_near(&got, &wide(&decoded), BF16_ERROR, "decode");
    }
}

/// Pieces of `len` positions in a row, of several calls.
fn in_pieces<T: Real>(gpu: &Gpu, sequence: &[Sequence], lens: &[usize], way: Way) -> Vec<f32> {
    let device = Device::<T>::new(gpu, sequence);
    let (mut from, mut out) = (0, Vec::new());
    for len in lens {
        out.extend(device.run(&[(0, from..from + len)], way).concat());
        from += len;
    }
    assert_eq!(from, sequence[0].len());
    out
}

#[test]
fn pieces_give_the_bits_of_the_whole() {
    let Some(gpu) = emulated::gpu() else { return };
    for shape in [[3, 1, 64], [2, 1, 72]] {
        let sequence = [Sequence::new(shape, 300, 4)];
        let whole = in_pieces::<bf16>(gpu, &sequence, &[300], Way::Rule);
        for pieces in [&[64, 64, 172][..], &[128, 172], &[50, 3, 147, 2, 98]] {
            let got = in_pieces::<bf16>(gpu, &sequence, pieces, Way::Rule);
            assert_same_bits(&got, &whole, &format!("{shape:?} {pieces:?}"));
        }
    }
    // A last row by itself.
    let sequence = [Sequence::new([3, 1, 64], 129, 4)];
    let whole = in_pieces::<bf16>(gpu, &sequence, &[129], Way::Rule);
    for pieces in [&[64, 65][..], &[128, 1], &[64, 64, 1]] {
        let got = in_pieces::<bf16>(gpu, &sequence, pieces, Way::Rule);
        assert_same_bits(&got, &whole, &format!("{pieces:?}"));
    }
    let sequence = [Sequence::new([3, 1, 12], 70, 5)];
    let whole = in_pieces::<f32>(gpu, &sequence, &[70], Way::Rule);
    let got = in_pieces::<f32>(gpu, &sequence, &[1, 1, 30, 1, 37], Way::Rule);
    assert_same_bits(&got, &whole, "f32");
}

/// Segments of no, one and many tokens, of short and long contexts; also decoded by a grid that is
/// made for longer contexts.
fn batch_is_singles<T: Real>(gpu: &Gpu, shape: Shape) {
    let lens = [600, 40, 200, 1030, 64, 5];
    let sequences: Vec<_> =
        lens.iter().zip(10..).map(|(len, seed)| Sequence::new(shape, *len, seed)).collect();
    let batch = [
        (0, 599..600),
        (1, 39..40),
        (2, 64..128),
        (3, 1020..1020),
        (3, 1027..1030),
        (4, 0..64),
        (5, 4..5),
    ];
    for way in [Way::Rule, Way::Decode(0)] {
        let device = Device::<T>::new(gpu, &sequences);
        batch.iter().for_each(|(i, at)| drop(device.run(&[(*i, 0..at.start)], Way::Append)));
        let together = device.run(&batch, way);
        let wide = if way == Way::Rule { way } else { Way::Decode(2500) };
        for ((i, at), together) in batch.iter().zip(&together) {
            let alone = one::<T>(gpu, &sequences[*i..=*i], at.clone(), wide);
            assert_same_bits(together, &alone, &format!("{shape:?} {i} {at:?}"));
        }
    }
}

#[test]
fn a_batch_gives_each_segment_the_bits_it_has_alone() {
    let Some(gpu) = emulated::gpu() else { return };
    batch_is_singles::<bf16>(gpu, [2, 1, 64]);
    batch_is_singles::<bf16>(gpu, [2, 1, 24]);
    batch_is_singles::<f32>(gpu, [2, 1, 4]);
}

/// Value 70 of kv head 1 is NaN, in a batch with a sequence that has none.
#[test]
fn nan_reaches_the_queries_that_see_it_and_no_other_sequence() {
    let Some(gpu) = emulated::gpu() else { return };
    for (shape, way, first) in [
        ([4, 2, 64], Way::Decode(0), 70),
        ([4, 2, 8], Way::Decode(0), 70),
        ([4, 2, 64], Way::Prefill, 64),
    ] {
        let [heads, _, dim] = shape;
        let mut sequences = [Sequence::new(shape, 90, 6), Sequence::new(shape, 90, 7)];
        let batch = [(0, 0..90), (1, 0..90)];
        let clean = Device::<bf16>::new(gpu, &sequences).run(&batch, way);
        sequences[0].v[(70 * 2 + 1) * dim..][..dim].fill(f32::NAN);
        let got = Device::<bf16>::new(gpu, &sequences).run(&batch, way);
        assert_same_bits(&got[1], &clean[1], "the other sequence");
        let rows = got[0].chunks(heads * dim).zip(clean[0].chunks(heads * dim));
        for (t, (got, clean)) in rows.enumerate() {
            let (left, right) = got.split_at(heads / 2 * dim);
            assert_same_bits(left, &clean[..left.len()], "heads of the other kv head");
            if t < first {
                assert_same_bits(right, &clean[left.len()..], "queries before");
            }
            assert!(t < 70 || right.iter().all(|v| v.is_nan()), "{shape:?}, query {t}");
        }
    }
}

/// A row that sees more than the launch was made for is NaN, not wrong.
#[test]
fn a_context_beyond_the_grid_gives_nan() {
    let Some(gpu) = emulated::gpu() else { return };
    let sequence = [Sequence::new([1, 1, 4], 520, 6)];
    let device = Device::<f32>::new(gpu, &sequence);
    device.run(&[(0, 0..519)], Way::Append);
    let q = gpu.upload_new(&sequence[0].q[519 * 4..]).unwrap();
    let one = |x: usize| gpu.upload_new(&[x as u32]).unwrap();
    let (start, len, past, first) = (one(0), one(1), one(519), one(0));
    let pages = gpu.upload_new(&device.tables[0]).unwrap();
    let segments = KvSegments {
        start: start.slice(..),
        len: len.slice(..),
        past: past.slice(..),
        first_page: first.slice(..),
        pages: pages.slice(..),
    };
    let layer_offset = KvLayer::layer_bytes::<f32>(1, 4);
    let layer = KvLayer { num_heads: 1, num_kv_heads: 1, head_dim: 4, layer_offset, segments };
    let mut out = gpu.alloc::<f32>(64).unwrap();
    let mut scratch = gpu.alloc::<f32>(layer.scratch_len(1, 512)).unwrap();
    let q = HeadColumns::all(q.slice(..), 4);
    attention_decode(gpu, &layer, 0..1, 512, q, out.slice_mut(..), scratch.slice_mut(..)).unwrap();
    let out = gpu.to_vec(out.slice(..)).unwrap();
    assert!(out[..4].iter().all(|v| v.is_nan()) && out[4..].iter().all(|v| *v == 0.0));
}

/// What is appended lies where the layout says, rounded, and nothing else is written.
fn appended_lies<T: Real>(gpu: &Gpu, shape: Shape) {
    let [_, kv_heads, dim] = shape;
    let sequences = [Sequence::new(shape, 150, 7), Sequence::new(shape, 3, 8)];
    let device = Device::<T>::new(gpu, &sequences);
    device.run(&[(0, 0..70), (1, 0..1)], Way::Append);
    device.run(&[(1, 1..2), (0, 70..140)], Way::Append);
    let pool = gpu.to_vec(device.pool.slice(..)).unwrap();
    let mut written = 0;
    for (which, until) in [(0, 140), (1, 2)] {
        let s = &sequences[which];
        for at in 0..until {
            let page = device.tables[which][at / KV_PAGE_LEN] - device.pool.slice(..).ptr();
            let layer = page as usize / size_of::<T>() + 2 * kv_heads * KV_PAGE_LEN * dim;
            for (i, rows) in [&s.k, &s.v].into_iter().enumerate() {
                for (head, row) in
                    rows[at * kv_heads * dim..].chunks(dim).take(kv_heads).enumerate()
                {
                    let place =
                        layer + ((i * kv_heads + head) * KV_PAGE_LEN + at % KV_PAGE_LEN) * dim;
                    let got = pool[place..][..dim].iter().map(|v| v.wide());
                    assert!(got.eq(row.iter().map(|v| T::round(*v))), "{shape:?} {which} {at}");
                    written += dim;
                }
            }
        }
    }
    assert_eq!(pool.iter().filter(|v| !v.wide().is_nan()).count(), written);
}

#[test]
fn keys_and_values_lie_in_their_pages() {
    let Some(gpu) = emulated::gpu() else { return };
    for shape in [[3, 3, 8], [2, 2, 5]] {
        appended_lies::<f32>(gpu, shape);
        appended_lies::<bf16>(gpu, shape);
    }
}

//! Attention against its formula, and the same bits in any pieces.

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
            cache.append(cpu, k.rows_at(from, len), v.rows_at(from, len));
            let out = MatMut::new(&mut out[from * width..(from + len) * width], width);
            let segment = Segment { rows: 0..len, cache: &cache, past: from };
            let q = self.q().rows_at(from, len);
            attention(cpu, q, 1, |_| segment.clone(), self.heads, out);
            from += len;
        }
        assert_eq!(from, self.rows);
        out
    }

    /// The formula in f64.
    fn naive(&self, dtype: KvDtype) -> Vec<f64> {
        let width = self.kv_heads * self.dim;
        let [k, v] = [&self.k, &self.v].map(|x| stored(x, dtype, self.dim));
        let mut out = Vec::new();
        for t in 0..self.rows {
            for (j, q) in self.q().row(t).chunks(self.dim).enumerate() {
                let at = j / (self.heads / self.kv_heads) * self.dim;
                let score = |i: usize| {
                    let k = &k[i * width + at..][..self.dim];
                    let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * k).sum();
                    dot / (self.dim as f64).sqrt()
                };
                let scores: Vec<f64> = (0..=t).map(score).collect();
                let max = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let norm: f64 = weights.iter().sum();
                out.extend((0..self.dim).map(|c| {
                    (0..=t).map(|i| weights[i] * v[i * width + at + c]).sum::<f64>() / norm
                }));
            }
        }
        out
    }
}

/// What is read for keys or values.
fn stored(x: &[f32], dtype: KvDtype, dim: usize) -> Vec<f64> {
    match dtype {
        KvDtype::F32 => x.iter().map(|x| f64::from(*x)).collect(),
        KvDtype::Bf16 => x.iter().map(|x| half::bf16::from_f32(*x).to_f64()).collect(),
        KvDtype::Q8 => {
            let head = |head: &[f32]| {
                let scale = head.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
                let value = |x: &f32| f64::from((x / scale).round_ties_even()) * f64::from(scale);
                head.iter().map(value).collect::<Vec<_>>()
            };
            x.chunks(dim).flat_map(head).collect()
        }
    }
}

const DTYPES: [KvDtype; 3] = [KvDtype::F32, KvDtype::Bf16, KvDtype::Q8];

const SHAPES: [(usize, usize, usize, usize); 7] = [
    (0, 2, 1, 8),
    (1, 1, 1, 4),
    (5, 6, 2, 20),
    (200, 10, 2, 32),
    (131, 3, 3, 80),
    (70, 8, 1, 48),
    (1100, 4, 2, 16),
];

#[test]
fn agrees_with_the_formula() {
    for (rows, heads, kv_heads, dim) in SHAPES {
        let case = Case::new(rows, heads, kv_heads, dim);
        for dtype in DTYPES {
            for (isa, got) in on_every_cpu(|cpu| case.run(cpu, dtype, &[rows])) {
                assert_near(&got, &case.naive(dtype), 3e-6, &format!("{isa} {dtype:?} T{rows}"));
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
            for dtype in DTYPES {
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
        for dtype in DTYPES {
            let mut cache = KvCache::new(dtype, 2, 32);
            cache.append(&cpu, k.rows_at(0, 3), v.rows_at(0, 3));
            cache.append(&cpu, MatRef::new(&bad, 64), MatRef::new(&bad, 64));
            cache.truncate(3);
            cache.append(&cpu, k.rows_at(3, 20), v.rows_at(3, 20));
            let mut got = vec![0.0; 23 * 128];
            let segment = Segment { rows: 0..23, cache: &cache, past: 0 };
            let out = MatMut::new(&mut got, 128);
            attention(&cpu, case.q().rows_at(0, 23), 1, |_| segment.clone(), 4, out);
            let want = case.run(&cpu, dtype, &[40]);
            assert_same_bits(&got, &want[..23 * 128], &format!("{isa} {dtype:?}"));
        }
    }
}

/// Long and short, one query and many, one and several spans: as each sequence alone.
#[test]
fn a_batch_gives_each_sequence_the_bits_it_has_alone() {
    let case = Case::new(1600, 6, 2, 20);
    let (k, v) = case.kv();
    // (past, queries)
    let lens = [(1599, 1), (0, 70), (600, 1), (3, 1), (508, 8), (1020, 9), (10, 0), (1536, 1)];
    for isa in Isa::available() {
        for dtype in DTYPES {
            let alone = Cpu::new(isa, 1);
            let caches = lens.map(|(past, len)| {
                let mut cache = KvCache::new(dtype, 2, 20);
                cache.append(&alone, k.rows_at(0, past + len), v.rows_at(0, past + len));
                cache
            });
            let (mut q, mut want) = (Vec::new(), Vec::new());
            let mut segments = Vec::new();
            let mut rows = 0;
            for ((past, len), cache) in lens.into_iter().zip(&caches) {
                let mut own = Vec::new();
                (past..past + len).for_each(|t| own.extend_from_slice(case.q().row(t)));
                let mut out = vec![0.0; own.len()];
                let segment = Segment { rows: 0..len, cache, past };
                let (mat, to) = (MatRef::new(&own, 120), MatMut::new(&mut out, 120));
                attention(&alone, mat, 1, |_| segment.clone(), 6, to);
                segments.push(Segment { rows: rows..rows + len, cache, past });
                rows += len;
                q.append(&mut own);
                want.append(&mut out);
            }
            for threads in [1, 3] {
                let mut got = vec![f32::NAN; want.len()];
                let (mat, to) = (MatRef::new(&q, 120), MatMut::new(&mut got, 120));
                let cpu = Cpu::new(isa, threads);
                attention(&cpu, mat, segments.len(), |i| segments[i].clone(), 6, to);
                assert_same_bits(&got, &want, &format!("{isa} {dtype:?} {threads} threads"));
            }
        }
    }
}

/// A key is off by 0.5001/127 of its largest value, which moves a score by at most
/// `δ = ‖q‖₁ max|k| · 0.5001 / (127 √dim)` and its weight by a factor within `e^{±2δ}`.
#[test]
fn bytes_are_within_the_bound_that_rounding_allows() {
    let case = Case::new(300, 4, 2, 32);
    let most = |x: &[f32]| x.iter().fold(0f64, |most, x| most.max(f64::from(x.abs())));
    let (unit, exact) = (0.5001 / 127.0, case.naive(KvDtype::F32));
    for isa in Isa::available() {
        let got = case.run(&Cpu::new(isa, 2), KvDtype::Q8, &[300]);
        let mut error = 0.0;
        for (i, (got, exact)) in got.chunks(32).zip(exact.chunks(32)).enumerate() {
            let q = &case.q().row(i / 4)[i % 4 * 32..][..32];
            let norm: f64 = q.iter().map(|q| f64::from(q.abs())).sum();
            let moved = norm * most(&case.k) * unit / 32f64.sqrt();
            let bound = ((2.0 * moved).exp_m1() + unit) * most(&case.v) + 3e-6;
            for (got, exact) in got.iter().zip(exact) {
                assert!((f64::from(*got) - exact).abs() <= bound, "{isa}: {got} ≠ {exact}");
                error += (f64::from(*got) - exact).powi(2);
            }
        }
        // The bound is of the worst case; rounding errors mostly cancel.
        let size: f64 = exact.iter().map(|x| x * x).sum();
        assert!((error / size).sqrt() < 0.02, "{isa}: {}", (error / size).sqrt());
    }
}

//! The gradient of causal grouped-query attention over documents that start from nothing.
//!
//! For a block of queries against all keys up to its end, with `P = softmax(Q Kᵀ/√head_dim)`
//! computed once more: `dV += Pᵀ dO`, `dP = dO Vᵀ`, `dS = P ∘ (dP − Σ_j P ∘ dP)/√head_dim`,
//! `dQ = dS K`, `dK += dSᵀ Q`. A worker holds the rows of one block of queries, never T × T.
//!
//! Source: Dao et al. 2022 (FlashAttention), algorithm 4.

use crate::buffer::{Chunks, MatMut, MatRef};
use crate::ops::product::{Write, product_here};
use crate::simd::{Simd, WithSimd, dispatch};
use crate::{Cpu, Isa};
use std::cell::RefCell;

/// Queries of a block.
const BLOCK: usize = 64;

thread_local! {
    /// P and dP of a block of queries.
    static SCRATCH: RefCell<[Vec<f32>; 2]> = RefCell::default();
}

/// Queries, keys and values of all documents, or their gradients: `[T, heads · head_dim]` and
/// twice `[T, kv heads · head_dim]`.
pub struct Qkv<M> {
    /// Queries.
    pub q: M,
    /// Keys.
    pub k: M,
    /// Values.
    pub v: M,
}

/// Writes the gradients of q, k and v, given that of the output \[T, heads · head_dim\]. The rows
/// are those of `documents`, by their lengths.
///
/// # Panics
/// If the shapes disagree.
pub fn attention_backward(
    cpu: &Cpu,
    x: &Qkv<MatRef>,
    documents: &[usize],
    head_dim: usize,
    dout: MatRef,
    d: Qkv<MatMut>,
) {
    let (rows, kv_heads) = (x.q.rows(), x.k.cols() / head_dim);
    assert_eq!([x.k.rows(), x.v.rows(), dout.rows(), d.q.rows()], [rows; 4], "rows");
    assert_eq!([dout.cols(), d.q.cols()], [x.q.cols(); 2], "columns of the queries");
    assert_eq!([x.v.cols(), d.k.cols(), d.v.cols()], [kv_heads * head_dim; 3], "columns of k, v");
    assert_eq!(documents.iter().sum::<usize>(), rows, "rows of the documents");
    let group = x.q.cols() / head_dim / kv_heads;
    let mut tasks = Vec::with_capacity(documents.len() * kv_heads);
    let (mut from, mut rest) = (0, [d.q, d.k, d.v]);
    for &len in documents {
        let mut document = rest.each_mut().map(|all| {
            let (mine, later) = take(all).split_rows(len);
            *all = later;
            mine
        });
        for head in 0..kv_heads {
            let widths = [group * head_dim, head_dim, head_dim];
            let mut widths = widths.into_iter();
            let [q, k, v] = document.each_mut().map(|all| {
                let (mine, others) = take(all).split_columns(widths.next().expect("three"));
                *all = others;
                mine
            });
            let rows = from..from + len;
            tasks.push(Task { rows, head, group, head_dim, d: Qkv { q, k, v } });
        }
        from += len;
    }
    let operations: usize = documents.iter().map(|len| 6 * len * len * x.q.cols()).sum();
    cpu.pool().for_parts_sized(operations, Chunks::new(&mut tasks, 1), |_, task| {
        SCRATCH.with_borrow_mut(|scratch| task[0].run(cpu.isa(), x, dout, scratch));
    });
}

fn take<'a>(m: &mut MatMut<'a>) -> MatMut<'a> {
    std::mem::replace(m, MatMut::new(&mut [], 1))
}

/// One kv head of one document.
struct Task<'a> {
    rows: std::ops::Range<usize>,
    head: usize,
    /// Query heads of the kv head.
    group: usize,
    head_dim: usize,
    d: Qkv<MatMut<'a>>,
}

impl Task<'_> {
    fn run(&mut self, isa: Isa, x: &Qkv<MatRef>, dout: MatRef, scratch: &mut [Vec<f32>; 2]) {
        let (from, len, dim) = (self.rows.start, self.rows.len(), self.head_dim);
        let (k, v) = (x.k.rows_at(from, len), x.v.rows_at(from, len));
        let (k, v) = (k.columns(self.head * dim, dim), v.columns(self.head * dim, dim));
        for r in 0..len {
            self.d.k.row_mut(r).fill(0.0);
            self.d.v.row_mut(r).fill(0.0);
        }
        scratch.iter_mut().for_each(|v| v.resize(BLOCK.min(len) * len, 0.0));
        let [p, dp] = scratch;
        let scale = 1.0 / (dim as f32).sqrt();
        for member in 0..self.group {
            let column = (self.head * self.group + member) * dim;
            for first in (0..len).step_by(BLOCK) {
                let rows = BLOCK.min(len - first);
                let seen = first + rows;
                let q = x.q.rows_at(from + first, rows).columns(column, dim);
                let g = dout.rows_at(from + first, rows).columns(column, dim);
                let (k, v) = (k.rows_at(0, seen), v.rows_at(0, seen));
                let (p, dp) = (&mut p[..rows * seen], &mut dp[..rows * seen]);
                product_here(isa, q, k.t(), MatMut::new(p, seen), Write::Store);
                product_here(isa, g, v.t(), MatMut::new(dp, seen), Write::Store);
                dispatch(isa, Softmax { p, dp, seen, first, scale });
                let (p, ds) = (MatRef::new(p, seen), MatRef::new(dp, seen));
                let dq = self.d.q.reborrow().rows_at(first, rows).columns(member * dim, dim);
                product_here(isa, ds, k, dq, Write::Store);
                let (dk, dv) = (self.d.k.reborrow(), self.d.v.reborrow());
                product_here(isa, ds.t(), q, dk.rows_at(0, seen), Write::Add);
                product_here(isa, p.t(), g, dv.rows_at(0, seen), Write::Add);
            }
        }
    }
}

/// Scores become P, dP becomes dS; columns behind a query's own position become 0.
struct Softmax<'a> {
    /// \[rows, seen\].
    p: &'a mut [f32],
    dp: &'a mut [f32],
    seen: usize,
    /// Position of the first row.
    first: usize,
    scale: f32,
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.p.chunks_exact_mut(self.seen).zip(self.dp.chunks_exact_mut(self.seen));
        for (r, (p, dp)) in rows.enumerate() {
            let (p, hidden) = p.split_at_mut(self.first + r + 1);
            let (dp, dhidden) = dp.split_at_mut(self.first + r + 1);
            hidden.fill(0.0);
            dhidden.fill(0.0);
            let top = p.iter().fold(f32::NEG_INFINITY, |top, v| top.max(*v));
            let (scale, top) = (s.splat(self.scale), s.splat(top));
            let (mut sum, mut dot) = (0.0, s.zero());
            for v in p.chunks_mut(S::LANES) {
                let e = s.exp(s.mul(s.sub(s.load_partial(v), top), scale));
                s.store_partial(e, v);
                // Lanes behind the end hold e^(−top·scale): the values are summed as stored.
                sum += s.sum(s.load_partial(v));
            }
            let share = s.splat(1.0 / sum);
            for (p, dp) in p.chunks_mut(S::LANES).zip(dp.chunks(S::LANES)) {
                let v = s.mul(s.load_partial(p), share);
                s.store_partial(v, p);
                dot = s.fma(s.load_partial(p), s.load_partial(dp), dot);
            }
            let dot = s.splat(s.sum(dot));
            for (p, dp) in p.chunks(S::LANES).zip(dp.chunks_mut(S::LANES)) {
                let d = s.mul(s.sub(s.load_partial(dp), dot), scale);
                s.store_partial(s.mul(s.load_partial(p), d), dp);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{
        assert_same_bits, central_differences, on_every_cpu, relative_error, values,
    };

    const DIM: usize = 5;

    struct Case {
        heads: [usize; 2],
        documents: Vec<usize>,
        inputs: [Vec<f32>; 3],
        dout: Vec<f32>,
    }

    impl Case {
        fn new(heads: [usize; 2], documents: &[usize]) -> Self {
            let rows: usize = documents.iter().sum();
            let [q, kv] = heads.map(|h| h * DIM * rows);
            let q_ = values(q, 1).iter().map(|v| 3.0 * v).collect();
            let inputs = [q_, values(kv, 2), values(kv, 3)];
            Self { heads, documents: documents.to_vec(), inputs, dout: values(q, 4) }
        }

        fn gradients(&self, cpu: &Cpu, calls: &[&[usize]]) -> Vec<f32> {
            let widths = [self.heads[0] * DIM, self.heads[1] * DIM, self.heads[1] * DIM];
            let mut out = self.inputs.each_ref().map(|v| vec![f32::NAN; v.len()]);
            let mut from = 0;
            for documents in calls {
                let rows = documents.iter().sum();
                let [q, k, v] =
                    [0, 1, 2].map(|i| MatRef::new(&self.inputs[i], widths[i]).rows_at(from, rows));
                let dout = MatRef::new(&self.dout, widths[0]).rows_at(from, rows);
                let [dq, dk, dv] = &mut out;
                let [dq, dk, dv] = [(dq, 0), (dk, 1), (dv, 2)]
                    .map(|(m, i)| MatMut::new(m, widths[i]).rows_at(from, rows));
                let d = Qkv { q: dq, k: dk, v: dv };
                attention_backward(cpu, &Qkv { q, k, v }, documents, DIM, dout, d);
                from += rows;
            }
            out.concat()
        }

        fn loss(&self, flat: &[f64]) -> f64 {
            let (q, kv) = flat.split_at(self.inputs[0].len());
            let (k, v) = kv.split_at(self.inputs[1].len());
            let [heads, kv_heads] = self.heads;
            let (mut loss, mut from) = (0.0, 0);
            for &len in &self.documents {
                for (t, head) in (0..len).flat_map(|t| (0..heads).map(move |h| (t, h))) {
                    let q = &q[((from + t) * heads + head) * DIM..][..DIM];
                    let kv = |m: &'_ [f64], i: usize, c: usize| {
                        m[((from + i) * kv_heads + head / (heads / kv_heads)) * DIM + c]
                    };
                    let score = |i| {
                        let dot: f64 = (0..DIM).map(|c| q[c] * kv(k, i, c)).sum();
                        (dot / (DIM as f64).sqrt()).exp()
                    };
                    let scores: Vec<f64> = (0..=t).map(score).collect();
                    let total: f64 = scores.iter().sum();
                    for c in 0..DIM {
                        let out: f64 = (0..=t).map(|i| scores[i] / total * kv(v, i, c)).sum();
                        loss += out * f64::from(self.dout[((from + t) * heads + head) * DIM + c]);
                    }
                }
                from += len;
            }
            loss
        }
    }

    #[test]
    fn gradients_are_the_slopes() {
        for (heads, documents) in [([1, 1], vec![3]), ([4, 2], vec![5, 1, 7]), ([2, 1], vec![66])] {
            let case = Case::new(heads, &documents);
            let inputs = case.inputs.each_ref().map(|v| v.as_slice());
            let want = central_differences(&inputs, |flat| case.loss(flat));
            for (isa, got) in on_every_cpu(|cpu| case.gradients(cpu, &[&documents])) {
                let error = relative_error(&got, &want);
                assert!(error < 5e-6, "{isa} {heads:?} {documents:?}: {error:e}");
            }
        }
    }

    #[test]
    fn packed_documents_and_documents_one_by_one_have_the_same_bits() {
        let case = Case::new([4, 2], &[70, 3, 64]);
        on_every_cpu(|cpu| {
            let packed = case.gradients(cpu, &[&[70, 3, 64]]);
            assert_same_bits(&case.gradients(cpu, &[&[70], &[3], &[64]]), &packed, "one by one");
            packed
        });
    }
}

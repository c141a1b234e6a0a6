//! Divergence of a student's next-token distribution from a teacher's, fused with the head.
//!
//! With p the teacher's and q the student's distribution at temperature τ:
//! - forward, `τ²·KL(p ‖ q)`: `dlogits = τ·(q − p)`;
//! - reverse, `τ²·KL(q ‖ p)`: `dlogits = τ·q·(log q − log p − KL)`.
//!
//! A teacher is its own hidden rows and head, or the k largest probabilities of every row: then
//! the rest of the vocabulary is one bucket in both distributions, so that nothing is
//! renormalized, and `q − p` becomes `q·(1 − p_tail/q_tail)` outside the k.
//!
//! Sources: Hinton et al. 2015; Muralidharan et al. 2024 (Minitron).

use crate::Cpu;
use crate::buffer::{Chunks, MatRef};
use crate::ops::linear_cross_entropy::Softmax;
use crate::ops::logits::{Head, HeadGradients, ROWS, learned_rows};
use crate::simd::{Simd, WithSimd, array, dispatch};
use std::ops::Range;

/// Where the teacher's distribution comes from.
#[derive(Clone, Copy)]
pub enum Teacher<'a> {
    /// Hidden rows \[T, h'\] and head \[V, h'\].
    Logits {
        /// Rows.
        x: MatRef<'a>,
        /// Head.
        w: MatRef<'a>,
    },
    /// The k most probable ids of every row and their probabilities at τ, \[T, k\] each.
    TopK {
        /// k.
        k: usize,
        /// Distinct within a row.
        ids: &'a [u32],
        /// They sum to at most 1.
        probs: &'a [f32],
    },
}

/// Which distribution the expectation is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The teacher's: KL(p ‖ q).
    Forward,
    /// The student's: KL(q ‖ p).
    Reverse,
}

/// What is computed.
#[derive(Clone, Copy)]
pub struct KlOptions<'a> {
    /// Shares of the loss, \[T\].
    pub weights: &'a [f32],
    /// τ.
    pub temperature: f32,
    /// Direction.
    pub direction: Direction,
    /// Factor of the gradients.
    pub scale: f32,
}

/// Least probability of the tail, so that its logarithm is finite.
const TINY: f32 = 1e-12;

/// Writes the divergence of every row of non-zero weight to `losses` \[T\] and, where asked for, the
/// gradients of `scale · Σ weight · divergence`; returns that sum without `scale`.
///
/// # Panics
/// If the shapes disagree.
pub fn linear_kl_div(
    cpu: &Cpu,
    x: MatRef,
    w: MatRef,
    teacher: Teacher,
    options: KlOptions,
    losses: &mut [f32],
    mut gradients: Option<HeadGradients>,
) -> f64 {
    let KlOptions { weights, temperature, scale, .. } = options;
    assert_eq!([weights.len(), losses.len()], [x.rows(); 2], "rows");
    if let Some(g) = &mut gradients {
        (0..x.rows()).for_each(|t| g.x.row_mut(t).fill(0.0));
    }
    let mut pass = match teacher {
        Teacher::Logits { x: rows, w: head } => {
            assert_eq!([rows.rows(), head.rows()], [x.rows(), w.rows()], "rows and vocabulary");
            Pass::Logits(rows, Head::new(head, temperature))
        }
        Teacher::TopK { k, ids, probs } => {
            assert_eq!([ids.len(), probs.len()], [k * x.rows(); 2], "top-k rows");
            Pass::TopK(TopK { k, ids, probs, log_q: vec![] })
        }
    };
    let (mut student, mut loss) = (Head::new(w, temperature), 0.0);
    for rows in learned_rows(weights).chunks(ROWS) {
        pass.start(cpu, &mut student, x, rows);
        let kl = pass.divergences(cpu, &mut student, rows, options.direction);
        for (&t, kl) in rows.iter().zip(&kl) {
            losses[t] = kl * temperature * temperature;
            loss += f64::from(weights[t]) * f64::from(losses[t]);
        }
        let Some(g) = &mut gradients else { continue };
        let factors: Vec<f32> = rows.iter().map(|&t| weights[t] * scale * temperature).collect();
        for tile in student.tiles() {
            let rows = Rows { rows, kl: &kl, factors: &factors, direction: options.direction };
            pass.slopes(cpu, &mut student, tile.clone(), rows);
            student.back(cpu, tile, &mut g.w);
        }
        student.scatter(rows, &mut g.x);
    }
    loss
}

/// The rows of a block.
#[derive(Clone, Copy)]
struct Rows<'a> {
    rows: &'a [usize],
    kl: &'a [f32],
    factors: &'a [f32],
    direction: Direction,
}

/// The teacher's side of a pass.
enum Pass<'a> {
    Logits(MatRef<'a>, Head<'a>),
    TopK(TopK<'a>),
}

impl Pass<'_> {
    fn start(&mut self, cpu: &Cpu, student: &mut Head, x: MatRef, rows: &[usize]) {
        match self {
            Self::Logits(hidden, head) => {
                student.start(cpu, x, rows, |_, _| {});
                head.start(cpu, *hidden, rows, |_, _| {});
            }
            Self::TopK(top) => {
                top.log_q.clear();
                top.log_q.resize(rows.len() * top.k, 0.0);
                student.start(cpu, x, rows, |tile, logits| top.gather(rows, tile, logits));
                for (i, lse) in student.lse.iter().enumerate() {
                    top.log_q[i * top.k..][..top.k].iter_mut().for_each(|v| *v -= lse);
                }
            }
        }
    }

    fn divergences(
        &mut self,
        cpu: &Cpu,
        student: &mut Head,
        rows: &[usize],
        direction: Direction,
    ) -> Vec<f32> {
        let mut kl = vec![0.0; rows.len()];
        match self {
            Self::TopK(top) => {
                let row = |(i, kl): (usize, &mut f32)| *kl = top.divergence(rows[i], i, direction);
                kl.iter_mut().enumerate().for_each(row);
            }
            Self::Logits(_, teacher) => {
                for tile in student.tiles() {
                    let (lse_q, lse_p) = (student.lse.clone(), teacher.lse.clone());
                    let q = &*student.tile(cpu, tile.clone());
                    let p = &*teacher.tile(cpu, tile.clone());
                    let parts = Chunks::new(&mut kl, 1);
                    cpu.pool().for_parts_sized(40 * p.len(), parts, |i, kl| {
                        let row = i * tile.len()..(i + 1) * tile.len();
                        let (q, p) = ((&q[row.clone()], lse_q[i]), (&p[row], lse_p[i]));
                        let pair = if direction == Direction::Forward { (p, q) } else { (q, p) };
                        kl[0] += dispatch(cpu.isa(), Divergence { of: pair.0, from: pair.1 });
                    });
                }
            }
        }
        kl
    }

    /// The gradients of a tile of logits, in their place.
    fn slopes(&mut self, cpu: &Cpu, student: &mut Head, tile: Range<usize>, r: Rows) {
        let lse_q = student.lse.clone();
        let q = student.tile(cpu, tile.clone());
        let operations = 40 * q.len();
        match self {
            Self::TopK(top) => {
                cpu.pool().for_parts_sized(operations, Chunks::new(q, tile.len()), |i, row| {
                    let (inside, tail) = top.slopes(r.rows[i], i, r.kl[i], r.direction);
                    let weight = r.factors[i] * tail;
                    dispatch(cpu.isa(), Softmax { row, lse: lse_q[i], weight });
                    for (&id, slope) in top.ids(r.rows[i]).iter().zip(inside) {
                        if tile.contains(&(id as usize)) {
                            row[id as usize - tile.start] = r.factors[i] * slope;
                        }
                    }
                });
            }
            Self::Logits(_, teacher) => {
                let lse_p = teacher.lse.clone();
                let p = &*teacher.tile(cpu, tile.clone());
                cpu.pool().for_parts_sized(operations, Chunks::new(q, tile.len()), |i, q| {
                    let p = &p[i * tile.len()..(i + 1) * tile.len()];
                    let kl = (r.direction == Direction::Reverse).then_some(r.kl[i]);
                    let lse = [lse_q[i], lse_p[i]];
                    dispatch(cpu.isa(), Slopes { q, p, lse, kl, factor: r.factors[i] });
                });
            }
        }
    }
}

/// `Σ e^{log a}·(log a − log b)` of two rows of logits, each with its normalizer.
struct Divergence<'a> {
    of: (&'a [f32], f32),
    from: (&'a [f32], f32),
}

impl WithSimd for Divergence<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let ((a, lse_a), (b, lse_b)) = (self.of, self.from);
        let whole = a.len() - a.len() % S::LANES;
        let mut sum = s.zero();
        for (a, b) in a[..whole].chunks_exact(S::LANES).zip(b.chunks_exact(S::LANES)) {
            let log_a = s.sub(s.load(a), s.splat(lse_a));
            let log_b = s.sub(s.load(b), s.splat(lse_b));
            sum = s.fma(s.exp(log_a), s.sub(log_a, log_b), sum);
        }
        let rest = a[whole..].iter().zip(&b[whole..]).map(|(a, b)| {
            let (log_a, log_b) = (a - lse_a, b - lse_b);
            log_a.exp() * (log_a - log_b)
        });
        s.sum(sum) + rest.sum::<f32>()
    }
}

/// Logits of the student become the gradient; `kl` where the direction is reverse.
struct Slopes<'a> {
    q: &'a mut [f32],
    p: &'a [f32],
    lse: [f32; 2],
    kl: Option<f32>,
    factor: f32,
}

impl WithSimd for Slopes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [lse_q, lse_p] = array!(2, i => s.splat(self.lse[i]));
        let factor = s.splat(self.factor);
        for (q, p) in self.q.chunks_mut(S::LANES).zip(self.p.chunks(S::LANES)) {
            let log_q = s.sub(s.load_partial(q), lse_q);
            let log_p = s.sub(s.load_partial(p), lse_p);
            let d = match self.kl {
                None => s.sub(s.exp(log_q), s.exp(log_p)),
                Some(kl) => s.mul(s.exp(log_q), s.sub(s.sub(log_q, log_p), s.splat(kl))),
            };
            s.store_partial(s.mul(d, factor), q);
        }
    }
}

/// The teacher's most probable ids.
struct TopK<'a> {
    k: usize,
    ids: &'a [u32],
    probs: &'a [f32],
    /// log q of the ids of the block's rows, \[n, k\].
    log_q: Vec<f32>,
}

impl TopK<'_> {
    fn ids(&self, t: usize) -> &[u32] {
        &self.ids[t * self.k..][..self.k]
    }

    fn gather(&mut self, rows: &[usize], tile: Range<usize>, logits: &[f32]) {
        for (i, row) in logits.chunks_exact(tile.len()).enumerate() {
            for j in 0..self.k {
                let id = self.ids[rows[i] * self.k + j] as usize;
                if tile.contains(&id) {
                    self.log_q[i * self.k + j] = row[id - tile.start];
                }
            }
        }
    }

    /// (log p, log q) of row t's ids, then of the rest.
    fn buckets(&self, t: usize, i: usize) -> impl Iterator<Item = (f32, f32)> {
        let (p, q) = (&self.probs[t * self.k..][..self.k], &self.log_q[i * self.k..][..self.k]);
        let rest = |sum: f32| (1.0 - sum).max(TINY).ln();
        let tail = (rest(p.iter().sum()), rest(q.iter().map(|v| v.exp()).sum()));
        p.iter().zip(q).map(|(p, q)| (p.max(TINY).ln(), *q)).chain(std::iter::once(tail))
    }

    fn divergence(&self, t: usize, i: usize, direction: Direction) -> f32 {
        let terms = self.buckets(t, i).map(|(log_p, log_q)| match direction {
            Direction::Forward => log_p.exp() * (log_p - log_q),
            Direction::Reverse => log_q.exp() * (log_q - log_p),
        });
        terms.sum()
    }

    /// Slopes of the ids' logits, and what q is multiplied with everywhere else.
    fn slopes(&self, t: usize, i: usize, kl: f32, direction: Direction) -> (Vec<f32>, f32) {
        let slope = |(log_p, log_q): (f32, f32)| match direction {
            Direction::Forward => log_q.exp() - log_p.exp(),
            Direction::Reverse => log_q.exp() * (log_q - log_p - kl),
        };
        let mut slopes: Vec<f32> = self.buckets(t, i).map(slope).collect();
        slopes.pop();
        let (log_p, log_q) = self.buckets(t, i).last().expect("the tail");
        let tail = match direction {
            Direction::Forward => 1.0 - (log_p - log_q).exp(),
            Direction::Reverse => log_q - log_p - kl,
        };
        (slopes, tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::linear_cross_entropy::gradient_vec;
    use crate::ops::testing::{central_differences, on_every_cpu, relative_error, values};

    const TAU: f32 = 2.0;

    /// log softmax(x·wᵀ/τ) of every row.
    fn log_softmax(x: &[f64], w: &[f64], h: usize) -> Vec<Vec<f64>> {
        let row = |x: &[f64]| {
            let logit = |w: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
            let logits: Vec<f64> = w.chunks(h).map(|w| logit(w) / f64::from(TAU)).collect();
            let lse = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
            logits.into_iter().map(|l| l - lse).collect()
        };
        x.chunks(h).map(row).collect()
    }

    fn wide(v: &[f32]) -> Vec<f64> {
        v.iter().map(|v| f64::from(*v)).collect()
    }

    #[test]
    fn divergences_and_gradients_agree_with_the_formula() {
        let (rows, vocab, h) = (5, 11, 3);
        let (x, w) = (values(rows * h, 1), values(vocab * h, 2));
        let (tx, tw) = (values(rows * 2, 3), values(vocab * 2, 4));
        let weights = [1.0, 0.0, 0.5, 1.0, 2.0];
        let log_p = log_softmax(&wide(&tx), &wide(&tw), 2);
        for k in [0, 3] {
            let top: Vec<Vec<u32>> = log_p
                .iter()
                .map(|row| {
                    let mut ids: Vec<u32> = (0..vocab as u32).collect();
                    ids.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
                    ids[..k].to_vec()
                })
                .collect();
            let ids = top.concat();
            let prob = |(i, id): (usize, &u32)| log_p[i / k][*id as usize].exp() as f32;
            let probs: Vec<f32> = ids.iter().enumerate().map(prob).collect();
            // Distributions with the ids outside the top k in one bucket.
            let buckets = |t: usize, row: &[f64]| {
                if k == 0 {
                    return row.to_vec();
                }
                let mut out: Vec<f64> = top[t].iter().map(|id| row[*id as usize]).collect();
                let rest: f64 = 1.0 - out.iter().map(|v| v.exp()).sum::<f64>();
                out.push(rest.ln());
                out
            };
            for direction in [Direction::Forward, Direction::Reverse] {
                let loss = |flat: &[f64]| {
                    let (x, w) = flat.split_at(rows * h);
                    let mut loss = 0.0;
                    for (t, q) in log_softmax(x, w, h).iter().enumerate() {
                        let (p, q) = (buckets(t, &log_p[t]), buckets(t, q));
                        let (a, b) = if direction == Direction::Forward { (p, q) } else { (q, p) };
                        let kl: f64 = a.iter().zip(&b).map(|(a, b)| a.exp() * (a - b)).sum();
                        loss += f64::from(weights[t]) * kl * f64::from(TAU * TAU);
                    }
                    loss
                };
                let want = central_differences(&[&x, &w], loss);
                let want_loss = loss(&wide(&[x.clone(), w.clone()].concat()));
                for (isa, got) in on_every_cpu(|cpu| {
                    let teacher = match k {
                        0 => Teacher::Logits { x: MatRef::new(&tx, 2), w: MatRef::new(&tw, 2) },
                        _ => Teacher::TopK { k, ids: &ids, probs: &probs },
                    };
                    let scale = 1.0;
                    let o = KlOptions { weights: &weights, temperature: TAU, direction, scale };
                    let (mut losses, mut loss) = (vec![0.0; rows], 0.0);
                    let (x, w) = (MatRef::new(&x, h), MatRef::new(&w, h));
                    let mut got = gradient_vec((rows, vocab, h), |g| {
                        loss = linear_kl_div(cpu, x, w, teacher, o, &mut losses, Some(g));
                    });
                    got.push(loss as f32);
                    got
                }) {
                    let (loss, got) = got.split_last().unwrap();
                    let what = format!("{isa} {direction:?} k {k}");
                    assert!((f64::from(*loss) - want_loss).abs() < 1e-5, "{what}: {loss}");
                    let error = relative_error(got, &want);
                    assert!(error < 5e-6, "{what}: {error:e}");
                }
            }
        }
    }
}

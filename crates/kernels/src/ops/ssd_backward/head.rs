//! What is no product of a head of a chunk, forward again and backward.
//!
//! A head's columns lie side by side with those of its block: `at` is where they begin, and how wide
//! the block is.

use super::{Chunk, HeadScratch, MAX_CHUNK};
use crate::buffer::{MatMut, MatRef};
use crate::simd::{Simd, WithSimd};

/// s, E, W, U, Lᵀ and Mᵀ of a head whose Γᵀ is there.
pub(super) struct Decays<'a> {
    pub(super) chunk: Chunk<'a>,
    pub(super) head: usize,
    pub(super) at: (usize, usize),
    pub(super) w: &'a mut HeadScratch,
}

impl WithSimd for Decays<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { chunk: Chunk { p, x, delta, .. }, head, at: (at, width), w } = self;
        let (rows, dim) = (x.rows(), p.head_dim);
        let (sums, a) = (&mut w.sums[..rows], f64::from(p.a[head]));
        let mut sum = 0.0;
        for r in 0..rows {
            let delta = delta.row(r)[head];
            sum += f64::from(delta) * a;
            sums[r] = sum;
            let (u, x) = (&mut w.u[r * width + at..][..dim], &x.row(r)[head * dim..][..dim]);
            u.iter_mut().zip(x).for_each(|(u, x)| *u = delta * x);
        }
        let [e, rest] = &mut w.decays;
        for r in 0..rows {
            e[r] = sums[r] as f32;
            rest[r] = (sum - sums[r]) as f32;
        }
        exp_in_place(s, &mut e[..rows]);
        exp_in_place(s, &mut rest[..rows]);
        let [gamma, _, l, m, _] = &mut w.triangles;
        for j in 0..rows {
            let row = j * rows..(j + 1) * rows;
            let (gamma, l, m) = (&gamma[row.clone()], &mut l[row.clone()], &mut m[row]);
            l[..j].fill(0.0);
            for i in j..rows {
                l[i] = (sums[i] - sums[j]) as f32;
            }
            exp_in_place(s, &mut l[j..]);
            m.iter_mut().zip(gamma.iter().zip(&*l)).for_each(|(m, (g, l))| *m = g * l);
        }
    }
}

#[inline(always)]
fn exp_in_place<S: Simd>(s: S, values: &mut [f32]) {
    for v in values.chunks_mut(S::LANES) {
        s.store_partial(s.exp(s.load_partial(v)), v);
    }
}

/// `y += E∘F + D∘x`, W∘U, and `c S`, where the chunk's own part of the state is added to.
pub(super) struct Outputs<'a> {
    pub(super) x: MatRef<'a>,
    /// D.
    pub(super) skip: f32,
    pub(super) y: MatMut<'a>,
    pub(super) before: MatRef<'a>,
    pub(super) after: MatMut<'a>,
    pub(super) at: (usize, usize),
    pub(super) w: &'a mut HeadScratch,
}

impl WithSimd for Outputs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, _: S) {
        let (HeadScratch { u, wu, f, decays: [e, rest], .. }, (at, width)) = (self.w, self.at);
        let (rows, dim) = (self.x.rows(), self.x.cols());
        for t in 0..rows {
            let head = t * width + at..t * width + at + dim;
            let (y, f, e) = (self.y.row_mut(t), &f[head.clone()], e[t]);
            let values = y.iter_mut().zip(f.iter().zip(self.x.row(t)));
            values.for_each(|(y, (f, x))| *y += e * f + self.skip * x);
            let (wu, u, rest) = (&mut wu[head.clone()], &u[head], rest[t]);
            wu.iter_mut().zip(u).for_each(|(wu, u)| *wu = rest * u);
        }
        let end = e[rows - 1];
        for n in 0..self.before.rows() {
            let after = self.after.row_mut(n).iter_mut();
            after.zip(self.before.row(n)).for_each(|(to, s)| *to = end * s);
        }
    }
}

/// Multiplies the columns of every head of a block with the head's c.
pub(super) struct ScaleHeads<'a> {
    pub(super) ends: &'a [f32],
    pub(super) dim: usize,
    pub(super) state: MatMut<'a>,
}

impl WithSimd for ScaleHeads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, _: S) {
        for n in 0..self.state.rows() {
            let heads = self.state.row_mut(n).chunks_exact_mut(self.dim);
            for (head, end) in heads.zip(self.ends) {
                head.iter_mut().for_each(|v| *v *= end);
            }
        }
    }
}

/// A head whose dMᵀ, F, dU without V and V without W are there: dX, dΔ, E∘dY, W∘U and its part of
/// dΓᵀ. Returns the gradients of A_log and D.
pub(super) struct HeadBackward<'a> {
    pub(super) chunk: Chunk<'a>,
    pub(super) head: usize,
    pub(super) at: (usize, usize),
    pub(super) dy: MatRef<'a>,
    /// S_in and dS.
    pub(super) states: [MatRef<'a>; 2],
    pub(super) dx: MatMut<'a>,
    pub(super) ddelta: MatMut<'a>,
    pub(super) w: &'a mut HeadScratch,
}

/// Sums over a head's columns of a row: ⟨dY, F⟩, ⟨U, V⟩, ⟨dU, X⟩ and ⟨dY, X⟩.
type RowSums = [f32; 4];

impl WithSimd for HeadBackward<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> (f32, f32) {
        self.triangle(s);
        let Chunk { p, x, delta, .. } = self.chunk;
        let (rows, a) = (x.rows(), p.a[self.head]);
        let all = self.w.decays[0][rows - 1] * self.state(s);
        // E ⟨dY, F⟩, and ⟨dU, X⟩.
        let (mut suffix, mut du_x) = ([0.0f32; MAX_CHUNK], [0.0f32; MAX_CHUNK]);
        let (mut prefix, mut dd) = (0.0, 0.0);
        for t in 0..rows {
            let [dy_f, u_v, du_x_, dy_x] = self.row(s, t);
            suffix[t] = self.w.decays[0][t] * dy_f;
            self.w.da[t] += prefix;
            prefix += u_v;
            du_x[t] = du_x_;
            dd += dy_x;
        }
        let (mut sum, mut da_log) = (0.0, 0.0);
        for t in (0..rows).rev() {
            sum += suffix[t];
            let da = self.w.da[t] + sum + all;
            self.ddelta.row_mut(t)[0] = a * da + du_x[t];
            da_log += a * delta.row(t)[self.head] * da;
        }
        (da_log, dd)
    }
}

impl HeadBackward<'_> {
    /// `dΓᵀ += dMᵀ ∘ Lᵀ`, and the rectangle sums in da.
    #[inline(always)]
    fn triangle<S: Simd>(&mut self, s: S) {
        let rows = self.chunk.x.rows();
        let [_, dgamma, l, m, dm] = &mut self.w.triangles;
        // sums[i] = Σ_{j<r} K_ij
        let mut sums = [0.0f32; MAX_CHUNK];
        for r in 0..rows {
            let row = r * rows..(r + 1) * rows;
            // Rows i ≥ r of the prefix over j < r.
            let mut total = s.zero();
            let mut rest = &sums[r..rows];
            while !rest.is_empty() {
                total = s.add(total, s.load_partial(rest));
                rest = &rest[S::LANES.min(rest.len())..];
            }
            self.w.da[r] = s.sum(total);
            let (dgamma, l) = (&mut dgamma[row.clone()], &l[row.clone()]);
            let (m, dm) = (&m[row.clone()], &dm[row]);
            for i in r..rows {
                dgamma[i] += dm[i] * l[i];
                sums[i] += dm[i] * m[i];
            }
        }
    }

    /// ⟨dS, S_in⟩.
    #[inline(always)]
    fn state<S: Simd>(&self, s: S) -> f32 {
        let [s_in, ds] = self.states;
        let mut sum = s.zero();
        for n in 0..ds.rows() {
            for (a, b) in s_in.row(n).chunks(S::LANES).zip(ds.row(n).chunks(S::LANES)) {
                sum = s.fma(s.load_partial(a), s.load_partial(b), sum);
            }
        }
        s.sum(sum)
    }

    /// Row t of dX, E∘dY and W∘U.
    #[inline(always)]
    fn row<S: Simd>(&mut self, s: S, t: usize) -> RowSums {
        let dim = self.dy.cols();
        let whole = dim / S::LANES * S::LANES;
        let mut sums = [s.zero(); 4];
        for i in (0..whole).step_by(S::LANES) {
            self.part::<S, true>(s, t, i, &mut sums);
        }
        if whole < dim {
            self.part::<S, false>(s, t, whole, &mut sums);
        }
        s.sums(&sums)
    }

    /// A vector of the row from column i on, up to the end unless it is `WHOLE`.
    #[inline(always)]
    fn part<S: Simd, const WHOLE: bool>(&mut self, s: S, t: usize, i: usize, sums: &mut [S::V; 4]) {
        let (w, (at, width)) = (&mut *self.w, self.at);
        let (head, dim) = (self.head, self.dy.cols());
        let here = t * width + at + i..t * width + at + if WHOLE { i + S::LANES } else { dim };
        let x = &self.chunk.x.row(t)[head * dim + i..(head + 1) * dim];
        let (delta, skip) = (self.chunk.delta.row(t)[head], self.chunk.p.d[head]);
        let (x, dy) = (load::<S, WHOLE>(s, x), load::<S, WHOLE>(s, &self.dy.row(t)[i..]));
        let (u, f) = (&w.u[here.clone()], &w.f[here.clone()]);
        let (u, f) = (load::<S, WHOLE>(s, u), load::<S, WHOLE>(s, f));
        let rest = s.splat(w.decays[1][t]);
        let v = s.mul(rest, load::<S, WHOLE>(s, &w.v[here.clone()]));
        let du = s.add(load::<S, WHOLE>(s, &w.du[here.clone()]), v);
        let [dy_f, u_v, du_x, dy_x] = sums;
        *dy_f = s.fma(dy, f, *dy_f);
        *u_v = s.fma(u, v, *u_v);
        *du_x = s.fma(du, x, *du_x);
        *dy_x = s.fma(dy, x, *dy_x);
        let dx = s.fma(s.splat(delta), du, s.mul(s.splat(skip), dy));
        store::<S, WHOLE>(s, dx, &mut self.dx.row_mut(t)[i..]);
        store::<S, WHOLE>(s, s.mul(s.splat(w.decays[0][t]), dy), &mut w.edy[here.clone()]);
        store::<S, WHOLE>(s, s.mul(rest, u), &mut w.wu[here]);
    }
}

#[inline(always)]
fn load<S: Simd, const WHOLE: bool>(s: S, v: &[f32]) -> S::V {
    if WHOLE { s.load(v) } else { s.load_partial(v) }
}

#[inline(always)]
fn store<S: Simd, const WHOLE: bool>(s: S, v: S::V, to: &mut [f32]) {
    if WHOLE { s.store(v, to) } else { s.store_partial(v, to) }
}

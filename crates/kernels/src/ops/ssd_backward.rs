//! The gradient of [`crate::ops::ssd`] over the heads of one group of one document.
//!
//! The forward pass runs once more, chunk by chunk, and keeps the state before every chunk; the
//! backward pass takes the chunks in reverse. With Γ, M, U, s as in [`crate::ops::ssd`],
//! `E_i = e^{s_i}`, `W_j = e^{s_Q − s_j}`, `c = e^{s_Q}` and dS the gradient of the state after the
//! chunk:
//!
//! - `V = diag(W) B dS`, `dU = Mᵀ dY + V`, `dM = dY Uᵀ` (lower triangle), `dΓ += dM ∘ L`;
//! - `R = diag(E) dY S_inᵀ`, `dC += R + dΓ B`, `dB += diag(W) U dSᵀ + dΓᵀ C`;
//! - `dS_in = Cᵀ diag(E) dY + c dS`;
//! - with `K = dM ∘ M`, the gradient of the log decay of token r is
//!   `da_r = Σ_{i≥r} Σ_{j<r} K_ij + Σ_{i≥r} ⟨R_i, C_i⟩ + Σ_{j<r} ⟨U_j, V_j⟩ + c ⟨dS, S_in⟩`:
//!   four sums of which none subtracts large equal numbers;
//! - `dΔ = A da + rowsum(dU ∘ X)`, `dX = Δ dU + D dY`, `dD = Σ dY ∘ X`, `dA_log = A Σ Δ da`.
//!
//! Shapes: X, U, V, Y \[Q, P\]; B, C, R \[Q, N\]; S, dS \[N, P\]. Triangles are held transposed:
//! row j, column i.
//!
//! Source: Dao and Gu 2024 (Mamba-2), differentiated by hand.

use crate::Isa;
use crate::buffer::{MatMut, MatRef};
use crate::ops::product::{Write, product_here};
use crate::simd::{Simd, WithSimd, dispatch};

/// The longest chunk.
const MAX_CHUNK: usize = 64;

/// Sizes and constants of the heads of a group.
#[derive(Clone, Copy)]
pub(crate) struct GroupParams<'a> {
    pub(crate) isa: Isa,
    /// P.
    pub(crate) head_dim: usize,
    /// N.
    pub(crate) state_size: usize,
    /// −exp(A_log) of the heads.
    pub(crate) a: &'a [f32],
    /// Skips of the heads.
    pub(crate) d: &'a [f32],
}

impl GroupParams<'_> {
    fn heads(&self) -> usize {
        self.a.len()
    }

    /// Q: short chunks where the state is small, for the Q × Q products cost more then.
    fn chunk(&self) -> usize {
        if self.state_size <= 32 { 32 } else { MAX_CHUNK }
    }

    /// Index, first row and number of rows of every chunk.
    fn chunks(&self, rows: usize) -> impl DoubleEndedIterator<Item = [usize; 3]> + use<> {
        let q = self.chunk();
        (0..rows.div_ceil(q)).map(move |i| [i, i * q, q.min(rows - i * q)])
    }
}

/// What the group reads: columns `x | B | C` after the convolution, and the steps.
#[derive(Clone, Copy)]
pub(crate) struct GroupInputs<'a> {
    /// \[L, heads·P + 2N\].
    pub(crate) xbc: MatRef<'a>,
    /// Δ, \[L, heads\].
    pub(crate) delta: MatRef<'a>,
}

/// What the backward pass adds to.
pub(crate) struct GroupGradients<'a> {
    /// Written, \[L, heads·P + 2N\].
    pub(crate) xbc: MatMut<'a>,
    /// Written, \[L, heads\].
    pub(crate) delta: MatMut<'a>,
    /// Added to, \[heads\].
    pub(crate) a_log: &'a mut [f32],
    /// Added to, \[heads\].
    pub(crate) d: &'a mut [f32],
}

/// Scratch of a chunk, kept from call to call.
#[derive(Default)]
pub(crate) struct SsdScratch {
    /// The state before every chunk of every head, \[chunks + 1, heads, N, P\].
    states: Vec<f32>,
    /// dS of every head.
    dstate: Vec<f32>,
    /// Γᵀ, dΓᵀ, Lᵀ, Mᵀ, dMᵀ: \[Q, Q\] each.
    triangles: [Vec<f32>; 5],
    /// U, dU, V and W∘U or E∘dY: \[Q, P\] each.
    heads: [Vec<f32>; 4],
    /// R and U dSᵀ: \[Q, N\] each.
    wide: [Vec<f32>; 2],
    /// s.
    sums: Vec<f64>,
    /// E and W.
    decays: [Vec<f32>; 2],
    /// da.
    da: Vec<f32>,
}

impl SsdScratch {
    fn prepare(&mut self, p: &GroupParams, rows: usize) {
        let (q, state) = (p.chunk(), p.state_size * p.head_dim);
        self.states.resize((rows.div_ceil(q) + 1) * p.heads() * state, 0.0);
        self.states[..p.heads() * state].fill(0.0);
        self.dstate.clear();
        self.dstate.resize(p.heads() * state, 0.0);
        self.triangles.iter_mut().for_each(|v| v.resize(q * q, 0.0));
        self.heads.iter_mut().for_each(|v| v.resize(q * p.head_dim, 0.0));
        self.wide.iter_mut().for_each(|v| v.resize(q * p.state_size, 0.0));
        self.decays.iter_mut().for_each(|v| v.resize(q, 0.0));
        self.sums.resize(q, 0.0);
        self.da.resize(q, 0.0);
    }
}

/// A matrix over the first `rows · cols` values.
fn mat(data: &[f32], rows: usize, cols: usize) -> MatRef<'_> {
    MatRef::new(&data[..rows * cols], cols)
}

fn mat_mut(data: &mut [f32], rows: usize, cols: usize) -> MatMut<'_> {
    MatMut::new(&mut data[..rows * cols], cols)
}

/// Writes y \[L, heads·P\] and keeps the states for [`ssd_group_backward`].
pub(crate) fn ssd_group_forward(
    p: &GroupParams,
    inputs: GroupInputs,
    mut y: MatMut,
    w: &mut SsdScratch,
) {
    let (isa, dim, n, heads) = (p.isa, p.head_dim, p.state_size, p.heads());
    w.prepare(p, inputs.xbc.rows());
    for [index, from, rows] in p.chunks(inputs.xbc.rows()) {
        let xbc = inputs.xbc.rows_at(from, rows);
        let (b, c) = (xbc.columns(heads * dim, n), xbc.columns(heads * dim + n, n));
        let gamma = mat_mut(&mut w.triangles[0], rows, rows);
        product_here(isa, b, c.t(), gamma, Write::Store);
        for head in 0..heads {
            let x = xbc.columns(head * dim, dim);
            let chunk = Chunk { p, head, x, delta: inputs.delta.rows_at(from, rows) };
            dispatch(isa, Decays { chunk, w });
            let state = n * dim;
            let (before, after) = w.states.split_at_mut((index + 1) * heads * state);
            let before = &before[(index * heads + head) * state..][..state];
            let after = &mut after[head * state..][..state];
            let mut y = y.reborrow().rows_at(from, rows).columns(head * dim, dim);
            let [u, _, from_state, weighted] = &mut w.heads;
            let (m, u) = (mat(&w.triangles[3], rows, rows), mat(u, rows, dim));
            product_here(isa, m.t(), u, y.reborrow(), Write::Store);
            let mut from_state = mat_mut(from_state, rows, dim);
            product_here(isa, c, MatRef::new(before, dim), from_state.reborrow(), Write::Store);
            for r in 0..rows {
                let (e, d) = (w.decays[0][r], p.d[head]);
                let values = y.row_mut(r).iter_mut().zip(from_state.row(r)).zip(x.row(r));
                values.for_each(|((y, s), x)| *y += e * s + d * x);
            }
            let c_all = w.decays[0][rows - 1];
            after.iter_mut().zip(before).for_each(|(to, s)| *to = c_all * s);
            scale_rows(weighted, u, &w.decays[1]);
            let weighted = mat(weighted, rows, dim);
            product_here(isa, b.t(), weighted, MatMut::new(after, dim), Write::Add);
        }
    }
}

/// `to = diag(scale) from`.
fn scale_rows(to: &mut [f32], from: MatRef, scale: &[f32]) {
    for (r, to) in to.chunks_exact_mut(from.cols()).take(from.rows()).enumerate() {
        to.iter_mut().zip(from.row(r)).for_each(|(to, v)| *to = scale[r] * v);
    }
}

/// One head of a chunk.
#[derive(Clone, Copy)]
struct Chunk<'a> {
    p: &'a GroupParams<'a>,
    head: usize,
    /// \[Q, P\].
    x: MatRef<'a>,
    /// \[Q, heads\].
    delta: MatRef<'a>,
}

/// s, E, W, U, Lᵀ and Mᵀ of a head whose Γᵀ is there.
struct Decays<'a> {
    chunk: Chunk<'a>,
    w: &'a mut SsdScratch,
}

impl WithSimd for Decays<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { chunk: Chunk { p, head, x, delta }, w } = self;
        let (rows, dim) = (x.rows(), p.head_dim);
        let (sums, a) = (&mut w.sums[..rows], f64::from(p.a[head]));
        let mut sum = 0.0;
        for r in 0..rows {
            let delta = delta.row(r)[head];
            sum += f64::from(delta) * a;
            sums[r] = sum;
            let u = &mut w.heads[0][r * dim..][..dim];
            u.iter_mut().zip(x.row(r)).for_each(|(u, x)| *u = delta * x);
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

/// The gradients, given dY \[L, heads·P\], after [`ssd_group_forward`] over the same inputs.
pub(crate) fn ssd_group_backward(
    p: &GroupParams,
    inputs: GroupInputs,
    dy: MatRef,
    mut g: GroupGradients,
    w: &mut SsdScratch,
) {
    let (isa, dim, n, heads) = (p.isa, p.head_dim, p.state_size, p.heads());
    for [index, from, rows] in p.chunks(inputs.xbc.rows()).rev() {
        let xbc = inputs.xbc.rows_at(from, rows);
        let (b, c) = (xbc.columns(heads * dim, n), xbc.columns(heads * dim + n, n));
        let gamma = mat_mut(&mut w.triangles[0], rows, rows);
        product_here(isa, b, c.t(), gamma, Write::Store);
        w.triangles[1][..rows * rows].fill(0.0);
        let dxbc = g.xbc.reborrow().rows_at(from, rows);
        let (mut dx, dbc) = dxbc.split_columns(heads * dim);
        let (mut db, mut dc) = dbc.split_columns(n);
        for r in 0..rows {
            db.row_mut(r).fill(0.0);
            dc.row_mut(r).fill(0.0);
        }
        for head in 0..heads {
            let x = xbc.columns(head * dim, dim);
            let chunk = Chunk { p, head, x, delta: inputs.delta.rows_at(from, rows) };
            let mut op = HeadBackward {
                chunk,
                b,
                c,
                dy: dy.rows_at(from, rows).columns(head * dim, dim),
                state: (index * heads + head) * n * dim,
                dx: dx.reborrow().columns(head * dim, dim),
                db: db.reborrow(),
                dc: dc.reborrow(),
                ddelta: g.delta.reborrow().rows_at(from, rows).columns(head, 1),
            };
            dispatch(isa, Decays { chunk, w });
            op.products(w);
            let (a_log, d) = dispatch(isa, Sums { op, w });
            g.a_log[head] += a_log;
            g.d[head] += d;
        }
        let dgamma = mat(&w.triangles[1], rows, rows);
        product_here(isa, dgamma.t(), b, dc, Write::Add);
        product_here(isa, dgamma, c, db, Write::Add);
    }
}

/// One head of a chunk on the way back.
struct HeadBackward<'a> {
    chunk: Chunk<'a>,
    b: MatRef<'a>,
    c: MatRef<'a>,
    dy: MatRef<'a>,
    /// Where its state before the chunk lies.
    state: usize,
    dx: MatMut<'a>,
    db: MatMut<'a>,
    dc: MatMut<'a>,
    ddelta: MatMut<'a>,
}

impl HeadBackward<'_> {
    /// dMᵀ, dU without V, V without W, R without E, U dSᵀ, and the new dS without its c dS.
    fn products(&mut self, w: &mut SsdScratch) {
        let Chunk { p, head, x, .. } = self.chunk;
        let (isa, rows, dim, n) = (p.isa, x.rows(), p.head_dim, p.state_size);
        let ds = MatRef::new(&w.dstate[head * n * dim..][..n * dim], dim);
        let s_in = MatRef::new(&w.states[self.state..][..n * dim], dim);
        let [u, du, v, _] = &mut w.heads;
        let u = mat(u, rows, dim);
        product_here(
            isa,
            mat(&w.triangles[3], rows, rows),
            self.dy,
            mat_mut(du, rows, dim),
            Write::Store,
        );
        product_here(isa, self.b, ds, mat_mut(v, rows, dim), Write::Store);
        let [r, uds] = &mut w.wide;
        product_here(isa, self.dy, s_in.t(), mat_mut(r, rows, n), Write::Store);
        product_here(isa, u, ds.t(), mat_mut(uds, rows, n), Write::Store);
        let dm = mat_mut(&mut w.triangles[4], rows, rows);
        product_here(isa, u, self.dy.t(), dm, Write::Store);
    }
}

/// Everything of a head that is no product; returns the gradients of A_log and D.
struct Sums<'a, 'w> {
    op: HeadBackward<'a>,
    w: &'w mut SsdScratch,
}

impl WithSimd for Sums<'_, '_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> (f32, f32) {
        self.triangle(s);
        self.decay_sums(s);
        self.state(s);
        self.steps(s)
    }
}

impl Sums<'_, '_> {
    /// `dΓᵀ += dMᵀ ∘ Lᵀ`, and the rectangle sums in da.
    #[inline(always)]
    fn triangle<S: Simd>(&mut self, s: S) {
        let rows = self.op.chunk.x.rows();
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

    /// Finishes R and V and adds their sums to da; dC and dB get R and W ∘ U dSᵀ.
    #[inline(always)]
    fn decay_sums<S: Simd>(&mut self, s: S) {
        let Chunk { p, x, .. } = self.op.chunk;
        let (rows, dim, n) = (x.rows(), p.head_dim, p.state_size);
        let SsdScratch { heads: [u, du, v, _], wide: [r, uds], decays: [e, rest], da, .. } =
            &mut *self.w;
        let mut suffix = [0.0f32; MAX_CHUNK];
        let mut prefix = 0.0;
        for t in 0..rows {
            let r = &mut r[t * n..][..n];
            r.iter_mut().for_each(|v| *v *= e[t]);
            suffix[t] = dot(s, r, self.op.c.row(t));
            add(self.op.dc.row_mut(t), r, 1.0);
            add(self.op.db.row_mut(t), &uds[t * n..][..n], rest[t]);
            let (u, v) = (&u[t * dim..][..dim], &mut v[t * dim..][..dim]);
            v.iter_mut().for_each(|v| *v *= rest[t]);
            add(&mut du[t * dim..][..dim], v, 1.0);
            da[t] += prefix;
            prefix += dot(s, u, v);
        }
        let mut sum = 0.0;
        for t in (0..rows).rev() {
            sum += suffix[t];
            da[t] += sum;
        }
    }

    /// `da += c ⟨dS, S_in⟩`, then `dS ← Cᵀ diag(E) dY + c dS`.
    #[inline(always)]
    fn state<S: Simd>(&mut self, s: S) {
        let Chunk { p, head, x, .. } = self.op.chunk;
        let (rows, dim, n) = (x.rows(), p.head_dim, p.state_size);
        let ds = &mut self.w.dstate[head * n * dim..][..n * dim];
        let whole = self.w.decays[0][rows - 1];
        let s_in = &self.w.states[self.op.state..][..n * dim];
        let all = whole * dot(s, ds, s_in);
        self.w.da[..rows].iter_mut().for_each(|v| *v += all);
        ds.iter_mut().for_each(|v| *v *= whole);
        scale_rows(&mut self.w.heads[3], self.op.dy, &self.w.decays[0]);
        let weighted = mat(&self.w.heads[3], rows, dim);
        product_here(p.isa, self.op.c.t(), weighted, MatMut::new(ds, dim), Write::Add);
    }

    /// dΔ and dX; the sums for A_log and D.
    #[inline(always)]
    fn steps<S: Simd>(&mut self, s: S) -> (f32, f32) {
        let Chunk { p, head, x, delta } = self.op.chunk;
        let (dim, a, skip) = (p.head_dim, p.a[head], p.d[head]);
        let (mut da_log, mut dd) = (0.0, 0.0);
        for t in 0..x.rows() {
            let (delta, da, dy) = (delta.row(t)[head], self.w.da[t], self.op.dy.row(t));
            let (x, du) = (x.row(t), &self.w.heads[1][t * dim..][..dim]);
            self.op.ddelta.row_mut(t)[0] = a * da + dot(s, du, x);
            da_log += a * delta * da;
            dd += dot(s, dy, x);
            let values = self.op.dx.row_mut(t).iter_mut().zip(du.iter().zip(dy));
            values.for_each(|(dx, (du, dy))| *dx = delta * du + skip * dy);
        }
        (da_log, dd)
    }
}

#[inline(always)]
fn add(to: &mut [f32], from: &[f32], scale: f32) {
    to.iter_mut().zip(from).for_each(|(to, v)| *to += scale * v);
}

#[inline(always)]
fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = s.zero();
    for (a, b) in a.chunks(S::LANES).zip(b.chunks(S::LANES)) {
        sum = s.fma(s.load_partial(a), s.load_partial(b), sum);
    }
    s.sum(sum)
}

//! The gradient of [`crate::ops::ssd`] over the heads of one group of one document.
//!
//! The forward pass goes chunk by chunk and leaves the state before every chunk to the caller; the
//! backward pass takes the chunks in reverse. With Γ, M, U, s as in [`crate::ops::ssd`],
//! `E_i = e^{s_i}`, `W_j = e^{s_Q − s_j}`, `c = e^{s_Q}` and dS the gradient of the state after the
//! chunk:
//!
//! - `V = diag(W) B dS`, `dU = Mᵀ dY + V`, `dM = dY Uᵀ` (lower triangle), `dΓ += dM ∘ L`;
//! - `F = C S_in`, `dC += diag(E) dY S_inᵀ + dΓ B`, `dB += diag(W) U dSᵀ + dΓᵀ C`;
//! - `dS_in = Cᵀ diag(E) dY + c dS`;
//! - with `K = dM ∘ M`, the gradient of the log decay of token r is
//!   `da_r = Σ_{i≥r} Σ_{j<r} K_ij + Σ_{i≥r} E_i ⟨dY_i, F_i⟩ + Σ_{j<r} ⟨U_j, V_j⟩ + c ⟨dS, S_in⟩`:
//!   four sums of which none subtracts large equal numbers;
//! - `dΔ = A da + rowsum(dU ∘ X)`, `dX = Δ dU + D dY`, `dD = Σ dY ∘ X`, `dA_log = A Σ Δ da`.
//!
//! Shapes: X, U, V, Y, F \[Q, P\]; B, C \[Q, N\]; S, dS \[N, P\]. Triangles are held transposed:
//! row j, column i. What B, C and states meet is one product for a block of heads, side by side.
//!
//! Source: Dao and Gu 2024 (Mamba-2), differentiated by hand.

mod head;

use crate::Isa;
use crate::buffer::{MatMut, MatRef};
use crate::ops::product::{Write, product_here};
use crate::simd::dispatch;
use head::{Decays, HeadBackward, Outputs, ScaleHeads};
use std::ops::Range;

/// The longest chunk.
const MAX_CHUNK: usize = 64;
/// Most columns of a block of heads.
const BLOCK_COLUMNS: usize = 128;

/// Q: short chunks where the state is small, for the Q × Q products cost more then.
fn chunk(state_size: usize) -> usize {
    if state_size <= 32 { 32 } else { MAX_CHUNK }
}

/// Values of a group's states, before every chunk of so many rows and after the last one:
/// \[chunks + 1, N, heads·P\].
pub(crate) fn states_len(rows: usize, state_size: usize, inner: usize) -> usize {
    (rows.div_ceil(chunk(state_size)) + 1) * state_size * inner
}

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

    /// Heads that are taken together: narrow ones fill a block.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (heads, most) = (self.heads(), (BLOCK_COLUMNS / self.head_dim).max(1));
        (0..heads).step_by(most).map(move |first| first..heads.min(first + most))
    }

    /// Index, first row and number of rows of every chunk.
    fn chunks(&self, rows: usize) -> impl DoubleEndedIterator<Item = [usize; 3]> + use<> {
        let q = chunk(self.state_size);
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

/// A chunk of the inputs.
#[derive(Clone, Copy)]
struct Chunk<'a> {
    p: &'a GroupParams<'a>,
    index: usize,
    /// \[Q, heads·P\].
    x: MatRef<'a>,
    /// \[Q, N\].
    b: MatRef<'a>,
    c: MatRef<'a>,
    /// \[Q, heads\].
    delta: MatRef<'a>,
}

impl<'a> Chunk<'a> {
    fn new(
        p: &'a GroupParams<'a>,
        inputs: GroupInputs<'a>,
        [index, from, rows]: [usize; 3],
    ) -> Self {
        let (inner, n) = (p.heads() * p.head_dim, p.state_size);
        let xbc = inputs.xbc.rows_at(from, rows);
        Self {
            p,
            index,
            x: xbc.columns(0, inner),
            b: xbc.columns(inner, n),
            c: xbc.columns(inner + n, n),
            delta: inputs.delta.rows_at(from, rows),
        }
    }

    fn rows(&self) -> usize {
        self.x.rows()
    }
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
    /// dS, \[N, heads·P\].
    dstate: Vec<f32>,
    head: HeadScratch,
}

/// Of a block of heads, and of one head after the other.
#[derive(Default)]
struct HeadScratch {
    /// Γᵀ, dΓᵀ, Lᵀ, Mᵀ, dMᵀ: \[Q, Q\] each.
    triangles: [Vec<f32>; 5],
    /// U, W∘U, F, then on the way back dU without V, V without W, and E∘dY:
    /// \[Q, columns of the block\] each.
    u: Vec<f32>,
    wu: Vec<f32>,
    f: Vec<f32>,
    du: Vec<f32>,
    v: Vec<f32>,
    edy: Vec<f32>,
    /// s.
    sums: Vec<f64>,
    /// E and W.
    decays: [Vec<f32>; 2],
    /// c of every head of the block.
    ends: Vec<f32>,
    /// da.
    da: Vec<f32>,
}

impl SsdScratch {
    fn prepare(&mut self, p: &GroupParams) {
        let q = chunk(p.state_size);
        self.dstate.clear();
        self.dstate.resize(p.state_size * p.heads() * p.head_dim, 0.0);
        let w = &mut self.head;
        w.triangles.iter_mut().for_each(|v| v.resize(q * q, 0.0));
        let columns = p.heads().min((BLOCK_COLUMNS / p.head_dim).max(1)) * p.head_dim;
        for v in [&mut w.u, &mut w.wu, &mut w.f, &mut w.du, &mut w.v, &mut w.edy] {
            v.resize(q * columns, 0.0);
        }
        w.decays.iter_mut().for_each(|v| v.resize(q, 0.0));
        w.sums.resize(q, 0.0);
        w.da.resize(q, 0.0);
        w.ends.resize(p.heads(), 0.0);
    }
}

/// A matrix over the first `rows · cols` values.
fn mat(data: &[f32], rows: usize, cols: usize) -> MatRef<'_> {
    MatRef::new(&data[..rows * cols], cols)
}

fn mat_mut(data: &mut [f32], rows: usize, cols: usize) -> MatMut<'_> {
    MatMut::new(&mut data[..rows * cols], cols)
}

/// Writes y \[L, heads·P\] and the states for [`ssd_group_backward`].
pub(crate) fn ssd_group_forward(
    p: &GroupParams,
    inputs: GroupInputs,
    mut y: MatMut,
    states: &mut [f32],
    w: &mut SsdScratch,
) {
    w.prepare(p);
    states[..p.state_size * p.heads() * p.head_dim].fill(0.0);
    for place @ [_, from, rows] in p.chunks(inputs.xbc.rows()) {
        let chunk = Chunk::new(p, inputs, place);
        let gamma = mat_mut(&mut w.head.triangles[0], rows, rows);
        product_here(p.isa, chunk.b, chunk.c.t(), gamma, Write::Store);
        for heads in p.blocks() {
            let columns = (heads.start * p.head_dim, heads.len() * p.head_dim);
            let y = y.reborrow().rows_at(from, rows).columns(columns.0, columns.1);
            chunk.forward(heads, y, states, &mut w.head);
        }
    }
}

impl Chunk<'_> {
    /// A block of heads: its columns of y, and its states after the chunk.
    fn forward(&self, heads: Range<usize>, mut y: MatMut, states: &mut [f32], w: &mut HeadScratch) {
        let Self { p, index, x, b, c, .. } = *self;
        let (isa, rows, dim) = (p.isa, self.rows(), p.head_dim);
        let (first, width, all) = (heads.start * dim, y.cols(), p.heads() * dim);
        let (before, after) = states.split_at_mut((index + 1) * p.state_size * all);
        let before = MatRef::new(&before[index * p.state_size * all..], all).columns(first, width);
        let after = &mut after[..p.state_size * all];
        let mut after = MatMut::new(after, all).columns(first, width);
        product_here(isa, c, before, mat_mut(&mut w.f, rows, width), Write::Store);
        for head in heads {
            let at = head * dim - first;
            dispatch(isa, Decays { chunk: *self, head, at: (at, width), w });
            let (m, u) = (mat(&w.triangles[3], rows, rows), mat(&w.u, rows, width));
            let mut y = y.reborrow().columns(at, dim);
            product_here(isa, m.t(), u.columns(at, dim), y.reborrow(), Write::Store);
            let before = before.columns(at, dim);
            let after = after.reborrow().columns(at, dim);
            let (x, skip) = (x.columns(head * dim, dim), p.d[head]);
            dispatch(isa, Outputs { x, skip, y, before, after, at: (at, width), w });
        }
        product_here(isa, b.t(), mat(&w.wu, rows, width), after, Write::Add);
    }
}

/// The gradients, given dY \[L, heads·P\] and the states of [`ssd_group_forward`] over the same inputs.
pub(crate) fn ssd_group_backward(
    p: &GroupParams,
    inputs: GroupInputs,
    states: &[f32],
    dy: MatRef,
    mut g: GroupGradients,
    w: &mut SsdScratch,
) {
    w.prepare(p);
    let (isa, dim, n) = (p.isa, p.head_dim, p.state_size);
    for place @ [_, from, rows] in p.chunks(inputs.xbc.rows()).rev() {
        let chunk = Chunk::new(p, inputs, place);
        let gamma = mat_mut(&mut w.head.triangles[0], rows, rows);
        product_here(isa, chunk.b, chunk.c.t(), gamma, Write::Store);
        w.head.triangles[1][..rows * rows].fill(0.0);
        let dxbc = g.xbc.reborrow().rows_at(from, rows);
        let (dx, dbc) = dxbc.split_columns(p.heads() * dim);
        let (mut db, mut dc) = dbc.split_columns(n);
        for r in 0..rows {
            db.row_mut(r).fill(0.0);
            dc.row_mut(r).fill(0.0);
        }
        let ddelta = g.delta.reborrow().rows_at(from, rows);
        let (a_log, d) = (&mut *g.a_log, &mut *g.d);
        let mut gradients = ChunkGradients { dx, db, dc, ddelta, a_log, d };
        for heads in p.blocks() {
            chunk.backward(heads, states, dy.rows_at(from, rows), &mut gradients, w);
        }
        let dgamma = mat(&w.head.triangles[1], rows, rows);
        let ChunkGradients { db, dc, .. } = gradients;
        product_here(isa, dgamma.t(), chunk.b, dc, Write::Add);
        product_here(isa, dgamma, chunk.c, db, Write::Add);
    }
}

/// A chunk's rows of [`GroupGradients`].
struct ChunkGradients<'a> {
    dx: MatMut<'a>,
    db: MatMut<'a>,
    dc: MatMut<'a>,
    ddelta: MatMut<'a>,
    a_log: &'a mut [f32],
    d: &'a mut [f32],
}

impl Chunk<'_> {
    /// A block of heads; dY of all heads.
    fn backward(
        &self,
        heads: Range<usize>,
        states: &[f32],
        dy: MatRef,
        g: &mut ChunkGradients,
        w: &mut SsdScratch,
    ) {
        let Self { p, index, b, c, .. } = *self;
        let (isa, rows, dim, n) = (p.isa, self.rows(), p.head_dim, p.state_size);
        let (first, width, all) = (heads.start * dim, heads.len() * dim, p.heads() * dim);
        let s_in = MatRef::new(&states[index * n * all..][..n * all], all).columns(first, width);
        let ds = MatRef::new(&w.dstate, all).columns(first, width);
        let w_ = &mut w.head;
        product_here(isa, b, ds, mat_mut(&mut w_.v, rows, width), Write::Store);
        product_here(isa, c, s_in, mat_mut(&mut w_.f, rows, width), Write::Store);
        for head in heads.clone() {
            let at = head * dim - first;
            dispatch(isa, Decays { chunk: *self, head, at: (at, width), w: w_ });
            let dy = dy.columns(head * dim, dim);
            let (m, u) = (mat(&w_.triangles[3], rows, rows), mat(&w_.u, rows, width));
            let du = mat_mut(&mut w_.du, rows, width).columns(at, dim);
            product_here(isa, m, dy, du, Write::Store);
            let dm = mat_mut(&mut w_.triangles[4], rows, rows);
            product_here(isa, u.columns(at, dim), dy.t(), dm, Write::Store);
            let op = HeadBackward {
                chunk: *self,
                head,
                at: (at, width),
                dy,
                states: [s_in.columns(at, dim), ds.columns(at, dim)],
                dx: g.dx.reborrow().columns(head * dim, dim),
                ddelta: g.ddelta.reborrow().columns(head, 1),
                w: w_,
            };
            let (a_log, d) = dispatch(isa, op);
            g.a_log[head] += a_log;
            g.d[head] += d;
            w_.ends[head - heads.start] = w_.decays[0][rows - 1];
        }
        let edy = mat(&w_.edy, rows, width);
        product_here(isa, edy, s_in.t(), g.dc.reborrow(), Write::Add);
        product_here(isa, mat(&w_.wu, rows, width), ds.t(), g.db.reborrow(), Write::Add);
        let mut ds = MatMut::new(&mut w.dstate, all).columns(first, width);
        dispatch(isa, ScaleHeads { ends: &w_.ends, dim, state: ds.reborrow() });
        product_here(isa, c.t(), edy, ds, Write::Add);
    }
}

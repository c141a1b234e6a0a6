//! One chunk of [`crate::ops::ssd`]: the products of its formulas over a scratch.
//!
//! Every buffer's rows are padded to whole vectors of 16 with zeros or ignored values; lanes never
//! mix columns, so padding does not reach a result.

use crate::buffer::{MatMut, MatRef};
use crate::ops::ssd::SsdParams;
use crate::ops::tile::{Tiled, accumulate, cover};
use crate::simd::Simd;

/// Columns of a padded row are a multiple of this: the widest vector.
const PAD: usize = 16;

/// The buffers of a part; Q is the longest chunk, P and Q as columns are padded.
pub(crate) struct Scratch<'a> {
    /// C, \[Q, N\].
    c: &'a mut [f32],
    /// Bᵀ, \[N, Q\].
    b: &'a mut [f32],
    /// Γ, \[Q, Q\].
    gamma: &'a mut [f32],
    /// M of a head, \[Q, Q\].
    m: &'a mut [f32],
    /// U of a head, \[Q, P\].
    u: &'a mut [f32],
    /// Transposed states, \[heads, N, P\].
    states: &'a mut [f32],
    head_dim: usize,
    state_size: usize,
    /// Padded P.
    p_stride: usize,
    /// Padded Q.
    q_stride: usize,
}

impl<'a> Scratch<'a> {
    /// Buffers for chunks of `most` tokens and `heads` heads, from a vector that is kept.
    pub(crate) fn new(
        buffer: &'a mut Vec<f32>,
        most: usize,
        head_dim: usize,
        state_size: usize,
        heads: usize,
    ) -> Self {
        let (p, q) = (head_dim.next_multiple_of(PAD), most.next_multiple_of(PAD));
        let n = state_size;
        let sizes = [most * n, n * q, most * q, most * q, most * p, heads * n * p];
        let total = sizes.iter().sum();
        if buffer.len() < total {
            buffer.resize(total, 0.0);
        }
        let mut rest = &mut buffer[..total];
        let [c, b, gamma, m, u, states] = sizes.map(|len| rest.split_off_mut(..len).expect("sum"));
        Self { c, b, gamma, m, u, states, head_dim, state_size, p_stride: p, q_stride: q }
    }

    /// The same buffers for a shorter time.
    pub(crate) fn reborrow(&mut self) -> Scratch<'_> {
        Scratch {
            c: self.c,
            b: self.b,
            gamma: self.gamma,
            m: self.m,
            u: self.u,
            states: self.states,
            ..*self
        }
    }

    /// Takes the states \[heads, P, N\], transposed.
    #[inline(always)]
    pub(crate) fn load_states(&mut self, states: &[f32]) {
        let (n, p) = (self.state_size, self.p_stride);
        let heads = states.chunks(self.head_dim * n).zip(self.states.chunks_mut(n * p));
        for (state, to) in heads {
            to.fill(0.0);
            for (i, row) in state.chunks(n).enumerate() {
                for (j, v) in row.iter().enumerate() {
                    to[j * p + i] = *v;
                }
            }
        }
    }

    /// Gives the states back.
    #[inline(always)]
    pub(crate) fn store_states(&self, states: &mut [f32]) {
        let (n, p) = (self.state_size, self.p_stride);
        for (state, from) in states.chunks_mut(self.head_dim * n).zip(self.states.chunks(n * p)) {
            for (i, row) in state.chunks_mut(n).enumerate() {
                for (j, v) in row.iter_mut().enumerate() {
                    *v = from[j * p + i];
                }
            }
        }
    }
}

/// A chunk and what its heads write.
pub(crate) struct Chunk<'a> {
    pub(crate) p: &'a SsdParams<'a>,
    /// The chunk's rows.
    pub(crate) xbc: MatRef<'a>,
    /// The chunk's rows.
    pub(crate) dt: MatRef<'a>,
    /// The chunk's rows, the columns of the part's heads.
    pub(crate) y: MatMut<'a>,
    pub(crate) scratch: Scratch<'a>,
    /// s of a head, \[Q\].
    pub(crate) sums: &'a mut [f64],
}

impl Chunk<'_> {
    /// Copies C and Bᵀ of a group and computes Γ.
    #[inline(always)]
    pub(crate) fn start_group<S: Simd>(&mut self, s: S, group: usize) {
        let (n, q) = (self.p.state_size, self.scratch.q_stride);
        for t in 0..self.xbc.rows() {
            let row = self.xbc.row(t);
            self.scratch.c[t * n..(t + 1) * n].copy_from_slice(self.p.c(row, group));
            for (b, v) in self.scratch.b.chunks_mut(q).zip(self.p.b(row, group)) {
                b[t] = *v;
            }
        }
        let Scratch { c, b, gamma, .. } = self.scratch.reborrow();
        let vectors = self.xbc.rows().div_ceil(S::LANES);
        cover(s, &mut Gamma { c, b, gamma, n, stride: q }, 0..self.xbc.rows(), vectors);
    }

    /// The outputs and the new state of `head`, whose state is the scratch's `slot`.
    #[inline(always)]
    pub(crate) fn head<S: Simd>(&mut self, s: S, head: usize, slot: usize) {
        let (rows, d) = (self.xbc.rows(), self.p.d[head]);
        let (n, stride) = (self.p.state_size, self.scratch.p_stride);
        let vectors = self.p.head_dim.div_ceil(S::LANES);
        self.inputs(s, head);
        self.mask(s);
        let p = self.p.head_dim;
        let Scratch { c, b, m, u, states, q_stride, .. } = self.scratch.reborrow();
        let state = &mut states[slot * n * stride..][..n * stride];
        let (x, y) = (self.xbc.columns(head * p, p), self.y.reborrow().columns(slot * p, p));
        let sums = &*self.sums;
        let mut outputs = Outputs { c, m, u, state, x, y, d, sums, n, stride, q_stride };
        cover(s, &mut outputs, 0..rows, vectors);
        let last = sums[rows - 1];
        for (row, sum) in u.chunks_mut(stride).zip(sums) {
            let weight = exp(s, last - sum);
            row.iter_mut().for_each(|u| *u *= weight);
        }
        let decay = exp(s, last);
        let mut update = StateUpdate { b, u, state, decay, rows, stride, q_stride };
        cover(s, &mut update, 0..n, vectors);
    }

    /// s and U of a head.
    #[inline(always)]
    fn inputs<S: Simd>(&mut self, s: S, head: usize) {
        let (p, mut sum) = (self.p, 0.0);
        for t in 0..self.xbc.rows() {
            let delta = p.step_size(head, self.dt.row(t)[head]);
            sum += f64::from(delta) * f64::from(p.a[head]);
            self.sums[t] = sum;
            let x = self.xbc.row(t)[head * p.head_dim..][..p.head_dim].chunks(S::LANES);
            let u = self.scratch.u[t * self.scratch.p_stride..].chunks_mut(S::LANES);
            for (x, u) in x.zip(u) {
                s.store(s.mul(s.splat(delta), s.load_partial(x)), u);
            }
        }
    }

    /// M of a head: the lower triangle of Γ with decay, and zeros above.
    #[inline(always)]
    fn mask<S: Simd>(&mut self, s: S) {
        let stride = self.scratch.q_stride;
        let rows = self.scratch.m.chunks_mut(stride).zip(self.scratch.gamma.chunks(stride));
        for (i, (m, gamma)) in rows.take(self.xbc.rows()).enumerate() {
            for (m, sum) in m.iter_mut().zip(&self.sums[..=i]) {
                *m = (self.sums[i] - sum) as f32;
            }
            m[i + 1..].fill(f32::NEG_INFINITY);
            let parts = m.chunks_mut(S::LANES).zip(gamma.chunks(S::LANES));
            for (m, gamma) in parts.take(i / S::LANES + 1) {
                s.store(s.mul(s.exp(s.load(m)), s.load(gamma)), m);
            }
            m[i + 1..].fill(0.0);
        }
    }
}

/// `e^x` with the bits of the vector form.
#[inline(always)]
fn exp<S: Simd>(s: S, x: f64) -> f32 {
    s.max_lane(s.exp(s.splat(x as f32)))
}

/// Γ = C Bᵀ.
struct Gamma<'a> {
    c: &'a [f32],
    b: &'a [f32],
    gamma: &'a mut [f32],
    n: usize,
    stride: usize,
}

impl Tiled for Gamma<'_> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, s: S, row: usize, col: usize) {
        let c: [&[f32]; R] = std::array::from_fn(|r| &self.c[(row + r) * self.n..][..self.n]);
        let acc = accumulate(s, [[s.zero(); V]; R], c, &self.b[col..], self.stride);
        for r in 0..R {
            let out = &mut self.gamma[(row + r) * self.stride + col..][..V * S::LANES];
            for v in 0..V {
                s.store(acc[r][v], &mut out[v * S::LANES..]);
            }
        }
    }
}

/// Y = diag(e^s) C S_inᵀ + d X + M U.
struct Outputs<'a> {
    c: &'a [f32],
    m: &'a [f32],
    u: &'a [f32],
    state: &'a [f32],
    x: MatRef<'a>,
    y: MatMut<'a>,
    d: f32,
    sums: &'a [f64],
    n: usize,
    stride: usize,
    q_stride: usize,
}

impl Tiled for Outputs<'_> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, s: S, row: usize, col: usize) {
        let c: [&[f32]; R] = std::array::from_fn(|r| &self.c[(row + r) * self.n..][..self.n]);
        let mut acc = accumulate(s, [[s.zero(); V]; R], c, &self.state[col..], self.stride);
        for r in 0..R {
            let decay = s.splat(exp(s, self.sums[row + r]));
            let x = self.x.row(row + r);
            for v in 0..V {
                let x = s.load_partial(&x[col + v * S::LANES..]);
                acc[r][v] = s.fma(acc[r][v], decay, s.mul(s.splat(self.d), x));
            }
        }
        // Above the diagonal of the tile's last row M is zero.
        let m: [&[f32]; R] =
            std::array::from_fn(|r| &self.m[(row + r) * self.q_stride..][..row + R]);
        let acc = accumulate(s, acc, m, &self.u[col..], self.stride);
        for r in 0..R {
            let y = self.y.row_mut(row + r);
            for v in 0..V {
                s.store_partial(acc[r][v], &mut y[col + v * S::LANES..]);
            }
        }
    }
}

/// Sᵀ ← e^{s_Q} Sᵀ + Bᵀ U, U with its weights.
struct StateUpdate<'a> {
    b: &'a [f32],
    u: &'a [f32],
    state: &'a mut [f32],
    decay: f32,
    rows: usize,
    stride: usize,
    q_stride: usize,
}

impl Tiled for StateUpdate<'_> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, s: S, row: usize, col: usize) {
        let mut acc = [[s.zero(); V]; R];
        for r in 0..R {
            let old = &self.state[(row + r) * self.stride + col..][..V * S::LANES];
            for v in 0..V {
                acc[r][v] = s.mul(s.splat(self.decay), s.load(&old[v * S::LANES..]));
            }
        }
        let b: [&[f32]; R] =
            std::array::from_fn(|r| &self.b[(row + r) * self.q_stride..][..self.rows]);
        let acc = accumulate(s, acc, b, &self.u[col..], self.stride);
        for r in 0..R {
            let new = &mut self.state[(row + r) * self.stride + col..][..V * S::LANES];
            for v in 0..V {
                s.store(acc[r][v], &mut new[v * S::LANES..]);
            }
        }
    }
}

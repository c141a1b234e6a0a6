//! One chunk of [`crate::ops::ssd`]: the products of its formulas over a scratch.
//!
//! The caller fills B and C of a group, then X of one head after the other. Rows of every buffer
//! are padded to whole vectors of 16 with ignored values; lanes never mix columns, so padding
//! does not reach a result.

use crate::Isa;
use crate::buffer::{MatMut, MatRef};
use crate::ops::ssd_tile::{KMajor, RowMajor, Tiled, accumulate, cover};
use crate::ops::ssm_state::Stored;
use crate::simd::{Simd, WithSimd, dispatch};

/// Columns of a padded row are a multiple of this: the widest vector.
pub(crate) const PAD: usize = 16;

/// Values in a cache line.
const LINE: usize = 16;

/// Asks for some rows.
pub(crate) struct Prefetch<'a>(pub(crate) MatRef<'a>);

impl WithSimd for Prefetch<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for r in 0..self.0.rows() {
            let columns = self.0.row(r);
            for at in (0..columns.len()).step_by(LINE) {
                s.prefetch(&columns[at..]);
            }
        }
    }
}

/// Memory that a thread keeps for its chunks.
#[derive(Default)]
pub(crate) struct Buffers {
    floats: Vec<f32>,
    sums: Vec<f64>,
}

/// Sizes of a scratch.
#[derive(Clone, Copy)]
pub(crate) struct ChunkSizes {
    /// Q: the most tokens of a chunk.
    pub(crate) most: usize,
    /// Heads whose Δ are kept.
    pub(crate) heads: usize,
    /// P.
    pub(crate) head_dim: usize,
    /// N.
    pub(crate) state_size: usize,
}

impl ChunkSizes {
    /// Padded P.
    pub(crate) fn p_stride(&self) -> usize {
        self.head_dim.next_multiple_of(PAD)
    }

    /// Padded Q.
    fn q_stride(&self) -> usize {
        self.most.next_multiple_of(PAD)
    }

    /// Padded heads.
    pub(crate) fn heads_stride(&self) -> usize {
        self.heads.next_multiple_of(PAD)
    }
}

/// The buffers of a chunk; P, Q and heads as columns are padded.
pub(crate) struct Scratch<'a> {
    sizes: ChunkSizes,
    /// B, \[Q, N\].
    pub(crate) b: &'a mut [f32],
    /// C, \[Q, N\].
    pub(crate) c: &'a mut [f32],
    /// Δ, \[Q, heads\].
    pub(crate) delta: &'a mut [f32],
    /// X of a head, \[Q, P\].
    pub(crate) x: &'a mut [f32],
    /// Cᵀ, \[N, Q\].
    ct: &'a mut [f32],
    /// Γᵀ, \[Q, Q\].
    gamma: &'a mut [f32],
    /// Mᵀ of a head, \[Q, Q\].
    m: &'a mut [f32],
    /// U of a head, \[Q, P\].
    u: &'a mut [f32],
    /// e^s of a head, \[Q\].
    decay: &'a mut [f32],
    /// e^{s_Q − s} of a head, \[Q\].
    rest: &'a mut [f32],
    /// e^{s − s_r} beyond a block of rows of Mᵀ, \[Q\].
    far: &'a mut [f32],
    /// The state of a head, \[N, P\], where it cannot be worked on in place.
    state: &'a mut [f32],
    /// s of a head, \[Q\].
    sums: &'a mut [f64],
}

impl<'a> Scratch<'a> {
    /// Buffers of these sizes, from memory that is kept.
    pub(crate) fn new(buffers: &'a mut Buffers, sizes: ChunkSizes) -> Self {
        let ChunkSizes { most, state_size: n, .. } = sizes;
        let (p, q, h) = (sizes.p_stride(), sizes.q_stride(), sizes.heads_stride());
        let lens = [
            most * n,
            most * n,
            most * h,
            most * p,
            n * q,
            most * q,
            most * q,
            most * p,
            q,
            q,
            q,
            n * p,
        ];
        let total = lens.iter().sum();
        if buffers.floats.len() < total {
            buffers.floats.resize(total, 0.0);
        }
        if buffers.sums.len() < q {
            buffers.sums.resize(q, 0.0);
        }
        let mut left = &mut buffers.floats[..total];
        let [b, c, delta, x, ct, gamma, m, u, decay, rest, far, state] =
            lens.map(|len| left.split_off_mut(..len).expect("the sum of the lengths"));
        let sums = &mut buffers.sums[..q];
        Self { sizes, b, c, delta, x, ct, gamma, m, u, decay, rest, far, state, sums }
    }

    /// Γ of a group whose first `rows` rows of B and C are filled.
    pub(crate) fn start_group(&mut self, isa: Isa, rows: usize) {
        dispatch(isa, Group { scratch: self, rows });
    }

    /// The outputs and the new state of a head whose X is filled; its Δ are column `slot`. The
    /// rows of `ahead` are asked for on the way.
    pub(crate) fn head<E: Stored>(
        &mut self,
        isa: Isa,
        slot: usize,
        (a, d): (f32, f32),
        state: &mut [E],
        y: MatMut,
        ahead: [MatRef; 2],
    ) {
        let rows = y.rows();
        let (p, stride) = (self.sizes.head_dim, self.sizes.p_stride());
        if p == stride && E::as_f32(state).is_some() {
            let state = E::as_f32(state).expect("f32, as tested");
            return dispatch(isa, Head { scratch: self, rows, slot, a, d, state, y, ahead });
        }
        let padded = std::mem::take(&mut self.state);
        for (to, from) in padded.chunks_exact_mut(stride).zip(state.chunks_exact(p)) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from.widen());
        }
        dispatch(isa, Head { scratch: self, rows, slot, a, d, state: padded, y, ahead });
        dispatch(isa, Round { padded, stride, state, p });
        self.state = padded;
    }
}

/// Γᵀ of a group: what its upper triangle needs.
struct Group<'s, 'a> {
    scratch: &'s mut Scratch<'a>,
    rows: usize,
}

impl WithSimd for Group<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { scratch, rows } = self;
        let (n, stride) = (scratch.sizes.state_size, scratch.sizes.q_stride());
        // Transposed a block at a time: its rows and columns stay in the first cache.
        for from in (0..rows).step_by(PAD) {
            let num = PAD.min(rows - from);
            for (j, to) in scratch.ct.chunks_exact_mut(stride).enumerate() {
                for (t, to) in to[from..from + num].iter_mut().enumerate() {
                    *to = scratch.c[(from + t) * n + j];
                }
            }
        }
        for from in (0..rows).step_by(PAD) {
            // Row j needs the columns from j on.
            let (ct, gamma) = (&scratch.ct[from..], &mut scratch.gamma[from..]);
            let mut product = Gamma { b: scratch.b, ct, gamma, n, stride };
            let vectors = (rows - from).div_ceil(S::LANES);
            cover(s, &mut product, from..rows.min(from + PAD), vectors);
        }
    }
}

/// A padded state, stored.
struct Round<'a, E> {
    padded: &'a [f32],
    stride: usize,
    state: &'a mut [E],
    p: usize,
}

impl<E: Stored> WithSimd for Round<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.state.chunks_exact_mut(self.p).zip(self.padded.chunks_exact(self.stride));
        for (to, from) in rows {
            let mut parts = to.chunks_exact_mut(S::LANES);
            for (to, from) in parts.by_ref().zip(from.chunks_exact(S::LANES)) {
                E::store(s, s.load(from), to);
            }
            let last = parts.into_remainder();
            let from = &from[self.p - last.len()..];
            last.iter_mut().zip(from).for_each(|(to, from)| *to = E::round(*from));
        }
    }
}

/// One head of a chunk.
struct Head<'s, 'a> {
    scratch: &'s mut Scratch<'a>,
    rows: usize,
    slot: usize,
    a: f32,
    d: f32,
    /// \[N, P\], P padded.
    state: &'s mut [f32],
    y: MatMut<'s>,
    ahead: [MatRef<'s>; 2],
}

impl WithSimd for Head<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        self.inputs(s);
        self.mask(s);
        self.products(s);
    }
}

impl Head<'_, '_> {
    /// s, its exponentials and U.
    #[inline(always)]
    fn inputs<S: Simd>(&mut self, s: S) {
        let (sizes, rows) = (self.scratch.sizes, self.rows);
        let (p, h) = (sizes.p_stride(), sizes.heads_stride());
        let Scratch { delta, sums, x, u, decay, rest, .. } = &mut *self.scratch;
        let mut sum = 0.0;
        let lines = x.chunks_exact(p).zip(u.chunks_exact_mut(p));
        for (t, (x, u)) in lines.take(rows).enumerate() {
            let delta = delta[t * h + self.slot];
            sum += f64::from(delta) * f64::from(self.a);
            sums[t] = sum;
            let delta = s.splat(delta);
            for (x, u) in x.chunks_exact(S::LANES).zip(u.chunks_exact_mut(S::LANES)) {
                s.store(s.mul(delta, s.load(x)), u);
            }
        }
        for (own, (decay, rest)) in sums[..rows].iter().zip(decay.iter_mut().zip(rest.iter_mut())) {
            *decay = *own as f32;
            *rest = (sum - own) as f32;
        }
        let padded = rows.next_multiple_of(S::LANES);
        exp_all(s, &mut decay[..padded]);
        exp_all(s, &mut rest[..padded]);
    }

    /// Mᵀ: the upper triangle of Γᵀ with decay, and zeros below it up to a block's end.
    ///
    /// In a block of rows the columns beyond it take `e^{s_i − s_r} · e^{s_r − s_j}`, r the last
    /// row of the block: both exponents are ≤ 0, and a block has one vector of the one and one
    /// row of the other instead of a square of exponentials.
    #[inline(always)]
    fn mask<S: Simd>(&mut self, s: S) {
        let (stride, rows) = (self.scratch.sizes.q_stride(), self.rows);
        let Scratch { m, gamma, sums, far, .. } = &mut *self.scratch;
        for from in (0..rows).step_by(PAD) {
            let (end, next) = (rows.min(from + PAD), from + PAD);
            let last = sums[end - 1];
            let mut near = [0.0; PAD];
            near.iter_mut().zip(&sums[from..end]).for_each(|(v, own)| *v = (last - own) as f32);
            exp_all(s, &mut near);
            if next < rows {
                let beyond = next..rows.next_multiple_of(PAD);
                let far = &mut far[beyond.clone()];
                far.iter_mut().zip(&sums[beyond]).for_each(|(v, sum)| *v = (sum - last) as f32);
                exp_all(s, far);
            }
            for j in from..end {
                let (m, gamma) = (&mut m[j * stride..][..stride], &gamma[j * stride..][..stride]);
                let (inside, own) = (&mut m[from..next], sums[j]);
                inside.iter_mut().zip(&sums[from..next]).for_each(|(v, s)| *v = (s - own) as f32);
                inside[..j - from].fill(f32::NEG_INFINITY);
                exp_all(s, inside);
                for at in (from..next).step_by(S::LANES) {
                    s.store(s.mul(s.load(&m[at..]), s.load(&gamma[at..])), &mut m[at..]);
                }
                let near = s.splat(near[j - from]);
                for at in (next..rows).step_by(S::LANES) {
                    let decay = s.mul(near, s.load(&far[at..]));
                    s.store(s.mul(decay, s.load(&gamma[at..])), &mut m[at..]);
                }
            }
        }
    }

    /// Y and the new state.
    #[inline(always)]
    fn products<S: Simd>(&mut self, s: S) {
        let (sizes, rows) = (self.scratch.sizes, self.rows);
        let (n, stride, q_stride) = (sizes.state_size, sizes.p_stride(), sizes.q_stride());
        let vectors = sizes.head_dim.div_ceil(S::LANES);
        let Scratch { b, ct, m, u, x, decay, rest, .. } = &mut *self.scratch;
        let (y, state, d, ahead) = (self.y.reborrow(), &*self.state, self.d, self.ahead);
        let (c, m) = (KMajor(ct, q_stride), KMajor(m, q_stride));
        let mut outputs = Outputs { c, m, u, state, x, y, d, decay, n, stride, ahead };
        cover(s, &mut outputs, 0..rows, vectors);
        for (row, rest) in u.chunks_exact_mut(stride).zip(&rest[..rows]) {
            for u in row.chunks_exact_mut(S::LANES) {
                s.store(s.mul(s.splat(*rest), s.load(u)), u);
            }
        }
        let (state, decay) = (&mut *self.state, decay[rows - 1]);
        let mut update = StateUpdate { b: KMajor(b, n), u, state, decay, rows, stride };
        cover(s, &mut update, 0..n, vectors);
    }
}

/// `v ← e^v`, whole vectors.
#[inline(always)]
fn exp_all<S: Simd>(s: S, values: &mut [f32]) {
    for v in values.chunks_exact_mut(S::LANES) {
        s.store(s.exp(s.load(v)), v);
    }
}

/// Γᵀ = B Cᵀ; operands and output begin at the first column.
struct Gamma<'a> {
    b: &'a [f32],
    ct: &'a [f32],
    gamma: &'a mut [f32],
    n: usize,
    stride: usize,
}

impl Tiled for Gamma<'_> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, s: S, row: usize, col: usize) {
        let (b, c) = ((RowMajor(self.b, self.n), row), (&self.ct[col..], self.stride));
        let acc = accumulate(s, [[s.zero(); V]; R], b, c, self.n);
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
    c: KMajor<'a>,
    m: KMajor<'a>,
    u: &'a [f32],
    state: &'a [f32],
    x: &'a [f32],
    y: MatMut<'a>,
    d: f32,
    decay: &'a [f32],
    n: usize,
    stride: usize,
    ahead: [MatRef<'a>; 2],
}

impl Tiled for Outputs<'_> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, s: S, row: usize, col: usize) {
        for matrix in self.ahead {
            let end = matrix.rows().min(row + R);
            for r in row..end.max(row) {
                let columns = matrix.row(r);
                for at in (col..columns.len().min(col + V * S::LANES)).step_by(LINE) {
                    s.prefetch(&columns[at..]);
                }
            }
        }
        let state = (&self.state[col..], self.stride);
        let mut acc = accumulate(s, [[s.zero(); V]; R], (self.c, row), state, self.n);
        for r in 0..R {
            let decay = s.splat(self.decay[row + r]);
            let x = &self.x[(row + r) * self.stride + col..][..V * S::LANES];
            for v in 0..V {
                let x = s.load(&x[v * S::LANES..]);
                acc[r][v] = s.fma(acc[r][v], decay, s.mul(s.splat(self.d), x));
            }
        }
        // Beyond the diagonal of the tile's last row M is zero.
        let acc = accumulate(s, acc, (self.m, row), (&self.u[col..], self.stride), row + R);
        for r in 0..R {
            let y = &mut self.y.row_mut(row + r)[col..];
            for v in 0..V {
                let y = &mut y[v * S::LANES..];
                s.store_partial(acc[r][v], y);
            }
        }
    }
}

/// Sᵀ ← e^{s_Q} Sᵀ + Bᵀ U, U with its weights.
struct StateUpdate<'a> {
    b: KMajor<'a>,
    u: &'a [f32],
    state: &'a mut [f32],
    decay: f32,
    rows: usize,
    stride: usize,
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
        let u = (&self.u[col..], self.stride);
        let acc = accumulate(s, acc, (self.b, row), u, self.rows);
        for r in 0..R {
            let new = &mut self.state[(row + r) * self.stride + col..][..V * S::LANES];
            for v in 0..V {
                s.store(acc[r][v], &mut new[v * S::LANES..]);
            }
        }
    }
}

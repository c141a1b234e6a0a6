//! Mamba-2's state-space duality: a sequence in chunks of Q tokens.
//!
//! With `a_t = Δ_t·A ≤ 0`, `u_t = Δ_t·x_t` and `s_i = a_1 + … + a_i` inside a chunk, the
//! recurrence of [`crate::ops::selective_state_update`] over a chunk is
//!
//! - `Γ = C Bᵀ`, once per group;  `M_ij = Γ_ij e^{s_i − s_j}` for j ≤ i, else 0;
//! - `Y = diag(e^{s_i}) C S_inᵀ + d X + M U`;
//! - `S_out = e^{s_Q} S_in + Uᵀ diag(e^{s_Q − s_j}) B`.
//!
//! Shapes: X, U, Y \[Q, P\]; B, C \[Q, N\]; S \[P, N\] per head. Every exponent is ≤ 0: sums and
//! differences are f64, their exponentials f32. A chunk of a single token takes the step's
//! arithmetic, so decoding one token is the same call.
//!
//! **Work.** A part is some heads of one group; it goes through the chunks in order. States are
//! stored transposed, \[N, P\], so that every product runs along P in lanes and works on them in
//! place.
//!
//! Source: Dao and Gu 2024 (Mamba-2), section 6; `mamba_chunk_scan_combined`.

use crate::buffer::{Chunks, MatMut, MatRef};
use crate::ops::activation::softplus;
use crate::ops::selective_state_update::{Step, Token};
use crate::ops::ssd_chunk::{Buffers, ChunkSizes, Scratch};
use crate::ops::ssm_state::Stored;
use crate::simd::{Simd, WithSimd, dispatch};
use crate::{Cpu, Isa};
use std::cell::RefCell;
use std::ops::Range;

/// Sizes and per-head constants of a Mamba-2 layer.
#[derive(Clone, Copy, Debug)]
pub struct SsdParams<'a> {
    /// H.
    pub num_heads: usize,
    /// P.
    pub head_dim: usize,
    /// G; divides H.
    pub n_groups: usize,
    /// N.
    pub state_size: usize,
    /// −exp(A_log), \[H\].
    pub a: &'a [f32],
    /// Skip connection, \[H\].
    pub d: &'a [f32],
    /// Added to the raw step before softplus, \[H\].
    pub dt_bias: &'a [f32],
    /// Least and largest step; (0, ∞) changes nothing.
    pub dt_limit: (f32, f32),
}

impl SsdParams<'_> {
    /// Demands sizes that go together.
    pub(crate) fn check(&self) {
        let h = self.num_heads;
        assert!(self.n_groups > 0 && h.is_multiple_of(self.n_groups), "{self:?}");
        assert_eq!([self.a.len(), self.d.len(), self.dt_bias.len()], [h; 3], "a, d and dt_bias");
    }

    /// H·P.
    pub(crate) fn inner(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Columns of x, B and C: H·P + 2·G·N.
    pub(crate) fn conv_dim(&self) -> usize {
        self.inner() + 2 * self.n_groups * self.state_size
    }

    /// Columns of B or C: G·N.
    pub(crate) fn bc_width(&self) -> usize {
        self.n_groups * self.state_size
    }

    /// Values of the state: H·P·N.
    pub(crate) fn state_len(&self) -> usize {
        self.inner() * self.state_size
    }

    pub(crate) fn heads_per_group(&self) -> usize {
        self.num_heads / self.n_groups
    }

    /// B of a group in a row of x, B and C.
    #[inline(always)]
    pub(crate) fn b<'r>(&self, xbc: &'r [f32], group: usize) -> &'r [f32] {
        &xbc[self.inner() + group * self.state_size..][..self.state_size]
    }

    /// C of a group in a row of x, B and C.
    #[inline(always)]
    pub(crate) fn c<'r>(&self, xbc: &'r [f32], group: usize) -> &'r [f32] {
        self.b(xbc, self.n_groups + group)
    }
}

/// Δ of the raw steps `dt` of the heads from `first` on; NaN stays NaN.
pub(crate) struct StepSizes<'a> {
    pub(crate) p: &'a SsdParams<'a>,
    pub(crate) first: usize,
    pub(crate) dt: &'a [f32],
    pub(crate) delta: &'a mut [f32],
}

impl WithSimd for StepSizes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { p, first, dt, delta } = self;
        let bias = &p.dt_bias[first..first + dt.len()];
        let (least, most) = (s.splat(p.dt_limit.0), s.splat(p.dt_limit.1));
        let parts = dt.chunks(S::LANES).zip(bias.chunks(S::LANES));
        for ((dt, bias), delta) in parts.zip(delta[..dt.len()].chunks_mut(S::LANES)) {
            let free = softplus(s, s.add(s.load_partial(dt), s.load_partial(bias)));
            s.store_partial(s.min(most, s.max(least, free)), delta);
        }
    }
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// Calls `f` with the buffers that the thread keeps.
pub(crate) fn with_buffers<T>(f: impl FnOnce(&mut Buffers) -> T) -> T {
    BUFFERS.with_borrow_mut(f)
}

/// Runs T tokens through the recurrence in chunks of at most `chunk`; updates `state`
/// \[H, N, P\] in place and writes y \[T, H·P\].
///
/// `xbc` \[T, H·P + 2·G·N\] is x, B and C after convolution and SiLU; `dt` \[T, H\] is raw.
///
/// # Panics
/// If a shape disagrees with `p`, or `chunk` is 0.
pub fn ssd_chunk_scan(
    cpu: &Cpu,
    p: &SsdParams,
    xbc: MatRef,
    dt: MatRef,
    chunk: usize,
    state: &mut [f32],
    y: MatMut,
) {
    p.check();
    assert!(chunk > 0, "chunks of no tokens");
    assert_eq!(
        [xbc.cols(), dt.cols(), y.cols()],
        [p.conv_dim(), p.num_heads, p.inner()],
        "columns"
    );
    assert_eq!([xbc.rows(), dt.rows()], [y.rows(); 2], "rows");
    assert_eq!(state.len(), p.state_len(), "state");
    if xbc.rows() == 0 {
        return;
    }
    let heads = heads_per_part(p, 1, cpu.pool().threads());
    let (isa, operations) = (cpu.isa(), 6 * xbc.rows() * p.state_len());
    let states = Chunks::new(state, heads * p.head_dim * p.state_size);
    let parts = (states, y.column_panels(heads * p.head_dim));
    cpu.pool().for_parts_sized(operations, parts, |i, (state, y)| {
        let first = i * heads;
        let inputs = Convolved { p, group: first / p.heads_per_group(), xbc, dt };
        with_buffers(|buffers| {
            Part { p, first, heads, chunk, steps: 0, inputs, state, y, buffers }.run(isa);
        });
    });
}

/// Heads of a part where `segments` sequences are worked on at once: whole groups, or equal
/// shares of a group where there are too few groups for the threads. Shares change who computes
/// Γ, not its bits.
pub(crate) fn heads_per_part(p: &SsdParams, segments: usize, threads: usize) -> usize {
    let shares = (2 * threads).div_ceil(p.n_groups * segments);
    let fits = |heads: &usize| p.heads_per_group().is_multiple_of(*heads);
    (1..=p.heads_per_group().div_ceil(shares)).rev().find(fits).unwrap_or(1)
}

/// What a part reads of its sequence.
pub(crate) trait Inputs {
    /// Number of tokens.
    fn len(&self) -> usize;
    /// Raw steps of the heads `from .. from + heads` at token `t`.
    fn dt(&self, t: usize, from: usize, heads: usize) -> &[f32];
    /// Fills B and C of the part's group, \[rows, N\] each.
    fn fill_group(&self, isa: Isa, rows: Range<usize>, b: &mut [f32], c: &mut [f32]);
    /// Fills X of a head, \[rows, P\].
    fn fill_head(&self, isa: Isa, head: usize, rows: Range<usize>, x: MatMut);
    /// What will be read soon after `head` has worked on `rows`: the same rows of other columns.
    fn ahead(&self, head: usize, rows: Range<usize>) -> [MatRef<'_>; 2] {
        let _ = (head, rows);
        [MatRef::new(&[], 1); 2]
    }
    /// Asks for what a chunk begins with, at some of its rows.
    fn prefetch(&self, isa: Isa, rows: Range<usize>) {
        let _ = (isa, rows);
    }
    /// Goes over the outputs of the part's heads for `rows`, which are complete in `y`.
    fn finish(&self, isa: Isa, rows: Range<usize>, y: MatMut);
}

/// Rows of x, B and C that a convolution has written.
struct Convolved<'a> {
    p: &'a SsdParams<'a>,
    group: usize,
    xbc: MatRef<'a>,
    dt: MatRef<'a>,
}

impl Inputs for Convolved<'_> {
    fn len(&self) -> usize {
        self.xbc.rows()
    }

    fn dt(&self, t: usize, from: usize, heads: usize) -> &[f32] {
        &self.dt.row(t)[from..from + heads]
    }

    fn fill_group(&self, _: Isa, rows: Range<usize>, b: &mut [f32], c: &mut [f32]) {
        let n = self.p.state_size;
        for (t, (b, c)) in rows.zip(b.chunks_exact_mut(n).zip(c.chunks_exact_mut(n))) {
            b.copy_from_slice(self.p.b(self.xbc.row(t), self.group));
            c.copy_from_slice(self.p.c(self.xbc.row(t), self.group));
        }
    }

    fn fill_head(&self, _: Isa, head: usize, rows: Range<usize>, mut x: MatMut) {
        let p = self.p.head_dim;
        for (i, t) in rows.enumerate() {
            x.row_mut(i).copy_from_slice(&self.xbc.row(t)[head * p..][..p]);
        }
    }

    fn finish(&self, _: Isa, _: Range<usize>, _: MatMut) {}
}

/// Heads of a part that ask for the rows of the next chunk.
const LAST_HEADS: usize = 4;

/// Some heads of one group of one sequence.
pub(crate) struct Part<'a, I, E> {
    pub(crate) p: &'a SsdParams<'a>,
    pub(crate) first: usize,
    pub(crate) heads: usize,
    /// Most tokens of a chunk.
    pub(crate) chunk: usize,
    /// Tokens at the end that are chunks of one.
    pub(crate) steps: usize,
    pub(crate) inputs: I,
    /// States of the part's heads.
    pub(crate) state: &'a mut [E],
    /// The output columns of the part's heads.
    pub(crate) y: MatMut<'a>,
    pub(crate) buffers: &'a mut Buffers,
}

impl<I: Inputs, E: Stored> Part<'_, I, E> {
    /// Vector code is entered for each piece of work, not for the whole: it is compiled once
    /// then, whatever the inputs and the type of the state.
    pub(crate) fn run(self, isa: Isa) {
        let Part { p, first, heads, chunk, steps, inputs, state, mut y, buffers } = self;
        let (len, n, head_dim) = (inputs.len(), p.state_size, p.head_dim);
        let chunked = len - steps;
        let most = chunk.min(chunked).max(1);
        let sizes = ChunkSizes { most, heads, head_dim, state_size: n };
        let (p_stride, heads_stride) = (sizes.p_stride(), sizes.heads_stride());
        let mut scratch = Scratch::new(buffers, sizes);
        for from in (0..chunked).step_by(chunk).chain(chunked..len) {
            let rows = from..if from < chunked { chunked.min(from + chunk) } else { from + 1 };
            let num = rows.len();
            let (b, c) = (&mut scratch.b[..num * n], &mut scratch.c[..num * n]);
            inputs.fill_group(isa, rows.clone(), b, c);
            for (t, delta) in rows.clone().zip(scratch.delta.chunks_exact_mut(heads_stride)) {
                dispatch(isa, StepSizes { p, first, dt: inputs.dt(t, first, heads), delta });
            }
            if num > 1 {
                scratch.start_group(isa, num);
            }
            for (i, state) in state.chunks_exact_mut(head_dim * n).enumerate() {
                let head = first + i;
                let x = MatMut::new(&mut scratch.x[..num * p_stride], p_stride);
                inputs.fill_head(isa, head, rows.clone(), x.columns(0, head_dim));
                let mut y = y.reborrow().rows_at(from, num).columns(i * head_dim, head_dim);
                if num > 1 {
                    // The last heads ask for the next chunk: soon enough, and not too soon for the
                    // caches.
                    let (ask, left) = (LAST_HEADS.min(heads), heads - i);
                    if left <= ask {
                        let next = |left: usize| len.min(rows.end + (ask - left) * chunk / ask);
                        inputs.prefetch(isa, next(left)..next(left - 1));
                    }
                    let ahead = inputs.ahead(head, rows.clone());
                    scratch.head(isa, i, (p.a[head], p.d[head]), state, y, ahead);
                } else {
                    let (delta, x) = (scratch.delta[i], &scratch.x[..head_dim]);
                    let (b, c) = (&*scratch.b, &*scratch.c);
                    let token = Token { a: p.a[head], d: p.d[head], delta, x, b, c };
                    dispatch(isa, Step { token, state, y: y.row_mut(0) });
                }
            }
            inputs.finish(isa, rows, y.reborrow().rows_at(from, num));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::selective_state_update::{naive, selective_state_update};
    use crate::ops::testing::{assert_same_bits, on_every_cpu, relative_error, values};

    /// A layer's constants and a sequence's inputs; xbc and dt are columns of wider matrices.
    struct Case {
        sizes: [usize; 4],
        limit: (f32, f32),
        constants: [Vec<f32>; 3],
        wide: Vec<f32>,
        state: Vec<f32>,
        rows: usize,
    }

    impl Case {
        fn new(sizes: [usize; 4], rows: usize, decay: f32) -> Self {
            let h = sizes[0];
            let a = (0..h).map(|i| -decay * (i + 1) as f32 / h as f32).collect();
            let bias = values(h, 2).iter().map(|v| v - 1.0).collect();
            let constants = [a, values(h, 1), bias];
            let mut case = Self {
                sizes,
                limit: (0.0, f32::INFINITY),
                constants,
                wide: vec![],
                state: vec![],
                rows,
            };
            case.wide = values(rows * case.width(), 3);
            case.state = values(case.params().state_len(), 4);
            case
        }

        fn params(&self) -> SsdParams<'_> {
            let [num_heads, head_dim, n_groups, state_size] = self.sizes;
            let [a, d, dt_bias] = &self.constants;
            let dt_limit = self.limit;
            SsdParams { num_heads, head_dim, n_groups, state_size, a, d, dt_bias, dt_limit }
        }

        fn width(&self) -> usize {
            self.params().conv_dim() + self.sizes[0] + 3
        }

        fn inputs(&self) -> (MatRef<'_>, MatRef<'_>) {
            let wide = MatRef::new(&self.wide, self.width());
            let conv_dim = self.params().conv_dim();
            (wide.columns(2, conv_dim), wide.columns(3 + conv_dim, self.sizes[0]))
        }

        /// y and then the state, the sequence cut into `pieces`.
        fn scan(&self, cpu: &Cpu, chunk: usize, pieces: &[usize]) -> Vec<f32> {
            let (p, (xbc, dt)) = (self.params(), self.inputs());
            // The output too is columns of a wider matrix.
            let stride = p.inner() + 1;
            let mut state = self.state.clone();
            let mut y = vec![f32::NAN; self.rows * stride];
            let mut from = 0;
            for &len in pieces {
                let (xbc, dt) = (xbc.rows_at(from, len), dt.rows_at(from, len));
                let y = MatMut::new(&mut y, stride).columns(1, p.inner()).rows_at(from, len);
                ssd_chunk_scan(cpu, &p, xbc, dt, chunk, &mut state, y);
                from += len;
            }
            assert_eq!(from, self.rows);
            y.chunks(stride).flat_map(|row| row[1..].to_vec()).chain(state).collect()
        }

        fn naive(&self) -> Vec<f64> {
            let (xbc, dt) = self.inputs();
            let (y, state) = naive(&self.params(), xbc, dt, &self.state);
            [y, state].concat()
        }

        /// Errors of y and of the state.
        fn errors(&self, got: &[f32]) -> [f64; 2] {
            let at = self.rows * self.params().inner();
            let want = self.naive();
            [relative_error(&got[..at], &want[..at]), relative_error(&got[at..], &want[at..])]
        }

        fn assert_near(&self, got: &[f32], what: &str) {
            let errors = self.errors(got);
            assert!(errors.iter().all(|e| *e <= 1e-5), "{what} {:?}: {errors:?}", self.sizes);
        }
    }

    const SIZES: [[usize; 4]; 5] =
        [[1, 1, 1, 1], [6, 5, 3, 37], [4, 80, 2, 128], [4, 33, 1, 24], [8, 32, 2, 32]];

    #[test]
    fn chunks_of_any_length_agree_with_the_recurrence() {
        for sizes in SIZES {
            for rows in [0, 1, 2, 7, 64, 65, 150] {
                let case = Case::new(sizes, rows, 4.0);
                for chunk in [1, 3, 16, 64, 256] {
                    for (isa, got) in on_every_cpu(|cpu| case.scan(cpu, chunk, &[rows])) {
                        case.assert_near(&got, &format!("{isa} T{rows} Q{chunk}"));
                    }
                }
            }
        }
    }

    #[test]
    fn a_scan_in_whole_chunks_has_the_same_bits_and_one_token_is_the_step() {
        for sizes in SIZES {
            let case = Case::new(sizes, 70, 4.0);
            for isa in crate::Isa::available() {
                let cpu = Cpu::new(isa, 2);
                let whole = case.scan(&cpu, 16, &[70]);
                assert_same_bits(&case.scan(&cpu, 16, &[16, 0, 48, 6]), &whole, "pieces");
                let steps = case.scan(&cpu, 16, &[1; 70]);
                case.assert_near(&steps, "steps");
                assert_same_bits(&case.scan(&cpu, 1, &[70]), &steps, "chunks of one");
                let (p, (xbc, dt)) = (case.params(), case.inputs());
                let (mut state, mut y) = (case.state.clone(), vec![0.0; p.inner()]);
                for t in 0..70 {
                    selective_state_update(&cpu, &p, xbc.row(t), dt.row(t), &mut state, &mut y);
                    assert_same_bits(&y, &steps[t * p.inner()..][..p.inner()], "update");
                }
            }
        }
    }

    #[test]
    fn limits_of_the_step_are_obeyed() {
        let free = Case::new([4, 16, 2, 32], 40, 4.0);
        for limit in [(0.5, f32::INFINITY), (0.0, 0.05), (0.2, 0.2)] {
            let mut case = Case::new([4, 16, 2, 32], 40, 4.0);
            case.limit = limit;
            for (isa, got) in on_every_cpu(|cpu| case.scan(cpu, 16, &[40])) {
                case.assert_near(&got, &format!("{isa} {limit:?}"));
                assert!(free.errors(&got)[0] > 1e-3, "{limit:?} changes the result");
            }
        }
    }

    #[test]
    fn decay_that_underflows_gives_no_nan() {
        let case = Case::new([4, 16, 2, 32], 100, 3e4);
        for (isa, got) in on_every_cpu(|cpu| case.scan(cpu, 64, &[100])) {
            assert!(got.iter().all(|v| v.is_finite()), "{isa}");
            case.assert_near(&got, &format!("{isa}"));
        }
    }
}

//! Everything between the two projections of a Mamba-2 mixer, in one pass.
//!
//! For each sequence, with `z (HP) | x (HP) | B (GN) | C (GN) | dt (H)` the columns of a row of
//! in_proj's output: `x | B | C` go through [`crate::ops::causal_conv1d`], the result and dt
//! through [`crate::ops::ssd`], its y and z through [`crate::ops::rms_norm::gated_rms_norm`] with
//! a norm group for each SSM group. Bit for bit the same as these ops one after the other.
//!
//! **Work.** One parallel region for all sequences, whether they bring one token or many: a part
//! is one group of one sequence. It convolves the columns of its group a chunk and a head at a
//! time, right where they are used, so that the convolved values never leave the inner caches,
//! works on its heads' states in place, and norms the chunk's outputs while they are close. Where
//! there are too few groups for the threads, parts are shares of a group and the norm follows in
//! a region of its own.
//!
//! Source: `mamba_split_conv1d_scan_combined` of state-spaces/mamba.

use crate::buffer::{Chunks, MatMut, MatRef};
use crate::ops::causal_conv1d::{Conv, OwnPast, Past, Tile, shift_state};
use crate::ops::rms_norm::GateInPlace;
use crate::ops::ssd::{Inputs, Part, SsdParams, heads_per_part, with_buffers};
use crate::ops::ssd_chunk::{Buffers, Prefetch};
use crate::ops::ssm_state::SsmStateMut;
use crate::simd::dispatch;
use crate::{Cpu, Isa};
use std::cell::RefCell;
use std::ops::Range;

/// Constants of a mixer.
#[derive(Clone, Copy)]
pub struct MixerParams<'a> {
    /// Sizes and constants of the recurrence.
    pub ssd: SsdParams<'a>,
    /// Taps, \[K, HP + 2GN\].
    pub conv_weight: &'a [f32],
    /// \[HP + 2GN\].
    pub conv_bias: Option<&'a [f32]>,
    /// Weight of the gated norm, \[HP\].
    pub norm_weight: &'a [f32],
    /// Epsilon of the gated norm.
    pub norm_eps: f32,
}

/// The next tokens of one sequence.
pub struct MixerSegment<'a> {
    /// How many: the next rows of the inputs and of the output.
    pub len: usize,
    /// Q: the most tokens of a chunk of the scan.
    pub chunk: usize,
    /// So many of the last tokens are read in single steps: they have the bits of as many calls.
    pub steps: usize,
    /// The last K − 1 inputs of the convolution, \[K − 1, HP + 2GN\], oldest first; moved on.
    pub conv: &'a mut [f32],
    /// The state of the recurrence, \[H, N, P\]; moved on.
    pub state: SsmStateMut<'a>,
}

/// Runs the rows of `zxbcdt` \[T, 2HP + 2GN + H\], segment after segment, through the mixer and
/// writes `out` \[T, HP\].
///
/// # Panics
/// If a shape disagrees with `p`, or the segments do not cover the rows.
pub fn mamba_split_conv1d_scan<'s>(
    cpu: &Cpu,
    p: &MixerParams,
    zxbcdt: MatRef,
    mut segments: impl ExactSizeIterator<Item = MixerSegment<'s>>,
    out: MatMut,
) {
    of_segments(cpu, p, zxbcdt, &mut segments, out);
}

/// [`mamba_split_conv1d_scan`] for whatever iterator: compiled once, not in every crate that calls it.
fn of_segments<'s>(
    cpu: &Cpu,
    p: &MixerParams,
    zxbcdt: MatRef,
    segments: &mut dyn ExactSizeIterator<Item = MixerSegment<'s>>,
    mut out: MatMut,
) {
    check(p, zxbcdt, &out);
    let (ssd, isa) = (&p.ssd, cpu.isa());
    let heads = heads_per_part(ssd, segments.len().max(1), cpu.pool().threads());
    let whole_groups = heads == ssd.heads_per_group();
    let (mut tasks, mut past) = KEPT.take();
    let past_len = segments.len() * (p.conv_weight.len() / ssd.conv_dim() - 1) * 2 * ssd.bc_width();
    if past.len() < past_len {
        past.resize(past_len, 0.0);
    }
    split(p, zxbcdt, segments, heads, out.reborrow(), &mut past[..past_len], &mut tasks);
    let operations = zxbcdt.rows() * (6 * ssd.state_len() + 30 * ssd.conv_dim());
    cpu.pool().for_parts_sized(operations, Chunks::new(&mut tasks, 1), |_, task| {
        with_buffers(|buffers| task[0].run(isa, p, whole_groups, buffers));
    });
    KEPT.set((emptied(tasks), past));
    if !whole_groups {
        let (rows, width) = (zxbcdt.rows(), ssd.heads_per_group() * ssd.head_dim);
        cpu.pool().for_parts_sized(20 * rows * width, out.tiles(1, width), |i, out| {
            let (row, group) = (i / ssd.n_groups, i % ssd.n_groups);
            let z = zxbcdt.rows_at(row, 1).columns(group * width, width);
            let weight = &p.norm_weight[group * width..][..width];
            dispatch(isa, GateInPlace { y: out, z, weight, eps: p.norm_eps });
        });
    }
}

fn check(p: &MixerParams, zxbcdt: MatRef, out: &MatMut) {
    p.ssd.check();
    let (inner, conv_dim) = (p.ssd.inner(), p.ssd.conv_dim());
    assert_eq!(zxbcdt.cols(), inner + conv_dim + p.ssd.num_heads, "columns of z, x, B, C and dt");
    assert_eq!((out.rows(), out.cols()), (zxbcdt.rows(), inner), "output");
    assert!(!p.conv_weight.is_empty() && p.conv_weight.len().is_multiple_of(conv_dim), "taps");
    assert!(p.conv_bias.is_none_or(|b| b.len() == conv_dim), "bias of the convolution");
    assert_eq!(p.norm_weight.len(), inner, "weight of the norm");
}

thread_local! {
    /// The memory of the list of tasks and of the past of B and C, from call to call.
    static KEPT: RefCell<(Vec<Task<'static>>, Vec<f32>)> = RefCell::default();
}

/// The memory of a list of tasks, for tasks of another lifetime.
fn emptied<'b>(mut tasks: Vec<Task<'_>>) -> Vec<Task<'b>> {
    tasks.clear();
    // Collected in place: nothing is copied or allocated.
    tasks.into_iter().map(|_| unreachable!("the list is empty")).collect()
}

/// Some heads of one group of one sequence.
struct Task<'a> {
    first: usize,
    heads: usize,
    chunk: usize,
    steps: usize,
    /// The rows of the sequence.
    zxbcdt: MatRef<'a>,
    /// The convolution's past inputs for x of the heads.
    past_x: MatMut<'a>,
    /// The convolution's past inputs for B and C of all groups: a copy, since shares of a group
    /// have the same.
    past_bc: MatRef<'a>,
    state: SsmStateMut<'a>,
    /// The output columns of the heads.
    out: MatMut<'a>,
}

/// The tasks of all segments; the past of B and C is copied to `past` and moved on.
fn split<'a, 's: 'a>(
    p: &MixerParams,
    zxbcdt: MatRef<'a>,
    segments: impl Iterator<Item = MixerSegment<'s>>,
    heads: usize,
    mut out: MatMut<'a>,
    mut past: &'a mut [f32],
    tasks: &mut Vec<Task<'a>>,
) {
    let (ssd, mut start) = (&p.ssd, 0);
    let (inner, width, bc_width) = (ssd.inner(), heads * ssd.head_dim, 2 * ssd.bc_width());
    for MixerSegment { len, chunk, steps, conv, mut state } in segments {
        assert!(chunk > 0 && steps <= len, "chunks of tokens, and single ones among them");
        assert_eq!(conv.len() + ssd.conv_dim(), p.conv_weight.len(), "state of the convolution");
        assert_eq!(state.len(), ssd.state_len(), "state");
        assert!(len > 0 && start + len <= zxbcdt.rows(), "segments cover the rows");
        let rows = zxbcdt.rows_at(start, len);
        let (mut columns, after) = out.split_rows(len);
        (out, start) = (after, start + len);
        let (mut past_x, mut bc) = MatMut::new(conv, ssd.conv_dim()).split_columns(inner);
        let copy = past.split_off_mut(..bc.rows() * bc_width).expect("a copy for each segment");
        for (r, row) in copy.chunks_exact_mut(bc_width).enumerate() {
            row.copy_from_slice(bc.row(r));
        }
        shift_state(rows.columns(2 * inner, bc_width), bc.reborrow());
        let past_bc = MatRef::new(copy, bc_width);
        for first in (0..ssd.num_heads).step_by(heads) {
            let (own, others) = columns.split_columns(width);
            let (own_past, other_past) = past_x.split_columns(width);
            (columns, past_x) = (others, other_past);
            let state = state.split_off(width * ssd.state_size);
            let (zxbcdt, past_x, out) = (rows, own_past, own);
            tasks.push(Task { first, heads, chunk, steps, zxbcdt, past_x, past_bc, state, out });
        }
    }
    assert_eq!(start, zxbcdt.rows(), "segments cover the rows");
}

impl Task<'_> {
    fn run(&mut self, isa: Isa, p: &MixerParams, norm: bool, buffers: &mut Buffers) {
        let Self { first, heads, zxbcdt, past_bc, ref past_x, .. } = *self;
        let group = first / p.ssd.heads_per_group();
        let inputs = Projected { p, zxbcdt, first, group, past_x, past_bc, norm };
        let y = self.out.reborrow();
        let (ssd, chunk, steps) = (&p.ssd, self.chunk, self.steps);
        match &mut self.state {
            SsmStateMut::F32(state) => {
                Part { p: ssd, first, heads, chunk, steps, inputs, state, y, buffers }.run(isa);
            }
            SsmStateMut::Bf16(state) => {
                Part { p: ssd, first, heads, chunk, steps, inputs, state, y, buffers }.run(isa);
            }
        }
        let (from, width) = (p.ssd.inner() + first * p.ssd.head_dim, heads * p.ssd.head_dim);
        shift_state(zxbcdt.columns(from, width), self.past_x.reborrow());
    }
}

/// Rows of in_proj's output, convolved where they are read.
struct Projected<'a> {
    p: &'a MixerParams<'a>,
    zxbcdt: MatRef<'a>,
    first: usize,
    group: usize,
    past_x: &'a MatMut<'a>,
    past_bc: MatRef<'a>,
    /// Whether the part is a whole group and norms it.
    norm: bool,
}

impl<'a> Projected<'a> {
    /// Convolution of the columns `from .. from + cols` of x, B and C.
    #[inline(always)]
    fn conv<P: Past>(&self, from: usize, cols: usize, past: P) -> Conv<'a, P> {
        let weight = MatRef::new(self.p.conv_weight, self.p.ssd.conv_dim()).columns(from, cols);
        let x = self.zxbcdt.columns(self.p.ssd.inner() + from, cols);
        let bias = self.p.conv_bias.map(|b| &b[from..from + cols]);
        Conv { x, past, weight, bias }
    }
}

impl Inputs for Projected<'_> {
    fn len(&self) -> usize {
        self.zxbcdt.rows()
    }

    fn dt(&self, t: usize, from: usize, heads: usize) -> &[f32] {
        let start = self.p.ssd.inner() + self.p.ssd.conv_dim();
        &self.zxbcdt.row(t)[start + from..start + from + heads]
    }

    fn fill_group(&self, isa: Isa, rows: Range<usize>, b: &mut [f32], c: &mut [f32]) {
        let (n, ssd) = (self.p.ssd.state_size, &self.p.ssd);
        for (i, to) in [(self.group, b), (ssd.n_groups + self.group, c)] {
            let past = self.past_bc.columns(i * n, n);
            let conv = self.conv(ssd.inner() + i * n, n, past);
            dispatch(isa, Tile { conv, first: rows.start, out: MatMut::new(to, n) });
        }
    }

    fn fill_head(&self, isa: Isa, head: usize, rows: Range<usize>, x: MatMut) {
        let p = self.p.ssd.head_dim;
        let past = OwnPast { matrix: self.past_x, from: (head - self.first) * p, cols: p };
        let conv = self.conv(head * p, p, past);
        dispatch(isa, Tile { conv, first: rows.start, out: x });
    }

    fn ahead(&self, head: usize, rows: Range<usize>) -> [MatRef<'_>; 2] {
        let (p, inner) = (self.p.ssd.head_dim, self.p.ssd.inner());
        let rows = self.zxbcdt.rows_at(rows.start, rows.len());
        // x of the next head, or B of some group after the last, and z of this one.
        [
            rows.columns(inner + (head + 1) * p, p.min(self.p.ssd.bc_width())),
            rows.columns(head * p, p),
        ]
    }

    fn prefetch(&self, isa: Isa, rows: Range<usize>) {
        let (ssd, n) = (&self.p.ssd, self.p.ssd.state_size);
        let rows = self.zxbcdt.rows_at(rows.start, rows.len());
        let (x, bc) = (ssd.inner(), 2 * ssd.inner());
        let dt = bc + 2 * ssd.bc_width();
        for (from, cols) in [
            (bc + self.group * n, n),
            (bc + (ssd.n_groups + self.group) * n, n),
            (dt + self.first, 1),
            (x + self.first * ssd.head_dim, ssd.head_dim),
        ] {
            dispatch(isa, Prefetch(rows.columns(from, cols)));
        }
    }

    fn finish(&self, isa: Isa, rows: Range<usize>, y: MatMut) {
        if self.norm {
            let from = self.first * self.p.ssd.head_dim;
            let z = self.zxbcdt.rows_at(rows.start, rows.len()).columns(from, y.cols());
            let weight = &self.p.norm_weight[from..from + y.cols()];
            dispatch(isa, GateInPlace { y, z, weight, eps: self.p.norm_eps });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::causal_conv1d::causal_conv1d;
    use crate::ops::rms_norm::gated_rms_norm;
    use crate::ops::ssd::ssd_chunk_scan;
    use crate::ops::ssm_state::{SsmDtype, SsmState};
    use crate::ops::testing::{assert_same_bits, relative_error, values};

    const CHUNK: usize = 16;

    /// Constants of a layer: H, P, G, N and K.
    struct Layer {
        sizes: [usize; 5],
        a: Vec<f32>,
        constants: [Vec<f32>; 5],
    }

    impl Layer {
        fn new(sizes: [usize; 5]) -> Self {
            let [h, p, g, n, k] = sizes;
            let conv_dim = h * p + 2 * g * n;
            let a = (0..h).map(|i| -0.1 - i as f32).collect();
            let lens = [h, h, k * conv_dim, conv_dim, h * p];
            let constants = std::array::from_fn(|i| values(lens[i], 10 + i as u64));
            Self { sizes, a, constants }
        }

        fn params(&self) -> MixerParams<'_> {
            let [num_heads, head_dim, n_groups, state_size, _] = self.sizes;
            let [d, dt_bias, conv_weight, conv_bias, norm_weight] = &self.constants;
            let (a, dt_limit) = (&self.a[..], (0.0, f32::INFINITY));
            let ssd =
                SsdParams { num_heads, head_dim, n_groups, state_size, a, d, dt_bias, dt_limit };
            let (conv_bias, norm_eps) = (Some(&conv_bias[..]), 1e-5);
            MixerParams { ssd, conv_weight, conv_bias, norm_weight, norm_eps }
        }

        fn cols(&self) -> usize {
            self.params().ssd.inner() + self.params().ssd.conv_dim() + self.sizes[0]
        }

        fn start(&self, dtype: SsmDtype, seed: u64) -> (Vec<f32>, SsmState) {
            let ssd = self.params().ssd;
            let mut state = SsmState::new(dtype, ssd.state_len());
            let start = values(ssd.state_len(), 30 + seed);
            match &mut state {
                SsmState::F32(to) => to.copy_from_slice(&start),
                SsmState::Bf16(to) => {
                    let bits = start.iter().map(|v| half::bf16::from_f32(*v).to_bits());
                    to.iter_mut().zip(bits).for_each(|(to, bits)| *to = bits);
                }
            }
            (values((self.sizes[4] - 1) * ssd.conv_dim(), 20 + seed), state)
        }

        /// Outputs, then windows and states as f32, after the calls with these segment lengths:
        /// each sequence's tokens are rows of `inputs` in the order of the segments.
        fn run(
            &self,
            cpu: &Cpu,
            inputs: MatRef,
            lens: &[usize],
            states: &mut [(Vec<f32>, SsmState)],
        ) -> Vec<f32> {
            self.run_with_steps(cpu, inputs, lens, 0, states)
        }

        /// The last `steps` tokens of each sequence, at most all, are read one by one.
        fn run_with_steps(
            &self,
            cpu: &Cpu,
            inputs: MatRef,
            lens: &[usize],
            steps: usize,
            states: &mut [(Vec<f32>, SsmState)],
        ) -> Vec<f32> {
            let p = self.params();
            let mut out = vec![f32::NAN; inputs.rows() * p.ssd.inner()];
            let segments = lens.iter().zip(states.iter_mut()).map(|(&len, (conv, state))| {
                let (steps, state) = (steps.min(len), state.view_mut());
                MixerSegment { len, chunk: CHUNK, steps, conv, state }
            });
            let to = MatMut::new(&mut out, p.ssd.inner());
            mamba_split_conv1d_scan(cpu, &p, inputs, segments, to);
            out
        }
    }

    fn widened((conv, state): &(Vec<f32>, SsmState)) -> Vec<f32> {
        let state = match state {
            SsmState::F32(values) => values.clone(),
            SsmState::Bf16(bits) => {
                bits.iter().map(|b| half::bf16::from_bits(*b).to_f32()).collect()
            }
        };
        [conv.clone(), state].concat()
    }

    const LAYERS: [[usize; 5]; 4] =
        [[6, 5, 3, 37, 4], [16, 16, 2, 32, 4], [4, 33, 1, 24, 2], [4, 80, 2, 128, 1]];

    #[test]
    fn has_the_bits_of_its_parts_one_after_the_other() {
        for sizes in LAYERS {
            let layer = Layer::new(sizes);
            let (p, cols) = (layer.params(), layer.cols());
            let (inner, conv_dim) = (p.ssd.inner(), p.ssd.conv_dim());
            for rows in [1, 2, 16, 17, 53] {
                let wide = values(rows * (cols + 3), 1);
                let wide = MatRef::new(&wide, cols + 3).columns(2, cols);
                for isa in Isa::available() {
                    let (mut window, state) = layer.start(SsmDtype::F32, 1);
                    let SsmState::F32(mut state) = state else { unreachable!("f32") };
                    let cpu = Cpu::new(isa, 2);
                    let mut xbc = vec![f32::NAN; rows * conv_dim];
                    let (mut y, mut want) = (vec![f32::NAN; rows * inner], vec![0.0; rows * inner]);
                    let (x, bias) = (wide.columns(inner, conv_dim), p.conv_bias);
                    let to = MatMut::new(&mut xbc, conv_dim);
                    causal_conv1d(&cpu, x, p.conv_weight, bias, &mut window, to);
                    let dt = wide.columns(inner + conv_dim, sizes[0]);
                    let (xbc, to) = (MatRef::new(&xbc, conv_dim), MatMut::new(&mut y, inner));
                    ssd_chunk_scan(&cpu, &p.ssd, xbc, dt, CHUNK, &mut state, to);
                    let (y, z) = (MatRef::new(&y, inner), wide.columns(0, inner));
                    let to = MatMut::new(&mut want, inner);
                    gated_rms_norm(&cpu, y, z, p.norm_weight, sizes[2], p.norm_eps, to);
                    for threads in [1, 3, 9] {
                        let what = format!("{isa} {sizes:?} T{rows}, {threads} threads");
                        let mut states = [layer.start(SsmDtype::F32, 1)];
                        let cpu = Cpu::new(isa, threads);
                        let got = layer.run(&cpu, wide, &[rows], &mut states);
                        assert_same_bits(&got, &want, &what);
                        let want = [&window[..], &state[..]].concat();
                        assert_same_bits(&widened(&states[0]), &want, &what);
                    }
                }
            }
        }
    }

    #[test]
    fn a_batch_has_the_bits_of_its_sequences_and_a_split_those_of_the_whole() {
        let lens = [1, 40, 1, 16, 3];
        for (sizes, dtype) in LAYERS.map(|l| [(l, SsmDtype::F32), (l, SsmDtype::Bf16)]).concat() {
            let layer = Layer::new(sizes);
            let (cols, inner) = (layer.cols(), layer.params().ssd.inner());
            let rows: usize = lens.iter().sum();
            let wide = values(rows * cols, 2);
            let wide = MatRef::new(&wide, cols);
            let starts = || (0..lens.len() as u64).map(|i| layer.start(dtype, i));
            for isa in Isa::available() {
                let mut states: Vec<_> = starts().collect();
                let got = layer.run(&Cpu::new(isa, 3), wide, &lens, &mut states);
                let mut from = 0;
                for ((len, start), state) in lens.into_iter().zip(starts()).zip(&states) {
                    let what = format!("{isa} {sizes:?} {dtype:?} T{len} at {from}");
                    let (cpu, mut alone) = (Cpu::new(isa, 1), [start]);
                    let mut single = Vec::new();
                    for at in (0..len).step_by(CHUNK) {
                        let num = CHUNK.min(len - at);
                        let rows = wide.rows_at(from + at, num);
                        single.extend(layer.run(&cpu, rows, &[num], &mut alone));
                    }
                    let got = &got[from * inner..(from + len) * inner];
                    assert_same_bits(&single, got, &what);
                    assert_same_bits(&widened(&alone[0]), &widened(state), &what);
                    from += len;
                }
            }
        }
    }

    #[test]
    fn steps_at_the_end_have_the_bits_of_as_many_calls() {
        let lens = [40, 1, 21, 33];
        for sizes in LAYERS {
            let layer = Layer::new(sizes);
            let (cols, rows) = (layer.cols(), lens.iter().sum::<usize>());
            let wide = values(rows * cols, 2);
            let wide = MatRef::new(&wide, cols);
            for (isa, steps) in
                Isa::available().into_iter().flat_map(|isa| [1, 21, 100].map(|s| (isa, s)))
            {
                let starts = || (0..lens.len() as u64).map(|i| layer.start(SsmDtype::F32, i));
                let mut states: Vec<_> = starts().collect();
                let cpu = Cpu::new(isa, 3);
                let got = layer.run_with_steps(&cpu, wide, &lens, steps, &mut states);
                let (mut from, mut want) = (0, Vec::new());
                for ((len, start), state) in lens.into_iter().zip(starts()).zip(&states) {
                    let mut alone = [start];
                    let chunked = len - steps.min(len);
                    let calls = [chunked].into_iter().filter(|&len| len > 0);
                    for num in calls.chain(std::iter::repeat_n(1, len - chunked)) {
                        want.extend(layer.run(&cpu, wide.rows_at(from, num), &[num], &mut alone));
                        from += num;
                    }
                    let what = format!("{isa} {sizes:?} {steps} of {len}");
                    assert_same_bits(&widened(state), &widened(&alone[0]), &what);
                }
                assert_same_bits(&got, &want, &format!("{isa} {sizes:?} {steps} steps"));
            }
        }
    }

    /// A bf16 state is rounded by at most 2⁻⁹ of itself at each store; the recurrence forgets
    /// roundings as it forgets inputs.
    #[test]
    fn a_bf16_state_stays_near_an_f32_state() {
        for sizes in LAYERS {
            let layer = Layer::new(sizes);
            let wide = values(50 * layer.cols(), 3);
            let wide = MatRef::new(&wide, layer.cols());
            for isa in Isa::available() {
                let cpu = Cpu::new(isa, 2);
                for step in [1, 16] {
                    let [exact, rounded] = [SsmDtype::F32, SsmDtype::Bf16].map(|dtype| {
                        let mut states = [layer.start(dtype, 1)];
                        let mut out = Vec::new();
                        for from in (0..50).step_by(step) {
                            let rows = wide.rows_at(from, step.min(50 - from));
                            out.extend(layer.run(&cpu, rows, &[rows.rows()], &mut states));
                        }
                        [out, widened(&states[0])].concat()
                    });
                    let exact: Vec<f64> = exact.iter().map(|v| f64::from(*v)).collect();
                    let error = relative_error(&rounded, &exact);
                    assert!(error > 1e-5 && error < 6e-3, "{isa} {sizes:?} {step}: {error:e}");
                }
            }
        }
    }
}

//! The Mamba-2 mixer between its projections, on the device against the CPU's and against itself.

mod emulated;

use half::bf16;
use hybra_cuda::ops::Value;
use hybra_cuda::ops::mamba_split_conv1d_scan as device;
use hybra_cuda::ops::rms_norm::rms_norm_gated;
use hybra_cuda::{DeviceBuffer, Gpu, stride};
use hybra_kernels::ops::mamba_split_conv1d_scan as cpu;
use hybra_kernels::ops::ssd::SsdParams;
use hybra_kernels::ops::ssm_state::SsmStateMut;
use hybra_kernels::{Cpu, Isa, MatMut, MatRef};

const CHUNK: usize = device::SCAN_CHUNK;

/// H, P, G, N and K: the golden models' shapes, that of the 9B with few heads, and odd ones, of
/// which some are not for tensor cores, one has more rows in a state than a block has registers
/// for, and one no window.
const SHAPES: [[usize; 5]; 8] = [
    [8, 16, 2, 16, 4],
    [6, 24, 3, 24, 4],
    [4, 80, 2, 128, 4],
    [2, 64, 2, 32, 4],
    [2, 128, 1, 40, 3],
    [6, 5, 3, 37, 4],
    [4, 33, 1, 24, 2],
    [2, 20, 1, 150, 1],
];

/// Uniform in −1 … 1.
fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Window and state of a sequence.
type State = [Vec<f32>; 2];

/// Constants of a layer.
struct Layer {
    shape: [usize; 5],
    a: Vec<f32>,
    dt_bias: Vec<f32>,
    /// d, taps, bias of the convolution, weight of the norm.
    constants: [Vec<f32>; 4],
    limit: (f32, f32),
}

/// Outputs \[T, `stride(HP)`\] as f32, and what the states became.
type Run = (Vec<f32>, Vec<State>);

impl Layer {
    fn new(shape: [usize; 5]) -> Self {
        let [h, p, g, n, k] = shape;
        let conv_dim = h * p + 2 * g * n;
        // Heads from slow to fast: some forget within a few tokens, some keep a chunk.
        let a = (0..h).map(|i| -0.02 - 4.0 * (i as f32 / h as f32).powi(2)).collect();
        let dt_bias = values(h, 9).iter().map(|v| v - 1.5).collect();
        let lens = [h, k * conv_dim, conv_dim, h * p];
        let constants = std::array::from_fn(|i| values(lens[i], 10 + i as u64));
        Self { shape, a, dt_bias, constants, limit: (0.0, f32::INFINITY) }
    }

    fn inner(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    fn conv_dim(&self) -> usize {
        self.inner() + 2 * self.shape[2] * self.shape[3]
    }

    fn cols(&self) -> usize {
        self.inner() + self.conv_dim() + self.shape[0]
    }

    fn inputs(&self, rows: usize, seed: u64) -> Vec<f32> {
        values(rows * self.cols(), seed).iter().map(|v| 2.0 * v).collect()
    }

    fn starts(&self, num: usize) -> Vec<State> {
        let [h, p, _, n, k] = self.shape;
        let lens = [(k - 1) * self.conv_dim(), h * n * p];
        let state = |s: usize| std::array::from_fn(|i| values(lens[i], (40 + 2 * s + i) as u64));
        (0..num).map(state).collect()
    }

    /// The CPU's, with the same padding.
    fn on_cpu(&self, inputs: &[f32], lens: &[usize], mut states: Vec<State>) -> Run {
        let [num_heads, head_dim, n_groups, state_size, _] = self.shape;
        let [d, conv_weight, conv_bias, norm_weight] = self.constants.each_ref().map(|c| &c[..]);
        let (a, dt_bias, dt_limit) = (&self.a[..], &self.dt_bias[..], self.limit);
        let ssd = SsdParams { num_heads, head_dim, n_groups, state_size, a, d, dt_bias, dt_limit };
        let (conv_bias, norm_eps) = (Some(conv_bias), 1e-5);
        let p = cpu::MixerParams { ssd, conv_weight, conv_bias, norm_weight, norm_eps };
        let (inner, rows) = (self.inner(), inputs.len() / self.cols());
        let mut out = vec![0.0; rows * inner];
        let segments = lens.iter().zip(&mut states).map(|(&len, [conv, state])| {
            let state = SsmStateMut::F32(state);
            cpu::MixerSegment { len, chunk: CHUNK, steps: 0, conv, state }
        });
        let device = Cpu::new(Isa::best(), 2);
        let inputs = MatRef::new(inputs, self.cols());
        let to = MatMut::new(&mut out, inner);
        cpu::mamba_split_conv1d_scan(&device, &p, inputs, segments, to);
        let mut padded = vec![0.0; rows * stride(inner)];
        for (to, from) in padded.chunks_mut(stride(inner)).zip(out.chunks(inner)) {
            to[..inner].copy_from_slice(from);
        }
        (padded, states)
    }

    /// One call on the device: segments of these lengths one after the other.
    fn on_device<T: Value + Widen>(
        &self,
        gpu: &Gpu,
        inputs: &[f32],
        lens: &[usize],
        states: Vec<State>,
    ) -> Run {
        let upload = |values: &[f32]| gpu.upload_new(values).unwrap();
        let rows = inputs.len() / self.cols();
        let [a, dt_bias, wide] = [&self.a[..], &self.dt_bias, inputs].map(upload);
        let [d, conv_weight, conv_bias, norm_weight] =
            self.constants.each_ref().map(|values| upload(values));
        let [num_heads, head_dim, n_groups, state_size, _] = self.shape;
        let p = device::MixerParams {
            num_heads,
            head_dim,
            n_groups,
            state_size,
            a: a.slice(..),
            d: d.slice(..),
            dt_bias: dt_bias.slice(..),
            dt_limit: self.limit,
            conv_weight: conv_weight.slice(..),
            conv_bias: Some(conv_bias.slice(..)),
            norm_weight: norm_weight.slice(..),
            norm_eps: 1e-5,
        };
        let states: Vec<[DeviceBuffer<f32>; 2]> =
            states.iter().map(|state| state.each_ref().map(|values| upload(values))).collect();
        let addresses = |i: usize| -> Vec<u64> {
            states.iter().map(|state| state[i].slice(..).ptr()).collect()
        };
        let [conv_states, ssm_states] = [0, 1].map(|i| gpu.upload_new(&addresses(i)).unwrap());
        let starts: Vec<u32> = lens
            .iter()
            .scan(0, |next, len| {
                *next += *len as u32;
                Some(*next - *len as u32)
            })
            .collect();
        let start = gpu.upload_new(&starts).unwrap();
        let lens: Vec<u32> = lens.iter().map(|len| *len as u32).collect();
        let len = gpu.upload_new(&lens).unwrap();
        let segments = device::MixerSegments {
            start: start.slice(..),
            len: len.slice(..),
            conv_states: conv_states.slice(..),
            ssm_states: ssm_states.slice(..),
            longest: *lens.iter().max().unwrap() as usize,
        };
        // Nothing may be left of what the memory holds before the call.
        let mut xbc = upload(&vec![f32::NAN; rows * self.conv_dim()]);
        let needed = p.scans_chunks::<T>() && segments.longest >= CHUNK;
        let rounded = vec![bf16::NAN; if needed { rows * self.conv_dim() } else { 0 }];
        let mut rounded = gpu.upload_new(&rounded).unwrap();
        let mut out = gpu.upload_new(&vec![T::NAN; rows * stride(self.inner())]).unwrap();
        let scratch =
            device::MixerScratch { xbc: xbc.slice_mut(..), rounded: rounded.slice_mut(..) };
        let to = out.slice_mut(..);
        device::mamba_split_conv1d_scan(gpu, &p, wide.slice(..), &segments, scratch, to).unwrap();
        let out = gpu.to_vec(out.slice(..)).unwrap().into_iter().map(T::widen).collect();
        let download = |buffer: DeviceBuffer<f32>| gpu.to_vec(buffer.slice(..)).unwrap();
        (out, states.into_iter().map(|state| state.map(download)).collect())
    }

    /// One sequence in calls of these lengths.
    fn in_pieces<T: Value + Widen>(&self, gpu: &Gpu, inputs: &[f32], lens: &[usize]) -> Run {
        let (mut out, mut states, mut from) = (Vec::new(), self.starts(1), 0);
        for &len in lens {
            let rows = &inputs[from * self.cols()..(from + len) * self.cols()];
            let (piece, after) = self.on_device::<T>(gpu, rows, &[len], states);
            out.extend(piece);
            (states, from) = (after, from + len);
        }
        (out, states)
    }
}

/// A compute type, for tests.
trait Widen {
    const NAN: Self;
    fn widen(self) -> f32;
}

impl Widen for f32 {
    const NAN: Self = f32::NAN;
    fn widen(self) -> f32 {
        self
    }
}

impl Widen for bf16 {
    const NAN: Self = bf16::NAN;
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// |got − want| / |want| of vectors; NaN if a value is.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let wide = |v: &f32| f64::from(*v);
    let off = squares(&mut got.iter().zip(want).map(|(g, w)| wide(g) - wide(w)));
    (off / squares(&mut want.iter().map(wide)).max(1e-30)).sqrt()
}

/// Each row of the outputs and each state at most `bound` off, and all outputs together a third.
fn assert_near(layer: &Layer, got: &Run, want: &Run, bound: f64, what: &str) {
    let (inner, width) = (layer.inner(), stride(layer.inner()));
    for (r, (got, want)) in got.0.chunks(width).zip(want.0.chunks(width)).enumerate() {
        let off = distance(got, want);
        assert!(off <= bound, "{what}: row {r} is {off:e} off");
        assert!(got[inner..].iter().all(|v| *v == 0.0), "{what}: padding of row {r}");
    }
    for (s, (got, want)) in got.1.iter().zip(&want.1).enumerate() {
        assert_eq!(got[0], want[0], "{what}: window {s}");
        let off = distance(&got[1], &want[1]);
        assert!(off <= bound, "{what}: state {s} is {off:e} off");
    }
    let off = distance(&got.0, &want.0);
    assert!(off <= bound / 3.0, "{what}: the outputs are {off:e} off");
}

fn bits(run: &Run) -> Vec<u32> {
    run.0.iter().chain(run.1.iter().flatten().flatten()).map(|v| v.to_bits()).collect()
}

/// Ragged lengths: single tokens, shorter than the window, whole chunks and chunks with a rest.
const RAGGED: [usize; 6] = [1, 70, 2, 64, 1, 131];

#[test]
fn exact_outputs_and_states_are_those_of_the_cpu() {
    let Some(gpu) = emulated::gpu() else { return };
    for shape in SHAPES {
        let mut layer = Layer::new(shape);
        for limit in [(0.0, f32::INFINITY), (0.05, 0.5)] {
            layer.limit = limit;
            for lens in [&RAGGED[..], &[1], &[1, 1, 1]] {
                let inputs = layer.inputs(lens.iter().sum(), 1);
                let want = layer.on_cpu(&inputs, lens, layer.starts(lens.len()));
                let got = layer.on_device::<f32>(gpu, &inputs, lens, layer.starts(lens.len()));
                assert_near(&layer, &got, &want, 2e-5, &format!("{shape:?} {lens:?}"));
            }
        }
    }
}

/// A rounding to bf16 is at most 2⁻⁹ of a value, 2⁻⁹/√3 in the mean. A term of y is a product with
/// at most six of them (of x, B twice, the copy of the state, C; or x, B, C, M) and the output is
/// rounded once more: √7 · 2⁻⁹/√3 = 3e-3 of the root of the sum of the terms' squares, which the
/// gate and the norm keep. Where terms of a row cancel, it is further off than all outputs are.
const ROUNDED: f64 = 1.5e-2;

#[test]
fn rounded_outputs_and_states_are_near_those_of_the_cpu() {
    let Some(gpu) = emulated::gpu() else { return };
    for shape in SHAPES {
        let layer = Layer::new(shape);
        for lens in [&RAGGED[..], &[1, 1]] {
            let inputs = layer.inputs(lens.iter().sum(), 1);
            let want = layer.on_cpu(&inputs, lens, layer.starts(lens.len()));
            let got = layer.on_device::<bf16>(gpu, &inputs, lens, layer.starts(lens.len()));
            assert_near(&layer, &got, &want, ROUNDED, &format!("{shape:?} {lens:?}"));
        }
    }
}

#[test]
fn what_is_forgotten_at_once_leaves_no_trace() {
    let Some(gpu) = emulated::gpu() else { return };
    // Logarithms of decays sum up to thousands in a chunk, between steps that are nearly 0.
    for shape in [[6, 24, 3, 24, 4], [2, 80, 2, 128, 4]] {
        let mut layer = Layer::new(shape);
        layer.a.fill(-16.0);
        let rows = 2 * CHUNK + 3;
        let mut inputs = layer.inputs(rows, 6);
        for row in inputs.chunks_mut(layer.cols()) {
            let dt = layer.cols() - layer.shape[0];
            row[dt..].iter_mut().for_each(|v| *v *= 8.0);
        }
        let want = layer.on_cpu(&inputs, &[rows], layer.starts(1));
        let got = layer.on_device::<bf16>(gpu, &inputs, &[rows], layer.starts(1));
        // A row is then its own token's product with one C·B of each head: nothing averages.
        assert_near(&layer, &got, &want, 3.0 * ROUNDED, &format!("{shape:?}"));
    }
}

#[test]
fn steps_are_prefill() {
    let Some(gpu) = emulated::gpu() else { return };
    for shape in SHAPES {
        let layer = Layer::new(shape);
        // A rest that is shorter than a chunk is steps for any type; longer segments are for f32.
        let inputs = layer.inputs(CHUNK + 9, 3);
        let whole = layer.in_pieces::<f32>(gpu, &inputs, &[CHUNK + 9]);
        let steps = layer.in_pieces::<f32>(gpu, &inputs, &[1; CHUNK + 9]);
        assert_eq!(bits(&whole), bits(&steps), "{shape:?}");
        let rest = &inputs[..(CHUNK - 1) * layer.cols()];
        let whole = layer.in_pieces::<bf16>(gpu, rest, &[CHUNK - 1]);
        let steps = layer.in_pieces::<bf16>(gpu, rest, &[1; CHUNK - 1]);
        assert_eq!(bits(&whole), bits(&steps), "{shape:?}");
        let whole = layer.in_pieces::<bf16>(gpu, &inputs, &[CHUNK + 9]);
        let steps = layer.in_pieces::<bf16>(gpu, &inputs, &[1; CHUNK + 9]);
        assert_near(&layer, &whole, &steps, ROUNDED, &format!("{shape:?} whole and in steps"));
    }
}

#[test]
fn pieces_at_multiples_of_the_chunk_have_the_bits_of_the_whole() {
    let Some(gpu) = emulated::gpu() else { return };
    for shape in SHAPES {
        let layer = Layer::new(shape);
        let rows = 3 * CHUNK + 5;
        let inputs = layer.inputs(rows, 4);
        let whole = layer.in_pieces::<bf16>(gpu, &inputs, &[rows]);
        for pieces in [&[CHUNK, 2 * CHUNK, 5][..], &[2 * CHUNK, CHUNK + 5], &[3 * CHUNK, 1, 1, 3]] {
            let got = layer.in_pieces::<bf16>(gpu, &inputs, pieces);
            assert_eq!(bits(&got), bits(&whole), "{shape:?} {pieces:?}");
        }
        let whole = layer.in_pieces::<f32>(gpu, &inputs, &[rows]);
        let got = layer.in_pieces::<f32>(gpu, &inputs, &[1, 2, CHUNK, 7, 2 * CHUNK - 5]);
        assert_eq!(bits(&got), bits(&whole), "{shape:?}");
    }
}

fn batch_is_singles<T: Value + Widen>(gpu: &Gpu, layer: &Layer) {
    let inputs = layer.inputs(RAGGED.iter().sum(), 5);
    // One that is not a number stays alone.
    let mut poisoned = inputs.clone();
    poisoned[20 * layer.cols() + layer.inner() + 1] = f32::NAN;
    let starts = layer.starts(RAGGED.len());
    let (out, states) = layer.on_device::<T>(gpu, &poisoned, &RAGGED, starts.clone());
    let mut from = 0;
    for (s, (len, start)) in RAGGED.into_iter().zip(starts).enumerate() {
        let rows = &inputs[from * layer.cols()..(from + len) * layer.cols()];
        let single = layer.on_device::<T>(gpu, rows, &[len], vec![start]);
        let width = stride(layer.inner());
        let out = &out[from * width..(from + len) * width];
        from += len;
        if s == 1 {
            assert!(out.iter().any(|v| v.is_nan()));
            continue;
        }
        let got = (out.to_vec(), vec![states[s].clone()]);
        assert_eq!(bits(&got), bits(&single), "{:?}, segment {s}", layer.shape);
    }
}

#[test]
fn a_batch_has_the_bits_of_its_segments() {
    let Some(gpu) = emulated::gpu() else { return };
    for shape in SHAPES {
        batch_is_singles::<f32>(gpu, &Layer::new(shape));
        batch_is_singles::<bf16>(gpu, &Layer::new(shape));
    }
}

#[test]
fn gated_norm_agrees_with_the_formula() {
    let Some(gpu) = emulated::gpu() else { return };
    for (rows, cols, groups) in [(1, 1, 1), (3, 37, 1), (2, 666, 6), (2, 5000, 2)] {
        let [y_cols, z_cols] = [cols + 3, cols + 70];
        let (y, weight) = (values(rows * y_cols, 1), values(cols, 3));
        let z: Vec<f32> = values(rows * z_cols, 2).iter().map(|v| 12.0 * v).collect();
        let [on_y, on_z, on_w] = [&y, &z, &weight].map(|values| gpu.upload_new(values).unwrap());
        let padded = stride(cols);
        let mut exact = gpu.upload_new(&vec![f32::NAN; rows * padded]).unwrap();
        let mut rounded = gpu.upload_new(&vec![bf16::NAN; rows * padded]).unwrap();
        let (y_, z_, w) = ((on_y.slice(..), y_cols), (on_z.slice(..), z_cols), on_w.slice(..));
        rms_norm_gated(gpu, y_, z_, w, groups, 1e-5, exact.slice_mut(..)).unwrap();
        rms_norm_gated(gpu, y_, z_, w, groups, 1e-5, rounded.slice_mut(..)).unwrap();
        let exact = gpu.to_vec(exact.slice(..)).unwrap();
        let rounded = gpu.to_vec(rounded.slice(..)).unwrap();
        let as_rounded: Vec<bf16> = exact.iter().map(|v| bf16::from_f32(*v)).collect();
        assert_eq!(rounded, as_rounded, "{rows}x{cols}/{groups}");
        for (r, got) in exact.chunks(padded).enumerate() {
            let u = |c: usize| {
                let z = f64::from(z[r * z_cols + c]);
                f64::from(y[r * y_cols + c]) * z / (1.0 + (-z).exp())
            };
            let width = cols / groups;
            let want: Vec<f32> = (0..padded)
                .map(|c| {
                    if c >= cols {
                        return 0.0;
                    }
                    let first = c / width * width;
                    let mean = (first..first + width).map(|c| u(c).powi(2)).sum::<f64>();
                    let scale = 1.0 / (mean / width as f64 + 1e-5).sqrt();
                    (u(c) * scale * f64::from(weight[c])) as f32
                })
                .collect();
            assert!(distance(got, &want) < 1e-6, "{rows}x{cols}/{groups}, row {r}");
            assert!(got[cols..].iter().all(|v| *v == 0.0), "{rows}x{cols}/{groups}, padding");
        }
    }
}

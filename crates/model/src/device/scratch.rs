//! Device buffers of a forward pass, kept from call to call.
//!
//! Invariant: they have room for a whole pass before its first layer runs, so that a device without
//! room for it says so while no state has changed.
//!
//! Shapes (T tokens of the batch, S segments, R rows with logits, `s(n)` the stride of n columns):
//! `hidden` f32 `[T, h]`, `normed` `[T, s(h)]`, `wide` f32 `[T, widest first projection]`, `mix`
//! `[T, widest s(input of an output projection)]`, `logits` f32 `[R, V]`, `records` `[R, 66]`.

use super::graphs::Graphs;
use super::tables::Tables;
use crate::config::Config;
use crate::layer::LayerConfig;
use half::bf16;
use hybra_cuda::ops::Value;
use hybra_cuda::ops::sample::{RECORD_LEN, reduce_scratch_len};
use hybra_cuda::{CudaError, DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu, stride};

/// The buffers of a model that computes in T.
pub(super) struct Scratch<T> {
    pub(super) hidden: Grown<f32>,
    pub(super) normed: Grown<T>,
    pub(super) wide: Grown<f32>,
    pub(super) mix: Grown<T>,
    pub(super) logits: Grown<f32>,
    /// What is kept of each row of them.
    pub(super) records: Grown<u64>,
    /// What their reduction keeps between its kernels.
    pub(super) candidates: Grown<u64>,
    /// What ops keep between their kernels.
    pub(super) partial: Grown<f32>,
    /// The same rounded to bf16, where an op wants it.
    pub(super) rounded: Grown<bf16>,
    pub(super) tables: Tables,
    pub(super) graphs: Graphs,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Self {
            hidden: Grown::default(),
            normed: Grown::default(),
            wide: Grown::default(),
            mix: Grown::default(),
            logits: Grown::default(),
            records: Grown::default(),
            candidates: Grown::default(),
            partial: Grown::default(),
            rounded: Grown::default(),
            tables: Tables::default(),
            graphs: Graphs::default(),
        }
    }
}

/// Values of the buffers that a pass needs, but for `partial`, of which an attention layer may need
/// more than `conv`.
pub(super) struct Lens {
    pub(super) hidden: usize,
    pub(super) normed: usize,
    pub(super) wide: usize,
    pub(super) mix: usize,
    pub(super) conv: usize,
    pub(super) logits: usize,
    pub(super) records: usize,
    pub(super) candidates: usize,
}

impl Lens {
    /// Of a pass of `tokens` tokens with `rows` rows of logits.
    pub(super) fn of(config: &Config, tokens: usize, rows: usize) -> Self {
        let (mut wide, mut mix, mut conv) = (0, 0, 0);
        for layer in &config.layers {
            let (own_wide, own_mix, own_conv) = match layer {
                LayerConfig::Mamba2(m) => (m.in_proj_rows(), m.d_inner(), m.conv_dim()),
                LayerConfig::Attention(a) => (a.q_width() + 2 * a.kv_width(), a.q_width(), 0),
                LayerConfig::Mlp(m) => (0, m.intermediate_size, 0),
            };
            (wide, mix, conv) = (wide.max(own_wide), mix.max(own_mix), conv.max(own_conv));
        }
        let h = config.hidden_size;
        Self {
            hidden: tokens * h,
            normed: tokens * stride(h),
            wide: tokens * wide,
            mix: tokens * stride(mix),
            conv: tokens * conv,
            logits: rows * config.vocab_size,
            records: rows * RECORD_LEN,
            candidates: reduce_scratch_len(rows, config.vocab_size),
        }
    }
}

impl<T: Number> Scratch<T> {
    /// Makes room for `lens`, and for `partial` values between the kernels of an op.
    pub(super) fn reserve(
        &mut self,
        gpu: &Gpu,
        lens: &Lens,
        partial: usize,
    ) -> Result<(), CudaError> {
        self.hidden.sized(gpu, lens.hidden)?;
        self.normed.sized(gpu, lens.normed)?;
        self.wide.sized(gpu, lens.wide)?;
        self.mix.sized(gpu, lens.mix)?;
        self.partial.sized(gpu, partial.max(lens.conv))?;
        self.rounded.sized(gpu, lens.conv)?;
        self.logits.sized(gpu, lens.logits)?;
        self.records.sized(gpu, lens.records)?;
        self.candidates.sized(gpu, lens.candidates)?;
        Ok(())
    }

    /// Where all buffers lie.
    pub(super) fn addresses(&self) -> [u64; 10] {
        [
            self.hidden.address(),
            self.normed.address(),
            self.wide.address(),
            self.mix.address(),
            self.logits.address(),
            self.records.address(),
            self.candidates.address(),
            self.partial.address(),
            self.rounded.address(),
            self.tables.address(),
        ]
    }
}

/// The device's part of [`crate::Activations`].
#[derive(Default)]
pub(crate) struct DeviceActivations {
    f32: Scratch<f32>,
    bf16: Scratch<bf16>,
}

impl DeviceActivations {
    /// Decode steps that were replays.
    pub(crate) fn replays(&self) -> u64 {
        self.f32.graphs.replays() + self.bf16.graphs.replays()
    }
}

/// A compute type, and where its buffers are.
pub(super) trait Number: Value {
    fn scratch(act: &mut DeviceActivations) -> &mut Scratch<Self>;
}

impl Number for f32 {
    fn scratch(act: &mut DeviceActivations) -> &mut Scratch<Self> {
        &mut act.f32
    }
}

impl Number for bf16 {
    fn scratch(act: &mut DeviceActivations) -> &mut Scratch<Self> {
        &mut act.bf16
    }
}

/// Values below which a buffer is made up to twice as large as needed.
const SMALL: usize = 1 << 20;

/// A buffer that is replaced by a larger one where a call needs more.
pub(super) struct Grown<T>(Option<DeviceBuffer<T>>);

impl<T> Default for Grown<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: bytemuck::Pod> Grown<T> {
    /// The first `len` values, to be written.
    pub(super) fn sized(
        &mut self,
        gpu: &Gpu,
        len: usize,
    ) -> Result<DeviceSliceMut<'_, T>, CudaError> {
        let fits = |buffer: &DeviceBuffer<T>| buffer.len() >= len && buffer.gpu() == gpu;
        if !self.0.as_ref().is_some_and(fits) {
            // The old one goes first, so that both need not fit. What grows with every page or span
            // must not be made anew each time.
            self.0 = None;
            let len = if len < SMALL { len.next_power_of_two() } else { len };
            self.0 = Some(gpu.alloc(len)?);
        }
        Ok(self.0.as_mut().expect("made above").slice_mut(..len))
    }

    /// Where it lies.
    pub(super) fn address(&self) -> u64 {
        self.get(0).ptr()
    }

    /// The first `len` values of a buffer that has them.
    pub(super) fn get(&self, len: usize) -> DeviceSlice<'_, T> {
        self.0.as_ref().expect("there is room").slice(..len)
    }

    /// Some of them.
    pub(super) fn range(&self, range: std::ops::Range<usize>) -> DeviceSlice<'_, T> {
        self.0.as_ref().expect("there is room").slice(range)
    }

    /// The first `len` values of a buffer that has them, to be written.
    pub(super) fn get_mut(&mut self, len: usize) -> DeviceSliceMut<'_, T> {
        self.0.as_mut().expect("there is room").slice_mut(..len)
    }
}

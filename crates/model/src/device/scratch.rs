//! Device buffers of a forward pass, kept from call to call.
//!
//! Shapes (T tokens of the batch, S segments, R rows with logits, `s(n)` the stride of n columns):
//! `hidden` f32 `[T, h]`, `normed` `[T, s(h)]`, `wide` f32 `[T, widest first projection]`, `mix`
//! `[T, widest s(input of an output projection)]`, `logits` f32 `[R, V]`.

use super::tables::Tables;
use half::bf16;
use hybra_cuda::ops::Value;
use hybra_cuda::{CudaError, DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu};

/// The buffers of a model that computes in T.
pub(super) struct Scratch<T> {
    pub(super) hidden: Grown<f32>,
    pub(super) normed: Grown<T>,
    pub(super) wide: Grown<f32>,
    pub(super) mix: Grown<T>,
    pub(super) logits: Grown<f32>,
    /// What ops keep between their kernels.
    pub(super) partial: Grown<f32>,
    /// The same rounded to bf16, where an op wants it.
    pub(super) rounded: Grown<bf16>,
    pub(super) ids: Grown<u32>,
    pub(super) tables: Tables,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Self {
            hidden: Grown::default(),
            normed: Grown::default(),
            wide: Grown::default(),
            mix: Grown::default(),
            logits: Grown::default(),
            partial: Grown::default(),
            rounded: Grown::default(),
            ids: Grown::default(),
            tables: Tables::default(),
        }
    }
}

/// The device's part of [`crate::Activations`].
#[derive(Default)]
pub(crate) struct DeviceActivations {
    f32: Scratch<f32>,
    bf16: Scratch<bf16>,
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

    /// The first `len` values that were written.
    pub(super) fn get(&self, len: usize) -> DeviceSlice<'_, T> {
        self.0.as_ref().expect("written before").slice(..len)
    }

    /// Some of them.
    pub(super) fn range(&self, range: std::ops::Range<usize>) -> DeviceSlice<'_, T> {
        self.0.as_ref().expect("written before").slice(range)
    }

    /// The first `len` values, written before and to be written again.
    pub(super) fn get_mut(&mut self, len: usize) -> DeviceSliceMut<'_, T> {
        self.0.as_mut().expect("written before").slice_mut(..len)
    }
}

//! The model on a GPU: its weights there, and the same forward pass over the ops of `hybra-cuda`.
//!
//! Invariants: a model computes in one type, f32 ([`Compute::F32`], every weight expanded: for
//! comparison) or bf16 with f32 sums ([`Compute::Bf16`]); residual stream, recurrent state and
//! logits are f32, keys and values of the compute type. States lie in the device's memory
//! ([`state`]); of logits the largest come back to the host, and whole rows if asked for. Drafts are not read here.

mod forward;
mod graphs;
mod memory;
mod scratch;
mod state;
mod tables;
mod weights;

use crate::activations::Activations;
use crate::batch::Batch;
use crate::config::Config;
use crate::logits::Logits;
use crate::nemotron_h::{ForwardError, NemotronH};
use crate::observer::Observer;
use crate::state::SequenceState;
use crate::weights::Weights;
use half::bf16;
use hybra_cuda::ops::attention::MOST_SCRATCH;
use hybra_cuda::ops::sample::RECORD_LEN;
use hybra_cuda::{Compute, CudaError, DeviceSlice, Gpu};
pub(crate) use scratch::DeviceActivations;
use scratch::{Lens, Number};
pub(crate) use state::{DeviceState, Layout};
use std::sync::Arc;
use weights::DeviceWeights;

/// A model whose weights are on a device.
pub(crate) struct DeviceModel {
    gpu: Gpu,
    compute: Compute,
    layout: Arc<Layout>,
    weights: DeviceWeights,
    uses_graphs: bool,
}

impl From<CudaError> for ForwardError {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::OutOfMemory { .. } => Self::DeviceFull(error.to_string()),
            _ => Self::Device(error.to_string()),
        }
    }
}

/// A pass or a piece of one.
pub(crate) struct Piece<'a> {
    pub(crate) config: &'a Config,
    pub(crate) batch: &'a Batch,
    pub(crate) act: &'a mut DeviceActivations,
}

/// `$body` with `$number` as the model's compute type.
macro_rules! with_number {
    ($model:expr, $number:ident => $body:expr) => {
        match $model.compute {
            Compute::F32 => {
                type $number = f32;
                $body
            }
            Compute::Bf16 => {
                type $number = bf16;
                $body
            }
        }
    };
}

impl DeviceModel {
    fn new(
        gpu: &Gpu,
        config: &Config,
        weights: &Weights,
        (compute, threads): (Compute, usize),
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, CudaError> {
        let value_bytes = match compute {
            Compute::F32 => size_of::<f32>(),
            Compute::Bf16 => size_of::<bf16>(),
        };
        let weights = DeviceWeights::upload(gpu, weights, compute, threads, progress)?;
        let layout = Layout::new(gpu, config, value_bytes);
        Ok(Self { gpu: gpu.clone(), compute, layout, weights, uses_graphs: true })
    }

    pub(crate) fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// A pass but for its end.
    pub(crate) fn read(
        &self,
        piece: &mut Piece,
        states: &mut [&mut SequenceState],
        observer: &mut dyn Observer,
    ) -> Result<(), CudaError> {
        with_number!(self, T => self.read_in::<T>(piece, states, observer))
    }

    /// Embeds the batch's tokens.
    pub(crate) fn embed_ids(&self, piece: &mut Piece) -> Result<(), CudaError> {
        with_number!(self, T => self.embed_in::<T>(piece))
    }

    /// Adds some of the layers to the residual stream.
    pub(crate) fn run_layers(
        &self,
        piece: &mut Piece,
        states: &mut [&mut SequenceState],
        layers: impl IntoIterator<Item = usize>,
        observer: &mut dyn Observer,
    ) -> Result<(), CudaError> {
        with_number!(self, T => self.run_layers_in::<T>(piece, states, layers, observer))
    }

    /// Logits of the rows that need them, `[R, V]`.
    pub(crate) fn logits(&self, piece: &mut Piece, to: &mut Vec<f32>) -> Result<(), CudaError> {
        with_number!(self, T => self.whole_logits_in::<T>(piece, to))
    }

    /// A whole pass, and the records of its rows.
    pub(crate) fn read_reduced(
        &self,
        piece: &mut Piece,
        states: &mut [&mut SequenceState],
        to: &mut Vec<u64>,
    ) -> Result<(), CudaError> {
        with_number!(self, T => self.read_reduced_in::<T>(piece, states, to))
    }

    /// Records of the rows that need logits, `[R, RECORD_LEN]`; the rows stay on the device.
    pub(crate) fn reduced_logits(
        &self,
        piece: &mut Piece,
        to: &mut Vec<u64>,
    ) -> Result<(), CudaError> {
        with_number!(self, T => self.reduced_logits_in::<T>(piece, to))
    }

    /// What [`Self::reduced_logits`] left of `rows` rows.
    pub(crate) fn logits_of<'a>(
        &self,
        act: &'a mut Activations,
        rows: usize,
        vocab_size: usize,
    ) -> Logits<'a> {
        let Activations { device, records, .. } = act;
        let on_device = with_number!(self, T => {
            let logits = &T::scratch(device).logits;
            if rows > 0 { logits.get(rows * vocab_size) } else { DeviceSlice::default() }
        });
        Logits::on_device(&self.gpu, on_device, &records[..rows * RECORD_LEN], vocab_size)
    }
}

impl NemotronH {
    /// Moves the weights to a device, made ready on `threads` threads; `progress` is told the bytes
    /// of file read so far. The host keeps none of the matrices in memory. States and activations of
    /// before are of no use after.
    ///
    /// # Errors
    /// Not enough device memory; the model is then where it was.
    ///
    /// # Panics
    /// If the weights are packed.
    pub fn move_to_device(
        &mut self,
        gpu: &Gpu,
        compute: Compute,
        threads: usize,
        mut progress: impl FnMut(u64),
    ) -> Result<(), CudaError> {
        let (config, weights) = (self.config(), self.weights());
        let model = DeviceModel::new(gpu, config, weights, (compute, threads), &mut progress)?;
        self.set_device(model);
        Ok(())
    }

    /// Whether [`NemotronH::read`] replays decode steps as CUDA graphs, as it does, or launches each
    /// kernel: the same bits.
    ///
    /// # Panics
    /// If it is on no device.
    pub fn use_graphs(&mut self, on: bool) {
        self.device_mut().expect("a model on a device").uses_graphs = on;
    }

    /// The device that it is on.
    #[must_use]
    pub fn gpu(&self) -> Option<&Gpu> {
        self.device_model().map(|model| &model.gpu)
    }

    /// Bytes of all weights on the device, and of the embedding among them.
    #[must_use]
    pub fn device_weight_bytes(&self) -> Option<(usize, usize)> {
        let weights = &self.device_model()?.weights;
        Some((weights.bytes(), weights.embedding.bytes()))
    }

    /// Bytes of device memory that a pass of `tokens` tokens with `rows` rows of logits takes beside
    /// weights and states; of the working memory of attention its most.
    #[must_use]
    pub fn device_scratch_bytes(&self, tokens: usize, rows: usize) -> Option<usize> {
        let value = match self.device_model()?.compute {
            Compute::F32 => size_of::<f32>(),
            Compute::Bf16 => size_of::<bf16>(),
        };
        let lens = Lens::of(self.config(), tokens, rows);
        let f32s = lens.hidden + lens.wide + lens.conv + lens.logits + MOST_SCRATCH;
        let u64s = lens.records + lens.candidates;
        let values = value * (lens.normed + lens.mix) + 2 * lens.conv;
        Some(size_of::<f32>() * f32s + values + size_of::<u64>() * u64s)
    }

    pub(crate) fn device_layout(&self) -> Option<&Arc<Layout>> {
        self.device_model().map(DeviceModel::layout)
    }
}

//! The model: read this first. Config + weights + state, and one forward pass.
//!
//! ```text
//! x = embedding[token]
//! for every layer:  x += mixer(rms_norm(x))      mixer: Mamba-2, attention or MLP
//! logits = lm_head · rms_norm_f(x)               only for the tokens that need them
//! ```
//! No positional encoding, no scale on embedding or logits. Activations, state and logits are
//! f32; weights stay in their stored format, or the same values packed ([`Weights::pack`]).
//!
//! Invariants: a row's result does not depend on the other rows of the batch; a sequence may be
//! fed in any split of its tokens, with results equal to rounding, and equal bit for bit where
//! the splits fall on multiples of [`SCAN_CHUNK`].

use crate::activations::{Activations, sized};
use crate::batch::Batch;
use crate::config::Config;
use crate::device::DeviceModel;
use crate::error::ConfigError;
use crate::layer::LayerConfig;
use crate::load::LoadError;
use crate::logits::Logits;
use crate::mamba2::Pass;
pub use crate::mamba2::SCAN_CHUNK;
use crate::observer::Observer;
use crate::state::{SequenceState, StateDtypes};
use crate::weights::{LayerWeights, Matrix, Weights};
use crate::{attention, mamba2, mlp};
use hybra_checkpoint::Checkpoint;
use hybra_kernels::ops::packed::Epilogue;
use hybra_kernels::ops::rms_norm::rms_norm;
use hybra_kernels::{Cpu, MatMut, MatRef};
use std::path::Path;

/// Why a forward pass was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// A token id outside the vocabulary.
    #[error("token {index} of the batch is id {id}, but the vocabulary has {vocab_size} entries")]
    Token {
        /// Position in the batch.
        index: usize,
        /// The id.
        id: u32,
        /// V.
        vocab_size: usize,
    },
    /// The device that the model is on has no room for the pass; no state has changed.
    #[error("{0}")]
    DeviceFull(String),
    /// The device failed; the states are of no use.
    #[error("{0}")]
    Device(String),
}

/// Why a model cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No checkpoint, or its configuration is no model's.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its tensors are not those of the configuration.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// A model that can run: its configuration and weights.
pub struct NemotronH {
    config: Config,
    weights: Weights,
    device: Option<DeviceModel>,
}

impl NemotronH {
    /// Joins a configuration with the weights that were loaded for it.
    #[must_use]
    pub fn new(config: Config, weights: Weights) -> Self {
        Self { config, weights, device: None }
    }

    /// The model of a checkpoint, its weights as stored.
    ///
    /// # Errors
    /// What is wrong with the checkpoint.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let checkpoint = Checkpoint::open(path).map_err(ConfigError::Checkpoint)?;
        let config = Config::from_checkpoint(&checkpoint)?;
        let weights = Weights::load(&checkpoint, &config, |_, _| {})?;
        Ok(Self::new(config, weights))
    }

    /// Configuration and weights again.
    #[must_use]
    pub fn into_parts(self) -> (Config, Weights) {
        (self.config, self.weights)
    }

    pub(crate) fn device_model(&self) -> Option<&DeviceModel> {
        self.device.as_ref()
    }

    pub(crate) fn device_mut(&mut self) -> Option<&mut DeviceModel> {
        self.device.as_mut()
    }

    pub(crate) fn set_device(&mut self, device: DeviceModel) {
        self.device = Some(device);
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The weights.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The state of a sequence before its first token.
    #[must_use]
    pub fn new_state(&self, dtypes: impl Into<StateDtypes>) -> SequenceState {
        self.states().fresh(dtypes)
    }

    /// Reads the batch's tokens into the states and returns logits, `[R, V]`, one row for each of
    /// [`Batch::logit_rows`], all of them on the host. Segment i belongs to `states[i]`.
    ///
    /// # Errors
    /// A token outside the vocabulary, or a device that is full; then no state has changed. A device
    /// that fails; then the states are of no use.
    ///
    /// # Panics
    /// If there are not as many states as segments, or a state waits for [`NemotronH::accept`].
    pub fn forward<'a>(
        &self,
        cpu: &Cpu,
        batch: &Batch,
        states: &mut [&mut SequenceState],
        act: &'a mut Activations,
        observer: &mut dyn Observer,
    ) -> Result<&'a [f32], ForwardError> {
        self.run(cpu, batch, states, act, observer)?;
        match &self.device {
            Some(device) => self.finish_whole(device, batch, states, act),
            None => Ok(self.finish_here(cpu, batch, states, act)),
        }
    }

    /// [`Self::forward`] for whoever samples: of a model on a GPU the rows stay there.
    ///
    /// # Errors
    /// As of [`Self::forward`].
    ///
    /// # Panics
    /// As of [`Self::forward`].
    pub fn read<'a>(
        &self,
        cpu: &Cpu,
        batch: &Batch,
        states: &mut [&mut SequenceState],
        act: &'a mut Activations,
        observer: &mut dyn Observer,
    ) -> Result<Logits<'a>, ForwardError> {
        match &self.device {
            Some(device) if !observer.looks() => self.read_on(device, batch, states, act),
            _ => {
                self.run(cpu, batch, states, act, observer)?;
                self.finish(cpu, batch, states, act)
            }
        }
    }

    /// A pass but for its end.
    fn run(
        &self,
        cpu: &Cpu,
        batch: &Batch,
        states: &mut [&mut SequenceState],
        act: &mut Activations,
        observer: &mut dyn Observer,
    ) -> Result<(), ForwardError> {
        self.check(batch, states)?;
        if let Some(device) = &self.device {
            return Ok(device.read(&mut self.piece(batch, act), states, observer)?);
        }
        self.embed(cpu, batch, act)?;
        self.run_layers(cpu, batch, states, act, 0..self.config.layers.len(), observer)
    }

    pub(crate) fn pass<'a>(&self, cpu: &'a Cpu, batch: &'a Batch) -> Pass<'a> {
        Pass { cpu, batch, eps: self.config.norm_eps, dt_limit: self.config.time_step_limit }
    }

    /// `x += mixer(rms_norm(x))`.
    pub(crate) fn block(
        &self,
        pass: &Pass,
        layer: usize,
        act: &mut Activations,
        states: &mut [&mut SequenceState],
    ) {
        let (config, weights) = (&self.config.layers[layer], &self.weights.layers[layer]);
        let h = self.config.hidden_size;
        let len = pass.batch.tokens().len() * h;
        act.normed.resize(len, 0.0);
        let x = MatRef::new(&act.hidden[..len], h);
        rms_norm(pass.cpu, x, weights.norm(), pass.eps, MatMut::new(&mut act.normed, h));
        match (config, weights) {
            (LayerConfig::Mamba2(m), LayerWeights::Mamba2(w)) => {
                mamba2::forward(pass, layer, m, w, act, states);
            }
            (LayerConfig::Attention(a), LayerWeights::Attention(w)) => {
                attention::forward(pass, layer, a, w, act, states);
            }
            (LayerConfig::Mlp(_), LayerWeights::Mlp(w)) => mlp::forward(pass, w, act),
            _ => unreachable!("weights are loaded for this config"),
        }
    }

    /// Final norm and head over the rows that need logits.
    pub(crate) fn logits<'a>(&self, pass: &Pass, act: &'a mut Activations) -> &'a [f32] {
        let (h, vocab) = (self.config.hidden_size, self.config.vocab_size);
        let mut rows = 0;
        for (to, from) in pass.batch.logit_rows().enumerate() {
            // Rows move towards the front only: `to ≤ from`.
            act.hidden.copy_within(from * h..(from + 1) * h, to * h);
            rows = to + 1;
        }
        act.normed.resize(rows * h, 0.0);
        let x = MatRef::new(&act.hidden[..rows * h], h);
        let out = MatMut::new(&mut act.normed, h);
        rms_norm(pass.cpu, x, &self.weights.final_norm, pass.eps, out);
        let logits = sized(&mut act.logits, rows * vocab);
        let (x, head) = (MatRef::new(&act.normed, h), self.head());
        act.rounded.prepare(pass.cpu, x, &[head]);
        let to = MatMut::new(logits, vocab);
        head.apply(pass.cpu, x, &act.rounded, to, Epilogue::Store, &mut act.out);
        logits
    }

    /// The output projection: its own matrix, or the embedding where they are tied.
    fn head(&self) -> &Matrix {
        self.weights.lm_head.as_ref().unwrap_or(&self.weights.embedding)
    }
}

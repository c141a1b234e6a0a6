//! The weights of a model under training: one flat f32 vector in the order of the registry.
//!
//! A [`Layout`] says where each tensor lies; parameters, gradients and optimizer moments are
//! vectors of [`Layout::len`] values in the same order, so that an optimizer, a reduction over
//! machines and a checkpoint need to know no model. Shapes and names are safetensors'
//! ([`crate::tensors::tensor_specs`]); `A_log` is held, not A.

use crate::config::Config;
use crate::load::{LoadError, find_tensors};
use crate::random::RandomTensor;
use crate::tensors::{Role, TensorSpec, tensor_specs};
use hybra_checkpoint::Checkpoint;
use std::ops::Range;

/// Where one tensor lies.
#[derive(Debug, Clone)]
pub struct Slot {
    /// Name, shape and role.
    pub spec: TensorSpec,
    /// Its values in the flat vector.
    pub range: Range<usize>,
}

impl Slot {
    /// Whether weight decay applies: matrices, except the embedding; not norms, `A_log`, `D`,
    /// `dt_bias` and the convolution.
    #[must_use]
    pub fn decays(&self) -> bool {
        self.spec.role.is_matrix() && self.spec.role != Role::Embedding
    }
}

/// The order of a model's tensors in a flat vector.
#[derive(Debug, Clone)]
pub struct Layout {
    slots: Vec<Slot>,
    len: usize,
}

impl Layout {
    /// The layout of `config`'s tensors.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self::of(tensor_specs(config))
    }

    /// The layout of these tensors, such as those of an adapter.
    #[must_use]
    pub fn of(specs: Vec<TensorSpec>) -> Self {
        let mut len = 0;
        let slot = |spec: TensorSpec| {
            let from = len;
            len += usize::try_from(spec.num_elements()).expect("a model that fits in memory");
            Slot { spec, range: from..len }
        };
        let slots = specs.into_iter().map(slot).collect();
        Self { slots, len }
    }

    /// All tensors, in order.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing: never for a model.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The tensor that holds value `index`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn slot_of(&self, index: usize) -> &Slot {
        let at = self.slots.partition_point(|slot| slot.range.end <= index);
        &self.slots[at]
    }

    /// Random values, a function of `seed` and the tensors' names ([`RandomTensor`]).
    #[must_use]
    pub fn random(&self, config: &Config, seed: u64) -> Vec<f32> {
        let mut values = vec![0.0; self.len];
        for slot in &self.slots {
            RandomTensor::new(seed, &slot.spec, config).fill(0, &mut values[slot.range.clone()]);
        }
        values
    }

    /// The values of a checkpoint, decoded to f32.
    ///
    /// # Errors
    /// Tensors that are not those of `config`, or values that are not finite.
    pub fn load(&self, checkpoint: &Checkpoint, config: &Config) -> Result<Vec<f32>, LoadError> {
        let mut values = Vec::with_capacity(self.len);
        for found in find_tensors(checkpoint, config)? {
            values.extend(found.f32_values()?);
        }
        Ok(values)
    }
}

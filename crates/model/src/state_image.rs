//! A sequence's state as bytes: moved out of memory and back, or kept in a file.
//!
//! Invariants: a state that was written and read has the same bits; an image is read only if its
//! size is the one that config, number types and length give, and memory grows with what is read.
//! An image is in the machine's byte order and carries no checksum: both are the file's business.

use crate::config::Config;
use crate::layer::LayerConfig;
use crate::state::{LayerState, SequenceState, StateDtypes};
use hybra_kernels::ops::attention::KvCache;
use std::io::{self, Read, Write};

/// Positions of a block of keys and values.
const BLOCK: usize = 64;

/// Why an image is refused.
#[derive(Debug, thiserror::Error)]
pub enum StateImageError {
    /// It has not the size of such a state.
    #[error("state of {len} tokens: expected {expected} bytes, found {found}")]
    Bytes {
        /// Tokens read.
        len: usize,
        /// By config, number types and length.
        expected: u64,
        /// As given.
        found: u64,
    },
    /// It cannot be read, or ends early.
    #[error("state: {0}")]
    Io(#[from] io::Error),
}

/// What states of one model cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateBytes {
    /// Of a state that has read nothing.
    pub constant: usize,
    /// Of each block of 64 positions that was begun, over all attention layers.
    pub block: usize,
    /// Of what a draft keeps, from a sequence's first draft on: without the rows of its tokens.
    pub draft: usize,
    /// Of each token of a draft.
    pub draft_token: usize,
}

impl StateBytes {
    /// The costs under a configuration.
    #[must_use]
    pub fn of(config: &Config, dtypes: impl Into<StateDtypes>) -> Self {
        let dtypes = dtypes.into();
        let constant = SequenceState::new(config, dtypes).bytes();
        let block = |layer: &LayerConfig| match layer {
            LayerConfig::Attention(a) => {
                KvCache::new(dtypes.kv, a.num_kv_heads, a.head_dim).block_bytes()
            }
            _ => 0,
        };
        let inputs = |layer: &LayerConfig| match layer {
            LayerConfig::Mamba2(m) => 4 * m.in_proj_rows(),
            _ => 0,
        };
        let block = config.layers.iter().map(block).sum();
        let draft_token = config.layers.iter().map(inputs).sum();
        Self { constant, block, draft: constant, draft_token }
    }

    /// Of a state that has read `len` tokens and no draft.
    #[must_use]
    pub fn at(&self, len: usize) -> usize {
        self.constant.saturating_add(len.div_ceil(BLOCK).saturating_mul(self.block))
    }

    /// The largest length, a multiple of 64, whose state takes at most `bytes`.
    #[must_use]
    pub fn longest(&self, bytes: usize) -> usize {
        match bytes.checked_sub(self.constant) {
            None => 0,
            Some(left) => {
                left.checked_div(self.block).map_or(usize::MAX, |n| n.saturating_mul(BLOCK))
            }
        }
    }
}

impl SequenceState {
    /// Writes all of it but its length: [`Self::image_bytes`] bytes.
    ///
    /// # Errors
    /// What `to` answers.
    ///
    /// # Panics
    /// If a draft waits.
    pub fn write_to(&self, to: &mut dyn Write) -> io::Result<()> {
        assert_eq!(self.drafted(), 0, "a draft is judged before its state is written");
        if let Some(state) = &self.device {
            return to.write_all(&state.image(self.len).map_err(io::Error::other)?);
        }
        for layer in self.layers() {
            match layer {
                LayerState::Mamba2(state) => {
                    state.conv.iter().try_for_each(|v| to.write_all(&v.to_ne_bytes()))?;
                    to.write_all(state.ssm.as_bytes())?;
                }
                LayerState::Attention(cache) => cache.write_to(to)?,
                LayerState::Mlp => {}
            }
        }
        Ok(())
    }

    /// Bytes that [`Self::write_to`] writes.
    #[must_use]
    pub fn image_bytes(&self) -> usize {
        self.bytes() - self.draft.bytes()
    }

    /// Reads the state of `len` tokens from its image of `found` bytes.
    ///
    /// # Errors
    /// A size that such a state has not, or an early end.
    pub fn read_from(
        config: &Config,
        dtypes: impl Into<StateDtypes>,
        len: usize,
        found: u64,
        from: &mut dyn Read,
    ) -> Result<Self, StateImageError> {
        let dtypes = dtypes.into();
        let expected = StateBytes::of(config, dtypes).at(len) as u64;
        if found != expected {
            return Err(StateImageError::Bytes { len, expected, found });
        }
        let mut state = Self::new(config, dtypes);
        for layer in 0..config.layers.len() {
            match state.layer_mut(layer) {
                LayerState::Mamba2(state) => {
                    for value in &mut state.conv {
                        let mut bytes = [0; 4];
                        from.read_exact(&mut bytes)?;
                        *value = f32::from_ne_bytes(bytes);
                    }
                    from.read_exact(state.ssm.as_bytes_mut())?;
                }
                LayerState::Attention(cache) => cache.read_from(from, len)?,
                LayerState::Mlp => {}
            }
        }
        state.advance(len);
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets::preset;
    use hybra_kernels::ops::attention::KvDtype;
    use hybra_kernels::ops::ssm_state::SsmDtype;
    use hybra_kernels::{Cpu, Isa};

    fn image(state: &SequenceState) -> Vec<u8> {
        let mut bytes = Vec::new();
        state.write_to(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn an_image_gives_the_same_bits_and_wrong_sizes_are_refused() {
        let (config, cpu) = (preset("micro").unwrap(), Cpu::new(Isa::best(), 1));
        for kv in [KvDtype::F32, KvDtype::Bf16, KvDtype::Q8] {
            for ssm in [SsmDtype::F32, SsmDtype::Bf16] {
                let dtypes = StateDtypes { kv, ssm };
                let costs = StateBytes::of(&config, dtypes);
                for len in [0, 64, 101] {
                    let mut state = SequenceState::new(&config, dtypes);
                    state.pretend_read(&cpu, len);
                    let bytes = image(&state);
                    let found = bytes.len() as u64;
                    assert_eq!((bytes.len(), costs.at(len)), (state.image_bytes(), state.bytes()));
                    let read = |len, found, mut from: &[u8]| {
                        SequenceState::read_from(&config, dtypes, len, found, &mut from)
                    };
                    let again = read(len, found, &bytes).unwrap();
                    assert_eq!(again.len(), len);
                    assert!(image(&again) == bytes, "{dtypes:?}, {len} tokens");
                    assert!(read(len + 64, found, &bytes).is_err());
                    assert!(read(len, found - 1, &bytes).is_err());
                    let cut = &bytes[..bytes.len() - 1];
                    assert!(matches!(read(len, found, cut), Err(StateImageError::Io(_))));
                }
            }
        }
    }

    #[test]
    fn the_longest_state_fits_and_the_next_does_not() {
        let costs = StateBytes::of(&preset("micro").unwrap(), KvDtype::Bf16);
        for bytes in [costs.constant, costs.at(64), costs.at(640) + 1, costs.at(641) - 1] {
            let longest = costs.longest(bytes);
            assert!(costs.at(longest) <= bytes && costs.at(longest + 1) > bytes, "{bytes}");
        }
        assert_eq!(costs.longest(costs.constant - 1), 0);
    }

    /// The number in docs/state-cache.md.
    #[test]
    fn a_snapshot_of_the_9b_has_its_documented_size() {
        let costs = StateBytes::of(&preset("nano2-9b").unwrap(), KvDtype::Bf16);
        assert_eq!((costs.constant, costs.block), (145_539_072, 1 << 20));
    }
}

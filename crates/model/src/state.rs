//! What a sequence carries from token to token: the state of every layer.
//!
//! Invariants: a Mamba layer's state has a constant size, whatever the length of the sequence; an
//! attention layer's cache holds exactly [`SequenceState::len`] positions; convolution windows are
//! f32. Cloning gives an independent snapshot. The state of a model on a GPU lies there
//! and has no layers here.

use crate::config::Config;
use crate::device::DeviceState;
use crate::draft::Draft;
use crate::layer::{LayerConfig, Mamba2Config};
use hybra_kernels::ops::attention::{KvCache, KvDtype};
use hybra_kernels::ops::ssm_state::{SsmDtype, SsmState};
use hybra_kernels::{Cpu, MatRef};

/// State of one layer.
#[derive(Clone)]
pub enum LayerState {
    /// Convolution window and SSM state.
    Mamba2(Mamba2State),
    /// Keys and values of all positions.
    Attention(KvCache),
    /// An MLP carries nothing.
    Mlp,
}

/// State of a Mamba-2 layer.
#[derive(Clone)]
pub struct Mamba2State {
    /// The last k − 1 inputs of the convolution, `[k − 1, HP + 2GN]`, oldest first.
    pub conv: Vec<f32>,
    /// The SSM state, `[H, N, P]`.
    pub ssm: SsmState,
}

/// Number types of a sequence's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateDtypes {
    /// Of keys and values.
    pub kv: KvDtype,
    /// Of the SSM state.
    pub ssm: SsmDtype,
}

impl From<KvDtype> for StateDtypes {
    /// Keys and values in `kv`, SSM state in f32.
    fn from(kv: KvDtype) -> Self {
        Self { kv, ssm: SsmDtype::F32 }
    }
}

impl Mamba2State {
    fn new(m: &Mamba2Config, dtype: SsmDtype) -> Self {
        Self {
            conv: vec![0.0; (m.conv_kernel - 1) * m.conv_dim()],
            ssm: SsmState::new(dtype, m.d_inner() * m.state_size),
        }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        4 * self.conv.len() + self.ssm.bytes()
    }

    /// Becomes a copy of another state of the same layer, in the memory it has.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        self.conv.copy_from_slice(&other.conv);
        self.ssm.copy_from(&other.ssm);
    }
}

/// State of one sequence.
pub struct SequenceState {
    /// Empty where the state is on a device.
    pub(crate) layers: Vec<LayerState>,
    pub(crate) device: Option<DeviceState>,
    pub(crate) len: usize,
    pub(crate) draft: Draft,
}

impl Clone for SequenceState {
    fn clone(&self) -> Self {
        let device = self.device.as_ref().map(|state| state.copy(self.len));
        Self { layers: self.layers.clone(), device, len: self.len, draft: self.draft.clone() }
    }
}

impl SequenceState {
    /// The state before the first token.
    #[must_use]
    pub fn new(config: &Config, dtypes: impl Into<StateDtypes>) -> Self {
        let StateDtypes { kv, ssm } = dtypes.into();
        let layer = |layer: &LayerConfig| match layer {
            LayerConfig::Mamba2(m) => LayerState::Mamba2(Mamba2State::new(m, ssm)),
            LayerConfig::Attention(a) => {
                LayerState::Attention(KvCache::new(kv, a.num_kv_heads, a.head_dim))
            }
            LayerConfig::Mlp(_) => LayerState::Mlp,
        };
        let layers = config.layers.iter().map(layer).collect();
        Self { layers, device: None, len: 0, draft: Draft::default() }
    }

    /// A state of `len` tokens on a device.
    pub(crate) fn on_device(state: DeviceState, len: usize) -> Self {
        Self { layers: Vec::new(), device: Some(state), len, draft: Draft::default() }
    }

    /// Tokens read so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token was read yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The layers' states, first to last; none where they are on a device.
    #[must_use]
    pub fn layers(&self) -> &[LayerState] {
        &self.layers
    }

    /// Bytes held: constant for Mamba layers (and for their copies, once a draft was read), growing
    /// in blocks of positions for attention.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let layer = |layer: &LayerState| match layer {
            LayerState::Mamba2(m) => m.bytes(),
            LayerState::Attention(cache) => cache.bytes(),
            LayerState::Mlp => 0,
        };
        let device = self.device.as_ref().map_or(0, |state| state.bytes(self.len));
        self.layers.iter().map(layer).sum::<usize>() + device + self.draft.bytes()
    }

    /// Calls `each` with a number and the bytes of every block of keys and values; states that
    /// share a block give the same number.
    pub fn for_each_kv_block(&self, mut each: impl FnMut(usize, usize)) {
        for layer in &self.layers {
            if let LayerState::Attention(cache) = layer {
                let bytes = cache.block_bytes();
                cache.for_each_block(|block| each(block, bytes));
            }
        }
        if let Some(state) = &self.device {
            state.for_each_page(each);
        }
    }

    /// A copy with the SSM state in `dtype`; it shares keys and values. On a device it stays f32.
    #[must_use]
    pub fn to_ssm_dtype(&self, dtype: SsmDtype) -> Self {
        let layer = |layer: &LayerState| match layer {
            LayerState::Mamba2(Mamba2State { conv, ssm }) => {
                LayerState::Mamba2(Mamba2State { conv: conv.clone(), ssm: ssm.to_dtype(dtype) })
            }
            other => other.clone(),
        };
        let layers = self.layers.iter().map(layer).collect();
        let device = self.device.as_ref().map(|state| state.copy(self.len));
        Self { layers, device, len: self.len, draft: self.draft.clone() }
    }

    /// For measuring only: makes the state look as if `tokens` more tokens had been read, without
    /// reading them. Caches grow by plausible keys and values, recurrent state becomes nonzero; all
    /// memory is this sequence's own. What a model generates from such a state means nothing. On a
    /// device keys, values and recurrent state stay what they are, zeros at first.
    pub fn pretend_read(&mut self, cpu: &Cpu, tokens: usize) {
        let mut noise = Noise::default();
        for layer in &mut self.layers {
            match layer {
                LayerState::Mamba2(state) => {
                    state.conv.iter_mut().for_each(|value| *value = noise.next());
                    state.ssm.fill_with(|| noise.next());
                }
                LayerState::Attention(cache) => noise.append(cpu, cache, tokens),
                LayerState::Mlp => {}
            }
        }
        self.len += tokens;
    }

    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut LayerState {
        &mut self.layers[layer]
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

/// Values between −1 and 1, the same in every run: Knuth's 64-bit linear congruence.
#[derive(Default)]
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Appends `tokens` positions, pieces of which repeat.
    fn append(&mut self, cpu: &Cpu, cache: &mut KvCache, tokens: usize) {
        const ROWS: usize = 64;
        let width = cache.num_kv_heads() * cache.head_dim();
        let values: Vec<f32> = (0..(ROWS + 1) * width).map(|_| self.next()).collect();
        let rows = MatRef::new(&values, width);
        for first in (0..tokens).step_by(ROWS) {
            let count = ROWS.min(tokens - first);
            cache.append(cpu, rows.rows_at(0, count), rows.rows_at(1, count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets::preset;
    use hybra_kernels::Isa;

    #[test]
    fn pretending_to_read_grows_caches_and_fills_state() {
        let config = preset("micro").unwrap();
        let mut state = SequenceState::new(&config, KvDtype::Bf16);
        let cpu = Cpu::new(Isa::best(), 1);
        state.pretend_read(&cpu, 100);
        state.pretend_read(&cpu, 1);
        assert_eq!(state.len(), 101);
        for layer in state.layers() {
            match layer {
                LayerState::Mamba2(m) => {
                    let SsmState::F32(ssm) = &m.ssm else { panic!("f32 by default") };
                    assert!(ssm.iter().chain(&m.conv).all(|v| (-1.0..=1.0).contains(v)));
                    assert!(ssm[0] != ssm[1] && m.conv[0] != m.conv[1]);
                }
                LayerState::Attention(cache) => assert_eq!(cache.len(), 101),
                LayerState::Mlp => {}
            }
        }
    }
}

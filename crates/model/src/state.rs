//! What a sequence carries from token to token: the state of every layer.
//!
//! Invariants: a Mamba layer's state has a constant size, whatever the length of the sequence; an
//! attention layer's cache holds exactly [`SequenceState::len`] positions; convolution windows are
//! f32. Cloning gives an independent snapshot.

use crate::config::Config;
use crate::draft::Draft;
use crate::layer::{LayerConfig, Mamba2Config};
use hybra_kernels::ops::attention::{KvCache, KvDtype};
use hybra_kernels::ops::ssm_state::{SsmDtype, SsmState};

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
#[derive(Clone)]
pub struct SequenceState {
    pub(crate) layers: Vec<LayerState>,
    pub(crate) len: usize,
    pub(crate) draft: Draft,
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
        Self { layers, len: 0, draft: Draft::default() }
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

    /// The layers' states, first to last.
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
        self.layers.iter().map(layer).sum::<usize>() + self.draft.bytes()
    }

    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut LayerState {
        &mut self.layers[layer]
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

//! Reading drafted tokens and forgetting those that turn out wrong.
//!
//! [`Batch::push_draft`](crate::Batch::push_draft) feeds the tokens of a draft with the arithmetic
//! of single steps. Before that, every Mamba layer copies its state and keeps the tokens' inputs
//! of convolution and scan; [`NemotronH::accept`] then keeps a prefix: all of it costs nothing, a
//! part of it puts the copy back and runs its tokens through the same ops again. Keys and values
//! are truncated.
//!
//! Invariants: after [`NemotronH::accept`] of n tokens the state has the bits of a state that read
//! these n tokens one by one; buffers are kept, so that drafts of a length seen before allocate
//! nothing; a sequence that never drafts holds none.

use crate::activations::{Activations, sized};
use crate::layer::{LayerConfig, Mamba2Config};
use crate::mamba2::{SCAN_CHUNK, mixer_params};
use crate::nemotron_h::NemotronH;
use crate::state::{LayerState, Mamba2State, SequenceState};
use crate::weights::{LayerWeights, Mamba2Weights};
use hybra_kernels::ops::mamba_split_conv1d_scan::{MixerSegment, mamba_split_conv1d_scan};
use hybra_kernels::{Cpu, MatMut, MatRef};

/// A draft that was read and not yet judged, and the memory of drafts before it.
#[derive(Default)]
pub(crate) struct Draft {
    /// Tokens of the draft; 0: none waits.
    len: usize,
    /// By layer; empty for layers that are not Mamba.
    saved: Vec<Saved>,
}

/// What a Mamba layer needs to go back.
#[derive(Clone, Default)]
struct Saved {
    /// The state before the draft; `None` before the layer's first.
    state: Option<Mamba2State>,
    /// in_proj's output, a row for each token of the draft.
    inputs: Vec<f32>,
}

impl Clone for Draft {
    /// Memory of drafts that were judged is not worth a copy.
    fn clone(&self) -> Self {
        match self.len {
            0 => Self::default(),
            len => Self { len, saved: self.saved.clone() },
        }
    }
}

impl Draft {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        let state = |s: &Saved| s.state.as_ref().map_or(0, Mamba2State::bytes);
        self.saved.iter().map(|s| state(s) + 4 * s.inputs.capacity()).sum()
    }
}

impl SequenceState {
    /// Tokens of a draft that waits for [`NemotronH::accept`]; 0 if there is none.
    #[must_use]
    pub fn drafted(&self) -> usize {
        self.draft.len
    }

    /// A draft of `len` tokens was read.
    pub(crate) fn await_accept(&mut self, len: usize) {
        self.draft.len = len;
    }

    /// Copies the state of a Mamba layer before a draft with this output of in_proj,
    /// `[T, 2HP + 2GN + H]`.
    pub(crate) fn save(&mut self, layer: usize, inputs: MatRef) {
        let LayerState::Mamba2(state) = &self.layers[layer] else {
            unreachable!("states are made from the same config")
        };
        if self.draft.saved.len() <= layer {
            self.draft.saved.resize_with(self.layers.len(), Saved::default);
        }
        let saved = &mut self.draft.saved[layer];
        match &mut saved.state {
            Some(copy) => copy.copy_from(state),
            None => saved.state = Some(state.clone()),
        }
        saved.inputs.clear();
        (0..inputs.rows()).for_each(|t| saved.inputs.extend_from_slice(inputs.row(t)));
    }
}

impl NemotronH {
    /// Keeps the first `len` tokens of the draft that `state` read last and forgets the others.
    ///
    /// # Panics
    /// If no draft waits, or it is shorter.
    pub fn accept(&self, cpu: &Cpu, state: &mut SequenceState, len: usize, act: &mut Activations) {
        let drafted = std::mem::take(&mut state.draft.len);
        assert!(drafted > 0 && len <= drafted, "a draft of {drafted} tokens, {len} to keep");
        if len == drafted {
            return;
        }
        state.len -= drafted - len;
        let config = self.config();
        let (dt_limit, eps) = (config.time_step_limit, config.norm_eps);
        let replay = Replay { cpu, dt_limit, eps, len };
        let layers = self.config().layers.iter().zip(&self.weights().layers);
        for (layer, (config, weights)) in layers.enumerate() {
            match (config, weights, &mut state.layers[layer]) {
                (LayerConfig::Mamba2(m), LayerWeights::Mamba2(w), LayerState::Mamba2(now)) => {
                    state.draft.saved[layer].replay(&replay, m, w, now, act);
                }
                (_, _, LayerState::Attention(cache)) => cache.truncate(state.len),
                _ => {}
            }
        }
    }
}

/// What is read again.
struct Replay<'a> {
    cpu: &'a Cpu,
    dt_limit: (f32, f32),
    eps: f32,
    /// Tokens.
    len: usize,
}

impl Saved {
    /// Puts the saved state back and reads the first tokens again, as single steps.
    fn replay(
        &mut self,
        replay: &Replay,
        m: &Mamba2Config,
        w: &Mamba2Weights,
        state: &mut Mamba2State,
        act: &mut Activations,
    ) {
        let copy = self.state.as_mut().expect("a draft was read by every layer");
        std::mem::swap(state, copy);
        if replay.len == 0 {
            return;
        }
        let inputs = MatRef::new(&self.inputs, m.in_proj_rows()).rows_at(0, replay.len);
        let Mamba2State { conv, ssm } = state;
        let (len, chunk, state) = (replay.len, SCAN_CHUNK, ssm.view_mut());
        let segment = MixerSegment { len, chunk, steps: len, conv, state };
        let params = mixer_params(m, w, replay.dt_limit, replay.eps);
        // The outputs were used when the draft was read.
        let unused = MatMut::new(sized(&mut act.mix, replay.len * m.d_inner()), m.d_inner());
        mamba_split_conv1d_scan(replay.cpu, &params, inputs, [segment].into_iter(), unused);
    }
}

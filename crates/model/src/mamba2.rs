//! The Mamba-2 mixer: in_proj → causal conv → selective state space → gated norm → out_proj.
//!
//! Source: Mamba-2 (arXiv 2405.21060) as in `nemotron_h`. Columns of in_proj's output are
//! `z (HP) | x (HP) | B (GN) | C (GN) | dt (H)`; the conv runs over `x | B | C`.

use crate::activations::{Activations, sized};
use crate::batch::Batch;
use crate::layer::Mamba2Config;
use crate::state::{LayerState, Mamba2State, SequenceState};
use crate::weights::Mamba2Weights;
use hybra_kernels::ops::mamba_split_conv1d_scan::{
    MixerParams, MixerSegment, mamba_split_conv1d_scan,
};
use hybra_kernels::ops::packed::Epilogue;
use hybra_kernels::ops::ssd::SsdParams;
use hybra_kernels::{Cpu, MatMut, MatRef};

/// Tokens of a chunk of the scan: long enough that a head's state (40 KiB at P = 80, N = 128) is
/// read and written rarely, short enough that the Q × Q products stay small beside N and P.
pub const SCAN_CHUNK: usize = 64;

/// What every layer of a pass needs besides its weights.
pub(crate) struct Pass<'a> {
    pub(crate) cpu: &'a Cpu,
    pub(crate) batch: &'a Batch,
    pub(crate) eps: f32,
    pub(crate) dt_limit: (f32, f32),
}

/// Reads `act.normed`, adds to `act.hidden`, moves the states of `layer` on.
pub(crate) fn forward(
    pass: &Pass,
    layer: usize,
    m: &Mamba2Config,
    w: &Mamba2Weights,
    act: &mut Activations,
    states: &mut [&mut SequenceState],
) {
    let (cpu, tokens) = (pass.cpu, pass.batch.tokens().len());
    let (inner, rows) = (m.d_inner(), m.in_proj_rows());
    let wide = sized(&mut act.wide, tokens * rows);
    let x = MatRef::new(&act.normed, w.in_proj.cols());
    act.rounded.prepare(cpu, x, &[&w.in_proj]);
    let to = MatMut::new(wide, rows);
    w.in_proj.apply(cpu, x, &act.rounded, to, Epilogue::Store, &mut act.out);
    let params = mixer_params(m, w, pass.dt_limit, pass.eps);
    let wide = MatRef::new(wide, rows);
    let segments = pass.batch.segments().iter().zip(states).map(|(segment, state)| {
        if segment.draft {
            state.save(layer, wide.rows_at(segment.start, segment.len));
        }
        let LayerState::Mamba2(state) = state.layer_mut(layer) else {
            unreachable!("states are made from the same config")
        };
        let Mamba2State { conv, ssm } = state;
        // A draft is read with the arithmetic of single steps.
        let (len, steps) = (segment.len, if segment.draft { segment.len } else { 0 });
        MixerSegment { len, chunk: SCAN_CHUNK, steps, conv, state: ssm.view_mut() }
    });
    let gated = sized(&mut act.mix, tokens * inner);
    let out = MatMut::new(gated, inner);
    mamba_split_conv1d_scan(cpu, &params, wide, segments, out);
    let (hidden, x) = (w.out_proj.rows(), MatRef::new(gated, inner));
    act.rounded.prepare(cpu, x, &[&w.out_proj]);
    let to = MatMut::new(&mut act.hidden[..tokens * hidden], hidden);
    w.out_proj.apply(cpu, x, &act.rounded, to, Epilogue::Add, &mut act.out);
}

/// The layer's sizes and constants as the op takes them.
pub(crate) fn mixer_params<'a>(
    m: &Mamba2Config,
    w: &'a Mamba2Weights,
    dt_limit: (f32, f32),
    norm_eps: f32,
) -> MixerParams<'a> {
    MixerParams {
        ssd: SsdParams {
            num_heads: m.num_heads,
            head_dim: m.head_dim,
            n_groups: m.n_groups,
            state_size: m.state_size,
            a: &w.a,
            d: &w.d,
            dt_bias: &w.dt_bias,
            dt_limit,
        },
        conv_weight: &w.conv_weight,
        conv_bias: w.conv_bias.as_deref(),
        norm_weight: &w.gated_norm,
        norm_eps,
    }
}

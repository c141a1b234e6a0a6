//! The Mamba-2 mixer: in_proj → causal conv → selective state space → gated norm → out_proj.
//!
//! Source: Mamba-2 (arXiv 2405.21060) as in `nemotron_h`. Columns of in_proj's output are
//! `z (HP) | x (HP) | B (GN) | C (GN) | dt (H)`; the conv runs over `x | B | C`.

use crate::activations::{Activations, sized};
use crate::batch::Batch;
use crate::layer::Mamba2Config;
use crate::state::{LayerState, SequenceState};
use crate::weights::Mamba2Weights;
use hybra_kernels::ops::causal_conv1d::causal_conv1d;
use hybra_kernels::ops::gemm::gemm;
use hybra_kernels::ops::rms_norm::gated_rms_norm;
use hybra_kernels::ops::ssd::{SsdParams, ssd_chunk_scan};
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

/// Reads `act.normed`, writes `act.out`, moves the states of `layer` on.
pub(crate) fn forward(
    pass: &Pass,
    layer: usize,
    m: &Mamba2Config,
    w: &Mamba2Weights,
    act: &mut Activations,
    states: &mut [&mut SequenceState],
) {
    let (cpu, tokens) = (pass.cpu, pass.batch.tokens().len());
    let (inner, conv_dim, rows) = (m.d_inner(), m.conv_dim(), m.in_proj_rows());
    let wide = sized(&mut act.wide, tokens * rows);
    gemm(
        cpu,
        MatRef::new(&act.normed, w.in_proj.cols()),
        w.in_proj.view(),
        MatMut::new(wide, rows),
    );
    let wide = MatRef::new(wide, rows);
    let conv = sized(&mut act.conv, tokens * conv_dim);
    let y = sized(&mut act.mix, tokens * inner);
    let params = ssd_params(m, w, pass.dt_limit);
    for (segment, state) in pass.batch.segments().iter().zip(states) {
        let rows = wide.rows_at(segment.start, segment.len);
        if segment.draft {
            state.save(layer, rows.columns(inner, conv_dim + m.num_heads));
        }
        let LayerState::Mamba2(state) = state.layer_mut(layer) else {
            unreachable!("states are made from the same config")
        };
        let at = |width: usize| segment.start * width..(segment.start + segment.len) * width;
        let conv = &mut conv[at(conv_dim)];
        causal_conv1d(
            cpu,
            rows.columns(inner, conv_dim),
            &w.conv_weight,
            w.conv_bias.as_deref(),
            &mut state.conv,
            MatMut::new(conv, conv_dim),
        );
        ssd_chunk_scan(
            cpu,
            &params,
            MatRef::new(conv, conv_dim),
            rows.columns(inner + conv_dim, m.num_heads),
            if segment.draft { 1 } else { SCAN_CHUNK },
            &mut state.ssm,
            MatMut::new(&mut y[at(inner)], inner),
        );
    }
    // The conv output is read: its buffer takes the normed result if it is wide enough.
    let gated = sized(&mut act.conv, tokens * inner);
    gated_rms_norm(
        cpu,
        MatRef::new(y, inner),
        wide.columns(0, inner),
        &w.gated_norm,
        m.n_groups,
        pass.eps,
        MatMut::new(gated, inner),
    );
    let hidden = w.out_proj.rows();
    let out = MatMut::new(sized(&mut act.out, tokens * hidden), hidden);
    gemm(cpu, MatRef::new(gated, inner), w.out_proj.view(), out);
}

/// The layer's sizes and constants as the scan takes them.
pub(crate) fn ssd_params<'a>(
    m: &Mamba2Config,
    w: &'a Mamba2Weights,
    dt_limit: (f32, f32),
) -> SsdParams<'a> {
    SsdParams {
        num_heads: m.num_heads,
        head_dim: m.head_dim,
        n_groups: m.n_groups,
        state_size: m.state_size,
        a: &w.a,
        d: &w.d,
        dt_bias: &w.dt_bias,
        dt_limit,
    }
}

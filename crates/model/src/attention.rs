//! The attention mixer: grouped-query, causal, without positions, norms or biases.
//!
//! Keys and values go into the sequence's cache first and are read from there, so a prompt gets
//! the same rounding of the cache as the tokens after it.

use crate::activations::{Activations, sized};
use crate::layer::AttentionConfig;
use crate::mamba2::Pass;
use crate::state::{LayerState, SequenceState};
use crate::weights::AttentionWeights;
use hybra_kernels::ops::attention::attention;
use hybra_kernels::ops::packed::Epilogue;
use hybra_kernels::{MatMut, MatRef};

/// Reads `act.normed`, adds to `act.hidden`, appends to the caches of `layer`.
pub(crate) fn forward(
    pass: &Pass,
    layer: usize,
    a: &AttentionConfig,
    w: &AttentionWeights,
    act: &mut Activations,
    states: &mut [&mut SequenceState],
) {
    let (cpu, tokens) = (pass.cpu, pass.batch.tokens().len());
    let (q_width, kv_width) = (a.q_width(), a.kv_width());
    let x = MatRef::new(&act.normed, w.q_proj.cols());
    let (q, kv) =
        sized(&mut act.wide, tokens * (q_width + 2 * kv_width)).split_at_mut(tokens * q_width);
    let (k, v) = kv.split_at_mut(tokens * kv_width);
    act.rounded.prepare(cpu, x, &[&w.q_proj, &w.k_proj, &w.v_proj]);
    for (w, out) in [(&w.q_proj, &mut *q), (&w.k_proj, &mut *k), (&w.v_proj, &mut *v)] {
        let to = MatMut::new(out, w.rows());
        w.apply(cpu, x, &act.rounded, to, Epilogue::Store, &mut act.out);
    }
    let (q, k, v) = (MatRef::new(q, q_width), MatRef::new(k, kv_width), MatRef::new(v, kv_width));
    let mix = sized(&mut act.mix, tokens * q_width);
    for (segment, state) in pass.batch.segments().iter().zip(states) {
        let (start, len) = (segment.start, segment.len);
        let past = state.len();
        let LayerState::Attention(cache) = state.layer_mut(layer) else {
            unreachable!("states are made from the same config")
        };
        cache.append(k.rows_at(start, len), v.rows_at(start, len));
        let out = &mut mix[start * q_width..(start + len) * q_width];
        attention(cpu, q.rows_at(start, len), cache, past, a.num_heads, MatMut::new(out, q_width));
    }
    let (hidden, x) = (w.o_proj.rows(), MatRef::new(mix, q_width));
    act.rounded.prepare(cpu, x, &[&w.o_proj]);
    let to = MatMut::new(&mut act.hidden[..tokens * hidden], hidden);
    w.o_proj.apply(cpu, x, &act.rounded, to, Epilogue::Add, &mut act.out);
}

//! The attention mixer: grouped-query, causal, without positions, norms or biases.
//!
//! Keys and values go into the sequence's cache first and are read from there, so a prompt gets
//! the same rounding of the cache as the tokens after it.

use crate::activations::{Activations, sized};
use crate::layer::AttentionConfig;
use crate::mamba2::Pass;
use crate::state::{LayerState, SequenceState};
use crate::weights::AttentionWeights;
use hybra_kernels::buffer::Chunks;
use hybra_kernels::ops::attention::{Segment, attention};
use hybra_kernels::ops::packed::Epilogue;
use hybra_kernels::{MatMut, MatRef};

/// Operations, roughly, to store a key or value.
const STORE_OPERATIONS: usize = 16;
const LAYERS: &str = "states are made from the same config";

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
    let segments = pass.batch.segments();
    let store = STORE_OPERATIONS * tokens * kv_width;
    cpu.pool().for_parts_sized(store, Chunks::new(states, 1), |i, state| {
        let (start, len) = (segments[i].start, segments[i].len);
        let LayerState::Attention(cache) = state[0].layer_mut(layer) else {
            unreachable!("{LAYERS}")
        };
        cache.append(cpu, k.rows_at(start, len), v.rows_at(start, len));
    });
    let mix = sized(&mut act.mix, tokens * q_width);
    let queries = |i: usize| {
        let (start, len) = (segments[i].start, segments[i].len);
        let LayerState::Attention(cache) = &states[i].layers()[layer] else {
            unreachable!("{LAYERS}")
        };
        Segment { rows: start..start + len, cache, past: states[i].len() }
    };
    attention(cpu, q, segments.len(), queries, a.num_heads, MatMut::new(mix, q_width));
    let (hidden, x) = (w.o_proj.rows(), MatRef::new(mix, q_width));
    act.rounded.prepare(cpu, x, &[&w.o_proj]);
    let to = MatMut::new(&mut act.hidden[..tokens * hidden], hidden);
    w.o_proj.apply(cpu, x, &act.rounded, to, Epilogue::Add, &mut act.out);
}

//! The slow twin of [`crate::NemotronH`]: one token at a time, plain loops, f32 weights.
//!
//! It shares configuration and weight loading with the fast model and nothing else: no op of
//! `kernels` but decoding, no batching, no chunking. Sums are f64, so that its own rounding does
//! not matter in a comparison. Tests hold the fast paths against it.

use crate::config::Config;
use crate::layer::{AttentionConfig, LayerConfig, Mamba2Config};
use crate::weights::{AttentionWeights, LayerWeights, Mamba2Weights, Matrix, Weights};
use hybra_kernels::Isa;
use hybra_kernels::ops::quantize::dequantize_row;

/// A model that reads one token at a time.
pub struct Reference<'m> {
    config: &'m Config,
    weights: &'m Weights,
    layers: Vec<State>,
}

/// State of a layer; unused fields stay empty.
#[derive(Default)]
struct State {
    /// The last k − 1 conv inputs, oldest first.
    conv: Vec<Vec<f64>>,
    /// `[H][P][N]`.
    ssm: Vec<f64>,
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

impl<'m> Reference<'m> {
    /// A model before its first token.
    #[must_use]
    pub fn new(config: &'m Config, weights: &'m Weights) -> Self {
        let state = |layer: &LayerConfig| match layer {
            LayerConfig::Mamba2(m) => State {
                conv: vec![vec![0.0; m.conv_dim()]; m.conv_kernel - 1],
                ssm: vec![0.0; m.d_inner() * m.state_size],
                ..State::default()
            },
            _ => State::default(),
        };
        Self { config, weights, layers: config.layers.iter().map(state).collect() }
    }

    /// Reads `token` and returns the logits, `[V]`.
    ///
    /// # Panics
    /// If the token is outside the vocabulary.
    pub fn step(&mut self, token: u32) -> Vec<f64> {
        let eps = f64::from(self.config.norm_eps);
        let mut x = row(&self.weights.embedding, token as usize);
        for ((config, weights), state) in
            self.config.layers.iter().zip(&self.weights.layers).zip(&mut self.layers)
        {
            let normed = rms_norm(&x, weights.norm(), eps);
            let out = match (config, weights) {
                (LayerConfig::Mamba2(m), LayerWeights::Mamba2(w)) => {
                    mamba2(m, w, &normed, state, self.config.time_step_limit, eps)
                }
                (LayerConfig::Attention(a), LayerWeights::Attention(w)) => {
                    attention(a, w, &normed, state)
                }
                (LayerConfig::Mlp(_), LayerWeights::Mlp(w)) => {
                    let up = matvec(&w.up_proj, &normed);
                    matvec(&w.down_proj, &up.iter().map(|u| u.max(0.0).powi(2)).collect::<Vec<_>>())
                }
                _ => unreachable!("weights are loaded for this config"),
            };
            x.iter_mut().zip(out).for_each(|(x, o)| *x += o);
        }
        let head = self.weights.lm_head.as_ref().unwrap_or(&self.weights.embedding);
        matvec(head, &rms_norm(&x, &self.weights.final_norm, eps))
    }
}

fn row(m: &Matrix, r: usize) -> Vec<f64> {
    let mut values = vec![0.0; m.cols()];
    let view = m.view();
    dequantize_row(Isa::Scalar, view.dtype(), view.row_part(r, 0, m.cols()), &mut values);
    values.into_iter().map(f64::from).collect()
}

fn matvec(m: &Matrix, x: &[f64]) -> Vec<f64> {
    let dot = |r| row(m, r).iter().zip(x).map(|(w, x)| w * x).sum();
    (0..m.rows()).map(dot).collect()
}

fn rms_norm(x: &[f64], weight: &[f32], eps: f64) -> Vec<f64> {
    let scale = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + eps).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * scale * f64::from(*w)).collect()
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn mamba2(
    m: &Mamba2Config,
    w: &Mamba2Weights,
    x: &[f64],
    state: &mut State,
    limit: (f32, f32),
    eps: f64,
) -> Vec<f64> {
    let (inner, conv_dim) = (m.d_inner(), m.conv_dim());
    let projected = matvec(&w.in_proj, x);
    let (z, rest) = projected.split_at(inner);
    let (conv_in, dt) = rest.split_at(conv_dim);
    state.conv.push(conv_in.to_vec());
    let conv = |c: usize| {
        let tap = |k: usize| f64::from(w.conv_weight[k * conv_dim + c]) * state.conv[k][c];
        let bias = w.conv_bias.as_ref().map_or(0.0, |b| f64::from(b[c]));
        silu((0..m.conv_kernel).map(tap).sum::<f64>() + bias)
    };
    let xbc: Vec<f64> = (0..conv_dim).map(conv).collect();
    state.conv.remove(0);
    let (x, bc) = xbc.split_at(inner);
    let (b, c) = bc.split_at(m.groups_width());
    let (p, n) = (m.head_dim, m.state_size);
    let mut y = vec![0.0; inner];
    for head in 0..m.num_heads {
        let group = head / (m.num_heads / m.n_groups);
        let (b, c) = (&b[group * n..][..n], &c[group * n..][..n]);
        let raw = dt[head] + f64::from(w.dt_bias[head]);
        let softplus = raw.max(0.0) + (-raw.abs()).exp().ln_1p();
        let dt = softplus.clamp(f64::from(limit.0), f64::from(limit.1));
        let decay = (dt * f64::from(w.a[head])).exp();
        for i in head * p..(head + 1) * p {
            let s = &mut state.ssm[i * n..(i + 1) * n];
            for (s, b) in s.iter_mut().zip(b) {
                *s = decay * *s + dt * x[i] * b;
            }
            let read: f64 = s.iter().zip(c).map(|(s, c)| s * c).sum();
            y[i] = read + f64::from(w.d[head]) * x[i];
        }
    }
    let width = m.norm_group_len();
    let gated: Vec<f64> = y.iter().zip(z).map(|(y, z)| y * silu(*z)).collect();
    let groups = gated.chunks(width).zip(w.gated_norm.chunks(width));
    let normed: Vec<f64> = groups.flat_map(|(u, w)| rms_norm(u, w, eps)).collect();
    matvec(&w.out_proj, &normed)
}

fn attention(a: &AttentionConfig, w: &AttentionWeights, x: &[f64], state: &mut State) -> Vec<f64> {
    let q = matvec(&w.q_proj, x);
    state.keys.push(matvec(&w.k_proj, x));
    state.values.push(matvec(&w.v_proj, x));
    let hd = a.head_dim;
    let mut out = vec![0.0; a.q_width()];
    for head in 0..a.num_heads {
        let kv = head / (a.num_heads / a.num_kv_heads) * hd..;
        let q = &q[head * hd..][..hd];
        let score = |k: &Vec<f64>| {
            let dot: f64 = q.iter().zip(&k[kv.clone()]).map(|(q, k)| q * k).sum();
            dot / (hd as f64).sqrt()
        };
        let scores: Vec<f64> = state.keys.iter().map(score).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        for (score, value) in scores.iter().zip(&state.values) {
            let share = (score - top).exp() / total;
            let out = &mut out[head * hd..][..hd];
            out.iter_mut().zip(&value[kv.clone()]).for_each(|(o, v)| *o += share * v);
        }
    }
    matvec(&w.o_proj, &out)
}

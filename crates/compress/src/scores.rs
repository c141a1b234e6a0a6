//! What a channel is worth: scores from [`Moments`] and weights, larger for more.
//!
//! Scores are squares, so that those of a set of channels add up: a head is worth the sum over its
//! kept channels, a channel that all heads share the sum over heads.
//! - *act_l2*, as published: the L2 norm over documents of the mean |activation| of a channel.
//!   Hidden channels: the block norms' outputs, summed over layers. Mamba: x as in_proj gives it,
//!   which is before convolution, state and gate. MLP: the units after the squared ReLU.
//! - *energy*: the share of a projection's output energy that goes with the channel,
//!   `E[x_i²]·‖W[:, i]‖²`, of the matrix that reads it. For Mamba that is out_proj behind conv, state,
//!   gate and norm; for a hidden channel the sum over all matrices that read the residual stream,
//!   each taken relative to its own sum.
//! - *random*: the control.
//!
//! Sources: Minitron (arXiv 2407.14679), Minitron-SSM (arXiv 2504.11409) and its code in ModelOpt.

use crate::moments::{ChannelMoments, LayerMoments, Moments};
use crate::prune::Teacher;
use hybra_kernels::Isa;
use hybra_kernels::ops::quantize::dequantize_row;
use hybra_model::Config;
use hybra_model::layer::LayerConfig;
use hybra_model::load::Found;
use hybra_model::tensors::Role;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How scores are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The published activation scores.
    ActL2,
    /// Energy of the outputs.
    #[default]
    Energy,
    /// A function of this seed alone.
    Random(u64),
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ActL2 => f.write_str("act_l2"),
            Self::Energy => f.write_str("energy"),
            Self::Random(seed) => write!(f, "random {seed}"),
        }
    }
}

/// Scores of activations without activations.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{method} scores need importance: see `hybra importance`; `random` needs none")]
pub struct NoMoments {
    method: Method,
}

/// The scores of a teacher's channels.
///
/// # Errors
/// [`NoMoments`]: only random scores do without.
pub fn scores(
    method: Method,
    teacher: &Teacher,
    moments: Option<&Moments>,
) -> Result<Scores, NoMoments> {
    let config = &teacher.config;
    match (method, moments) {
        (Method::Random(seed), _) => Ok(Scores::random(config, seed)),
        (Method::ActL2, Some(moments)) => Ok(Scores::act_l2(config, moments)),
        (Method::Energy, Some(moments)) => Ok(Scores::energy(config, moments, teacher.tensors())),
        (method, None) => Err(NoMoments { method }),
    }
}

/// The scores of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerScores {
    /// Of each channel: `[H·P]` of a Mamba layer, `[q·hd]` of attention, `[f]` of an MLP.
    pub channels: Vec<f64>,
    /// Channels of a head: P, hd, or 1 for an MLP.
    pub head_dim: usize,
}

/// The scores of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Of the hidden channels, `[h]`.
    pub hidden: Vec<f64>,
    /// Layer by layer.
    pub layers: Vec<LayerScores>,
}

impl Scores {
    /// The published scores.
    #[must_use]
    pub fn act_l2(config: &Config, moments: &Moments) -> Self {
        let mut hidden = vec![0.0; config.hidden_size];
        let norms = moments.layers.iter().map(|layer| &layer.normed);
        for norm in norms.chain([&moments.head]) {
            hidden.iter_mut().zip(&norm.abs).for_each(|(sum, abs)| *sum += abs.sqrt());
        }
        let channels = |moments: &LayerMoments, layer: &LayerConfig| match layer {
            LayerConfig::Mamba2(_) => moments.x_abs.clone(),
            _ => moments.mixed.abs.clone(),
        };
        Self { hidden, layers: layers(config, |i, layer| channels(&moments.layers[i], layer)) }
    }

    /// Energies of outputs; `tensors` are those of the model the moments are from.
    #[must_use]
    pub fn energy<'f>(
        config: &Config,
        moments: &Moments,
        tensors: impl Iterator<Item = &'f Found<'f>>,
    ) -> Self {
        let mut hidden = vec![0.0; config.hidden_size];
        let mut mixed: Vec<Vec<f64>> = vec![Vec::new(); config.layers.len()];
        let mut read: Vec<Vec<f64>> = vec![vec![0.0; config.hidden_size]; config.layers.len() + 1];
        let head = config.layers.len();
        for found in tensors {
            let role = found.spec.role;
            let is_head =
                role == Role::LmHead || role == Role::Embedding && config.tie_word_embeddings;
            let layer = found.spec.layer.unwrap_or(head);
            match role {
                Role::OutProj | Role::OProj | Role::DownProj => {
                    mixed[layer] = energies(&moments.layers[layer].mixed, found);
                }
                Role::InProj | Role::QProj | Role::KProj | Role::VProj | Role::UpProj => {
                    add(&mut read[layer], &energies(&moments.layers[layer].normed, found));
                }
                _ if is_head => add(&mut read[head], &energies(&moments.head, found)),
                _ => {}
            }
        }
        for reader in &read {
            let whole = reader.iter().sum::<f64>().max(f64::MIN_POSITIVE);
            hidden.iter_mut().zip(reader).for_each(|(sum, energy)| *sum += energy / whole);
        }
        Self { hidden, layers: layers(config, |i, _| std::mem::take(&mut mixed[i])) }
    }

    /// Numbers that know nothing of the model.
    #[must_use]
    pub fn random(config: &Config, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = |n: usize| (0..n).map(|_| f64::from(rng.next_u32())).collect::<Vec<_>>();
        let hidden = draw(config.hidden_size);
        let width = |layer: &LayerConfig| match layer {
            LayerConfig::Mamba2(m) => m.d_inner(),
            LayerConfig::Attention(a) => a.q_width(),
            LayerConfig::Mlp(m) => m.intermediate_size,
        };
        Self { hidden, layers: layers(config, |_, layer| draw(width(layer))) }
    }
}

fn layers(
    config: &Config,
    mut channels: impl FnMut(usize, &LayerConfig) -> Vec<f64>,
) -> Vec<LayerScores> {
    let scores = |(i, layer): (usize, &LayerConfig)| {
        let head_dim = match layer {
            LayerConfig::Mamba2(m) => m.head_dim,
            LayerConfig::Attention(a) => a.head_dim,
            LayerConfig::Mlp(_) => 1,
        };
        LayerScores { channels: channels(i, layer), head_dim }
    };
    config.layers.iter().enumerate().map(scores).collect()
}

/// `E[x_i²]·‖W[:, i]‖²`, but for the number of tokens.
fn energies(moments: &ChannelMoments, w: &Found) -> Vec<f64> {
    let columns = column_squares(w);
    moments.square.iter().zip(columns).map(|(square, column)| square * column).collect()
}

/// ‖W[:, i]‖² of every column.
fn column_squares(w: &Found) -> Vec<f64> {
    let cols = w.spec.row_len();
    let row_bytes = w.dtype.row_bytes(cols).expect("a tensor that was found has whole rows");
    let (mut sums, mut row) = (vec![0.0; cols], vec![0.0f32; cols]);
    for bytes in w.view.data.chunks_exact(row_bytes) {
        dequantize_row(Isa::best(), w.dtype, bytes, &mut row);
        sums.iter_mut().zip(&row).for_each(|(sum, w)| *sum += f64::from(*w) * f64::from(*w));
    }
    sums
}

fn add(to: &mut [f64], from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

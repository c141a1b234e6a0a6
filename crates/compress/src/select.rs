//! From scores and a target shape to a plan: the best channels of every set that may be cut.
//!
//! Heads are chosen inside their group, query heads inside their kv head. A tie goes to the lower
//! index. Kept indices ascend, so the student's order is the teacher's.

use crate::plan::{FORMAT, LayerPlan, PrunePlan};
use crate::scores::{LayerScores, Scores};
use crate::target::{Target, TargetError};
use hybra_model::Config;
use hybra_model::layer::LayerConfig;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which channels of a Mamba layer's heads stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channels {
    /// Every head keeps its own best: the same shapes, a larger choice.
    #[default]
    PerHead,
    /// All heads keep the same, as published.
    Shared,
}

impl fmt::Display for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PerHead => "per head",
            Self::Shared => "shared",
        })
    }
}

/// The plan that keeps what `scores` say is worth most, in the shape of `target`.
///
/// # Errors
/// A target that is no part of the teacher.
pub fn select(
    teacher: &Config,
    target: &Target,
    scores: &Scores,
    channels: Channels,
) -> Result<PrunePlan, TargetError> {
    target.config(teacher)?;
    let layer = |&layer: &usize| {
        let scores = &scores.layers[layer];
        match &teacher.layers[layer] {
            LayerConfig::Mamba2(m) => {
                let (heads, channels) = mamba(m.n_groups, target, scores, channels);
                LayerPlan::Mamba { layer, heads, channels }
            }
            LayerConfig::Attention(a) => {
                let heads: Vec<f64> = sums(&scores.channels, a.head_dim);
                let heads = best_of_groups(&heads, a.num_kv_heads, target.num_attention_heads);
                LayerPlan::Attention { layer, heads }
            }
            LayerConfig::Mlp(_) => {
                let neurons = best(&scores.channels, target.intermediate_size);
                LayerPlan::Mlp { layer, neurons }
            }
        }
    };
    Ok(PrunePlan {
        format: FORMAT.to_owned(),
        teacher: None,
        method: String::new(),
        hidden: best(&scores.hidden, target.hidden_size),
        layers: target.layers.iter().map(layer).collect(),
    })
}

/// Heads, and channels of each.
fn mamba(
    groups: usize,
    target: &Target,
    scores: &LayerScores,
    channels: Channels,
) -> (Vec<usize>, Vec<Vec<usize>>) {
    let dim = scores.head_dim;
    let heads: Vec<&[f64]> = scores.channels.chunks_exact(dim).collect();
    let kept: Vec<Vec<usize>> = match channels {
        Channels::PerHead => heads.iter().map(|head| best(head, target.mamba_head_dim)).collect(),
        Channels::Shared => {
            let shared: Vec<f64> =
                (0..dim).map(|p| heads.iter().map(|head| head[p]).sum()).collect();
            vec![best(&shared, target.mamba_head_dim); heads.len()]
        }
    };
    let worth = |(head, kept): (&&[f64], &Vec<usize>)| kept.iter().map(|&p| head[p]).sum::<f64>();
    let worth: Vec<f64> = heads.iter().zip(&kept).map(worth).collect();
    let heads = best_of_groups(&worth, groups, target.mamba_num_heads);
    let channels = heads.iter().map(|&head| kept[head].clone()).collect();
    (heads, channels)
}

/// Sums of parts of this length.
pub(crate) fn sums(values: &[f64], len: usize) -> Vec<f64> {
    values.chunks_exact(len).map(|part| part.iter().sum()).collect()
}

/// The `count` best of all, as many of each of `groups` equal parts.
fn best_of_groups(scores: &[f64], groups: usize, count: usize) -> Vec<usize> {
    let part = scores.len() / groups;
    let of_group = |(group, scores): (usize, &[f64])| {
        best(scores, count / groups).into_iter().map(move |at| group * part + at)
    };
    scores.chunks_exact(part).enumerate().flat_map(of_group).collect()
}

/// All indices, that of the largest value first.
pub(crate) fn ranked(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order
}

/// Indices of the `count` largest values, ascending.
fn best(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order = ranked(scores);
    order.truncate(count);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybra_model::presets::preset;
    use proptest::prelude::*;

    #[test]
    fn heads_keep_their_own_best_channels() {
        let head_dim = 3;
        let channels = vec![9.0, 1.0, 2.0, /* head 1 */ 1.0, 2.0, 8.0];
        let scores = LayerScores { channels, head_dim };
        let target = Target {
            layers: vec![0],
            hidden_size: 1,
            intermediate_size: 0,
            mamba_num_heads: 2,
            mamba_head_dim: 1,
            num_attention_heads: 0,
        };
        let own = mamba(1, &target, &scores, Channels::PerHead);
        assert_eq!(own, (vec![0, 1], vec![vec![0], vec![2]]));
        let shared = mamba(1, &target, &scores, Channels::Shared);
        assert_eq!(shared, (vec![0, 1], vec![vec![0], vec![0]]));
        assert_eq!(best(&[1.0, 3.0, 3.0, 0.0], 2), [1, 2]);
        assert_eq!(best_of_groups(&[1.0, 5.0, 9.0, 8.0], 2, 2), [1, 2]);
    }

    proptest! {
        /// Whatever the scores, the plan is one that the teacher allows, of the target's shape.
        #[test]
        fn a_selected_plan_is_always_valid(
            seed in any::<u64>(), hidden in 1usize..64, neurons in 1usize..100,
            heads in 1usize..4, dim in 1usize..16, shared in any::<bool>(), first in 0usize..3,
        ) {
            let teacher = preset("micro").unwrap();
            let full = Target::full(&teacher);
            let groups = teacher.mamba_layers().next().unwrap().n_groups;
            let target = Target {
                layers: full.layers[first..].to_vec(),
                hidden_size: hidden.min(full.hidden_size),
                intermediate_size: neurons.min(full.intermediate_size),
                mamba_num_heads: (heads * groups).min(full.mamba_num_heads),
                mamba_head_dim: dim.min(full.mamba_head_dim),
                ..full
            };
            let channels = if shared { Channels::Shared } else { Channels::PerHead };
            let plan = select(&teacher, &target, &Scores::random(&teacher, seed), channels).unwrap();
            prop_assert_eq!(plan.student(&teacher).unwrap(), target.config(&teacher).unwrap());
        }
    }
}

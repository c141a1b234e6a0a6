//! A nested checkpoint: one set of weights that holds several students, sliced when it is loaded.
//!
//! Hidden channels, MLP units, heads (inside their group or kv head) and the channels of each Mamba
//! head lie in the order of their worth, so the student of any width is a prefix on every axis; whole
//! layers are left out by number. The weights are the teacher's, permuted: the whole model answers as
//! the teacher does, to rounding. `nested.json` names the sizes and what their norms are multiplied
//! with; least squares need weights of their own and have no place here.
//!
//! The idea: Flextron and elastic training (Cai et al. 2024), here without any training.

use crate::axes::Axes;
use crate::compensate::{Repair, scaled};
use crate::plan::{FORMAT as PLAN, LayerPlan, PrunePlan};
use crate::scores::Scores;
use crate::select::{ranked, sums};
use crate::target::{Target, TargetError};
use hybra_model::Config;
use hybra_model::load::{Found, LoadError};
use hybra_model::tensors::TensorSpec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The file beside the weights.
pub const FILE: &str = "nested.json";
const FORMAT: &str = "hybra nested 1";

/// The students of a nested checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nested {
    format: String,
    /// By name.
    pub sizes: BTreeMap<String, Size>,
}

/// A student.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Its layers and widths.
    pub shape: Target,
    /// What each group of a norm is multiplied with, by the student's tensor; 1 where there is none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub norms: BTreeMap<String, Vec<f64>>,
}

/// Why `nested.json` is refused.
#[derive(Debug, thiserror::Error)]
pub enum NestedError {
    /// It is none.
    #[error("{FILE}: {0}; expected what `hybra prune --nested` writes")]
    Json(#[from] serde_json::Error),
    /// Another version.
    #[error("{FILE}: `format`: expected {FORMAT:?}, found {0:?}")]
    Format(String),
    /// Factors that no norm can have.
    #[error("{FILE}: size {size:?}, {tensor}: expected positive numbers, found {found:?}")]
    Factors {
        /// The student.
        size: String,
        /// Its tensor.
        tensor: String,
        /// As they are.
        found: Vec<f64>,
    },
    /// There is no such student.
    #[error("size {found:?}: expected one of {}", names.join(", "))]
    NoSize {
        /// Those that there are.
        names: Vec<String>,
        /// As asked for.
        found: String,
    },
}

impl Nested {
    /// These sizes.
    #[must_use]
    pub fn new(sizes: BTreeMap<String, Size>) -> Self {
        Self { format: FORMAT.to_owned(), sizes }
    }

    /// From the text of [`FILE`].
    ///
    /// # Errors
    /// [`NestedError`].
    pub fn from_json(text: &str) -> Result<Self, NestedError> {
        let nested: Self = serde_json::from_str(text)?;
        if nested.format != FORMAT {
            return Err(NestedError::Format(nested.format));
        }
        for (size, student) in &nested.sizes {
            let sound = |found: &[f64]| !found.is_empty() && found.iter().all(|&f| f > 0.0);
            if let Some((tensor, found)) = student.norms.iter().find(|(_, found)| !sound(found)) {
                let (size, tensor, found) = (size.clone(), tensor.clone(), found.clone());
                return Err(NestedError::Factors { size, tensor, found });
            }
        }
        Ok(nested)
    }

    /// The text of [`FILE`].
    ///
    /// # Panics
    /// Never: numbers and strings have a form in JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and strings") + "\n"
    }

    /// The student of this name.
    ///
    /// # Errors
    /// [`NestedError::NoSize`], with the names.
    pub fn size(&self, name: &str) -> Result<&Size, NestedError> {
        self.sizes.get(name).ok_or_else(|| NestedError::NoSize {
            names: self.sizes.keys().cloned().collect(),
            found: name.to_owned(),
        })
    }
}

impl Repair for Size {
    fn values(
        &self,
        _: &Config,
        _: &PrunePlan,
        spec: &TensorSpec,
        axes: &Axes,
        found: &Found,
    ) -> Result<Option<Vec<f32>>, LoadError> {
        match (self.norms.get(&spec.name), &axes.rows) {
            (Some(factors), Some(kept)) => Ok(Some(scaled(found, kept, factors)?)),
            _ => Ok(None),
        }
    }
}

/// The plan that keeps everything, what is worth most first.
#[must_use]
pub fn order(teacher: &Config, scores: &Scores) -> PrunePlan {
    let mut plan = PrunePlan::everything(teacher);
    for (plan, scores) in plan.layers.iter_mut().zip(&scores.layers) {
        match plan {
            LayerPlan::Mamba { layer, heads, channels } => {
                let m = teacher.layers[*layer].as_mamba2().expect("a plan of the teacher");
                let of_head: Vec<&[f64]> = scores.channels.chunks_exact(m.head_dim).collect();
                *heads = ranked_in_groups(&sums(&scores.channels, m.head_dim), m.n_groups);
                *channels = heads.iter().map(|&head| ranked(of_head[head])).collect();
            }
            LayerPlan::Attention { layer, heads } => {
                let a = teacher.layers[*layer].as_attention().expect("a plan of the teacher");
                *heads = ranked_in_groups(&sums(&scores.channels, a.head_dim), a.num_kv_heads);
            }
            LayerPlan::Mlp { neurons, .. } => *neurons = ranked(&scores.channels),
        }
    }
    PrunePlan { format: PLAN.to_owned(), hidden: ranked(&scores.hidden), ..plan }
}

fn ranked_in_groups(scores: &[f64], groups: usize) -> Vec<usize> {
    let part = scores.len() / groups;
    let of_group = |(group, scores): (usize, &[f64])| {
        ranked(scores).into_iter().map(move |at| group * part + at)
    };
    scores.chunks_exact(part).enumerate().flat_map(of_group).collect()
}

/// The student of this shape: the first of everything that `whole` keeps, group by group. `whole`
/// keeps all of the teacher, in any order.
///
/// # Errors
/// A shape that is no part of the teacher.
pub fn prefix(
    whole: &PrunePlan,
    teacher: &Config,
    target: &Target,
) -> Result<PrunePlan, TargetError> {
    target.config(teacher)?;
    let layer = |&layer: &usize| match &whole.layers[layer] {
        LayerPlan::Mamba { heads, channels, .. } => {
            let groups = teacher.layers[layer].as_mamba2().map_or(1, |m| m.n_groups);
            let first = first_of_groups(heads.len(), groups, target.mamba_num_heads);
            LayerPlan::Mamba {
                layer,
                heads: first.iter().map(|&at| heads[at]).collect(),
                channels: first
                    .iter()
                    .map(|&at| channels[at][..target.mamba_head_dim].to_vec())
                    .collect(),
            }
        }
        LayerPlan::Attention { heads, .. } => {
            let groups = teacher.layers[layer].as_attention().map_or(1, |a| a.num_kv_heads);
            let first = first_of_groups(heads.len(), groups, target.num_attention_heads);
            LayerPlan::Attention { layer, heads: first.iter().map(|&at| heads[at]).collect() }
        }
        LayerPlan::Mlp { neurons, .. } => {
            LayerPlan::Mlp { layer, neurons: neurons[..target.intermediate_size].to_vec() }
        }
    };
    Ok(PrunePlan {
        hidden: whole.hidden[..target.hidden_size].to_vec(),
        layers: target.layers.iter().map(layer).collect(),
        ..whole.clone()
    })
}

/// Places of the first of each of `groups` equal parts of `len`, `count` in all.
fn first_of_groups(len: usize, groups: usize, count: usize) -> Vec<usize> {
    let (whole, part) = (len / groups, count / groups);
    (0..groups).flat_map(|group| group * whole..group * whole + part).collect()
}

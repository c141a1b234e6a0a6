//! The shape of a student: which layers stay and how wide each axis becomes.
//!
//! A [`Target`] is smaller than or equal to its teacher on every axis. Groups, state size, kv heads
//! and attention head dim are the teacher's: B, C, the gated norm's statistic and the kv cache are
//! shared inside a group, so dropping a part of them is no slicing.

use hybra_model::Config;
use hybra_model::layer::{LayerConfig, LayerKind};
use serde::{Deserialize, Serialize};

/// The widths of a student, the same in all layers of a kind, and the layers it keeps. A width of a
/// kind that the teacher lacks is 0.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Kept layers of the teacher, from 0, ascending.
    pub layers: Vec<usize>,
    /// h.
    pub hidden_size: usize,
    /// f.
    pub intermediate_size: usize,
    /// H, a multiple of the groups.
    pub mamba_num_heads: usize,
    /// P.
    pub mamba_head_dim: usize,
    /// q, a multiple of the kv heads.
    pub num_attention_heads: usize,
}

/// Why a teacher cannot be cut to a shape.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// A width that is 0, larger than the teacher's, or no multiple of what shares it.
    #[error("{axis}: expected {expected}, found {found}")]
    Width {
        /// Such as `mamba_num_heads`.
        axis: &'static str,
        /// What would do.
        expected: String,
        /// What it is.
        found: usize,
    },
    /// Layers that are not the teacher's, in order, each once.
    #[error("layers: expected ascending numbers below {num_layers}, found {found:?}")]
    Layers {
        /// Of the teacher.
        num_layers: usize,
        /// As given.
        found: Vec<usize>,
    },
    /// A shape that no model can have.
    #[error(transparent)]
    Config(#[from] hybra_model::ConfigError),
}

impl Target {
    /// The teacher's own shape, by its widest layers.
    #[must_use]
    pub fn full(teacher: &Config) -> Self {
        let widest = |width: fn(&LayerConfig) -> Option<usize>| {
            teacher.layers.iter().filter_map(width).max().unwrap_or(0)
        };
        Self {
            layers: (0..teacher.layers.len()).collect(),
            hidden_size: teacher.hidden_size,
            intermediate_size: widest(|l| l.as_mlp().map(|m| m.intermediate_size)),
            mamba_num_heads: widest(|l| l.as_mamba2().map(|m| m.num_heads)),
            mamba_head_dim: widest(|l| l.as_mamba2().map(|m| m.head_dim)),
            num_attention_heads: widest(|l| l.as_attention().map(|a| a.num_heads)),
        }
    }

    /// The configuration of the student.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn config(&self, teacher: &Config) -> Result<Config, TargetError> {
        let num_layers = teacher.layers.len();
        let ascending = self.layers.is_sorted_by(|a, b| a < b);
        if !ascending || self.layers.last().is_none_or(|&last| last >= num_layers) {
            return Err(TargetError::Layers { num_layers, found: self.layers.clone() });
        }
        part("hidden_size", self.hidden_size, teacher.hidden_size, 1)?;
        let layers = self.layers.iter().map(|&layer| self.layer(&teacher.layers[layer]));
        let layers = layers.collect::<Result<_, _>>()?;
        let config = Config { hidden_size: self.hidden_size, layers, ..teacher.clone() };
        config.validate("the student")?;
        Ok(config)
    }

    fn layer(&self, teacher: &LayerConfig) -> Result<LayerConfig, TargetError> {
        let mut layer = *teacher;
        match &mut layer {
            LayerConfig::Mamba2(m) => {
                let of = (m.num_heads, m.n_groups);
                m.num_heads = part("mamba_num_heads", self.mamba_num_heads, of.0, of.1)?;
                m.head_dim = part("mamba_head_dim", self.mamba_head_dim, m.head_dim, 1)?;
            }
            LayerConfig::Attention(a) => {
                let of = (a.num_heads, a.num_kv_heads);
                a.num_heads = part("num_attention_heads", self.num_attention_heads, of.0, of.1)?;
            }
            LayerConfig::Mlp(m) => {
                let of = m.intermediate_size;
                m.intermediate_size = part("intermediate_size", self.intermediate_size, of, 1)?;
            }
        }
        Ok(layer)
    }

    /// Kept layers of one kind.
    #[must_use]
    pub fn count(&self, teacher: &Config, kind: LayerKind) -> usize {
        self.layers.iter().filter(|&&layer| teacher.layers[layer].kind() == kind).count()
    }
}

/// `found`, if it is between 1 and `whole` and a multiple of `unit`.
fn part(axis: &'static str, found: usize, whole: usize, unit: usize) -> Result<usize, TargetError> {
    if (1..=whole).contains(&found) && found.is_multiple_of(unit) {
        return Ok(found);
    }
    let expected = match unit {
        1 => format!("1 to the teacher's {whole}"),
        _ => format!("a multiple of {unit}, at most the teacher's {whole}"),
    };
    Err(TargetError::Width { axis, expected, found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybra_model::memory::ParameterCount;
    use hybra_model::presets::preset;

    /// The 12B's layers without those that the published 9B lacks, in kind and number.
    fn depth_56(teacher: &Config) -> Vec<usize> {
        let mut surplus = [(LayerKind::Mamba2, 1), (LayerKind::Attention, 2), (LayerKind::Mlp, 3)];
        let mut layers: Vec<usize> = (0..teacher.layers.len()).collect();
        layers.retain(|&layer| {
            let kind = teacher.layers[layer].kind();
            let left = surplus.iter_mut().find(|(of, _)| *of == kind).expect("three kinds");
            let goes = left.1 > 0;
            left.1 -= usize::from(goes);
            !goes
        });
        layers
    }

    #[test]
    fn the_published_shapes_have_their_parameters() {
        let teacher = preset("nano2-12b").unwrap();
        let full = Target::full(&teacher);
        assert_eq!(full.config(&teacher).unwrap(), teacher);
        let depth = Target { layers: depth_56(&teacher), ..full };
        let cases = [
            (5120, 20480, 128, 11_386_496_128),
            (4480, 17920, 112, 8_923_356_912),
            (4480, 15680, 128, 8_888_227_328),
            (4800, 14400, 120, 8_965_788_600),
        ];
        for (hidden_size, intermediate_size, mamba_num_heads, parameters) in cases {
            let target =
                Target { hidden_size, intermediate_size, mamba_num_heads, ..depth.clone() };
            let config = target.config(&teacher).unwrap();
            assert_eq!(ParameterCount::of(&config).total, parameters);
        }
    }

    #[test]
    fn a_width_that_no_slice_has_is_refused() {
        let teacher = preset("nano2-12b").unwrap();
        let full = Target::full(&teacher);
        let refused = |target: Target| target.config(&teacher).unwrap_err().to_string();
        let message = refused(Target { mamba_num_heads: 124, ..full.clone() });
        assert!(message.contains("multiple of 8") && message.contains("124"), "{message}");
        assert!(refused(Target { hidden_size: 5121, ..full.clone() }).contains("5120"));
        assert!(refused(Target { intermediate_size: 0, ..full.clone() }).contains("found 0"));
        for layers in [vec![], vec![1, 1], vec![2, 1], vec![62]] {
            assert!(refused(Target { layers, ..full.clone() }).contains("ascending"));
        }
    }
}

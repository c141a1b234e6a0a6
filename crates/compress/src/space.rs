//! The shapes that a search may choose from, and the memory that they must fit.
//!
//! A [`Space`] lists values for each axis; an axis that it does not name stays the teacher's. The
//! memory of a shape is exact: weights in any format, KV cache, f32 state and the workspace of a
//! forward call ([`hybra_model::memory`]), at a context and a batch.

use crate::depth::{DepthError, kept_layers};
use crate::target::{Target, TargetError};
use hybra_model::Config;
use hybra_model::layer::LayerKind;
use hybra_model::memory::{MemoryModel, MemoryPlan, MemorySettings};
use serde::{Deserialize, Serialize};

/// Values of an axis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Axis {
    /// These.
    List(Vec<usize>),
    /// From, in steps, up to and including to.
    Range {
        /// First value.
        from: usize,
        /// Most.
        to: usize,
        /// Distance of values, at least 1.
        step: usize,
    },
}

impl Axis {
    /// All values, ascending, each once.
    #[must_use]
    pub fn values(&self) -> Vec<usize> {
        let mut values = match self {
            Self::List(values) => values.clone(),
            &Self::Range { from, to, step } => (from..=to).step_by(step.max(1)).collect(),
        };
        values.sort_unstable();
        values.dedup();
        values
    }
}

/// `[space]` of a search file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Space {
    /// Layers that stay.
    pub num_layers: Option<Axis>,
    /// Attention layers that stay; by default as the order of removal says.
    pub attention_layers: Option<Axis>,
    /// h.
    pub hidden_size: Option<Axis>,
    /// f.
    pub intermediate_size: Option<Axis>,
    /// H.
    pub mamba_num_heads: Option<Axis>,
    /// P.
    pub mamba_head_dim: Option<Axis>,
    /// Layers in the order in which they go; by default the one of importance.
    pub layer_order: Option<Vec<usize>>,
}

/// Why a space has no shapes.
#[derive(Debug, thiserror::Error)]
pub enum SpaceError {
    /// An axis without a value, or a step of 0.
    #[error("[space]: `{axis}`: expected values, or from, to and a step above 0; found none")]
    Empty {
        /// The axis.
        axis: &'static str,
    },
    /// So many shapes that listing them makes no sense.
    #[error("[space]: expected at most {limit} shapes, found {found}; take larger steps")]
    TooLarge {
        /// Most.
        limit: usize,
        /// The product of the axes.
        found: usize,
    },
    /// A number of layers that the order does not reach.
    #[error("[space]: {0}")]
    Depth(DepthError),
    /// A shape that is no part of the teacher.
    #[error("[space]: {0}")]
    Target(TargetError),
}

impl From<DepthError> for SpaceError {
    fn from(error: DepthError) -> Self {
        Self::Depth(error)
    }
}

impl From<TargetError> for SpaceError {
    fn from(error: TargetError) -> Self {
        Self::Target(error)
    }
}

/// Most shapes of a space.
const MOST_SHAPES: usize = 1_000_000;

impl Space {
    /// Every shape, each once, in the order of the axes. `order` is the removal order of layers where
    /// the space names none.
    ///
    /// # Errors
    /// [`SpaceError`].
    pub fn targets(&self, teacher: &Config, order: &[usize]) -> Result<Vec<Target>, SpaceError> {
        let full = Target::full(teacher);
        let order = self.layer_order.as_deref().unwrap_or(order);
        let hidden = values("hidden_size", &self.hidden_size, full.hidden_size)?;
        let ffn = values("intermediate_size", &self.intermediate_size, full.intermediate_size)?;
        let heads = values("mamba_num_heads", &self.mamba_num_heads, full.mamba_num_heads)?;
        let dims = values("mamba_head_dim", &self.mamba_head_dim, full.mamba_head_dim)?;
        let depths = self.depths(teacher, order)?;
        let found = [hidden.len(), ffn.len(), heads.len(), dims.len()]
            .iter()
            .fold(depths.len(), |product, &len| product.saturating_mul(len));
        if found > MOST_SHAPES {
            return Err(SpaceError::TooLarge { limit: MOST_SHAPES, found });
        }
        let mut targets = Vec::with_capacity(found);
        for layers in &depths {
            for &hidden_size in &hidden {
                for &intermediate_size in &ffn {
                    for &mamba_num_heads in &heads {
                        for &mamba_head_dim in &dims {
                            let target = Target {
                                layers: layers.clone(),
                                hidden_size,
                                intermediate_size,
                                mamba_num_heads,
                                mamba_head_dim,
                                num_attention_heads: full.num_attention_heads,
                            };
                            target.config(teacher)?;
                            targets.push(target);
                        }
                    }
                }
            }
        }
        Ok(targets)
    }

    /// The sets of layers.
    fn depths(&self, teacher: &Config, order: &[usize]) -> Result<Vec<Vec<usize>>, SpaceError> {
        let counts = values("num_layers", &self.num_layers, teacher.layers.len())?;
        let attention: Vec<Option<usize>> = match &self.attention_layers {
            None => vec![None],
            Some(_) => {
                let own = teacher.count(LayerKind::Attention);
                let counts = values("attention_layers", &self.attention_layers, own)?;
                counts.into_iter().map(Some).collect()
            }
        };
        let mut depths = Vec::new();
        for &count in &counts {
            let kept = attention.iter().map(|&of| kept_layers(teacher, order, count, of));
            let (kept, out_of_reach): (Vec<_>, Vec<_>) = kept.partition(Result::is_ok);
            // Of a grid some corners may be out of reach, of a depth not all.
            if let (true, Some(Err(error))) = (kept.is_empty(), out_of_reach.into_iter().next()) {
                return Err(error.into());
            }
            for layers in kept.into_iter().flatten() {
                if !depths.contains(&layers) {
                    depths.push(layers);
                }
            }
        }
        Ok(depths)
    }
}

fn values(axis: &'static str, given: &Option<Axis>, own: usize) -> Result<Vec<usize>, SpaceError> {
    let Some(given) = given else { return Ok(vec![own]) };
    let values = given.values();
    let stands = matches!(given, Axis::Range { step: 0, .. });
    if values.is_empty() || stands { Err(SpaceError::Empty { axis }) } else { Ok(values) }
}

/// What a student may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Bytes in all.
    pub bytes: u64,
    /// Tokens per sequence.
    pub context: u64,
    /// Sequences.
    pub batch: u64,
    /// Formats, and the length of a prefill piece.
    pub settings: MemorySettings,
}

impl Budget {
    /// The memory of a model.
    #[must_use]
    pub fn plan(&self, config: &Config) -> MemoryPlan {
        MemoryModel::new(config, &self.settings).plan(self.context, self.batch)
    }

    /// The targets that fit, with their memory, in the order given.
    ///
    /// # Errors
    /// A target that is no part of the teacher.
    pub fn feasible(
        &self,
        teacher: &Config,
        targets: Vec<Target>,
    ) -> Result<Vec<(Target, MemoryPlan)>, TargetError> {
        let mut feasible = Vec::new();
        for target in targets {
            let plan = self.plan(&target.config(teacher)?);
            if plan.total <= self.bytes {
                feasible.push((target, plan));
            }
        }
        Ok(feasible)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybra_kernels::DType;
    use hybra_model::memory::{KvFormat, WeightFormat};
    use hybra_model::presets::preset;
    use proptest::prelude::*;

    const GIB: f64 = (1u64 << 30) as f64;

    fn budget(bytes: u64, context: u64) -> Budget {
        let settings = MemorySettings {
            weights: WeightFormat::stored(DType::Bf16),
            kv: KvFormat::Values(DType::Bf16),
            prefill_chunk: 0,
        };
        Budget { bytes, context, batch: 1, settings }
    }

    /// One Mamba, two attention and three MLP layers go first: 62 → 56 as published.
    fn published() -> Space {
        let teacher = preset("nano2-12b").unwrap();
        let of = |kind, count| {
            let layers = (0..teacher.layers.len()).rev();
            let mut layers: Vec<usize> =
                layers.filter(|&layer| teacher.layers[layer].kind() == kind).collect();
            layers.truncate(count);
            layers
        };
        let order = [of(LayerKind::Attention, 2), of(LayerKind::Mlp, 3), of(LayerKind::Mamba2, 1)];
        Space {
            num_layers: Some(Axis::List(vec![62, 56])),
            attention_layers: Some(Axis::List(vec![6, 4])),
            hidden_size: Some(Axis::Range { from: 4480, to: 5120, step: 320 }),
            intermediate_size: Some(Axis::List(vec![14400, 15680, 17920, 20480])),
            mamba_num_heads: Some(Axis::Range { from: 112, to: 128, step: 8 }),
            layer_order: Some(order.concat()),
            ..Space::default()
        }
    }

    #[test]
    fn the_published_candidates_fit_19_66_gib_and_the_teacher_does_not() {
        let teacher = preset("nano2-12b").unwrap();
        let mut space = published();
        space.num_layers = Some(Axis::List(vec![56]));
        space.attention_layers = Some(Axis::List(vec![4]));
        let targets = space.targets(&teacher, &[]).unwrap();
        assert_eq!(targets.len(), 3 * 4 * 3);
        let budget = budget((19.66 * GIB) as u64, 131_072);
        let feasible = budget.feasible(&teacher, targets).unwrap();
        let total = |shape: (usize, usize, usize)| {
            let is = |t: &Target| (t.hidden_size, t.intermediate_size, t.mamba_num_heads) == shape;
            feasible.iter().find(|(target, _)| is(target)).map(|(_, plan)| plan.total)
        };
        let published =
            [((4480, 17920, 112), 18.74), ((4480, 15680, 128), 18.69), ((4800, 14400, 120), 18.83)];
        for (shape, gib) in published {
            let bytes = total(shape).unwrap_or_else(|| panic!("{shape:?} is not feasible"));
            assert!((bytes as f64 / GIB - gib).abs() < 0.005, "{shape:?}: {bytes}");
        }
        assert_eq!(total((5120, 20480, 128)), None);
        assert!(budget.plan(&teacher).total > budget.bytes);
    }

    #[test]
    fn an_axis_without_values_and_layers_out_of_reach_are_errors() {
        let teacher = preset("nano2-12b").unwrap();
        let refused = |space: Space| space.targets(&teacher, &[]).unwrap_err().to_string();
        let empty = Axis::Range { from: 10, to: 5, step: 1 };
        assert!(refused(Space { hidden_size: Some(empty), ..published() }).contains("hidden_size"));
        let still = Axis::Range { from: 5, to: 10, step: 0 };
        assert!(refused(Space { mamba_head_dim: Some(still), ..published() }).contains("step"));
        let deep = Some(Axis::List(vec![40]));
        assert!(refused(Space { num_layers: deep, ..published() }).contains("cannot keep 40"));
        let corner = Some(Axis::List(vec![0, 6, 4]));
        let grid = Space { attention_layers: corner, ..published() };
        let same = |space: Space| space.targets(&teacher, &[]).unwrap().len();
        assert_eq!(same(grid), same(published()), "no attention layer at all is out of reach");
        let many = Some(Axis::Range { from: 1, to: 5000, step: 1 });
        let wide = Space { hidden_size: many.clone(), intermediate_size: many, ..published() };
        let space = Space { num_layers: None, attention_layers: None, ..wide };
        assert!(refused(space).contains("larger steps"));
    }

    proptest! {
        /// What is feasible fits, what is left out does not, and no shape comes twice.
        #[test]
        fn feasible_is_what_fits(gib in 0.5f64..40.0, context in 1u64..1_000_000) {
            let teacher = preset("nano2-12b").unwrap();
            let mut space = published();
            space.attention_layers = None;
            let targets = space.targets(&teacher, &[]).unwrap();
            let budget = budget((gib * GIB) as u64, context);
            let feasible = budget.feasible(&teacher, targets.clone()).unwrap();
            let distinct: std::collections::HashSet<_> = targets.iter().collect();
            prop_assert_eq!(distinct.len(), targets.len());
            for target in targets {
                let fits = budget.plan(&target.config(&teacher).unwrap()).total <= budget.bytes;
                prop_assert_eq!(fits, feasible.iter().any(|(of, _)| *of == target));
            }
        }
    }
}

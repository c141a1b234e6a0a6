//! A prune plan: which channels of which layers stay, as explicit index sets in readable JSON.
//!
//! Indices are the teacher's, from 0; their order is the student's, so a plan can also permute.
//! What keeps the meaning of the model is checked: a Mamba head stays in its group and a query head
//! with its kv head, since B, C, the gated norm's statistic and the kv cache are shared there.
//! Channels are chosen for each head on their own: only dt, A and D are shared by a head, so every
//! head may keep others, at the same tensor shapes.

use hybra_model::Config;
use hybra_model::layer::{AttentionConfig, LayerConfig, LayerKind, Mamba2Config, MlpConfig};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The first field of a plan's file.
pub const FORMAT: &str = "hybra prune plan 1";

/// What stays of a teacher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrunePlan {
    /// [`FORMAT`].
    pub format: String,
    /// BLAKE3 of the teacher's weights, if the plan was made for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// How it was chosen, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// Embedding channels.
    pub hidden: Vec<usize>,
    /// The layers that stay, in order.
    pub layers: Vec<LayerPlan>,
}

/// What stays of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "lowercase")]
pub enum LayerPlan {
    /// A Mamba-2 layer.
    Mamba {
        /// In the teacher.
        layer: usize,
        /// Heads, group by group, as many of each group.
        heads: Vec<usize>,
        /// For each kept head its channels, as many of each.
        channels: Vec<Vec<usize>>,
    },
    /// An attention layer.
    Attention {
        /// In the teacher.
        layer: usize,
        /// Query heads, kv head by kv head, as many of each.
        heads: Vec<usize>,
    },
    /// An MLP layer.
    Mlp {
        /// In the teacher.
        layer: usize,
        /// Units between the projections.
        neurons: Vec<usize>,
    },
}

/// Why a plan is refused.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The file cannot be read.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// It is no plan.
    #[error("{}: {cause}; expected a plan that `hybra prune` wrote", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and what.
        cause: serde_json::Error,
    },
    /// Another version.
    #[error("prune plan: `format`: expected {FORMAT:?}, found {found:?}")]
    Format {
        /// As it is.
        found: String,
    },
    /// It was made for other weights.
    #[error("prune plan: made for the teacher {expected}, but this one is {found}")]
    Teacher {
        /// BLAKE3 in the plan.
        expected: String,
        /// BLAKE3 of the checkpoint.
        found: String,
    },
    /// An index set that no student can have.
    #[error("prune plan: {place}: expected {expected}, found {found}")]
    Indices {
        /// Such as `layer 3, channels of head 5`.
        place: String,
        /// What would do.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A shape that no model can have.
    #[error(transparent)]
    Config(#[from] hybra_model::ConfigError),
}

impl LayerPlan {
    /// Its layer in the teacher.
    #[must_use]
    pub fn layer(&self) -> usize {
        match self {
            Self::Mamba { layer, .. } | Self::Attention { layer, .. } | Self::Mlp { layer, .. } => {
                *layer
            }
        }
    }

    fn kind(&self) -> LayerKind {
        match self {
            Self::Mamba { .. } => LayerKind::Mamba2,
            Self::Attention { .. } => LayerKind::Attention,
            Self::Mlp { .. } => LayerKind::Mlp,
        }
    }
}

impl PrunePlan {
    /// A plan that keeps everything.
    #[must_use]
    pub fn everything(teacher: &Config) -> Self {
        let all = |n: usize| (0..n).collect::<Vec<_>>();
        let layer = |(layer, config): (usize, &LayerConfig)| match config {
            LayerConfig::Mamba2(m) => {
                let channels = vec![all(m.head_dim); m.num_heads];
                LayerPlan::Mamba { layer, heads: all(m.num_heads), channels }
            }
            LayerConfig::Attention(a) => LayerPlan::Attention { layer, heads: all(a.num_heads) },
            LayerConfig::Mlp(m) => LayerPlan::Mlp { layer, neurons: all(m.intermediate_size) },
        };
        Self {
            format: FORMAT.to_owned(),
            teacher: None,
            method: "everything".to_owned(),
            hidden: all(teacher.hidden_size),
            layers: teacher.layers.iter().enumerate().map(layer).collect(),
        }
    }

    /// Reads a plan's file.
    ///
    /// # Errors
    /// [`PlanError`]. Whether it fits a teacher is for [`Self::student`] to say.
    pub fn read(path: &Path) -> Result<Self, PlanError> {
        let io = |cause| PlanError::Io { path: path.to_owned(), cause };
        let text = std::fs::read_to_string(path).map_err(io)?;
        let json = |cause| PlanError::Json { path: path.to_owned(), cause };
        let plan: Self = serde_json::from_str(&text).map_err(json)?;
        match plan.format == FORMAT {
            true => Ok(plan),
            false => Err(PlanError::Format { found: plan.format }),
        }
    }

    /// The text of the file: one line for the hidden channels and one for each layer.
    ///
    /// # Panics
    /// Never: numbers and strings have a form in JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut fields = vec![format!("  \"format\": {}", json(&self.format))];
        fields.extend(self.teacher.as_ref().map(|hash| format!("  \"teacher\": {}", json(hash))));
        if !self.method.is_empty() {
            fields.push(format!("  \"method\": {}", json(&self.method)));
        }
        fields.push(format!("  \"hidden\": {}", json(&self.hidden)));
        let layers: Vec<_> = self.layers.iter().map(|l| format!("    {}", json(l))).collect();
        fields.push(format!("  \"layers\": [\n{}\n  ]", layers.join(",\n")));
        format!("{{\n{}\n}}\n", fields.join(",\n"))
    }

    /// BLAKE3 of [`Self::to_json`], in hex.
    #[must_use]
    pub fn hash(&self) -> String {
        blake3::hash(self.to_json().as_bytes()).to_hex().to_string()
    }

    /// Refuses a plan that was made for other weights than those with this hash.
    ///
    /// # Errors
    /// [`PlanError::Teacher`].
    pub fn check_teacher(&self, hash: &str) -> Result<(), PlanError> {
        match &self.teacher {
            Some(teacher) if teacher != hash => {
                Err(PlanError::Teacher { expected: teacher.clone(), found: hash.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// The configuration of the student, after every index has been checked against the teacher's.
    ///
    /// # Errors
    /// [`PlanError::Indices`] or a shape that is none.
    pub fn student(&self, teacher: &Config) -> Result<Config, PlanError> {
        distinct("hidden", &self.hidden, teacher.hidden_size)?;
        let numbers: Vec<usize> = self.layers.iter().map(LayerPlan::layer).collect();
        if !numbers.is_sorted_by(|a, b| a < b) {
            return Err(wrong("layers", "ascending layers, each once", &numbers));
        }
        let layers = self.layers.iter().map(|plan| student_layer(plan, teacher));
        let layers = layers.collect::<Result<_, _>>()?;
        let config = Config { hidden_size: self.hidden.len(), layers, ..teacher.clone() };
        config.validate("the student of a prune plan")?;
        Ok(config)
    }
}

/// Numbers and strings have a form in JSON.
fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("numbers and strings have a form in JSON")
}

fn student_layer(plan: &LayerPlan, teacher: &Config) -> Result<LayerConfig, PlanError> {
    let at = plan.layer();
    let place = |what: &str| format!("layer {at}, {what}");
    let Some(config) = teacher.layers.get(at) else {
        let expected = format!("a layer below {}", teacher.layers.len());
        return Err(wrong("layers", &expected, &at));
    };
    match (plan, config) {
        (LayerPlan::Mamba { heads, channels, .. }, LayerConfig::Mamba2(m)) => {
            grouped(&place("heads"), heads, m.num_heads, m.n_groups, "group")?;
            if channels.len() != heads.len() {
                let expected = format!("channels of each of the {} heads", heads.len());
                return Err(wrong(&place("channels"), &expected, &channels.len()));
            }
            let head_dim = channels[0].len();
            for (head, kept) in heads.iter().zip(channels) {
                let place = place(&format!("channels of head {head}"));
                distinct(&place, kept, m.head_dim)?;
                if kept.len() != head_dim {
                    let expected = format!("{head_dim} channels, as of the first head");
                    return Err(wrong(&place, &expected, &kept.len()));
                }
            }
            Ok(LayerConfig::Mamba2(Mamba2Config { num_heads: heads.len(), head_dim, ..*m }))
        }
        (LayerPlan::Attention { heads, .. }, LayerConfig::Attention(a)) => {
            grouped(&place("heads"), heads, a.num_heads, a.num_kv_heads, "kv head")?;
            Ok(LayerConfig::Attention(AttentionConfig { num_heads: heads.len(), ..*a }))
        }
        (LayerPlan::Mlp { neurons, .. }, LayerConfig::Mlp(m)) => {
            distinct(&place("neurons"), neurons, m.intermediate_size)?;
            Ok(LayerConfig::Mlp(MlpConfig { intermediate_size: neurons.len() }))
        }
        (plan, config) => {
            let expected = format!("{}, as in the teacher", config.kind().word());
            Err(wrong(&place("kind"), &expected, &plan.kind().word()))
        }
    }
}

/// Refuses indices that are out of range or come twice, and an empty set.
fn distinct(place: &str, kept: &[usize], whole: usize) -> Result<(), PlanError> {
    let mut seen = vec![false; whole];
    for &index in kept {
        match seen.get_mut(index) {
            None => return Err(wrong(place, &format!("indices below {whole}"), &index)),
            Some(true) => return Err(wrong(place, "each index once", &index)),
            Some(seen) => *seen = true,
        }
    }
    if kept.is_empty() { Err(wrong(place, "at least one index", &"none")) } else { Ok(()) }
}

/// [`distinct`], and that the k-th of `groups` equal parts of the list comes from group k.
fn grouped(
    place: &str,
    heads: &[usize],
    whole: usize,
    groups: usize,
    word: &str,
) -> Result<(), PlanError> {
    distinct(place, heads, whole)?;
    if !heads.len().is_multiple_of(groups) {
        let expected = format!("as many heads of each of the {groups} {word}s");
        return Err(wrong(place, &expected, &format!("{} heads", heads.len())));
    }
    let (kept, old) = (heads.len() / groups, whole / groups);
    for (at, head) in heads.iter().enumerate() {
        let group = at / kept;
        if head / old != group {
            let (from, to) = (group * old, (group + 1) * old - 1);
            let expected = format!("heads {from} to {to} at place {at}: {word} {group}");
            return Err(wrong(place, &expected, &format!("head {head} of another {word}")));
        }
    }
    Ok(())
}

fn wrong(place: &str, expected: &str, found: &dyn std::fmt::Debug) -> PlanError {
    let found = format!("{found:?}").trim_matches('"').to_owned();
    PlanError::Indices { place: place.to_owned(), expected: expected.to_owned(), found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybra_model::presets::preset;

    #[test]
    fn a_plan_reads_back_and_keeps_the_teachers_shape() {
        let teacher = preset("micro").unwrap();
        let plan = PrunePlan::everything(&teacher);
        assert_eq!(plan.student(&teacher).unwrap(), teacher);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.json");
        std::fs::write(&path, plan.to_json()).unwrap();
        assert_eq!(PrunePlan::read(&path).unwrap(), plan);
        assert_eq!(plan.to_json().lines().count(), 6 + teacher.layers.len() + 1);
        std::fs::write(&path, plan.to_json().replace("plan 1", "plan 9")).unwrap();
        assert!(PrunePlan::read(&path).unwrap_err().to_string().contains("plan 9"));
    }

    #[test]
    fn what_would_change_the_meaning_is_refused() {
        let teacher = preset("micro").unwrap();
        let refused = |change: &dyn Fn(&mut PrunePlan)| {
            let mut plan = PrunePlan::everything(&teacher);
            change(&mut plan);
            plan.student(&teacher).unwrap_err().to_string()
        };
        let mamba = |plan: &mut PrunePlan,
                     change: &dyn Fn(&mut Vec<usize>, &mut Vec<Vec<usize>>)| {
            for layer in &mut plan.layers {
                if let LayerPlan::Mamba { heads, channels, .. } = layer {
                    return change(heads, channels);
                }
            }
        };
        let last = teacher.mamba_layers().next().unwrap().num_heads - 1;
        let crossed = refused(&|plan| mamba(plan, &|heads, _| heads.swap(0, last)));
        assert!(crossed.contains("of another group") && crossed.contains("layer 0"), "{crossed}");
        let uneven = refused(&|plan| {
            mamba(plan, &|heads, channels| {
                heads.pop();
                channels.pop();
            })
        });
        assert!(uneven.contains("as many heads of each"), "{uneven}");
        let ragged = refused(&|plan| mamba(plan, &|_, channels| channels[1].truncate(1)));
        assert!(ragged.contains("channels of head 1"), "{ragged}");
        let twice = refused(&|plan| plan.hidden[1] = 0);
        assert!(twice.contains("hidden") && twice.contains("each index once"), "{twice}");
        assert!(refused(&|plan| plan.hidden[0] = 1 << 20).contains("below"));
        assert!(refused(&|plan| plan.hidden.clear()).contains("at least one"));
        assert!(refused(&|plan| plan.layers.swap(0, 1)).contains("ascending"));
        let kind = refused(&|plan| plan.layers[0] = LayerPlan::Mlp { layer: 0, neurons: vec![0] });
        assert!(kind.contains("expected mamba") && kind.contains("found mlp"), "{kind}");
    }
}

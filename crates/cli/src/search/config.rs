//! The file of a search, and what it asks for in numbers.

use crate::size::parse_bytes;
use anyhow::{Context, Result, bail};
use hybra_compress::halving::Rung;
use hybra_compress::select::Channels;
use hybra_compress::space::{Budget, Space};
use hybra_compress::{Floors, scores::Method};
use hybra_kernels::DType;
use hybra_model::Config;
use hybra_model::memory::{KvFormat, MemoryModel, MemorySettings, WeightFormat};
use serde::{Deserialize, Serialize};
use std::path::Path;
use toml::Table;

/// A search.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SearchConfig {
    /// Of random weights, random scores and the order of the data.
    #[serde(default)]
    pub(crate) seed: u64,
    pub(crate) space: Space,
    pub(crate) budget: BudgetConfig,
    #[serde(default)]
    pub(crate) importance: ImportanceConfig,
    #[serde(default)]
    pub(crate) select: SelectConfig,
    #[serde(default)]
    pub(crate) rungs: Vec<Rung>,
    /// What becomes of the winner.
    #[serde(default, rename = "final", skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<FinalConfig>,
    /// As in a run file of `hybra train`.
    #[serde(default)]
    pub(crate) eval: Table,
    /// A run file of `hybra train distil` without steps, model and `distil.teacher`.
    #[serde(default)]
    pub(crate) train: Table,
}

/// What the student may take.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BudgetConfig {
    /// Bytes such as `19.66GiB`, or a share of the teacher's such as `72%`.
    pub(crate) memory: String,
    /// Tokens per sequence.
    pub(crate) context: u64,
    #[serde(default = "one")]
    pub(crate) batch: u64,
    /// Format of the weights.
    #[serde(default = "bf16")]
    pub(crate) weights: String,
    /// Most tokens of a forward call; 0 leaves the workspace out.
    #[serde(default)]
    pub(crate) prefill_chunk: usize,
}

fn one() -> u64 {
    1
}

fn bf16() -> String {
    "bf16".to_owned()
}

impl BudgetConfig {
    /// In bytes.
    pub(crate) fn budget(&self, teacher: &Config) -> Result<Budget> {
        let named = |dtype: &DType| dtype.name().eq_ignore_ascii_case(&self.weights);
        let Some(weights) = DType::ALL.into_iter().find(named) else {
            bail!(
                "[budget]: `weights`: expected a type such as bf16 or q4_0, found {}",
                self.weights
            );
        };
        let settings = MemorySettings {
            weights: WeightFormat::stored(weights),
            kv: KvFormat::Values(DType::Bf16),
            prefill_chunk: self.prefill_chunk,
        };
        let bytes = match self.memory.strip_suffix('%') {
            None => {
                parse_bytes(&self.memory).map_err(anyhow::Error::msg).context("[budget]: memory")?
            }
            Some(share) => {
                let share: f64 =
                    share.trim().parse().context("[budget]: memory: a share such as 72%")?;
                let whole = MemoryModel::new(teacher, &settings).plan(self.context, self.batch);
                (share / 100.0 * whole.total as f64).floor() as u64
            }
        };
        let (context, batch) = (self.context, self.batch);
        Ok(Budget { bytes, context, batch, settings })
    }
}

/// How importance is measured; the documents are those of `[train.data]`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ImportanceConfig {
    /// Samples.
    pub(crate) samples: u64,
    /// Other samples, on which students are compared with the teacher.
    pub(crate) held_out: u64,
    /// Documents that the order of layers is measured on.
    pub(crate) depth_documents: usize,
    pub(crate) floors: Floors,
}

impl Default for ImportanceConfig {
    fn default() -> Self {
        Self { samples: 256, held_out: 128, depth_documents: 32, floors: Floors::default() }
    }
}

/// How channels are chosen and repaired.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SelectConfig {
    pub(crate) scores: Method,
    pub(crate) channels: Channels,
    /// Rescale norms.
    pub(crate) norms: bool,
    /// λ of the least squares; 0 leaves them out.
    pub(crate) ridge: f64,
}

impl Default for SelectConfig {
    fn default() -> Self {
        let (scores, channels) = (Method::default(), Channels::default());
        Self { scores, channels, norms: true, ridge: 1e-3 }
    }
}

/// The winner's training, and what it is compared with.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FinalConfig {
    /// Steps of distillation.
    pub(crate) steps: u64,
    /// A run each.
    #[serde(default = "first")]
    pub(crate) seeds: Vec<u64>,
    /// Examples of each task.
    #[serde(default = "count")]
    pub(crate) count: u64,
    /// Other students of the same shape, trained alike.
    #[serde(default)]
    pub(crate) controls: Vec<Arm>,
}

fn first() -> Vec<u64> {
    vec![0]
}

fn count() -> u64 {
    500
}

/// Where the student of a final run comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Arm {
    /// The search.
    Found,
    /// Random channels of the teacher, as they are.
    Random,
    /// Random weights.
    Scratch,
}

impl Arm {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Random => "random",
            Self::Scratch => "scratch",
        }
    }
}

impl SearchConfig {
    /// Reads a file; errors name file and key.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
        let config: Self = toml::from_str(&text).with_context(|| name.clone())?;
        for (at, rung) in config.rungs.iter().enumerate() {
            if rung.candidates == 0 || rung.steps == 0 {
                bail!("{name}: `rungs.{at}`: expected candidates and steps above 0");
            }
        }
        for key in ["steps", "model", "eval"] {
            if config.train.contains_key(key) {
                bail!("{name}: `train.{key}`: is set by the search; remove it");
            }
        }
        if !(config.select.ridge >= 0.0 && config.select.ridge.is_finite()) {
            bail!("{name}: `select.ridge`: expected 0 or more, found {}", config.select.ridge);
        }
        Ok(config)
    }

    /// The text with every default.
    pub(crate) fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }
}

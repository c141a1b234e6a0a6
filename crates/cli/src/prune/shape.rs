//! The shape of a student on the command line, and the plan that it becomes.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use hybra_compress::depth::kept_layers;
use hybra_compress::prune::Teacher;
use hybra_compress::scores::{Method, Scores, scores};
use hybra_compress::select::{Channels, select};
use hybra_compress::store::Importance;
use hybra_compress::{PrunePlan, Target};
use hybra_model::Config;
use serde::Deserialize;

/// What stays; what is not given stays whole. On the command line, and a table of SIZES.toml.
#[derive(clap::Args, Clone, Default, Deserialize)]
#[group(multiple = true)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Widths {
    /// Layers that stay; the others go in the order of IMP
    #[arg(long, value_name = "N", conflicts_with = "layers")]
    num_layers: Option<usize>,
    /// Attention layers that stay [default: as the order says]
    #[arg(long, value_name = "N", requires = "num_layers")]
    attention_layers: Option<usize>,
    /// The layers that stay, from 0: 0,1,3
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    layers: Option<Vec<usize>>,
    /// Embedding channels
    #[arg(long, value_name = "N")]
    hidden_size: Option<usize>,
    /// MLP units
    #[arg(long, value_name = "N")]
    intermediate_size: Option<usize>,
    /// Mamba heads, a multiple of the groups
    #[arg(long, value_name = "N")]
    mamba_num_heads: Option<usize>,
    /// Channels of a Mamba head
    #[arg(long, value_name = "N")]
    mamba_head_dim: Option<usize>,
    /// Query heads, a multiple of the kv heads
    #[arg(long, value_name = "N")]
    num_attention_heads: Option<usize>,
}

/// The shape of the student, and how its channels are chosen.
#[derive(clap::Args)]
#[group(multiple = true)]
#[command(next_help_heading = "Shape")]
pub(super) struct ShapeArgs {
    #[command(flatten)]
    widths: Widths,
    /// What channels are worth [default: energy; random without IMP]
    #[arg(long, value_enum)]
    scores: Option<ScoresArg>,
    /// Of random scores [default: 0]
    #[arg(long)]
    score_seed: Option<u64>,
    /// Whether every Mamba head keeps its own channels [default: per-head]
    #[arg(long, value_enum)]
    channels: Option<ChannelsArg>,
}

/// What channels are worth.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScoresArg {
    /// Energy of the outputs that read the channel
    Energy,
    /// The published activation scores
    ActL2,
    /// The control
    Random,
}

/// Which channels of Mamba heads stay.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ChannelsArg {
    /// Every head its own
    PerHead,
    /// All heads the same
    Shared,
}

impl ShapeArgs {
    /// The plan for this shape.
    pub(super) fn plan(
        &self,
        teacher: &Teacher,
        hash: &str,
        importance: Option<&Importance>,
    ) -> Result<PrunePlan> {
        let (method, scores) = self.scores(teacher, importance)?;
        let channels = match self.channels {
            Some(ChannelsArg::Shared) => Channels::Shared,
            _ => Channels::PerHead,
        };
        let target = self.widths.target(&teacher.config, importance)?;
        let mut plan = select(&teacher.config, &target, &scores, channels)?;
        plan.teacher = Some(hash.to_owned());
        plan.method = format!("{method}, channels {channels}");
        Ok(plan)
    }

    /// What the teacher's channels are worth.
    pub(super) fn scores(
        &self,
        teacher: &Teacher,
        importance: Option<&Importance>,
    ) -> Result<(Method, Scores)> {
        let method = match (self.scores, importance) {
            (Some(ScoresArg::Random), _) => Method::Random(self.score_seed.unwrap_or(0)),
            (Some(ScoresArg::ActL2), _) => Method::ActL2,
            (Some(ScoresArg::Energy), _) | (None, Some(_)) => Method::Energy,
            (None, None) => bail!(
                "a shape needs --importance IMP (see `hybra importance`), or --scores random; \
                 a finished plan is read with --plan"
            ),
        };
        let moments = importance.map(|importance| &importance.moments);
        Ok((method, scores(method, teacher, moments).context("--scores")?))
    }
}

impl Widths {
    /// The student of this teacher.
    pub(super) fn target(
        &self,
        teacher: &Config,
        importance: Option<&Importance>,
    ) -> Result<Target> {
        let full = Target::full(teacher);
        let layers = match (&self.layers, self.num_layers) {
            (Some(layers), _) => layers.clone(),
            (None, None) => full.layers,
            (None, Some(num_layers)) => {
                let Some(importance) = importance else {
                    bail!("--num-layers needs the order of --importance IMP; or name --layers");
                };
                let order: Vec<usize> =
                    importance.summary.removals.iter().map(|removal| removal.layer).collect();
                kept_layers(teacher, &order, num_layers, self.attention_layers)?
            }
        };
        Ok(Target {
            layers,
            hidden_size: self.hidden_size.unwrap_or(full.hidden_size),
            intermediate_size: self.intermediate_size.unwrap_or(full.intermediate_size),
            mamba_num_heads: self.mamba_num_heads.unwrap_or(full.mamba_num_heads),
            mamba_head_dim: self.mamba_head_dim.unwrap_or(full.mamba_head_dim),
            num_attention_heads: self.num_attention_heads.unwrap_or(full.num_attention_heads),
        })
    }
}

//! `hybra merge`: models of one shape and one ancestry become one.

mod sweep;

use crate::cpu::CpuArgs;
use crate::lineage;
use crate::progress::Progress;
use crate::prune::kept_files;
use crate::source::{self, Source};
use anyhow::{Result, bail};
use clap::ValueEnum;
use hybra_compress::merge::{Merge, Models, common_ancestors};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Merge models that descend from the same weights
///
/// Linear: a weighted mean. Slerp: along the arc between two models, matrix by matrix. Task
/// arithmetic: a base and scaled differences from it. Models whose lineage.json names no common
/// ancestor are refused: their weights do not mean the same.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra merge sft rlhf -o merged --alpha 0.5
  hybra merge a b c -o merged --weights 0.2,0.3,0.5
  hybra merge math code -o both --method task-arithmetic --base base --scales 0.8,0.8
  hybra merge sft rlhf -o best --method slerp --sweep 0,0.25,0.5,0.75,1 --task chainbox,tools

A sweep answers held-out examples with every alpha, and writes the one with the most right answers
of those that no other beats in both answers and tokens.")]
pub(crate) struct Args {
    /// The models, Hugging Face directories of one shape; config and tokenizer are the first's
    #[arg(value_name = "MODEL", required = true, num_args = 1..)]
    models: Vec<String>,
    /// The directory to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// How
    #[arg(long, value_enum, default_value = "linear")]
    method: Method,
    /// Share of the second of two models [default: 0.5]
    #[arg(long, value_name = "A", conflicts_with = "weights")]
    alpha: Option<f64>,
    /// Of linear: a weight for each model; they sum to 1
    #[arg(long, value_name = "W,..", value_delimiter = ',')]
    weights: Option<Vec<f64>>,
    /// Of task arithmetic: what the models were made from
    #[arg(long, value_name = "BASE")]
    base: Option<String>,
    /// Of task arithmetic: a scale for each model [default: 1 each]
    #[arg(long, value_name = "S,..", value_delimiter = ',')]
    scales: Option<Vec<f64>>,
    /// Merge although the lineages name no common ancestor
    #[arg(long)]
    allow_unrelated: bool,
    #[command(flatten)]
    sweep: sweep::SweepArgs,
    /// Replace OUT if it exists
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cpu: CpuArgs,
}

/// How models are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    /// A weighted mean
    Linear,
    /// Along the arc between two
    Slerp,
    /// A base and scaled differences
    TaskArithmetic,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    if !args.force && args.output.exists() {
        bail!("{}: already exists; --force replaces it", args.output.display());
    }
    let open = |name: &String| source::resolve(Some(name));
    let sources = args.models.iter().map(open).collect::<Result<Vec<_>>>()?;
    let base = args.base.as_ref().map(open).transpose()?;
    let all: Vec<&Source> = sources.iter().chain(&base).collect();
    check_tokenizers(&all)?;
    let ancestry = check_ancestry(&all, args.allow_unrelated)?;
    let checkpoints: Vec<_> = sources.iter().map(|source| &source.checkpoint).collect();
    let models = Models::new(&checkpoints, base.as_ref().map(|source| &source.checkpoint))?;
    let job = Job { args: &args, source: &sources[0], models, ancestry };
    let (merge, swept) = match args.sweep.alphas() {
        None => (job.merge_of(args.alpha)?, None),
        Some(alphas) => {
            let (alpha, swept) = sweep::sweep(&job, alphas)?;
            (job.merge_of(Some(alpha))?, Some(swept))
        }
    };
    job.write(&merge, &args.output, swept.as_ref())?;
    if args.json {
        let object = json!({
            "output": args.output.display().to_string(), "merge": merge, "sweep": swept,
        });
        println!("{object:#}");
    } else {
        println!("{}", args.output.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Models, and what becomes of them.
struct Job<'a> {
    args: &'a Args,
    /// The first model.
    source: &'a Source,
    models: Models<'a>,
    /// Hashes that the result descends from.
    ancestry: Vec<String>,
}

impl Job<'_> {
    /// The merge that the options describe, with this share of the second model.
    fn merge_of(&self, alpha: Option<f64>) -> Result<Merge> {
        let (args, count) = (self.args, self.args.models.len());
        let foreign = |option: &str| bail!("--{option} has no meaning for {:?}", args.method);
        let pair = |alpha: f64| match count {
            2 => Ok(vec![1.0 - alpha, alpha]),
            _ => bail!("--alpha is for two models, found {count}; give --weights"),
        };
        if args.method == Method::TaskArithmetic && args.alpha.is_some() {
            bail!("--alpha has no meaning for {:?}; give --scales", args.method);
        }
        if args.method != Method::TaskArithmetic && (args.base.is_some() || args.scales.is_some()) {
            return foreign(if args.base.is_some() { "base" } else { "scales" });
        }
        if args.method != Method::Linear && args.weights.is_some() {
            return foreign("weights");
        }
        let merge = match args.method {
            Method::Linear => match &args.weights {
                Some(weights) => Merge::Linear { weights: weights.clone() },
                None => Merge::Linear { weights: pair(alpha.unwrap_or(0.5))? },
            },
            Method::Slerp => Merge::Slerp { alpha: alpha.unwrap_or(0.5) },
            Method::TaskArithmetic => {
                if args.base.is_none() {
                    bail!("task arithmetic needs --base BASE, which the models were made from");
                }
                let scales = match (alpha, &args.scales) {
                    (Some(scale), _) => vec![scale; count],
                    (None, Some(scales)) => scales.clone(),
                    (None, None) => vec![1.0; count],
                };
                Merge::TaskArithmetic { scales }
            }
        };
        merge.check(count)?;
        Ok(merge)
    }

    /// Writes the merged model.
    fn write(&self, merge: &Merge, out: &Path, swept: Option<&sweep::Swept>) -> Result<()> {
        let metrics = json!({ "merge": merge, "allow_unrelated": self.args.allow_unrelated });
        let mut files = vec![("lineage.json", lineage::text(&self.ancestry, "merge", metrics))];
        let config = self.source.checkpoint.read_text("config.json")?;
        files.extend(config.map(|text| ("config.json", text)));
        files.extend(kept_files(self.source)?);
        if let Some(swept) = swept {
            files.push(("sweep.json", serde_json::to_string_pretty(swept)? + "\n"));
            files.push(("sweep.html", swept.html()));
        }
        let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
        let mut bar: Option<Progress> = None;
        let mut progress = |done, total| {
            bar.get_or_insert_with(|| Progress::pieces("tensors", total as u64)).set(done as u64);
        };
        let overwrite = self.args.force;
        Ok(self.models.merge(merge, out, &files, overwrite, &mut progress)?)
    }
}

/// Refuses models that read and write other tokens than the first.
fn check_tokenizers(sources: &[&Source]) -> Result<()> {
    let text = |source: &Source| source.checkpoint.read_text("tokenizer.json");
    let first = text(sources[0])?;
    for source in &sources[1..] {
        if text(source)? != first {
            bail!("{}: tokenizer.json is not that of {}", source.name, sources[0].name);
        }
    }
    Ok(())
}

/// Hashes of all ancestors, after it is sure that there is a common one.
fn check_ancestry(sources: &[&Source], allow_unrelated: bool) -> Result<Vec<String>> {
    let ancestry = |source: &&Source| lineage::ancestry(&source.checkpoint);
    let all = sources.iter().map(ancestry).collect::<Result<Vec<_>>>()?;
    for (source, other) in sources.iter().zip(&all).skip(1) {
        if !allow_unrelated && common_ancestors(&all[0], other).is_empty() {
            let short = |list: &[String]| {
                let short: Vec<_> = list.iter().map(|hash| &hash[..hash.len().min(12)]).collect();
                short.join(" ← ")
            };
            bail!(
                "{} and {} have no common ancestor: {}; {}. Merge models that were trained from the \
                 same checkpoint, or say --allow-unrelated",
                sources[0].name,
                source.name,
                short(&all[0]),
                short(other)
            );
        }
    }
    let mut ancestors: Vec<String> = Vec::new();
    for hash in all.into_iter().flatten() {
        if !ancestors.contains(&hash) {
            ancestors.push(hash);
        }
    }
    Ok(ancestors)
}

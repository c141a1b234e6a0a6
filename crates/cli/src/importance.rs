//! `hybra importance`: one pass over calibration data, and the order in which layers go.

use crate::calibration::CalibrationArgs;
use crate::cpu::{Arithmetic, CpuArgs, LoadOptions};
use crate::progress::Progress;
use crate::source;
use anyhow::{Result, bail};
use clap::ValueEnum;
use hybra_compress::depth::{cosine_order, iterative_order};
use hybra_compress::store::Importance;
use hybra_compress::{Floors, Moments, Removal};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measure what layers and channels of a model are worth
///
/// OUT gets sums over calibration documents, from which `hybra prune` makes scores without another
/// pass, and the order in which layers go: each round removes the layer without which the logits
/// change least, and measures the rest again.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra importance -o imp --task chainbox --task arithmetic        the model in this binary
  hybra importance teacher -o imp --config run.toml --gram         its own training blend
  hybra importance teacher -o imp --data chats.jsonl --samples 1024 --depth cosine

Next: `hybra prune teacher student --importance imp --num-layers 14 --hidden-size 112`.")]
pub(crate) struct Args {
    /// The model [default: the one in this binary]
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    /// The directory to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Keep Gram matrices too: `hybra prune` needs them to repair projections by least squares.
    /// 8·w² bytes for each projection, w wide
    #[arg(long)]
    gram: bool,
    /// How the order of layers is found
    #[arg(long, value_enum, default_value = "iterative")]
    depth: Depth,
    /// Stop removing at this many layers [default: when floors forbid more]
    #[arg(long, value_name = "N", default_value_t = 1)]
    keep_layers: usize,
    /// Documents that the iterative order is measured on
    #[arg(long, value_name = "N", default_value_t = 32,
          value_parser = clap::value_parser!(u32).range(1..))]
    depth_documents: u32,
    /// Mamba layers that stay in any case
    #[arg(long, value_name = "N", default_value_t = 1)]
    floor_mamba: usize,
    /// Attention layers that stay in any case
    #[arg(long, value_name = "N", default_value_t = 1)]
    floor_attention: usize,
    /// MLP layers that stay in any case
    #[arg(long, value_name = "N", default_value_t = 1)]
    floor_mlp: usize,
    /// Replace OUT if it exists
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cpu: CpuArgs,
}

/// How the order of layers is found.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Depth {
    /// Remove the least, measure the rest again
    Iterative,
    /// One pass: 1 − mean cosine of a layer's input and output
    Cosine,
    /// Not at all
    None,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    if !args.force && args.output.exists() {
        bail!("{}: already exists; --force replaces it", args.output.display());
    }
    let source = source::resolve(args.model.as_deref())?;
    let cpu = args.cpu.cpu()?;
    let load = LoadOptions::on_cpu(Arithmetic::Exact);
    let model = source::load_model(&source, &cpu, load)?;
    let calibration = args.calibration.calibration()?;
    let documents = calibration.tokens(&source, model.config())?;
    let mut bar = Progress::pieces("documents", documents.len() as u64);
    let mut progress = |done| bar.set(done as u64);
    let moments = Moments::collect(&cpu, &model, &documents, args.gram, &mut progress)?;
    drop(bar);
    let floors =
        Floors { mamba: args.floor_mamba, attention: args.floor_attention, mlp: args.floor_mlp };
    let (depth, removals) = match args.depth {
        Depth::None => ("none", Vec::new()),
        Depth::Cosine => {
            let mut order = cosine_order(model.config(), &moments, floors);
            order.truncate(model.config().layers.len().saturating_sub(args.keep_layers));
            ("cosine", order)
        }
        Depth::Iterative => {
            let few = &documents[..documents.len().min(args.depth_documents as usize)];
            let going = model.config().layers.len().saturating_sub(args.keep_layers);
            let mut bar = Progress::pieces("layers", going as u64);
            let mut progress = |_: &Removal| bar.advance(1);
            let keep = args.keep_layers;
            let order = iterative_order(&cpu, &model, few, keep, floors, &mut progress)?;
            ("iterative", order)
        }
    };
    let hash = source.checkpoint.hash();
    let importance = Importance::new(hash, calibration.describe(), depth, (removals, moments));
    importance.write(&args.output, args.force)?;
    report(&args, &importance);
    Ok(ExitCode::SUCCESS)
}

fn report(args: &Args, importance: &Importance) {
    let (summary, path) = (&importance.summary, args.output.display());
    if args.json {
        let object = json!({ "output": path.to_string(), "importance": summary });
        println!("{object:#}");
        return;
    }
    println!(
        "{path}: {} documents, {} tokens ({})",
        summary.documents, summary.tokens, summary.data
    );
    if summary.removals.is_empty() {
        return;
    }
    let what = if summary.depth == "cosine" { "1 − cos" } else { "logit error" };
    println!("\nlayers in the order in which they go");
    println!("{:>6} {:>6} {:>5}  {what}", "left", "layer", "kind");
    let largest = summary.removals.iter().map(|r| r.error).fold(f64::MIN_POSITIVE, f64::max);
    for (at, removal) in summary.removals.iter().enumerate() {
        let left = importance.moments.layers.len() - at - 1;
        let bar = "█".repeat((24.0 * removal.error / largest).round() as usize);
        let Removal { layer, kind, error, .. } = removal;
        println!("{left:>6} {layer:>6} {kind:>5}  {error:<9.4} {bar}");
    }
}

//! `hybra verify`: compares the model's numbers with a reference file of another implementation.
//!
//! Exit status 0: everything within tolerance, all greedy tokens and all dequantized weights
//! equal; 1: not so, or an error.

mod case;
mod difference;
mod divergence;
mod gradients;
mod reference;
mod report;
mod weights;

use crate::cpu::{Arithmetic, LoadOptions, ModelArgs};
use crate::device;
use crate::options::KvDtypeArg;
use crate::source::{self, Source};
use anyhow::{Context, Result};
use case::{Compared, Runner};
use clap::ValueEnum;
use divergence::Divergence;
use hybra_checkpoint::Checkpoint;
use hybra_kernels::Cpu;
use hybra_model::NemotronH;
use reference::{Case, Reference};
use report::{ErrorLine, FirstLayer, GreedyLine, NotCompared, Report, TensorLine, WeightLine};
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Compare logits, hidden states and greedy tokens with a reference file
#[derive(clap::Args)]
#[command(after_help = "\
The reference is a safetensors file with, for B prompts of T tokens:
  input_ids         I64 [B, T]     the prompts
  logits            F32 [B, k, V]  of the last k tokens
  hidden.N          F32 [B, T, h]  residual stream after block N
  greedy            I64 [B, n]     most probable tokens after the prompts
  dequantized.NAME  F32            values of the checkpoint's tensor NAME
  loss, grad.NAME   F32            mean cross entropy and its gradients (--gradients)
Several prompts: 0.input_ids, 0.logits, 1.input_ids, ...

A tensor passes if ||found - expected|| / ||expected|| is within the tolerance;
greedy tokens and dequantized weights must be equal. With --arithmetic fast,
which rounds activations, no tolerance and no greedy tokens are demanded unless
--tolerance is given; the mean KL(expected || found) of the next-token
distributions decides. Exit status: 0 pass, 1 fail or error.

Examples:
  hybra verify ./model --reference reference.safetensors
  hybra verify model.gguf -r logits.safetensors --tolerance 1e-3 --json
  hybra verify ./model -r reference.safetensors --chunk 64
  hybra verify ./model -r reference.safetensors --arithmetic fast
  hybra verify ./model -r reference.safetensors --gradients
  HYBRA_ISA=avx2 hybra verify ./model -r reference.safetensors")]
pub(crate) struct Args {
    /// Directory, .gguf file or hub id [default: the model inside this binary]
    model: Option<String>,
    /// The reference file
    #[arg(short, long, value_name = "FILE")]
    reference: PathBuf,
    /// Largest relative error that passes [default: 2e-5; none for fast arithmetic]
    #[arg(long, value_name = "T", value_parser = tolerance)]
    tolerance: Option<f64>,
    /// Compare loss and gradients, too: each within 1e-4 of its size
    #[arg(long)]
    gradients: bool,
    /// Largest mean divergence of next-token distributions that passes, in nats
    #[arg(long, value_name = "D", default_value = "1e-3", value_parser = tolerance)]
    max_kl: f64,
    /// Feed prompts in pieces of N tokens, to compare that with one pass
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunk: Option<u32>,
    /// Number type of the key/value cache [default: f32; on a GPU the type it computes in]
    #[arg(long, value_enum)]
    kv_dtype: Option<KvDtypeArg>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cpu: ModelArgs,
}

/// Largest relative error of exact arithmetic.
const TOLERANCE: f64 = 2e-5;

fn tolerance(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|t| t.is_finite() && *t >= 0.0);
    value.ok_or_else(|| format!("expected a number such as 2e-5, found {text:?}"))
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let cpu = args.cpu.cpu()?;
    let source = source::resolve(args.cpu.sized(args.model.as_deref())?.as_deref())?;
    let load = args.cpu.load_options(Arithmetic::Exact);
    if args.gradients {
        load.device.must_be_cpu("--gradients")?;
    }
    let device = load.device.settled(device::keeps_kv(load.arithmetic, args.kv_dtype))?;
    let load = LoadOptions { device, ..load };
    let model = source::load_model(&source, &cpu, load)?;
    let file = Checkpoint::open(&args.reference).context("--reference")?;
    let reference = Reference::read(&file, model.config(), args.gradients)?;
    let report = compare(&args, &cpu, &source, &model, reference)?;
    // Not `println!`, which panics where the reader of a pipe has gone.
    match args.json {
        true => writeln!(stdout(), "{}", serde_json::to_string_pretty(&report)?)?,
        false => write!(stdout(), "{report}")?,
    }
    Ok(if report.pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn compare(
    args: &Args,
    cpu: &Cpu,
    source: &Source,
    model: &NemotronH,
    reference: Reference<'_>,
) -> Result<Report> {
    let started = Instant::now();
    let chunk = args.chunk.map(|n| n as usize);
    let arithmetic = args.cpu.load_options(Arithmetic::Exact).arithmetic;
    let kv_dtype = args.kv_dtype.unwrap_or(KvDtypeArg::F32);
    let kv_dtype = device::kv_dtype(model.gpu(), arithmetic, kv_dtype);
    let runner = Runner { cpu, model, kv_dtype: kv_dtype.into(), chunk };
    let exact = arithmetic == Arithmetic::Exact;
    let tolerance = args.tolerance.unwrap_or(if exact { TOLERANCE } else { f64::INFINITY });
    let (mut tensors, mut greedy) = (Vec::new(), Vec::new());
    let mut divergence = Divergence::default();
    for case in &reference.cases {
        let compared = runner.run(case)?;
        divergence.merge(&compared.divergence);
        lines(case, compared, tolerance, &mut tensors, &mut greedy);
    }
    let dequantized = reference.dequantized.iter().map(|(name, expected)| {
        let decoded = weights::compare(cpu, &source.checkpoint, name, *expected)?;
        Ok(WeightLine {
            name: name.clone(),
            dtype: source.checkpoint.require(name)?.dtype.name().to_owned(),
            shape: expected.shape.to_vec(),
            differing_values: decoded.differing,
            error: ErrorLine::new(&decoded.difference, expected.shape),
        })
    });
    let dequantized = dequantized.collect::<Result<Vec<_>>>()?;
    let gradients = match &reference.training {
        Some(training) => {
            gradients::compare(cpu, source, model.config(), &reference.cases, training)?
        }
        None => Vec::new(),
    };
    let not_compared = reference.not_compared.into_iter();
    let layers = &model.config().layers;
    let kv_dtype = kv_dtype.to_possible_value();
    let report = Report {
        model: source.name.clone(),
        reference: args.reference.display().to_string(),
        isa: device::processor(model.gpu(), cpu).to_owned(),
        threads: cpu.pool().threads(),
        kv_dtype: kv_dtype.map_or_else(String::new, |name| name.get_name().to_owned()),
        chunk,
        arithmetic: arithmetic.name(),
        tolerance: tolerance.is_finite().then_some(tolerance),
        greedy_must_agree: exact || args.tolerance.is_some(),
        max_kl: args.max_kl,
        mean_kl: divergence.mean(),
        worst_kl: divergence.mean().map(|_| divergence.max),
        pass: false,
        worst_relative_error: None,
        first_layer_beyond: FirstLayer::find(&tensors, |layer| layers[layer].kind()),
        tensors,
        gradients,
        greedy,
        dequantized,
        not_compared: not_compared.map(|(name, reason)| NotCompared { name, reason }).collect(),
        seconds: started.elapsed().as_secs_f64(),
    };
    Ok(report.conclude())
}

/// Adds the lines of one prompt.
fn lines(
    case: &Case<'_>,
    compared: Compared,
    tolerance: f64,
    tensors: &mut Vec<TensorLine>,
    greedy: &mut Vec<GreedyLine>,
) {
    let prefix = &case.prefix;
    let logits =
        compared.logits.iter().zip(case.logits).map(|(difference, tensor)| {
            (format!("{prefix}logits"), None, difference, tensor.shape)
        });
    let hidden = compared.hidden.iter().map(|(layer, difference)| {
        let shape = case.hidden[layer].shape;
        (format!("{prefix}hidden.{layer}"), Some(*layer), difference, shape)
    });
    tensors.extend(logits.chain(hidden).map(|(name, layer, difference, shape)| TensorLine {
        name,
        layer,
        shape: shape.to_vec(),
        error: ErrorLine::new(difference, shape),
        pass: difference.is_within(tolerance),
    }));
    let sequences = compared.greedy.into_iter().enumerate();
    greedy.extend(sequences.map(|(i, g)| GreedyLine::new(format!("{prefix}greedy"), i, g)));
}

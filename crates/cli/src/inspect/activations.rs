//! `hybra inspect --activations`: how many hidden units of the MLPs are nonzero on a prompt.
//!
//! The model reads the prompt once, in pieces, as one sequence.

use crate::cpu::{CpuArgs, LoadOptions};
use crate::progress::Progress;
use crate::size;
use crate::source::{self, Source};
use anyhow::{Result, bail};
use hybra_kernels::ops::attention::KvDtype;
use hybra_model::density::{DensityCounter, LayerDensity};
use hybra_model::{Activations, Batch, LogitsFor, NemotronH};
use serde::Serialize;
use std::process::ExitCode;

/// Options of `--activations`.
#[derive(clap::Args)]
#[command(next_help_heading = "Activations")]
pub(super) struct ActivationArgs {
    /// Run the model over a prompt and show, MLP by MLP, how many hidden units are nonzero
    #[arg(long, conflicts_with_all = ["memory_budget", "context", "batch", "dtype", "kv_dtype",
          "prefill_chunk"])]
    activations: bool,
    /// The prompt [default: a text inside this binary; random tokens without a tokenizer]
    #[arg(long, value_name = "TEXT", requires = "activations")]
    prompt: Option<String>,
    /// Read as many random tokens instead
    #[arg(long, value_name = "N", requires = "activations", conflicts_with = "prompt",
          value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    tokens: Option<u32>,
    #[command(flatten)]
    cpu: CpuArgs,
}

impl ActivationArgs {
    pub(super) fn asked(&self) -> bool {
        self.activations
    }
}

/// Read where nothing else is given: prose, numbers and code.
const TEXT: &str = "\
A train leaves the coast at 8:40 and climbs for 96 kilometres at an average of 64 kilometres an \
hour. A second train leaves the summit at 9:10 and comes down the same line at 80. Where do they \
meet, and when? First find how far the first train is when the second one starts: half an hour \
at 64 is 32 kilometres, so 64 kilometres lie between them. They approach at 64 + 80 = 144 \
kilometres an hour. 64 / 144 is 4/9 of an hour, or 26 minutes and 40 seconds.\n\n\
def meet(distance, up, down, delay):\n    gap = distance - up * delay\n    \
hours = gap / (up + down)\n    return up * (delay + hours), delay + hours\n\n\
The function returns about 60.4 kilometres and 0.94 hours, so the answer is 9:36 and 40 seconds.\n";

/// Random tokens where there is no tokenizer.
const RANDOM_TOKENS: usize = 256;
/// Tokens of a forward pass.
const PIECE: usize = 512;

/// The result.
#[derive(Serialize)]
struct Report {
    model: String,
    /// `prompt`, `built-in text` or `random tokens`.
    input: &'static str,
    tokens: usize,
    /// Nonzero units over all units of all layers and tokens.
    mean: Option<f64>,
    layers: Vec<LayerDensity>,
}

/// Runs the model and prints what was counted.
pub(super) fn run(args: &ActivationArgs, source: &Source, json: bool) -> Result<ExitCode> {
    let cpu = args.cpu.cpu()?;
    let model = source::load_model(source, &cpu, LoadOptions::default())?;
    if model.config().mlp_layers().next().is_none() {
        bail!("{}: the model has no MLP layers", source.name);
    }
    let (input, ids) = input(args, source, &model)?;
    let mut counter = DensityCounter::new(model.config());
    read(args, &model, &ids, &mut counter)?;
    let report = Report {
        model: source.name.clone(),
        input,
        tokens: ids.len(),
        mean: counter.mean(),
        layers: counter.layers(),
    };
    match json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print(&report),
    }
    Ok(ExitCode::SUCCESS)
}

fn input(
    args: &ActivationArgs,
    source: &Source,
    model: &NemotronH,
) -> Result<(&'static str, Vec<u32>)> {
    let random = |count: usize| {
        let vocab = model.config().vocab_size as u64;
        // Weyl's sequence of the golden ratio: spread over all ids, the same in every run.
        let id = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (1..=count as u64).map(|at| (id(at) % vocab) as u32).collect()
    };
    if let Some(count) = args.tokens {
        return Ok(("random tokens", random(count as usize)));
    }
    if args.prompt.is_none() && !source::has_tokenizer(source)? {
        return Ok(("random tokens", random(RANDOM_TOKENS)));
    }
    let name = if args.prompt.is_some() { "prompt" } else { "built-in text" };
    let loaded = source::load_tokenizer(source, model.config())?;
    let ids = loaded.tokenizer.encode(args.prompt.as_deref().unwrap_or(TEXT), true)?;
    if ids.is_empty() {
        bail!("the prompt has no tokens");
    }
    Ok((name, ids))
}

fn read(
    args: &ActivationArgs,
    model: &NemotronH,
    ids: &[u32],
    counter: &mut DensityCounter,
) -> Result<()> {
    let cpu = args.cpu.cpu()?;
    let mut state = model.new_state(KvDtype::Bf16);
    let mut activations = Activations::new();
    let mut bar = Progress::pieces("reading", ids.len() as u64);
    for piece in ids.chunks(PIECE) {
        let batch = Batch::single(piece, LogitsFor::None);
        model.forward(&cpu, &batch, &mut [&mut state], &mut activations, counter)?;
        bar.advance(piece.len() as u64);
    }
    Ok(())
}

fn print(report: &Report) {
    let Report { model, input, tokens, mean, layers } = report;
    println!("{model}: nonzero hidden units after the squared ReLU");
    println!("{} tokens, {input}\n", size::count(*tokens as u64));
    println!("{:<5} {:>6} {:>7} {:>7} {:>7}   {:^23}", "", "", "", "", "", "union of tokens");
    println!(
        "layer {:>6} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7}",
        "units", "mean", "min", "max", 4, 8, 16
    );
    for layer in layers {
        let shares = [layer.mean, layer.min, layer.max].map(|share| percent(Some(share)));
        let unions = layer.unions.iter().map(|union| percent(union.mean));
        let cells: Vec<String> = shares.into_iter().chain(unions).collect();
        let line =
            format!("{:>5} {:>6} {}  {}", layer.layer, layer.width, cells.join(" "), bar(layer));
        println!("{}", line.trim_end());
    }
    println!("\nmean of all layers {}", percent(*mean).trim_start());
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| format!("{:>7}", "–"), |share| format!("{:>5.1} %", 100.0 * share))
}

/// The mean as a bar, and lighter behind it up to the union of 16 tokens: 16 characters are 100 %.
fn bar(layer: &LayerDensity) -> String {
    const WIDTH: f64 = 16.0;
    let cells = |share: f64| (share * WIDTH).round() as usize;
    let solid = cells(layer.mean);
    let widest = layer.unions.iter().filter_map(|union| union.mean).next_back();
    let light = cells(widest.unwrap_or(layer.mean)).saturating_sub(solid);
    "█".repeat(solid) + &"░".repeat(light)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybra_model::density::Union;

    #[test]
    fn a_bar_shows_mean_and_union() {
        let union = |tokens, mean| Union { tokens, mean };
        let mut layer = LayerDensity {
            layer: 1,
            width: 100,
            tokens: 9,
            mean: 0.25,
            min: 0.0,
            max: 1.0,
            unions: vec![union(4, Some(0.4)), union(8, Some(0.5)), union(16, None)],
        };
        assert_eq!(bar(&layer), "████░░░░");
        layer.unions.clear();
        assert_eq!(bar(&layer), "████");
        assert_eq!([percent(Some(0.0512)), percent(None)], ["  5.1 %", "      –"]);
    }
}

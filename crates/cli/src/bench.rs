//! `hybra bench`: prefill and decode speed of a model, as shares of what this machine can do.
//!
//! The limits are measured in the same rounds as the model, because shared machines wander.

mod compare;
mod limits;
mod machine;
mod measure;
mod plan;
mod report;
mod rounds;
mod work;

use crate::cpu::{Arithmetic, LoadOptions, ModelArgs};
use crate::device;
use crate::options::StateArgs;
use crate::size;
use crate::source;
use anyhow::Result;
use clap::ValueEnum;
use compare::CompareArgs;
use hybra_kernels::ops::attention::KvDtype;
use hybra_model::StateDtypes;
use limits::Limits;
use machine::{Machine, peak_resident_bytes};
use plan::{Point, Spread};
use report::{Line, Report};
use rounds::Memory;
use std::io::{Write, stdout};
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use work::Work;

/// Measure prefill and decode speed, as a share of this machine's limits
#[derive(clap::Args)]
#[command(after_help = "\
Rows: `prefill N` reads a prompt of N tokens; `decode` generates for one sequence
from its start, `decode at D` behind D tokens (really read), `decode × B` for B
sequences at once. Every round measures each row and the machine's limits once;
medians and extremes of the rounds are printed.

Columns: `memory` is the bytes of weights, recurrent state and KV cache that the
tokens need, over the measured bandwidth; `f32` and `int8` are two operations per
weight, over the measured arithmetic (on a GPU `bf16`, of tensor cores). Weights
that a step leaves out, those of hidden units that are zero, count in both. Rows
that the time does not allow are skipped and named. Peak memory leaves out the
buffer that measures bandwidth.

--compare measures MODEL and OTHER over whole runs, integrated from samples, and
projects both to two GPUs; docs/bench.md tells how.

Examples:
  hybra bench
  hybra bench --quick
  hybra bench model.gguf --seconds 600 --depth 0,4096,16384
  hybra bench ./model --prefill 512 --batch 1,16 --json > record.json
  hybra bench --compare transformer-8b nano2-9b --memory-budget 22GiB
  hybra bench model.gguf --compare transformer --points 8k/16k
  hybra bench --compare transformer-8b --dtype bf16 --device cuda:0
  HYBRA_ISA=avx2 hybra bench --threads 1")]
pub(crate) struct Args {
    /// Directory, .gguf file or hub id; with --compare also a preset [default: the model inside
    /// this binary]
    #[arg(value_name = "MODEL|PRESET")]
    model: Option<String>,
    /// Lengths of prompts [default: 512,2048; with --quick 512]
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = tokens)]
    prefill: Option<Vec<usize>>,
    /// Tokens before the first generated one [default: 0,4096,16384; with --quick 0]
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = depth)]
    depth: Option<Vec<usize>>,
    /// Sequences generated at once [default: 1,4,8,16; with --quick 1,8]
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = batch)]
    batch: Option<Vec<usize>>,
    /// Tokens generated for each sequence [default: 32; with --compare 4]
    #[arg(long, value_name = "N", value_parser = tokens)]
    tokens: Option<usize>,
    /// Tokens of a prompt in one pass
    #[arg(long, value_name = "N", default_value = "512", value_parser = tokens)]
    chunk: usize,
    /// Most rounds [default: 5; with --quick 3]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: Option<u32>,
    /// Seconds to measure for, about [default: 60, with --quick 10; with --compare 900 and 60]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// Fewer rows, less time
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    state: StateArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    comparison: CompareArgs,
    #[command(flatten)]
    cpu: ModelArgs,
}

/// Most tokens of a prompt or a depth.
const MAX_TOKENS: u64 = 1 << 24;
/// Most sequences at once.
const MAX_BATCH: usize = 1024;

fn tokens(text: &str) -> Result<usize, String> {
    let tokens = size::parse_tokens(text)?;
    if tokens > MAX_TOKENS {
        return Err(format!("expected at most {MAX_TOKENS} tokens, found {tokens}"));
    }
    Ok(tokens as usize)
}

fn depth(text: &str) -> Result<usize, String> {
    if text.trim() == "0" { Ok(0) } else { tokens(text) }
}

fn batch(text: &str) -> Result<usize, String> {
    let batch = text.parse().ok().filter(|batch| (1..=MAX_BATCH).contains(batch));
    batch.ok_or_else(|| format!("expected 1 to {MAX_BATCH} sequences, found {text:?}"))
}

impl Args {
    fn points(&self) -> Vec<Point> {
        let list = |given: &Option<Vec<usize>>, full: &[usize], quick: &[usize]| {
            given.clone().unwrap_or_else(|| (if self.quick { quick } else { full }).to_vec())
        };
        plan::points(
            &list(&self.prefill, &[512, 2048], &[512]),
            &list(&self.depth, &[0, 4096, 16384], &[0]),
            &list(&self.batch, &[1, 4, 8, 16], &[1, 8]),
        )
    }

    fn tokens(&self) -> usize {
        self.tokens.unwrap_or(32)
    }

    fn rounds(&self) -> usize {
        self.repeat.unwrap_or(if self.quick { 3 } else { 5 }) as usize
    }

    fn load_options(&self) -> LoadOptions {
        self.cpu.load_options(Arithmetic::Fast)
    }

    fn seconds(&self) -> f64 {
        f64::from(self.seconds.unwrap_or(if self.quick { 10 } else { 60 }))
    }
}

/// The name of the type of keys and values.
fn kv_name(dtypes: StateDtypes) -> String {
    match dtypes.kv {
        KvDtype::F32 => "f32",
        KvDtype::Bf16 => "bf16",
        KvDtype::Q8 => "q8",
    }
    .to_owned()
}

/// The name of an option's value.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Seconds since 1970.
fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    if args.comparison.asked() {
        return compare::run(&args);
    }
    let cpu = args.cpu.cpu()?;
    let machine = Machine::detect();
    let started = Instant::now();
    let source = source::resolve(args.cpu.sized(args.model.as_deref())?.as_deref())?;
    let load = args.load_options();
    let device = load.device.settled(device::keeps_states(load.arithmetic, args.state))?;
    let model = source::load_model(&source, &cpu, LoadOptions { device, ..load })?;
    let load_seconds = started.elapsed().as_secs_f64();
    let mut limits = match model.gpu() {
        Some(gpu) => Limits::of_device(gpu)?,
        None => Limits::new(machine.last_cache_bytes),
    };
    let started = Instant::now();
    let dtypes = device::state_dtypes(model.gpu(), load.arithmetic, args.state);
    let work = Work::of(&model, dtypes);
    let available = match model.gpu() {
        Some(gpu) => Some(gpu.free_bytes()? + work.weight_bytes),
        None => machine.available_bytes,
    };
    let memory = Memory { work: &work, available };
    let measured = rounds::measure(&args, &cpu, &model, (memory, dtypes), &mut limits)?;
    // The buffer that measures bandwidth was resident all the time.
    let peak = peak_resident_bytes().map(|bytes| bytes.saturating_sub(limits.bytes()));
    let limits = limits.measured();
    let lines = measured.samples.iter().filter_map(|(point, samples)| {
        Some(Line::new(*point, Spread::of(samples)?, &work, &limits, args.tokens()))
    });
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        unix_time: unix_time(),
        machine,
        isa: device::processor(model.gpu(), &cpu).to_owned(),
        threads: cpu.pool().threads(),
        model: source.name.clone(),
        pattern: model.config().pattern(),
        work,
        kv_dtype: kv_name(dtypes),
        state_dtype: name(args.state.state_dtype),
        arithmetic: args.load_options().arithmetic.name(),
        mlp_density: measured.mlp_density,
        chunk: args.chunk,
        decode_tokens: args.tokens(),
        results: lines.collect(),
        limits,
        skipped: measured.skipped,
        load_seconds,
        peak_resident_bytes: peak,
        seconds: started.elapsed().as_secs_f64(),
    };
    // Not `println!`, which panics where the reader of a pipe has gone.
    match args.json {
        true => writeln!(stdout(), "{}", serde_json::to_string_pretty(&report)?)?,
        false => write!(stdout(), "{report}")?,
    }
    Ok(ExitCode::SUCCESS)
}

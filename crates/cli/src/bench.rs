//! `hybra bench`: prefill and decode speed of a model, as shares of what this machine can do.
//!
//! The limits are measured in the same rounds as the model, because shared machines wander.

mod limits;
mod machine;
mod measure;
mod plan;
mod report;
mod work;

use crate::cpu::{Arithmetic, ModelArgs};
use crate::options::StateArgs;
use crate::progress::Progress;
use crate::size;
use crate::source;
use anyhow::Result;
use clap::ValueEnum;
use clap::builder::PossibleValue;
use hybra_kernels::Cpu;
use hybra_model::NemotronH;
use limits::Limits;
use machine::{Machine, peak_resident_bytes};
use measure::{Bencher, SAMPLE_SECONDS};
use plan::{Pace, Point, Spread};
use report::{Line, Report, Skipped};
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
weight, over the measured arithmetic. Rows that the time does not allow are
skipped and named. Peak memory leaves out the buffer that measures bandwidth.

Examples:
  hybra bench
  hybra bench --quick
  hybra bench model.gguf --seconds 600 --depth 0,4096,16384
  hybra bench ./model --prefill 512 --batch 1,16 --json > record.json
  HYBRA_ISA=avx2 hybra bench --threads 1")]
pub(crate) struct Args {
    /// Directory, .gguf file or hub id [default: the model inside this binary]
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
    /// Tokens generated for each sequence
    #[arg(long, value_name = "N", default_value = "32", value_parser = tokens)]
    tokens: usize,
    /// Tokens of a prompt in one pass
    #[arg(long, value_name = "N", default_value = "512", value_parser = tokens)]
    chunk: usize,
    /// Most rounds [default: 5; with --quick 3]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: Option<u32>,
    /// Seconds to measure for, about [default: 60; with --quick 10]
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
    cpu: ModelArgs,
}

/// Most tokens of a prompt or a depth.
const MAX_TOKENS: u64 = 1 << 24;
/// Most sequences at once.
const MAX_BATCH: usize = 1024;
/// Tokens of the prompt that is read to warm up and to learn the pace.
const WARM_UP_TOKENS: usize = 64;

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

    fn rounds(&self) -> usize {
        self.repeat.unwrap_or(if self.quick { 3 } else { 5 }) as usize
    }

    fn seconds(&self) -> f64 {
        f64::from(self.seconds.unwrap_or(if self.quick { 10 } else { 60 }))
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let cpu = args.cpu.cpu()?;
    let machine = Machine::detect();
    let started = Instant::now();
    let source = source::resolve(args.model.as_deref())?;
    let model = source::load_model(&source, &cpu, args.cpu.load_options(Arithmetic::Fast))?;
    let load_seconds = started.elapsed().as_secs_f64();
    let mut limits = Limits::new(machine.last_cache_bytes);
    let started = Instant::now();
    let measured = measure(&args, &cpu, &model, &mut limits)?;
    // The buffer that measures bandwidth was resident all the time.
    let peak = peak_resident_bytes().map(|bytes| bytes.saturating_sub(limits.bytes()));
    let (work, limits) = (Work::of(&model, args.state.into()), limits.measured());
    let lines = measured.samples.iter().filter_map(|(point, samples)| {
        Some(Line::new(*point, Spread::of(samples)?, &work, &limits, args.tokens))
    });
    let name = |value: Option<PossibleValue>| {
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    };
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        unix_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        machine,
        isa: cpu.isa().name(),
        threads: cpu.pool().threads(),
        model: source.name.clone(),
        pattern: model.config().pattern(),
        work,
        kv_dtype: name(args.state.kv_dtype.to_possible_value()),
        state_dtype: name(args.state.state_dtype.to_possible_value()),
        chunk: args.chunk,
        decode_tokens: args.tokens,
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

/// What the rounds gave.
struct Rounds {
    samples: Vec<(Point, Vec<f64>)>,
    skipped: Vec<Skipped>,
}

/// Measures rounds until there are enough or the time is used up.
fn measure(args: &Args, cpu: &Cpu, model: &NemotronH, limits: &mut Limits) -> Result<Rounds> {
    let started = Instant::now();
    let points = args.points();
    let rounds = args.rounds();
    let mut bar = Progress::pieces("measuring", (points.len() * rounds) as u64);
    bar.message("limits, warming up");
    bar.set(0);
    limits.sample(cpu);
    let mut bencher = Bencher::new(cpu, model, args.state.into(), args.chunk);
    let mut first = FirstRound::new(args, &mut bencher, started)?;
    for point in points {
        bar.message(&point.to_string());
        first.point(&mut bencher, point)?;
        bar.advance(1);
    }
    let FirstRound { mut rounds_so_far, seconds: once, .. } = first;
    for _ in 1..rounds {
        if started.elapsed().as_secs_f64() + once > args.seconds() {
            break;
        }
        limits.sample(cpu);
        for (point, samples) in &mut rounds_so_far.samples {
            bar.message(&point.to_string());
            samples.push(bencher.sample(*point, args.tokens)?);
            bar.advance(1);
        }
    }
    Ok(rounds_so_far)
}

/// The round that learns how long things take, and decides what is left out.
struct FirstRound<'a> {
    args: &'a Args,
    started: Instant,
    pace: Pace,
    rounds_so_far: Rounds,
    /// Seconds that the round took, filling of depths left out.
    seconds: f64,
}

impl<'a> FirstRound<'a> {
    fn new(args: &'a Args, bencher: &mut Bencher<'_>, started: Instant) -> Result<Self> {
        bencher.prefill(1)?;
        let prefill = bencher.prefill(WARM_UP_TOKENS)? / WARM_UP_TOKENS as f64;
        let pace = Pace { prefill, step: bencher.decode(0, 1, 1)? };
        let rounds_so_far = Rounds { samples: Vec::new(), skipped: Vec::new() };
        // The limits of a round take about as long as those before it.
        let seconds = started.elapsed().as_secs_f64();
        Ok(Self { args, started, pace, rounds_so_far, seconds })
    }

    fn point(&mut self, bencher: &mut Bencher<'_>, point: Point) -> Result<()> {
        let filled = match point {
            Point::Prefill { .. } => 0,
            Point::Decode { depth, .. } => bencher.filled(depth),
        };
        let estimate = self.pace.estimate(point, filled, self.args.tokens);
        let (total, spent) = (self.args.seconds(), self.started.elapsed().as_secs_f64());
        let always = match point {
            Point::Prefill { .. } => self.rounds_so_far.samples.is_empty(),
            Point::Decode { depth, batch } => (depth, batch) == (0, 1),
        };
        if let Some(reason) = plan::skip_reason(estimate, total - spent, total, always) {
            self.rounds_so_far.skipped.push(Skipped { point, reason });
            return Ok(());
        }
        let speed = bencher.sample(point, self.args.tokens)?;
        match point {
            Point::Prefill { tokens } => {
                self.pace.prefill = 1.0 / speed;
                self.seconds += (tokens as f64 / speed).max(SAMPLE_SECONDS);
            }
            Point::Decode { batch, .. } => {
                if batch == 1 {
                    self.pace.step = 1.0 / speed;
                }
                let seconds = (batch * self.args.tokens) as f64 / speed;
                self.seconds += seconds.max(SAMPLE_SECONDS);
            }
        }
        self.rounds_so_far.samples.push((point, vec![speed]));
        Ok(())
    }
}

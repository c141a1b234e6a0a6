//! `hybra bench --compare OTHER`: two models over whole runs, at the largest batch that memory
//! admits, in the same engine.
//!
//! The models are measured one after the other, because two of full size rarely fit at once; the
//! limits of the machine, or of the GPU that both run on, are measured before, between and behind
//! them, so a drift shows.

mod candidate;
mod fit;
mod integrate;
mod points;
mod project;
mod report;
mod run;

use super::limits::Limits;
use super::machine::{Machine, peak_resident_bytes};
use super::measure::Bencher;
use super::work::Work;
use super::{Args, kv_name, unix_time};
use crate::convert::output::StoredType;
use crate::cpu::LoadOptions;
use crate::device::{self, Device};
use crate::progress::Progress;
use crate::size;
use anyhow::Result;
use candidate::Candidate;
use clap::value_parser;
use fit::Room;
use hybra_cuda::Gpu;
use hybra_kernels::Cpu;
use hybra_model::StateDtypes;
use hybra_model::density::DensityCounter;
use hybra_model::memory::{MemoryModel, MemorySettings, WeightFormat};
use points::RunPoint;
use report::{Compared, Comparison};
use run::{Outcome, Runner, Sampling};
use std::io::{Write, stdout};
use std::process::ExitCode;
use std::time::Instant;

/// Options of a comparison.
#[derive(clap::Args)]
#[command(next_help_heading = "Comparison")]
pub(super) struct CompareArgs {
    /// Compare MODEL with a model, a preset, or `transformer`: a dense one as large as MODEL
    ///
    /// `transformer-8b` has the shape of common dense 8B models: 36 pairs of attention and MLP,
    /// hidden 4096, 32 query and 8 key heads of 128 (144 KiB of keys and values per token in
    /// bf16), vocabulary 131072, no gate, MLP width 21504: 8.93 B parameters, 0.4 % more than
    /// nano2-9b, which is MODEL if none is given. `transformer` keeps MODEL's width, vocabulary
    /// and attention heads, has half as many pairs as MODEL has layers, and the MLP width that
    /// gives MODEL's number of parameters. Presets get random weights in temporary files.
    #[arg(long, value_name = "OTHER",
          conflicts_with_all = ["prefill", "depth", "batch", "repeat"])]
    compare: Option<String>,
    /// Tokens of prompt and output [default: 8k/16k,8k/1k,1k/8k,1k/1k; with --quick 8k/16k]
    #[arg(long, value_name = "P/O,..", value_delimiter = ',', value_parser = points::parse,
          requires = "compare")]
    points: Option<Vec<RunPoint>>,
    /// Memory for weights, caches, state and workspace [default: nine tenths of what is available]
    #[arg(long, value_name = "X", value_parser = size::parse_bytes, requires = "compare")]
    memory_budget: Option<u64>,
    /// Type of random weights [default: that of the other model's file, or q4_0]
    #[arg(long, value_name = "TYPE", requires = "compare")]
    dtype: Option<StoredType>,
    /// Depths of prompt and of output that are measured [default: 5; with --quick 3]
    #[arg(long, value_name = "N", requires = "compare", value_parser = value_parser!(u32).range(1..=1000))]
    depths: Option<u32>,
    /// Most sequences at once
    #[arg(long, value_name = "B", default_value_t = 256, requires = "compare",
          value_parser = value_parser!(u64).range(1..=4096))]
    max_batch: u64,
}

impl CompareArgs {
    pub(super) fn asked(&self) -> bool {
        self.compare.is_some()
    }

    /// The memory for a model, of the `available` beside `taken` bytes of our own.
    fn room(&self, available: Option<u64>, taken: u64) -> Room {
        let usable = available.map(|bytes| (bytes as f64 * USABLE) as u64);
        Room {
            budget: self.memory_budget,
            machine: usable.map(|bytes| bytes.saturating_sub(taken)),
            max_batch: self.max_batch,
        }
    }

    fn points(&self, quick: bool) -> Vec<RunPoint> {
        let all = if quick { &RunPoint::ALL[..1] } else { &RunPoint::ALL[..] };
        self.points.clone().unwrap_or_else(|| all.to_vec())
    }
}

/// Tokens of the prompt that is read to warm up, to learn the pace and to count nonzero units.
const WARM_UP_TOKENS: usize = 64;
/// Share of the available memory that models may take: the rest of the process needs some, too.
const USABLE: f64 = 0.9;

/// Runs the comparison.
pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let started = Instant::now();
    let options = &args.comparison;
    let cpu = args.cpu.cpu()?;
    let machine = Machine::detect();
    let load = args.load_options();
    let asked = load.device.settled(device::keeps_states(load.arithmetic, args.state))?;
    let gpu = asked.open()?;
    let other = options.compare.as_deref().unwrap_or_default();
    let candidates = candidate::pair(args.model.as_deref(), other, options.dtype)?;
    let (mut limits, available) = match &gpu {
        Some(gpu) => (Limits::of_device(gpu)?, Some(gpu.free_bytes()?)),
        None => (Limits::new(machine.last_cache_bytes), machine.available_bytes),
    };
    let room = options.room(available, limits.bytes());
    let points = options.points(args.quick);
    let configs = [&candidates[0].config, &candidates[1].config];
    let projections = project::project(configs, &points, options.max_batch);
    let dtypes = device::state_dtypes(gpu.as_ref(), load.arithmetic, args.state);
    let mut session =
        Session { args, cpu, gpu, dtypes, room, points, started, limits: &mut limits };
    session.limits.sample(&session.cpu)?;
    let [first, second] = &candidates;
    let total = args.comparison_seconds();
    let models = [session.measure(first, total / 2.0)?, session.measure(second, total)?];
    let Session { cpu, gpu, points, .. } = session;
    let peak = peak_resident_bytes().map(|bytes| bytes.saturating_sub(limits.bytes()));
    let report = Comparison {
        version: env!("CARGO_PKG_VERSION"),
        unix_time: unix_time(),
        machine,
        isa: device::processor(gpu.as_ref(), &cpu).to_owned(),
        on_device: gpu.is_some(),
        threads: cpu.pool().threads(),
        kv_dtype: kv_name(dtypes),
        room,
        sampling: sampling(args),
        limits: limits.measured(),
        ratios: report::ratios(&models),
        points,
        models,
        projections,
        peak_resident_bytes: peak,
        seconds: started.elapsed().as_secs_f64(),
    };
    match args.json {
        true => writeln!(stdout(), "{}", serde_json::to_string_pretty(&report)?)?,
        false => write!(stdout(), "{report}")?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn comparison_seconds(&self) -> f64 {
        f64::from(self.seconds.unwrap_or(if self.quick { 60 } else { 900 }))
    }
}

fn sampling(args: &Args) -> Sampling {
    let depths = args.comparison.depths.unwrap_or(if args.quick { 3 } else { 5 });
    Sampling { depths: depths as usize, slice: args.chunk, steps: args.tokens.unwrap_or(4) }
}

/// What both measurements share.
struct Session<'a> {
    args: &'a Args,
    cpu: Cpu,
    /// Where both run, if not on the CPU.
    gpu: Option<Gpu>,
    dtypes: StateDtypes,
    room: Room,
    points: Vec<RunPoint>,
    started: Instant,
    limits: &'a mut Limits,
}

impl Session<'_> {
    /// Loads a model, measures it at all points and lets it go. Points that would end later than
    /// `deadline` seconds after the start are skipped, but for the first.
    fn measure(&mut self, candidate: &Candidate, deadline: f64) -> Result<Compared> {
        let loading = Instant::now();
        let free = self.gpu.as_ref().map(Gpu::free_bytes).transpose()?;
        // By its number: a model that finds no room must not end up on the CPU.
        let device = self.gpu.as_ref().map_or(Device::Cpu, |gpu| Device::Cuda(gpu.info().ordinal));
        let options = LoadOptions { device, ..self.args.load_options() };
        let loaded = candidate.load(&self.cpu, options)?;
        let model = &loaded.model;
        let load_seconds = loading.elapsed().as_secs_f64();
        let dtypes = self.dtypes;
        let work = Work::of(model, dtypes);
        let settings = MemorySettings {
            weights: WeightFormat::loaded(candidate.dtype),
            kv: dtypes.kv.into(),
            prefill_chunk: self.args.chunk,
        };
        let mut memory = MemoryModel::new(model.config(), &settings);
        memory.weights = work.weight_bytes;
        let mut bencher = Bencher::new(&self.cpu, model, dtypes, self.args.chunk);
        bencher.prefill(1)?;
        let mut density = DensityCounter::new(model.config());
        let token = bencher.observe(WARM_UP_TOKENS, &mut density)? / WARM_UP_TOKENS as f64;
        let mut runner = Runner {
            pace: (token, bencher.decode(0, 1, 1)?),
            bencher,
            memory,
            sampling: sampling(self.args),
            room: self.room,
            memory_rate: self.limits.measured().memory_read.median,
        };
        let runs = self.runs(&mut runner, &candidate.name, deadline)?;
        // Memory of states that are gone is kept for the next ones: this is the most of all points.
        let left = self.gpu.as_ref().map(Gpu::free_bytes).transpose()?;
        let device_bytes = free.zip(left).map(|(free, left)| free.saturating_sub(left));
        self.limits.sample(&self.cpu)?;
        Ok(Compared {
            name: candidate.name.clone(),
            random_weights: candidate.is_random(),
            pattern: model.config().pattern(),
            weights: candidate.dtype.name(),
            work,
            mlp_density: density.mean(),
            load_seconds,
            device_bytes,
            runs,
        })
    }

    fn runs(&self, runner: &mut Runner, name: &str, deadline: f64) -> Result<Vec<Outcome>> {
        let mut bar = Progress::pieces(name, self.points.len() as u64);
        let mut outcomes = Vec::new();
        for point in &self.points {
            bar.message(&point.to_string());
            bar.set(outcomes.len() as u64);
            let left = deadline - self.started.elapsed().as_secs_f64();
            outcomes.push(runner.run(*point, (!outcomes.is_empty()).then_some(left))?);
        }
        Ok(outcomes)
    }
}

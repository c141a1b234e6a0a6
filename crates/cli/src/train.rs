//! `hybra train`: a stage of training, from a run file into a folder.
//!
//! The same command begins a run and goes on with it: the folder knows its configuration and its
//! last whole checkpoint. Ctrl-C saves a checkpoint after the running step and ends with status
//! 130; a second one ends at once, which costs the steps since the last checkpoint.

mod evaluator;
mod model;
mod objective;
mod view;

pub(crate) use evaluator::Measure;
pub(crate) use objective::weighted;
pub(crate) use view::View;

use crate::cpu::CpuArgs;
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use evaluator::TaskEvaluator;
use hybra_train::{Comm, Evaluator, Outcome, RunConfig, RunDir, Start, Trainer};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit status of a run that Ctrl-C ended, as of a shell's.
pub(crate) const INTERRUPTED: u8 = 130;

/// Train a model
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    stage: Stage,
}

#[derive(Subcommand)]
enum Stage {
    /// Teach a model from conversations, or pretrain it on text
    ///
    /// RUN gets checkpoints (each a model that can be served), log.jsonl, timing.jsonl and, at the
    /// end, model/. Started again with the same file, the command goes on from the last whole
    /// checkpoint, to the same bytes as if it had never stopped.
    #[command(after_help = SFT_EXAMPLES)]
    Sft(RunArgs),
    /// Teach a student what a teacher says: `[distil] teacher = DIR` in the run file
    ///
    /// The loss is the divergence from the teacher's next-token distributions, over all tokens of
    /// the data; the log has it for prompts, thinking, answers and tool calls. RUN is as of `sft`.
    #[command(after_help = DISTIL_EXAMPLES)]
    Distil(RunArgs),
    Cache(CacheArgs),
}

/// Keep a teacher's answers: the most probable tokens behind every token of a run's packs
///
/// `hybra train distil` with `distil.cache = CACHE` then needs no teacher: the rest of the
/// vocabulary is one bucket. The cache is bound to teacher, data, tokenizer and temperature. A
/// command that was stopped goes on.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra train cache --config distil.toml --output cache
  hybra train distil --config distil.toml --output run --set distil.cache=cache")]
pub(crate) struct CacheArgs {
    /// The run file, with `distil.teacher`
    #[arg(long, value_name = "RUN.toml")]
    config: PathBuf,
    /// The folder of the cache
    #[arg(long, value_name = "CACHE")]
    output: PathBuf,
    /// Tokens kept behind each token: 8 bytes each
    #[arg(long, value_name = "K", default_value_t = 64)]
    top_k: usize,
    /// Change a key of the run file
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    cpu: CpuArgs,
}

const DISTIL_EXAMPLES: &str = "\
Examples:
  hybra train distil --config distil.toml --output my-run
  hybra train distil --config distil.toml --output my-run --set model.from=student --set steps=500

In the run file, beside what `sft` has ([[phases]] are optional, a short context then a long one):
  [model]
  from = \"student\"            what `hybra prune` wrote
  [distil]
  teacher = \"teacher\"
  temperature = 1.0
  direction = \"forward\"       or \"reverse\"
  tokens = \"all\"              or \"learned\": those that sft would learn
  [[phases]]
  steps = 900
  pack_len = 1024
  [[phases]]
  steps = 100
  pack_len = 4096";

const SFT_EXAMPLES: &str = "\
Examples:
  hybra train sft --config run.toml --output my-run
  hybra train sft --config run.toml --output my-run --set optimizer.lr=3e-4 --set steps=200
  mpirun -n 4 hybra train sft --config run.toml --output my-run   (built with --features mpi)

Curves of a run: `hybra report my-run`. The model: `hybra chat my-run/model`.";

/// A run of any stage.
#[derive(clap::Args)]
pub(crate) struct RunArgs {
    /// The run file
    #[arg(long, value_name = "RUN.toml")]
    config: PathBuf,
    /// The folder of the run
    #[arg(long, value_name = "RUN")]
    output: PathBuf,
    /// Change a key of the run file: optimizer.lr=3e-4, data.sources.0.weight=2
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Go on with RUN although the run file is another than the one it was begun with
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Delete the run in RUN and begin anew
    #[arg(long)]
    force: bool,
    /// One JSON line per event on stdout in place of the live view
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cpu: CpuArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    match args.stage {
        Stage::Sft(args) => ranks(&args, "sft"),
        Stage::Distil(args) => ranks(&args, "distil"),
        Stage::Cache(args) => cache(&args),
    }
}

fn cache(args: &CacheArgs) -> Result<ExitCode> {
    let config = RunConfig::read(&args.config, &args.set)?;
    let (files, _) = model::open(&config.model, config.seed, "distil")?;
    objective::write_cache(&args.cpu.cpu()?, &config, &files, &args.output, args.top_k)?;
    println!("{}", args.output.display());
    Ok(ExitCode::SUCCESS)
}

/// Joins the ranks that run the stage with this one.
fn ranks(args: &RunArgs, stage: &'static str) -> Result<ExitCode> {
    #[cfg(feature = "mpi")]
    let comm = hybra_train::comm::MpiComm::join()?;
    #[cfg(not(feature = "mpi"))]
    let comm = hybra_train::LocalComm::single();
    let ended = train(args, stage, &comm);
    #[cfg(feature = "mpi")]
    if let (Err(error), true) = (&ended, comm.size() > 1) {
        eprintln!("error: rank {}: {error:#}", comm.rank());
        // The others wait for this rank and would not end by themselves.
        comm.abort(1);
    }
    ended
}

fn train(args: &RunArgs, stage: &'static str, comm: &dyn Comm) -> Result<ExitCode> {
    let config = RunConfig::read(&args.config, &args.set)?;
    if config.distil.is_some() && stage != "distil" {
        let path = args.config.display();
        bail!("{path}: `[distil]` belongs to `hybra train distil`, which takes the same options");
    }
    let start = match (args.resume, args.force) {
        (true, _) => Start::Resume,
        (_, true) => Start::Force,
        _ => Start::Auto,
    };
    let stop = stop_on_ctrl_c()?;
    let mut view = View::new(args.json);
    let run = Launch { config: &config, stage, dir: &args.output, start, cpu: &args.cpu, comm };
    let outcome = run.launch(&mut view, &stop)?;
    if comm.rank() == 0 {
        view.end(&outcome);
    }
    Ok(match outcome {
        Outcome::Done(_) => ExitCode::SUCCESS,
        Outcome::Stopped(_) => ExitCode::from(INTERRUPTED),
    })
}

/// A run that begins, or goes on from where it stopped.
pub(crate) struct Launch<'a> {
    pub(crate) config: &'a RunConfig,
    /// `sft` or `distil`.
    pub(crate) stage: &'static str,
    /// The run's folder.
    pub(crate) dir: &'a Path,
    pub(crate) start: Start,
    pub(crate) cpu: &'a CpuArgs,
    pub(crate) comm: &'a dyn Comm,
}

impl Launch<'_> {
    /// Trains to the end, or until `stop` is set.
    pub(crate) fn launch(&self, view: &mut View, stop: &AtomicBool) -> Result<Outcome> {
        let Self { config, stage, comm, .. } = *self;
        let cpu = self.cpu.cpu()?;
        let (files, initial) = model::open(&config.model, config.seed, stage)?;
        let mut objective = match stage {
            "distil" => objective::distil(config, &files)?,
            _ => objective::sft(config, &files.config),
        };
        let batches = objective::batches(config, &files)?;
        let mut batches = objective::with_cache(config, batches)?;
        let evaluator =
            config.eval.as_ref().map(|eval| TaskEvaluator::new(eval, &files, self.cpu)).transpose();
        let mut evaluator = evaluator.context("[eval]")?;
        let dir = RunDir::new(self.dir);
        if comm.rank() == 0 {
            dir.prepare(config, self.start)?;
        }
        comm.barrier()?;
        let trainer = Trainer {
            cpu: &cpu,
            comm,
            config,
            model: &files,
            dir: &dir,
            objective: &mut *objective,
            batches: &mut *batches,
            evaluator: evaluator.as_mut().map(|evaluator| evaluator as &mut dyn Evaluator),
            events: &mut |event| view.show(&event),
            stop,
        };
        Ok(trainer.run(initial)?)
    }
}

/// A flag that Ctrl-C sets; the second Ctrl-C ends the program.
pub(crate) fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let handle = move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
    };
    ctrlc::set_handler(handle).context("signal handler")?;
    Ok(stop)
}

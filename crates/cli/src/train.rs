//! `hybra train`: a stage of training, from a run file into a folder.
//!
//! The same command begins a run and goes on with it: the folder knows its configuration and its
//! last whole checkpoint. Ctrl-C saves a checkpoint after the running step and ends with status
//! 130; a second one ends at once, which costs the steps since the last checkpoint.

mod evaluator;
mod model;
mod objective;
mod rollouts;
mod view;

pub(crate) use evaluator::Measure;
pub(crate) use objective::weighted;
pub(crate) use view::View;

use crate::cpu::CpuArgs;
use crate::source;
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use evaluator::TaskEvaluator;
use hybra_train::lora::Lora;
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
    /// Prefer one answer to another: `[data] path = PAIRS.jsonl` in the run file
    ///
    /// The loss is that of direct preference optimization against the weights that the run begins
    /// from; the log has margins, log-probabilities of both answers, and how often the better one is
    /// preferred. RUN is as of `sft`.
    #[command(after_help = DPO_EXAMPLES)]
    Dpo(RunArgs),
    /// Learn from answers of the model's own, judged by verifiers
    ///
    /// Every step asks prompts, several answers each, through the engine that serves, with thinking
    /// budgets; answers better than the others of their group become likelier. RUN is as of `sft`.
    #[command(after_help = GRPO_EXAMPLES)]
    Grpo(RunArgs),
    /// Mine pairs for `hybra train dpo`: of the model's own answers to a prompt a right and a wrong one
    ///
    /// Prompts, budgets and sampling are those of the run file's `data` and `rollout`, as of `grpo`.
    #[command(after_help = PAIRS_EXAMPLES)]
    Pairs {
        #[command(flatten)]
        mine: MineArgs,
        /// Which of the answers that are not right is the rejected one
        #[arg(long, value_enum, value_name = "KIND", default_value_t)]
        rejected: rollouts::Rejected,
    },
    /// Mine traces for `hybra train sft`: of the model's own right answers to a prompt the shortest
    ///
    /// Prompts and sampling are those of the run file's `data` and `rollout`, as of `grpo`. With
    /// `p_truncate` in its source, `sft` cuts these traces at random budgets and learns the right answer
    /// behind the cut: the model learns to answer from thinking of its own that was ended early.
    #[command(after_help = TRACES_EXAMPLES)]
    Traces(MineArgs),
    Cache(CacheArgs),
}

const PAIRS_EXAMPLES: &str = "\
Examples:
  hybra train pairs --config grpo.toml --output pairs.jsonl --count 500
  hybra train pairs --config grpo.toml --output pairs.jsonl --set model.from=student
  hybra train pairs --config tools.toml --output pairs.jsonl --rejected invented";

const TRACES_EXAMPLES: &str = "\
Examples:
  hybra train traces --config grpo.toml --output traces.jsonl --count 2000
  hybra train sft --config sft.toml --output controlled

with this in sft.toml:
  [[data.sources]]
  path = \"traces.jsonl\"
  p_truncate = 0.8";

/// What mines the model's own answers.
#[derive(clap::Args)]
pub(crate) struct MineArgs {
    /// The run file
    #[arg(long, value_name = "RUN.toml")]
    config: PathBuf,
    /// The file to write
    #[arg(long, value_name = "OUT.jsonl")]
    output: PathBuf,
    /// Lines to look for
    #[arg(long, value_name = "N", default_value_t = 500)]
    count: usize,
    /// Prompts to ask at most [default: 20 for each line]
    #[arg(long, value_name = "N")]
    prompts: Option<u64>,
    /// Replace OUT.jsonl if it exists
    #[arg(long)]
    force: bool,
    /// Change a key of the run file
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    cpu: CpuArgs,
}

const DPO_EXAMPLES: &str = "\
Examples:
  hybra train dpo --config dpo.toml --output my-run
  hybra train dpo --config dpo.toml --output my-run --set dpo.beta=0.05

In the run file, beside what `sft` has:
  [data]
  path = \"pairs.jsonl\"        lines with prompt, chosen and rejected (see `hybra train pairs`)
  pack_len = 1024
  batch_size = 16             pairs of a step
  [dpo]
  beta = 0.1
  loss = \"sigmoid\"            or \"ipo\"
  length_normalized = false
  sft = 0.0                   weight of the chosen answer's cross entropy
  precompute_ref_log_probs = false   true: the reference reads all pairs at each start of the
                              run instead of running beside the policy";

const GRPO_EXAMPLES: &str = "\
Examples:
  hybra train grpo --config grpo.toml --output my-run
  hybra train grpo --config grpo.toml --output my-run --set rollout.group=16
  hybra train grpo --config grpo.toml --output my-run --set grpo.judge.model=judge

In the run file, beside what `sft` has:
  [data]
  pack_len = 1024
  [[data.sources]]
  task = \"chainbox\"           or path = \"examples.jsonl\" (see `hybra data generate`)
  [rollout]
  prompts = 16                of a step, each answered group times
  group = 8
  budgets = [\"off\", 16, 64, \"inf\"]   each prompt draws one
  max_tokens = 256
  [grpo]
  baseline = \"leave_one_out\"  or \"group\"
  [grpo.loss]
  kl = 0.0
  [grpo.reward]
  right = 1.0                 from the task's verifier; 0 where the judge alone decides
  malformed = 0.5
  [grpo.judge]                a model that compares answers (see `hybra data judge`); none by default
  model = \"judge\"
  weight = 1.0
  budget = \"inf\"
  max_tokens = 512";

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
  [rollout]                   in place of [data]'s own answers: the student's (as of `grpo`)
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

A run file of any stage may ask for a low-rank adapter in place of the weights:
  [lora]
  rank = 8
RUN/adapter is then a MODEL too: `hybra chat my-run/adapter`.

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
        Stage::Dpo(args) => ranks(&args, "dpo"),
        Stage::Grpo(args) => ranks(&args, "grpo"),
        Stage::Pairs { mine: args, rejected } => mine(&args, rollouts::Keep::Pair(rejected)),
        Stage::Traces(args) => mine(&args, rollouts::Keep::Best),
        Stage::Cache(args) => cache(&args),
    }
}

fn mine(args: &MineArgs, keep: rollouts::Keep) -> Result<ExitCode> {
    let path = args.output.display();
    if args.output.exists() && !args.force {
        bail!("{path}: already exists; --force replaces it");
    }
    let config = RunConfig::read(&args.config, &args.set)?;
    let (files, initial) = model::open(&config.model, config.seed, keep.name())?;
    let (parameters, most) = (initial(), args.prompts.unwrap_or(20 * args.count as u64));
    let model = (&files, &parameters[..]);
    let lines = rollouts::mine(&config, model, &args.cpu, keep, (args.count, most))?;
    if lines.is_empty() {
        bail!("{most} prompts gave no {}: {}", keep.name(), keep.wants());
    }
    rollouts::write(&args.output, &lines)?;
    println!("{path}: {} {}", lines.len(), keep.name());
    Ok(ExitCode::SUCCESS)
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
    refuse_other_stages(&config, stage, &args.config)?;
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

/// A table that the stage would not read is an error.
fn refuse_other_stages(config: &RunConfig, stage: &str, path: &Path) -> Result<()> {
    let tables: [(&str, bool, &[&str]); 4] = [
        ("distil", config.distil.is_some(), &["distil"]),
        ("rollout", config.rollout.is_some(), &["grpo", "distil"]),
        ("grpo", config.grpo.is_some(), &["grpo"]),
        ("dpo", config.dpo.is_some(), &["dpo"]),
    ];
    for (table, is_there, stages) in tables {
        if is_there && !stages.contains(&stage) {
            let (path, of) = (path.display(), stages.join("` or `hybra train "));
            bail!("{path}: `[{table}]` belongs to `hybra train {of}`, not to `{stage}`");
        }
    }
    if config.rollout.is_some() && config.distil.as_ref().is_some_and(|d| d.cache.is_some()) {
        let path = path.display();
        bail!("{path}: `distil.cache` has no answers to the samples of `[rollout]`");
    }
    Ok(())
}

/// A run that begins, or goes on from where it stopped.
pub(crate) struct Launch<'a> {
    pub(crate) config: &'a RunConfig,
    /// `sft`, `distil`, `dpo` or `grpo`.
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
        if let (Some(_), Some(from)) = (&config.lora, &config.model.from)
            && source::is_adapter(from)
        {
            let from = from.display();
            bail!(
                "[lora]: {from} is an adapter itself; `hybra convert {from} merged` makes a model of it"
            );
        }
        let (files, initial) = model::open(&config.model, config.seed, stage)?;
        let begun = initial();
        let lora = config.lora.as_ref().map(|lora| Lora::new(lora, &files.config, begun.clone()));
        let mut objective = match stage {
            "distil" => objective::distil(config, &files)?,
            "dpo" => objective::dpo(config, &files, &begun),
            "grpo" => objective::grpo(config, &files, &begun),
            _ => objective::sft(config, &files),
        };
        let mut batches = match stage {
            "dpo" => objective::pairs(config, &files, &begun, self.cpu)?,
            "grpo" => rollouts::grpo(config, &files, self.cpu)?,
            "distil" if config.rollout.is_some() => rollouts::on_policy(config, &files, self.cpu)?,
            _ => objective::with_cache(config, objective::batches(config, &files)?)?,
        };
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
            lora: lora.as_ref(),
            objective: &mut *objective,
            batches: &mut *batches,
            evaluator: evaluator.as_mut().map(|evaluator| evaluator as &mut dyn Evaluator),
            events: &mut |event| view.show(&event),
            stop,
        };
        Ok(trainer.run(|| begun)?)
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

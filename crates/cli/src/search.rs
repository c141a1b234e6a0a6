//! `hybra search`: a memory budget in, the best student out.

mod config;
mod list;
mod page;
mod study;

use crate::calibration;
use crate::cpu::{Arithmetic, CpuArgs, LoadOptions};
use crate::source::{self, Described, Source};
use crate::train::{INTERRUPTED, stop_on_ctrl_c};
use anyhow::{Context, Result, bail};
use config::{Arm, SearchConfig, SelectConfig};
use hybra_compress::depth::iterative_order;
use hybra_compress::halving::{Candidate, Score, Scored, Trial, halve};
use hybra_compress::scores::Method;
use hybra_compress::select::Channels;
use hybra_compress::store::Importance;
use hybra_compress::surrogate::{finalists, predict, probes};
use hybra_compress::{Moments, Target};
use hybra_model::Config;
use hybra_model::memory::{MemoryPlan, ParameterCount};
use hybra_train::Comm;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
pub(crate) use study::read_json;
use study::{Job, Measured, Stopped, Study, write_json};

/// Find the best student that fits a memory budget
///
/// Shapes of the search file that fit are ranked by what single axes cost, the best are distilled a
/// little and judged by their answers at several thinking budgets, the better ones distilled more;
/// the winner is distilled to the end, beside its controls. RUN/report.html shows it all. Started
/// again, the command goes on where it stopped.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra search nano2-12b --config runs/nano2-9b/search.toml --list    what fits, from shapes alone
  hybra search teacher --config runs/nano2-mini/search.toml --output RUN
  mpirun -n 4 hybra search teacher --config search.toml --output RUN  (built with --features mpi)

The student: RUN/final/found-SEED/run/model.")]
pub(crate) struct Args {
    /// The teacher, a Hugging Face directory; with --list also a preset or config.json
    #[arg(value_name = "TEACHER")]
    teacher: String,
    /// The search file
    #[arg(long, value_name = "SEARCH.toml")]
    config: PathBuf,
    /// The folder of the search
    #[arg(short, long, value_name = "RUN", required_unless_present = "list")]
    output: Option<PathBuf>,
    /// Only list the shapes that fit, the largest first
    #[arg(long)]
    list: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cpu: CpuArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let config = SearchConfig::read(&args.config)?;
    let Some(dir) = args.output.as_deref().filter(|_| !args.list) else {
        let Described { config: teacher, .. } = source::describe(Some(&args.teacher))?;
        list::list(&config, &teacher, args.json)?;
        return Ok(ExitCode::SUCCESS);
    };
    #[cfg(feature = "mpi")]
    let comm = hybra_train::comm::MpiComm::join()?;
    #[cfg(not(feature = "mpi"))]
    let comm = hybra_train::LocalComm::single();
    match search(&args, &config, dir, &comm) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.is::<Stopped>() => {
            eprintln!("{error}");
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => {
            #[cfg(feature = "mpi")]
            if comm.size() > 1 {
                eprintln!("error: rank {}: {error:#}", comm.rank());
                comm.abort(1);
            }
            Err(error)
        }
    }
}

/// `search.json`.
#[derive(Serialize)]
struct Outcome<'a> {
    teacher: &'a str,
    budget_bytes: u64,
    shapes: usize,
    feasible: usize,
    trials: &'a [Scored],
    ablation: &'a [Ablation],
    finals: &'a [Final],
}

/// Divergence right after pruning to the winner's shape, by method.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ablation {
    method: String,
    kl: f64,
}

/// A final run.
#[derive(Debug, Clone, Serialize)]
struct Final {
    arm: Arm,
    seed: u64,
    measured: Measured,
}

fn search(args: &Args, config: &SearchConfig, dir: &Path, comm: &dyn Comm) -> Result<()> {
    let source = source::resolve(Some(&args.teacher))?;
    if !source.checkpoint.path().is_dir() {
        bail!("{}: expected a Hugging Face directory as the teacher", args.teacher);
    }
    if comm.rank() == 0 {
        prepare(config, dir)?;
    }
    comm.barrier()?;
    let importance = importance(args, config, dir, &source, comm)?;
    let stop = stop_on_ctrl_c()?;
    let study = Study::new(config, dir, &source, importance, &args.cpu, &stop)?;
    let teacher = &study.teacher.config;
    let order: Vec<usize> =
        study.importance.summary.removals.iter().map(|removal| removal.layer).collect();
    let targets = config.space.targets(teacher, &order)?;
    let budget = config.budget.budget(teacher)?;
    let shapes = targets.len();
    let feasible = budget.feasible(teacher, targets)?;
    if feasible.is_empty() {
        bail!("[space]: none of {shapes} shapes fits {} bytes; see --list", budget.bytes);
    }
    let count = config.rungs.first().map_or(1, |rung| rung.candidates);
    let candidates = candidates(&study, &feasible, count, comm)?;
    let trials = halve(&candidates, &config.rungs, &mut |trials| rung(&study, trials, comm))?;
    let winner = trials.iter().rfind(|scored| scored.promoted);
    let winner = winner.map_or(&candidates[0], |scored| &scored.trial.candidate);
    let ablation = ablation(&study, &winner.target, comm)?;
    let finals = finals(&study, &winner.target, comm)?;
    let examples = config.last.as_ref().map(|last| last.count);
    if comm.rank() > 0 {
        return Ok(());
    }
    let of_teacher = study.of_teacher(examples)?;
    let outcome = Outcome {
        teacher: &study.ancestors[0],
        budget_bytes: budget.bytes,
        shapes,
        feasible: feasible.len(),
        trials: &trials,
        ablation: &ablation,
        finals: &finals,
    };
    write_json(&dir.join("search.json"), &outcome)?;
    let whole = budget.plan(teacher);
    let page = page::Page { outcome: &outcome, config, teacher, whole, winner, of_teacher };
    let report = dir.join("report.html");
    hybra_train::report::write(&report, &page.html())?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    } else {
        page.print();
        println!("\n{}", report.display());
    }
    Ok(())
}

/// Makes the folder, or checks that it is of the same search.
fn prepare(config: &SearchConfig, dir: &Path) -> Result<()> {
    let (file, text) = (dir.join("search.toml"), config.to_toml()?);
    match std::fs::read_to_string(&file) {
        Ok(old) if old == text => {}
        Ok(_) => bail!("{}: is of another search; choose another folder", file.display()),
        Err(_) if dir.exists() && dir.read_dir()?.next().is_some() => {
            bail!("{}: holds files but no search.toml; choose another folder", dir.display())
        }
        Err(_) => {
            std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
            hybra_train::report::write(&file, &text)?;
        }
    }
    for part in ["probes", "trials", "final"] {
        std::fs::create_dir_all(dir.join(part))?;
    }
    Ok(())
}

/// Importance of the teacher, measured by rank 0 unless it is there.
fn importance(
    args: &Args,
    config: &SearchConfig,
    dir: &Path,
    source: &Source,
    comm: &dyn Comm,
) -> Result<Importance> {
    let (path, hash) = (dir.join("importance"), source.checkpoint.hash());
    let shape = Config::from_checkpoint(&source.checkpoint)?;
    if comm.rank() == 0 && !path.exists() {
        let options = &config.importance;
        let calibration =
            calibration::of_table(&study::data(config)?, options.samples, config.seed)?;
        let documents = calibration.tokens(source, &shape)?;
        let cpu = args.cpu.cpu()?;
        let load = LoadOptions::on_cpu(Arithmetic::Exact);
        let model = source::load_model(source, &cpu, load)?;
        eprintln!("importance: {} documents", documents.len());
        let gram = config.select.ridge > 0.0;
        let moments = Moments::collect(&cpu, &model, &documents, gram, &mut |_| {})?;
        let few = &documents[..documents.len().min(options.depth_documents)];
        let order = iterative_order(&cpu, &model, few, 1, options.floors, &mut |_| {})?;
        let made =
            Importance::new(hash.clone(), calibration.describe(), "iterative", (order, moments));
        made.write(&path, false)?;
    }
    comm.barrier()?;
    Ok(Importance::read(&path, &shape, &hash)?)
}

/// The shapes for the first rung: probes are measured by all ranks, and added up.
fn candidates(
    study: &Study,
    feasible: &[(Target, MemoryPlan)],
    count: usize,
    comm: &dyn Comm,
) -> Result<Vec<Candidate>> {
    let teacher = &study.teacher.config;
    let full = Target::full(teacher);
    let targets: Vec<Target> = feasible.iter().map(|(target, _)| target.clone()).collect();
    let probes = probes(&full, &targets);
    let file = |target: &Target| {
        let json = serde_json::to_string(target).expect("numbers");
        study.dir.join("probes").join(format!("{}.json", hash(&json)))
    };
    for (at, target) in probes.iter().enumerate() {
        if at % comm.size() == comm.rank() && read_json::<f64>(&file(target))?.is_none() {
            eprintln!("probe {} of {}", at + 1, probes.len());
            let folder = tempfile::tempdir_in(study.dir.join("probes"))?;
            let select = study.config.select;
            let plan = study.plan(target, select.scores, select.channels)?;
            let kl = study.cut(&plan, select, &folder.path().join("student"))?;
            write_json(&file(target), &kl)?;
        }
    }
    comm.barrier()?;
    let mut errors = BTreeMap::new();
    for target in &probes {
        errors.insert(target.clone(), read_json(&file(target))?.context("a probe is missing")?);
    }
    let predicted: Vec<f64> =
        targets.iter().map(|target| predict(&full, target, &errors)).collect();
    let candidate = |at: usize| {
        let (target, plan) = &feasible[at];
        let parameters = ParameterCount::of(&target.config(teacher)?).total;
        let (target, bytes) = (target.clone(), plan.total);
        Ok(Candidate { target, bytes, parameters, predicted: predicted[at] })
    };
    finalists(&targets, &predicted, count).into_iter().map(candidate).collect()
}

fn hash(text: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Trains and scores the trials of a rung, each on one of the ranks.
fn rung(study: &Study, trials: &[Trial], comm: &dyn Comm) -> Result<Vec<Score>> {
    let jobs: Vec<Job> = trials
        .iter()
        .map(|trial| Job {
            dir: study.dir.join("trials").join(&trial.id),
            arm: Arm::Found,
            target: &trial.candidate.target,
            steps: trial.steps,
            seed: study.config.seed,
            examples: None,
        })
        .collect();
    let score = |measured: Measured| Score {
        accuracy: measured.accuracy(),
        kl: measured.kl,
        tokens_per_second: measured.tokens_per_second,
    };
    Ok(run_jobs(study, &jobs, comm)?.into_iter().map(score).collect())
}

/// Job i runs on rank i modulo their number; all ranks get all results.
fn run_jobs(study: &Study, jobs: &[Job], comm: &dyn Comm) -> Result<Vec<Measured>> {
    for (at, job) in jobs.iter().enumerate() {
        if at % comm.size() == comm.rank() {
            let name = job.dir.strip_prefix(study.dir).unwrap_or(&job.dir).display();
            eprintln!("{name}: {} steps ({} of {})", job.steps, at + 1, jobs.len());
            study.run(job)?;
        }
    }
    comm.barrier()?;
    jobs.iter().map(|job| study.run(job)).collect()
}

/// What scores, channels of heads and repairs are worth before any training, at one shape.
fn ablation(study: &Study, target: &Target, comm: &dyn Comm) -> Result<Vec<Ablation>> {
    let file = study.dir.join("ablation.json");
    if comm.rank() == 0 && read_json::<Vec<Ablation>>(&file)?.is_none() {
        let off = SelectConfig { norms: false, ridge: 0.0, ..study.config.select };
        let norms = SelectConfig { norms: true, ..off };
        let ridge = if study.config.select.ridge > 0.0 { study.config.select.ridge } else { 1e-3 };
        let both = SelectConfig { ridge, ..norms };
        let (shared, own) = (Channels::Shared, Channels::PerHead);
        let seed = study.config.seed;
        let cases = [
            ("random channels", Method::Random(seed), shared, off),
            ("published scores, shared channels", Method::ActL2, shared, off),
            ("published scores, channels per head", Method::ActL2, own, off),
            ("output energy, shared channels", Method::Energy, shared, off),
            ("output energy, channels per head", Method::Energy, own, off),
            ("… and norms rescaled", Method::Energy, own, norms),
            ("… and least squares on consumers", Method::Energy, own, both),
            ("published scores, both repairs", Method::ActL2, shared, both),
            ("random channels, both repairs", Method::Random(seed), own, both),
        ];
        let folder = tempfile::tempdir_in(study.dir)?;
        let mut rows = Vec::new();
        for (method, scores, channels, select) in cases {
            let plan = study.plan(target, scores, channels)?;
            let kl = study.cut(&plan, select, &folder.path().join("student"))?;
            rows.push(Ablation { method: method.to_owned(), kl });
        }
        write_json(&file, &rows)?;
    }
    comm.barrier()?;
    read_json(&file)?.context("ablation.json is gone")
}

/// The winner and its controls, distilled to the end.
fn finals(study: &Study, target: &Target, comm: &dyn Comm) -> Result<Vec<Final>> {
    let Some(last) = &study.config.last else { return Ok(Vec::new()) };
    let arms = std::iter::once(Arm::Found).chain(last.controls.iter().copied());
    let arms: Vec<(Arm, u64)> =
        last.seeds.iter().flat_map(|&seed| arms.clone().map(move |arm| (arm, seed))).collect();
    let job = |&(arm, seed): &(Arm, u64)| Job {
        dir: study.dir.join("final").join(format!("{}-{seed}", arm.name())),
        arm,
        target,
        steps: last.steps,
        seed,
        examples: Some(last.count),
    };
    let jobs: Vec<Job> = arms.iter().map(job).collect();
    let measured = run_jobs(study, &jobs, comm)?;
    let finals = arms.into_iter().zip(measured);
    Ok(finals.map(|((arm, seed), measured)| Final { arm, seed, measured }).collect())
}

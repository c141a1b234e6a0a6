//! `hybra pipeline`: a recipe of many stages, each a command of this program, in one run.
//!
//! ```text
//! RUN/NAME/         what a stage made
//! RUN/NAME.json     its command, key and seconds; there when it is done
//! RUN/NAME.log      what it said
//! RUN/report.html   all of it on one page, written after every stage
//! ```
//! A stage's key is a checksum of its command, of the files that the command names, of the keys of the
//! stages whose results it takes, and of the program's version. A stage whose key is the one it was
//! done with is skipped; one that was interrupted is started again and goes on by itself; one whose
//! key changed is made anew.

mod cost;
mod dry_run;
mod graph;
mod page;
mod recipe;

use crate::train::{INTERRUPTED, stop_on_ctrl_c};
use anyhow::{Context, Result, bail};
use recipe::{Recipe, Resolved};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Run a recipe: stages of training, pruning, search, merging and evaluation, one after the other
///
/// Every stage is a command of this program; its results lie in RUN/NAME, its words in RUN/NAME.log.
/// Stages whose inputs are unchanged are skipped, interrupted ones go on. Under mpirun the training
/// stages and searches run on all ranks.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra pipeline runs/nano2-mini/pipeline.toml --output RUN
  hybra pipeline runs/nano2-mini/pipeline.toml --output RUN --dry-run    what would run, how large, how long
  hybra pipeline runs/nano2-mini/pipeline.toml --output RUN --until distil

In the file, {out} is the stage's folder (without it: a file of what it prints), {here} the folder of the
file, {NAME} the result of a stage:
  [[stages]]
  name = \"teacher\"
  run = [\"train\", \"sft\", \"--config\", \"{here}/sft.toml\", \"--output\", \"{out}\"]
  result = \"model\"                   {teacher} is RUN/teacher/model
  [[stages]]
  name = \"importance\"
  run = [\"importance\", \"{teacher}\", \"-o\", \"{out}\", \"--task\", \"chainbox\", \"--gram\"]")]
pub(crate) struct Args {
    /// The recipe
    #[arg(value_name = "PIPELINE.toml")]
    recipe: PathBuf,
    /// The folder of the run
    #[arg(short, long, value_name = "RUN")]
    output: PathBuf,
    /// Print the stages, what they would do and how long, and run nothing
    #[arg(long)]
    dry_run: bool,
    /// End after this stage
    #[arg(long, value_name = "NAME")]
    until: Option<String>,
    /// Print JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
}

/// `RUN/NAME.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Done {
    key: String,
    command: Vec<String>,
    seconds: f64,
}

/// How a stage stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Done,
    Interrupted,
    Changed,
    ToDo,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let recipe = Recipe::read(&args.recipe)?;
    let until = recipe.until(args.until.as_deref())?;
    let all = recipe.resolve(&args.output, &args.recipe)?;
    let stages = &all[..until];
    if args.dry_run {
        dry_run::print(&recipe, stages, args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    fs::create_dir_all(&args.output).with_context(|| args.output.display().to_string())?;
    // The stage hears Ctrl-C too: it saves and ends, and this command with it.
    let _stop = stop_on_ctrl_c()?;
    let rank = rank();
    for (at, stage) in stages.iter().enumerate() {
        let place = format!("[{}/{}] {}", at + 1, stages.len(), stage.name);
        if state(stage)? == State::Done {
            if rank == 0 {
                eprintln!("{place}: unchanged, skipped");
            }
            continue;
        }
        if rank == 0 {
            eprintln!("{place}: hybra {}", stage.command.join(" "));
            begin(stage)?;
        } else if stage.is_parallel() {
            wait(|| state(stage).map(|state| state != State::Changed && stage.begun().is_file()))?;
        } else {
            wait(|| state(stage).map(|state| state == State::Done))?;
            continue;
        }
        let started = Instant::now();
        match execute(stage, rank)? {
            0 => {}
            code if code == i32::from(INTERRUPTED) => {
                if rank == 0 {
                    report(&recipe, &all, &args.output)?;
                }
                eprintln!("stopped in {}; the same command goes on", stage.name);
                return Ok(ExitCode::from(INTERRUPTED));
            }
            code => bail!(
                "{}: ended with status {code}; its last words are in {}\n{}",
                stage.name,
                stage.log().display(),
                last_words(&stage.log())
            ),
        }
        if rank == 0 {
            let seconds = started.elapsed().as_secs_f64() + spent(stage);
            let (key, command) = (stage.key.clone(), stage.command.clone());
            write(&stage.done(), &Done { key, command, seconds })?;
            fs::remove_file(stage.begun()).ok();
            report(&recipe, &all, &args.output)?;
            eprintln!(
                "{place}: done in {}",
                crate::size::duration(Duration::from_secs_f64(seconds))
            );
        } else {
            wait(|| state(stage).map(|state| state == State::Done))?;
        }
    }
    if rank == 0 {
        println!("{}", report(&recipe, &all, &args.output)?.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the page of the run.
fn report(recipe: &Recipe, stages: &[Resolved], folder: &Path) -> Result<PathBuf> {
    let path = folder.join("report.html");
    let page = page::html(recipe, stages)?;
    hybra_train::report::write(&path, &page).with_context(|| path.display().to_string())?;
    Ok(path)
}

fn state(stage: &Resolved) -> Result<State> {
    let read = |path: PathBuf| -> Result<Option<Done>> { crate::search::read_json(&path) };
    Ok(match (read(stage.done())?, read(stage.begun())?) {
        (Some(done), _) if done.key == stage.key => State::Done,
        (None, Some(begun)) if begun.key == stage.key => State::Interrupted,
        (None, None) if !stage.out.exists() => State::ToDo,
        _ => State::Changed,
    })
}

/// Clears the way for a stage that is to be made, and says that it is being made.
fn begin(stage: &Resolved) -> Result<()> {
    if state(stage)? == State::Interrupted {
        // Other commands write whole results or nothing: what is there was not yet called done.
        return if stage.resumes() { Ok(()) } else { clear(&stage.out) };
    }
    // Only what this command made is deleted.
    let known = stage.done().is_file() || stage.begun().is_file();
    if stage.out.exists() && !known {
        bail!("{}: is there and no stage made it; choose another folder", stage.out.display());
    }
    fs::remove_file(stage.done()).ok();
    fs::remove_file(stage.begun()).ok();
    fs::remove_file(stage.log()).ok();
    clear(&stage.out)?;
    let (key, command) = (stage.key.clone(), stage.command.clone());
    write(&stage.begun(), &Done { key, command, seconds: 0.0 })
}

fn clear(out: &Path) -> Result<()> {
    let gone = if out.is_dir() { fs::remove_dir_all(out) } else { fs::remove_file(out) };
    match gone {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| out.display().to_string())
        }
        _ => Ok(()),
    }
}

/// Seconds of earlier attempts.
fn spent(stage: &Resolved) -> f64 {
    let begun: Option<Done> = crate::search::read_json(&stage.begun()).ok().flatten();
    begun.map_or(0.0, |begun| begun.seconds)
}

fn write(path: &Path, value: &Done) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    hybra_train::report::write(path, &text).with_context(|| path.display().to_string())
}

/// Runs a stage's command and gives its status.
fn execute(stage: &Resolved, rank: usize) -> Result<i32> {
    let name =
        if rank == 0 { stage.log() } else { stage.log().with_extension(format!("{rank}.log")) };
    let log = File::options().create(true).append(true).open(&name);
    let log = log.with_context(|| name.display().to_string())?;
    let exe = std::env::current_exe().context("this program's file")?;
    let started = Instant::now();
    let printed = stage.out.with_file_name(format!("{}.partial", stage.name));
    let stdout = if stage.prints { File::create(&printed)? } else { log.try_clone()? };
    let mut child = Command::new(exe);
    child.args(&stage.command).stdin(Stdio::null()).stdout(stdout).stderr(log);
    let status = child.status().with_context(|| stage.name.clone())?;
    if status.success() && stage.prints {
        fs::rename(&printed, &stage.out).with_context(|| stage.out.display().to_string())?;
    }
    if !status.success() && rank == 0 {
        // What an attempt took counts when the next one ends.
        let seconds = spent(stage) + started.elapsed().as_secs_f64();
        let (key, command) = (stage.key.clone(), stage.command.clone());
        write(&stage.begun(), &Done { key, command, seconds })?;
    }
    Ok(status.code().unwrap_or(i32::from(INTERRUPTED)))
}

fn last_words(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

/// The rank that a launcher gave this process; the stages' own processes join the others.
fn rank() -> usize {
    let names = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"];
    names.iter().find_map(|name| std::env::var(name).ok()?.parse().ok()).unwrap_or(0)
}

/// Waits for what rank 0 writes into the folder that all ranks see.
fn wait(mut is_there: impl FnMut() -> Result<bool>) -> Result<()> {
    while !is_there()? {
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

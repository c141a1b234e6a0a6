//! `hybra report`: the curves of a run in one HTML file, or as TensorBoard's event files.

use anyhow::{Context, Result, ensure};
use hybra_train::report::{ReportError, RunLog};
use hybra_train::{RunDir, tensorboard};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Draw the curves of a training run into one HTML file, or write them for TensorBoard
///
/// Loss, learning rate, gradient norm, tokens per second and evaluations, as SVG without scripts.
/// The run may still be going on.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra report my-run                  writes my-run/report.html
  hybra report my-run -o curves.html
  hybra report my-run --json           the last line of the log
  hybra report my-run --tensorboard tb/my-run
                                       then: tensorboard --logdir tb
  hybra report my-pipeline --tensorboard tb
                                       one TensorBoard run for each training run: tb/STAGE")]
pub(crate) struct Args {
    /// The folder that `hybra train` wrote; with --tensorboard also a pipeline's or a search's
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The file to write [default: RUN/report.html]
    #[arg(short, long, value_name = "FILE", conflicts_with = "json")]
    output: Option<PathBuf>,
    /// Print the last line of the log as JSON and write no file
    #[arg(long)]
    json: bool,
    /// Write TensorBoard's event files below DIR, where they replace those of the same runs, and
    /// no page
    ///
    /// A training run is written into DIR itself. Of a pipeline or a search every training run
    /// gets a folder in DIR, under the path that it has in RUN.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["json", "output"])]
    tensorboard: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    if let Some(dir) = &args.tensorboard {
        write_events(&args.run, dir)?;
        return Ok(ExitCode::SUCCESS);
    }
    let log = RunLog::read(&RunDir::new(&args.run))?;
    if args.json {
        println!("{}", serde_json::to_string(&log.steps.last())?);
        return Ok(ExitCode::SUCCESS);
    }
    let full = args.run.canonicalize();
    let name = full.as_deref().unwrap_or(&args.run).file_name().unwrap_or(args.run.as_os_str());
    let path = args.output.unwrap_or_else(|| args.run.join("report.html"));
    let page = log.html(&name.to_string_lossy());
    hybra_train::report::write(&path, &page).with_context(|| path.display().to_string())?;
    println!("{}", path.display());
    Ok(ExitCode::SUCCESS)
}

/// Writes an event file for every training run at `root` or below it.
fn write_events(root: &Path, dir: &Path) -> Result<()> {
    let runs = RunDir::find(root)?;
    ensure!(
        !runs.is_empty(),
        "{}: no log.jsonl here or in a folder below; RUN is the folder that `hybra train`, `hybra \
         pipeline` or `hybra search` wrote",
        root.display()
    );
    let mut num_written = 0;
    for run in &runs {
        let log = match RunLog::read(run) {
            Ok(log) => log,
            // A stage that has just begun must not hide those before it.
            Err(error @ ReportError::Empty { .. }) if runs.len() > 1 => {
                eprintln!("note: {error}: left out");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let place = match run.path().strip_prefix(root) {
            Ok(relative) if relative != Path::new("") => dir.join(relative),
            _ => dir.to_owned(),
        };
        let path = tensorboard::write(&place, &log).with_context(|| place.display().to_string())?;
        println!("{}", path.display());
        num_written += 1;
    }
    ensure!(num_written > 0, "{}: no step is logged yet in any run", root.display());
    Ok(())
}

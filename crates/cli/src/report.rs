//! `hybra report`: the curves of a run in one HTML file.

use anyhow::{Context, Result};
use hybra_train::RunDir;
use hybra_train::report::RunLog;
use std::path::PathBuf;
use std::process::ExitCode;

/// Draw the curves of a training run into one HTML file
///
/// Loss, learning rate, gradient norm, tokens per second and evaluations, as SVG without scripts.
/// The run may still be going on.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra report my-run                  writes my-run/report.html
  hybra report my-run -o curves.html
  hybra report my-run --json           the last line of the log")]
pub(crate) struct Args {
    /// The folder that `hybra train` wrote
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The file to write [default: RUN/report.html]
    #[arg(short, long, value_name = "FILE", conflicts_with = "json")]
    output: Option<PathBuf>,
    /// Print the last line of the log as JSON and write no file
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
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

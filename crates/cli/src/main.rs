//! The `hybra` binary: parses the command line and hands over to one file per command.
//!
//! Only this crate prints. Results go to stdout; progress, warnings and errors go to stderr, so
//! that `--json` output can be piped. Exit status: 0 success, 1 a command's own negative result
//! (such as `verify` beyond tolerance) or an error, 2 wrong usage.
#![forbid(unsafe_code)]

#[macro_use]
mod stdout;

mod bench;
mod calibration;
mod chat;
mod convert;
mod cpu;
mod data;
mod device;
mod divergence;
mod eval;
mod generate;
mod hub;
mod importance;
mod init;
mod inspect;
mod lineage;
mod merge;
mod options;
mod picture;
mod pipeline;
mod progress;
mod prune;
mod reply;
mod report;
mod screen;
mod search;
mod serve;
mod session;
mod size;
mod source;
mod train;
mod verify;
mod version;
mod weight_cache;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::process::ExitCode;

/// Run, shrink and teach hybrid Mamba-2–Transformer reasoning models.
///
/// A MODEL is a Hugging Face directory, a .gguf file or a hub id such as
/// nvidia/NVIDIA-Nemotron-Nano-9B-v2. Without one, the small reasoning model inside this binary
/// is used.
#[derive(Parser)]
#[command(name = "hybra", disable_version_flag = true, subcommand_required = false)]
struct Cli {
    /// Print the version; with -v also instruction set, threads and features
    #[arg(short = 'V', long)]
    version: bool,
    /// More detail (with --version)
    #[arg(short, long)]
    verbose: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    Generate(generate::Args),
    Serve(serve::Args),
    Chat(chat::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Convert(convert::Args),
    Init(init::Args),
    Bench(bench::Args),
    Data(data::Args),
    Eval(eval::Args),
    Train(train::Args),
    Importance(importance::Args),
    Prune(prune::Args),
    Divergence(divergence::Args),
    Search(search::Args),
    Merge(merge::Args),
    Pipeline(pipeline::Args),
    Report(report::Args),
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        if stdout::is_closed(&error) {
            return ExitCode::SUCCESS;
        }
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> anyhow::Result<ExitCode> {
    let command = Cli::command();
    let matches = serve::matches(command.clone())?;
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match cli.command {
        _ if cli.version => version::print(cli.verbose),
        Some(Command::Generate(args)) => generate::run(args),
        Some(Command::Serve(args)) => {
            let matches = matches.subcommand_matches("serve").expect("it was parsed");
            serve::run(args, &command, matches)
        }
        Some(Command::Chat(args)) => chat::run(args),
        Some(Command::Inspect(args)) => inspect::run(args),
        Some(Command::Verify(args)) => verify::run(args),
        Some(Command::Convert(args)) => convert::run(args),
        Some(Command::Init(args)) => init::run(args),
        Some(Command::Bench(args)) => bench::run(args),
        Some(Command::Data(args)) => data::run(args),
        Some(Command::Eval(args)) => eval::run(args),
        Some(Command::Train(args)) => train::run(args),
        Some(Command::Importance(args)) => importance::run(args),
        Some(Command::Prune(args)) => prune::run(args),
        Some(Command::Divergence(args)) => divergence::run(args),
        Some(Command::Search(args)) => search::run(args),
        Some(Command::Merge(args)) => merge::run(args),
        Some(Command::Pipeline(args)) => pipeline::run(args),
        Some(Command::Report(args)) => report::run(args),
        None => {
            Cli::command().print_help()?;
            Ok(ExitCode::from(2))
        }
    }
}

//! `hybra data`: what models are trained on.

mod inspect;
mod show;
mod tokenizer;

use anyhow::Result;
use clap::Subcommand;
use std::process::ExitCode;

/// Look at training data, and train tokenizers on it
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Subcommand)]
enum DataCommand {
    Inspect(inspect::Args),
    Tokenizer(tokenizer::Args),
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        DataCommand::Inspect(args) => inspect::run(args),
        DataCommand::Tokenizer(args) => tokenizer::run(args),
    }
}

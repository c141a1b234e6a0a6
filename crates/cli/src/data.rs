//! `hybra data`: examples of the tasks as lines of JSON, in OpenAI's messages format; a look at
//! training data; tokenizers.

mod inspect;
mod show;
mod tokenizer;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use hybra_eval::{Example, Phrasing, Split, Task, TaskOptions, write_examples};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Make training data, look at it, and train tokenizers on it
///
/// A line of a task is {"messages": […], "tools": […]?, "task", "answer", "difficulty"}. The same options give
/// the same lines. No structure of the test split (a program up to its names, a pair of operands, a
/// wording) occurs in the train split, whatever the seeds; the hard split is out of range.
#[derive(clap::Args)]
#[command(
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  hybra data chainbox -n 3
  hybra data arithmetic --split test --seed 7 -n 500 -o test.jsonl
  hybra data chainbox --phrasing terse --max-difficulty 4 -n 10000 -o train.jsonl"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Chains of definitions modulo 10, shuffled among others: c=b-7;b=0;d=c*9;d?
    Chainbox(TaskArgs),
    /// Integers added, subtracted and multiplied digit by digit: 47+38?
    Arithmetic(TaskArgs),
    /// Function calls whose argument another call looks up
    Tools(TaskArgs),
    /// One of many key-value pairs
    Recall(TaskArgs),
    /// Small problems whose answer must have a form: twice, in brackets, as JSON
    Format(TaskArgs),
    /// Questions about the model, small talk, and requests beyond it
    About(TaskArgs),
    /// Two answers to a problem, with scores and a ranking: for a generative reward model
    Judge(TaskArgs),
    Inspect(inspect::Args),
    Tokenizer(tokenizer::Args),
}

/// What examples of a task are made of.
#[derive(clap::Args, Clone)]
pub(crate) struct ExampleArgs {
    /// train, test (held-out structures) or hard (out of range) [default: train; of eval: test]
    #[arg(long)]
    split: Option<Split>,
    /// Wording: terse (symbols), natural (sentences) or mixed
    #[arg(long, default_value = "mixed")]
    phrasing: Phrasing,
    /// Leave out what is more difficult: links of a chain, digits, pairs
    #[arg(long, value_name = "N")]
    max_difficulty: Option<u32>,
}

impl ExampleArgs {
    /// The crate's form, with `split` where none was asked for.
    pub(crate) fn options(&self, split: Split) -> TaskOptions {
        let Self { phrasing, max_difficulty, .. } = *self;
        TaskOptions { split: self.split.unwrap_or(split), phrasing, max_difficulty }
    }
}

#[derive(clap::Args)]
struct TaskArgs {
    #[command(flatten)]
    examples: ExampleArgs,
    /// Other numbers, other examples
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many examples
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    count: u64,
    /// Write to a file, whole or not at all [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let (task, args) = match args.command {
        Command::Chainbox(args) => (Task::Chainbox, args),
        Command::Arithmetic(args) => (Task::Arithmetic, args),
        Command::Tools(args) => (Task::Tools, args),
        Command::Recall(args) => (Task::Recall, args),
        Command::Format(args) => (Task::Format, args),
        Command::About(args) => (Task::About, args),
        Command::Judge(args) => (Task::Judge, args),
        Command::Inspect(args) => return inspect::run(args),
        Command::Tokenizer(args) => return tokenizer::run(args),
    };
    let options = args.examples.options(Split::Train);
    let mut lines = |out: &mut dyn Write| -> Result<()> {
        for index in 0..args.count {
            let example: Example = task.example(options, args.seed, index)?;
            write_examples(out, [&example])?;
        }
        Ok(())
    };
    match &args.output {
        Some(path) => {
            write_atomically(path, &mut lines)?;
            eprintln!("{}: {} examples of {task}", path.display(), args.count);
        }
        None => {
            let mut out = BufWriter::new(std::io::stdout().lock());
            lines(&mut out)?;
            out.flush()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the file `path` of what `write` writes, or leaves what was there.
pub(crate) fn write_atomically(
    path: &Path,
    write: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    if path.is_dir() {
        bail!("{}: expected a file, found a directory", path.display());
    }
    let name = || path.display().to_string();
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    // Unlike a temporary file's, the permissions are those of any new file.
    let file = tempfile::Builder::new().make_in(folder, |path| File::create_new(path));
    let mut file = file.with_context(name)?;
    let mut out = BufWriter::new(file.as_file_mut());
    write(&mut out)?;
    out.flush().with_context(name)?;
    drop(out);
    file.as_file().sync_all().with_context(name)?;
    file.persist(path).with_context(name)?;
    Ok(())
}

//! `hybra data tokenizer`: trains a byte-level BPE tokenizer on the text of a data set.

use anyhow::Result;
use hybra_train::data::{Source, train_bpe};
use std::path::PathBuf;
use std::process::ExitCode;

/// Train a byte-level BPE tokenizer on conversations and text
///
/// Writes tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json,
/// with the control tokens and the chat format of the family. Digits, punctuation and operators
/// are one token each. The same data gives the same files.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra data tokenizer --vocab-size 512 -o tokenizer chat.jsonl
  hybra data tokenizer --vocab-size 8192 -o tokenizer part-*.parquet notes.jsonl")]
pub(crate) struct Args {
    /// JSONL or Parquet files
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Ids of the vocabulary, at least 275
    #[arg(long, value_name = "V")]
    vocab_size: usize,
    /// Directory to write to
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Most records of each file
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true)]
    limit: u64,
    /// Columns that are no part of the conversation
    #[arg(long, value_name = "COLUMN", value_delimiter = ',')]
    ignore: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let sources =
        args.files.iter().map(|file| Source::open(file)).collect::<Result<Vec<_>, _>>()?;
    let records = sources.iter().flat_map(|source| source.records(args.limit, &args.ignore));
    let files = train_bpe(records, args.vocab_size)?;
    files.write(&args.output)?;
    if files.num_tokens < args.vocab_size {
        eprintln!("note: the text holds merges for {} ids only", files.num_tokens);
    }
    let num_records: u64 =
        sources.iter().filter_map(Source::num_records).map(|n| n.min(args.limit)).sum();
    let output = args.output.display().to_string();
    if args.json {
        let names = files.files.each_ref().map(|(name, _)| *name);
        let report = serde_json::json!({
            "output": output,
            "vocab_size": files.num_tokens,
            "num_records": num_records,
            "files": names,
        });
        println!("{report:#}");
    } else {
        println!("{output}: {} ids from {num_records} records", files.num_tokens);
    }
    Ok(ExitCode::SUCCESS)
}

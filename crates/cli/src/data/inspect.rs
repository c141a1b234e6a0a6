//! `hybra data inspect`: samples as the trainer sees them, token by token with the loss mask.

use super::show::{Style, document};
use crate::source;
use anyhow::{Context, Result, bail};
use hybra_chat::{ChatModel, GenerationDefaults};
use hybra_model::config::Config;
use hybra_tokenizer::{SpecialIds, Tokenizer};
use hybra_train::data::{
    Corpus, DataConfig, Document, Sample, SampleEncoder, SourceConfig, Thinking, TooLong,
    task_generator,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Samples that the summary counts, where `--scan` says nothing.
const DEFAULT_SCAN: u64 = 1000;

/// Show samples as tokens with their loss mask
///
/// Samples come in the order and the form in which a run with the same settings sees them.
/// Learned tokens are on green, masked ones are dim; shades change from token to token. Without
/// colours learned tokens are in brackets and masked ones end in │.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra data inspect --model tokenizer chat.jsonl               three samples and a summary
  hybra data inspect --model tokenizer chat.jsonl --p-off 0.1 --p-truncate 0.5 -n 5
  hybra data inspect --model model --config run.toml --scan 10000
  hybra data inspect --model model chat.parquet --json")]
pub(crate) struct Args {
    /// JSONL or Parquet files
    #[arg(value_name = "FILE", required_unless_present = "config", conflicts_with = "config")]
    files: Vec<PathBuf>,
    /// Model, or a directory with a tokenizer [default: the settings' model, else the one in this
    /// binary]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Settings of a run: its data, and its model's tokenizer
    #[arg(long, value_name = "RUN.toml")]
    config: Option<PathBuf>,
    /// Samples to show
    #[arg(short = 'n', long, value_name = "N", default_value_t = 3)]
    count: u64,
    /// First sample of the run to show
    #[arg(long, value_name = "I", default_value_t = 0)]
    start: u64,
    /// Samples from the first that the summary counts [default: an epoch, at most 1000]
    #[arg(long, value_name = "N")]
    scan: Option<u64>,
    /// Order of the samples and choice of the cuts
    #[arg(long, value_name = "S", default_value_t = 0, conflicts_with = "config")]
    seed: u64,
    /// Share of the traces to drop
    #[arg(long, value_name = "P", default_value_t = 0.0, conflicts_with = "config")]
    p_off: f64,
    /// Share of the traces to cut at a random budget
    #[arg(long, value_name = "P", default_value_t = 0.0, conflicts_with = "config")]
    p_truncate: f64,
    /// Leave longer documents out and count them
    #[arg(long, value_name = "TOKENS", conflicts_with = "config")]
    max_len: Option<usize>,
    /// Columns that are no part of the conversation
    #[arg(long, value_name = "COLUMN", value_delimiter = ',', conflicts_with = "config")]
    ignore: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let (config, own_model) = match &args.config {
        Some(path) => from_file(path).with_context(|| path.display().to_string())?,
        None => (from_args(&args), None),
    };
    let model = args.model.as_deref().or(own_model.as_deref());
    let encoder = SampleEncoder::new(chat_model(model)?)?;
    let corpus = Corpus::open(&config, encoder, &task_generator)?;
    let shown = args.start..args.start.saturating_add(args.count);
    let samples = shown.map(|index| Ok((index, corpus.sample(index)?)));
    let samples = samples.collect::<Result<Vec<_>>>()?;
    let summary = Summary::count(&corpus, &args)?;
    if args.json {
        let samples: Vec<Value> = samples.iter().map(|(i, s)| to_json(&corpus, *i, s)).collect();
        println!("{:#}", json!({ "samples": samples, "summary": summary.to_json() }));
        return Ok(ExitCode::SUCCESS);
    }
    let style = Style::of_stdout();
    for (index, sample) in &samples {
        print_sample(&corpus, *index, sample, style);
    }
    summary.print(&corpus);
    Ok(ExitCode::SUCCESS)
}

/// The data of a run's settings, and the directory with its tokenizer.
fn from_file(path: &Path) -> Result<(DataConfig, Option<String>)> {
    let text = std::fs::read_to_string(path)?;
    let mut table: toml::Table = toml::from_str(&text)?;
    let Some(data) = table.remove("data") else { bail!("expected a [data] table, found none") };
    let model = table.get("model").and_then(|model| model.get("from").or(model.get("tokenizer")));
    let model = model.and_then(toml::Value::as_str).map(str::to_owned);
    Ok((data.try_into()?, model))
}

fn from_args(args: &Args) -> DataConfig {
    let source = |path: &PathBuf| SourceConfig {
        path: Some(path.clone()),
        p_off: args.p_off,
        p_truncate: args.p_truncate,
        too_long: TooLong::Drop,
        ignore: args.ignore.clone(),
        ..SourceConfig::default()
    };
    DataConfig {
        seed: args.seed,
        pack_len: args.max_len.unwrap_or(usize::MAX),
        batch_size: 1,
        pool: 1,
        sources: args.files.iter().map(source).collect(),
    }
}

/// The text side of a model; a directory needs no more than a tokenizer.
fn chat_model(model: Option<&str>) -> Result<ChatModel> {
    if let Some(directory) = model.map(Path::new).filter(|d| d.join("tokenizer.json").is_file()) {
        let read = |name: &str| match std::fs::read_to_string(directory.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| directory.join(name).display().to_string()),
        };
        let json = read("tokenizer.json")?.unwrap_or_default();
        let (config, template) = (read("tokenizer_config.json")?, read("chat_template.jinja")?);
        let ids = SpecialIds::default();
        let name = directory.display().to_string();
        let tokenizer = Tokenizer::from_files(&json, config.as_deref(), template.as_deref(), &ids);
        let tokenizer = tokenizer.with_context(|| name.clone())?;
        let eos = tokenizer.eos_ids().to_vec();
        return Ok(ChatModel::new(name, tokenizer, eos, GenerationDefaults::default())?);
    }
    let source = source::resolve(model)?;
    let config = Config::from_checkpoint(&source.checkpoint)?;
    let loaded = source::load_tokenizer(&source, &config)?;
    Ok(ChatModel::new(source.name, loaded.tokenizer, loaded.eos_token_ids, loaded.defaults)?)
}

fn print_sample(corpus: &Corpus, index: u64, sample: &Sample, style: Style) {
    println!("{}", style.title(&format!("sample {index}, {}", sample.place)));
    for found in &sample.documents {
        let Some(found) = found else {
            println!("  left out: too long\n");
            continue;
        };
        let forms: Vec<String> = found.thinking.iter().map(|&form| describe(form)).collect();
        let learned = found.mask.iter().filter(|&&learned| learned).count();
        println!("  {} tokens, {learned} learned{}", found.tokens.len(), forms.concat());
        println!("{}\n", document(corpus.encoder().tokenizer(), found, style));
    }
}

fn describe(thinking: Thinking) -> String {
    match thinking {
        Thinking::None => ", no trace".to_owned(),
        Thinking::Off => ", trace dropped".to_owned(),
        Thinking::Full => ", whole trace".to_owned(),
        Thinking::Truncated { budget, kept } => {
            format!(", trace cut to {kept} tokens at a budget of {budget}")
        }
    }
}

fn to_json(corpus: &Corpus, index: u64, sample: &Sample) -> Value {
    let tokenizer = corpus.encoder().tokenizer();
    let document = |document: &Document| {
        let pairs = document.tokens.iter().zip(&document.mask);
        let tokens = pairs.map(|(&id, learned)| {
            json!({ "id": id, "text": tokenizer.decode(&[id], false), "learned": learned })
        });
        json!({ "thinking": document.thinking, "tokens": tokens.collect::<Vec<_>>() })
    };
    let documents = sample.documents.iter().map(|found| found.as_ref().map(document));
    json!({
        "index": index,
        "place": sample.place.to_string(),
        "epoch": sample.pick.epoch,
        "documents": documents.collect::<Vec<_>>(),
    })
}

/// Counts over many samples.
#[derive(Default)]
struct Summary {
    num_samples: u64,
    num_dropped: u64,
    num_learned: usize,
    lengths: Vec<usize>,
    /// Turns without, with dropped, whole and cut trace.
    thinking: [u64; 4],
}

const FORMS: [&str; 4] = ["no trace", "trace dropped", "whole trace", "trace cut"];

impl Summary {
    fn count(corpus: &Corpus, args: &Args) -> Result<Self> {
        let sizes = corpus.sources().iter().map(|source| source.num_records());
        let epoch = sizes.sum::<Option<u64>>().unwrap_or(DEFAULT_SCAN).min(DEFAULT_SCAN);
        let num_samples = args.scan.unwrap_or(epoch);
        let mut summary = Self { num_samples, ..Self::default() };
        for index in args.start..args.start.saturating_add(num_samples) {
            let sample = corpus.sample(index)?;
            summary.num_dropped += sample.num_dropped();
            for document in sample.documents.iter().flatten() {
                summary.lengths.push(document.tokens.len());
                summary.num_learned += document.mask.iter().filter(|&&learned| learned).count();
                for form in &document.thinking {
                    summary.thinking[match form {
                        Thinking::None => 0,
                        Thinking::Off => 1,
                        Thinking::Full => 2,
                        Thinking::Truncated { .. } => 3,
                    }] += 1;
                }
            }
        }
        summary.lengths.sort_unstable();
        Ok(summary)
    }

    fn num_tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Lower ends of the classes of lengths, powers of two, with their counts.
    fn histogram(&self) -> Vec<(usize, usize)> {
        let mut classes: Vec<(usize, usize)> = Vec::new();
        for &len in &self.lengths {
            let low = 1 << len.ilog2();
            match classes.last_mut() {
                Some((last, count)) if *last == low => *count += 1,
                _ => classes.push((low, 1)),
            }
        }
        classes
    }

    fn to_json(&self) -> Value {
        let histogram: Vec<Value> = self
            .histogram()
            .iter()
            .map(|(low, count)| json!({ "from": low, "to": 2 * low - 1, "documents": count }))
            .collect();
        json!({
            "num_samples": self.num_samples,
            "num_documents": self.lengths.len(),
            "num_dropped": self.num_dropped,
            "num_tokens": self.num_tokens(),
            "num_learned": self.num_learned,
            "longest": self.lengths.last(),
            "turns": {
                "none": self.thinking[0], "off": self.thinking[1],
                "full": self.thinking[2], "truncated": self.thinking[3],
            },
            "lengths": histogram,
        })
    }

    fn print(&self, corpus: &Corpus) {
        for source in corpus.sources() {
            match source.num_records() {
                Some(num) => println!("{}: {num} records", source.name()),
                None => println!("{}: generated", source.name()),
            }
        }
        let (documents, tokens) = (self.lengths.len(), self.num_tokens());
        let share = 100.0 * self.num_learned as f64 / (tokens as f64).max(1.0);
        println!(
            "{} samples: {documents} documents, {tokens} tokens, {} learned ({share:.1} %), \
             {} too long",
            self.num_samples, self.num_learned, self.num_dropped
        );
        let forms = FORMS.iter().zip(self.thinking).filter(|(_, count)| *count > 0);
        let forms: Vec<String> = forms.map(|(form, count)| format!("{count} {form}")).collect();
        println!("assistant turns: {}", forms.join(", "));
        let histogram = self.histogram();
        let most = histogram.iter().map(|(_, count)| *count).max().unwrap_or(0);
        println!("tokens per document:");
        for (low, count) in histogram {
            let bar = "█".repeat((count * 40).div_ceil(most.max(1)));
            println!("{:>16} {count:>7} {bar}", format!("{low}–{}", 2 * low - 1));
        }
    }
}

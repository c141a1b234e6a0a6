//! `hybra eval`: how often a model is right, and what it costs, at each thinking budget.

use crate::cpu::{Arithmetic, ModelArgs};
use crate::data::{ExampleArgs, write_atomically};
use crate::options::{StateArgs, StateDtypeArg};
use crate::progress::Progress;
use crate::session::{Limits, Session};
use anyhow::{Context, Result};
use hybra_engine::{EngineConfig, Grace};
use hybra_eval::{
    Budget, EvalOptions, Example, Report, Row, Split, Task, evaluate, read_examples, svg,
};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Sequences generated at once.
const BATCH: usize = 32;
/// Examples of a task.
const COUNT: u32 = 500;

/// Measure accuracy against thinking budget
///
/// Every assistant's turn of an example is generated; all must be right. `off` has the thinking
/// section closed in the prompt, 0 opens it and cuts it at once, inf leaves it --max-tokens less the
/// reserve for the answer. Accuracy has its 95 % Wilson interval. A reply is well formed if it has
/// exactly one closing tag, or with `off` none. In examples with functions, a result is invented
/// if a reply's answer or call holds a number that stands in no turn before it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra eval --phrasing terse --max-difficulty 4
  hybra eval ./model --task chainbox,arithmetic --budgets off,16,inf -n 1000 --svg curve.svg
  hybra eval ./model --task test.jsonl --json > report.json")]
pub(crate) struct Args {
    /// Directory, .gguf file or hub id [default: the model inside this binary]
    model: Option<String>,
    /// chainbox, arithmetic, tools, recall, format, about, judge, or a file of lines as `hybra data` writes
    #[arg(long, value_name = "TASK|FILE,..", value_delimiter = ',', default_value = "chainbox")]
    task: Vec<String>,
    /// Thinking budgets: off, tokens or inf
    #[arg(
        long,
        value_name = "B,..",
        value_delimiter = ',',
        default_value = "off,0,8,16,32,64,inf"
    )]
    budgets: Vec<Budget>,
    /// Examples of each task; of a file, the most [default: 500, or the whole file]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// Of tasks and of sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    examples: ExampleArgs,
    /// Randomness; 0 takes the most probable token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Most tokens of a turn, thinking included
    #[arg(long, value_name = "N", default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Tokens after a budget in which a good place for the cut is looked for: N or N%
    /// [default: 10% of the budget, 16 to 500]
    #[arg(long, value_name = "G")]
    thinking_budget_grace: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Draw accuracy against thinking into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    cpu: ModelArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let grace = args.thinking_budget_grace.as_deref().map_or(Ok(Grace::Default), str::parse);
    let options = EvalOptions {
        budgets: args.budgets.clone(),
        grace: grace.context("--thinking-budget-grace")?,
        temperature: args.temperature,
        seed: args.seed,
        max_tokens: args.max_tokens,
    };
    let sets = args.task.iter().map(|task| examples(&args, task)).collect::<Result<Vec<_>>>()?;
    let mut session = open(&args)?;
    let mut results = Vec::new();
    for (task, examples) in args.task.iter().zip(&sets) {
        let mut bar = Progress::pieces(task, (examples.len() * options.budgets.len()) as u64);
        let mut done = || bar.advance(1);
        let Session { engine, model } = &mut session;
        let rows = evaluate(engine, model, task, examples, &options, &mut done);
        results.extend(rows.with_context(|| task.clone())?);
    }
    let report = Report {
        model: session.model.name.clone(),
        temperature: args.temperature,
        seed: args.seed,
        data: describe(&args),
        results,
    };
    if let Some(path) = &args.svg {
        let picture = svg(&report);
        write_atomically(path, &mut |out| Ok(out.write_all(picture.as_bytes())?))?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(ExitCode::SUCCESS)
}

fn open(args: &Args) -> Result<Session> {
    let state = StateArgs { kv_dtype: None, state_dtype: StateDtypeArg::F32 };
    let limits = Limits { state, context: None, num_speculative_tokens: 0 };
    let config = EngineConfig { max_num_seqs: BATCH, ..EngineConfig::default() };
    let load = args.cpu.load_options(Arithmetic::Fast);
    let model = args.cpu.sized(args.model.as_deref())?;
    Session::open(model.as_deref(), args.cpu.cpu()?, load, limits, config)
}

/// The examples of a task, or of a file; a task's name always means the task.
fn examples(args: &Args, name: &str) -> Result<Vec<Example>> {
    let task = match name.parse::<Task>() {
        Ok(task) => task,
        Err(error) if !Path::new(name).is_file() => {
            return Err(error).context(format!("{name}: neither a task nor a file"));
        }
        Err(_) => {
            let file = File::open(name).with_context(|| name.to_owned())?;
            let mut examples = read_examples(BufReader::new(file), name)?;
            examples.truncate(args.count.map_or(usize::MAX, |count| count as usize));
            return Ok(examples);
        }
    };
    let options = args.examples.options(Split::Test);
    let count = u64::from(args.count.unwrap_or(COUNT));
    let examples = (0..count).map(|index| task.example(options, args.seed, index));
    Ok(examples.collect::<Result<_, _>>()?)
}

/// What the examples are of.
fn describe(args: &Args) -> String {
    let options = args.examples.options(Split::Test);
    let most = options.max_difficulty.map(|most| format!(", difficulty at most {most}"));
    let own = format!("{} split, {}", options.split, options.phrasing.name());
    let made = args.task.iter().any(|task| task.parse::<Task>().is_ok());
    if made { own + &most.unwrap_or_default() } else { args.task.join(", ") }
}

fn print(report: &Report) {
    let mut task = "";
    println!("{}: {}", report.model, report.data);
    for row in &report.results {
        if row.task != task {
            task = &row.task;
            println!("\n{task}, {} examples", row.accuracy.total);
            let invented = row.invented.map_or("", |_| "  invented  95% interval");
            println!(
                "budget  accuracy  95% interval  thought  answer   cut  formed  saved   tok/s{invented}"
            );
        }
        println!("{}", line(row));
    }
}

fn line(row: &Row) -> String {
    let percent = |share: f64| 100.0 * share;
    let Row { budget, accuracy, .. } = row;
    let saved = row.saved_percent.map_or("-".to_owned(), |saved| format!("{saved:.0}%"));
    let range = |low, high| format!("{:.1}-{:.1}%", percent(low), percent(high));
    let interval = range(accuracy.low, accuracy.high);
    let invented = row.invented.map_or_else(String::new, |rate| {
        format!("  {:>7.1}%  {:>12}", percent(rate.share), range(rate.low, rate.high))
    });
    let unfinished = match percent(row.unfinished) {
        0.0 => String::new(),
        share => format!("  {share:.1}% unfinished"),
    };
    format!(
        "{budget:>6}  {:>7.1}%  {interval:>12}  {:>7.1} {:>7.1} {:>4.0}% {:>6.1}% {saved:>6} {:>7.0}\
         {invented}{unfinished}",
        percent(accuracy.share),
        row.thinking_tokens,
        row.answer_tokens,
        percent(row.cut),
        percent(row.well_formed),
        row.tokens_per_second,
    )
}

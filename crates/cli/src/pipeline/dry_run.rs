//! `hybra pipeline --dry-run`: what would run, how large it is and how long it takes.
//!
//! Tokens follow from run files; memory of a rank is weights, gradient and its share of the moments,
//! all f32, without activations; times follow from the recipe's `[estimate]`, and from earlier runs
//! where a stage is done.

use super::recipe::{Estimate, Recipe, Resolved, Stage};
use super::{Done, State, state};
use crate::size;
use crate::source::{self, Described};
use anyhow::{Context, Result};
use hybra_model::memory::ParameterCount;
use hybra_train::RunConfig;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// A stage on paper.
#[derive(Debug, Serialize)]
struct Row {
    stage: String,
    state: State,
    steps: Option<u64>,
    tokens: Option<u64>,
    parameters: Option<u64>,
    /// Of a rank.
    memory: Option<u64>,
    /// Of a checkpoint with its moments.
    disk: Option<u64>,
    seconds: Option<f64>,
    command: Vec<String>,
}

/// Prints all stages.
pub(super) fn print(recipe: &Recipe, stages: &[Resolved], as_json: bool) -> Result<()> {
    let rows: Vec<Row> = recipe
        .stages
        .iter()
        .zip(stages)
        .map(|(stage, resolved)| row(recipe.estimate, stage, resolved))
        .collect::<Result<_>>()?;
    if as_json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    if !recipe.about.is_empty() {
        println!("{}\n", recipe.about);
    }
    println!(
        "{:<22} {:<12} {:>8} {:>10} {:>10} {:>12} {:>11} {:>10}",
        "stage", "state", "steps", "tokens", "params", "memory/rank", "checkpoint", "time"
    );
    let dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    let time = |seconds: f64| size::duration(Duration::from_secs_f64(seconds));
    for row in &rows {
        let state = match row.state {
            State::Done => "done",
            State::Interrupted => "interrupted",
            State::Changed => "changed",
            State::ToDo => "to do",
        };
        println!(
            "{:<22} {state:<12} {:>8} {:>10} {:>10} {:>12} {:>11} {:>10}",
            row.stage,
            dash(row.steps.map(|steps| steps.to_string())),
            dash(row.tokens.map(size::short_count)),
            dash(row.parameters.map(size::short_count)),
            dash(row.memory.map(size::bytes)),
            dash(row.disk.map(size::bytes)),
            dash(row.seconds.map(time)),
        );
    }
    let left = rows.iter().filter(|row| row.state != State::Done);
    let (tokens, left) = (rows.iter().filter_map(|row| row.tokens).sum(), left);
    let unknown =
        rows.iter().filter(|row| row.state != State::Done && row.seconds.is_none()).count();
    println!(
        "\n{} tokens in all; about {} to go{}",
        size::short_count(tokens),
        time(left.filter_map(|row| row.seconds).sum()),
        match unknown {
            0 => String::new(),
            n => format!(", and {n} stages of unknown length"),
        }
    );
    Ok(())
}

fn row(estimate: Estimate, stage: &Stage, resolved: &Resolved) -> Result<Row> {
    let run = run_file(resolved).with_context(|| stage.name.clone())?;
    let parameters = match &stage.shape {
        Some(shape) => {
            let Described { config, .. } =
                source::describe(Some(shape)).with_context(|| format!("{}: shape", stage.name))?;
            Some(ParameterCount::of(&config).total)
        }
        None => None,
    };
    let tokens = run.as_ref().map(tokens);
    let seconds = match (state(resolved)?, stage.minutes, tokens) {
        (State::Done, ..) => {
            crate::search::read_json::<Done>(&resolved.done())?.map(|done| done.seconds)
        }
        (_, Some(minutes), _) => Some(60.0 * minutes),
        (_, None, Some(tokens)) => {
            let rate = stage.tokens_per_second.unwrap_or(estimate.tokens_per_second);
            Some(tokens as f64 / rate.max(1e-9))
        }
        _ => None,
    };
    let trained = parameters.filter(|_| run.is_some());
    let ranks = estimate.ranks.max(1) as u64;
    Ok(Row {
        stage: stage.name.clone(),
        state: state(resolved)?,
        steps: run.as_ref().map(|run| run.steps),
        tokens,
        parameters,
        memory: trained.map(|n| 8 * n + 8 * n.div_ceil(ranks)),
        disk: trained.map(|n| 12 * n),
        seconds,
        command: resolved.command.clone(),
    })
}

/// The run file of a training stage, with the command's changes.
fn run_file(stage: &Resolved) -> Result<Option<RunConfig>> {
    if !stage.is_parallel() || stage.command[0] != "train" {
        return Ok(None);
    }
    let values = |option: &str| -> Vec<String> {
        let words = stage.command.windows(2).filter(|pair| pair[0] == option);
        words.map(|pair| pair[1].clone()).collect()
    };
    let files = values("--config");
    let file = files.first().context("expected --config RUN.toml among its words")?;
    Ok(Some(RunConfig::read(Path::new(file), &values("--set"))?))
}

/// Tokens that a run reads, at most: packs are nearly full, answers of its own are shorter.
fn tokens(run: &RunConfig) -> u64 {
    let number = |key: &str, otherwise: u64| {
        run.data
            .get(key)
            .and_then(|value| u64::try_from(value.as_integer()?).ok())
            .unwrap_or(otherwise)
    };
    if let Some(rollout) = &run.rollout {
        let answers = rollout.prompts as u64 * rollout.group as u64;
        return run.steps * answers * u64::from(rollout.max_tokens);
    }
    let (pack_len, batch) = (number("pack_len", 0), number("batch_size", 1));
    if run.phases.is_empty() {
        return run.steps * pack_len * batch;
    }
    let phase = |phase: &hybra_train::config::PhaseConfig| {
        let pack_len = phase.pack_len.map_or(pack_len, |len| len as u64);
        phase.steps * pack_len * phase.batch_size.map_or(batch, |size| size as u64)
    };
    run.phases.iter().map(phase).sum()
}

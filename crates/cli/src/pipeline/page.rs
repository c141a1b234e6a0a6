//! `RUN/report.html`: a pipeline on one page, without scripts: accuracy by thinking budget of every
//! model that a stage evaluated, what thinking less saves, curves of every training stage, which stage
//! was made from which, exact commands and times.

use super::recipe::{Recipe, Resolved};
use super::{Done, State, state};
use crate::picture::{COLOURS, Line, Point, STYLE, accuracy, escape, tasks};
use crate::size;
use anyhow::Result;
use hybra_train::RunDir;
use hybra_train::report::{FIGURE_STYLE, RunLog};
use serde::Deserialize;
use std::fmt::Write;
use std::time::Duration;

/// What `hybra eval --json` prints, as far as the page needs it.
#[derive(Deserialize)]
struct Evaluated {
    data: String,
    results: Vec<Measured>,
}

#[derive(Deserialize, Clone)]
struct Measured {
    task: String,
    budget: serde_json::Value,
    accuracy: Counted,
    thinking_tokens: f64,
    answer_tokens: f64,
    well_formed: f64,
}

#[derive(Deserialize, Clone)]
struct Counted {
    correct: usize,
    total: usize,
    share: f64,
}

/// Points of accuracy that count as none lost.
const EQUAL: f64 = 0.01;

/// The page.
pub(super) fn html(recipe: &Recipe, stages: &[Resolved]) -> Result<String> {
    let title = if recipe.about.is_empty() { "Pipeline" } else { &recipe.about };
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>{title}</title>\n<style>{STYLE}{FIGURE_STYLE}\
         details{{margin:.6rem 0}}summary{{cursor:pointer}}td.words{{text-align:left;font-family:monospace;\
         font-size:12px;overflow-wrap:anywhere}}</style></head><body>\n<h1>{title}</h1>\n",
        title = escape(title)
    );
    let evaluated = evaluated(stages);
    if let Some((_, first)) = evaluated.first() {
        let _ = write!(
            page,
            "<h2>Accuracy by thinking budget</h2>\n<p class=\"soft\">Percent right with 95 % intervals: {}.</p>\
             \n<main>\n",
            escape(&first.data)
        );
        let lines: Vec<Line> = evaluated.iter().map(line).collect();
        for group in lines.chunks(COLOURS.len()) {
            tasks(&group[0]).iter().for_each(|task| page.push_str(&accuracy(task, group)));
        }
        page.push_str("</main>\n");
        page.push_str(&savings(&evaluated));
    }
    page.push_str(&curves(stages));
    page.push_str(&table(stages)?);
    page.push_str("</body></html>\n");
    Ok(page)
}

/// Stages that printed an evaluation, by name without its ending.
fn evaluated(stages: &[Resolved]) -> Vec<(String, Evaluated)> {
    let read = |stage: &Resolved| {
        let text = std::fs::read_to_string(stage.prints.then_some(&stage.out)?).ok()?;
        let name = stage.name.trim_end_matches(".json").trim_start_matches("eval-");
        Some((name.to_owned(), serde_json::from_str(&text).ok()?))
    };
    stages.iter().filter_map(read).collect()
}

fn budget(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn line((name, evaluated): &(String, Evaluated)) -> Line {
    let point = |row: &Measured| Point {
        task: row.task.clone(),
        budget: budget(&row.budget),
        correct: row.accuracy.correct,
        total: row.accuracy.total,
        thinking_tokens: row.thinking_tokens,
    };
    Line { name: name.clone(), points: evaluated.results.iter().map(point).collect() }
}

/// What thinking less saves: of each model and task the smallest budget that loses at most a point.
fn savings(evaluated: &[(String, Evaluated)]) -> String {
    let mut rows = String::new();
    for (name, evaluated) in evaluated {
        for whole in evaluated.results.iter().filter(|row| budget(&row.budget) == "inf") {
            let cost = |row: &Measured| row.thinking_tokens + row.answer_tokens;
            let equal = |row: &&Measured| {
                row.task == whole.task && row.accuracy.share >= whole.accuracy.share - EQUAL
            };
            let least = evaluated.results.iter().filter(equal);
            let Some(least) = least.min_by(|a, b| cost(a).total_cmp(&cost(b))) else { continue };
            let saved = 100.0 * (1.0 - cost(least) / cost(whole).max(1e-9));
            let formed = evaluated.results.iter().filter(|row| row.task == whole.task);
            let formed = formed.map(|row| row.well_formed).fold(1.0, f64::min);
            let _ = writeln!(
                rows,
                "<tr><td>{}, {}</td><td>{:.1}</td><td>{:.1}</td><td>{}</td><td>{:.1}</td><td>{:.1}</td>\
                 <td>{saved:.0} %</td><td>{:.1}</td></tr>",
                escape(name),
                escape(&whole.task),
                100.0 * whole.accuracy.share,
                cost(whole),
                budget(&least.budget),
                100.0 * least.accuracy.share,
                cost(least),
                100.0 * formed
            );
        }
    }
    format!(
        "<h2>What thinking less saves</h2>\n<p class=\"soft\">The cheapest budget that loses at most one point \
         against no budget; tokens are generated tokens of an example (thinking and answer), means.</p>\n\
         <div class=\"scroll\"><table><tr><th>model, task</th><th>% right, no budget</th><th>tokens</th>\
         <th>budget</th><th>% right</th><th>tokens</th><th>saved</th><th>least % well-formed</th></tr>\n\
         {rows}</table></div>\n"
    )
}

/// A part for every stage that has a log.
fn curves(stages: &[Resolved]) -> String {
    let mut out = String::new();
    for stage in stages {
        let Ok(log) = RunLog::read(&RunDir::new(&stage.out)) else { continue };
        let last = log.steps.last().map_or(0, |line| line.step);
        let _ = write!(
            out,
            "<details><summary>{}: {last} steps</summary>\n<main>{}</main></details>\n",
            escape(&stage.name),
            log.figures()
        );
    }
    if out.is_empty() { out } else { format!("<h2>Training</h2>\n{out}") }
}

fn table(stages: &[Resolved]) -> Result<String> {
    let mut rows = String::new();
    for stage in stages {
        let done: Option<Done> = crate::search::read_json(&stage.done())?;
        let time = match (state(stage)?, done) {
            (State::Done, Some(done)) => size::duration(Duration::from_secs_f64(done.seconds)),
            (State::Interrupted, _) => "interrupted".to_owned(),
            _ => "to do".to_owned(),
        };
        let page = stage.out.join("report.html");
        let link = match page.is_file() {
            true => format!(" (<a href=\"{0}/report.html\">its report</a>)", escape(&stage.name)),
            false => String::new(),
        };
        let _ = writeln!(
            rows,
            "<tr><td>{}{link}</td><td>{}</td><td>{time}</td><td class=\"words\">hybra {}</td></tr>",
            escape(&stage.name),
            escape(&stage.needs.join(", ")),
            escape(&stage.command.join(" "))
        );
    }
    Ok(format!(
        "<h2>Stages</h2>\n<table><tr><th>stage</th><th>made from</th><th>time</th><th>command</th></tr>\n\
         {rows}</table>\n"
    ))
}

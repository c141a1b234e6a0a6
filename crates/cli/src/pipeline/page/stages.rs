//! The stages one by one: what each does in plain words, its time, its exact command, its curves.

use super::Resolved;
use crate::picture::escape;
use crate::pipeline::graph::standing;
use anyhow::Result;
use hybra_train::RunDir;
use hybra_train::report::RunLog;
use std::fmt::Write;

/// A part for every stage that has a log.
pub(super) fn curves(stages: &[Resolved]) -> String {
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
    out
}

/// A row for every stage.
pub(super) fn table(stages: &[Resolved]) -> Result<String> {
    let mut rows = String::new();
    for stage in stages {
        let link = match stage.page() {
            Some(page) => format!(" (<a href=\"{}\">its report</a>)", escape(&page)),
            None => String::new(),
        };
        let _ = writeln!(
            rows,
            "<tr><td>{}{link}</td><td class=\"words why\">{}</td><td class=\"words\">{}</td><td>{}</td>\
             <td class=\"command\">hybra {}</td></tr>",
            escape(&stage.name),
            purpose(&stage.command),
            escape(&stage.needs.join(", ")),
            standing(stage)?.1,
            escape(&stage.command.join(" "))
        );
    }
    Ok(format!(
        "<div class=\"scroll\"><table><tr><th>stage</th><th class=\"words\">what it does</th>\
         <th class=\"words\">made from</th><th>time</th><th class=\"words\">command</th></tr>\n\
         {rows}</table></div>\n"
    ))
}

/// What a command is for; empty where its own words must do.
fn purpose(command: &[String]) -> &'static str {
    let word = |at: usize| command.get(at).map_or("", String::as_str);
    match (word(0), word(1)) {
        ("data", "tokenizer") => "learns which pieces text is cut into",
        ("data", _) => "generates exercises",
        ("train", "sft") => "learns from examples",
        ("train", "distil") => "learns to answer like the teacher",
        ("train", "pairs") => "collects good and bad answers of the model",
        ("train", "traces") => "collects right answers of the model",
        ("train", "dpo") => "learns to prefer good answers to bad ones",
        ("train", "grpo") => "learns from rewards for its own answers",
        ("train", "cache") => "stores what the teacher predicts",
        ("importance", _) => "measures which parts of the model matter",
        ("prune", _) => "takes away what matters least",
        ("search", _) => "finds the best small shape, and trains it",
        ("merge", _) => "mixes the weights of models",
        ("convert", _) => "stores the weights in another format",
        ("eval", _) => "measures accuracy by thinking budget",
        ("bench", _) => "measures memory and speed",
        _ => "",
    }
}

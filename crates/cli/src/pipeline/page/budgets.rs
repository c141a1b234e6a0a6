//! What evaluations say: accuracy by thinking budget, and the tokens that thinking less saves.

use super::Resolved;
use crate::picture::{COLOURS, Line, Point, accuracy, escape, tasks};
use serde::Deserialize;

/// What `hybra eval --json` prints, as far as the page needs it.
#[derive(Deserialize)]
pub(super) struct Evaluated {
    data: String,
    pub(super) results: Vec<Measured>,
}

/// A task at a budget.
#[derive(Deserialize, Clone)]
pub(super) struct Measured {
    pub(super) task: String,
    budget: serde_json::Value,
    pub(super) accuracy: Counted,
    pub(super) thinking_tokens: f64,
    answer_tokens: f64,
    well_formed: f64,
}

#[derive(Deserialize, Clone)]
pub(super) struct Counted {
    correct: usize,
    total: usize,
    pub(super) share: f64,
}

impl Measured {
    /// `off`, a number or `inf`.
    pub(super) fn budget(&self) -> String {
        self.budget.as_str().map_or_else(|| self.budget.to_string(), str::to_owned)
    }

    fn cost(&self) -> f64 {
        self.thinking_tokens + self.answer_tokens
    }
}

impl Evaluated {
    /// The rows without a budget.
    pub(super) fn unlimited(&self) -> impl Iterator<Item = &Measured> {
        self.results.iter().filter(|row| row.budget() == "inf")
    }

    /// The rows of a task.
    pub(super) fn of<'a>(&'a self, task: &'a str) -> impl Iterator<Item = &'a Measured> {
        self.results.iter().filter(move |row| row.task == task)
    }
}

/// Points of accuracy that count as none lost.
const EQUAL: f64 = 0.01;

/// Stages that printed an evaluation, by name without its ending.
pub(super) fn evaluated(stages: &[Resolved]) -> Vec<(String, Evaluated)> {
    let read = |stage: &Resolved| {
        let text = std::fs::read_to_string(stage.prints.then_some(&stage.out)?).ok()?;
        let name = stage.name.trim_end_matches(".json").trim_start_matches("eval-");
        Some((name.to_owned(), serde_json::from_str(&text).ok()?))
    };
    stages.iter().filter_map(read).collect()
}

/// A picture for each task, a line for each model.
pub(super) fn pictures(evaluated: &[(String, Evaluated)]) -> String {
    let Some((_, first)) = evaluated.first() else { return String::new() };
    let mut out = format!(
        "<p class=\"soft\">Percent right with 95 % intervals: {}. To the right a model may think \
         longer; where the lines of two models run together, they answer equally well.</p>\n<main>\n",
        escape(&first.data)
    );
    let lines: Vec<Line> = evaluated.iter().map(line).collect();
    for group in lines.chunks(COLOURS.len()) {
        tasks(&group[0]).iter().for_each(|task| out.push_str(&accuracy(task, group)));
    }
    out + "</main>\n"
}

fn line((name, evaluated): &(String, Evaluated)) -> Line {
    let point = |row: &Measured| Point {
        task: row.task.clone(),
        budget: row.budget(),
        correct: row.accuracy.correct,
        total: row.accuracy.total,
        thinking_tokens: row.thinking_tokens,
    };
    Line { name: name.clone(), points: evaluated.results.iter().map(point).collect() }
}

/// Of each model and task the cheapest budget that loses at most a point.
pub(super) fn savings(evaluated: &[(String, Evaluated)]) -> String {
    let mut rows = String::new();
    for (name, evaluated) in evaluated {
        evaluated.unlimited().for_each(|whole| rows.push_str(&saved(name, evaluated, whole)));
    }
    if rows.is_empty() {
        return rows;
    }
    format!(
        "<h3>Tokens saved at equal accuracy</h3>\n<p class=\"soft\">The cheapest budget that loses \
         at most one point against no budget (<code>inf</code>). Tokens are those that the model \
         generates for an example, thinking and answer, means.</p>\n<div class=\"scroll\"><table>\
         <tr><th>model, task</th><th>% right, no budget</th><th>tokens</th><th>budget</th>\
         <th>% right</th><th>tokens</th><th>saved</th><th>least % well-formed</th></tr>\n\
         {rows}</table></div>\n"
    )
}

fn saved(name: &str, evaluated: &Evaluated, whole: &Measured) -> String {
    let equal = |row: &&Measured| row.accuracy.share >= whole.accuracy.share - EQUAL;
    let least = evaluated.of(&whole.task).filter(equal);
    // The row itself is as good as itself.
    let least = least.min_by(|a, b| a.cost().total_cmp(&b.cost())).unwrap_or(whole);
    let formed = evaluated.of(&whole.task).map(|row| row.well_formed).fold(1.0, f64::min);
    format!(
        "<tr><td>{}, {}</td><td>{:.1}</td><td>{:.1}</td><td>{}</td><td>{:.1}</td><td>{:.1}</td>\
         <td>{:.0} %</td><td>{:.1}</td></tr>\n",
        escape(name),
        escape(&whole.task),
        100.0 * whole.accuracy.share,
        whole.cost(),
        least.budget(),
        100.0 * least.accuracy.share,
        least.cost(),
        100.0 * (1.0 - least.cost() / whole.cost().max(1e-9)),
        100.0 * formed
    )
}

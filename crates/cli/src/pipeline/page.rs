//! `RUN/report.html`: a pipeline on one page, without scripts: what it is about, which stage was made
//! from which, accuracy by thinking budget of every model that a stage evaluated, what thinking less
//! saves and costs, memory and speed, curves of every training stage, exact commands and times.

mod budgets;
mod intro;
mod loss;
mod stages;

use super::recipe::{Recipe, Resolved};
use super::{cost, graph};
use crate::picture::{STYLE, escape};
use anyhow::Result;
use hybra_train::report::FIGURE_STYLE;
use std::fmt::Write;

/// What the pages of other commands do not have.
const PAGE_STYLE: &str = "\
.intro{max-width:46rem}.words{text-align:left}td:not(.words,.command){white-space:nowrap}\
.why{min-width:9rem}h3{font-size:1rem;margin-bottom:.3rem}\
details{margin:.6rem 0}summary{cursor:pointer}p.soft{max-width:46rem}\
th{vertical-align:bottom}td{vertical-align:top}a{color:inherit}\
.command{text-align:left;font-family:monospace;font-size:12px;overflow-wrap:anywhere;min-width:22rem}";

/// A part of the page under a heading.
struct Section {
    /// For links.
    id: &'static str,
    title: &'static str,
    /// Empty where the run has nothing for it: it is left out.
    body: String,
}

/// The page.
pub(super) fn html(recipe: &Recipe, stages: &[Resolved]) -> Result<String> {
    let sections = sections(stages)?;
    let title = if recipe.about.is_empty() { "Pipeline" } else { &recipe.about };
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>{title}</title>\n<style>{STYLE}{FIGURE_STYLE}\
         {PAGE_STYLE}{}</style></head><body>\n<h1>{title}</h1>\n{}",
        graph::STYLE,
        intro::text(stages, &sections)?,
        title = escape(title)
    );
    for Section { id, title, body } in &sections {
        let _ = write!(page, "<h2 id=\"{id}\">{title}</h2>\n{body}");
    }
    page.push_str("</body></html>\n");
    Ok(page)
}

fn sections(stages: &[Resolved]) -> Result<Vec<Section>> {
    let evaluated = budgets::evaluated(stages);
    let all = [
        ("graph", "What was made from what", graph::html(stages)?),
        ("accuracy", "Accuracy by thinking budget", budgets::pictures(&evaluated)),
        ("savings", "What thinking less saves", saving(&evaluated)),
        ("cost", "Memory and speed", cost::html(stages)),
        ("training", "Training", stages::curves(stages)),
        ("stages", "Stages", stages::table(stages)?),
    ];
    let all = all.map(|(id, title, body)| Section { id, title, body });
    Ok(all.into_iter().filter(|section| !section.body.is_empty()).collect())
}

/// Tokens at equal accuracy, and beside it accuracy at fewer tokens.
fn saving(evaluated: &[(String, budgets::Evaluated)]) -> String {
    budgets::savings(evaluated) + &loss::table(evaluated)
}

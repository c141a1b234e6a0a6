//! `hybra merge --sweep`: every alpha answers held-out examples, and the best is chosen.

use super::Job;
use crate::cpu::{Arithmetic, LoadOptions};
use crate::picture::{COLOURS, Dot, Line, Point, STYLE, accuracy, scatter, tasks};
use crate::train::Measure;
use anyhow::{Context, Result};
use hybra_compress::halving::pareto_front;
use hybra_eval::wilson;
use serde::Serialize;
use toml::{Table, Value};

/// What is tried, and on what.
#[derive(clap::Args)]
#[command(next_help_heading = "Sweep")]
pub(super) struct SweepArgs {
    /// Try these alphas (of task arithmetic: scales) and write the best
    #[arg(long, value_name = "A,..", value_delimiter = ',', conflicts_with_all = ["alpha", "weights", "scales"])]
    sweep: Option<Vec<f64>>,
    /// Tasks of the sweep [default: chainbox]
    #[arg(long, value_name = "TASK,..", value_delimiter = ',', requires = "sweep")]
    task: Vec<String>,
    /// Thinking budgets of the sweep [default: off,16,64,inf]
    #[arg(long, value_name = "B,..", value_delimiter = ',', requires = "sweep")]
    budgets: Vec<String>,
    /// Examples of each task [default: 200]
    #[arg(short = 'n', long, value_name = "N", requires = "sweep",
          value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// Of the examples [default: 0]
    #[arg(long, requires = "sweep")]
    seed: Option<u32>,
}

impl SweepArgs {
    /// The alphas, if there is a sweep.
    pub(super) fn alphas(&self) -> Option<&[f64]> {
        self.sweep.as_deref()
    }

    fn settings(&self) -> Table {
        let texts = |list: &[String], default: &[&str]| {
            let given = list.iter().map(|text| Value::String(text.clone()));
            let default = default.iter().map(|text| Value::String((*text).to_owned()));
            Value::Array(if list.is_empty() { default.collect() } else { given.collect() })
        };
        let mut settings = Table::new();
        settings.insert("tasks".to_owned(), texts(&self.task, &["chainbox"]));
        settings.insert("budgets".to_owned(), texts(&self.budgets, &["off", "16", "64", "inf"]));
        settings.insert("count".to_owned(), Value::Integer(self.count.unwrap_or(200).into()));
        settings.insert("seed".to_owned(), Value::Integer(self.seed.unwrap_or(0).into()));
        settings
    }
}

/// What was tried.
#[derive(Serialize)]
pub(super) struct Swept {
    alpha: f64,
    points: Vec<Tried>,
}

/// An alpha and what came of it.
#[derive(Serialize)]
struct Tried {
    alpha: f64,
    /// Mean over tasks and budgets.
    accuracy: f64,
    thinking_tokens: f64,
    /// Whether no other alpha is better in both.
    front: bool,
    results: Vec<Point>,
}

/// Measures every alpha; gives the best and the record.
pub(super) fn sweep(job: &Job, alphas: &[f64]) -> Result<(f64, Swept)> {
    let measure = Measure::new(&job.args.sweep.settings()).context("--sweep")?;
    let exact = LoadOptions::on_cpu(Arithmetic::Exact);
    let mut points = Vec::new();
    for &alpha in alphas {
        let merge = job.merge_of(Some(alpha))?;
        let folder = tempfile::tempdir().context("a folder for the model that is measured")?;
        let model = folder.path().join("model");
        job.write(&merge, &model, None)?;
        let rows = measure.rows(&model, &job.args.cpu, exact)?;
        let results: Vec<Point> = rows.iter().map(Point::of).collect();
        let count = results.len().max(1) as f64;
        let accuracy = results.iter().map(Point::share).sum::<f64>() / count;
        let tokens = results.iter().map(|point| point.thinking_tokens).sum::<f64>() / count;
        eprintln!("alpha {alpha}: {:.1} % right, {tokens:.1} tokens", 100.0 * accuracy);
        points.push(Tried { alpha, accuracy, thinking_tokens: tokens, front: false, results });
    }
    let qualities: Vec<_> =
        points.iter().map(|point| vec![point.accuracy, -point.thinking_tokens]).collect();
    let front = pareto_front(&qualities);
    points.iter_mut().zip(front).for_each(|(point, front)| point.front = front);
    let best = points.iter().filter(|point| point.front).max_by(|a, b| {
        a.accuracy.total_cmp(&b.accuracy).then(b.thinking_tokens.total_cmp(&a.thinking_tokens))
    });
    let alpha = best.context("--sweep: expected at least one alpha")?.alpha;
    let swept = Swept { alpha, points };
    if !job.args.json {
        swept.print();
    }
    Ok((alpha, swept))
}

impl Swept {
    fn print(&self) {
        println!(
            "{:>6}  {:<18} {:>7}  {:>12} {:>8}",
            "alpha", "task, budget", "right", "95 %", "tokens"
        );
        for tried in &self.points {
            for point in &tried.results {
                let (low, high) = wilson(point.correct, point.total);
                let interval = format!("{:.1}-{:.1}", 100.0 * low, 100.0 * high);
                println!(
                    "{:>6}  {:<18} {:>6.1}%  {interval:>12} {:>8.1}",
                    tried.alpha,
                    format!("{}, {}", point.task, point.budget),
                    100.0 * point.share(),
                    point.thinking_tokens
                );
            }
            let mark = match (tried.front, tried.alpha == self.alpha) {
                (_, true) => "  chosen",
                (true, _) => "  on the front",
                _ => "",
            };
            println!("{:>6}  mean {:>20.1}%{mark}", tried.alpha, 100.0 * tried.accuracy);
        }
    }

    /// Accuracy by budget for every alpha, and all alphas on one plane.
    pub(super) fn html(&self) -> String {
        let lines: Vec<Line> = self
            .points
            .iter()
            .map(|tried| Line {
                name: format!("alpha {}", tried.alpha),
                points: tried.results.clone(),
            })
            .collect();
        let dots: Vec<Dot> = self
            .points
            .iter()
            .map(|tried| Dot {
                x: tried.thinking_tokens,
                y: 100.0 * tried.accuracy,
                colour: COLOURS[usize::from(tried.front)],
                ring: tried.alpha == self.alpha,
            })
            .collect();
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Merge sweep</title>\
             <style>{STYLE}</style></head><body>\n<h1>Merged with alpha {}</h1>\n<main>\n",
            self.alpha
        );
        page.push_str(&scatter(
            "Accuracy against thinking",
            "thinking tokens",
            "mean % right; grey: another alpha is better in both; ring: chosen",
            &dots,
        ));
        tasks(&lines[0]).iter().for_each(|task| page.push_str(&accuracy(task, &lines)));
        page + "</main></body></html>\n"
    }
}

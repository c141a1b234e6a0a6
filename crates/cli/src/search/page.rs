//! The page of a search: pictures and tables in one HTML file without scripts.

use super::config::{Arm, SearchConfig};
use super::study::Measured;
use super::{Final, Outcome};
use crate::picture::{COLOURS, Dot, Line, Point, STYLE, accuracy, escape, scatter, tasks};
use crate::size;
use hybra_compress::Target;
use hybra_compress::halving::{Candidate, Scored, pareto_front};
use hybra_eval::wilson;
use hybra_model::Config;
use hybra_model::memory::MemoryPlan;
use std::fmt::Write;

/// What the page is about.
pub(super) struct Page<'a> {
    pub(super) outcome: &'a Outcome<'a>,
    pub(super) config: &'a SearchConfig,
    pub(super) teacher: &'a Config,
    /// The teacher's memory.
    pub(super) whole: MemoryPlan,
    pub(super) winner: &'a Candidate,
    pub(super) of_teacher: Measured,
}

impl Page<'_> {
    /// The page.
    pub(super) fn html(&self) -> String {
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width\">\n<title>Search</title>\n<style>{STYLE}</style></head>\
             <body>\n<h1>The best student in {}</h1>\n<p>{}</p>\n",
            size::bytes(self.outcome.budget_bytes),
            self.summary()
        );
        let lines = self.lines();
        if lines.len() > 1 {
            page.push_str("<h2>Accuracy by thinking budget, held-out examples</h2>\n<main>\n");
            for task in tasks(&lines[0]) {
                page.push_str(&accuracy(&task, &lines));
            }
            page.push_str("</main>\n");
            page.push_str(&self.accuracy_table(&lines));
        }
        page.push_str(&self.ablation());
        if !self.outcome.trials.is_empty() {
            page.push_str("<h2>Candidates</h2>\n<main>\n");
            page.push_str(&self.front());
            page.push_str(&self.surrogate());
            page.push_str("</main>\n");
            page.push_str(&self.candidates());
        }
        page.push_str("</body></html>\n");
        page
    }

    fn summary(&self) -> String {
        let Outcome { shapes, feasible, .. } = self.outcome;
        format!(
            "{feasible} of {shapes} shapes fit {} bytes at {} tokens and batch {}; the teacher takes {}. \
             The winner has {} parameters and takes {} bytes ({:.1} % of the teacher): {}.",
            size::count(self.outcome.budget_bytes),
            size::count(self.config.budget.context),
            self.config.budget.batch,
            size::count(self.whole.total),
            size::count(self.winner.parameters),
            size::count(self.winner.bytes),
            100.0 * self.winner.bytes as f64 / self.whole.total as f64,
            self.shape(&self.winner.target)
        )
    }

    fn shape(&self, target: &Target) -> String {
        let pattern: String =
            target.layers.iter().map(|&layer| self.teacher.layers[layer].kind().letter()).collect();
        format!(
            "{} layers {pattern}, hidden {}, ffn {}, {} × {} Mamba channels",
            target.layers.len(),
            target.hidden_size,
            target.intermediate_size,
            target.mamba_num_heads,
            target.mamba_head_dim
        )
    }

    /// The teacher, and each arm with its seeds added up.
    fn lines(&self) -> Vec<Line> {
        let teacher = Line { name: "teacher".to_owned(), points: self.of_teacher.points.clone() };
        let mut lines = vec![teacher];
        for arm in [Arm::Found, Arm::Random, Arm::Scratch] {
            let runs: Vec<&Final> = self.outcome.finals.iter().filter(|f| f.arm == arm).collect();
            let Some((first, rest)) = runs.split_first() else { continue };
            let mut points = first.measured.points.clone();
            for run in rest {
                for (sum, point) in points.iter_mut().zip(&run.measured.points) {
                    sum.correct += point.correct;
                    sum.total += point.total;
                }
            }
            lines.push(Line { name: arm.name().to_owned(), points });
        }
        lines
    }

    fn accuracy_table(&self, lines: &[Line]) -> String {
        let mut head = String::from("<tr><th>task, budget</th>");
        for line in lines {
            let _ = write!(head, "<th>{}</th>", line.name);
        }
        let mut rows = String::new();
        for (at, point) in lines[0].points.iter().enumerate() {
            let _ = write!(rows, "<tr><td>{}, {}</td>", escape(&point.task), point.budget);
            for line in lines {
                let Some(Point { correct, total, .. }) = line.points.get(at) else { continue };
                let (low, high) = wilson(*correct, *total);
                let _ = write!(
                    rows,
                    "<td>{:.1} <span class=\"soft\">{:.1}–{:.1}</span></td>",
                    100.0 * *correct as f64 / (*total).max(1) as f64,
                    100.0 * low,
                    100.0 * high
                );
            }
            rows.push_str("</tr>\n");
        }
        let _ = write!(rows, "<tr><td>KL from the teacher, nats</td>");
        for line in lines {
            let _ = write!(rows, "<td>{}</td>", self.mean_kl(&line.name));
        }
        rows.push_str("</tr>\n");
        let seeds = self.config.last.as_ref().map_or(0, |last| last.seeds.len());
        format!(
            "<p class=\"soft\">Percent right with 95 % intervals; students over {seeds} seeds together, \
             {} steps of distillation each. <b>random</b>: the same shape, random channels of the \
             teacher as they are, the same distillation. <b>scratch</b>: the same shape from random \
             weights, the same distillation.</p>\n<div class=\"scroll\"><table>{head}</tr>\n{rows}\
             </table></div>\n",
            self.config.last.as_ref().map_or(0, |last| last.steps)
        )
    }

    fn mean_kl(&self, arm: &str) -> String {
        let runs: Vec<f64> = self
            .outcome
            .finals
            .iter()
            .filter(|run| run.arm.name() == arm)
            .map(|run| run.measured.kl)
            .collect();
        match runs.len() {
            0 => "0".to_owned(),
            count => format!("{:.4}", runs.iter().sum::<f64>() / count as f64),
        }
    }

    fn ablation(&self) -> String {
        let rows = self.outcome.ablation;
        let most = rows.iter().map(|row| row.kl).fold(f64::MIN_POSITIVE, f64::max);
        let mut table = String::new();
        for row in rows {
            let _ = writeln!(
                table,
                "<tr><td>{}</td><td>{:.4}</td><td><svg viewBox=\"0 0 200 10\" style=\"width:200px;\
                 height:10px\"><rect class=\"bar\" width=\"{:.1}\" height=\"10\"/></svg></td></tr>",
                escape(&row.method),
                row.kl,
                200.0 * row.kl / most
            );
        }
        format!(
            "<h2>Divergence right after pruning, before any training</h2>\n<p class=\"soft\">KL from the \
             teacher in nats per token on held-out documents, at the winner's shape.</p>\n<table>\
             <tr><th>method</th><th>KL</th><th></th></tr>\n{table}</table>\n"
        )
    }

    fn front(&self) -> String {
        let trials = self.outcome.trials;
        let quality =
            |scored: &Scored| vec![scored.score.accuracy, -(scored.trial.candidate.bytes as f64)];
        let front = pareto_front(&trials.iter().map(quality).collect::<Vec<_>>());
        let points: Vec<Dot> = trials
            .iter()
            .zip(front)
            .map(|(scored, is_front)| Dot {
                x: scored.trial.candidate.bytes as f64 / 1024.0,
                y: 100.0 * scored.score.accuracy,
                colour: COLOURS[1 + scored.trial.rung.min(2)],
                ring: is_front,
            })
            .collect();
        scatter(
            "Accuracy against memory",
            "KiB at the budget's context",
            "mean % right; colours: rungs; rings: nothing is smaller and better",
            &points,
        )
    }

    fn surrogate(&self) -> String {
        let points: Vec<Dot> = self
            .outcome
            .trials
            .iter()
            .map(|scored| Dot {
                x: scored.trial.candidate.predicted,
                y: scored.score.kl,
                colour: COLOURS[1 + scored.trial.rung.min(2)],
                ring: scored.promoted,
            })
            .collect();
        let note = "KL after training; colours: rungs; rings: went on";
        scatter("What the surrogate foretold", "predicted KL before training", note, &points)
    }

    fn candidates(&self) -> String {
        let mut rows = String::new();
        for Scored { trial, score, promoted } in self.outcome.trials {
            let verdict = if *promoted { "went on" } else { "dropped" };
            let _ = writeln!(
                rows,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.3}</td><td>{:.4}</td>\
                 <td>{:.1}</td><td>{:.0}</td><td>{verdict}</td></tr>",
                self.shape(&trial.candidate.target),
                trial.rung + 1,
                trial.steps,
                size::count(trial.candidate.bytes),
                trial.candidate.predicted,
                score.kl,
                100.0 * score.accuracy,
                score.tokens_per_second
            );
        }
        format!(
            "<div class=\"scroll\"><table><tr><th>shape</th><th>rung</th><th>steps</th><th>bytes</th>\
             <th>predicted KL</th><th>KL</th><th>% right</th><th>tok/s</th><th></th></tr>\n{rows}\
             </table></div>\n"
        )
    }

    /// The result in the terminal.
    pub(super) fn print(&self) {
        println!("{}\n", self.summary());
        for row in self.outcome.ablation {
            println!("  KL after pruning {:>8.4}  {}", row.kl, row.method);
        }
        let lines = self.lines();
        if lines.len() < 2 {
            return;
        }
        let names: Vec<String> = lines.iter().map(|line| format!("{:>9}", line.name)).collect();
        println!("\n{:<22}{}", "% right", names.join(""));
        for (at, point) in lines[0].points.iter().enumerate() {
            let name = format!("{} {}", point.task, point.budget);
            let share = |line: &Line| format!("{:>9.1}", 100.0 * line.points[at].share());
            println!("{name:<22}{}", lines.iter().map(share).collect::<String>());
        }
    }
}

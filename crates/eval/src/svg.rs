//! One picture of a report: accuracy with its interval against the tokens thought, a line for each
//! task. It has no background, and its colours suit light and dark ones.

use crate::budget::Budget;
use crate::report::{Report, Row};
use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
/// Room for labels: left, right, above, below.
const LEFT: f64 = 60.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 56.0;

/// Of the colours of Okabe and Ito, which colour-blind people tell apart, those that can be seen on
/// black and on white.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

const STYLE: &str = "<style>text{font:12px system-ui,sans-serif;fill:#333}\
    .grid{stroke:#8884;stroke-width:1}.title{font-size:14px;font-weight:600}\
    @media(prefers-color-scheme:dark){text{fill:#ddd}}</style>";

/// The report as an SVG document.
#[must_use]
pub fn svg(report: &Report) -> String {
    let most = report.results.iter().map(|row| row.thinking_tokens).fold(1.0, f64::max);
    let step = step_of(most);
    let plot = Plot { most: (most / step).ceil() * step };
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\">\n<title>Accuracy against thinking, {}\
         </title>\n{STYLE}\n",
        escape(&report.model)
    );
    let title = format!("{}, {}", report.model, report.data);
    text(&mut out, LEFT, 22.0, "start", " class=\"title\"", &title);
    axes(&mut out, &plot, step);
    let mut tasks: Vec<&str> = report.results.iter().map(|row| row.task.as_str()).collect();
    tasks.dedup();
    for (number, task) in tasks.into_iter().enumerate() {
        let mut rows: Vec<&Row> = report.results.iter().filter(|row| row.task == task).collect();
        rows.sort_by(|a, b| a.thinking_tokens.total_cmp(&b.thinking_tokens));
        series(&mut out, &plot, number, task, &rows);
    }
    out.push_str("</svg>\n");
    out
}

struct Plot {
    /// Tokens at the right end.
    most: f64,
}

impl Plot {
    fn x(&self, tokens: f64) -> f64 {
        LEFT + tokens / self.most * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, share: f64) -> f64 {
        TOP + (1.0 - share) * (HEIGHT - TOP - BOTTOM)
    }
}

/// 1, 2 or 5 times a power of ten, so that `most` takes 4 to 10 steps.
fn step_of(most: f64) -> f64 {
    let power = 10_f64.powf((most / 5.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    steps.into_iter().find(|step| most / step <= 6.0).unwrap_or(steps[3])
}

fn axes(out: &mut String, plot: &Plot, step: f64) {
    for tenth in (0..=10).step_by(2) {
        let y = plot.y(f64::from(tenth) / 10.0);
        line(out, "class=\"grid\"", (LEFT, y), (WIDTH - RIGHT, y));
        text(out, LEFT - 8.0, y + 4.0, "end", "", &format!("{}%", tenth * 10));
    }
    let mut tokens = 0.0;
    while tokens <= plot.most {
        let x = plot.x(tokens);
        line(out, "class=\"grid\"", (x, plot.y(0.0)), (x, plot.y(0.0) + 5.0));
        text(out, x, plot.y(0.0) + 20.0, "middle", "", &tokens.to_string());
        tokens += step;
    }
    let middle = f64::midpoint(LEFT, WIDTH - RIGHT);
    text(out, middle, HEIGHT - 12.0, "middle", "", "tokens thought, mean; labels: the budget");
}

fn series(out: &mut String, plot: &Plot, number: usize, task: &str, rows: &[&Row]) {
    let colour = COLOURS[number % COLOURS.len()];
    let at = |row: &Row| (plot.x(row.thinking_tokens), plot.y(row.accuracy.share));
    let points: Vec<String> =
        rows.iter().map(|row| at(row)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(
        out,
        "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
        points.join(" ")
    );
    let stroke = format!("stroke=\"{colour}\" stroke-width=\"1.5\"");
    for (place, row) in rows.iter().enumerate() {
        let (x, y) = at(row);
        let (low, high) = (plot.y(row.accuracy.low), plot.y(row.accuracy.high));
        line(out, &stroke, (x, low), (x, high));
        for end in [low, high] {
            line(out, &stroke, (x - 4.0, end), (x + 4.0, end));
        }
        let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>");
        // Off and 0 both think nothing: their labels are on two sides. Others are stacked.
        let near = rows[..place].iter().filter(|other| other.budget != Budget::Off);
        let near = near.filter(|other| (x - at(other).0).abs() < 24.0).count();
        let off = row.budget == Budget::Off;
        let below = if off { 16.0 } else { -8.0 - 13.0 * near as f64 };
        text(out, x + 7.0, y + below, "start", "", &row.budget.to_string());
    }
    let y = TOP + 10.0 + 20.0 * number as f64;
    let (from, to) = ((WIDTH - RIGHT + 14.0, y - 4.0), (WIDTH - RIGHT + 34.0, y - 4.0));
    line(out, &format!("stroke=\"{colour}\" stroke-width=\"3\""), from, to);
    text(out, WIDTH - RIGHT + 40.0, y, "start", "", task);
}

fn line(out: &mut String, attributes: &str, from: (f64, f64), to: (f64, f64)) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(
        out,
        "<line {attributes} x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
    );
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, attributes: &str, text: &str) {
    let text = escape(text);
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{attributes}>{text}</text>"
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Accuracy;
    use std::collections::BTreeMap;

    fn row(budget: Budget, correct: usize, thinking_tokens: f64) -> Row {
        Row {
            task: "a<b".into(),
            budget,
            accuracy: Accuracy::new(correct, 100),
            thinking_tokens,
            answer_tokens: 2.0,
            cut: 0.0,
            well_formed: 1.0,
            unfinished: 0.0,
            invented: None,
            saved_percent: None,
            seconds: 1.0,
            tokens_per_second: 1.0,
            by_difficulty: BTreeMap::new(),
        }
    }

    #[test]
    fn every_row_is_a_point_with_its_interval() {
        let results = vec![row(Budget::Off, 50, 0.0), row(Budget::Unlimited, 90, 33.0)];
        let report =
            Report { model: "m&m".into(), temperature: 0.0, seed: 0, data: "x".into(), results };
        let picture = svg(&report);
        assert_eq!(picture.matches("<circle").count(), 2);
        // Half of the height between 0 and 100 %.
        let middle = format!("cy=\"{:.1}\"", TOP + (HEIGHT - TOP - BOTTOM) / 2.0);
        assert!(
            picture.contains(&middle) && picture.contains("a&lt;b") && !picture.contains("m&m")
        );
        assert_eq!((step_of(33.0), step_of(1.0), step_of(60.0)), (10.0, 0.2, 10.0));
    }
}

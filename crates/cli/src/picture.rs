//! Pictures of accuracy for HTML pages: lines with intervals, and points on a plane; light and dark.

use hybra_eval::wilson;
use std::fmt::Write;

/// The style of a page.
pub(crate) const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--grid:#d8dee4;--soft:#57606a}\
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--grid:#30363d;--soft:#9198a1}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);\
margin:2rem auto;max-width:1100px;padding:0 1rem}h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}\
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:1.5rem}\
figure{margin:0}figcaption{font-weight:600}svg{width:100%;height:auto}\
text{fill:var(--ink);font-size:12px}.grid{stroke:var(--grid)}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}\
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid var(--grid)}\
th:first-child,td:first-child{text-align:left}.soft{color:var(--soft)}.bar{fill:#0072b2}\
.scroll{overflow-x:auto}";

/// Of the colours of Okabe and Ito, those that can be seen on black and on white.
pub(crate) const COLOURS: [&str; 4] = ["#888888", "#0072b2", "#d55e00", "#009e73"];

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 52.0;
const BOTTOM: f64 = 44.0;
const TOP: f64 = 12.0;
const RIGHT: f64 = 16.0;

/// The accuracy of a task at a budget.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Point {
    pub(crate) task: String,
    pub(crate) budget: String,
    pub(crate) correct: usize,
    pub(crate) total: usize,
    pub(crate) thinking_tokens: f64,
}

impl Point {
    pub(crate) fn of(row: &hybra_eval::Row) -> Self {
        Self {
            task: row.task.clone(),
            budget: row.budget.to_string(),
            correct: row.accuracy.correct,
            total: row.accuracy.total,
            thinking_tokens: row.thinking_tokens,
        }
    }

    /// Share of right answers.
    pub(crate) fn share(&self) -> f64 {
        self.correct as f64 / self.total.max(1) as f64
    }
}

/// A line of an accuracy picture, budget by budget.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<Point>,
}

/// The tasks of a line, in order.
pub(crate) fn tasks(line: &Line) -> Vec<String> {
    let mut tasks: Vec<String> = line.points.iter().map(|point| point.task.clone()).collect();
    tasks.dedup();
    tasks
}

/// A frame with a title and axis labels, to draw in.
fn frame(title: &str, x_label: &str, y_label: &str, inside: &str) -> String {
    let (title, x_label, y_label) = (escape(title), escape(x_label), escape(y_label));
    format!(
        "<figure><figcaption>{title}</figcaption>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"{title}\">\n{inside}<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{x_label}\
         </text>\n</svg><div class=\"soft\">{y_label}</div></figure>\n",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 6.0
    )
}

fn grid(out: &mut String, low: f64, high: f64, label: &dyn Fn(f64) -> String) {
    for part in 0..=4 {
        let value = low + (high - low) * f64::from(part) / 4.0;
        let y = HEIGHT - BOTTOM - f64::from(part) / 4.0 * (HEIGHT - BOTTOM - TOP);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            label(value)
        );
    }
}

/// Accuracy of one task against the budget, a line for each model.
pub(crate) fn accuracy(task: &str, lines: &[Line]) -> String {
    let mut out = String::new();
    grid(&mut out, 0.0, 100.0, &|value| format!("{value:.0} %"));
    let of_task = |line: &Line| -> Vec<Point> {
        line.points.iter().filter(|point| point.task == task).cloned().collect()
    };
    let budgets: Vec<String> = of_task(&lines[0]).into_iter().map(|point| point.budget).collect();
    let x = |at: usize| {
        let parts = (budgets.len().max(2) - 1) as f64;
        LEFT + 14.0 + at as f64 / parts * (WIDTH - LEFT - RIGHT - 28.0)
    };
    let y = |share: f64| HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP);
    for (at, budget) in budgets.iter().enumerate() {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{budget}</text>",
            x(at),
            HEIGHT - BOTTOM + 16.0
        );
    }
    // Names stand at the left, above lines that begin low and below lines that begin high.
    let begins = |line: &Line| of_task(line).first().map_or(0.0, Point::share);
    let is_high = lines.iter().map(begins).fold(0.0, f64::max) > 0.5;
    let names_y = match is_high {
        true => HEIGHT - BOTTOM - 15.0 * lines.len() as f64,
        false => TOP + 14.0,
    };
    for (number, line) in lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let points = of_task(line);
        let path: Vec<String> = points
            .iter()
            .enumerate()
            .map(|(at, point)| format!("{:.1},{:.1}", x(at), y(point.share())))
            .collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
            path.join(" ")
        );
        for (at, point) in points.iter().enumerate() {
            let (low, high) = wilson(point.correct, point.total);
            let _ = writeln!(
                out,
                "<line stroke=\"{colour}\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1:.1}\" y2=\"{2:.1}\"/>\
                 <circle fill=\"{colour}\" cx=\"{0:.1}\" cy=\"{3:.1}\" r=\"3\"/>",
                x(at),
                y(low),
                y(high),
                y(point.share())
            );
        }
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.0}\" style=\"fill:{colour}\">{}</text>",
            LEFT + 10.0,
            names_y + 15.0 * number as f64,
            line.name
        );
    }
    frame(task, "thinking budget, tokens", "percent right, 95 % intervals", &out)
}

/// A point of a plane.
pub(crate) struct Dot {
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// One of [`COLOURS`].
    pub(crate) colour: &'static str,
    pub(crate) ring: bool,
}

/// Points with their axes.
pub(crate) fn scatter(title: &str, x_label: &str, y_label: &str, points: &[Dot]) -> String {
    let bounds = |of: fn(&Dot) -> f64| {
        let low = points.iter().map(of).fold(f64::INFINITY, f64::min);
        let high = points.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
        let room = ((high - low) * 0.08).max(high.abs() * 1e-3).max(1e-9);
        (low - room, high + room)
    };
    let ((x0, x1), (y0, y1)) = (bounds(|dot| dot.x), bounds(|dot| dot.y));
    let mut out = String::new();
    let digits = |span: f64| if span < 5.0 { 3 } else { 0 };
    grid(&mut out, y0, y1, &|value| format!("{value:.*}", digits(y1 - y0)));
    for (value, anchor, at) in [(x0, "start", LEFT), (x1, "end", WIDTH - RIGHT)] {
        let _ = writeln!(
            out,
            "<text x=\"{at:.0}\" y=\"{:.0}\" text-anchor=\"{anchor}\">{value:.*}</text>",
            HEIGHT - BOTTOM + 16.0,
            digits(x1 - x0)
        );
    }
    for dot in points {
        let x = LEFT + (dot.x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
        let y = HEIGHT - BOTTOM - (dot.y - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP);
        let colour = dot.colour;
        let _ = writeln!(out, "<circle fill=\"{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>");
        if dot.ring {
            let _ = writeln!(
                out,
                "<circle fill=\"none\" stroke=\"{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"8\"/>"
            );
        }
    }
    frame(title, x_label, y_label, &out)
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

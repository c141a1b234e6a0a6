//! One page about a run: curves of its log as SVG in a single HTML file without scripts.
//!
//! Reads `log.jsonl` and `timing.jsonl`; a last line that is torn, because the run goes on, is left
//! out. Light and dark follow the reader's setting.

use crate::log::{StepLog, StepTiming};
use crate::run_dir::RunDir;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 220.0;
/// Room for the numbers at the axes.
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 28.0;
const TOP: f64 = 10.0;
/// Points of a curve; a longer one is averaged, so that a page stays small.
const MOST_POINTS: usize = 1000;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A log cannot be read.
    #[error("{}: {cause}; RUN is the folder that `hybra train` wrote", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A line that is none of a log.
    #[error("{}:{line}: {cause}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        cause: serde_json::Error,
    },
    /// No step was logged.
    #[error("{}: no step is logged yet", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// The lines of a run.
#[derive(Debug, Clone, Default)]
pub struct RunLog {
    /// `log.jsonl`.
    pub steps: Vec<StepLog>,
    /// `timing.jsonl`.
    pub timings: Vec<StepTiming>,
}

impl RunLog {
    /// Reads the logs of a run; the times may be missing, the log may not.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn read(dir: &RunDir) -> Result<Self, ReportError> {
        let steps: Vec<StepLog> = read_lines(&dir.log())?;
        if steps.is_empty() {
            return Err(ReportError::Empty { path: dir.log() });
        }
        let timings = match read_lines(&dir.timing()) {
            Err(ReportError::Io { cause, .. }) if cause.kind() == ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        Ok(Self { steps, timings })
    }

    /// The page, under `title`.
    #[must_use]
    pub fn html(&self, title: &str) -> String {
        let last = self.steps.last().cloned().unwrap_or_default();
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n\
             <title>{title}</title>\n<style>{STYLE}{FIGURE_STYLE}</style></head><body>\n<h1>{title}</h1>\n\
             <p>{} steps, {} tokens, {} learned; loss {:.4}.</p>\n<main>\n",
            last.step,
            last.tokens,
            last.learned_tokens,
            last.loss,
            title = escape(title)
        );
        page.push_str(&self.figures());
        page.push_str("</main></body></html>\n");
        page
    }

    /// All curves, for a page with [`FIGURE_STYLE`].
    #[must_use]
    pub fn figures(&self) -> String {
        self.curves().iter().map(|(name, points)| figure(name, points)).collect()
    }

    /// Names and points of all curves.
    fn curves(&self) -> Vec<(String, Vec<(f64, f64)>)> {
        let of = |value: fn(&StepLog) -> f64| -> Vec<(f64, f64)> {
            self.steps.iter().map(|line| (line.step as f64, value(line))).collect()
        };
        let speed = self.timings.iter().map(|line| (line.step as f64, line.tokens_per_second));
        let mut curves = vec![
            ("loss".to_owned(), of(|line| line.loss)),
            ("learning rate".to_owned(), of(|line| f64::from(line.lr))),
            ("gradient norm".to_owned(), of(|line| line.grad_norm)),
            ("tokens per second".to_owned(), speed.collect()),
        ];
        let mut more: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for line in &self.steps {
            let eval = line.eval.iter().map(|(name, value)| (format!("eval: {name}"), value));
            for (name, value) in line.metrics.iter().map(|(n, v)| (n.clone(), v)).chain(eval) {
                more.entry(name).or_default().push((line.step as f64, *value));
            }
        }
        curves.extend(more);
        curves.retain(|(_, points)| !points.is_empty());
        curves
    }
}

/// Writes a page, whole or not at all.
///
/// # Errors
/// What the file system says.
pub fn write(path: &Path, page: &str) -> std::io::Result<()> {
    crate::atomic::write(path, page.as_bytes())
}

/// The lines of a file; a last one without its end is left out.
fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, ReportError> {
    let io = |cause| ReportError::Io { path: path.to_owned(), cause };
    let text = std::fs::read_to_string(path).map_err(io)?;
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let parse = |(index, line)| {
        let wrong = |cause| ReportError::Line { path: path.to_owned(), line: index + 1, cause };
        serde_json::from_str(line).map_err(wrong)
    };
    whole.lines().enumerate().map(parse).collect()
}

/// How curves look on a page that has colours for ink, paper and grid.
pub const FIGURE_STYLE: &str = "\
:root{--line:#0b63ce}@media(prefers-color-scheme:dark){:root{--line:#58a6ff}}\
.line{stroke:var(--line);fill:none;stroke-width:1.5}.dot{fill:var(--line)}";

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--grid:#d8dee4}\
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--grid:#30363d}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);\
margin:2rem auto;max-width:1340px;padding:0 1rem}h1{font-size:1.3rem}\
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:1.5rem}\
figure{margin:0}figcaption{font-weight:600}svg{width:100%;height:auto}\
text{fill:var(--ink);font-size:12px}.grid{stroke:var(--grid)}";

/// A curve with its axes.
fn figure(name: &str, points: &[(f64, f64)]) -> String {
    let points = averaged(points);
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (x0, x1) = bounds(&mut points.iter().map(|p| p.0));
    let (y0, y1) = bounds(&mut points.iter().map(|p| p.1));
    let place = |value: f64, low: f64, high: f64| {
        if high > low { (value - low) / (high - low) } else { 0.5 }
    };
    let x = |value: f64| LEFT + place(value, x0, x1) * (WIDTH - LEFT - 10.0);
    let y = |value: f64| HEIGHT - BOTTOM - place(value, y0, y1) * (HEIGHT - BOTTOM - TOP);
    let name = escape(name);
    let mut svg = format!(
        "<figure><figcaption>{name}</figcaption>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         role=\"img\" aria-label=\"{name} from step {x0} to {x1}\">\n"
    );
    for i in 0..=4 {
        let value = y0 + (y1 - y0) * f64::from(i) / 4.0;
        let at = y(value);
        let (right, text) = (WIDTH - 10.0, number(value));
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            LEFT - 6.0,
            at + 4.0
        );
        if y1 <= y0 {
            break;
        }
    }
    for (value, anchor) in [(x0, "start"), (x1, "end")] {
        let (at, low) = (x(value), HEIGHT - 8.0);
        let _ = writeln!(
            svg,
            "<text x=\"{at:.1}\" y=\"{low}\" text-anchor=\"{anchor}\">{value:.0}</text>"
        );
    }
    if let [(px, py)] = points[..] {
        let _ = writeln!(
            svg,
            "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>",
            x(px),
            y(py)
        );
    }
    let line: Vec<String> =
        points.iter().map(|(px, py)| format!("{:.1},{:.1}", x(*px), y(*py))).collect();
    let _ =
        writeln!(svg, "<polyline class=\"line\" points=\"{}\"/>\n</svg></figure>", line.join(" "));
    svg
}

/// At most [`MOST_POINTS`] points: means of neighbours.
fn averaged(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mean = |group: &[(f64, f64)]| {
        let sum = group.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
        (sum.0 / group.len() as f64, sum.1 / group.len() as f64)
    };
    points.chunks(points.len().div_ceil(MOST_POINTS).max(1)).map(mean).collect()
}

/// Three digits, in the form that is shorter to read.
fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".to_owned()
    } else if (0.01..1e5).contains(&size) {
        let digits = (2 - size.log10().floor() as i32).clamp(0, 4) as usize;
        format!("{value:.digits$}")
    } else {
        format!("{value:.1e}")
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_every_curve_and_only_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        let line = |step: u64| {
            let eval = if step == 2 { r#","eval":{"a<b":0.5}"# } else { "" };
            format!(
                r#"{{"step":{step},"loss":{},"lr":0.001,"grad_norm":1.5,"tokens":64,"learned_tokens":9,"metrics":{{"accuracy":0.25}}{eval}}}"#,
                4.0 / step as f64
            )
        };
        std::fs::write(run.log(), format!("{}\n{}\n{{\"st", line(1), line(2))).unwrap();
        std::fs::write(run.timing(), "{\"step\":1,\"seconds\":0.5,\"tokens_per_second\":64}\n")
            .unwrap();
        let log = RunLog::read(&run).unwrap();
        assert_eq!(log.steps.len(), 2);
        let page = log.html("run & co");
        assert_eq!(page.matches("<svg").count(), 6, "{page}");
        for part in ["run &amp; co", "eval: a&lt;b", "accuracy", "tokens per second", "loss 2.0000"]
        {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains("NaN") && !page.contains("http"));
        std::fs::remove_file(run.timing()).unwrap();
        assert_eq!(RunLog::read(&run).unwrap().html("").matches("<svg").count(), 5);
        std::fs::write(run.log(), "{\"step\":1}\n").unwrap();
        let message = RunLog::read(&run).unwrap_err().to_string();
        assert!(message.contains("log.jsonl:1: missing field"), "{message}");
        std::fs::write(run.log(), "").unwrap();
        assert!(matches!(RunLog::read(&run), Err(ReportError::Empty { .. })));
    }

    #[test]
    fn long_curves_are_averaged_and_numbers_are_short() {
        let long: Vec<_> = (0..5000).map(|i| (f64::from(i), 1.0)).collect();
        assert_eq!(averaged(&long).len(), 1000);
        assert_eq!(averaged(&long)[0], (2.0, 1.0));
        let shown = [0.0, 0.0123, 1.5, 12345.0, 3e-5, 2.5e7].map(number);
        assert_eq!(shown, ["0", "0.0123", "1.50", "12345", "3.0e-5", "2.5e7"]);
    }
}

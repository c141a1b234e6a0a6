//! Memory and speed of the models that stages measured with `hybra bench --json`, alone or with
//! `--compare` against a Transformer of the same size.

use super::recipe::Resolved;
use crate::picture::escape;
use crate::size;
use serde::Deserialize;
use std::fmt::Write;

/// What `hybra bench --json` prints, as far as the page needs it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Bench {
    Compared { models: Vec<Model>, points: Vec<RunPoint>, ratios: Vec<Option<f64>> },
    Alone { model: String, work: Work, results: Vec<Line>, peak_resident_bytes: Option<u64> },
}

#[derive(Deserialize)]
struct Work {
    parameters: u64,
    weight_bytes: u64,
    state_bytes: u64,
    kv_bytes_per_token: u64,
}

#[derive(Deserialize)]
struct Line {
    #[serde(flatten)]
    point: Point,
    tokens_per_second: Spread,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Point {
    Prefill { tokens: u64 },
    Decode { depth: u64, batch: u64 },
}

#[derive(Deserialize)]
struct Spread {
    median: f64,
}

#[derive(Deserialize)]
struct Model {
    name: String,
    work: Work,
    runs: Vec<Outcome>,
}

#[derive(Deserialize)]
struct RunPoint {
    prompt: u64,
    output: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Outcome {
    Measured(Run),
    Skipped { skipped: String },
}

#[derive(Deserialize)]
struct Run {
    batch: u64,
    memory: Memory,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
}

#[derive(Deserialize)]
struct Memory {
    total: u64,
}

/// What was not measured.
const NONE: &str = "–";

/// Cells of a row that may have many lines; those of a run stand side by side.
#[derive(Default)]
struct Speeds {
    resident: Vec<String>,
    prefill: Vec<String>,
    decode: Vec<String>,
    ratio: Vec<String>,
}

/// The table; empty where no stage measured.
pub(super) fn html(stages: &[Resolved]) -> String {
    let rows: String = stages.iter().filter_map(measured).map(|(name, it)| it.rows(name)).collect();
    if rows.is_empty() {
        return rows;
    }
    format!(
        "<p class=\"soft\">State and cache are what a conversation takes beside the weights: the state \
         whatever its length, the cache for every token. Resident is the most that the program \
         held, or what a compared run takes. Speeds are tokens per second of all sequences \
         together: prefill reads a prompt, decode writes an answer. The ratio is the speed of whole \
         runs over that of the other model of the comparison, such as a Transformer of the same \
         size, both with as many sequences as memory admits; above 1 is faster.</p>\n\
         <div class=\"scroll\"><table><tr><th>stage</th><th class=\"words\">model</th><th>parameters</th>\
         <th>weights</th><th>state</th><th>cache per token</th><th>resident</th><th>prefill, tokens/s</th>\
         <th>decode, tokens/s</th><th>ratio</th></tr>\n{rows}</table></div>\n"
    )
}

fn measured(stage: &Resolved) -> Option<(&str, Bench)> {
    let text = std::fs::read_to_string(stage.prints.then_some(&stage.out)?).ok()?;
    Some((stage.name.trim_end_matches(".json"), serde_json::from_str(&text).ok()?))
}

impl Bench {
    fn rows(&self, stage: &str) -> String {
        match self {
            Self::Alone { model, work, results, peak_resident_bytes } => {
                row(stage, model, work, &alone(results, *peak_resident_bytes))
            }
            Self::Compared { models, points, ratios } => {
                let rows = models.iter().enumerate().map(|(at, model)| {
                    let ratios = if at == 0 { ratios.as_slice() } else { &[] };
                    let stage = if at == 0 { stage } else { "" };
                    row(stage, &model.name, &model.work, &compared(&model.runs, points, ratios))
                });
                rows.collect()
            }
        }
    }
}

fn alone(results: &[Line], peak: Option<u64>) -> Speeds {
    let mut speeds =
        Speeds { resident: peak.map(size::bytes).into_iter().collect(), ..Speeds::default() };
    for Line { point, tokens_per_second } in results {
        let speed = speed(tokens_per_second.median);
        match *point {
            Point::Prefill { tokens } => {
                speeds.prefill.push(noted(&speed, &format!("of {}", size::count(tokens))));
            }
            Point::Decode { depth: 0, batch: 1 } => speeds.decode.push(speed),
            Point::Decode { depth, batch: 1 } => {
                speeds.decode.push(noted(&speed, &format!("behind {}", size::count(depth))));
            }
            Point::Decode { batch, .. } => speeds.decode.push(noted(&speed, &format!("× {batch}"))),
        }
    }
    speeds
}

fn compared(runs: &[Outcome], points: &[RunPoint], ratios: &[Option<f64>]) -> Speeds {
    let mut speeds = Speeds::default();
    for (at, (outcome, point)) in runs.iter().zip(points).enumerate() {
        let note = format!("{} in, {} out", size::count(point.prompt), size::count(point.output));
        match outcome {
            Outcome::Measured(run) => {
                let total = size::bytes(run.memory.total);
                speeds.resident.push(noted(&total, &format!("× {}", run.batch)));
                speeds.prefill.push(noted(&speed(run.prefill_tokens_per_second), &note));
                speeds.decode.push(speed(run.decode_tokens_per_second));
            }
            Outcome::Skipped { skipped } => {
                speeds.resident.push(NONE.to_owned());
                speeds.prefill.push(noted("skipped", &escape(skipped)));
                speeds.decode.push(NONE.to_owned());
            }
        }
        let ratio = ratios.get(at).copied().flatten();
        speeds.ratio.push(ratio.map_or(NONE.to_owned(), |ratio| format!("{ratio:.2} ×")));
    }
    speeds
}

/// A value with what it is of, in a quieter colour.
fn noted(value: &str, note: &str) -> String {
    format!("{value} <span class=\"soft\">{note}</span>")
}

fn speed(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { size::count(value.round() as u64) }
}

fn row(stage: &str, model: &str, work: &Work, speeds: &Speeds) -> String {
    let mut out = format!(
        "<tr><td>{}</td><td class=\"words\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>",
        escape(stage),
        escape(model),
        size::short_count(work.parameters),
        size::bytes(work.weight_bytes),
        size::bytes(work.state_bytes),
        size::bytes(work.kv_bytes_per_token)
    );
    for cell in [&speeds.resident, &speeds.prefill, &speeds.decode, &speeds.ratio] {
        let cell = if cell.is_empty() { NONE.to_owned() } else { cell.join("<br>") };
        let _ = write!(out, "<td>{cell}</td>");
    }
    out + "</tr>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: &str =
        r#"{"parameters":2000000,"weight_bytes":4096,"state_bytes":1024,"kv_bytes_per_token":64}"#;

    fn rows(text: &str) -> String {
        serde_json::from_str::<Bench>(&text.replace("WORK", WORK)).unwrap().rows("s")
    }

    #[test]
    fn a_model_alone_has_its_speeds_as_measured() {
        let found = rows(
            r#"{"model":"m","work":WORK,"peak_resident_bytes":2048,"results":[
            {"kind":"prefill","tokens":512,"tokens_per_second":{"median":8123.4},"share_of":{}},
            {"kind":"decode","depth":0,"batch":1,"tokens_per_second":{"median":31.25}}]}"#,
        );
        for part in ["2.0 M", "4.00 KiB", "2.00 KiB", "8,123", "of 512", "31.2", "<td>–</td>"] {
            assert!(found.contains(part), "{part}: {found}");
        }
    }

    #[test]
    fn a_comparison_has_two_rows_and_one_ratio() {
        let found = rows(
            r#"{"models":[{"name":"hybrid","work":WORK,"runs":[{"batch":8,"memory":{"total":9216},
            "prefill_tokens_per_second":10.0,"decode_tokens_per_second":20.0}]},
            {"name":"transformer","work":WORK,"runs":[{"skipped":"no room"}]}],
            "points":[{"prompt":1024,"output":8192}],"ratios":[1.5]}"#,
        );
        assert_eq!(found.matches("<tr>").count(), 2);
        assert_eq!(found.matches("1.50 ×").count(), 1);
        for part in ["transformer", "no room", "1,024 in, 8,192 out", "9.00 KiB"] {
            assert!(found.contains(part), "{part}: {found}");
        }
        assert!(serde_json::from_str::<Bench>(r#"{"model":"m","results":[]}"#).is_err());
    }
}

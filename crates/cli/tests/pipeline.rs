//! A recipe of stages as a user runs it: shrink, distil, reward, prefer, merge; skipped, changed, refused.

mod support;

use std::fs;
use std::path::Path;
use support::{hybra, hybra_fails};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/default-model");

const RECIPE: &str = r#"
about = "a test"

[[stages]]
name = "importance"
run = ["importance", "MODEL", "-o", "{out}", "--task", "chainbox", "--samples", "8", "--depth-documents", "2", "--keep-layers", "14"]

[[stages]]
name = "student"
run = ["prune", "MODEL", "{out}", "--importance", "{importance}", "--intermediate-size", "256"]

[[stages]]
name = "distil"
run = ["train", "distil", "--config", "{here}/distil.toml", "--output", "{out}", "--set", "model.from={student}"]
result = "model"
shape = "MODEL"

[[stages]]
name = "grpo"
run = ["train", "grpo", "--config", "{here}/grpo.toml", "--output", "{out}", "--set", "model.from={distil}"]
result = "model"

[[stages]]
name = "samples"
run = ["train", "distil", "--config", "{here}/samples.toml", "--output", "{out}", "--set", "model.from={grpo}"]
result = "model"

[[stages]]
name = "merged"
run = ["merge", "{distil}", "{samples}", "--output", "{out}", "--alpha", "0.5"]

[[stages]]
name = "eval-merged.json"
run = ["eval", "{merged}", "--task", "chainbox", "--budgets", "off,inf", "-n", "4", "--json"]

[[stages]]
name = "bench-merged.json"
run = ["bench", "{merged}", "--prefill", "8", "--depth", "0", "--batch", "1", "--tokens", "2", "--repeat", "1", "--seconds", "1", "--json"]
"#;

const COMMON: &str = "steps = 2\n[model]\n[optimizer]\nlr = 1e-4\n[data]\npack_len = 256\n\
                      [[data.sources]]\ntask = \"chainbox\"\n";
const ROLLOUT: &str =
    "[rollout]\nprompts = 2\ngroup = 3\nmax_tokens = 40\nbudgets = [8, \"inf\"]\n";

fn write(at: &Path) {
    let teacher = format!("[distil]\nteacher = \"{MODEL}\"\n");
    fs::write(at.join("distil.toml"), format!("{COMMON}{teacher}")).unwrap();
    fs::write(at.join("grpo.toml"), format!("{COMMON}{ROLLOUT}[grpo]\ndynamic = false\n")).unwrap();
    let samples =
        format!("{COMMON}{ROLLOUT}{teacher}direction = \"reverse\"\ntokens = \"learned\"\n");
    fs::write(at.join("samples.toml"), samples).unwrap();
    fs::write(at.join("pipeline.toml"), RECIPE.replace("MODEL", MODEL)).unwrap();
}

fn states(at: &Path) -> Vec<(String, String)> {
    let text = hybra(at, &["pipeline", "pipeline.toml", "-o", "RUN", "--dry-run", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&text).unwrap();
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
    rows.as_array().unwrap().iter().map(|row| (text(row, "stage"), text(row, "state"))).collect()
}

#[test]
fn a_recipe_runs_once_and_again_only_where_something_changed() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    write(at);
    let run = ["pipeline", "pipeline.toml", "-o", "RUN"];
    let plan = hybra(at, &[&run[..], &["--dry-run"]].concat());
    assert!(plan.contains("a test") && plan.contains("merged") && plan.contains("to do"), "{plan}");
    hybra(at, &[&run[..], &["--until", "student"]].concat());
    assert_eq!(states(at)[1], ("student".to_owned(), "done".to_owned()));
    assert_eq!(states(at)[2].1, "to_do");
    let page = fs::read_to_string(at.join("RUN/report.html")).unwrap();
    for (class, count) in [("done", 2), ("todo", 6), ("begun", 0)] {
        assert_eq!(page.matches(&format!("<rect class=\"{class}\"")).count(), count, "{class}");
    }
    hybra(at, &run);
    assert!(states(at).iter().all(|(_, state)| state == "done"), "{:?}", states(at));
    let page = fs::read_to_string(at.join("RUN/report.html")).unwrap();
    for part in ["What thinking less saves", "logprob_gap", "made from", "hybra merge", "chainbox"]
    {
        assert!(page.contains(part), "{part}");
    }
    the_page_explains_itself(&page);
    let log = fs::read_to_string(at.join("RUN/grpo/log.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    for name in ["reward", "right", "flat_groups", "logprob_gap", "thinking_tokens"] {
        assert!(first["metrics"].get(name).or(first.get(name)).is_some(), "{name}: {log}");
    }
    let weights =
        |stage: &str| fs::read(at.join("RUN").join(stage).join("model.safetensors")).unwrap();
    let (merged, before) = (weights("merged"), weights("distil/model"));
    hybra(at, &run);
    assert!(weights("merged") == merged);
    // A run file of the middle: the stages behind it are made anew, to the same bytes where they can.
    let changed = fs::read_to_string(at.join("grpo.toml")).unwrap().replace("1e-4", "2e-4");
    fs::write(at.join("grpo.toml"), changed).unwrap();
    let expected = ["done", "done", "done", "changed", "changed", "changed", "changed", "changed"];
    assert!(states(at).iter().map(|(_, state)| state).eq(expected), "{:?}", states(at));
    hybra(at, &run);
    assert!(weights("distil/model") == before && weights("merged") != merged);
    // A stage that fails says where its words are; nothing is lost.
    fs::write(at.join("samples.toml"), "steps = 0\n").unwrap();
    let failed = hybra_fails(at, &run);
    assert!(failed.contains("samples") && failed.contains("samples.log"), "{failed}");
    assert!(at.join("RUN/grpo.json").is_file() && at.join("RUN/grpo/model").is_dir());
    let unknown = hybra_fails(at, &[&run[..], &["--until", "nothing"]].concat());
    assert!(unknown.contains("importance, student"), "{unknown}");
}

/// The words for newcomers, the graph with all boxes and arrows, the tables of what models cost.
fn the_page_explains_itself(page: &str) {
    let intro = ["the student <b>merged</b> (", "teacher <b>default-model</b> (2.0 M parameters"];
    let tables = ["points lost", "none as small", "Memory and speed", "prefill, tokens/s", "of 8<"];
    for part in intro.into_iter().chain(tables).chain(["a <b>thinking budget</b>"]) {
        assert!(page.contains(part), "{part}");
    }
    let graph =
        page.split("<svg class=\"lineage\"").nth(1).and_then(|it| it.split("</svg>").next());
    let graph = graph.expect("a graph");
    assert_eq!(graph.matches("<rect class=\"done\"").count(), 8, "{graph}");
    // importance → student → distil → grpo → samples → merged → eval and bench; distil → merged.
    assert_eq!(graph.matches("url(#tip)").count(), 8, "{graph}");
    assert_eq!(graph.matches("class=\"edge\"").count(), 10, "two bends: {graph}");
    assert!(!page.contains("<script"));
}

#[test]
fn pairs_are_mined_and_learned_from_and_tables_of_other_stages_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    write(at);
    let recall = "steps = 2\n[model]\nfrom = \"MODEL\"\n[data]\npack_len = 512\n\
                  [[data.sources]]\ntask = \"arithmetic\"\n[rollout]\nprompts = 4\ngroup = 4\n\
                  max_tokens = 60\nbudgets = [\"off\"]\n";
    fs::write(at.join("pairs.toml"), recall.replace("MODEL", MODEL)).unwrap();
    let pairs = ["train", "pairs", "--config", "pairs.toml", "--output", "pairs.jsonl", "--count"];
    hybra(at, &[&pairs[..], &["4"]].concat());
    let text = fs::read_to_string(at.join("pairs.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 4);
    assert!(text.contains("\"chosen\"") && text.contains("\"rejected\""), "{text}");
    let again = hybra_fails(at, &[&pairs[..], &["4"]].concat());
    assert!(again.contains("--force"), "{again}");
    // Of right answers, thoughts and all, `sft` learns.
    let thinking = ["--set", "rollout.budgets=[\"inf\"]", "--set", "rollout.max_tokens=120"];
    let traces = ["train", "traces", "--config", "pairs.toml", "--output", "traces.jsonl"];
    hybra(at, &[&traces[..], &thinking, &["--count", "3"]].concat());
    let mined = fs::read_to_string(at.join("traces.jsonl")).unwrap();
    assert_eq!(mined.lines().count(), 3);
    assert!(mined.contains("reasoning_content") && !mined.contains("prompt"), "{mined}");
    let sft = format!(
        "steps = 2\n[model]\nfrom = \"{MODEL}\"\n[data]\npack_len = 512\n\
         [[data.sources]]\npath = \"traces.jsonl\"\np_truncate = 0.8\n"
    );
    fs::write(at.join("sft.toml"), sft).unwrap();
    hybra(at, &["train", "sft", "--config", "sft.toml", "--output", "controlled"]);
    let dpo = format!(
        "steps = 2\n[model]\nfrom = \"{MODEL}\"\n[optimizer]\nlr = 1e-4\n\
         [data]\npath = \"pairs.jsonl\"\npack_len = 512\nbatch_size = 2\n[dpo]\nbeta = 0.2\n"
    );
    fs::write(at.join("dpo.toml"), dpo).unwrap();
    hybra(at, &["train", "dpo", "--config", "dpo.toml", "--output", "run"]);
    let log = fs::read_to_string(at.join("run/log.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(first["loss"].as_f64(), Some(std::f64::consts::LN_2));
    let foreign = hybra_fails(at, &["train", "sft", "--config", "dpo.toml", "--output", "x"]);
    assert!(foreign.contains("[dpo]") && foreign.contains("hybra train dpo"), "{foreign}");
    let alone =
        ["train", "grpo", "--config", "pairs.toml", "--output", "x", "--set", "rollout.group=1"];
    assert!(hybra_fails(at, &alone).contains("rollout.group"));
}

//! `hybra train` and `hybra report` as a user runs them: killed runs end in the bytes of one that
//! was left alone, and what cannot go on says why.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{hybra, hybra_fails};

const STEPS: usize = 80;
const RUN: &str = r#"
seed = 3
steps = 80
[model]
tokenizer = "tokenizer"
pattern = "M-*-"
hidden_size = 32
intermediate_size = 64
mamba_num_heads = 4
mamba_head_dim = 16
n_groups = 2
ssm_state_size = 16
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
max_position_embeddings = 512
[schedule]
kind = "cosine"
warmup_steps = 5
[checkpoint]
every = 7
[data]
pack_len = 256
batch_size = 2
[[data.sources]]
task = "chainbox"
p_off = 0.2
p_truncate = 0.3
[[data.sources]]
path = "about.jsonl"
"#;

/// A folder with a run file and what it names.
fn prepared() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    for (task, file) in [("about", "about.jsonl"), ("chainbox", "chainbox.jsonl")] {
        hybra(at, &["data", task, "-n", "100", "-o", file]);
    }
    let words = ["data", "tokenizer", "--vocab-size", "300", "-o", "tokenizer"];
    hybra(at, &[&words[..], &["about.jsonl", "chainbox.jsonl"]].concat());
    fs::write(at.join("run.toml"), RUN).unwrap();
    directory
}

fn train<'a>(output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "sft", "--config", "run.toml", "--output", output][..], more].concat()
}

fn spawn(at: &Path, args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hybra"));
    command.args(args).current_dir(at).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn lines(file: &Path) -> usize {
    fs::read(file).map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count())
}

/// Starts the run again and again, and kills it each time once its log has so many lines.
fn kill_after(at: &Path, output: &str, logged: &[usize]) {
    for (i, &logged) in logged.iter().enumerate() {
        let mut child = spawn(at, &train(output, &["--threads", ["1", "2"][i % 2]]));
        let start = Instant::now();
        while lines(&at.join(output).join("log.jsonl")) < logged {
            assert!(child.try_wait().unwrap().is_none(), "ended before line {logged}");
            assert!(start.elapsed() < Duration::from_secs(120), "no line {logged}");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!at.join(output).join("model").exists(), "it had ended");
    }
}

fn assert_same_runs(a: &Path, b: &Path) {
    for file in ["log.jsonl", "model/model.safetensors", "model/lineage.json", "model/config.json"]
    {
        let [a, b] = [a, b].map(|run| fs::read(run.join(file)).unwrap());
        assert!(a == b, "{file} differs");
    }
}

#[test]
fn a_killed_run_ends_in_the_same_bytes() {
    let directory = prepared();
    let at = directory.path();
    hybra(at, &train("whole", &[]));
    assert_eq!(lines(&at.join("whole/log.jsonl")), STEPS);
    // Before the first checkpoint, at one, and between two.
    kill_after(at, "killed", &[3, 14, 40]);
    hybra(at, &train("killed", &["--threads", "2"]));
    assert_same_runs(&at.join("whole"), &at.join("killed"));

    let answer =
        hybra(at, &["generate", "whole/model", "--prompt", "a=1;a?", "--max-tokens", "20"]);
    assert!(answer.starts_with("<think>"), "{answer}");
    let events = hybra(at, &train("whole", &["--json"]));
    assert!(events.contains(r#""done""#) && !events.contains("loss"), "trained on: {events}");
}

#[test]
fn products_of_bf16_give_the_same_bytes_for_any_number_of_threads() {
    let directory = prepared();
    let at = directory.path();
    for (output, precision, threads) in
        [("one", "bf16", "1"), ("two", "bf16", "2"), ("f32", "f32", "2")]
    {
        let precision = format!("precision={precision}");
        let more = ["--set", &precision, "--set", "steps=12", "--threads", threads];
        hybra(at, &train(output, &more));
    }
    assert_same_runs(&at.join("one"), &at.join("two"));
    let log = |run: &str| fs::read(at.join(run).join("log.jsonl")).unwrap();
    assert!(log("f32") != log("one"), "nothing was rounded");
    let error = hybra_fails(at, &train("one", &["--set", "precision=f32", "--set", "steps=12"]));
    assert!(error.contains("precision"), "{error}");
    let error = hybra_fails(at, &train("other", &["--set", "precision=fp8"]));
    assert!(error.contains("precision") && error.contains("`f32` or `bf16`"), "{error}");
}

#[test]
fn a_run_goes_on_with_its_own_settings_only() {
    let directory = prepared();
    let at = directory.path();
    kill_after(at, "run", &[10]);
    let error = hybra_fails(at, &train("run", &["--set", "optimizer.lr=0.5"]));
    assert!(error.contains("optimizer.lr") && error.contains("--resume"), "{error}");
    let checkpoints = fs::read_dir(at.join("run/checkpoints")).unwrap();
    let newest = checkpoints.map(|entry| entry.unwrap().path()).max().unwrap();
    let name = newest.file_name().unwrap().to_str().unwrap().to_owned();
    let newest = newest.join("model.safetensors");
    let mut bytes = fs::read(&newest).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&newest, bytes).unwrap();
    let error = hybra_fails(at, &train("run", &[]));
    assert!(error.contains(&name) && error.contains("model.safetensors"), "{error}");
    let error = hybra_fails(at, &train("other", &["--set", "model.hidden=3"]));
    assert!(error.contains("hidden"), "{error}");
    for (set, words) in [
        ("eval.budgets=[\"many\"]", "many"),
        ("eval.tasks=[\"chess\"]", "chess"),
        ("eval.depth=3", "depth"),
    ] {
        let error = hybra_fails(at, &train("other", &["--set", "eval.every=5", "--set", set]));
        assert!(error.contains("[eval]") && error.contains(words), "{error}");
    }
}

/// Both forms of a question without an answer.
const QUESTIONS: &str = r#"{"prompt": [{"role": "user", "content": "a=1;a?"}]}
{"messages": [{"role": "user", "content": "7+5"}, {"role": "assistant", "content": "12"}, {"role": "user", "content": "8+5"}]}
"#;
const GRPO: &str = r#"
steps = 1
[model]
[data]
pack_len = 256
[[data.sources]]
path = "questions.jsonl"
[rollout]
prompts = 2
group = 2
max_tokens = 16
"#;

#[test]
fn questions_without_answers_are_asked_where_nothing_must_be_right() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    fs::write(at.join("questions.jsonl"), QUESTIONS).unwrap();
    fs::write(at.join("run.toml"), GRPO).unwrap();
    let model = concat!("model.from=", env!("CARGO_MANIFEST_DIR"), "/../../assets/default-model");
    let grpo = ["train", "grpo", "--config", "run.toml", "--output", "run", "--set", model];
    let said = hybra_fails(at, &grpo);
    assert!(said.contains("questions.jsonl") && said.contains("grpo.reward.right"), "{said}");
    hybra(
        at,
        &[&grpo[..], &["--set", "grpo.reward.right=0", "--set", "grpo.reward.length=1"]].concat(),
    );
    assert_eq!(lines(&at.join("run/log.jsonl")), 1);
    let pairs = ["train", "pairs", "--config", "run.toml", "--output", "p.jsonl", "--set", model];
    let said = hybra_fails(at, &pairs);
    assert!(said.contains("questions.jsonl") && said.contains("told right"), "{said}");
}

/// Accuracy in the middle of a run, of whatever a model says that has seen little.
#[test]
fn a_report_shows_every_curve() {
    let directory = prepared();
    let at = directory.path();
    let eval =
        format!("{RUN}[eval]\nevery = 5\nbudgets = [\"off\", 4]\ncount = 3\nmax_tokens = 40\n");
    fs::write(at.join("run.toml"), eval).unwrap();
    hybra(at, &train("run", &["--set", "steps=9"]));
    let log = fs::read_to_string(at.join("run/log.jsonl")).unwrap();
    assert_eq!(log.matches(r#""chainbox off":"#).count(), 2, "at step 5 and at the end: {log}");
    hybra(at, &["report", "run"]);
    let html = fs::read_to_string(at.join("run/report.html")).unwrap();
    for part in ["<svg", "loss", "gradient norm", "tokens per second", "eval: chainbox 4"] {
        assert!(html.to_lowercase().contains(part), "no {part:?}");
    }
    assert!(!html.contains("<script"));
    events_are_written(at);
    let error = hybra_fails(at, &["report", "nowhere"]);
    assert!(error.contains("nowhere"), "{error}");
}

/// Of `run`, alone and as one of several below a folder.
fn events_are_written(at: &Path) {
    let name = "events.out.tfevents.0000000000.hybra";
    let said = hybra(at, &["report", "run", "--tensorboard", "tb"]);
    let expected = Path::new("tb").join(name).display().to_string();
    assert_eq!(said.trim_end(), expected);
    let events = fs::read(at.join(&expected)).unwrap();
    let count = |tag: &str| events.windows(tag.len()).filter(|w| *w == tag.as_bytes()).count();
    assert_eq!(count("brain.Event:2"), 1);
    // The key of the value follows a tag: `chainbox off tokens` is another one.
    let tags = ["train/loss", "train/learning_rate", "eval/chainbox off"];
    assert_eq!(tags.map(|tag| count(&format!("{tag}\u{15}"))), [9, 9, 2]);

    for (run, log) in [("all/stage/run", "run/log.jsonl"), ("all/begun", "nothing")] {
        fs::create_dir_all(at.join(run)).unwrap();
        let text = fs::read(at.join(log)).unwrap_or_default();
        fs::write(at.join(run).join("log.jsonl"), text).unwrap();
    }
    let said = hybra(at, &["report", "all", "--tensorboard", "tb"]);
    assert_eq!(said.trim_end(), Path::new("tb/stage/run").join(name).display().to_string());
    assert!(at.join(said.trim_end()).is_file());
    let error = hybra_fails(at, &["report", "all/begun", "--tensorboard", "tb"]);
    assert!(error.contains("no step is logged yet"), "{error}");
    let error = hybra_fails(at, &["report", "tokenizer", "--tensorboard", "tb"]);
    assert!(error.contains("tokenizer: no log.jsonl"), "{error}");
    assert!(fs::read(at.join(&expected)).unwrap() == events, "of another run");
}

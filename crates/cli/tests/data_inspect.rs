//! `hybra data tokenizer` and `hybra data inspect`: from a file to tokens with their mask.

mod support;

use serde_json::Value;
use std::path::Path;
use support::{hybra, hybra_fails};

const CHAT: &str = r#"{"messages":[{"role":"user","content":"c=2;d=c*9;d?"},{"role":"assistant","reasoning_content":"d=c*9\nc=2\nd=8","content":"8"}]}
{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"Hello."}]}
"#;

fn prepare(directory: &Path) {
    std::fs::write(directory.join("chat.jsonl"), CHAT).unwrap();
    let args = ["data", "tokenizer", "--vocab-size", "290", "-o", "tokenizer", "chat.jsonl"];
    assert_eq!(hybra(directory, &args), "tokenizer: 290 ids from 2 records\n");
}

#[test]
fn a_file_becomes_tokens_with_a_mask() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    prepare(directory);
    let inspect = ["data", "inspect", "--model", "tokenizer", "chat.jsonl"];
    let text = hybra(directory, &inspect);
    for part in [
        ", chat.jsonl: line 1\n",
        "[8][⏎]\n[<SPECIAL_12>]",
        "chat.jsonl: 2 records",
        "assistant turns: 1 no trace, 1 whole trace",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(!text.contains('\x1b'), "{text}");

    let args = [&inspect[..], &["--json", "--p-truncate", "1", "--scan", "50", "-n", "2"]].concat();
    let report: Value = serde_json::from_str(&hybra(directory, &args)).unwrap();
    assert_eq!(report["samples"].as_array().unwrap().len(), 2);
    let turns = &report["summary"]["turns"];
    assert_eq!((&turns["none"], &turns["truncated"]), (&25.into(), &25.into()));
    let document = &report["samples"][0]["documents"][0];
    assert_eq!(document["tokens"][0]["text"], "<SPECIAL_10>");
    assert_eq!(document["tokens"][0]["learned"], false);

    let run = "[data]\nseed = 0\npack_len = 200\n[[data.sources]]\npath = 'chat.jsonl'\n\
               p_truncate = 1.0\n[optimizer]\nlr = 1\n";
    std::fs::write(directory.join("run.toml"), run).unwrap();
    let args = [
        "data",
        "inspect",
        "--model",
        "tokenizer",
        "--config",
        "run.toml",
        "--json",
        "--scan",
        "50",
        "-n",
        "2",
    ];
    let same: Value = serde_json::from_str(&hybra(directory, &args)).unwrap();
    assert_eq!(same, report);
}

#[test]
fn mistakes_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    prepare(directory);
    std::fs::write(directory.join("bad.jsonl"), "{\"text\":\"a\"}\n{\n").unwrap();
    std::fs::write(directory.join("run.toml"), "[model]\n").unwrap();
    std::fs::write(
        directory.join("task.toml"),
        "[data]\npack_len = 9\n[[data.sources]]\ntask = 'nothing'\n",
    )
    .unwrap();
    let inspect = ["data", "inspect", "--model", "tokenizer"];
    let cases: [(&[&str], &str); 5] = [
        (&["bad.jsonl"], "bad.jsonl: line 2: not valid JSON"),
        (&["chat.jsonl", "--p-off", "2"], "`sources[0].p_off`: expected a share from 0 to 1"),
        (&["--config", "run.toml"], "run.toml: expected a [data] table, found none"),
        (&["--config", "task.toml"], "format, about, judge, found \"nothing\""),
        (&["--config", "absent.toml"], "absent.toml: "),
    ];
    for (args, want) in cases {
        let error = hybra_fails(directory, &[&inspect, args].concat());
        assert!(error.contains(want), "{args:?}: {error}");
    }
    let args = ["data", "tokenizer", "--vocab-size", "99", "-o", "t", "chat.jsonl"];
    let error = hybra_fails(directory, &args);
    assert!(error.contains("`vocab_size`: expected at least 275"), "{error}");
    assert!(!directory.join("t").exists());
}

//! `hybra data` and `hybra eval` as a user runs them, with the model inside the binary.

mod support;

use serde_json::Value;
use support::{hybra, hybra_fails, hybra_with};

const PLAIN: [&str; 4] = ["--phrasing", "terse", "--max-difficulty", "4"];

#[test]
fn data_are_lines_that_depend_on_the_options_alone() {
    let dir = tempfile::tempdir().unwrap();
    for task in ["chainbox", "arithmetic", "tools", "recall", "format", "about"] {
        let text = hybra(dir.path(), &["data", task, "-n", "5", "--seed", "3"]);
        assert_eq!(text.lines().count(), 5);
        for line in text.lines() {
            let example: Value = serde_json::from_str(line).unwrap();
            assert_eq!(example["task"], task);
            assert_eq!(example["messages"][0]["role"], "user");
        }
        let file = format!("{task}.jsonl");
        let args = ["data", task, "--count", "5", "--seed", "3", "-o", &file];
        assert_eq!(hybra(dir.path(), &args), "");
        assert_eq!(std::fs::read_to_string(dir.path().join(&file)).unwrap(), text);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 6, "nothing temporary is left");
}

#[test]
fn wrong_options_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let fails = |args: &[&str], part: &str| {
        let error = hybra_fails(dir.path(), args);
        assert!(error.contains(part), "{error}");
    };
    let hard = ["data", "chainbox", "--split", "hard", "--max-difficulty", "4"];
    fails(&hard, "expected at least 9, found 4");
    fails(&["data", "recall", "-o", "no/such.jsonl"], "no/such.jsonl");
    fails(&["eval", "--task", "chess"], "chess: neither a task nor a file");
    std::fs::write(dir.path().join("bad.jsonl"), "\n{}\n").unwrap();
    fails(&["eval", "--task", "bad.jsonl"], "bad.jsonl:2: missing field `messages`");
    for args in [["eval", "--budgets", "much"], ["data", "chainbox", "--split=all"]] {
        assert_eq!(hybra_with(dir.path(), &[], &args).code, 2);
    }
}

/// The model thinks its way to what it cannot say at once, and every reply has one closing tag.
#[test]
fn the_model_is_better_with_thinking() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["eval", "-n", "60", "--budgets", "off,0,8,inf", "--json", "--svg", "curve.svg"];
    let report: Value = serde_json::from_str(&hybra(dir.path(), &[&args[..], &PLAIN].concat()))
        .expect("one JSON object");
    let rows = report["results"].as_array().unwrap();
    let number = |row: usize, path: &str| rows[row].pointer(path).unwrap().as_f64().unwrap();
    let share = |row| number(row, "/accuracy/share");
    assert_eq!(
        rows.iter().map(|row| &row["budget"]).collect::<Vec<_>>(),
        ["off", "0", "8", "inf"]
            .map(|budget| budget.parse::<u64>().map_or(Value::from(budget), Value::from))
            .iter()
            .collect::<Vec<_>>()
    );
    assert!(share(3) > share(0) + 0.1, "{report}");
    for row in 0..4 {
        assert!(number(row, "/accuracy/low") < share(row), "{report}");
        assert!(number(row, "/well_formed") > 0.9, "{report}");
    }
    assert_eq!([number(0, "/thinking_tokens"), number(1, "/thinking_tokens")], [0.0, 0.0]);
    assert_eq!([number(1, "/cut"), number(3, "/cut")], [1.0, 0.0]);
    assert!(number(2, "/thinking_tokens") < number(3, "/thinking_tokens"));
    assert_eq!(number(3, "/saved_percent"), 0.0);
    assert!(number(0, "/saved_percent") > 50.0, "{report}");
    let picture = std::fs::read_to_string(dir.path().join("curve.svg")).unwrap();
    assert_eq!(picture.matches("<circle").count(), 4);
}

/// The same examples from a file give the same answers.
#[test]
fn a_file_is_measured_as_its_task() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let data = ["data", "chainbox", "--split", "test", "-n", "20", "-o", "x.jsonl"];
    hybra(dir, &[&data[..], &PLAIN].concat());
    let measure = |args: &[&str]| -> Value {
        let args = [&["eval", "--budgets", "off,16", "--json"], args].concat();
        let report: Value = serde_json::from_str(&hybra(dir, &args)).unwrap();
        let rows = report["results"].as_array().unwrap().iter();
        rows.map(|row| row["by_difficulty"].clone()).collect()
    };
    let made = measure(&[&["-n", "20"], &PLAIN[..]].concat());
    assert_eq!(measure(&["--task", "x.jsonl"]), made);
    let table = hybra(dir, &["eval", "--task", "x.jsonl", "--budgets", "off"]);
    assert!(table.contains("accuracy") && table.contains("x.jsonl, 20 examples"), "{table}");
}

/// Numbers that no function gave are counted where there are functions, and only there.
#[test]
fn invented_results_are_counted_where_there_are_functions() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["eval", "--task", "tools,chainbox", "-n", "20", "--budgets", "off,inf"];
    let report = hybra(dir.path(), &[&args[..], &["--json"]].concat());
    let report: Value = serde_json::from_str(&report).unwrap();
    let rows = report["results"].as_array().unwrap();
    for row in &rows[..2] {
        let (rate, accuracy) = (&row["invented"], &row["accuracy"]);
        assert_eq!(rate["total"], 20);
        // What is right is not invented.
        let sum = rate["count"].as_u64().unwrap() + accuracy["correct"].as_u64().unwrap();
        assert!(sum <= 20, "{row}");
        assert!(rate["high"].as_f64() > rate["share"].as_f64(), "{row}");
    }
    assert!(rows[2..].iter().all(|row| row["invented"].is_null()), "{report}");
    let table = hybra(dir.path(), &args);
    assert_eq!(table.matches("invented").count(), 1, "{table}");
}

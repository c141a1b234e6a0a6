//! `hybra bench` on the model inside the binary: every row is there, and what takes too long is
//! named.

use serde_json::Value;
use std::process::Command;

fn bench(args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hybra"));
    let output = command.arg("bench").args(args).output().expect("hybra runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_row_has_a_speed_and_its_shares() {
    let rows = ["--prefill", "64,130", "--depth", "0,48,100", "--batch", "1,3", "--tokens", "4"];
    let text = bench(&[&rows[..], &["--chunk", "32", "--repeat", "2", "--json"]].concat());
    let report: Value = serde_json::from_str(&text).unwrap();
    let results = report["results"].as_array().unwrap();
    let rows: Vec<_> = results
        .iter()
        .map(|row| match row["kind"].as_str().unwrap() {
            "prefill" => format!("prefill {}", row["tokens"]),
            _ => format!("decode {} {}", row["depth"], row["batch"]),
        })
        .collect();
    let expected =
        ["prefill 64", "prefill 130", "decode 0 1", "decode 0 3", "decode 48 1", "decode 100 1"];
    assert_eq!(rows, expected);
    for row in results {
        let speed = &row["tokens_per_second"];
        let number = |key: &str| speed[key].as_f64().unwrap();
        assert!(number("min") > 0.0 && number("min") <= number("median"), "{row}");
        assert!(number("median") <= number("max") && speed["samples"] == 2, "{row}");
        assert!(row["share_of"]["f32_fma"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["share_of"]["memory_read"].is_null(), row["kind"] == "prefill", "{row}");
    }
    assert!(report["limits"]["memory_read"]["median"].as_f64().unwrap() > 0.0);
    let isa = &report["isa"];
    assert_eq!(&report["limits"]["f32_fma"]["instruction"], isa);
    assert_eq!(report["skipped"], serde_json::json!([]));
    assert!((0.0..=1.0).contains(&report["mlp_density"].as_f64().unwrap()), "{report}");
    if cfg!(target_os = "linux") {
        let peak = report["peak_resident_bytes"].as_u64().unwrap();
        // The buffer that measures bandwidth, 256 MiB or more, is not counted.
        assert!((1 << 20..256 << 20).contains(&peak), "{peak}");
    }
}

#[test]
fn rows_beyond_the_time_are_skipped_with_the_time_they_need() {
    let rows = ["--prefill", "16", "--depth", "0,16M", "--batch", "1", "--tokens", "2"];
    let text = bench(&[&rows[..], &["--seconds", "5", "--repeat", "1"]].concat());
    let line = text.lines().find(|line| line.starts_with("decode at 16777216"));
    let line = line.unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("skipped: takes up to") && line.contains("--seconds "), "{line}");
    for part in ["limits of this machine", "memory read", "prefill 16", "tokens/s", "peak memory"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

fn compare(args: &[&str]) -> Value {
    let common = ["--compare", "transformer", "--points", "64/32,16/8", "--chunk", "32", "--json"];
    serde_json::from_str(&bench(&[&common[..], args].concat())).unwrap()
}

#[test]
fn a_comparison_integrates_both_models_and_projects() {
    let report = compare(&["micro", "--max-batch", "3", "--depths", "3", "--threads", "1"]);
    assert_eq!(report["sampling"], serde_json::json!({ "depths": 3, "slice": 32, "steps": 4 }));
    let [hybrid, dense] = [&report["models"][0], &report["models"][1]];
    assert_eq!([&hybrid["name"], &dense["name"]], ["micro", "transformer"]);
    assert_eq!(dense["pattern"], "*-*-*-*-");
    let parameters = |model: &Value| model["work"]["parameters"].as_f64().unwrap();
    assert!((parameters(dense) / parameters(hybrid) - 1.0).abs() < 0.02);
    for model in [hybrid, dense] {
        assert_eq!(model["weights"], "Q4_0");
        assert!((0.1..0.9).contains(&model["mlp_density"].as_f64().unwrap()), "{model}");
        for (run, [prompt, output]) in
            model["runs"].as_array().unwrap().iter().zip([[64.0, 32.0], [16.0, 8.0]])
        {
            assert_eq!((&run["batch"], &run["limited_by"]), (&3.into(), &"max_batch".into()));
            let number = |key: &str| run[key].as_f64().unwrap();
            let speed = 3.0 * output / (number("prefill_seconds") + number("decode_seconds"));
            assert!((number("tokens_per_second") / speed - 1.0).abs() < 1e-9, "{run}");
            for (samples, end) in [("prefill_samples", prompt), ("decode_samples", prompt + output)]
            {
                let samples = run[samples].as_array().unwrap();
                let depths: Vec<_> = samples.iter().map(|s| s["depth"].as_f64().unwrap()).collect();
                assert!(depths.windows(2).all(|pair| pair[0] < pair[1]), "{run}");
                assert!(depths.last().unwrap() < &end && samples.len() <= 3, "{run}");
            }
        }
    }
    assert!(report["ratios"][0].as_f64().unwrap() > 0.0);
    let projections = report["projections"].as_array().unwrap();
    assert_eq!(projections.len(), 4);
    assert_eq!(projections[0]["device"]["bytes_per_second"], 600e9);
    assert!(projections.iter().all(|p| p["ratio"].as_f64().unwrap() > 0.0));
}

#[test]
fn a_comparison_names_what_the_budget_does_not_admit() {
    let args = ["micro", "--memory-budget", "300KiB", "--quick"];
    let report = compare(&args);
    let skipped = report["models"][1]["runs"][0]["skipped"].as_str().unwrap();
    assert!(
        skipped.starts_with("needs ") && skipped.ends_with("the budget is 300.00 KiB"),
        "{skipped}"
    );
    assert_eq!(report["ratios"], serde_json::json!([null, null]));

    let text =
        bench(&["--compare", "transformer", "--points", "64/32", "--max-batch", "2", "micro"]);
    let parts = [
        "micro against transformer",
        "Integrated from 5 sampled depths",
        "caches filled without reading",
        "c: capped by --max-batch 2",
        "PROJECTION, not measured",
        "A10G: 600 GB/s, 22 GiB usable, 125 TFLOP/s bf16 (published)",
        "H200: 4,800 GB/s, 141 GB, 989 TFLOP/s bf16 (published)",
    ];
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

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

//! `hybra inspect`: the golden table of the family, from presets, configs and checkpoints.

#[path = "../../../testdata/shared_dir.rs"]
mod shared_dir;
mod support;

use serde_json::Value;
use shared_dir::shared;
use std::path::Path;
use support::{hybra, hybra_fails};

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn json(args: &[&str]) -> Value {
    let args = [&["inspect", "--json"], args].concat();
    serde_json::from_str(&hybra(here(), &args)).expect("one JSON object")
}

fn gib(value: &Value) -> String {
    format!("{:.2}", value.as_u64().unwrap() as f64 / (1u64 << 30) as f64)
}

#[test]
fn the_published_sizes() {
    let table = [
        ("nano2-9b", 8_888_227_328_u64, 341, "16.56", "2.00", "18.69"),
        ("nano2-12b", 12_310_001_152, 369, "22.93", "3.00", "26.07"),
        ("nano-4b", 3_973_556_832, 263, "7.40", "2.00", "9.48"),
    ];
    for (preset, parameters, tensors, weights, kv, total) in table {
        let report = json(&[preset, "--context", "128k", "--prefill-chunk", "0"]);
        assert_eq!(report["parameters"], parameters, "{preset}");
        assert_eq!(report["num_tensors"], tensors, "{preset}");
        let memory = &report["memory"];
        let found = ["weights", "kv", "total"].map(|part| gib(&memory[part]));
        assert_eq!(found, [weights, kv, total], "{preset}");
        assert_eq!(memory["workspace"], 0);
    }
}

#[test]
fn the_report_for_people() {
    let text = hybra(here(), &["inspect", "nano2-9b", "--memory-budget", "19.66GiB"]);
    let expected = [
        "56 layers: 27 Mamba-2 (M), 25 MLP (-), 4 attention (*)",
        "M-M-M-MM-M -M-M*-M-M- M*-M-M-M-M *-M-M-M-M* -M-MM-M-M- M-M-M-",
        "8,888,227,328",
        "3,981,045,888   44.8 %",
        "16.00 KiB per token",
        "138.80 MiB at any length (SSM 135.00 MiB, convolution 3.80 MiB)",
        "16.56 GiB  BF16",
        "workspace",
        "Budget 19.66 GiB: fits",
        "(trained for 131,072)",
    ];
    for part in expected {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn what_fits_a_budget() {
    let args = ["nano2-9b", "--dtype", "q4_0", "--batch", "8", "--context", "32k"];
    let report = json(&[&args[..], &["--memory-budget", "16G"]].concat());
    assert_eq!(report["fit"]["fits"], true);
    let most = report["fit"]["largest_context"]["up_to"].as_u64().unwrap();
    for (context, fits) in [(most, true), (most + 1, false)] {
        let context = context.to_string();
        let args = ["nano2-9b", "--dtype", "q4_0", "--batch", "8", "--context", &context];
        let report = json(&[&args[..], &["--memory-budget", "16G"]].concat());
        assert_eq!(report["fit"]["fits"], fits, "{context}");
    }
    let small = json(&["nano2-9b", "--memory-budget", "1GiB"]);
    assert_eq!(small["fit"]["largest_batch"], "nothing");
    assert!(small["fit"]["free"].as_i64().unwrap() < 0);
}

#[test]
fn the_embedded_model_shows_its_files() {
    let report = json(&[]);
    assert_eq!(report["checkpoint"]["format"], "safetensors");
    assert_eq!(report["checkpoint"]["path"], "hybra-default");
    let types = report["checkpoint"]["types"].as_array().unwrap();
    let bytes: u64 = types.iter().map(|known| known["bytes"].as_u64().unwrap()).sum();
    assert_eq!(report["checkpoint"]["bytes"], bytes);
    assert_eq!(report["memory"]["weights"], report["checkpoint"]["loaded_bytes"]);
}

#[test]
fn configs_directories_and_gguf_files_agree() {
    let Some(golden) = shared("golden") else { return };
    let path = |sub: &str| golden.join(sub).to_str().unwrap().to_owned();
    let model = json(&[&path("odd")]);
    let config = json(&[&path("odd/config.json")]);
    assert_eq!(model["name"], "odd");
    assert_eq!(config["checkpoint"], Value::Null);
    for part in ["name", "architecture", "parameters", "sequence"] {
        assert_eq!(model[part], config[part], "{part}");
    }
    let (quantized, plain) = (json(&[&path("gguf/Q4_K.gguf")]), json(&[&path("gguf/F32.gguf")]));
    assert_eq!(quantized["parameters"], plain["parameters"]);
    assert_eq!(quantized["memory_format"], "Q4_K");
    assert_eq!(plain["checkpoint"]["bytes"].as_u64(), Some(4 * 2_238_256));
}

#[test]
fn presets_are_listed_and_mistakes_are_named() {
    let list = hybra(here(), &["inspect", "--presets"]);
    for name in ["nano2-9b", "nano2-12b", "nano-4b", "micro", "transformer-8b"] {
        assert!(list.lines().any(|line| line.starts_with(name)), "{list}");
    }
    let error = hybra_fails(here(), &["inspect", "nano2-90b"]);
    assert!(error.contains("nano2-90b") && error.contains("owner/name"), "{error}");
}

#[test]
fn activations_are_counted_for_every_mlp() {
    let text = hybra(here(), &["inspect", "--activations", "--threads", "1"]);
    let parts = ["nonzero hidden units", "built-in text", "union of tokens", "mean of all layers"];
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let report = json(&["--activations", "--tokens", "40"]);
    assert_eq!((&report["input"], &report["tokens"]), (&"random tokens".into(), &40.into()));
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(
        layers.len(),
        json(&[])["architecture"]["num_mlp_layers"].as_u64().unwrap() as usize
    );
    for layer in layers {
        let share = |value: &Value| value.as_f64().unwrap();
        let [mean, min, max] = ["mean", "min", "max"].map(|key| share(&layer[key]));
        let unions: Vec<_> =
            layer["unions"].as_array().unwrap().iter().map(|u| share(&u["mean"])).collect();
        assert!(0.0 < min && min <= mean && mean <= max && max <= 1.0, "{layer}");
        assert!(mean <= unions[0] && unions[0] <= unions[1] && unions[1] <= unions[2], "{layer}");
    }
    let prompted = json(&["--activations", "--prompt", "c=b-7;b=0;"]);
    assert_eq!(prompted["input"], "prompt");
    let error = hybra_fails(here(), &["inspect", "micro", "--activations"]);
    assert!(error.contains("no weights") && error.contains("hybra init"), "{error}");
}

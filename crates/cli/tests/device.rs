//! `--device` as a user gives it, with the emulated device of `hybra-cuda`'s tests in the place of
//! the driver.

#[allow(dead_code)]
#[path = "../../cuda/tests/emulated/mod.rs"]
mod emulated;
#[path = "../../../testdata/shared_dir.rs"]
mod shared_dir;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

const PROGRAM: &str = "c=b-7;b=0;d=c*9;d?";

/// A run of the program that finds its driver in the folder `libraries`.
fn hybra(libraries: &Path, args: &[&str]) -> Output {
    let home = libraries.join("home");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hybra"));
    command.args(args).env("LD_LIBRARY_PATH", libraries).env("XDG_CACHE_HOME", home);
    command.env_remove("HYBRA_ISA").output().unwrap()
}

fn error_of(out: &Output) -> String {
    assert!(!out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn a_gpu_answers_as_the_cpu_does_and_says_that_it_did() {
    let Some(libraries) = emulated::build() else { return };
    let reply = |device: &str, more: &[&str]| {
        let args = ["generate", "--device", device, "--prompt", PROGRAM, "--json"];
        let out = hybra(&libraries, &[&args, more].concat());
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{said}");
        (serde_json::from_slice::<Value>(&out.stdout).unwrap()["choices"][0].clone(), said)
    };
    let (on_gpu, said) = reply("cuda:0", &[]);
    assert!(said.contains("device: cuda:0 Emulated device (sm_80), bf16, "), "{said}");
    assert_eq!(on_gpu["message"]["content"], "7\n");
    assert_eq!(on_gpu["message"]["reasoning_content"], "d=c*9\nc=b-7\nb=0\nc=3\nd=7\n");
    let launched = |graphs: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hybra"));
        command.env("LD_LIBRARY_PATH", &libraries).env("XDG_CACHE_HOME", libraries.join("home"));
        command.env("HYBRA_CUDA_GRAPHS", graphs).env_remove("HYBRA_ISA");
        let args = ["generate", "--device", "cuda:0", "--prompt", PROGRAM, "--json"];
        command.args(args).output().unwrap()
    };
    let out = launched("off");
    assert!(String::from_utf8_lossy(&out.stderr).contains(", no CUDA graphs"));
    let launched_reply = &serde_json::from_slice::<Value>(&out.stdout).unwrap()["choices"][0];
    assert_eq!(launched_reply["message"], on_gpu["message"], "each kernel launched by itself");
    let error = error_of(&launched("no"));
    assert!(error.contains("HYBRA_CUDA_GRAPHS: expected on or off, found \"no\""), "{error}");
    let (exact, said) = reply("auto", &["--arithmetic", "exact", "--thinking-budget", "8"]);
    assert!(said.contains(", f32, "), "{said}");
    let (on_cpu, _) = reply("cpu", &["--arithmetic", "exact", "--thinking-budget", "8"]);
    assert_eq!(exact["message"], on_cpu["message"], "a budget on either device");
}

#[test]
fn what_a_gpu_cannot_is_refused() {
    let Some(libraries) = emulated::build() else { return };
    let cases: [(&[&str], &str); 5] = [
        (&["--device", "cuda:1"], "no device cuda:1: the driver sees 1"),
        (&["--device", "gpu"], "expected auto, cpu, cuda or cuda:N, found \"gpu\""),
        (&["--device", "cuda", "--speculate"], "--speculate: drafts are read on the CPU only"),
        (&["--device", "cuda", "--kv-dtype", "q8"], "--kv-dtype: a GPU keeps"),
        (&["--device", "cuda", "--state-dtype", "bf16"], "--state-dtype: a GPU keeps"),
    ];
    for (args, expected) in cases {
        let out = hybra(&libraries, &[&["generate", "--prompt", PROGRAM], args].concat());
        let error = error_of(&out);
        assert!(error.contains(expected), "{args:?}: {error}");
    }
    let args = ["generate", "--device", "auto", "--speculate", "--prompt", PROGRAM];
    let out = hybra(&libraries, &[&args[..], &["--hide-thinking"]].concat());
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("device: cpu (--speculate: drafts"), "{said}");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "7\n");
}

#[test]
fn bench_compares_with_the_limits_of_the_device() {
    let Some(libraries) = emulated::build() else { return };
    let args = ["bench", "--device", "cuda:0", "--prefill", "64", "--depth", "0", "--batch", "1"];
    let more = ["--tokens", "2", "--repeat", "1", "--json"];
    let out = hybra(&libraries, &[&args[..], &more].concat());
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let record: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&record["isa"], &record["kv_dtype"]), (&"Emulated device".into(), &"bf16".into()));
    assert!(record["limits"]["bf16_dot"]["median"].as_f64().unwrap() > 0.0);
    let results = record["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for result in results {
        assert!(result["share_of"]["bf16_dot"].as_f64().unwrap() > 0.0, "{result}");
        assert!(result["share_of"]["int8_dot"].is_null());
    }
}

/// Both models on the device, at the largest batch that its memory admits.
#[test]
fn a_comparison_runs_on_the_device() {
    let Some(libraries) = emulated::build() else { return };
    let args = ["bench", "--device", "cuda:0", "--compare", "transformer", "micro", "--json"];
    let sampled = ["--points", "80/8", "--depths", "2", "--tokens", "2", "--chunk", "16"];
    let out = hybra(&libraries, &[&args[..], &sampled, &["--max-batch", "3"]].concat());
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    assert_eq!(said.matches("device: cuda:0 Emulated device").count(), 2, "{said}");
    let record: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&record["isa"], &record["kv_dtype"]), (&"Emulated device".into(), &"bf16".into()));
    let room = record["room"]["machine"].as_u64().unwrap();
    assert!(room < 1 << 30, "nine tenths of the device's memory: {room}");
    for model in record["models"].as_array().unwrap() {
        let run = &model["runs"][0];
        assert_eq!((&run["batch"], &run["limited_by"]), (&3.into(), &"max_batch".into()));
        assert!(run["tokens_per_second"].as_f64().unwrap() > 0.0);
        let (taken, weights) = (&model["device_bytes"], &model["work"]["weight_bytes"]);
        assert!(taken.as_u64().unwrap() > weights.as_u64().unwrap(), "{model}");
    }
    assert!(record["ratios"][0].as_f64().unwrap() > 0.0);
}

#[test]
fn without_a_driver_the_cpu_goes_on_only_if_it_may() {
    let empty = tempfile::tempdir().unwrap();
    if Command::new("nvidia-smi").output().is_ok() {
        return;
    }
    let out = hybra(empty.path(), &["generate", "--device", "cuda:0", "--prompt", PROGRAM]);
    let error = error_of(&out);
    assert!(error.contains("no NVIDIA driver") && error.contains("--device cpu"), "{error}");
    let args = ["generate", "--device", "auto", "--prompt", PROGRAM, "--hide-thinking"];
    let out = hybra(empty.path(), &args);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "7\n");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("device: cpu (no NVIDIA driver"), "{said}");
}

#[test]
fn verify_passes_on_a_golden_checkpoint() {
    let Some(libraries) = emulated::build() else { return };
    let Some(golden) = shared_dir::shared("golden/micro") else { return };
    let reference = golden.join("reference.safetensors");
    let (golden, reference) = (golden.to_str().unwrap(), reference.to_str().unwrap());
    let out = hybra(&libraries, &["verify", golden, "-r", reference, "--device", "cuda:0"]);
    let (shown, said) =
        (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("Emulated device"), "{shown}{said}");
}

//! `hybra verify` on the golden data, on every instruction set of this machine, and on copies of
//! it with one wrong number.

#[path = "../../../testdata/shared_dir.rs"]
mod shared_dir;

use serde_json::Value;
use shared_dir::shared;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const TOLERANCE: f64 = 2e-5;
const GGUF_FORMATS: [&str; 12] = [
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q4_K", "Q5_K", "Q6_K",
];

fn hybra(args: &[&str], isa: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hybra"));
    command.args(args).env("HYBRA_ISA", isa).output().expect("hybra runs")
}

/// The instruction sets that the binary finds on this machine.
fn isas() -> Vec<String> {
    let output = hybra(&["--version", "-v"], "");
    let text = String::from_utf8(output.stdout).unwrap();
    let list = text.split_once("(available: ").and_then(|(_, rest)| rest.split_once(')'));
    let isas: Vec<String> = list.expect(&text).0.split(", ").map(str::to_owned).collect();
    assert!(isas.contains(&"scalar".to_owned()), "{text}");
    isas
}

/// Exit status and JSON of `hybra verify`.
fn verify(model: &Path, reference: &Path, isa: &str, more: &[&str]) -> (i32, Value) {
    let paths = [model, reference].map(|path| path.to_str().unwrap());
    let args = [&["verify", paths[0], "--reference", paths[1], "--json"], more].concat();
    let output = hybra(&args, isa);
    let text = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}{stderr}"));
    (output.status.code().unwrap(), json)
}

/// Checks a report that must pass, and says what it found.
fn assert_passes((status, report): (i32, Value), name: &str, isa: &str) {
    let worst = report["worst_relative_error"].as_f64().unwrap_or(f64::NAN);
    eprintln!("{name} on {isa}: worst relative error {worst:.2e}");
    assert_eq!(
        (status, &report["pass"], &report["isa"]),
        (0, &true.into(), &isa.into()),
        "{report}"
    );
    assert!(worst <= TOLERANCE, "{name} on {isa}: {worst}");
}

/// Of every weight format: next-token distributions against those of the dequantized weights.
#[test]
fn fast_arithmetic_is_near_the_dequantized_reference() {
    let Some(dir) = shared("golden/gguf") else { return };
    for format in GGUF_FORMATS {
        let [model, reference] =
            ["gguf", "safetensors"].map(|end| dir.join(format!("{format}.{end}")));
        for isa in isas() {
            let (status, report) = verify(&model, &reference, &isa, &["--arithmetic", "fast"]);
            eprintln!(
                "{format} on {isa}: mean KL {}, worst {}",
                report["mean_kl"], report["worst_kl"]
            );
            assert_eq!((status, &report["pass"]), (0, &true.into()), "{format} on {isa}: {report}");
        }
    }
}

/// Rounded activations: the divergence of next-token distributions stays small on every ISA.
#[test]
fn fast_arithmetic_keeps_the_distribution_of_a_trained_model() {
    let Some(model) = shared("models/chainbox-probe") else { return };
    let dir = tempfile::tempdir().unwrap();
    for format in ["bf16", "q8_0", "q4_0"] {
        let file = dir.path().join(format!("{format}.gguf"));
        let args = [model.to_str().unwrap(), file.to_str().unwrap(), "--dtype", format];
        let args = [&["convert"], &args[..], &["--tokenizer-json"]];
        let output = hybra(&args.concat(), "");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for isa in isas() {
            // What the weights' own rounding does is measured by exact arithmetic on them.
            let run = |arithmetic: &str| {
                let more = ["--arithmetic", arithmetic, "--max-kl", "1", "--tolerance", "1"];
                verify(&file, &model.join("reference.safetensors"), &isa, &more).1
            };
            let [exact, fast] = ["exact", "fast"].map(|a| run(a)["mean_kl"].as_f64().unwrap());
            eprintln!("{format} on {isa}: mean KL exact {exact:.2e}, fast {fast:.2e}");
            assert!((fast - exact).abs() < 1e-3, "{format} on {isa}: {exact} {fast}");
        }
    }
}

fn lines<'r>(report: &'r Value, key: &str) -> &'r [Value] {
    report[key].as_array().unwrap()
}

#[test]
fn golden_checkpoints_pass_on_every_isa() {
    // Layers, greedy tokens in all.
    let cases = [
        ("golden/micro", 7, 64),
        ("golden/odd", 9, 16),
        ("golden/nano2", 56, 24),
        ("models/chainbox-probe", 0, 92),
    ];
    for (name, layers, tokens) in cases {
        let Some(model) = shared(name) else { return };
        for isa in isas() {
            let result = verify(&model, &model.join("reference.safetensors"), &isa, &[]);
            let report = &result.1;
            let hidden = lines(report, "tensors").iter().filter(|line| !line["layer"].is_null());
            assert_eq!(hidden.count(), layers, "{name}");
            let agreeing = lines(report, "greedy").iter().map(|g| g["agreeing"].as_u64().unwrap());
            assert_eq!(agreeing.sum::<u64>(), tokens, "{name}: {report}");
            assert_passes(result, name, &isa);
        }
    }
}

#[test]
fn every_gguf_format_passes_on_every_isa() {
    let Some(folder) = shared("golden/gguf") else { return };
    for isa in isas() {
        for format in GGUF_FORMATS {
            let model = folder.join(format!("{format}.gguf"));
            let reference = folder.join(format!("{format}.safetensors"));
            let result = verify(&model, &reference, &isa, &[]);
            let weights = lines(&result.1, "dequantized");
            assert_eq!(weights.len(), 2, "{format}");
            assert!(weights.iter().all(|w| w["differing_values"] == 0), "{format} on {isa}");
            assert_passes(result, format, &isa);
        }
    }
}

#[test]
fn a_prompt_in_pieces_passes_too() {
    for (name, chunks) in [("golden/micro", ["1", "7", "64"]), ("golden/odd", ["2", "63", "500"])] {
        let Some(model) = shared(name) else { return };
        for chunk in chunks {
            let reference = model.join("reference.safetensors");
            let result = verify(&model, &reference, "", &["--chunk", chunk]);
            assert_eq!(result.1["chunk"], chunk.parse::<u64>().unwrap());
            let isa = result.1["isa"].as_str().unwrap().to_owned();
            assert_passes(result, &format!("{name} by {chunk}"), &isa);
        }
    }
}

/// The bytes of `tensor` in a safetensors file.
fn data_range(file: &[u8], tensor: &str) -> Range<usize> {
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let json: Value = serde_json::from_slice(&file[8..header]).unwrap();
    let offset = |i: usize| header + json[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
    offset(0)..offset(1)
}

/// A copy of `reference` with value `index` of the f32 tensor `name` raised by 1.
fn with_error(reference: &Path, folder: &Path, name: &str, index: usize) -> PathBuf {
    let mut file = fs::read(reference).unwrap();
    let start = data_range(&file, name).start + 4 * index;
    let value = f32::from_le_bytes(file[start..start + 4].try_into().unwrap());
    file[start..start + 4].copy_from_slice(&(value + 1.0).to_le_bytes());
    let copy = folder.join("wrong.safetensors");
    fs::write(&copy, file).unwrap();
    copy
}

#[test]
fn one_wrong_logit_fails_and_is_found() {
    let Some(model) = shared("golden/micro") else { return };
    let folder = tempfile::tempdir().unwrap();
    let index = (75 + 40) * 256 + 17;
    let wrong = with_error(&model.join("reference.safetensors"), folder.path(), "logits", index);
    for isa in isas() {
        let (status, report) = verify(&model, &wrong, &isa, &[]);
        assert_eq!((status, &report["pass"]), (1, &false.into()));
        let line = &lines(&report, "tensors")[0];
        assert_eq!((&line["name"], &line["pass"]), (&"logits".into(), &false.into()));
        assert_eq!(line["at"], serde_json::json!([1, 40, 17]), "{line}");
        assert!((line["max_abs_error"].as_f64().unwrap() - 1.0).abs() < 1e-4, "{line}");
        assert!(report["first_layer_beyond"].is_null());
    }
    let args = ["verify", model.to_str().unwrap(), "-r", wrong.to_str().unwrap()];
    let output = hybra(&args, "");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\nFAIL on ") && text.contains("[1, 40, 17]"), "{text}");
    assert!(text.contains("not compared: grad.* (44 tensors, see --gradients)"), "{text}");
    let (status, _) = verify(&model, &wrong, "", &["--tolerance", "0.1"]);
    assert_eq!(status, 0, "a tolerance above the error passes");
}

#[test]
fn a_wrong_layer_weight_or_token_fails_and_is_named() {
    let (Some(model), Some(gguf)) = (shared("golden/micro"), shared("golden/gguf")) else { return };
    let reference = model.join("reference.safetensors");
    let folder = tempfile::tempdir().unwrap();

    let wrong = with_error(&reference, folder.path(), "hidden.3", 64);
    let (status, report) = verify(&model, &wrong, "", &[]);
    assert_eq!((status, &report["first_layer_beyond"]["layer"]), (1, &3.into()), "{report}");
    assert_eq!(report["first_layer_beyond"]["kind"], "attention");

    let weight = "blk.3.attn_k.weight";
    let name = format!("dequantized.{weight}");
    let wrong = with_error(&gguf.join("Q5_0.safetensors"), folder.path(), &name, 257);
    let (status, report) = verify(&gguf.join("Q5_0.gguf"), &wrong, "", &[]);
    let differing = lines(&report, "dequantized").iter().find(|w| w["name"] == weight).unwrap();
    assert_eq!((status, &differing["differing_values"]), (1, &1.into()), "{differing}");
    assert_eq!(differing["at"], serde_json::json!([1, 1]));

    let mut file = fs::read(&reference).unwrap();
    let second = data_range(&file, "greedy").start + 8 * (32 + 5);
    file[second] ^= 1;
    let wrong = folder.path().join("tokens.safetensors");
    fs::write(&wrong, &file).unwrap();
    let (status, report) = verify(&model, &wrong, "", &[]);
    let greedy = lines(&report, "greedy");
    assert_eq!((status, &greedy[0]["first_difference"]), (1, &Value::Null));
    assert_eq!((&greedy[1]["agreeing"], &greedy[1]["sequence"]), (&5.into(), &1.into()));
    let first = &greedy[1]["first_difference"];
    assert_eq!(first["expected"].as_u64().unwrap() ^ 1, first["found"].as_u64().unwrap());
}

/// Standard error of a `verify` that must end with an error.
fn error(model: &Path, reference: &Path) -> String {
    let paths = [model, reference].map(|path| path.to_str().unwrap());
    let output = hybra(&["verify", paths[0], "--reference", paths[1]], "");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn references_that_do_not_fit_are_errors() {
    let (Some(micro), Some(odd)) = (shared("golden/micro"), shared("golden/odd")) else { return };
    let folder = tempfile::tempdir().unwrap();
    let write = |header: &str, data: &[u8]| {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(data);
        let path = folder.path().join("made.safetensors");
        fs::write(&path, file).unwrap();
        path
    };
    let text = error(&odd, &micro.join("reference.safetensors"));
    let expected = "`logits`: expected shape [2, 1 to 75, 301] by the model's config";
    assert!(text.contains(expected) && text.contains("found [2, 75, 256]"), "{text}");

    let loss = write(r#"{"loss":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#, &[0; 4]);
    assert!(error(&micro, &loss).contains("nothing to compare"), "{}", error(&micro, &loss));

    let logits = r#"{"logits":{"dtype":"F32","shape":[1,1,256],"data_offsets":[0,1024]}}"#;
    let text = error(&micro, &write(logits, &[0; 1024]));
    assert!(text.contains("`input_ids` is missing beside its outputs"), "{text}");

    let ids = r#"{"greedy":{"dtype":"I64","shape":[1,1],"data_offsets":[0,8]},
        "input_ids":{"dtype":"I64","shape":[1,1],"data_offsets":[8,16]}}"#;
    let mut data = [0; 16];
    data[9] = 1;
    let text = error(&micro, &write(ids, &data));
    assert!(text.contains("`input_ids`: value 0 is 256, expected a token id below 256"), "{text}");
}

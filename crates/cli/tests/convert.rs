//! `hybra init` and `hybra convert`: both formats and back, types, and what is refused.

#[path = "../../../testdata/shared_dir.rs"]
mod shared_dir;
mod support;

use hybra_checkpoint::{Checkpoint, Dtype, TensorView};
use hybra_kernels::Isa;
use hybra_kernels::ops::quantize::dequantize_row;
use hybra_model::Config;
use hybra_model::load::weight_type;
use hybra_model::tensors::tensor_specs;
use shared_dir::shared;
use std::fs;
use std::path::Path;
use support::{hybra, hybra_fails};

fn f32_values(tensor: &TensorView) -> Vec<f32> {
    let mut values = vec![0.0; tensor.shape.iter().product()];
    let dtype = weight_type(tensor.dtype).unwrap();
    dequantize_row(Isa::Scalar, dtype, tensor.data, &mut values);
    values
}

/// Asserts equal tensors: matrices byte for byte, small ones by value; A_log to rounding.
fn assert_same_tensors(a: &Path, b: &Path) {
    let (a, b) = (Checkpoint::open(a).unwrap(), Checkpoint::open(b).unwrap());
    assert_eq!(a.tensors().len(), b.tensors().len());
    for info in a.tensors() {
        let (x, y) = (a.require(&info.name).unwrap(), b.require(&info.name).unwrap());
        assert_eq!(x.shape, y.shape, "{}", info.name);
        if info.shape.len() == 2 {
            assert!(x.dtype == y.dtype && x.data == y.data, "{}", info.name);
            continue;
        }
        let exact = !info.name.ends_with("A_log");
        for (x, y) in f32_values(&x).into_iter().zip(f32_values(&y)) {
            let same = if exact { x == y } else { (x - y).abs() <= 1e-6 * x.abs().max(0.1) };
            assert!(same, "{}: {x} {y}", info.name);
        }
    }
}

#[test]
fn a_round_trip_through_gguf_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    for dtype in ["f32", "bf16", "f16"] {
        let (start, back) = (format!("{dtype}-start"), format!("{dtype}-back"));
        let file = format!("{dtype}.gguf");
        hybra(dir.path(), &["init", "micro", &start, "--dtype", dtype]);
        hybra(dir.path(), &["convert", &start, &file]);
        hybra(dir.path(), &["convert", &file, &back]);
        if dtype == "f32" {
            hybra(dir.path(), &["init", "micro", "direct.gguf", "--dtype", dtype]);
            assert_same_tensors(&dir.path().join("direct.gguf"), &dir.path().join(file));
        }
        let [start, back] = [start, back].map(|name| dir.path().join(name));
        assert_same_tensors(&start, &back);
        for name in ["generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
            let read = |dir: &Path| fs::read_to_string(dir.join(name)).unwrap();
            assert_eq!(read(&start), read(&back), "{name}");
        }
        let config = |dir: &Path| {
            let text = fs::read_to_string(dir.join("config.json")).unwrap();
            Config::from_json(&text, "config.json").unwrap()
        };
        // GGUF has no place for the chunk size and the settings of initialization.
        let (start, mut back) = (config(&start), config(&back));
        (back.chunk_size, back.init) = (start.chunk_size, start.init);
        assert_eq!(start, back);
    }
}

#[test]
fn reference_checkpoints_survive_the_round_trip() {
    for name in ["golden/micro", "golden/odd", "golden/nano2"] {
        let Some(start) = shared(name) else { return };
        let dir = tempfile::tempdir().unwrap();
        hybra(dir.path(), &["convert", start.to_str().unwrap(), "model.gguf"]);
        hybra(dir.path(), &["convert", "model.gguf", "back"]);
        assert_same_tensors(&start, &dir.path().join("back"));
    }
}

#[test]
fn every_gguf_format_becomes_safetensors() {
    let Some(golden) = shared("golden/gguf") else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut formats = 0;
    for entry in fs::read_dir(&golden).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "gguf") {
            continue;
        }
        let out = dir.path().join(path.file_stem().unwrap());
        let args = ["convert", path.to_str().unwrap(), out.to_str().unwrap(), "--dtype", "f32"];
        hybra(dir.path(), &args);
        let (made, want) = (Checkpoint::open(&out).unwrap(), path.with_extension("safetensors"));
        let want = Checkpoint::open(&want).unwrap();
        let specs = tensor_specs(&Config::from_checkpoint(&made).unwrap());
        let mut compared = 0;
        for info in want.tensors() {
            let Some(name) = info.name.strip_prefix("dequantized.") else { continue };
            let spec = specs.iter().find(|spec| spec.gguf_name == name).unwrap();
            let (a, b) = (made.require(&spec.name).unwrap(), want.require(&info.name).unwrap());
            assert!(a.data == b.data, "{}: {name}", path.display());
            compared += 1;
        }
        assert_eq!(compared, 2, "{}", path.display());
        formats += 1;
    }
    assert_eq!(formats, 12);
}

#[test]
fn quantizing_agrees_with_writing_quantized() {
    let dir = tempfile::tempdir().unwrap();
    hybra(dir.path(), &["init", "micro", "start", "--dtype", "f32", "--seed", "5"]);
    for dtype in ["q8_0", "q4_0"] {
        let (direct, converted) = (format!("{dtype}.gguf"), format!("{dtype}-converted.gguf"));
        hybra(dir.path(), &["init", "micro", &direct, "--dtype", dtype, "--seed", "5"]);
        hybra(dir.path(), &["convert", "start", &converted, "--dtype", dtype]);
        let open = |name: &str| Checkpoint::open(&dir.path().join(name)).unwrap();
        let (a, b) = (open(&direct), open(&converted));
        for info in a.tensors() {
            let (x, y) = (a.require(&info.name).unwrap(), b.require(&info.name).unwrap());
            assert!(x.dtype == y.dtype && x.data == y.data, "{dtype}: {}", info.name);
        }
        // The same type again copies; safetensors cannot hold it and gets bf16.
        let again = format!("{dtype}-again.gguf");
        hybra(dir.path(), &["convert", &direct, &again, "--dtype", dtype]);
        let again = open(&again);
        for info in a.tensors() {
            assert!(a.require(&info.name).unwrap().data == again.require(&info.name).unwrap().data);
        }
        hybra(dir.path(), &["convert", &direct, dtype]);
        let head = open(dtype).require("lm_head.weight").unwrap().dtype;
        assert_eq!(head, Dtype::Bf16);
    }
}

#[test]
fn init_is_a_function_of_shape_type_and_seed() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, more: &[&str]| {
        let args = [&["init", "micro", name, "--dtype", "q4_0"], more].concat();
        hybra(dir.path(), &args);
        fs::read(dir.path().join(name)).unwrap()
    };
    let first = make("a.gguf", &["--threads", "1"]);
    assert!(first == make("b.gguf", &["--threads", "3"]));
    assert!(first != make("c.gguf", &["--seed", "1"]));
    // A shape of one's own, and the default name.
    hybra(dir.path(), &["init", "micro", "shape"]);
    hybra(dir.path(), &["init", "shape/config.json", "--dtype", "q8_0"]);
    assert!(dir.path().join("shape-q8_0.gguf").is_file());
    // Quantized in a directory.
    hybra(dir.path(), &["init", "micro", "quantized", "--dtype", "q4_0"]);
    assert!(fs::read(dir.path().join("quantized/model.gguf")).unwrap() == first);
    let report = hybra(dir.path(), &["inspect", "quantized", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["memory_format"], "Q4_0");
}

#[test]
fn nothing_is_overwritten_unasked() {
    let dir = tempfile::tempdir().unwrap();
    hybra(dir.path(), &["init", "micro", "a.gguf"]);
    let before = fs::read(dir.path().join("a.gguf")).unwrap();
    let error = hybra_fails(dir.path(), &["init", "micro", "a.gguf", "--seed", "9"]);
    assert!(error.contains("a.gguf") && error.contains("--force"), "{error}");
    hybra(dir.path(), &["convert", "a.gguf", "dir"]);
    let error = hybra_fails(dir.path(), &["convert", "a.gguf", "dir"]);
    assert!(error.contains("--force"), "{error}");
    assert!(fs::read(dir.path().join("a.gguf")).unwrap() == before);
    hybra(dir.path(), &["init", "micro", "a.gguf", "--seed", "9", "--force"]);
    assert!(fs::read(dir.path().join("a.gguf")).unwrap() != before);
    hybra(dir.path(), &["convert", "a.gguf", "dir", "--force"]);
    let error = hybra_fails(dir.path(), &["init", "micro", "dir", "--dtype", "q4_0"]);
    assert!(error.contains("already holds a model"), "{error}");
    // Nothing temporary is left.
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn what_cannot_be_written_says_why() {
    let dir = tempfile::tempdir().unwrap();
    hybra(dir.path(), &["init", "micro", "a.gguf", "--dtype", "q4_0"]);
    let error = hybra_fails(dir.path(), &["convert", "a.gguf", "out", "--dtype", "q8_0"]);
    assert!(error.contains("only GGUF holds Q8_0"), "{error}");
    let embedded = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/default-model");
    let error = hybra_fails(dir.path(), &["convert", embedded, "default.gguf"]);
    assert!(error.contains("--tokenizer-json"), "{error}");
    hybra(dir.path(), &["convert", embedded, "default.gguf", "--tokenizer-json"]);
    hybra(dir.path(), &["convert", "default.gguf", "back"]);
    assert_same_tensors(Path::new(embedded), &dir.path().join("back"));
    let read = |dir: &Path| {
        let text = fs::read_to_string(dir.join("tokenizer.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    assert_eq!(read(Path::new(embedded))["model"], read(&dir.path().join("back"))["model"]);
}

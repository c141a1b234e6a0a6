//! Reads every golden checkpoint: names, types, shapes and byte lengths.

#[path = "../../../testdata/shared_dir.rs"]
mod shared_dir;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use hybra_checkpoint::{Checkpoint, Dtype, Format, OneOrMany};
use safetensors::SafeTensors;

/// Name → (type, shape, bytes) as the reference reader sees a file.
type Reference = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

fn reference(path: &Path, all: &mut Reference) {
    let bytes = fs::read(path).unwrap();
    for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
        let tensor = (view.dtype().to_string(), view.shape().to_vec(), view.data().to_vec());
        assert!(all.insert(name, tensor).is_none());
    }
}

fn assert_same(checkpoint: &Checkpoint, expected: &Reference) {
    assert_eq!(checkpoint.tensors().len(), expected.len());
    for (name, (dtype, shape, bytes)) in expected {
        let found = checkpoint.require(name).unwrap();
        assert_eq!((found.dtype.name(), found.shape), (dtype.as_str(), &shape[..]), "{name}");
        assert_eq!(found.data, bytes, "{name}");
        assert_eq!(found.region()[..], bytes[..], "{name}");
    }
}

#[test]
fn safetensors_directories() {
    let Some(golden) = shared_dir::shared("golden") else { return };
    for (dir, count, files) in [
        ("micro", 44, vec!["model.safetensors"]),
        ("nano2", 341, vec!["model.safetensors"]),
        (
            "odd",
            58,
            vec![
                "model-00001-of-00003.safetensors",
                "model-00002-of-00003.safetensors",
                "model-00003-of-00003.safetensors",
            ],
        ),
    ] {
        let dir = golden.join(dir);
        let mut expected = Reference::new();
        files.iter().for_each(|file| reference(&dir.join(file), &mut expected));
        let checkpoint = Checkpoint::open(&dir).unwrap();
        assert_eq!(checkpoint.format(), Format::Safetensors);
        assert_eq!(checkpoint.path(), dir);
        assert_eq!(expected.len(), count, "{}", dir.display());
        assert_same(&checkpoint, &expected);

        let config = checkpoint.config_json().unwrap().unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["time_step_limit"][1], f64::MAX);
        assert!(checkpoint.read_text("tokenizer.json").unwrap().is_none());
        let file = if files.len() > 1 { "model.safetensors.index.json" } else { files[0] };
        let by_file = Checkpoint::open(&dir.join(file)).unwrap();
        assert_same(&by_file, &expected);
        assert!(by_file.config_json().unwrap().is_some());
        assert!(checkpoint.gguf().is_none());
    }
}

#[test]
fn reference_results() {
    let Some(golden) = shared_dir::shared("golden") else { return };
    let mut paths: Vec<PathBuf> =
        ["micro", "odd", "nano2"].map(|dir| golden.join(dir).join("reference.safetensors")).into();
    paths.extend(ggufs(&golden).into_iter().map(|path| path.with_extension("safetensors")));
    for path in paths {
        let mut expected = Reference::new();
        reference(&path, &mut expected);
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_same(&checkpoint, &expected);
        assert_eq!(checkpoint.require("input_ids").unwrap().dtype, Dtype::I64);
        let side_file = checkpoint.read_text("config.json").unwrap();
        assert_eq!(side_file.is_some(), path.parent().unwrap().join("config.json").exists());
    }
}

fn ggufs(golden: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(golden.join("gguf"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "gguf"))
        .collect();
    paths.sort();
    assert_eq!(paths.len(), 12);
    paths
}

#[test]
fn gguf_files() {
    let Some(golden) = shared_dir::shared("golden") else { return };
    for path in ggufs(&golden) {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.format(), Format::Gguf);
        let name = path.file_stem().unwrap().to_str().unwrap();
        // Row-major shapes: [out, in].
        for (tensor, shape) in [
            ("token_embd.weight", [2048, 256]),
            ("blk.0.ssm_in.weight", [648, 256]),
            ("blk.1.ffn_up.weight", [512, 256]),
            ("blk.1.ffn_down.weight", [256, 512]),
            ("blk.3.attn_k.weight", [128, 256]),
        ] {
            let view = checkpoint.require(tensor).unwrap();
            assert_eq!(view.dtype.name(), name, "{tensor}");
            assert_eq!(view.shape, shape, "{name} {tensor}");
            let blocks = shape[0] * shape[1] / view.dtype.block_len();
            assert_eq!(view.data.len(), blocks * view.dtype.block_bytes(), "{name} {tensor}");
        }
        for (tensor, shape) in [
            ("blk.0.ssm_a", &[8, 1][..]),
            ("blk.0.ssm_conv1d.weight", &[384, 4]),
            ("blk.0.ssm_norm.weight", &[2, 128]),
            ("output_norm.weight", &[256]),
        ] {
            let view = checkpoint.require(tensor).unwrap();
            assert_eq!((view.dtype, view.shape), (Dtype::F32, shape), "{name} {tensor}");
            assert_eq!(view.data.len(), 4 * shape.iter().product::<usize>());
        }
        // ssm_a is -exp(A_log): a wrong offset would not give eight negative numbers.
        for bytes in checkpoint.require("blk.0.ssm_a").unwrap().data.chunks_exact(4) {
            let a = f32::from_le_bytes(bytes.try_into().unwrap());
            assert!(a < 0.0 && a > -64.0, "{name}: {a}");
        }
        let total: usize = checkpoint.tensors().map(|info| info.byte_len().unwrap()).sum();
        assert!(total as u64 <= fs::metadata(&path).unwrap().len());
        metadata(&checkpoint);
    }
}

fn metadata(checkpoint: &Checkpoint) {
    let gguf = checkpoint.gguf().unwrap();
    assert_eq!(gguf.version(), 3);
    assert_eq!(gguf.get_str("general.architecture").unwrap(), Some("nemotron_h"));
    assert_eq!(gguf.get_u32("nemotron_h.embedding_length").unwrap(), Some(256));
    assert_eq!(gguf.get_bool("tokenizer.ggml.add_bos_token").unwrap().map(|_| ()), Some(()));
    let eps = gguf.get_f32("nemotron_h.attention.layer_norm_rms_epsilon").unwrap().unwrap();
    assert!((eps - 1e-5).abs() < 1e-8);
    let blocks = gguf.get_u32("nemotron_h.block_count").unwrap().unwrap() as usize;
    match gguf.get_u32s("nemotron_h.feed_forward_length").unwrap().unwrap() {
        OneOrMany::Many(lens) => {
            assert_eq!(lens.len(), blocks);
            assert_eq!(lens[1], 512);
        }
        OneOrMany::One(len) => panic!("a scalar {len}"),
    }
    assert_eq!(gguf.get_u32s("nemotron_h.vocab_size").unwrap(), Some(OneOrMany::One(2048)));
    assert_eq!(gguf.get_strs("tokenizer.ggml.tokens").unwrap().unwrap().len(), 2048);
    assert_eq!(gguf.get_u32("no.such.key").unwrap(), None);
    let error = gguf.get_u32("general.architecture").unwrap_err().to_string();
    assert!(
        error.contains("`general.architecture`: expected an integer in u32, found string \"nemo"),
        "{error}"
    );
    assert!(gguf.keys().any(|key| key == "tokenizer.chat_template"));
    assert_eq!(gguf.describe("tokenizer.ggml.tokens").unwrap(), "array of 2048 string");
    assert!(checkpoint.read_text("config.json").unwrap().is_none());
}

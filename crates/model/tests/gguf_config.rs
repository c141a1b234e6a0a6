//! GGUF metadata read and written: the golden files, every preset, every defect.

#[path = "../../../testdata/shared_dir.rs"]
mod shared_dir;

use hybra_checkpoint::{Checkpoint, GgufValue, GgufWriter};
use hybra_model::config::{Config, TorchDtype};
use hybra_model::error::ConfigError as E;
use hybra_model::layer::{LayerConfig, LayerKind};
use hybra_model::presets::{preset, preset_names};
use hybra_model::tensors::{Role, tensor_specs};

type Metadata = Vec<(&'static str, GgufValue)>;

/// Writes a file of metadata alone, opens it and reads the config back; no tensor whose role is
/// in `absent` counts as present.
fn read_without(metadata: &Metadata, absent: &[Role]) -> Result<Config, E> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    GgufWriter::create(&path, metadata, &[], false).unwrap().finish().unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let any = preset("micro").unwrap();
    let absent: Vec<String> = tensor_specs(&any)
        .into_iter()
        .filter(|spec| absent.contains(&spec.role))
        .map(|spec| spec.gguf_name)
        .collect();
    let has_tensor = |name: &str| !absent.iter().any(|absent| absent == name);
    Config::from_gguf(checkpoint.gguf().unwrap(), has_tensor, "m.gguf")
}

fn read(metadata: &Metadata) -> Result<Config, E> {
    read_without(metadata, &[])
}

/// The metadata of `micro` (M-M*-M-) with one key set, or removed.
fn with(key: &'static str, value: Option<GgufValue>) -> Result<Config, E> {
    let mut metadata = preset("micro").unwrap().to_gguf();
    metadata.retain(|(name, _)| *name != key);
    metadata.extend(value.map(|value| (key, value)));
    read(&metadata)
}

#[test]
fn presets_survive_the_metadata() {
    for (name, _) in preset_names() {
        let config = preset(name).unwrap();
        assert_eq!(read(&config.to_gguf()).unwrap(), config, "{name}");
    }
}

#[test]
fn widths_limits_and_tokens_survive_the_metadata() {
    let mut config = preset("micro").unwrap();
    let LayerConfig::Mamba2(mamba) = &mut config.layers[0] else { panic!() };
    (mamba.num_heads, mamba.head_dim) = (6, 20);
    let LayerConfig::Mlp(mlp) = &mut config.layers[1] else { panic!() };
    mlp.intermediate_size = 96;
    config.time_step_limit = (0.001, 0.5);
    config.eos_token_ids = vec![2, 12, 11, 7];
    config.bos_token_id = None;
    config.pad_token_id = None;
    assert_eq!(read(&config.to_gguf()).unwrap(), config);
    config.eos_token_ids = vec![];
    assert_eq!(read(&config.to_gguf()).unwrap(), config);
}

#[test]
fn tensors_tell_what_the_metadata_do_not() {
    let metadata = preset("micro").unwrap().to_gguf();
    let config = read_without(&metadata, &[Role::LmHead]).unwrap();
    assert!(config.tie_word_embeddings);
    let config = read_without(&metadata, &[Role::ConvBias]).unwrap();
    assert!(!config.tie_word_embeddings);
    assert!(config.mamba_layers().all(|mamba| !mamba.use_conv_bias));
    assert!(read(&metadata).unwrap().mamba_layers().all(|mamba| mamba.use_conv_bias));
}

#[test]
fn other_architectures_are_named() {
    let error = with("general.architecture", Some(GgufValue::Str("qwen3".into()))).unwrap_err();
    assert!(matches!(error, E::ModelType { .. }) && error.to_string().contains("qwen3"), "{error}");
    let experts = GgufValue::Str("nemotron_h_moe".into());
    let text = with("general.architecture", Some(experts)).unwrap_err().to_string();
    assert!(text.contains("nemotron_h_moe") && text.contains("mixture of experts"), "{text}");
}

#[test]
fn every_required_key_is_missed() {
    let optional = ["tokenizer.ggml.", "nemotron_h.attention.layer_norm_epsilon", "value_length"];
    let metadata = preset("micro").unwrap().to_gguf();
    let required = metadata.iter().filter(|(key, _)| !optional.iter().any(|o| key.contains(o)));
    for (key, _) in required {
        let error = with(key, None).unwrap_err();
        assert!(matches!(error, E::Checkpoint(_)) && error.to_string().contains(key), "{error}");
    }
}

#[test]
fn defects_are_named() {
    let u32s = |sizes: &[u32]| Some(GgufValue::U32s(sizes.to_vec()));
    let one = |size: u32| Some(GgufValue::U32(size));
    let error = with("nemotron_h.block_count", one(u32::MAX)).unwrap_err();
    assert!(matches!(error, E::TooLarge { .. }), "{error}");
    let error = with("nemotron_h.block_count", one(0)).unwrap_err();
    assert!(matches!(error, E::NotPositive { .. }), "{error}");
    let error = with("nemotron_h.feed_forward_length", u32s(&[0, 160])).unwrap_err();
    assert!(matches!(error, E::ListLength { expected: 7, found: 2, .. }), "{error}");
    let error = with("nemotron_h.ssm.time_step_rank", one(7)).unwrap_err();
    assert!(matches!(error, E::NotDivisible { whole: 128, part: 7, .. }), "{error}");
    let error = with("nemotron_h.ssm.time_step_rank", one(0)).unwrap_err();
    assert!(matches!(error, E::NotPositive { .. }), "{error}");
    let error = with("nemotron_h.ssm.group_count", one(3)).unwrap_err();
    assert!(matches!(error, E::NotDivisible { whole: 8, part: 3, .. }), "{error}");
    let error = with("nemotron_h.attention.value_length", one(8)).unwrap_err();
    assert!(matches!(error, E::Conflict { .. }), "{error}");
    let error = with("nemotron_h.attention.head_count", u32s(&[0; 7])).unwrap_err();
    assert!(matches!(error, E::NotPositive { .. }), "{error}");
    let error = with("tokenizer.ggml.eos_token_id", one(2048)).unwrap_err();
    assert!(matches!(error, E::TokenId { found: 2048, .. }), "{error}");
    let negative = Some(GgufValue::I32s(vec![-1; 7]));
    let error = with("nemotron_h.attention.head_count_kv", negative).unwrap_err();
    assert!(matches!(error, E::Checkpoint(_)), "{error}");
    let limit = Some(GgufValue::F32s(vec![1.0]));
    let error = with("nemotron_h.ssm.time_step_limit", limit).unwrap_err();
    assert!(matches!(error, E::WrongType { .. }), "{error}");
}

#[test]
fn scalars_arrays_and_leftovers_are_read_as_llama_cpp_does() {
    let micro = preset("micro").unwrap();
    // An FFN length makes an MLP, whatever the KV heads say; rotary keys do nothing.
    let kv = Some(GgufValue::U32s(vec![0, 2, 0, 2, 2, 0, 2]));
    assert_eq!(with("nemotron_h.attention.head_count_kv", kv).unwrap(), micro);
    let heads = Some(GgufValue::U32s(vec![0, 0, 0, 4, 0, 0, 0]));
    assert_eq!(with("nemotron_h.attention.head_count", heads).unwrap(), micro);
    let rotary = Some(GgufValue::U32(16));
    assert_eq!(with("nemotron_h.rope.dimension_count", rotary).unwrap(), micro);
    let full = with("general.file_type", Some(GgufValue::U32(0))).unwrap();
    assert_eq!(full.dtype, TorchDtype::Float32);
    let turn = with("tokenizer.ggml.eot_token_id", Some(GgufValue::U32(12))).unwrap();
    assert_eq!(turn.eos_token_ids, [2, 12]);
    // The vocabulary counts where the key is missing.
    let mut metadata = micro.to_gguf();
    metadata.retain(|(key, _)| *key != "nemotron_h.vocab_size");
    let tokens = (0..2048).map(|id| id.to_string()).collect();
    metadata.push(("tokenizer.ggml.tokens", GgufValue::Strs(tokens)));
    assert_eq!(read(&metadata).unwrap(), micro);
}

#[test]
fn golden_files_hold_exactly_the_tensors_of_the_registry() {
    let Some(shared) = shared_dir::shared("") else {
        return;
    };
    let names = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 IQ4_NL Q4_K Q5_K Q6_K";
    for name in names.split(' ') {
        let path = shared.join(format!("golden/gguf/{name}.gguf"));
        let checkpoint = Checkpoint::open(&path).unwrap();
        let config = Config::from_checkpoint(&checkpoint).unwrap();
        assert_eq!(config.pattern(), "M-M*-");
        assert_eq!((config.hidden_size, config.vocab_size), (256, 2048));
        assert_eq!(config.eos_token_ids, [2]);
        assert_eq!(config.count(LayerKind::Mlp), 2);
        let specs = tensor_specs(&config);
        assert_eq!(checkpoint.tensors().len(), specs.len());
        for spec in specs {
            let found = checkpoint.require(&spec.gguf_name).unwrap();
            assert_eq!(found.shape, spec.gguf_shape, "{}", spec.gguf_name);
        }
        assert_eq!(read(&config.to_gguf()).unwrap(), config);
    }
}

#[test]
fn golden_directories_hold_exactly_the_tensors_of_the_registry() {
    let Some(shared) = shared_dir::shared("") else {
        return;
    };
    for folder in ["golden/micro", "golden/odd", "golden/nano2", "models/chainbox-probe"] {
        let checkpoint = Checkpoint::open(&shared.join(folder)).unwrap();
        let config = Config::from_checkpoint(&checkpoint).unwrap();
        let specs = tensor_specs(&config);
        assert_eq!(checkpoint.tensors().len(), specs.len(), "{folder}");
        for spec in specs {
            let found = checkpoint.require(&spec.name).unwrap();
            assert_eq!(found.shape, spec.shape, "{folder} {}", spec.name);
        }
    }
}

#[test]
fn a_lone_weight_file_has_no_config() {
    let Some(shared) = shared_dir::shared("") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::copy(shared.join("golden/micro/model.safetensors"), &path).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(matches!(Config::from_checkpoint(&checkpoint), Err(E::NoConfig { .. })));
}

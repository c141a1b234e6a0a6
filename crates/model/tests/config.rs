//! `config.json` read and written: every spelling, every trap, every defect.

#[path = "../../../testdata/shared_dir.rs"]
mod shared_dir;

use hybra_model::config::{Config, MAX_LAYERS, TorchDtype};
use hybra_model::error::ConfigError as E;
use hybra_model::layer::{LayerConfig, LayerKind};
use hybra_model::presets::{preset, preset_names};
use serde_json::{Map, Value, json};

/// A valid config with no optional key.
fn base() -> Map<String, Value> {
    let config = json!({
        "model_type": "nemotron_h",
        "hybrid_override_pattern": "M-*M",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "mamba_num_heads": 8,
        "mamba_head_dim": 4,
        "n_groups": 2,
        "ssm_state_size": 16,
    });
    config.as_object().unwrap().clone()
}

fn read(map: &Map<String, Value>) -> Result<Config, E> {
    Config::from_json(&serde_json::to_string(map).unwrap(), "config.json")
}

/// `base()` with some keys set; `null` removes a key.
fn with(changes: Value) -> Result<Config, E> {
    let mut map = base();
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => map.shift_remove(key),
            value => map.insert(key.clone(), value.clone()),
        };
    }
    read(&map)
}

/// The message of the error that a change causes.
fn message(changes: Value) -> String {
    let error = with(changes).unwrap_err().to_string();
    assert!(error.starts_with("config.json: "), "{error}");
    error
}

fn first_mamba(config: &Config) -> hybra_model::layer::Mamba2Config {
    *config.mamba_layers().next().unwrap()
}

#[test]
fn defaults_are_those_of_the_family() {
    let config = read(&base()).unwrap();
    assert_eq!(config.pattern(), "M-*M");
    assert_eq!(config.norm_eps, 1e-5);
    assert_eq!(config.time_step_limit, (0.0, f32::INFINITY));
    assert_eq!(config.chunk_size, 128);
    assert_eq!(config.dtype, TorchDtype::Bfloat16);
    assert!(!config.tie_word_embeddings);
    assert_eq!((config.bos_token_id, config.pad_token_id), (Some(1), Some(0)));
    assert_eq!(config.eos_token_ids, [2]);
    let mamba = first_mamba(&config);
    assert_eq!((mamba.conv_kernel, mamba.use_conv_bias), (4, true));
    assert_eq!(config.init, hybra_model::config::InitConfig::default());
}

/// Every alias: the key of `base()` that it replaces (or none), the value, and a look at it.
#[test]
fn every_spelling_is_read() {
    type Look = fn(&Config) -> String;
    let kinds: Look = Config::pattern;
    let table: &[(&str, &str, Value, Look, &str)] = &[
        ("hybrid_override_pattern", "layers_block_type", words(), kinds, "M-*M"),
        ("hybrid_override_pattern", "layer_types", words(), kinds, "M-*M"),
        ("hybrid_override_pattern", "layer_types", other_words(), kinds, "M-*M"),
        ("n_groups", "mamba_num_groups", json!(4), |c| first_mamba(c).n_groups.to_string(), "4"),
        ("n_groups", "mamba_n_groups", json!(4), |c| first_mamba(c).n_groups.to_string(), "4"),
        ("ssm_state_size", "mamba_state_dim", json!(8), |c| state(c), "8"),
        ("", "conv_kernel", json!(3), |c| first_mamba(c).conv_kernel.to_string(), "3"),
        ("", "mamba_d_conv", json!(3), |c| first_mamba(c).conv_kernel.to_string(), "3"),
        ("", "use_conv_bias", json!(false), |c| first_mamba(c).use_conv_bias.to_string(), "false"),
        (
            "",
            "mamba_conv_bias",
            json!(false),
            |c| first_mamba(c).use_conv_bias.to_string(),
            "false",
        ),
        ("head_dim", "attention_head_dim", json!(24), |c| head_dim(c), "24"),
        ("", "layer_norm_epsilon", json!(1e-6), |c| c.norm_eps.to_string(), "0.000001"),
        ("", "rms_norm_eps", json!(1e-6), |c| c.norm_eps.to_string(), "0.000001"),
        ("", "torch_dtype", json!("float16"), |c| c.dtype.name().into(), "float16"),
        ("", "dtype", json!("torch.float32"), |c| c.dtype.name().into(), "float32"),
        ("", "chunk_size", json!(64), |c| c.chunk_size.to_string(), "64"),
        ("", "mamba_chunk_size", json!(64), |c| c.chunk_size.to_string(), "64"),
        ("", "time_step_min", json!(0.01), |c| c.init.time_step_min.to_string(), "0.01"),
        ("", "mamba_dt_min", json!(0.01), |c| c.init.time_step_min.to_string(), "0.01"),
        ("", "time_step_max", json!(0.2), |c| c.init.time_step_max.to_string(), "0.2"),
        ("", "mamba_dt_max", json!(0.2), |c| c.init.time_step_max.to_string(), "0.2"),
        ("", "time_step_floor", json!(0.002), |c| c.init.time_step_floor.to_string(), "0.002"),
        ("", "mamba_dt_init_floor", json!(0.002), |c| c.init.time_step_floor.to_string(), "0.002"),
        ("", "mamba_dt_floor", json!(0.002), |c| c.init.time_step_floor.to_string(), "0.002"),
        (
            "",
            "time_step_limit",
            json!([0.5, 2]),
            |c| format!("{:?}", c.time_step_limit),
            "(0.5, 2.0)",
        ),
        (
            "",
            "mamba_dt_limit",
            json!([0.5, 2]),
            |c| format!("{:?}", c.time_step_limit),
            "(0.5, 2.0)",
        ),
        ("", "initializer_range", json!(0.5), |c| c.init.initializer_range.to_string(), "0.5"),
        ("", "rescale_prenorm_residual", json!(false), |c| rescale(c), "false"),
        ("", "tie_word_embeddings", json!(true), |c| c.tie_word_embeddings.to_string(), "true"),
        ("", "max_position_embeddings", json!(77), |c| c.max_position_embeddings.to_string(), "77"),
        ("", "num_hidden_layers", json!(4), kinds, "M-*M"),
    ];
    for (replaced, key, value, look, expected) in table {
        let mut map = base();
        map.shift_remove(*replaced);
        map.insert((*key).to_owned(), value.clone());
        let config = read(&map).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(look(&config), *expected, "{key}");
    }
}

fn words() -> Value {
    json!(["mamba", "mlp", "attention", "mamba"])
}

fn other_words() -> Value {
    json!(["linear_attention", "mlp", "full_attention", "mamba"])
}

fn state(config: &Config) -> String {
    first_mamba(config).state_size.to_string()
}

fn head_dim(config: &Config) -> String {
    config.attention_layers().next().unwrap().head_dim.to_string()
}

fn rescale(config: &Config) -> String {
    config.init.rescale_prenorm_residual.to_string()
}

#[test]
fn two_spellings_must_agree() {
    let pairs = [
        ("n_groups", json!(2), "mamba_num_groups", json!(4)),
        ("n_groups", json!(2), "mamba_n_groups", json!(4)),
        ("ssm_state_size", json!(16), "mamba_state_dim", json!(32)),
        ("conv_kernel", json!(4), "mamba_d_conv", json!(3)),
        ("head_dim", json!(16), "attention_head_dim", json!(8)),
        ("layer_norm_epsilon", json!(1e-5), "rms_norm_eps", json!(1e-6)),
        ("torch_dtype", json!("bfloat16"), "dtype", json!("float32")),
        ("time_step_min", json!(0.001), "mamba_dt_min", json!(0.002)),
        ("time_step_limit", json!([0, 1]), "mamba_dt_limit", json!([0, 2])),
        ("hybrid_override_pattern", json!("M-*M"), "layers_block_type", json!(["mamba"])),
    ];
    for (first, value, second, other) in pairs {
        let error = with(json!({ first: value, second: other })).unwrap_err();
        assert!(matches!(error, E::Conflict { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(first) && text.contains(second), "{text}");
        assert!(with(json!({ first: value, second: value })).is_ok(), "{first} {second}");
    }
    // Agreement is of meaning, not of text.
    assert!(with(json!({ "layers_block_type": words() })).is_ok());
    let same_number = r#""time_step_limit": [0.0, Infinity], "mamba_dt_limit": [0, null]"#;
    assert!(Config::from_json(&raw(same_number), "f").is_ok());
}

/// The text of `base()` with a raw fragment appended.
fn raw(fragment: &str) -> String {
    let text = serde_json::to_string(&base()).unwrap();
    format!("{}, {fragment} }}", text.trim_end_matches('}'))
}

#[test]
fn the_upper_limit_may_be_infinite_in_many_ways() {
    for hi in ["Infinity", "null", "1e300", "3.5e38", r#"{"__float__": "Infinity"}"#] {
        let text = raw(&format!(r#""time_step_limit": [0.0, {hi}]"#));
        let config = Config::from_json(&text, "f").unwrap_or_else(|e| panic!("{hi}: {e}"));
        assert_eq!(config.time_step_limit, (0.0, f32::INFINITY), "{hi}");
    }
    for bad in ["[0.0, NaN]", "[NaN, 1]", "[2, 1]", "[0, 0]", "[Infinity, Infinity]"] {
        let error = Config::from_json(&raw(&format!(r#""time_step_limit": {bad}"#)), "f");
        let text = error.unwrap_err().to_string();
        assert!(text.contains("time_step_limit"), "{text}");
    }
    for bad in ["[0]", "[0, 1, 2]", "3", "[0, \"x\"]", "[null, 1]"] {
        let error = Config::from_json(&raw(&format!(r#""time_step_limit": {bad}"#)), "f");
        assert!(matches!(error, Err(E::WrongType { .. })), "{bad}: {error:?}");
    }
}

#[test]
fn token_ids_are_numbers_lists_or_null() {
    let cases = [(json!(2), vec![2]), (json!([2, 12]), vec![2, 12]), (json!([]), vec![])];
    for (value, expected) in cases {
        assert_eq!(with(json!({ "eos_token_id": value })).unwrap().eos_token_ids, expected);
    }
    let text = raw(r#""eos_token_id": null, "bos_token_id": null, "pad_token_id": null"#);
    let config = Config::from_json(&text, "f").unwrap();
    assert!(config.eos_token_ids.is_empty());
    assert_eq!((config.bos_token_id, config.pad_token_id), (None, None));
    for (key, value) in [("eos_token_id", json!([2, 64])), ("pad_token_id", json!(64))] {
        let text = message(json!({ key: value }));
        assert!(text.contains(key) && text.contains("64"), "{text}");
    }
    for value in [json!(-1), json!("2"), json!([1.5]), json!(1u64 << 32)] {
        assert!(matches!(with(json!({ "eos_token_id": value })), Err(E::WrongType { .. })));
    }
}

#[test]
fn nominal_and_leftover_keys_decide_nothing() {
    let plain = read(&base()).unwrap();
    let leftovers = json!({
        "expand": 2,
        "mamba_expand": 7,
        "time_step_rank": 256,
        "auto_map": { "AutoConfig": "elsewhere--configuration.Evil" },
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 7688,
        "residual_in_fp32": true,
        "mamba_ssm_cache_dtype": "float16",
        "architectures": ["NemotronHForCausalLM"],
        "transformers_version": "5.3.0",
    });
    let mut map = base();
    map.extend(leftovers.as_object().unwrap().clone());
    map.insert("sliding_window".into(), Value::Null);
    map.insert("rope_theta".into(), json!(10000));
    map.insert("zzz".into(), json!([1]));
    assert_eq!(read(&map).unwrap(), plain);
    let text = serde_json::to_string(&map).unwrap();
    assert_eq!(Config::unknown_keys(&text, "f").unwrap(), ["rope_theta", "zzz"]);
}

#[test]
fn unsupported_features_are_named() {
    for key in ["use_bias", "mamba_proj_bias", "attention_bias", "mlp_bias"] {
        let error = with(json!({ key: true })).unwrap_err();
        assert!(matches!(&error, E::Bias { key: found, .. } if found == key));
        assert!(error.to_string().contains(key) && error.to_string().contains("not supported"));
        assert!(with(json!({ key: false })).is_ok());
        assert!(matches!(with(json!({ key: "no" })), Err(E::WrongType { .. })));
    }
    for (key, found, expected) in
        [("mlp_hidden_act", "silu", "relu2"), ("mamba_hidden_act", "gelu", "silu")]
    {
        let text = message(json!({ key: found }));
        assert!([key, found, expected].iter().all(|word| text.contains(word)), "{text}");
        assert!(with(json!({ key: expected })).is_ok());
    }
    for (key, value) in
        [("sliding_window", json!(4096)), ("quantization_config", json!({"quant_algo": "FP8"}))]
    {
        let error = with(json!({ key: value })).unwrap_err();
        assert!(matches!(error, E::NotNull { .. }) && error.to_string().contains(key), "{error}");
    }
    assert!(matches!(with(json!({ "dtype": "float8_e4m3fn" })), Err(E::UnknownDtype { .. })));
    for family in ["nemotron_h_moe", "qwen3"] {
        let error = with(json!({ "model_type": family })).unwrap_err();
        assert!(matches!(error, E::ModelType { .. }) && error.to_string().contains(family));
    }
}

#[test]
fn pattern_defects_name_index_and_letter() {
    let cases = [
        (json!("M-E"), 2, "E", true),
        (json!("M|*"), 1, "|", false),
        (json!("m-*"), 0, "m", false),
        (json!("M-é"), 2, "é", false),
        (json!(["mamba", "moe"]), 1, "moe", true),
        (json!(["mamba", "mlp", "conv"]), 2, "conv", false),
    ];
    for (pattern, index, letter, expert) in cases {
        let error = with(json!({ "hybrid_override_pattern": pattern })).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("layer {index} ")), "{text}");
        assert!(text.contains(&format!("`{letter}`")), "{text}");
        assert_eq!(matches!(error, E::MixtureOfExperts { .. }), expert, "{text}");
        assert_eq!(matches!(error, E::UnknownLayerKind { .. }), !expert, "{text}");
    }
    let error = with(json!({ "num_hidden_layers": 5 })).unwrap_err();
    assert!(matches!(error, E::LayerCount { expected: 5, found: 4, .. }), "{error}");
    assert!(matches!(with(json!({ "hybrid_override_pattern": "" })), Err(E::NotPositive { .. })));
    let deep = "M".repeat(MAX_LAYERS + 1);
    assert!(matches!(with(json!({ "hybrid_override_pattern": deep })), Err(E::TooLarge { .. })));
    let numbers = json!({ "hybrid_override_pattern": [1, 2] });
    assert!(matches!(with(numbers), Err(E::WrongType { .. })));
    let missing = message(json!({ "hybrid_override_pattern": null }));
    assert!(missing.contains("layers_block_type") && missing.contains("layer_types"), "{missing}");
}

#[test]
fn every_required_key_is_missed() {
    for key in base().keys().filter(|key| *key != "model_type") {
        let error = with(json!({ key: null })).unwrap_err();
        assert!(matches!(error, E::Missing { .. }), "{error}");
        assert!(error.to_string().contains(key.as_str()), "{error}");
    }
    // A head dim is never derived, and what no layer needs is not asked for.
    let dense = json!({
        "hybrid_override_pattern": "*-*-", "mamba_num_heads": null, "mamba_head_dim": null,
        "n_groups": null, "ssm_state_size": null,
    });
    assert_eq!(with(dense).unwrap().pattern(), "*-*-");
    let pure = json!({
        "hybrid_override_pattern": "MM", "num_attention_heads": null, "head_dim": null,
        "num_key_value_heads": null, "intermediate_size": null,
    });
    assert_eq!(with(pure).unwrap().count(LayerKind::Mamba2), 2);
}

#[test]
fn sizes_are_checked_against_each_other() {
    for (changes, whole, part) in [
        (json!({ "n_groups": 3 }), "mamba_num_heads", "n_groups"),
        (json!({ "num_key_value_heads": 3 }), "num_attention_heads", "num_key_value_heads"),
        (json!({ "num_key_value_heads": 8 }), "num_attention_heads", "num_key_value_heads"),
    ] {
        let text = message(changes);
        assert!(text.contains(whole) && text.contains(part), "{text}");
    }
    for key in base()
        .keys()
        .filter(|key| !["model_type", "hybrid_override_pattern"].contains(&key.as_str()))
    {
        let zero = with(json!({ key: 0 })).unwrap_err();
        assert!(matches!(zero, E::NotPositive { .. }), "{zero}");
        assert!(zero.to_string().contains(key.as_str()), "{zero}");
        let huge = with(json!({ key: 1u64 << 40 })).unwrap_err();
        assert!(matches!(huge, E::TooLarge { .. }), "{huge}");
        for wrong in [json!(-4), json!(1.5), json!("12"), json!(true), json!({})] {
            let error = with(json!({ key: wrong })).unwrap_err();
            assert!(matches!(error, E::WrongType { .. }), "{error}");
            assert!(error.to_string().contains(key.as_str()), "{error}");
        }
    }
    let product = json!({ "mamba_num_heads": 1 << 14, "mamba_head_dim": 1 << 14 });
    assert!(matches!(with(product), Err(E::TooLarge { .. })));
    for eps in [json!(0), json!(-1e-5), json!(2), json!(1e300)] {
        assert!(matches!(with(json!({ "rms_norm_eps": eps })), Err(E::OutOfRange { .. })));
    }
    let order = json!({ "time_step_min": 0.2, "time_step_max": 0.1 });
    assert!(matches!(with(order), Err(E::OutOfRange { .. })));
    assert!(matches!(with(json!({ "initializer_range": 0 })), Err(E::OutOfRange { .. })));
}

#[test]
fn widths_may_differ_by_layer() {
    let lists = json!({
        "intermediate_size": [0, 96, 0, 0],
        "mamba_num_heads": [8, 0, 0, 6],
        "mamba_head_dim": [4, 0, 0, 5],
        "num_attention_heads": [0, 0, 4, 0],
        "num_key_value_heads": [0, 0, 1, 0],
    });
    let config = with(lists).unwrap();
    let inner: Vec<_> = config.mamba_layers().map(|m| m.d_inner()).collect();
    assert_eq!(inner, [32, 30]);
    assert_eq!(Config::from_json(&config.to_json(), "f").unwrap(), config);
    let short = with(json!({ "intermediate_size": [0, 96, 0] })).unwrap_err();
    assert!(matches!(short, E::ListLength { expected: 4, found: 3, .. }), "{short}");
    let foreign = with(json!({ "intermediate_size": [96, 96, 0, 0] })).unwrap_err();
    assert!(matches!(foreign, E::ForeignEntry { index: 0, found: 96, .. }), "{foreign}");
    let zero = with(json!({ "intermediate_size": [0, 0, 0, 0] })).unwrap_err();
    assert!(matches!(zero, E::NotPositive { .. }) && zero.to_string().contains("layer 1"));
}

#[test]
fn layers_must_agree_in_what_no_format_stores_per_layer() {
    let mut config = preset("micro").unwrap();
    let LayerConfig::Mamba2(mamba) = &mut config.layers[2] else { panic!() };
    mamba.state_size = 32;
    let error = config.validate("made").unwrap_err();
    assert!(matches!(error, E::NotUniform { key: "ssm_state_size", layer: 2, .. }), "{error}");
}

#[test]
fn nested_text_models_are_found() {
    let plain = read(&base()).unwrap();
    for key in ["text_config", "llm_config"] {
        let outer = json!({ "model_type": "some_vision_model", key: base(), "vision_config": {} });
        assert_eq!(Config::from_json(&outer.to_string(), "f").unwrap(), plain);
    }
    let mut other = base();
    other.insert("vocab_size".into(), json!(99));
    let two = json!({ "text_config": base(), "llm_config": other });
    assert!(matches!(Config::from_json(&two.to_string(), "f"), Err(E::Conflict { .. })));
    let mut both = base();
    both.insert("text_config".into(), Value::Object(base()));
    assert!(matches!(read(&both), Err(E::Conflict { .. })));
}

#[test]
fn text_that_is_no_config() {
    for text in ["", "{", "{\"a\": Infinityx}", "{'a': 1}", "{\"a\": 1,}"] {
        assert!(matches!(Config::from_json(text, "f"), Err(E::Json { .. })), "{text}");
    }
    assert!(matches!(Config::from_json("[1]", "f"), Err(E::WrongType { .. })));
    assert!(matches!(Config::from_json("{}", "f"), Err(E::Missing { .. })));
    let deep = "[".repeat(100_000);
    assert!(matches!(Config::from_json(&deep, "f"), Err(E::Json { .. })));
}

#[test]
fn what_is_written_reads_back() {
    for (name, _) in preset_names() {
        let mut config = preset(name).unwrap();
        let text = config.to_json();
        assert_eq!(Config::from_json(&text, name).unwrap(), config);
        assert_eq!(Config::unknown_keys(&text, name).unwrap(), Vec::<String>::new());
        assert!(text.contains("Infinity\n  ]") && !text.contains("\"Infinity\""), "{text}");
        config.time_step_limit = (0.001, 0.1);
        config.eos_token_ids = vec![];
        config.bos_token_id = None;
        config.tie_word_embeddings = true;
        config.dtype = TorchDtype::Float16;
        config.init.rescale_prenorm_residual = false;
        config.norm_eps = 1e-6;
        assert_eq!(Config::from_json(&config.to_json(), name).unwrap(), config);
    }
}

/// The preset `micro` as transformers 5.23 saves it after reading [`Config::to_json`].
const RESAVED: &str = r#"{
  "architectures": ["NemotronHForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 1, "chunk_size": 128, "conv_kernel": 4, "dtype": "bfloat16",
  "eos_token_id": 2, "expand": 2, "head_dim": 16, "hidden_dropout": 0.0, "hidden_size": 64,
  "initializer_range": 0.02, "intermediate_size": 160, "layer_norm_epsilon": 1e-05,
  "layers_block_type": ["linear_attention", "mlp", "linear_attention", "full_attention", "mlp",
    "linear_attention", "mlp"],
  "mamba_head_dim": 16, "mamba_hidden_act": "silu", "mamba_num_heads": 8,
  "mamba_proj_bias": false, "mamba_ssm_cache_dtype": "float32", "max_position_embeddings": 4096,
  "mlp_bias": false, "mlp_hidden_act": "relu2", "model_type": "nemotron_h",
  "moe_intermediate_size": 7688, "moe_latent_size": null,
  "moe_shared_expert_intermediate_size": 7688, "moe_shared_expert_overlap": true,
  "mtp_layers_block_type": ["full_attention", "moe"], "n_group": 1, "n_groups": 2,
  "n_routed_experts": 8, "n_shared_experts": 1, "norm_topk_prob": true,
  "num_attention_heads": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2,
  "num_logits_to_keep": 1, "num_nextn_predict_layers": 0, "output_router_logits": false,
  "pad_token_id": 0, "rescale_prenorm_residual": true, "residual_in_fp32": false,
  "routed_scaling_factor": 1.0, "sliding_window": null, "ssm_state_size": 16,
  "tie_word_embeddings": false, "time_step_floor": 0.0001,
  "time_step_limit": [0.0, {"__float__": "Infinity"}], "time_step_max": 0.1,
  "time_step_min": 0.001, "topk_group": 1, "transformers_version": "5.23.0",
  "use_bias": false, "use_cache": true, "use_conv_bias": true, "use_mamba_kernels": true,
  "vocab_size": 2048
}"#;

#[test]
fn what_transformers_saves_is_read() {
    assert_eq!(Config::from_json(RESAVED, "f").unwrap(), preset("micro").unwrap());
    assert!(Config::unknown_keys(RESAVED, "f").unwrap().is_empty());
}

#[test]
fn golden_configs_are_read_and_written() {
    let Some(shared) = shared_dir::shared("") else { return };
    let table = [
        ("golden/micro", "M-M*-M-", 64, 256),
        ("golden/odd", "MM*-M-*M-", 72, 301),
        ("golden/nano2", &preset("nano2-9b").unwrap().pattern(), 112, 1024),
        ("golden/train/teacher", "M-M*-M-", 96, 256),
        ("models/chainbox-probe", "M*-M-M*-M-", 128, 64),
    ];
    for (folder, pattern, hidden, vocab) in table {
        let path = shared.join(folder).join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let config = Config::from_json(&text, folder).unwrap();
        assert_eq!(config.pattern(), pattern);
        assert_eq!((config.hidden_size, config.vocab_size), (hidden, vocab));
        assert_eq!(Config::unknown_keys(&text, folder).unwrap(), Vec::<String>::new());
        assert_eq!(Config::from_json(&config.to_json(), folder).unwrap(), config);
    }
}

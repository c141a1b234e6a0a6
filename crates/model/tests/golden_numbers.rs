//! The published sizes of the family, from the config alone: parameters to the unit, bytes to
//! the digits printed.

use hybra_kernels::DType;
use hybra_model::Config;
use hybra_model::layer::{
    AttentionConfig, LayerConfig, LayerKind, LayerWidths, Mamba2Config, MlpConfig,
    layers_from_pattern,
};
use hybra_model::memory::{
    KvFormat, MemoryModel, MemorySettings, ParameterCount, WeightFormat, conv_state_values,
    kv_bytes_per_token, ssm_state_values, state_bytes,
};
use hybra_model::presets::preset;
use hybra_model::report::{InspectRequest, Width, inspect};

const GIB: f64 = (1u64 << 30) as f64;
const MIB: f64 = (1u64 << 20) as f64;

/// A model of the family with 40/8×128 attention, G = 8, N = 128, P = 80 and V = 131072.
fn member(pattern: &str, hidden: usize, ffn: usize, mamba_heads: usize) -> Config {
    let widths = LayerWidths {
        mamba: Mamba2Config {
            num_heads: mamba_heads,
            head_dim: 80,
            n_groups: 8,
            state_size: 128,
            conv_kernel: 4,
            use_conv_bias: true,
        },
        attention: AttentionConfig { num_heads: 40, num_kv_heads: 8, head_dim: 128 },
        mlp: MlpConfig { intermediate_size: ffn },
    };
    let layers = layers_from_pattern(pattern, &widths).unwrap();
    let config = Config { hidden_size: hidden, layers, ..preset("nano2-9b").unwrap() };
    config.validate("member").unwrap();
    config
}

fn pattern_9b() -> String {
    preset("nano2-9b").unwrap().pattern()
}

/// The model that the 9B was cut from in depth only.
fn depth_only() -> Config {
    member(&pattern_9b(), 5120, 20480, 128)
}

fn candidate_1() -> Config {
    member(&pattern_9b(), 4480, 17920, 112)
}

fn candidate_3() -> Config {
    member(&pattern_9b(), 4800, 14400, 120)
}

/// Drops layers 43–48, 50 and 52 of the 9B, counted from 1.
fn public_7b() -> Config {
    let dropped = [43, 44, 45, 46, 47, 48, 50, 52];
    let letters = pattern_9b();
    let kept = letters.chars().enumerate().filter(|(i, _)| !dropped.contains(&(i + 1)));
    let pattern: String = kept.map(|(_, letter)| letter).collect();
    assert_eq!(pattern, "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-MMMM-M-");
    member(&pattern, 4352, 13824, 120)
}

fn one(name: &str) -> Config {
    preset(name).unwrap()
}

#[test]
fn parameters_to_the_unit() {
    let table = [
        ("12B", one("nano2-12b"), [28, 28, 6], 12_310_001_152, "22.929"),
        ("depth-only", depth_only(), [27, 25, 4], 11_386_496_128, "21.209"),
        ("9B", one("nano2-9b"), [27, 25, 4], 8_888_227_328, "16.556"),
        ("candidate 1", candidate_1(), [27, 25, 4], 8_923_356_912, "16.621"),
        ("candidate 3", candidate_3(), [27, 25, 4], 8_965_788_600, "16.700"),
        ("4B", one("nano-4b"), [21, 17, 4], 3_973_556_832, "7.401"),
        ("7B", public_7b(), [24, 20, 4], 6_997_637_824, "13.034"),
    ];
    let kinds = [LayerKind::Mamba2, LayerKind::Mlp, LayerKind::Attention];
    for (name, config, layers, parameters, gib) in table {
        assert_eq!(kinds.map(|kind| config.count(kind)), layers, "{name}");
        assert_eq!(ParameterCount::of(&config).total, parameters, "{name}");
        let bytes = WeightFormat::stored(DType::Bf16).weight_bytes(&config);
        assert_eq!(bytes, 2 * parameters, "{name}");
        assert_eq!(format!("{:.3}", bytes as f64 / GIB), gib, "{name}");
    }
}

#[test]
fn parameters_by_kind() {
    let count = ParameterCount::of(&one("nano2-9b"));
    assert_eq!(count.mamba, 147_446_144 * 27);
    assert_eq!(count.mlp, 140_492_800 * 25);
    assert_eq!(count.attention, 55_050_240 * 4);
    assert_eq!(count.embedding + count.lm_head, 1_174_405_120);
    assert_eq!(count.norms, 255_360);
    let count = ParameterCount::of(&one("nano2-12b"));
    assert_eq!(count.mamba, 168_499_584 * 28);
    assert_eq!(count.mlp, 209_715_200 * 28);
    assert_eq!(count.attention, 62_914_560 * 6);
    assert_eq!(count.embedding + count.lm_head, 1_342_177_280);
    assert_eq!(count.norms, 322_560);
}

#[test]
fn state_of_one_sequence() {
    // SSM f32, conv f32, conv bf16, conv of 4 columns bf16, f32 in all; MiB.
    let table = [
        ("nano2-9b", ["135.00", "3.797", "1.898", "2.531", "138.8"], 16, "2.00"),
        ("nano2-12b", ["140.00", "3.938", "1.969", "2.625", "143.9"], 24, "3.00"),
        ("nano-4b", ["78.75", "2.338", "1.169", "1.559", "81.1"], 16, "2.00"),
    ];
    for (name, mib, kv_kib, kv_gib) in table {
        let config = one(name);
        let conv = conv_state_values(&config);
        let four_columns: u64 = config.mamba_layers().map(|m| 4 * m.conv_dim() as u64).sum();
        let in_mib = |bytes: u64, digits: usize| format!("{:.digits$}", bytes as f64 / MIB);
        let found = [
            in_mib(4 * ssm_state_values(&config), 2),
            in_mib(4 * conv, 3),
            in_mib(2 * conv, 3),
            in_mib(2 * four_columns, 3),
            in_mib(state_bytes(&config), 1),
        ];
        assert_eq!(found, mib, "{name}");
        let kv = kv_bytes_per_token(&config, KvFormat::Values(DType::Bf16));
        assert_eq!(kv, kv_kib * 1024, "{name}");
        assert_eq!(format!("{:.2}", (kv * 131_072) as f64 / GIB), kv_gib, "{name}");
    }
}

#[test]
fn memory_at_128k() {
    // bf16 weights and KV, f32 state, batch 1, no workspace; GiB.
    let table = [
        ("12B", one("nano2-12b"), ["22.929", "3.00", "0.141", "26.07"]),
        ("depth-only", depth_only(), ["21.209", "2.00", "0.136", "23.34"]),
        ("candidate 1", candidate_1(), ["16.621", "2.00", "0.119", "18.74"]),
        ("9B", one("nano2-9b"), ["16.556", "2.00", "0.136", "18.69"]),
        ("candidate 3", candidate_3(), ["16.700", "2.00", "0.127", "18.83"]),
        ("4B", one("nano-4b"), ["7.401", "2.00", "0.079", "9.48"]),
    ];
    for (name, config, gib) in table {
        let plan = MemoryModel::new(&config, &published_settings()).plan(131_072, 1);
        let in_gib = |bytes: u64, digits: usize| format!("{:.digits$}", bytes as f64 / GIB);
        let found = [
            in_gib(plan.weights, 3),
            in_gib(plan.kv, 2),
            in_gib(plan.state, 3),
            in_gib(plan.total, 2),
        ];
        assert_eq!(found, gib, "{name}");
        assert_eq!(plan.workspace, 0);
    }
}

fn published_settings() -> MemorySettings {
    let weights = WeightFormat::stored(DType::Bf16);
    MemorySettings { weights, kv: KvFormat::Values(DType::Bf16), prefill_chunk: 0 }
}

#[test]
fn presets_of_the_9b_size_class() {
    let nine = ParameterCount::of(&one("nano2-9b")).total as f64;
    let dense = one("transformer-8b");
    let ratio = ParameterCount::of(&dense).total as f64 / nine;
    assert!((ratio - 1.0).abs() < 0.02, "{ratio}");
    assert_eq!(dense.count(LayerKind::Mamba2), 0);
    assert_eq!(kv_bytes_per_token(&dense, KvFormat::Values(DType::F16)), 144 * 1024);
    let half = ParameterCount::of(&one("hybrid-0.5b")).total as f64;
    assert_eq!(format!("{:.3}", half / 1e9), "0.555");
}

#[test]
fn the_report_agrees_with_itself() {
    let mut config = one("nano2-9b");
    if let LayerConfig::Mlp(m) = &mut config.layers[1] {
        m.intermediate_size = 12800;
    }
    let settings = MemorySettings { prefill_chunk: 512, ..published_settings() };
    let request = InspectRequest { settings, context: 131_072, batch: 1, budget: Some(20 << 30) };
    let report = inspect(&config, "pruned", &request);
    let by_kind = &report.parameters_by_kind;
    assert_eq!(by_kind.iter().map(|part| part.parameters).sum::<u64>(), report.parameters);
    assert!((by_kind.iter().map(|part| part.share).sum::<f64>() - 1.0).abs() < 1e-12);
    assert_eq!(report.num_tensors, 341);
    let width = report.architecture.intermediate_size.unwrap();
    assert_eq!(width, Width::Range { min: 12800, max: 15680 });
    assert_eq!(width.to_string(), "12800–15680");
    let memory = report.memory;
    assert_eq!(memory.total, memory.weights + memory.kv + memory.state + memory.workspace);
    assert_eq!(memory.workspace, report.workspace.unwrap().total_bytes());
    let fit = report.fit.as_ref().unwrap();
    assert!(fit.fits && fit.free == (20 << 30) - i128::from(memory.total));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["architecture"]["intermediate_size"]["max"], 15680);
    assert_eq!(json["architecture"]["hidden_size"], 4480);
    assert!(json["fit"]["largest_context"]["up_to"].as_u64().unwrap() > 131_072);
}

#[test]
fn shares_of_the_9b() {
    let request =
        InspectRequest { settings: published_settings(), context: 1, batch: 1, budget: None };
    let report = inspect(&one("nano2-9b"), "9B", &request);
    let share = |kinds: &[&str]| {
        let parts = report.parameters_by_kind.iter().filter(|part| kinds.contains(&part.kind));
        format!("{:.1}", 100.0 * parts.map(|part| part.share).sum::<f64>())
    };
    assert_eq!(share(&["mamba"]), "44.8");
    assert_eq!(share(&["mlp"]), "39.5");
    assert_eq!(share(&["embedding", "lm_head"]), "13.2");
    assert_eq!(share(&["attention"]), "2.5");
    assert!(report.fit.is_none() && report.workspace.is_none());
}

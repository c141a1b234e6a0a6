//! Built-in configurations, by name: the published shapes, a dense Transformer to compare with,
//! and small ones.
//!
//! Special tokens are those of the published tokenizers; a checkpoint made from a preset carries
//! its own tokenizer, which decides.

use crate::config::{Config, InitConfig, TorchDtype};
use crate::error::ConfigError;
use crate::layer::{
    AttentionConfig, LayerConfig, LayerWidths, Mamba2Config, MlpConfig, layers_from_pattern,
};
use crate::memory::ParameterCount;

/// What tells one preset from another; everything else is common to the family.
struct Preset {
    name: &'static str,
    about: &'static str,
    pattern: &'static str,
    hidden: usize,
    intermediate: usize,
    /// q, kv, hd
    attention: [usize; 3],
    /// H, P, G, N
    mamba: [usize; 4],
    vocab: usize,
    max_positions: usize,
    eos: &'static [u32],
}

const NANO2_EOS: &[u32] = &[2, 12];

const PRESETS: &[Preset] = &[
    Preset {
        name: "nano2-9b",
        about: "NVIDIA Nemotron Nano 2 9B",
        pattern: "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
        hidden: 4480,
        intermediate: 15680,
        attention: [40, 8, 128],
        mamba: [128, 80, 8, 128],
        vocab: 131_072,
        max_positions: 131_072,
        eos: NANO2_EOS,
    },
    Preset {
        name: "nano2-12b",
        about: "NVIDIA Nemotron Nano 2 12B",
        pattern: "M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-",
        hidden: 5120,
        intermediate: 20480,
        attention: [40, 8, 128],
        mamba: [128, 80, 8, 128],
        vocab: 131_072,
        max_positions: 131_072,
        eos: NANO2_EOS,
    },
    Preset {
        name: "nano-4b",
        about: "NVIDIA Nemotron 3 Nano 4B (attention heads unconfirmed)",
        pattern: "M-M-M-MM-M-M*-M-M*-M-M-M*-M-M-MM*-MMM-M-M-",
        hidden: 3136,
        intermediate: 12544,
        attention: [40, 8, 128],
        mamba: [96, 80, 8, 128],
        vocab: 131_072,
        max_positions: 131_072,
        eos: &[2, 11],
    },
    Preset {
        name: "micro",
        about: "a few hundred thousand parameters, for tests",
        pattern: "M-M*-M-",
        hidden: 64,
        intermediate: 160,
        attention: [4, 2, 16],
        mamba: [8, 16, 2, 16],
        vocab: 2048,
        max_positions: 4096,
        eos: &[2],
    },
    Preset {
        name: "hybrid-0.5b",
        about: "a scaled-down hybrid of 0.555 B parameters, for speed work",
        pattern: "M-M-MM-M-M*-M-M-M*-M-MM-M-M-",
        hidden: 1536,
        intermediate: 5376,
        attention: [12, 4, 128],
        mamba: [48, 64, 8, 128],
        vocab: 32768,
        max_positions: 131_072,
        eos: &[2],
    },
    // A dense model of the 9B's size class: 36 pairs of attention and MLP, the depth, heads and
    // KV width (144 KiB per token in 16 bits) of common 8B Transformers; f = 21504 = 84·256
    // brings it to 8.926 B parameters, 0.4 % above the 9B, with rows that every format divides.
    Preset {
        name: "transformer-8b",
        about: "a dense Transformer of the 9B's size class, for comparison",
        pattern: "*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-*-",
        hidden: 4096,
        intermediate: 21504,
        attention: [32, 8, 128],
        mamba: [128, 80, 8, 128],
        vocab: 131_072,
        max_positions: 131_072,
        eos: NANO2_EOS,
    },
];

/// Name and one-line description of every preset.
pub fn preset_names() -> impl Iterator<Item = (&'static str, &'static str)> {
    PRESETS.iter().map(|preset| (preset.name, preset.about))
}

/// The configuration of a preset.
///
/// # Errors
/// [`ConfigError::UnknownPreset`], which lists the names.
pub fn preset(name: &str) -> Result<Config, ConfigError> {
    let preset = PRESETS.iter().find(|preset| preset.name == name).ok_or_else(|| {
        let known: Vec<_> = preset_names().map(|(name, _)| name).collect();
        ConfigError::UnknownPreset { name: name.into(), known: known.join(", ") }
    })?;
    let [num_heads, num_kv_heads, head_dim] = preset.attention;
    let attention = AttentionConfig { num_heads, num_kv_heads, head_dim };
    let [num_heads, head_dim, n_groups, state_size] = preset.mamba;
    let (conv_kernel, use_conv_bias) = (4, true);
    let mamba =
        Mamba2Config { num_heads, head_dim, n_groups, state_size, conv_kernel, use_conv_bias };
    let mlp = MlpConfig { intermediate_size: preset.intermediate };
    let config = Config {
        vocab_size: preset.vocab,
        hidden_size: preset.hidden,
        layers: layers_from_pattern(preset.pattern, &LayerWidths { mamba, attention, mlp })?,
        norm_eps: 1e-5,
        time_step_limit: (0.0, f32::INFINITY),
        tie_word_embeddings: false,
        max_position_embeddings: preset.max_positions,
        bos_token_id: Some(1),
        eos_token_ids: preset.eos.to_vec(),
        pad_token_id: Some(0),
        chunk_size: 128,
        dtype: TorchDtype::Bfloat16,
        init: InitConfig::default(),
    };
    config.validate(name)?;
    Ok(config)
}

/// A dense Transformer as large as `config`: the same vocabulary, width, norms and attention heads
/// (those of the first attention layer; without one, heads of 64 and a key head for four queries),
/// half as many pairs `*-` as `config` has layers, and the MLP width that brings the number of
/// parameters closest, in steps of 256 (of 32 where the hidden size is below 1024).
///
/// # Errors
/// As [`Config::validate`].
pub fn dense_transformer(config: &Config) -> Result<Config, ConfigError> {
    let attention = config.attention_layers().next().copied().unwrap_or_else(|| {
        let num_kv_heads = (config.hidden_size / 256).max(1);
        AttentionConfig { num_heads: 4 * num_kv_heads, num_kv_heads, head_dim: 64 }
    });
    let pairs = config.layers.len().div_ceil(2);
    let step = if config.hidden_size < 1024 { 32 } else { 256 };
    let with_width = |intermediate_size| {
        let pair =
            [LayerConfig::Attention(attention), LayerConfig::Mlp(MlpConfig { intermediate_size })];
        Config { layers: pair.repeat(pairs), ..config.clone() }
    };
    let size = |intermediate| ParameterCount::of(&with_width(intermediate)).total;
    let per_step = size(2 * step) - size(step);
    let missing = ParameterCount::of(config).total.saturating_sub(size(step));
    let steps = 1 + (missing + per_step / 2) / per_step;
    let transformer = with_width(step * steps as usize);
    transformer.validate("dense transformer")?;
    Ok(transformer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::kv_bytes_per_token;
    use hybra_kernels::ops::attention::KvDtype;

    #[test]
    fn the_8b_transformer_is_as_large_as_the_9b() {
        let [hybrid, dense] = ["nano2-9b", "transformer-8b"].map(|name| preset(name).unwrap());
        let size = |config: &Config| ParameterCount::of(config).total as f64;
        assert!((size(&dense) / size(&hybrid) - 1.0).abs() < 0.01);
        assert_eq!(kv_bytes_per_token(&dense, KvDtype::Bf16.into()), 144 << 10);
        assert_eq!(kv_bytes_per_token(&hybrid, KvDtype::Bf16.into()), 16 << 10);
    }

    #[test]
    fn a_dense_transformer_is_as_large_as_its_model() {
        for (name, within) in [("nano2-9b", 0.003), ("hybrid-0.5b", 0.006), ("micro", 0.02)] {
            let config = preset(name).unwrap();
            let dense = dense_transformer(&config).unwrap();
            let size = |config: &Config| ParameterCount::of(config).total as f64;
            let ratio = size(&dense) / size(&config);
            assert!((ratio - 1.0).abs() < within, "{name}: {ratio}");
            assert_eq!(dense.mamba_layers().count(), 0);
            assert_eq!(dense.attention_layers().next(), config.attention_layers().next());
        }
    }

    #[test]
    fn every_preset_is_valid_and_has_its_own_name() {
        let names: std::collections::HashSet<_> = preset_names().map(|(name, _)| name).collect();
        assert_eq!(names.len(), PRESETS.len());
        for name in names {
            preset(name).unwrap();
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known() {
        let message = preset("nano9").unwrap_err().to_string();
        for (name, _) in preset_names() {
            assert!(message.contains(name), "{message}");
        }
    }
}

//! The registry of tensors: name, shape, role and layer of everything a checkpoint holds.
//!
//! The only place where a tensor name is spelled. Loader, saver, parameter counter, initializer
//! and memory model all walk [`tensor_specs`]. Names are Hugging Face's (prefix `backbone.`), with
//! the GGUF name and the change of form beside them. Shapes are row-major.

use std::borrow::Cow;

use crate::config::Config;
use crate::layer::{AttentionConfig, LayerConfig, Mamba2Config, MlpConfig};

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Token embedding, \[V, h\]; also the head where embeddings are tied.
    Embedding,
    /// Output head, \[V, h\].
    LmHead,
    /// Norm before the head, \[h\].
    FinalNorm,
    /// Norm before the mixer of a block, \[h\].
    BlockNorm,
    /// Mamba `z | x | B | C | dt`, \[2HP + 2GN + H, h\].
    InProj,
    /// Depthwise convolution, \[HP + 2GN, 1, k\].
    ConvWeight,
    /// Its bias, \[HP + 2GN\].
    ConvBias,
    /// Logarithm of the decay rate, \[H\]; A = −exp(A_log).
    ALog,
    /// Skip from x to y, \[H\].
    D,
    /// Bias of dt before softplus, \[H\].
    DtBias,
    /// Gated norm over each of G groups, \[HP\].
    GatedNorm,
    /// Mamba output, \[h, HP\].
    OutProj,
    /// Queries, \[q·hd, h\].
    QProj,
    /// Keys, \[kv·hd, h\].
    KProj,
    /// Values, \[kv·hd, h\].
    VProj,
    /// Attention output, \[h, q·hd\].
    OProj,
    /// MLP in, \[f, h\].
    UpProj,
    /// MLP out, \[h, f\].
    DownProj,
}

impl Role {
    /// Whether it is a large matrix, which may be stored in 16 bits or quantized.
    #[must_use]
    pub fn is_matrix(self) -> bool {
        !self.keep_f32()
    }

    /// Whether the loader holds it in f32 whatever the file has: rank-1 tensors and convolution
    /// weights, which are small and whose errors compound over a sequence.
    #[must_use]
    pub fn keep_f32(self) -> bool {
        matches!(
            self,
            Self::FinalNorm
                | Self::BlockNorm
                | Self::ConvWeight
                | Self::ConvBias
                | Self::ALog
                | Self::D
                | Self::DtBias
                | Self::GatedNorm
        )
    }
}

/// How a GGUF file holds a tensor, against safetensors. Only [`GgufTransform::NegExpALog`]
/// changes values; the others change the shape over the same values in the same order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufTransform {
    /// The same.
    None,
    /// \[C, 1, k\] becomes \[C, k\].
    SqueezeConv,
    /// \[H\] becomes \[H, 1\].
    Column,
    /// \[H\] becomes \[H, 1\] and the value is −exp(A_log); back: ln(−a), refused for a ≥ 0.
    NegExpALog,
    /// \[HP\] becomes \[G, HP/G\].
    RegroupNorm,
}

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Hugging Face name, prefix `backbone.`.
    pub name: String,
    /// Row-major shape in safetensors.
    pub shape: Vec<usize>,
    /// Name in GGUF.
    pub gguf_name: String,
    /// Row-major shape in GGUF (a file lists the dimensions in reverse).
    pub gguf_shape: Vec<usize>,
    /// From safetensors to GGUF.
    pub gguf_transform: GgufTransform,
    /// What it is for.
    pub role: Role,
    /// Its block, counted from 0; `None` for embedding, final norm and head.
    pub layer: Option<usize>,
}

impl TensorSpec {
    /// Number of values.
    #[must_use]
    pub fn num_elements(&self) -> u64 {
        self.shape.iter().map(|&dim| dim as u64).product()
    }

    /// Length of a row (the last dimension): what block formats must divide.
    #[must_use]
    pub fn row_len(&self) -> usize {
        *self.shape.last().expect("no tensor is a scalar")
    }

    /// See [`Role::is_matrix`].
    #[must_use]
    pub fn is_matrix(&self) -> bool {
        self.role.is_matrix()
    }

    /// See [`Role::keep_f32`].
    #[must_use]
    pub fn keep_f32(&self) -> bool {
        self.role.keep_f32()
    }
}

/// Every tensor of a model: embedding, blocks first to last, final norm, head (absent where
/// embeddings are tied).
#[must_use]
pub fn tensor_specs(config: &Config) -> Vec<TensorSpec> {
    let h = config.hidden_size;
    let vocabulary = [config.vocab_size, h];
    let mut specs = Specs { layer: None, specs: Vec::new() };
    specs.end("backbone.embeddings", "token_embd", Role::Embedding, &vocabulary);
    for (index, layer) in config.layers.iter().enumerate() {
        specs.layer = Some(index);
        specs.block("norm.weight", "attn_norm.weight", Role::BlockNorm, &[h]);
        match layer {
            LayerConfig::Mamba2(m) => mamba2(&mut specs, h, m),
            LayerConfig::Attention(a) => attention(&mut specs, h, a),
            LayerConfig::Mlp(m) => mlp(&mut specs, h, m),
        }
    }
    specs.layer = None;
    specs.end("backbone.norm_f", "output_norm", Role::FinalNorm, &[h]);
    if !config.tie_word_embeddings {
        specs.end("lm_head", "output", Role::LmHead, &vocabulary);
    }
    specs.specs
}

fn mamba2(specs: &mut Specs, h: usize, m: &Mamba2Config) {
    use GgufTransform::{Column, NegExpALog, RegroupNorm, SqueezeConv};
    let (heads, inner, conv, k) = (m.num_heads, m.d_inner(), m.conv_dim(), m.conv_kernel);
    specs.block("mixer.in_proj.weight", "ssm_in.weight", Role::InProj, &[m.in_proj_rows(), h]);
    let conv_weight = ("mixer.conv1d.weight", "ssm_conv1d.weight");
    specs.changed(conv_weight, Role::ConvWeight, &[conv, 1, k], SqueezeConv, &[conv, k]);
    if m.use_conv_bias {
        specs.block("mixer.conv1d.bias", "ssm_conv1d.bias", Role::ConvBias, &[conv]);
    }
    specs.changed(("mixer.A_log", "ssm_a"), Role::ALog, &[heads], NegExpALog, &[heads, 1]);
    specs.changed(("mixer.D", "ssm_d"), Role::D, &[heads], Column, &[heads, 1]);
    specs.block("mixer.dt_bias", "ssm_dt.bias", Role::DtBias, &[heads]);
    let norm = ("mixer.norm.weight", "ssm_norm.weight");
    let regrouped = [m.n_groups, m.norm_group_len()];
    specs.changed(norm, Role::GatedNorm, &[inner], RegroupNorm, &regrouped);
    specs.block("mixer.out_proj.weight", "ssm_out.weight", Role::OutProj, &[h, inner]);
}

fn attention(specs: &mut Specs, h: usize, a: &AttentionConfig) {
    let (q, kv) = (a.q_width(), a.kv_width());
    specs.block("mixer.q_proj.weight", "attn_q.weight", Role::QProj, &[q, h]);
    specs.block("mixer.k_proj.weight", "attn_k.weight", Role::KProj, &[kv, h]);
    specs.block("mixer.v_proj.weight", "attn_v.weight", Role::VProj, &[kv, h]);
    specs.block("mixer.o_proj.weight", "attn_output.weight", Role::OProj, &[h, q]);
}

fn mlp(specs: &mut Specs, h: usize, m: &MlpConfig) {
    let f = m.intermediate_size;
    specs.block("mixer.up_proj.weight", "ffn_up.weight", Role::UpProj, &[f, h]);
    specs.block("mixer.down_proj.weight", "ffn_down.weight", Role::DownProj, &[h, f]);
}

/// The list under construction and the block it is at.
struct Specs {
    layer: Option<usize>,
    specs: Vec<TensorSpec>,
}

impl Specs {
    /// A tensor outside the blocks; both names get `.weight`.
    fn end(&mut self, name: &str, gguf_name: &str, role: Role, shape: &[usize]) {
        let names = (format!("{name}.weight"), format!("{gguf_name}.weight"));
        self.push(names, role, shape, GgufTransform::None, shape);
    }

    /// A tensor of the current block that GGUF holds alike.
    fn block(&mut self, name: &str, gguf_name: &str, role: Role, shape: &[usize]) {
        self.changed((name, gguf_name), role, shape, GgufTransform::None, shape);
    }

    /// A tensor of the current block that GGUF holds in another form.
    fn changed(
        &mut self,
        (name, gguf_name): (&str, &str),
        role: Role,
        shape: &[usize],
        transform: GgufTransform,
        gguf_shape: &[usize],
    ) {
        let n = self.layer.expect("only blocks call this");
        let names = (format!("backbone.layers.{n}.{name}"), format!("blk.{n}.{gguf_name}"));
        self.push(names, role, shape, transform, gguf_shape);
    }

    fn push(
        &mut self,
        (name, gguf_name): (String, String),
        role: Role,
        shape: &[usize],
        gguf_transform: GgufTransform,
        gguf_shape: &[usize],
    ) {
        self.specs.push(TensorSpec {
            name,
            shape: shape.to_vec(),
            gguf_name,
            gguf_shape: gguf_shape.to_vec(),
            gguf_transform,
            role,
            layer: self.layer,
        });
    }
}

/// The registry's spelling of a tensor name from a safetensors file: recent versions of
/// `transformers` write the prefix `model.` for `backbone.`. Other names pass unchanged.
#[must_use]
pub fn canonical_name(name: &str) -> Cow<'_, str> {
    match name.strip_prefix("model.") {
        Some(rest) => Cow::Owned(format!("backbone.{rest}")),
        None => Cow::Borrowed(name),
    }
}

/// Tensors that a checkpoint may hold and a model does not load: name prefix and reason, to be
/// reported to the user. Every other tensor outside the registry is an error.
pub const SKIPPED_PREFIXES: &[(&str, &str)] =
    &[("mtp.", "multi-token prediction heads are not used")];

/// Why a tensor is left out, if its name is on the skip list.
#[must_use]
pub fn skip_reason(name: &str) -> Option<&'static str> {
    let listed = SKIPPED_PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix));
    listed.map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::presets::preset;

    #[test]
    fn published_tensor_counts() {
        for (name, count) in [("nano2-9b", 341), ("nano2-12b", 369), ("nano-4b", 263)] {
            assert_eq!(tensor_specs(&preset(name).unwrap()).len(), count, "{name}");
        }
    }

    #[test]
    fn names_are_unique_and_shapes_hold_the_same_values() {
        let specs = tensor_specs(&preset("nano2-9b").unwrap());
        let names: HashSet<_> = specs.iter().map(|s| &s.name).collect();
        let gguf_names: HashSet<_> = specs.iter().map(|s| &s.gguf_name).collect();
        assert_eq!((names.len(), gguf_names.len()), (specs.len(), specs.len()));
        for spec in &specs {
            let elements: usize = spec.gguf_shape.iter().product();
            assert_eq!(elements as u64, spec.num_elements(), "{}", spec.name);
            let changed = spec.gguf_transform != GgufTransform::None;
            assert_eq!(spec.gguf_shape != spec.shape, changed, "{}", spec.name);
            assert_eq!(spec.is_matrix(), spec.shape.len() == 2, "{}", spec.name);
            assert_ne!(spec.is_matrix(), spec.keep_f32());
        }
    }

    #[test]
    fn shapes_of_the_9b() {
        let specs = tensor_specs(&preset("nano2-9b").unwrap());
        let shape = |name: &str| {
            let spec = specs.iter().find(|s| s.name == name);
            spec.unwrap_or_else(|| panic!("{name}")).shape.clone()
        };
        assert_eq!(shape("backbone.layers.0.mixer.in_proj.weight"), [22656, 4480]);
        assert_eq!(shape("backbone.layers.0.mixer.conv1d.weight"), [12288, 1, 4]);
        assert_eq!(shape("backbone.layers.1.mixer.down_proj.weight"), [4480, 15680]);
        assert_eq!(shape("backbone.layers.14.mixer.q_proj.weight"), [5120, 4480]);
        assert_eq!(shape("backbone.layers.14.mixer.v_proj.weight"), [1024, 4480]);
        assert_eq!(shape("lm_head.weight"), [131072, 4480]);
    }

    #[test]
    fn tied_embeddings_and_missing_conv_bias_drop_tensors() {
        let mut config = preset("micro").unwrap();
        let all = tensor_specs(&config).len();
        config.tie_word_embeddings = true;
        let tied = tensor_specs(&config);
        assert_eq!(tied.len(), all - 1);
        assert!(tied.iter().all(|s| s.role != Role::LmHead));
        for layer in &mut config.layers {
            if let LayerConfig::Mamba2(m) = layer {
                m.use_conv_bias = false;
            }
        }
        let mamba_layers = config.mamba_layers().count();
        assert_eq!(tensor_specs(&config).len(), all - 1 - mamba_layers);
    }

    #[test]
    fn both_prefixes_and_the_skip_list() {
        assert_eq!(canonical_name("model.layers.3.norm.weight"), "backbone.layers.3.norm.weight");
        for same in ["backbone.norm_f.weight", "lm_head.weight", "mtp.layers.0.norm.weight"] {
            assert_eq!(canonical_name(same), same);
        }
        assert!(skip_reason("mtp.layers.0.norm.weight").is_some());
        assert!(skip_reason("backbone.layers.0.norm.weight").is_none());
    }
}

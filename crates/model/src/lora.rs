//! Low-rank adapters in PEFT's form: W = W₀ + s·B·A, with A \[r, in\], B \[out, r\] and s = α/r.
//!
//! An adapter is a directory with `adapter_config.json` and `adapter_model.safetensors`, whose tensors
//! are `base_model.model.<module>.lora_A.weight` and `…lora_B.weight`. What a configuration asks for
//! beyond plain LoRA is refused by its key, since the product would be another one.
//!
//! Source: Hu et al. 2021, equation 3; the format of the `peft` library.

use crate::tensors::{TensorSpec, canonical_name};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// The configuration's file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The file of tensors.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";

/// `adapter_config.json`, as far as it decides the product.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// `LORA`.
    pub peft_type: String,
    /// `CAUSAL_LM`.
    #[serde(default)]
    pub task_type: Option<String>,
    /// What the adapter belongs to: a MODEL.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// r.
    pub r: usize,
    /// α.
    pub lora_alpha: f32,
    /// s = α/√r.
    #[serde(default)]
    pub use_rslora: bool,
    /// Modules that have a pair, such as `in_proj`.
    #[serde(default)]
    pub target_modules: Value,
    /// The rest.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

impl AdapterConfig {
    /// A plain adapter of these modules.
    #[must_use]
    pub fn new(base: Option<String>, r: usize, alpha: f32, modules: &[String]) -> Self {
        Self {
            peft_type: "LORA".to_owned(),
            task_type: Some("CAUSAL_LM".to_owned()),
            base_model_name_or_path: base,
            r,
            lora_alpha: alpha,
            use_rslora: false,
            target_modules: modules.into(),
            others: Map::from_iter([
                ("bias".to_owned(), "none".into()),
                ("fan_in_fan_out".to_owned(), false.into()),
                ("lora_dropout".to_owned(), 0.0.into()),
            ]),
        }
    }

    /// Reads the text of `adapter_config.json`.
    ///
    /// # Errors
    /// The key that is missing, of another type, or asks for what this is not.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let config: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if config.peft_type != "LORA" {
            return Err(format!("peft_type: expected LORA, found {}", config.peft_type));
        }
        if config.r == 0 {
            return Err("r: expected at least 1, found 0".to_owned());
        }
        // What changes the product when it is anything but empty, off or absent.
        let refused = ["use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern"];
        for key in
            refused.into_iter().chain(["alpha_pattern", "lora_bias", "trainable_token_indices"])
        {
            let is_plain = match config.others.get(key) {
                None | Some(Value::Null | Value::Bool(false)) => true,
                Some(Value::Array(items)) => items.is_empty(),
                Some(Value::Object(fields)) => fields.is_empty(),
                Some(_) => false,
            };
            if !is_plain {
                return Err(format!("{key}: expected none, found {}", config.others[key]));
            }
        }
        match config.others.get("bias") {
            None | Some(Value::Null) => Ok(config),
            Some(Value::String(bias)) if bias == "none" => Ok(config),
            Some(found) => Err(format!("bias: expected \"none\", found {found}")),
        }
    }

    /// s.
    #[must_use]
    pub fn scale(&self) -> f32 {
        let r = self.r as f32;
        self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }
    }
}

/// The module of a matrix, such as `in_proj`, and none for what can have no pair: the embedding, the
/// head, and what is no matrix.
#[must_use]
pub fn module_of(spec: &TensorSpec) -> Option<&str> {
    spec.layer.filter(|_| spec.is_matrix())?;
    spec.name.strip_suffix(".weight")?.rsplit('.').next()
}

/// The names of A and B of a matrix.
#[must_use]
pub fn pair_names(matrix: &str) -> [String; 2] {
    let module = matrix.strip_suffix(".weight").unwrap_or(matrix);
    ["A", "B"].map(|part| format!("{PREFIX}{module}.lora_{part}.weight"))
}

/// The matrix that a tensor of an adapter belongs to, and whether it is B.
#[must_use]
pub fn matrix_of(tensor: &str) -> Option<(String, bool)> {
    let rest = tensor.strip_prefix(PREFIX)?;
    let (module, is_b) = match rest.strip_suffix(".lora_A.weight") {
        Some(module) => (module, false),
        None => (rest.strip_suffix(".lora_B.weight")?, true),
    };
    let name: Cow<str> = canonical_name(module);
    Some((format!("{name}.weight"), is_b))
}

/// W += s·B·A; W has rows of the length of A's.
pub fn add_product(scale: f32, (a, b): (&[f32], &[f32]), matrix: &mut [f32], row_len: usize) {
    let r = a.len() / row_len;
    for (row, of_b) in matrix.chunks_exact_mut(row_len).zip(b.chunks_exact(r)) {
        for (of_a, &b) in a.chunks_exact(row_len).zip(of_b) {
            let factor = scale * b;
            row.iter_mut().zip(of_a).for_each(|(w, a)| *w += factor * a);
        }
    }
}

/// Adds dL/dA = s·Bᵀ·G and dL/dB = s·G·Aᵀ, where G = dL/dW.
pub fn add_gradients(
    scale: f32,
    (a, b): (&[f32], &[f32]),
    gradient: &[f32],
    row_len: usize,
    (da, db): (&mut [f32], &mut [f32]),
) {
    let r = a.len() / row_len;
    let rows = gradient.chunks_exact(row_len).zip(b.chunks_exact(r)).zip(db.chunks_exact_mut(r));
    for ((row, of_b), of_db) in rows {
        for (k, (of_a, of_da)) in
            a.chunks_exact(row_len).zip(da.chunks_exact_mut(row_len)).enumerate()
        {
            let factor = scale * of_b[k];
            let mut dot = [0.0f32; 16];
            for (at, ((g, a), da)) in row.iter().zip(of_a).zip(of_da).enumerate() {
                *da += factor * g;
                dot[at % 16] += g * a;
            }
            of_db[k] += scale * dot.iter().sum::<f32>();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        let name = "backbone.layers.3.mixer.in_proj.weight";
        let [a, b] = pair_names(name);
        assert_eq!(a, "base_model.model.backbone.layers.3.mixer.in_proj.lora_A.weight");
        assert_eq!(matrix_of(&a), Some((name.to_owned(), false)));
        assert_eq!(matrix_of(&b), Some((name.to_owned(), true)));
        assert_eq!(matrix_of("backbone.norm_f.weight"), None);
    }

    #[test]
    fn what_is_not_plain_lora_is_refused_by_its_key() {
        let plain = AdapterConfig::new(None, 4, 8.0, &["in_proj".to_owned()]);
        let text = serde_json::to_string(&plain).unwrap();
        assert_eq!(AdapterConfig::from_json(&text).unwrap(), plain);
        assert_eq!(plain.scale(), 2.0);
        for (key, value) in [
            ("use_dora", "true"),
            ("rank_pattern", "{\"q_proj\": 2}"),
            ("modules_to_save", "[\"lm_head\"]"),
            ("bias", "\"all\""),
            ("peft_type", "\"IA3\""),
        ] {
            let mut changed: Value = serde_json::from_str(&text).unwrap();
            changed[key] = serde_json::from_str(value).unwrap();
            let error = AdapterConfig::from_json(&changed.to_string()).unwrap_err();
            assert!(error.starts_with(key), "{error}");
        }
    }

    /// The gradients are the derivatives of L = Σ g·W in A and B.
    #[test]
    fn gradients_are_those_of_the_product() {
        let (rows, cols, r, scale) = (3, 5, 2, 0.5);
        let value = |i: usize| ((i * 7919 % 23) as f32 - 11.0) / 8.0;
        let a: Vec<f32> = (0..r * cols).map(value).collect();
        let b: Vec<f32> = (0..rows * r).map(|i| value(i + 40)).collect();
        let g: Vec<f32> = (0..rows * cols).map(|i| value(i + 90)).collect();
        let loss = |a: &[f32], b: &[f32]| {
            let mut w = vec![0.0; rows * cols];
            add_product(scale, (a, b), &mut w, cols);
            w.iter().zip(&g).map(|(w, g)| f64::from(w * g)).sum::<f64>()
        };
        let (mut da, mut db) = (vec![0.0; a.len()], vec![0.0; b.len()]);
        add_gradients(scale, (&a, &b), &g, cols, (&mut da, &mut db));
        for (at, &found) in da.iter().enumerate() {
            let mut moved = a.clone();
            moved[at] += 1.0;
            assert!((loss(&moved, &b) - loss(&a, &b) - f64::from(found)).abs() < 1e-4);
        }
        for (at, &found) in db.iter().enumerate() {
            let mut moved = b.clone();
            moved[at] += 1.0;
            assert!((loss(&a, &moved) - loss(&a, &b) - f64::from(found)).abs() < 1e-4);
        }
    }
}

//! Training of a low-rank adapter in place of the weights: any stage, the same objectives.
//!
//! What is trained is a flat vector of all A and B ([`hybra_model::lora`]); objectives see the whole
//! weights, base and product together, and give their whole gradient, which is taken to A and B for
//! every micro-batch before anything is summed. So optimizer, reduction and checkpoints know nothing
//! of it, and any number of ranks gives the same bits. Saved are the moments of AdamW and the
//! communication; weights and one gradient stay in memory.

use crate::data::draw::{Draws, Purpose};
use hybra_model::config::Config;
use hybra_model::lora::{AdapterConfig, add_gradients, add_product, module_of, pair_names};
use hybra_model::parameters::Layout;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// `[lora]` of a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// r.
    pub rank: usize,
    /// α; the product is scaled with α/r.
    pub alpha: f32,
    /// Modules that get a pair: of Mamba `in_proj`, `out_proj`; of attention `q_proj`, `k_proj`,
    /// `v_proj`, `o_proj`; of the MLP `up_proj`, `down_proj`.
    pub target_modules: Vec<String>,
}

/// All mixers.
const MODULES: [&str; 8] =
    ["in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"];

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, target_modules: MODULES.map(str::to_owned).to_vec() }
    }
}

impl LoraConfig {
    /// Key, what would do, and what it is, if a value is out of range.
    pub(crate) fn defect(&self) -> Option<(&'static str, &'static str, String)> {
        let unknown = self.target_modules.iter().find(|name| !MODULES.contains(&name.as_str()));
        if self.rank == 0 {
            Some(("rank", "at least 1", "0".to_owned()))
        } else if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            Some(("alpha", "a number above 0", self.alpha.to_string()))
        } else if let Some(name) = unknown {
            let expected = "in_proj, out_proj, q_proj, k_proj, v_proj, o_proj, up_proj, down_proj";
            Some(("target_modules", expected, name.clone()))
        } else if self.target_modules.is_empty() {
            Some(("target_modules", "at least one module", "none".to_owned()))
        } else {
            None
        }
    }
}

/// A matrix of the model, and its pair in the adapter.
struct Pair {
    matrix: Range<usize>,
    row_len: usize,
    a: Range<usize>,
    b: Range<usize>,
}

/// An adapter under training.
pub struct Lora {
    config: LoraConfig,
    base: Vec<f32>,
    layout: Layout,
    pairs: Vec<Pair>,
    coverage: String,
}

impl Lora {
    /// An adapter to these weights of a model of this shape.
    ///
    /// # Panics
    /// If there are not as many weights as the shape has.
    #[must_use]
    pub fn new(config: &LoraConfig, shape: &Config, base: Vec<f32>) -> Self {
        let model = Layout::new(shape);
        assert_eq!(base.len(), model.len(), "weights of the base");
        let chosen = |name: &str| config.target_modules.iter().any(|target| target == name);
        let (mut specs, mut matrices) = (Vec::new(), Vec::new());
        let mut counts = [0; MODULES.len()];
        for slot in model.slots() {
            let Some(module) = module_of(&slot.spec).filter(|name| chosen(name)) else { continue };
            if let Some(at) = MODULES.iter().position(|name| *name == module) {
                counts[at] += 1;
            }
            let row_len = slot.spec.row_len();
            let [a, b] = pair_names(&slot.spec.name);
            for (name, shape) in [
                (a, vec![config.rank, row_len]),
                (b, vec![slot.range.len() / row_len, config.rank]),
            ] {
                let mut spec = slot.spec.clone();
                (spec.name, spec.shape) = (name, shape);
                specs.push(spec);
            }
            matrices.push((slot.range.clone(), row_len));
        }
        let layout = Layout::of(specs);
        let of_pair = |((matrix, row_len), slots): (_, &[hybra_model::parameters::Slot])| Pair {
            matrix,
            row_len,
            a: slots[0].range.clone(),
            b: slots[1].range.clone(),
        };
        let pairs: Vec<Pair> =
            matrices.into_iter().zip(layout.slots().chunks_exact(2)).map(of_pair).collect();
        let covered: usize = pairs.iter().map(|pair| pair.matrix.len()).sum();
        let named = MODULES.iter().zip(counts).filter(|(_, count)| *count > 0);
        let named: Vec<_> = named.map(|(name, count)| format!("{count} {name}")).collect();
        let coverage = format!(
            "LoRA of rank {}: {} trained values; {:.1} % of the model's {} weights are covered ({})",
            config.rank,
            layout.len(),
            100.0 * covered as f64 / model.len() as f64,
            model.len(),
            named.join(", ")
        );
        Self { config: config.clone(), base, layout, pairs, coverage }
    }

    /// Where A and B lie in the trained vector.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What of the model is covered, for people.
    #[must_use]
    pub fn coverage(&self) -> &str {
        &self.coverage
    }

    /// Number of weights of the whole model.
    #[must_use]
    pub fn model_len(&self) -> usize {
        self.base.len()
    }

    /// `adapter_config.json`.
    #[must_use]
    pub fn config(&self, base: Option<String>) -> AdapterConfig {
        let LoraConfig { rank, alpha, target_modules } = &self.config;
        AdapterConfig::new(base, *rank, *alpha, target_modules)
    }

    fn scale(&self) -> f32 {
        self.config.alpha / self.config.rank as f32
    }

    /// The first values: A uniform within ±1/√in, B zero, so that the model is its base.
    #[must_use]
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        let mut values = vec![0.0; self.layout.len()];
        for (index, pair) in self.pairs.iter().enumerate() {
            let bound = 1.0 / (pair.row_len as f64).sqrt();
            let mut draws = Draws::new(seed, Purpose::Adapter, index as u64, 0);
            values[pair.a.clone()].fill_with(|| (bound * (2.0 * draws.share() - 1.0)) as f32);
        }
        values
    }

    /// The whole weights with this adapter.
    pub fn merge(&self, adapter: &[f32], weights: &mut [f32]) {
        weights.copy_from_slice(&self.base);
        for pair in &self.pairs {
            let sides = (&adapter[pair.a.clone()], &adapter[pair.b.clone()]);
            add_product(self.scale(), sides, &mut weights[pair.matrix.clone()], pair.row_len);
        }
    }

    /// Adds the gradient of A and B that the whole gradient means.
    pub fn project(&self, adapter: &[f32], whole: &[f32], gradient: &mut [f32]) {
        for pair in &self.pairs {
            let sides = (&adapter[pair.a.clone()], &adapter[pair.b.clone()]);
            // B follows A in the vector.
            let (da, db) = gradient[pair.a.start..pair.b.end].split_at_mut(pair.a.len());
            let of_matrix = &whole[pair.matrix.clone()];
            add_gradients(self.scale(), sides, of_matrix, pair.row_len, (da, db));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybra_model::presets::preset;

    #[test]
    fn a_fresh_adapter_changes_nothing_and_covers_all_mixers() {
        let shape = preset("micro").unwrap();
        let base = Layout::new(&shape).random(&shape, 1);
        let lora = Lora::new(&LoraConfig::default(), &shape, base.clone());
        let adapter = lora.initial(7);
        let mut weights = vec![0.0; base.len()];
        lora.merge(&adapter, &mut weights);
        assert_eq!(weights, base);
        let modules: Vec<_> =
            MODULES.iter().filter(|name| lora.coverage.contains(**name)).collect();
        assert_eq!(modules.len(), MODULES.len(), "{}", lora.coverage);
        assert_ne!(adapter, lora.initial(8));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let with = |change: fn(&mut LoraConfig)| {
            let mut config = LoraConfig::default();
            change(&mut config);
            config.defect().unwrap().0
        };
        assert_eq!(with(|c| c.rank = 0), "rank");
        assert_eq!(with(|c| c.alpha = f32::NAN), "alpha");
        assert_eq!(with(|c| c.target_modules.push("lm_head".to_owned())), "target_modules");
        assert_eq!(with(|c| c.target_modules.clear()), "target_modules");
    }
}

//! A roofline projection to GPUs: what memory and arithmetic bound, nothing measured.
//!
//! Prompt: passes of [`PASS`] tokens read all weights once; per token two operations per weight,
//! 4·q·hd per attention layer and position before it, 6 per value of recurrent state. Output: a
//! step reads the weights once, and for every sequence its keys and values and its state, which
//! it also writes. A pass takes bytes over bandwidth or operations over the peak, whichever is
//! longer; a run is their sum. Weights and cache are 16 bits, state 32; where 16-bit weights leave
//! no room for a sequence of either model, both get 8.5-bit weights. Activations, the workspace
//! and the framework take nothing: this is a bound, which no engine reaches.

use super::points::RunPoint;
use hybra_kernels::DType;
use hybra_model::Config;
use hybra_model::memory::{
    Capacity, KvFormat, MemoryModel, MemorySettings, ParameterCount, WeightFormat, ssm_state_values,
};
use serde::Serialize;

/// Tokens of a prompt in one pass.
const PASS: f64 = 2048.0;
/// Parts of a span that are added up.
const PARTS: usize = 256;

/// A card, by its published figures.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Device {
    pub(crate) name: &'static str,
    pub(crate) bytes_per_second: f64,
    /// Memory that a model may use.
    pub(crate) memory_bytes: u64,
    /// Dense bf16 operations per second.
    pub(crate) bf16_per_second: f64,
}

/// The cards.
pub(crate) const DEVICES: [Device; 2] = [
    Device {
        name: "A10G",
        bytes_per_second: 600e9,
        memory_bytes: 22 << 30,
        bf16_per_second: 125e12,
    },
    Device {
        name: "H200",
        bytes_per_second: 4.8e12,
        memory_bytes: 141_000_000_000,
        bf16_per_second: 989e12,
    },
];

/// Both models on one card at one point.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Projection {
    pub(crate) device: Device,
    #[serde(flatten)]
    pub(crate) point: RunPoint,
    /// Type of the weights.
    pub(crate) weights: &'static str,
    /// `None` where not even one sequence fits in any format.
    pub(crate) models: [Option<Bound>; 2],
    /// The first's tokens per second over the second's.
    pub(crate) ratio: Option<f64>,
}

/// What one model is bound by.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Bound {
    pub(crate) batch: u64,
    /// Whether the card would admit more than `--max-batch`.
    pub(crate) capped: bool,
    /// Of a step in the middle of the output.
    pub(crate) bytes_per_step: f64,
    pub(crate) operations_per_step: f64,
    /// What bounds that step: `memory` or `arithmetic`.
    pub(crate) bound_by: &'static str,
    /// Generated tokens over the time of prompts and output.
    pub(crate) tokens_per_second: f64,
}

/// All cards at all points, with at most `max_batch` sequences at once.
pub(crate) fn project(
    models: [&Config; 2],
    points: &[RunPoint],
    max_batch: u64,
) -> Vec<Projection> {
    let one =
        |device| points.iter().map(move |&point| projection(models, device, point, max_batch));
    DEVICES.into_iter().flat_map(one).collect()
}

fn projection(models: [&Config; 2], device: Device, point: RunPoint, max_batch: u64) -> Projection {
    let bounds =
        |dtype| models.map(|config| Costs::new(config, dtype).bound(device, point, max_batch));
    let (mut weights, mut found) = (DType::Bf16, bounds(DType::Bf16));
    if found.iter().any(Option::is_none) {
        (weights, found) = (DType::Q8_0, bounds(DType::Q8_0));
    }
    let ratio = match &found {
        [Some(a), Some(b)] => Some(a.tokens_per_second / b.tokens_per_second),
        _ => None,
    };
    Projection { device, point, weights: weights.name(), models: found, ratio }
}

/// What passes of a model cost.
struct Costs<'a> {
    memory: MemoryModel<'a>,
    /// Bytes of the weights that a pass reads: all but a separate embedding.
    pass_bytes: f64,
    state_bytes: f64,
    kv_bytes: f64,
    layer_parameters: f64,
    head_parameters: f64,
    /// Operations of attention per position before a token.
    attention_per_position: f64,
    /// Operations per token on recurrent state.
    scan: f64,
}

impl<'a> Costs<'a> {
    fn new(config: &'a Config, dtype: DType) -> Self {
        let format = WeightFormat::stored(dtype);
        let settings =
            MemorySettings { weights: format, kv: KvFormat::Values(DType::Bf16), prefill_chunk: 0 };
        let memory = MemoryModel::new(config, &settings);
        let count = ParameterCount::of(config);
        let tied = config.tie_word_embeddings;
        let bytes_per_weight = dtype.block_bytes() as f64 / dtype.block_len() as f64;
        let embedding = if tied { 0.0 } else { count.embedding as f64 * bytes_per_weight };
        let widths = config.attention_layers().map(|a| a.q_width() as f64);
        Self {
            pass_bytes: memory.weights as f64 - embedding,
            state_bytes: memory.state as f64,
            kv_bytes: memory.kv_per_token as f64,
            layer_parameters: (count.mamba + count.attention + count.mlp) as f64,
            head_parameters: if tied { count.embedding } else { count.lm_head } as f64,
            attention_per_position: 4.0 * widths.sum::<f64>(),
            scan: 6.0 * ssm_state_values(config) as f64,
            memory,
        }
    }

    fn bound(&self, device: Device, point: RunPoint, max_batch: u64) -> Option<Bound> {
        let admitted = match self.memory.largest_batch(point.context() as u64, device.memory_bytes)
        {
            Capacity::Nothing => return None,
            Capacity::UpTo(batch) => batch,
            Capacity::Unlimited => u64::MAX,
        };
        let batch = admitted.min(max_batch);
        let rows = batch as f64;
        let seconds = |(bytes, operations): (f64, f64)| {
            (bytes / device.bytes_per_second).max(operations / device.bf16_per_second)
        };
        let (prompt, end) = (point.prompt as f64, point.context() as f64);
        let prefill = rows * sum(0.0, prompt, |at| seconds(self.prompt_token(at)));
        let decode = sum(prompt, end, |at| seconds(self.step(rows, at)));
        let (bytes, operations) = self.step(rows, (prompt + end) / 2.0);
        let by_memory = bytes / device.bytes_per_second >= operations / device.bf16_per_second;
        Some(Bound {
            batch,
            capped: batch < admitted,
            bytes_per_step: bytes,
            operations_per_step: operations,
            bound_by: if by_memory { "memory" } else { "arithmetic" },
            tokens_per_second: rows * point.output as f64 / (prefill + decode),
        })
    }

    /// Bytes and operations of a token of a prompt behind `depth` others.
    fn prompt_token(&self, depth: f64) -> (f64, f64) {
        let pass = self.pass_bytes + self.kv_bytes * depth + 2.0 * self.state_bytes;
        let operations = 2.0 * self.layer_parameters + self.attention_per_position * depth;
        (pass / PASS, operations + self.scan)
    }

    /// Bytes and operations of a step of `rows` sequences behind `depth` tokens.
    fn step(&self, rows: f64, depth: f64) -> (f64, f64) {
        let sequence = 2.0 * self.state_bytes + self.kv_bytes * (depth + 1.0);
        let weights = 2.0 * (self.layer_parameters + self.head_parameters);
        let operations = weights + self.attention_per_position * (depth + 1.0) + self.scan;
        (self.pass_bytes + rows * sequence, rows * operations)
    }
}

/// The integral of `f`, by midpoints.
fn sum(from: f64, to: f64, f: impl Fn(f64) -> f64) -> f64 {
    let part = (to - from) / PARTS as f64;
    (0..PARTS).map(|i| part * f(from + (i as f64 + 0.5) * part)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybra_model::presets::preset;

    fn at(name: &str, device: usize, point: RunPoint) -> Projection {
        let [a, b] = [name, "transformer-8b"].map(|name| preset(name).unwrap());
        projection([&a, &b], DEVICES[device], point, 256)
    }

    #[test]
    fn the_9b_on_an_a10g_by_hand() {
        let projection = at("nano2-9b", 0, RunPoint::ALL[0]);
        assert_eq!(projection.weights, "BF16");
        let [hybrid, dense] = projection.models.map(Option::unwrap);
        assert_eq!((hybrid.batch, dense.batch), (10, 1));
        // 8,888,227,328 parameters less 131072 · 4480 of the embedding, 2 bytes each; ten times
        // twice 138.797 MiB of state and 16 KiB for each of 16,385 positions.
        let weights = 2.0 * (8_888_227_328.0 - 587_202_560.0);
        let sequence = 2.0 * 145_539_072.0 + 16_384.0 * 16_385.0;
        assert_eq!(hybrid.bytes_per_step, weights + 10.0 * sequence);
        assert_eq!((hybrid.bound_by, dense.bound_by), ("memory", "memory"));
        // A step of 22.2 GB takes 37 ms; ten prompts of 8k take at least 10.5 s of arithmetic.
        let decode = 16_384.0 * hybrid.bytes_per_step / 600e9;
        let upper = 163_840.0 / decode;
        assert!(hybrid.tokens_per_second < upper && hybrid.tokens_per_second > 0.95 * upper);
        assert!((5.0..12.0).contains(&projection.ratio.unwrap()), "{:?}", projection.ratio);
    }

    #[test]
    fn weights_get_8_bits_where_16_leave_no_room() {
        let projection = at("nano2-12b", 0, RunPoint::ALL[0]);
        assert_eq!(projection.weights, "Q8_0");
        assert!(projection.models.iter().all(Option::is_some));
        let large = at("nano2-12b", 1, RunPoint::ALL[0]);
        assert_eq!(large.weights, "BF16");
        assert!(large.models[0].as_ref().unwrap().batch > 100);
        let endless = at("nano2-9b", 0, RunPoint { prompt: 1 << 24, output: 1 });
        assert_eq!((endless.models, endless.ratio), ([None, None], None));
    }
}

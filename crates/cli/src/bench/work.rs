//! How much a token costs by the model's shape: bytes that must be read, multiply-adds that must
//! be done. Speeds times these, divided by the machine's limits, are the shares that `bench`
//! prints.
//!
//! Counted: the weights of the layers and the head as stored, each read once a step; recurrent
//! state and the used part of the KV cache, read once for each sequence; one multiply-add per
//! weight. Not counted: writing state, the products of the scan and of attention, activations.

use super::plan::Point;
use hybra_model::memory::{ParameterCount, kv_bytes_per_token};
use hybra_model::{NemotronH, StateDtypes};
use serde::Serialize;

/// Costs of a model.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Work {
    pub(crate) parameters: u64,
    /// Weights of the layers: used for every token.
    layer_parameters: u64,
    /// Weights of the head: used for every token that gets logits.
    head_parameters: u64,
    /// Bytes of all weights, as held.
    pub(crate) weight_bytes: u64,
    /// Of these, read in every step: all but a separate embedding, of which a row is read.
    pub(crate) step_weight_bytes: u64,
    /// Of a sequence, at any length.
    pub(crate) state_bytes: u64,
    pub(crate) kv_bytes_per_token: u64,
}

impl Work {
    /// Counts `model`.
    pub(crate) fn of(model: &NemotronH, dtypes: StateDtypes) -> Self {
        let (config, weights) = (model.config(), model.weights());
        let count = ParameterCount::of(config);
        let tied = weights.lm_head.is_none();
        let (all, embedding) = match model.device_weight_bytes() {
            Some(on_device) => on_device,
            None => (weights.bytes(), weights.embedding.bytes()),
        };
        let weight_bytes = all as u64;
        let embedding_bytes = if tied { 0 } else { embedding as u64 };
        Self {
            parameters: count.total,
            layer_parameters: count.mamba + count.attention + count.mlp,
            head_parameters: if tied { count.embedding } else { count.lm_head },
            weight_bytes,
            step_weight_bytes: weight_bytes - embedding_bytes,
            state_bytes: model.new_state(dtypes).bytes() as u64,
            kv_bytes_per_token: kv_bytes_per_token(config, dtypes.kv.into()),
        }
    }

    /// Multiplications and additions per token of `point`.
    pub(crate) fn ops_per_token(&self, point: Point) -> f64 {
        let heads = match point {
            Point::Prefill { tokens } => 1.0 / tokens as f64,
            Point::Decode { .. } => 1.0,
        };
        2.0 * (self.layer_parameters as f64 + heads * self.head_parameters as f64)
    }

    /// Bytes that a point holds at once: weights, and state and KV cache of its sequences; one
    /// sequence more where copies of a depth are measured.
    pub(crate) fn resident_bytes(&self, point: Point, steps: usize) -> u64 {
        let (len, sequences) = match point {
            Point::Prefill { tokens } => (tokens, 1),
            Point::Decode { depth: 0, batch } => (steps + 1, batch),
            Point::Decode { depth, batch } => (depth + steps + 1, batch + 1),
        };
        let sequence = self.state_bytes + self.kv_bytes_per_token * len as u64;
        self.weight_bytes + sequence * sequences as u64
    }

    /// Bytes read per token, for decode points; `steps` tokens are generated behind the depth.
    pub(crate) fn bytes_per_token(&self, point: Point, steps: usize) -> Option<f64> {
        let Point::Decode { depth, batch } = point else { return None };
        let context = depth as f64 + 1.0 + steps as f64 / 2.0;
        let sequence = self.state_bytes as f64 + self.kv_bytes_per_token as f64 * context;
        Some(self.step_weight_bytes as f64 / batch as f64 + sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Work {
        /// A made-up model.
        pub(crate) fn example() -> Self {
            Self {
                parameters: 1300,
                layer_parameters: 1000,
                head_parameters: 100,
                weight_bytes: 2600,
                step_weight_bytes: 2400,
                state_bytes: 40,
                kv_bytes_per_token: 2,
            }
        }
    }

    #[test]
    fn batches_share_weights_and_prompts_share_the_head() {
        let work = Work::example();
        assert_eq!(work.ops_per_token(Point::Prefill { tokens: 50 }), 2004.0);
        assert_eq!(work.ops_per_token(Point::Decode { depth: 9, batch: 2 }), 2200.0);
        assert_eq!(work.bytes_per_token(Point::Prefill { tokens: 50 }, 8), None);
        let deep = Point::Decode { depth: 95, batch: 4 };
        assert_eq!(work.bytes_per_token(deep, 8), Some(600.0 + 40.0 + 200.0));
        assert_eq!(work.resident_bytes(deep, 8), 2600 + 5 * (40 + 2 * 104));
        assert_eq!(work.resident_bytes(Point::Prefill { tokens: 50 }, 8), 2600 + 140);
    }
}

//! The largest batch that memory admits, and what limits it.

use crate::size;
use hybra_model::memory::{Capacity, MemoryModel};
use serde::Serialize;

/// The memory that both models get.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Room {
    /// `--memory-budget`, in bytes.
    pub(crate) budget: Option<u64>,
    /// Bytes that this machine can hold, where the system tells.
    pub(crate) machine: Option<u64>,
    /// Most sequences at once.
    pub(crate) max_batch: u64,
}

/// What keeps a batch from being larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Limit {
    /// The budget asked for.
    Budget,
    /// The memory of this machine.
    Machine,
    /// `--max-batch`.
    MaxBatch,
}

/// A batch that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Fit {
    /// Sequences at once.
    pub(crate) batch: u64,
    pub(crate) limited_by: Limit,
    /// Sequences that the budget would admit; `None` without a budget or without an end.
    pub(crate) batch_in_budget: Option<u64>,
}

impl Room {
    /// The largest batch of sequences of `context` tokens, or why there is none.
    pub(crate) fn fit(&self, model: &MemoryModel, context: u64) -> Result<Fit, String> {
        let largest = |bytes: Option<u64>| match bytes.map(|b| model.largest_batch(context, b)) {
            None | Some(Capacity::Unlimited) => u64::MAX,
            Some(Capacity::UpTo(batch)) => batch,
            Some(Capacity::Nothing) => 0,
        };
        let (budget, machine) = (largest(self.budget), largest(self.machine));
        let batch = budget.min(machine).min(self.max_batch);
        if batch == 0 {
            let needed = size::bytes(model.plan(context, 1).total);
            let (bytes, of) = match budget {
                0 => (self.budget, "the budget is"),
                _ => (self.machine, "this machine has"),
            };
            return Err(format!("needs {needed}, {of} {}", size::bytes(bytes.unwrap_or(0))));
        }
        let limited_by = match batch {
            _ if batch == budget => Limit::Budget,
            _ if batch == machine => Limit::Machine,
            _ => Limit::MaxBatch,
        };
        let batch_in_budget = Some(budget).filter(|&batch| batch != u64::MAX);
        Ok(Fit { batch, limited_by, batch_in_budget })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybra_kernels::DType;
    use hybra_model::memory::{KvFormat, MemorySettings, WeightFormat};
    use hybra_model::presets::preset;

    const GIB: f64 = (1u64 << 30) as f64;

    /// As published tables count: bf16 weights and cache, f32 state, no workspace.
    fn published(name: &str, context: u64, gib: f64) -> Result<Fit, String> {
        let config = preset(name).unwrap();
        let weights = WeightFormat::stored(DType::Bf16);
        let settings =
            MemorySettings { weights, kv: KvFormat::Values(DType::Bf16), prefill_chunk: 0 };
        let room = Room { budget: Some((gib * GIB) as u64), machine: None, max_batch: 1 << 20 };
        room.fit(&MemoryModel::new(&config, &settings), context)
    }

    #[test]
    fn the_published_batch_of_the_9b_on_an_a10g() {
        let batch = |name, gib| published(name, (8 + 16) << 10, gib).map(|fit| fit.batch);
        // 22.06 GiB less 5 % for the framework: the published batch at 8k/16k is 8.
        assert_eq!(batch("nano2-9b", 22.06 * 0.95), Ok(8));
        // The whole card, and the budget of the compression paper.
        assert_eq!(batch("nano2-9b", 22.0), Ok(10));
        assert_eq!(batch("nano2-9b", 19.66), Ok(6));
        // 3.375 GiB of keys and values for each sequence of 24k tokens.
        assert_eq!(batch("transformer-8b", 22.0), Ok(1));
        assert_eq!(published("nano2-9b", 128 << 10, 22.0).map(|fit| fit.batch), Ok(2));
        let error = published("nano2-12b", 24 << 10, 22.0).unwrap_err();
        assert_eq!(error, "needs 23.63 GiB, the budget is 22.00 GiB");
    }

    #[test]
    fn the_tightest_limit_is_named() {
        let config = preset("hybrid-0.5b").unwrap();
        let weights = WeightFormat::loaded(DType::Q4_0);
        let settings =
            MemorySettings { weights, kv: KvFormat::Values(DType::Bf16), prefill_chunk: 512 };
        let model = MemoryModel::new(&config, &settings);
        let fit = |budget: Option<u64>, machine: Option<u64>, max_batch| {
            Room { budget, machine, max_batch }.fit(&model, 2048)
        };
        let gib = |n: u64| Some(n << 30);
        let wide = fit(gib(4), gib(8), 1000).unwrap();
        assert_eq!((wide.limited_by, Some(wide.batch)), (Limit::Budget, wide.batch_in_budget));
        let machine = fit(gib(8), gib(4), 1000).unwrap();
        assert_eq!((machine.limited_by, machine.batch), (Limit::Machine, wide.batch));
        assert!(machine.batch_in_budget > Some(machine.batch));
        let capped = fit(None, gib(4), 2).unwrap();
        assert_eq!(
            (capped.limited_by, capped.batch, capped.batch_in_budget),
            (Limit::MaxBatch, 2, None)
        );
        assert!(fit(gib(8), Some(1 << 20), 9).unwrap_err().contains("this machine has 1.00 MiB"));
    }
}

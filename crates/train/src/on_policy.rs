//! The student's own samples as data: distillation where the student goes, not where the teacher did.
//!
//! Sources: Agarwal et al. 2024 (GKD), Gu et al. 2024 (MiniLLM: reverse KL).

use crate::objective::{Batches, BoxError, Policy};
use crate::rollout::{Prompts, Roller, Rollout, pack};
use hybra_model::training::PackedBatch;
use serde_json::{Value, json};

/// The micro-batches of a run: answers of the model under training.
pub struct OnPolicyBatches {
    prompts: Prompts,
    roller: Roller,
    next_prompt: u64,
    metrics: Vec<(String, f64)>,
}

impl OnPolicyBatches {
    /// At the beginning of a run.
    #[must_use]
    pub fn new(prompts: Prompts, roller: Roller) -> Self {
        Self { prompts, roller, next_prompt: 0, metrics: Vec::new() }
    }
}

impl Batches for OnPolicyBatches {
    fn step(&mut self, policy: &Policy) -> Result<Vec<PackedBatch>, BoxError> {
        let (from, count) = (self.next_prompt, self.prompts.rollout().prompts as u64);
        let asks: Vec<_> =
            (from..from + count).flat_map(|index| self.prompts.prompt(index).asks).collect();
        let rollouts = self.roller.roll(policy, &asks)?;
        self.next_prompt += count;
        let n = rollouts.len() as f64;
        let mean = |value: &dyn Fn(&Rollout) -> f64| rollouts.iter().map(value).sum::<f64>() / n;
        self.metrics = vec![
            ("unfinished".to_owned(), mean(&|r| f64::from(u8::from(!r.finished)))),
            ("answer_length".to_owned(), mean(&|r| r.tokens.len() as f64)),
        ];
        let rollouts: Vec<&Rollout> = rollouts.iter().collect();
        let packs = pack(&rollouts, self.prompts.pack_len(), policy.comm.size())?;
        Ok(packs.into_iter().map(|(batch, _)| batch).collect())
    }

    fn fingerprint(&self) -> String {
        self.prompts.fingerprint().to_owned()
    }

    fn state(&self) -> Value {
        json!({ "next_prompt": self.next_prompt, "fingerprint": self.fingerprint() })
    }

    fn restore(&mut self, state: &Value) -> Result<(), BoxError> {
        let (expected, found) = (self.fingerprint(), &state["fingerprint"]);
        match (found.as_str() == Some(&expected), state["next_prompt"].as_u64()) {
            (true, Some(next)) => {
                self.next_prompt = next;
                Ok(())
            }
            _ => Err(format!("prompts: expected those of {expected}, found {found}").into()),
        }
    }

    fn metrics(&self) -> &[(String, f64)] {
        &self.metrics
    }
}

//! One sequence driven by hand: tokens in, output and report collected.

use std::sync::Arc;

use hybra_engine::{
    BudgetPlan, EndedBy, LimitSource, Phase, ReasoningBudget, Start, ThinkingBudget, ThinkingConfig,
};

use crate::toy::{Output, Toy};

pub(crate) fn plan(limit: u32, grace: u32) -> BudgetPlan {
    let limit_source = Some(LimitSource::Request);
    BudgetPlan { off: false, requested: Some(limit), limit: Some(limit), limit_source, grace }
}

/// An open section after `<think>\n`.
pub(crate) fn open(plan: BudgetPlan) -> ThinkingConfig {
    ThinkingConfig { plan, start: Start::Open { tail: b"\n".into() }, ..Default::default() }
}

pub(crate) struct Run {
    pub(crate) toy: Toy,
    pub(crate) machine: ThinkingBudget,
    pub(crate) output: Output,
    pub(crate) phases: Vec<Phase>,
}

impl Run {
    pub(crate) fn new(config: ThinkingConfig) -> Self {
        Self::with_message(config, "")
    }

    pub(crate) fn with_message(config: ThinkingConfig, message: &str) -> Self {
        let toy = Toy::new(&[b"</think>", b">\n\n", b"think", b"\n\n"]);
        let vocab = toy.vocab();
        let insertion = toy.insertion(&vocab, message);
        let machine = ThinkingBudget::new(Arc::clone(&vocab), insertion, config);
        Self { toy, machine, output: Output::default(), phases: Vec::new() }
    }

    /// Samples one token with these bytes (its id does not matter to the machine).
    pub(crate) fn token(&mut self, bytes: impl AsRef<[u8]>) {
        assert_eq!(self.machine.forced_next(), None, "before {:?}", bytes.as_ref());
        let step = self.output.push(&mut self.machine, 0, bytes.as_ref());
        assert!(!step.forced);
        self.phases.push(step.phase);
    }

    pub(crate) fn bytes(&mut self, text: &str) {
        text.bytes().for_each(|b| self.token([b]));
    }

    /// Takes the forced tokens and gives their text.
    pub(crate) fn forced(&mut self) -> String {
        let mut text = Vec::new();
        while let Some(id) = self.machine.forced_next() {
            let bytes = self.toy.bytes(id).to_vec();
            text.extend_from_slice(&bytes);
            let step = self.output.push(&mut self.machine, id, &bytes);
            assert!(step.forced);
            self.phases.push(step.phase);
        }
        String::from_utf8(text).unwrap()
    }

    pub(crate) fn report(&self) -> ReasoningBudget {
        self.machine.report()
    }

    pub(crate) fn ended_by(&self) -> Option<EndedBy> {
        self.report().ended_by
    }
}

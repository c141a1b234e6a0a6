//! A toy to train: a small model's layout, an objective that reaches all of it, and endless data.

use hybra_kernels::{Cpu, Isa};
use hybra_model::config::Config;
use hybra_model::parameters::Layout;
use hybra_model::presets::preset;
use hybra_model::training::PackedBatch;
use hybra_train::lora::Lora;
use hybra_train::{
    Batches, BoxError, Comm, Event, LocalComm, LossSums, ModelFiles, Objective, Outcome, Policy,
    RunConfig, RunDir, Start, TrainError, Trainer,
};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// A model of a few ten thousand parameters.
pub(crate) fn model() -> Config {
    let mut config = preset("micro").unwrap();
    config.vocab_size = 64;
    config.layers.truncate(4);
    config.validate("toy").unwrap();
    config
}

/// One rank, and weights that nobody asks for.
#[allow(dead_code, reason = "not every test binary needs it")]
pub(crate) fn alone() -> Policy<'static> {
    Policy { parameters: &[], comm: Box::leak(Box::new(LocalComm::single())) }
}

/// Pulls every fifth parameter towards a number that the label chooses.
#[allow(dead_code, reason = "not every test binary needs it")]
pub(crate) struct Pull {
    /// The parameter that is NaN in its gradient, from which micro-batch on.
    pub(crate) poison: Option<(usize, usize)>,
    /// Micro-batches so far.
    pub(crate) seen: usize,
}

impl Objective for Pull {
    fn micro_batch(
        &mut self,
        _: &Cpu,
        parameters: &[f32],
        batch: &PackedBatch,
        scale: f32,
        gradient: &mut [f32],
    ) -> LossSums {
        self.seen += 1;
        let mut sums = LossSums { metrics: vec![("pull", 0.0, 0.0)], ..LossSums::default() };
        for (label, weight) in batch.labels.iter().zip(&batch.weights) {
            if *weight == 0.0 {
                continue;
            }
            let target = 1.0 + 0.1 * (*label as f32 * 0.37).sin();
            for at in (*label as usize % 5..parameters.len()).step_by(5) {
                let away = parameters[at] - target;
                gradient[at] += scale * weight * away;
                sums.loss += f64::from(weight * 0.5 * away * away);
            }
            sums.weight += f64::from(*weight);
            sums.metrics[0].1 += f64::from(target);
            sums.metrics[0].2 += 1.0;
        }
        if let Some((at, from)) = self.poison
            && self.seen > from
        {
            gradient[at] = f32::NAN;
        }
        sums
    }
}

/// `packs` micro-batches a step, a function of the step's number.
pub(crate) struct Counter {
    pub(crate) next: u64,
    pub(crate) packs: u64,
}

impl Batches for Counter {
    fn step(&mut self, _: &Policy) -> Result<Vec<PackedBatch>, BoxError> {
        let first = self.next * self.packs;
        self.next += 1;
        Ok((first..first + self.packs).map(pack).collect())
    }

    fn fingerprint(&self) -> String {
        format!("{} packs", self.packs)
    }

    fn state(&self) -> Value {
        json!({ "next": self.next })
    }

    fn restore(&mut self, state: &Value) -> Result<(), BoxError> {
        self.next = state["next"].as_u64().ok_or("no `next`")?;
        Ok(())
    }
}

/// Two documents; the mask differs from pack to pack, so that weights differ.
pub(crate) fn pack(number: u64) -> PackedBatch {
    let token = |i: u64| ((number * 31 + i * i * 7 + i) % 64) as u32;
    let tokens: Vec<u32> = (0..12 + number % 3).map(token).collect();
    let mask: Vec<bool> =
        (0..tokens.len() as u64).map(|i| !(i + number).is_multiple_of(4)).collect();
    let mut batch = PackedBatch::default();
    batch.push(&tokens[..5], &mask[..5]);
    batch.push(&tokens[5..], &mask[5..]);
    batch
}

/// A run file.
#[allow(dead_code, reason = "not every test binary needs it")]
pub(crate) fn config(steps: u64, changes: &[&str]) -> RunConfig {
    let text = format!("steps = {steps}\n[model]\n[data]\n[checkpoint]\nevery = 3\n");
    let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
    RunConfig::parse(&text, Path::new("toy.toml"), &changes).unwrap()
}

/// Trains the toy as one rank and gives the warnings.
#[allow(dead_code, reason = "not every test binary needs it")]
pub(crate) fn train(
    dir: &Path,
    comm: &dyn Comm,
    config: &RunConfig,
    objective: &mut dyn Objective,
    packs: u64,
    threads: usize,
) -> (Result<Outcome, TrainError>, Vec<String>) {
    let run = RunDir::new(dir);
    if comm.rank() == 0 {
        run.prepare(config, Start::Auto).unwrap();
    }
    comm.barrier().unwrap();
    let model = ModelFiles {
        config: model(),
        files: vec![("config.json".to_owned(), model().to_json().into_bytes())],
        ancestors: Vec::new(),
        stage: "toy",
        code_version: "test".to_owned(),
    };
    let mut warnings = Vec::new();
    let initial = || Layout::new(&model.config).random(&model.config, config.seed);
    let lora = config.lora.as_ref().map(|lora| Lora::new(lora, &model.config, initial()));
    let trainer = Trainer {
        cpu: &Cpu::new(Isa::best(), threads),
        comm,
        config,
        model: &model,
        dir: &run,
        lora: lora.as_ref(),
        objective,
        batches: &mut Counter { next: 0, packs },
        evaluator: None,
        events: &mut |event| {
            if let Event::Warning(text) = event {
                warnings.push(text);
            }
        },
        stop: &AtomicBool::new(false),
    };
    let outcome = trainer.run(initial);
    (outcome, warnings)
}

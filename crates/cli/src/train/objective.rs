//! The parts of a stage, made from a run file: what is minimized, and on what.

use anyhow::{Context, Result};
use hybra_chat::{ChatModel, GenerationDefaults};
use hybra_model::config::Config;
use hybra_model::training::{Keep, PackedBatch, Trainable};
use hybra_tokenizer::{SpecialIds, Tokenizer};
use hybra_train::cross_entropy::CrossEntropy;
use hybra_train::data::{Corpus, DataConfig, DataLoader, SampleEncoder, task_generator};
use hybra_train::{Batches, BoxError, ModelFiles, Objective, RunConfig};
use serde_json::Value;

/// Next-token cross entropy of a model of this shape.
pub(crate) fn sft(run: &RunConfig, config: &Config) -> Box<dyn Objective> {
    let keep = if run.gradient_checkpointing { Keep::Inputs } else { Keep::Projections };
    Box::new(CrossEntropy::new(Trainable::new(config.clone(), keep)))
}

/// The micro-batches that `[data]` describes, as tokens of the model's own tokenizer.
pub(crate) fn batches(run: &RunConfig, model: &ModelFiles) -> Result<Box<dyn Batches>> {
    let config: DataConfig = run.data.clone().try_into().context("[data]")?;
    let encoder = SampleEncoder::new(chat_model(model)?)?;
    let corpus = Corpus::open(&config, encoder, &task_generator).context("[data]")?;
    Ok(Box::new(Loader(DataLoader::new(corpus))))
}

fn chat_model(model: &ModelFiles) -> Result<ChatModel> {
    let text = |name: &str| {
        let file = model.files.iter().find(|(have, _)| have == name);
        file.and_then(|(_, bytes)| std::str::from_utf8(bytes).ok())
    };
    let json = text("tokenizer.json").context("the model has no tokenizer.json")?;
    let (config, template) = (text("tokenizer_config.json"), text("chat_template.jinja"));
    let tokenizer = Tokenizer::from_files(json, config, template, &SpecialIds::default())?;
    let (name, eos) = ("the model".to_owned(), model.config.eos_token_ids.clone());
    Ok(ChatModel::new(name, tokenizer, eos, GenerationDefaults::default())?)
}

/// The loader; its own state counts the steps.
struct Loader(DataLoader);

impl Batches for Loader {
    fn step(&mut self) -> Result<Vec<PackedBatch>, BoxError> {
        let step = self.0.state().step;
        Ok(self.0.step(step)?)
    }

    fn state(&self) -> Value {
        serde_json::to_value(self.0.state()).expect("numbers and strings")
    }

    fn restore(&mut self, state: &Value) -> Result<(), BoxError> {
        Ok(self.0.restore(serde_json::from_value(state.clone())?)?)
    }
}

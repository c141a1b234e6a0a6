//! The parts of a stage, made from a run file: what is minimized, and on what.

use crate::cpu::CpuArgs;
use crate::progress::Progress;
use crate::source::{self, Source};
use anyhow::{Context, Result, bail};
use hybra_chat::{ChatModel, GenerationDefaults};
use hybra_kernels::Cpu;
use hybra_model::config::Config;
use hybra_model::parameters::Layout;
use hybra_model::training::{Keep, PackedBatch, Trainable};
use hybra_tokenizer::{SpecialIds, Tokenizer};
use hybra_train::cross_entropy::CrossEntropy;
use hybra_train::data::{Corpus, DataConfig, DataLoader, Phases, SampleEncoder, task_generator};
use hybra_train::distil::{DistilConfig, Distillation, Weighted};
use hybra_train::dpo::{Dpo, PairBatches, PairConfig};
use hybra_train::policy_gradient::PolicyGradient;
use hybra_train::teacher_cache::{self, CachedBatches, Manifest};
use hybra_train::{Batches, BoxError, ModelFiles, Objective, Policy, RunConfig};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Next-token cross entropy of a model of this shape.
pub(crate) fn sft(run: &RunConfig, model: &ModelFiles) -> Box<dyn Objective> {
    Box::new(CrossEntropy::new(trained(run, model)))
}

/// Divergence from the run's teacher, which must read and write the student's tokens.
pub(crate) fn distil(run: &RunConfig, model: &ModelFiles) -> Result<Box<dyn Objective>> {
    let distil =
        run.distil.clone().context("[distil]: expected `teacher = DIR`; found no table")?;
    let teacher = match (&distil.teacher, &distil.cache) {
        (Some(dir), None) => Some(teacher(dir, model)?.1),
        _ => None,
    };
    Ok(Box::new(Distillation::new(trained(run, model), teacher, distil)))
}

/// Better answers than the others of their group become likelier.
pub(crate) fn grpo(run: &RunConfig, model: &ModelFiles, begun: &[f32]) -> Box<dyn Objective> {
    let loss = run.grpo.clone().unwrap_or_default().loss;
    let reference = (loss.kl > 0.0).then(|| reference(run, model, begun));
    Box::new(PolicyGradient::new(trained(run, model), reference, loss))
}

/// Of two answers the better one becomes likelier.
pub(crate) fn dpo(run: &RunConfig, model: &ModelFiles, begun: &[f32]) -> Box<dyn Objective> {
    let config = run.dpo.clone().unwrap_or_default();
    Box::new(Dpo::new(trained(run, model), reference(run, model, begun), config))
}

/// The pairs of a file, read by the model that the run began from if asked for.
pub(crate) fn pairs(
    run: &RunConfig,
    model: &ModelFiles,
    begun: &[f32],
    cpu: &CpuArgs,
) -> Result<Box<dyn Batches>> {
    let config: PairConfig = run.data.clone().try_into().context("[data]")?;
    let encoder = SampleEncoder::new(chat_model(model)?)?;
    let mut pairs = PairBatches::open(&config, &encoder).context("[data]")?;
    if run.dpo.as_ref().is_some_and(|dpo| dpo.precompute_ref_log_probs) {
        let mut bar = None;
        let progress = move |count, own| {
            let bar = bar.get_or_insert_with(|| Progress::pieces("reference", own as u64));
            bar.advance(count as u64);
        };
        pairs = pairs.with_reference(cpu.cpu()?, reference(run, model, begun), progress);
    }
    Ok(Box::new(pairs))
}

fn trained(run: &RunConfig, model: &ModelFiles) -> Trainable {
    let keep = if run.gradient_checkpointing { Keep::Inputs } else { Keep::Projections };
    Trainable::new(model.config.clone(), keep).with_precision(run.precision)
}

/// The model as the run found it.
fn reference(run: &RunConfig, model: &ModelFiles, begun: &[f32]) -> Weighted {
    let parameters = begun.to_vec();
    let model = Trainable::new(model.config.clone(), Keep::Inputs).with_precision(run.precision);
    Weighted { model, parameters }
}

/// The teacher in `dir`, in f32 as what a cache holds of it, and the hash of its weights.
fn teacher(dir: &Path, student: &ModelFiles) -> Result<(String, Weighted)> {
    let source = source::resolve(Some(&dir.to_string_lossy())).context("[distil]: teacher")?;
    let (teacher, name) = (weighted(&source)?, dir.display());
    let (of, own) = (teacher.model.config().vocab_size, student.config.vocab_size);
    if of != own {
        bail!("{name}: the teacher's vocabulary has {of} entries, the student's {own}");
    }
    let text = source.checkpoint.read_text("tokenizer.json")?;
    let own = student.files.iter().find(|(name, _)| name == "tokenizer.json");
    if let (Some(text), Some((_, own))) = (text, own)
        && text.as_bytes() != own.as_slice()
    {
        bail!(
            "{name}: the teacher's tokenizer.json is not the student's: distillation needs the same"
        );
    }
    Ok((source.checkpoint.hash(), teacher))
}

/// A checkpoint's shape and weights in f32.
pub(crate) fn weighted(source: &Source) -> Result<Weighted> {
    let config = Config::from_checkpoint(&source.checkpoint)?;
    let parameters = Layout::new(&config).load(&source.checkpoint, &config)?;
    Ok(Weighted { model: Trainable::new(config, Keep::Inputs), parameters })
}

/// The micro-batches that `[data]` describes, as tokens of the model's own tokenizer.
pub(crate) fn batches(run: &RunConfig, model: &ModelFiles) -> Result<Box<dyn Batches>> {
    let config: DataConfig = run.data.clone().try_into().context("[data]")?;
    let encoder = SampleEncoder::new(chat_model(model)?)?;
    if !run.phases.is_empty() {
        let phases = Phases::open(&config, &run.phases, &encoder).context("[data], [[phases]]")?;
        return Ok(Box::new(phases));
    }
    let corpus = Corpus::open(&config, encoder, &task_generator).context("[data]")?;
    Ok(Box::new(Loader(DataLoader::new(corpus))))
}

/// The text side of the model.
pub(super) fn chat_model(model: &ModelFiles) -> Result<ChatModel> {
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

/// The batches with the answers of the run's cache, if it has one.
pub(crate) fn with_cache(run: &RunConfig, batches: Box<dyn Batches>) -> Result<Box<dyn Batches>> {
    let Some(DistilConfig { cache: Some(cache), teacher, temperature, .. }) = &run.distil else {
        return Ok(batches);
    };
    let hash = |dir: &PathBuf| -> Result<String> {
        Ok(source::resolve(Some(&dir.to_string_lossy()))?.checkpoint.hash())
    };
    let teacher = teacher.as_ref().map(hash).transpose()?.unwrap_or_default();
    let manifest = Manifest::new(teacher, batches.fingerprint(), *temperature, 0, run.steps);
    Ok(Box::new(CachedBatches::open(cache, &manifest, batches).context("[distil]: cache")?))
}

/// Writes the answers of the run's teacher to the packs of the run.
pub(crate) fn write_cache(
    cpu: &Cpu,
    run: &RunConfig,
    model: &ModelFiles,
    dir: &Path,
    top_k: usize,
) -> Result<()> {
    let Some(DistilConfig { teacher: Some(from), temperature, .. }) = &run.distil else {
        bail!("[distil]: expected `teacher = DIR`; found none");
    };
    let (hash, teacher) = teacher(from, model)?;
    let vocab = teacher.model.config().vocab_size;
    if !(1..=vocab).contains(&top_k) {
        bail!("--top-k: expected 1 to the vocabulary's {vocab}, found {top_k}");
    }
    let mut batches = batches(run, model)?;
    let manifest = Manifest::new(hash, batches.fingerprint(), *temperature, top_k, run.steps);
    let mut bar = Progress::pieces("steps", run.steps);
    let mut progress = |done| bar.set(done);
    teacher_cache::write(cpu, dir, &manifest, &teacher, &mut *batches, &mut progress)
        .map_err(anyhow::Error::from_boxed)
}

impl Batches for Loader {
    fn step(&mut self, _: &Policy) -> Result<Vec<PackedBatch>, BoxError> {
        let step = self.0.state().step;
        Ok(self.0.step(step)?)
    }

    fn fingerprint(&self) -> String {
        self.0.corpus().fingerprint().to_owned()
    }

    fn state(&self) -> Value {
        serde_json::to_value(self.0.state()).expect("numbers and strings")
    }

    fn restore(&mut self, state: &Value) -> Result<(), BoxError> {
        Ok(self.0.restore(serde_json::from_value(state.clone())?)?)
    }
}

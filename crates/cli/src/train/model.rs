//! The model that a run begins with: a checkpoint's, or random weights with a tokenizer.

use crate::convert::metadata::config_files;
use crate::lineage;
use crate::source;
use anyhow::{Context, Result, bail};
use hybra_chat::GenerationDefaults;
use hybra_kernels::DType;
use hybra_model::config::{Config, TorchDtype};
use hybra_model::parameters::Layout;
use hybra_tokenizer::{SpecialIds, Tokenizer};
use hybra_train::ModelFiles;
use hybra_train::config::{ModelConfig, TokenIds};
use std::io::ErrorKind;
use std::path::Path;

/// Files of a tokenizer, the first of which every one has.
const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

type Initial = Box<dyn FnOnce() -> Vec<f32>>;

/// What goes beside the weights, and the first weights.
pub(crate) fn open(
    model: &ModelConfig,
    seed: u64,
    stage: &'static str,
) -> Result<(ModelFiles, Initial)> {
    match &model.from {
        Some(from) => from_checkpoint(from, stage),
        None => from_shape(model, seed, stage),
    }
}

fn from_checkpoint(from: &Path, stage: &'static str) -> Result<(ModelFiles, Initial)> {
    let source = source::resolve(Some(&from.to_string_lossy()))?;
    let checkpoint = &source.checkpoint;
    if checkpoint.gguf().is_some() {
        bail!("{}: is GGUF; training begins from a Hugging Face directory", from.display());
    }
    let config = Config::from_checkpoint(checkpoint)?;
    let config = Config { dtype: TorchDtype::Float32, ..config };
    let weights = Layout::new(&config).load(checkpoint, &config)?;
    let mut files = vec![("config.json".to_owned(), config.to_json().into_bytes())];
    for name in TOKENIZER_FILES {
        files.extend(checkpoint.read_text(name)?.map(|text| (name.to_owned(), text.into_bytes())));
    }
    let ancestors = lineage::ancestry(checkpoint)?;
    Ok((ours(config, files, ancestors, stage), Box::new(move || weights)))
}

fn from_shape(
    model: &ModelConfig,
    seed: u64,
    stage: &'static str,
) -> Result<(ModelFiles, Initial)> {
    let Some(dir) = &model.tokenizer else {
        bail!("[model]: expected `from = DIR`, or `tokenizer = DIR` and a shape; found neither");
    };
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    let mut texts = [None, None, None, None];
    for (name, text) in TOKENIZER_FILES.into_iter().zip(&mut texts) {
        let path = dir.join(name);
        match std::fs::read_to_string(&path) {
            Ok(read) => {
                files.push((name.to_owned(), read.clone().into_bytes()));
                *text = Some(read);
            }
            Err(error) if error.kind() != ErrorKind::NotFound || name == TOKENIZER_FILES[0] => {
                return Err(error).with_context(|| path.display().to_string());
            }
            Err(_) => {}
        }
    }
    let [json, settings, template, _] = &texts;
    let json = json.as_deref().expect("an error where it is absent");
    let (settings, template) = (settings.as_deref(), template.as_deref());
    let tokenizer = Tokenizer::from_files(json, settings, template, &SpecialIds::default())?;
    let config = model.shape(&TokenIds {
        vocab_size: tokenizer.vocab_size(),
        bos: tokenizer.bos(),
        eos: tokenizer.eos_ids().to_vec(),
        pad: tokenizer.pad(),
    })?;
    let made =
        config_files(&config, &config.eos_token_ids, &GenerationDefaults::default(), DType::F32);
    for (name, text) in made {
        if !files.iter().any(|(have, _)| have == name) {
            files.push((name.to_owned(), text.into_bytes()));
        }
    }
    let shape = config.clone();
    let initial = move || Layout::new(&shape).random(&shape, seed);
    Ok((ours(config, files, Vec::new(), stage), Box::new(initial)))
}

fn ours(
    config: Config,
    files: Vec<(String, Vec<u8>)>,
    ancestors: Vec<String>,
    stage: &'static str,
) -> ModelFiles {
    let code_version = env!("CARGO_PKG_VERSION").to_owned();
    ModelFiles { config, files, ancestors, stage, code_version }
}

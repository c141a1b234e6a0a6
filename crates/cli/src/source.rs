//! What a MODEL on the command line stands for, and its parts: checkpoint, weights, tokenizer.
//!
//! A MODEL is nothing (the model inside the binary), an existing path, a student of a nested
//! checkpoint, a low-rank adapter (with its base), or a hub id; an existing path always wins. For exact
//! arithmetic weights stay in their mapped file; for fast arithmetic they are packed, and the file's
//! pages leave memory.

mod adapter;
mod nested;
mod tokenizer;

pub(crate) use adapter::is_adapter;
pub(crate) use nested::sized;
pub(crate) use tokenizer::{
    HF_CONFIG_JSON, HF_JSON, LoadedTokenizer, has_tokenizer, load_tokenizer,
};

use crate::cpu::{Arithmetic, LoadOptions};
use crate::hub::{self, Want};
use crate::progress::Progress;
use crate::weight_cache::WeightCache;
use anyhow::{Context, Result, bail};
use hybra_checkpoint::{Checkpoint, Mapping};
use hybra_kernels::Cpu;
use hybra_model::config::Config;
use hybra_model::nemotron_h::NemotronH;
use hybra_model::presets::{preset, preset_names};
use hybra_model::tensors::skip_reason;
use hybra_model::weights::Weights;
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

/// The name of the model inside the binary.
pub(crate) const EMBEDDED_NAME: &str = "hybra-default";

/// A file of the embedded model with its name.
macro_rules! embedded {
    ($($name:literal),*) => {
        [$(($name, include_bytes!(concat!("../../../assets/default-model/", $name)) as &[u8])),*]
    };
}

static EMBEDDED: [(&str, &[u8]); 6] = embedded![
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors"
];

/// An open model.
pub(crate) struct Source {
    pub(crate) checkpoint: Checkpoint,
    /// For people: the hub id, the name of the directory or file, or [`EMBEDDED_NAME`].
    pub(crate) name: String,
    /// Where a sliced model lies while it is in use.
    folder: Option<TempDir>,
}

/// A configuration, with the checkpoint it came from where there is one.
pub(crate) struct Described {
    pub(crate) config: Config,
    pub(crate) name: String,
    pub(crate) source: Option<Source>,
}

/// Reads the configuration of a MODEL, or of what has no weights: a `config.json`, a directory
/// with one, a preset. Of a model on the hub only the config is fetched.
pub(crate) fn describe(model: Option<&str>) -> Result<Described> {
    let Some(text) = model else { return with_config(embedded()?) };
    let path = Path::new(text);
    if path.is_file() && path.extension().is_some_and(|ending| ending == "json") {
        return from_config_file(path);
    }
    if is_adapter(path) {
        return adapter::describe(path);
    }
    if path.exists() {
        return describe_path(path, display_name(path));
    }
    if let Some((model, size)) = nested::student_of(path) {
        return nested::describe(model, size);
    }
    if let Ok(config) = preset(text) {
        return Ok(Described { config, name: text.to_owned(), source: None });
    }
    match hub::HubId::parse(text) {
        Some(id) => describe_path(&hub::fetch(&id, Want::Config)?, text.to_owned()),
        None => {
            let presets: Vec<_> = preset_names().map(|(name, _)| name).collect();
            bail!("{} Presets: {}", not_a_model(text), presets.join(", "))
        }
    }
}

/// Whether a MODEL has weights that [`describe`] leaves alone because they must be made first: an
/// adapter's with its base, a nested student's.
pub(crate) fn is_derived(model: &str) -> bool {
    let path = Path::new(model);
    is_adapter(path) || !path.exists() && nested::student_of(path).is_some()
}

fn with_config(source: Source) -> Result<Described> {
    let config = Config::from_checkpoint(&source.checkpoint)?;
    Ok(Described { config, name: source.name.clone(), source: Some(source) })
}

fn describe_path(path: &Path, name: String) -> Result<Described> {
    match Checkpoint::open(path) {
        Ok(checkpoint) => with_config(Source { checkpoint, name, folder: None }),
        Err(hybra_checkpoint::Error::NoModel { .. }) if path.join("config.json").is_file() => {
            let described = from_config_file(&path.join("config.json"))?;
            Ok(Described { name, ..described })
        }
        Err(error) => Err(error.into()),
    }
}

/// A lone `config.json` is called after its directory, another file after itself.
fn from_config_file(path: &Path) -> Result<Described> {
    let origin = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| origin.clone())?;
    let config = Config::from_json(&text, &origin)?;
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let named = if full.ends_with("config.json") { full.parent() } else { Some(full.as_path()) };
    let name = named.and_then(Path::file_stem).unwrap_or(path.as_os_str());
    Ok(Described { config, name: name.to_string_lossy().into_owned(), source: None })
}

/// Opens the MODEL of a command line.
pub(crate) fn resolve(model: Option<&str>) -> Result<Source> {
    let Some(model) = model else { return embedded() };
    let path = Path::new(model);
    if is_adapter(path) {
        return adapter::open(path);
    }
    if path.exists() {
        let checkpoint = Checkpoint::open(path)?;
        return Ok(Source { checkpoint, name: display_name(path), folder: None });
    }
    if let Some((model, size)) = nested::student_of(path) {
        return nested::open(model, size);
    }
    match hub::HubId::parse(model) {
        Some(id) => {
            let checkpoint = Checkpoint::open(&hub::fetch(&id, Want::Model)?)?;
            Ok(Source { checkpoint, name: model.to_owned(), folder: None })
        }
        None => bail!("{}", not_a_model(model)),
    }
}

/// Opens the model inside the binary.
fn embedded() -> Result<Source> {
    let files = EMBEDDED.iter().map(|&(name, bytes)| (name, Mapping::from(bytes)));
    let checkpoint = Checkpoint::from_memory(EMBEDDED_NAME, files)?;
    Ok(Source { checkpoint, name: EMBEDDED_NAME.to_owned(), folder: None })
}

fn not_a_model(model: &str) -> String {
    let made = if preset_names().any(|(name, _)| name == model) {
        format!("; `{model}` is a preset: `hybra init {model}` writes a random checkpoint of it")
    } else {
        String::new()
    };
    format!(
        "{model}: no such file or directory{made}. A MODEL is a Hugging Face directory, a .gguf \
         or .safetensors file, or a hub id: owner/name, owner/name@revision or \
         owner/name:FILE.gguf."
    )
}

/// The last component of a path, also of `.` and `..`.
fn display_name(path: &Path) -> String {
    let full = path.canonicalize();
    let name = full.as_deref().unwrap_or(path).file_name();
    name.unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Reads the configuration and takes the weights, packed for fast arithmetic.
pub(crate) fn load_model(source: &Source, cpu: &Cpu, options: LoadOptions) -> Result<NemotronH> {
    let config = Config::from_checkpoint(&source.checkpoint)?;
    for note in notes(source)? {
        eprintln!("note: {note}");
    }
    let weights = Weights::load(&source.checkpoint, &config, |_, _| {})?;
    let mut model = NemotronH::new(config, weights);
    if options.device.place(&mut model, options.arithmetic, cpu.pool().threads())? {
        if options.weight_cache {
            eprintln!("note: --weight-cache has no effect: weights on a GPU are not packed");
        }
        return Ok(model);
    }
    let (config, mut weights) = model.into_parts();
    if options.arithmetic == Arithmetic::Fast {
        pack(source, cpu, options.weight_cache, &mut weights)?;
    }
    Ok(NemotronH::new(config, weights))
}

/// Brings the weights into compute layout, from the cache where that is asked for.
fn pack(source: &Source, cpu: &Cpu, use_cache: bool, weights: &mut Weights) -> Result<()> {
    let on_disk = use_cache && source.folder.is_none() && source.checkpoint.path().exists();
    if use_cache && !on_disk {
        eprintln!("note: --weight-cache has no effect: {} has no file of its own", source.name);
    }
    let cache = on_disk.then(|| WeightCache::beside(source.checkpoint.path())).transpose()?;
    if let Some(cache) = &cache
        && cache.load(weights)?
    {
        return Ok(());
    }
    let mut bar = Progress::bytes("packing weights", weights.bytes() as u64);
    weights.pack(cpu, |done, _| bar.set(done)).context("no memory to pack the weights")?;
    drop(bar);
    if let Some(cache) = &cache
        && let Err(error) = cache.store(weights)
    {
        eprintln!("note: packed weights were not kept: {error:#}");
    }
    Ok(())
}

/// What the checkpoint holds and Hybra does not use, one line each.
pub(crate) fn notes(source: &Source) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    if source.checkpoint.gguf().is_none()
        && let Some(text) = source.checkpoint.read_text("config.json")?
    {
        let unknown = Config::unknown_keys(&text, "config.json")?;
        if !unknown.is_empty() {
            notes.push(format!("keys of config.json without effect: {}", unknown.join(", ")));
        }
    }
    let mut skipped: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in source.checkpoint.tensors().filter_map(|tensor| skip_reason(&tensor.name)) {
        *skipped.entry(reason).or_default() += 1;
    }
    notes
        .extend(skipped.iter().map(|(reason, count)| format!("{count} tensors skipped: {reason}")));
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybra_kernels::Isa;

    #[test]
    fn the_embedded_model_has_weights_and_a_tokenizer() {
        let source = resolve(None).unwrap();
        let cpu = Cpu::new(Isa::best(), 1);
        let options = LoadOptions::on_cpu(Arithmetic::Fast);
        let model = load_model(&source, &cpu, options).unwrap();
        let loaded = load_tokenizer(&source, model.config()).unwrap();
        assert!(loaded.tokenizer.vocab_size() <= model.config().vocab_size);
        assert!(loaded.tokenizer.chat_template().is_ok());
        assert!(loaded.eos_token_ids.contains(&2) && loaded.eos_token_ids.contains(&12));
        assert_eq!(loaded.defaults.do_sample, Some(false));
    }

    #[test]
    fn what_is_no_model_is_told_what_a_model_is() {
        for text in ["nowhere.gguf", "./nowhere", "/nowhere/x", "a/b/c", "nano2-9b"] {
            let Err(error) = resolve(Some(text)) else { panic!("{text}") };
            let message = error.to_string();
            assert!(message.contains("owner/name:FILE.gguf"), "{message}");
            assert_eq!(message.contains("hybra init"), text == "nano2-9b", "{message}");
        }
    }
}

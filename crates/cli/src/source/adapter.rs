//! A low-rank adapter as a MODEL: its directory stands for the base with the adapter in it.
//!
//! The sum is written to a temporary folder, mapped from there, and gone with its [`Source`]. The base is
//! what `adapter_config.json` names: a path, as seen from here or from the adapter's folder, or a hub id.

use super::{Described, Source, describe as describe_model, display_name, resolve};
use crate::lineage;
use crate::progress::Progress;
use crate::prune::kept_files;
use anyhow::{Context, Result, bail};
use hybra_checkpoint::Checkpoint;
use hybra_compress::adapter::merge_adapter;
use hybra_model::lora::{AdapterConfig, CONFIG_FILE, WEIGHTS_FILE};
use serde_json::json;
use std::path::Path;

/// Whether a path is an adapter's directory, and no model's.
pub(crate) fn is_adapter(path: &Path) -> bool {
    path.join(CONFIG_FILE).is_file() && !path.join("config.json").is_file()
}

fn read(path: &Path) -> Result<(AdapterConfig, String)> {
    let file = path.join(CONFIG_FILE);
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let config = AdapterConfig::from_json(&text).map_err(anyhow::Error::msg);
    let config = config.with_context(|| file.display().to_string())?;
    let Some(base) = config.base_model_name_or_path.clone() else {
        bail!(
            "{}: base_model_name_or_path: expected the adapter's model, found none",
            file.display()
        );
    };
    let beside = path.join(&base);
    let is_beside = !Path::new(&base).exists() && beside.exists();
    let base = if is_beside { beside.to_string_lossy().into_owned() } else { base };
    if is_adapter(Path::new(&base)) {
        bail!("{}: base_model_name_or_path: {base} is an adapter itself", file.display());
    }
    Ok((config, base))
}

/// The shape, which is the base's, without reading a weight.
pub(super) fn describe(path: &Path) -> Result<Described> {
    let (_, base) = read(path)?;
    let described =
        describe_model(Some(&base)).with_context(|| format!("base of {}", path.display()))?;
    Ok(Described { name: display_name(path), source: None, ..described })
}

/// Merges an adapter into its base.
pub(super) fn open(path: &Path) -> Result<Source> {
    let (config, base) = read(path)?;
    let base = resolve(Some(&base)).with_context(|| format!("base of {}", path.display()))?;
    let adapter = Checkpoint::open(&path.join(WEIGHTS_FILE))?;
    let mut files = kept_files(&base)?;
    files.extend(base.checkpoint.read_text("config.json")?.map(|text| ("config.json", text)));
    let ancestors = lineage::ancestry(&base.checkpoint)?;
    let metrics = json!({ "r": config.r, "lora_alpha": config.lora_alpha });
    files.push(("lineage.json", lineage::text(&ancestors, "adapter", metrics)));
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    let folder = tempfile::tempdir().context("a folder for the merged model")?;
    let out = folder.path().join("model");
    let mut bar: Option<Progress> = None;
    let mut progress = |done, total| {
        bar.get_or_insert_with(|| Progress::pieces("merging", total as u64)).set(done as u64);
    };
    merge_adapter(&base.checkpoint, (&adapter, &config), &out, &files, &mut progress)?;
    Ok(Source {
        checkpoint: Checkpoint::open(&out)?,
        name: display_name(path),
        folder: Some(folder),
    })
}

//! Packed weights kept beside a model, so that the next start maps them instead of packing.
//!
//! The cache of MODEL is the directory `MODEL.packed`: one safetensors file of bytes, and
//! `source.json`, which says what it was made from: names, lengths and times of the model's files
//! and the version of the layout. It is written atomically, and used only where `source.json` is
//! what would be written now and every length fits; else it is made anew.

use crate::progress::Progress;
use anyhow::{Context, Result};
use hybra_checkpoint::{Checkpoint, Dtype, SafetensorsOptions, SafetensorsWriter, TensorInfo};
use hybra_model::Weights;
use serde_json::{Value, json};
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Changes with every change of the compute layout.
const LAYOUT: u32 = 2;
const SOURCE_FILE: &str = "source.json";

/// The cache of one model.
pub(crate) struct WeightCache {
    dir: PathBuf,
    source: String,
}

impl WeightCache {
    /// The cache beside `model`, a file or directory.
    pub(crate) fn beside(model: &Path) -> Result<Self> {
        let full = model.canonicalize().with_context(|| model.display().to_string())?;
        let mut name = full.file_name().context("a model has a name")?.to_owned();
        name.push(".packed");
        let files = files(&full).with_context(|| full.display().to_string())?;
        let source =
            json!({"layout": LAYOUT, "version": env!("CARGO_PKG_VERSION"), "files": files});
        Ok(Self { dir: full.with_file_name(name), source: source.to_string() })
    }

    /// Takes the packed matrices from the cache; false where it is absent or of something else.
    pub(crate) fn load(&self, weights: &mut Weights) -> Result<bool> {
        if !self.dir.join(SOURCE_FILE).is_file() {
            return Ok(false);
        }
        // A damaged cache is not an error: it is made anew.
        let Ok(cache) = Checkpoint::open(&self.dir) else { return Ok(false) };
        if cache.read_text(SOURCE_FILE)?.as_deref() != Some(&self.source) {
            return Ok(false);
        }
        Ok(weights.adopt_packed(|name| Some(cache.get(name)?.region())))
    }

    /// Writes the packed matrices.
    pub(crate) fn store(&self, weights: &Weights) -> Result<()> {
        let packed: Vec<(String, &[u8])> = weights.packed().collect();
        let info =
            |(name, bytes): &(String, &[u8])| TensorInfo::new(name, Dtype::U8, &[bytes.len()]);
        let infos: Vec<_> = packed.iter().map(info).collect();
        // A directory of that name that is no cache is somebody's: the writer refuses it.
        let overwrite = self.dir.join(SOURCE_FILE).is_file();
        let options = SafetensorsOptions { max_shard_bytes: u64::MAX, overwrite };
        let side = [(SOURCE_FILE, self.source.as_bytes())];
        let mut writer = SafetensorsWriter::create(&self.dir, &infos, &side, &options)?;
        let mut bar =
            Progress::bytes("writing cache", packed.iter().map(|p| p.1.len() as u64).sum());
        for (name, bytes) in &packed {
            for piece in bytes.chunks(8 << 20) {
                writer.write(name, piece)?;
                bar.advance(piece.len() as u64);
            }
        }
        writer.finish()?;
        Ok(())
    }
}

/// Name, length and time of last change of the weight files of a model.
fn files(model: &Path) -> std::io::Result<Vec<Value>> {
    let describe = |name: String, found: Metadata| -> std::io::Result<Value> {
        let changed = found.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(json!([name, found.len(), changed.as_secs(), changed.subsec_nanos()]))
    };
    if model.is_file() {
        return Ok(vec![describe(String::new(), fs::metadata(model)?)?]);
    }
    let mut all = Vec::new();
    for entry in fs::read_dir(model)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if [".safetensors", ".gguf", ".json"].iter().any(|end| name.ends_with(end)) {
            all.push((name, fs::metadata(entry.path())?));
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all.into_iter().map(|(name, found)| describe(name, found)).collect()
}

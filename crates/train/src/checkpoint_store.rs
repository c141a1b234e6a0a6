//! The checkpoints of a run: whole, checked, and the last few of them.
//!
//! `step-000123/` is a Hugging Face directory that can be served, with `optimizer.safetensors`
//! (`exp_avg.*`, `exp_avg_sq.*`), `trainer.json`, `lineage.json` and `hashes.json`, BLAKE3 of every
//! file. It is written beside its place, synced, and renamed; one that lacks a file or whose bytes
//! are not those that were hashed is refused, and the one before it is taken. Deleting begins when
//! a newer checkpoint is on disk, so there is always a good one once there has been one.

mod vectors;

use crate::atomic;
use hybra_checkpoint::{Checkpoint, Dtype, SafetensorsOptions, SafetensorsWriter, TensorInfo};
use hybra_kernels::DType;
use hybra_kernels::ops::quantize::quantize_row;
use hybra_model::config::Config;
use hybra_model::lora::WEIGHTS_FILE;
use hybra_model::parameters::Layout;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use vectors::{read_values, write_values};

const HASHES: &str = "hashes.json";
const TRAINER: &str = "trainer.json";
const OPTIMIZER: &str = "optimizer.safetensors";

/// What the loop goes on from, beside weights and moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerState {
    /// Steps done.
    pub step: u64,
    /// Tokens read.
    pub tokens: u64,
    /// Tokens learned.
    pub learned_tokens: u64,
    /// Bytes of `log.jsonl`.
    pub log_bytes: u64,
    /// Bytes of `timing.jsonl`.
    pub timing_bytes: u64,
    /// Of the run. All randomness is a function of it and of counters, so it is the whole state.
    pub seed: u64,
    /// Of the run's configuration.
    pub config_hash: String,
    /// Where the data goes on.
    pub data: Value,
}

/// Where a checkpoint comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// BLAKE3 over the parent's weights; none for random weights.
    pub parent: Option<String>,
    /// BLAKE3 over the weights of all that it descends from, the parent first.
    #[serde(default)]
    pub ancestors: Vec<String>,
    /// Such as `sft`.
    pub stage: String,
    /// The configuration with every default, as TOML.
    pub run_file: String,
    /// Of the run.
    pub seed: u64,
    /// Of the program.
    pub code_version: String,
    /// Steps done.
    pub step: u64,
    /// The last line of the log.
    pub metrics: Value,
}

/// What a checkpoint is made of.
pub struct Snapshot<'a> {
    /// Where each tensor lies.
    pub layout: &'a Layout,
    /// Files beside the weights: configuration, tokenizer.
    pub files: &'a [(String, Vec<u8>)],
    /// Weights.
    pub parameters: &'a [f32],
    /// What is trained: the weights themselves, or an adapter to them.
    pub trained: (&'a Layout, &'a [f32]),
    /// m and v of what is trained.
    pub moments: (&'a [f32], &'a [f32]),
    /// The loop.
    pub state: &'a TrainerState,
    /// Origin.
    pub lineage: &'a Lineage,
}

/// A checkpoint that was read and found whole.
pub struct Saved {
    /// Where.
    pub path: PathBuf,
    /// What is trained.
    pub parameters: Vec<f32>,
    /// m.
    pub exp_avg: Vec<f32>,
    /// v.
    pub exp_avg_sq: Vec<f32>,
    /// The loop.
    pub state: TrainerState,
}

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file cannot be read or written.
    #[error("{}: {action}: {cause}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What failed.
        action: &'static str,
        /// Why.
        cause: io::Error,
    },
    /// The weights cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] hybra_checkpoint::Error),
    /// The weights are not those of the configuration.
    #[error(transparent)]
    Load(#[from] hybra_model::LoadError),
    /// A file that `hashes.json` lists has other bytes or is absent.
    #[error("{}: BLAKE3 is {found}, expected {expected}: the file was changed or is torn", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// By `hashes.json`.
        expected: String,
        /// As it is.
        found: String,
    },
    /// A JSON file that does not hold what it should.
    #[error("{}: {cause}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What.
        cause: serde_json::Error,
    },
    /// A needed file that `hashes.json` does not list.
    #[error("{}: does not list {missing}", path.display())]
    Unlisted {
        /// `hashes.json`.
        path: PathBuf,
        /// The file.
        missing: &'static str,
    },
    /// A tensor of the optimizer or of an adapter with another size or type.
    #[error("{}: tensor `{tensor}`: expected {expected} values of F32, found {found}", path.display())]
    Moment {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Number of values.
        expected: usize,
        /// Type and shape.
        found: String,
    },
    /// There are checkpoints, and all were refused.
    #[error(
        "{}: none of the {count} checkpoints is whole (see the warnings); --force begins anew",
        path.display()
    )]
    NoneGood {
        /// The folder.
        path: PathBuf,
        /// How many there are.
        count: usize,
    },
}

/// The folder of a run's checkpoints.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    dir: PathBuf,
    keep: usize,
    adapter: Option<Layout>,
}

impl CheckpointStore {
    /// `lineage.json` of the checkpoint of a step, as it is.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn lineage(&self, step: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.path(step).join("lineage.json");
        fs::read(&path).map_err(failed(&path, "read"))
    }

    /// The checkpoints in `dir`, which must exist; at most `keep` (at least 1) are kept.
    #[must_use]
    pub fn new(dir: &Path, keep: usize) -> Self {
        Self { dir: dir.to_owned(), keep: keep.max(1), adapter: None }
    }

    /// The same for an adapter with this layout, if there is one.
    #[must_use]
    pub fn with_adapter(self, adapter: Option<Layout>) -> Self {
        Self { adapter, ..self }
    }

    /// Where the checkpoint of a step lies.
    #[must_use]
    pub fn path(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step:06}"))
    }

    /// The steps that have a checkpoint, whole or not, ascending.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn steps(&self) -> Result<Vec<u64>, StoreError> {
        let entries = fs::read_dir(&self.dir).map_err(failed(&self.dir, "list"))?;
        let mut steps = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed(&self.dir, "list"))?.file_name();
            let digits = name.to_str().and_then(|name| name.strip_prefix("step-"));
            steps.extend(digits.and_then(|digits| digits.parse::<u64>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// Writes a checkpoint and deletes the oldest beyond those that are kept.
    ///
    /// # Errors
    /// [`StoreError`]; earlier checkpoints are then as they were.
    pub fn save(&self, snapshot: &Snapshot) -> Result<PathBuf, StoreError> {
        let staging =
            tempfile::Builder::new().prefix(".step.").suffix(".tmp").tempdir_in(&self.dir);
        let staging = staging.map_err(failed(&self.dir, "create a folder in"))?;
        let dir = staging.path().join("step");
        write_model(&dir, snapshot.layout, snapshot.parameters, snapshot.files, false)?;
        let (layout, trained) = snapshot.trained;
        if self.adapter.is_some() {
            let to = dir.join(WEIGHTS_FILE);
            write_values(staging.path(), &to, layout, &[("", trained)])?;
        }
        let (m, v) = snapshot.moments;
        let moments = [("exp_avg.", m), ("exp_avg_sq.", v)];
        write_values(staging.path(), &dir.join(OPTIMIZER), layout, &moments)?;
        write_json(&dir.join(TRAINER), snapshot.state)?;
        write_json(&dir.join("lineage.json"), snapshot.lineage)?;
        write_json(&dir.join(HASHES), &hash_files(&dir)?)?;
        atomic::sync_dir(&dir).map_err(failed(&dir, "sync"))?;
        let path = self.path(snapshot.state.step);
        if path.exists() {
            // It was refused when the run went on from an earlier one.
            atomic::remove_dir(&path).map_err(failed(&path, "delete"))?;
        }
        fs::rename(&dir, &path).map_err(failed(&path, "move in place"))?;
        atomic::sync_dir(&self.dir).map_err(failed(&self.dir, "sync"))?;
        let mut steps = self.steps()?;
        // Later ones were refused when the run went on from here.
        steps.retain(|step| *step <= snapshot.state.step);
        for step in &steps[..steps.len().saturating_sub(self.keep)] {
            let old = self.path(*step);
            atomic::remove_dir(&old).map_err(failed(&old, "delete"))?;
        }
        Ok(path)
    }

    /// Writes an adapter as a directory of its own, whole or not at all; by way of this folder, which
    /// must be on the same file system and is cleaned when a run goes on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn write_adapter(
        &self,
        dir: &Path,
        layout: &Layout,
        values: &[f32],
        files: &[(String, Vec<u8>)],
    ) -> Result<(), StoreError> {
        let staging =
            tempfile::Builder::new().prefix(".adapter.").suffix(".tmp").tempdir_in(&self.dir);
        let staging = staging.map_err(failed(&self.dir, "create a folder in"))?;
        let whole = staging.path().join("whole");
        fs::create_dir(&whole).map_err(failed(&whole, "create"))?;
        write_values(staging.path(), &whole.join(WEIGHTS_FILE), layout, &[("", values)])?;
        for (name, bytes) in files {
            let path = whole.join(name);
            atomic::write_synced(&path, bytes).map_err(failed(&path, "write"))?;
        }
        if dir.exists() {
            atomic::remove_dir(dir).map_err(failed(dir, "delete"))?;
        }
        fs::rename(&whole, dir).map_err(failed(dir, "move in place"))?;
        let parent = dir.parent().unwrap_or(Path::new("."));
        atomic::sync_dir(parent).map_err(failed(parent, "sync"))
    }

    /// The newest whole checkpoint; every newer one goes to `refused` with its defect.
    ///
    /// # Errors
    /// [`StoreError::NoneGood`], [`StoreError::Io`].
    pub fn latest(
        &self,
        config: &Config,
        refused: &mut dyn FnMut(&Path, &StoreError),
    ) -> Result<Option<Saved>, StoreError> {
        self.remove_leftovers()?;
        let steps = self.steps()?;
        for step in steps.iter().rev() {
            match self.load(*step, config) {
                Ok(saved) => return Ok(Some(saved)),
                Err(error) => refused(&self.path(*step), &error),
            }
        }
        match steps.len() {
            0 => Ok(None),
            count => Err(StoreError::NoneGood { path: self.dir.clone(), count }),
        }
    }

    /// Reads the checkpoint of a step after checking every file's hash.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load(&self, step: u64, config: &Config) -> Result<Saved, StoreError> {
        let path = self.path(step);
        check_hashes(&path)?;
        let state: TrainerState = read_json(&path.join(TRAINER))?;
        let (layout, parameters) = match &self.adapter {
            None => {
                let layout = Layout::new(config);
                let parameters = layout.load(&Checkpoint::open(&path)?, config)?;
                (layout, parameters)
            }
            Some(layout) => {
                let adapter = Checkpoint::open(&path.join(WEIGHTS_FILE))?;
                (layout.clone(), read_values(&adapter, "", layout)?)
            }
        };
        let moments = Checkpoint::open(&path.join(OPTIMIZER))?;
        let exp_avg = read_values(&moments, "exp_avg.", &layout)?;
        let exp_avg_sq = read_values(&moments, "exp_avg_sq.", &layout)?;
        Ok(Saved { path, parameters, exp_avg, exp_avg_sq, state })
    }

    /// What a killed process was writing or deleting.
    fn remove_leftovers(&self) -> Result<(), StoreError> {
        for entry in fs::read_dir(&self.dir).map_err(failed(&self.dir, "list"))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') && name.ends_with(".tmp") {
                fs::remove_dir_all(entry.path()).map_err(failed(&entry.path(), "delete"))?;
            }
        }
        Ok(())
    }
}

/// Writes a model of bf16 weights as a Hugging Face directory, whole or not at all: as it is served.
/// Values round to nearest even; the config's dtype is the caller's.
///
/// # Errors
/// [`StoreError::Checkpoint`].
pub fn write_served(
    dir: &Path,
    layout: &Layout,
    parameters: &[f32],
    files: &[(String, Vec<u8>)],
) -> Result<(), StoreError> {
    let mut bytes = vec![0; 2 * parameters.len()];
    quantize_row(DType::Bf16, parameters, &mut bytes);
    let part = |range: &std::ops::Range<usize>| &bytes[2 * range.start..2 * range.end];
    write(dir, Dtype::Bf16, layout, &part, files, false)
}

/// Writes a model as a Hugging Face directory, whole or not at all.
///
/// # Errors
/// [`StoreError::Checkpoint`].
pub fn write_model(
    dir: &Path,
    layout: &Layout,
    parameters: &[f32],
    files: &[(String, Vec<u8>)],
    overwrite: bool,
) -> Result<(), StoreError> {
    let part = |range: &std::ops::Range<usize>| bytemuck::cast_slice(&parameters[range.clone()]);
    write(dir, Dtype::F32, layout, &part, files, overwrite)
}

fn write<'p>(
    dir: &Path,
    dtype: Dtype,
    layout: &Layout,
    part: &dyn Fn(&std::ops::Range<usize>) -> &'p [u8],
    files: &[(String, Vec<u8>)],
    overwrite: bool,
) -> Result<(), StoreError> {
    let info = |name: &str, shape: &[usize]| TensorInfo::new(name, dtype, shape);
    let slots = layout.slots();
    let tensors: Vec<_> = slots.iter().map(|s| info(&s.spec.name, &s.spec.shape)).collect();
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    let options = SafetensorsOptions { overwrite, ..SafetensorsOptions::default() };
    let mut writer = SafetensorsWriter::create(dir, &tensors, &files, &options)?;
    for slot in slots {
        writer.write(&slot.spec.name, part(&slot.range))?;
    }
    Ok(writer.finish()?)
}

/// BLAKE3 of every file in a directory.
fn hash_files(dir: &Path) -> Result<BTreeMap<String, String>, StoreError> {
    let mut hashes = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(failed(dir, "list"))? {
        let entry = entry.map_err(failed(dir, "list"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        hashes.insert(name, hash_file(&entry.path())?);
    }
    Ok(hashes)
}

/// BLAKE3 of a file, in hex.
///
/// # Errors
/// [`StoreError::Io`].
pub fn hash_file(path: &Path) -> Result<String, StoreError> {
    let file = File::open(path).map_err(failed(path, "open"))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(failed(path, "read"))?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn check_hashes(dir: &Path) -> Result<(), StoreError> {
    let list = dir.join(HASHES);
    let hashes: BTreeMap<String, String> = read_json(&list)?;
    for missing in [TRAINER, OPTIMIZER, "config.json"] {
        if !hashes.contains_key(missing) {
            return Err(StoreError::Unlisted { path: list, missing });
        }
    }
    for (name, expected) in hashes {
        let path = dir.join(&name);
        let found = hash_file(&path)?;
        if found != expected {
            return Err(StoreError::Hash { path, expected, found });
        }
    }
    Ok(())
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    let json = |cause| StoreError::Json { path: path.to_owned(), cause };
    let text = serde_json::to_string_pretty(value).map_err(json)? + "\n";
    atomic::write_synced(path, text.as_bytes()).map_err(failed(path, "write"))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, StoreError> {
    let text = fs::read(path).map_err(failed(path, "read"))?;
    let json = |cause| StoreError::Json { path: path.to_owned(), cause };
    serde_json::from_slice(&text).map_err(json)
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |cause| StoreError::Io { path, action, cause }
}

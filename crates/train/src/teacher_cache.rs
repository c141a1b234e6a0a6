//! A teacher's answers on disk: the k most probable tokens behind every token of a run's packs.
//!
//! ```text
//! CACHE/manifest.json       what the answers are of; written last, so that a cache is whole
//! CACHE/step-000001.topk    the packs of a step: BLAKE3, then for each pack its tokens, k ids (u32)
//!                           and k probabilities (f32) for each token
//! ```
//! The rest of the vocabulary is one bucket, `1 − Σ p`, so nothing is renormalized. A cache is bound
//! to the teacher's weights, the data with its tokenizer, and the temperature; others are refused.

use crate::atomic;
use crate::comm::LocalComm;
use crate::distil::Weighted;
use crate::objective::{Batches, BoxError, Policy};
use hybra_kernels::ops::product::{Write, product};
use hybra_kernels::{Cpu, MatMut, MatRef};
use hybra_model::training::{PackedBatch, SoftLabels, Tape};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};

const FORMAT: &str = "hybra teacher cache 1";
const MANIFEST: &str = "manifest.json";

/// What the answers are of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the files.
    format: String,
    /// BLAKE3 of the teacher's weights; empty of a run that does not have them.
    pub teacher: String,
    /// Checksum of data, settings and tokenizer, phase by phase.
    pub data: String,
    /// τ.
    pub temperature: f32,
    /// k.
    pub top_k: usize,
    /// Steps.
    pub steps: u64,
}

impl Manifest {
    /// Of a cache to be made.
    #[must_use]
    pub fn new(teacher: String, data: String, temperature: f32, top_k: usize, steps: u64) -> Self {
        Self { format: FORMAT.to_owned(), teacher, data, temperature, top_k, steps }
    }
}

/// Why a cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A file cannot be read or written.
    #[error("{}: {cause}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The manifest is no manifest.
    #[error("{}: {cause}; expected a folder that `hybra train cache` wrote to its end", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// It was made of something else.
    #[error("{}: `{field}` is {found}, but the run has {expected}: make a new cache", path.display())]
    Other {
        /// The folder.
        path: PathBuf,
        /// Such as `teacher`.
        field: &'static str,
        /// Of the run.
        expected: String,
        /// Of the cache.
        found: String,
    },
    /// A file that is torn or was changed.
    #[error("{}: damaged: {what}; make a new cache", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What.
        what: &'static str,
    },
}

fn file(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("step-{:06}.topk", step + 1))
}

/// Writes the answers of a teacher to every step of `batches` that is not there yet; `progress` is
/// told the steps that are done.
///
/// # Errors
/// [`CacheError`], or what is wrong with the data.
pub fn write(
    cpu: &Cpu,
    dir: &Path,
    manifest: &Manifest,
    teacher: &Weighted,
    batches: &mut dyn Batches,
    progress: &mut dyn FnMut(u64),
) -> Result<(), BoxError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |cause| CacheError::Io { path, cause }
    };
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    // What a former run of the same command was making; another cache is refused.
    let begun = dir.join("begun.json");
    let text = serde_json::to_string_pretty(manifest)? + "\n";
    match std::fs::read_to_string(&begun) {
        Ok(old) => compare(dir, manifest, &parse(&begun, &old)?, true)?,
        Err(_) => atomic::write(&begun, text.as_bytes()).map_err(io(&begun))?,
    }
    let mut tape = Tape::default();
    // Data that ask the model under training cannot be answered beforehand.
    let comm = LocalComm::single();
    let policy = Policy { parameters: &[], comm: &comm };
    for step in 0..manifest.steps {
        let packs = batches.step(&policy)?;
        let path = file(dir, step);
        if !path.exists() {
            let answers = packs.iter().map(|pack| top_k(cpu, manifest, teacher, pack, &mut tape));
            let bytes = encode(&answers.collect::<Vec<_>>());
            atomic::write(&path, &bytes).map_err(io(&path))?;
        }
        progress(step + 1);
    }
    let path = dir.join(MANIFEST);
    Ok(atomic::write(&path, text.as_bytes()).map_err(io(&path))?)
}

/// The k most probable tokens behind each token, and their probabilities at the temperature.
fn top_k(
    cpu: &Cpu,
    manifest: &Manifest,
    teacher: &Weighted,
    pack: &PackedBatch,
    tape: &mut Tape,
) -> SoftLabels {
    /// Rows of logits at a time.
    const ROWS: usize = 64;
    let (k, model) = (manifest.top_k, &teacher.model);
    model.forward(cpu, &teacher.parameters, pack, &vec![1.0; pack.tokens.len()], tape);
    let (h, head) = (model.config().hidden_size, model.head(&teacher.parameters));
    let vocab = head.rows();
    let mut labels = SoftLabels { k, ids: Vec::new(), probs: Vec::new() };
    let mut logits = vec![0.0; ROWS * vocab];
    let mut order: Vec<u32> = Vec::new();
    for rows in tape.normed().chunks(ROWS * h) {
        let count = rows.len() / h;
        let out = MatMut::new(&mut logits[..count * vocab], vocab);
        product(cpu, MatRef::new(rows, h), head.t(), out, Write::Store);
        for row in logits[..count * vocab].chunks_exact(vocab) {
            let scaled = |id: u32| f64::from(row[id as usize] / manifest.temperature);
            order.clear();
            order.extend(0..vocab as u32);
            let better =
                |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
            if k < vocab {
                order.select_nth_unstable_by(k, better);
            }
            order[..k].sort_unstable_by(better);
            let top = scaled(order[0]);
            let total: f64 = (0..vocab as u32).map(|id| (scaled(id) - top).exp()).sum();
            labels.ids.extend_from_slice(&order[..k]);
            let prob = |id: &u32| ((scaled(*id) - top).exp() / total) as f32;
            labels.probs.extend(order[..k].iter().map(prob));
        }
    }
    labels
}

fn encode(packs: &[SoftLabels]) -> Vec<u8> {
    let mut body = (packs.len() as u32).to_le_bytes().to_vec();
    for pack in packs {
        body.extend((pack.ids.len() as u32).to_le_bytes());
        body.extend(pack.ids.iter().flat_map(|id| id.to_le_bytes()));
        body.extend(pack.probs.iter().flat_map(|prob| prob.to_le_bytes()));
    }
    let mut bytes = blake3::hash(&body).as_bytes().to_vec();
    bytes.extend(body);
    bytes
}

/// The packs of a step; `None` if the bytes are not what [`encode`] makes of `k`.
fn decode(bytes: &[u8], k: usize) -> Option<Vec<SoftLabels>> {
    let (hash, mut body) = bytes.split_at_checked(32)?;
    if blake3::hash(body).as_bytes() != hash {
        return None;
    }
    let mut numbers = |count: usize| {
        let (part, rest) = body.split_at_checked(4 * count)?;
        body = rest;
        Some(part.chunks_exact(4).map(|b| b.try_into().expect("4 bytes")).collect::<Vec<[u8; 4]>>())
    };
    let count = u32::from_le_bytes(numbers(1)?[0]);
    let mut packs = Vec::new();
    for _ in 0..count {
        let len = u32::from_le_bytes(numbers(1)?[0]) as usize;
        let ids = numbers(len)?.into_iter().map(u32::from_le_bytes).collect();
        let probs = numbers(len)?.into_iter().map(f32::from_le_bytes).collect();
        packs.push(SoftLabels { k, ids, probs });
    }
    Some(packs)
}

fn parse(path: &Path, text: &str) -> Result<Manifest, CacheError> {
    let wrong = |cause: String| CacheError::Manifest { path: path.to_owned(), cause };
    let manifest: Manifest =
        serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    match manifest.format == FORMAT {
        true => Ok(manifest),
        false => Err(wrong(format!("format {:?}, expected {FORMAT:?}", manifest.format))),
    }
}

/// Refuses a cache of something else; `exactly`: of another length, too.
fn compare(dir: &Path, run: &Manifest, cache: &Manifest, exactly: bool) -> Result<(), CacheError> {
    let other = |field, expected: &dyn ToString, found: &dyn ToString| CacheError::Other {
        path: dir.to_owned(),
        field,
        expected: expected.to_string(),
        found: found.to_string(),
    };
    if run.data != cache.data {
        return Err(other("data", &run.data, &cache.data));
    }
    // A run may have the cache alone.
    if !run.teacher.is_empty() && run.teacher != cache.teacher {
        return Err(other("teacher", &run.teacher, &cache.teacher));
    }
    if run.temperature != cache.temperature {
        return Err(other("temperature", &run.temperature, &cache.temperature));
    }
    if run.steps > cache.steps || exactly && run.steps != cache.steps {
        return Err(other("steps", &run.steps, &cache.steps));
    }
    if exactly && run.top_k != cache.top_k {
        return Err(other("top_k", &run.top_k, &cache.top_k));
    }
    Ok(())
}

/// Batches with the teacher's answers beside them.
pub struct CachedBatches {
    dir: PathBuf,
    top_k: usize,
    batches: Box<dyn Batches>,
    step: u64,
}

impl CachedBatches {
    /// Opens a cache for a run, whose manifest `run` is (its k does not count).
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn open(dir: &Path, run: &Manifest, batches: Box<dyn Batches>) -> Result<Self, CacheError> {
        let path = dir.join(MANIFEST);
        let wrong = |cause: io::Error| CacheError::Manifest {
            path: path.clone(),
            cause: cause.to_string(),
        };
        let manifest = parse(&path, &std::fs::read_to_string(&path).map_err(wrong)?)?;
        compare(dir, run, &manifest, false)?;
        Ok(Self { dir: dir.to_owned(), top_k: manifest.top_k, batches, step: 0 })
    }
}

impl Batches for CachedBatches {
    fn step(&mut self, policy: &Policy) -> Result<Vec<PackedBatch>, BoxError> {
        let mut packs = self.batches.step(policy)?;
        let path = file(&self.dir, self.step);
        let bytes = std::fs::read(&path);
        let bytes = bytes.map_err(|cause| CacheError::Io { path: path.clone(), cause })?;
        let damaged = |what| CacheError::Damaged { path: path.clone(), what };
        let answers = decode(&bytes, self.top_k).ok_or_else(|| damaged("its checksum is wrong"))?;
        let fits = |(pack, labels): (&PackedBatch, &SoftLabels)| {
            pack.tokens.len() * labels.k == labels.ids.len()
        };
        if answers.len() != packs.len() || !packs.iter().zip(&answers).all(fits) {
            return Err(Box::new(damaged("it is of other packs")));
        }
        packs.iter_mut().zip(answers).for_each(|(pack, labels)| pack.soft_labels = Some(labels));
        self.step += 1;
        Ok(packs)
    }

    fn fingerprint(&self) -> String {
        self.batches.fingerprint()
    }

    fn state(&self) -> Value {
        serde_json::json!({ "step": self.step, "batches": self.batches.state() })
    }

    fn restore(&mut self, state: &Value) -> Result<(), BoxError> {
        self.batches.restore(&state["batches"])?;
        self.step = state["step"].as_u64().ok_or("no `step` of the cache in the checkpoint")?;
        Ok(())
    }
}

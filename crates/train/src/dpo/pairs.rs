//! Pairs of answers from a file, as micro-batches.
//!
//! A line of JSONL is `{"prompt": …, "chosen": …, "rejected": …}`, each messages or a text (of the
//! user, of the assistant), and `tools` where the prompt has some: the form of preference data that
//! TRL reads, and that `hybra train pairs` writes. Both answers follow the same prompt, token by
//! token, and only the last turn counts.
//!
//! Which pairs a step has is a function of seed and step.

use super::precompute::Reader;
use crate::data::draw::{Draws, Permutation, Purpose};
use crate::data::{DataError, Document, Place, Record, SampleEncoder};
use crate::objective::{Batches, BoxError, Policy};
use hybra_model::training::PackedBatch;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// `[data]` of a DPO run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairConfig {
    /// The file.
    pub path: PathBuf,
    /// Order of the pairs.
    #[serde(default)]
    pub seed: u64,
    /// Most tokens of a micro-batch, and of a pair.
    pub pack_len: usize,
    /// Pairs of a step.
    pub batch_size: usize,
}

/// Why pairs cannot be learned.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// A message that cannot be learned, or a file that cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A line that is no pair.
    #[error("{}, line {line}: {defect}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        defect: String,
    },
    /// A file without pairs.
    #[error("{}: no pairs; expected lines with prompt, chosen and rejected", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A setting out of range.
    #[error("`{field}`: expected {expected}, found {found}")]
    Setting {
        /// The key.
        field: &'static str,
        /// What would do.
        expected: &'static str,
        /// What it is.
        found: usize,
    },
}

/// Two answers to one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The better one, with the prompt.
    pub chosen: Document,
    /// The worse one, with the prompt.
    pub rejected: Document,
}

impl Pair {
    pub(super) fn len(&self) -> usize {
        self.chosen.tokens.len() + self.rejected.tokens.len()
    }

    pub(super) fn push_to(&self, pack: &mut PackedBatch) {
        self.chosen.push_to(pack);
        self.rejected.push_to(pack);
    }
}

/// The micro-batches of a run.
pub struct PairBatches {
    pub(super) config: PairConfig,
    pub(super) pairs: Vec<Pair>,
    /// What the reference says of each pair's tokens; empty where each step asks it.
    pub(super) reference: Vec<Vec<f32>>,
    /// Who will say it.
    pub(super) reader: Option<Reader>,
    fingerprint: String,
    step: u64,
}

impl PairBatches {
    /// Reads and encodes all pairs.
    ///
    /// # Errors
    /// [`PairError`].
    pub fn open(config: &PairConfig, encoder: &SampleEncoder) -> Result<Self, PairError> {
        if config.batch_size == 0 {
            let field = "batch_size";
            return Err(PairError::Setting { field, expected: "at least 1", found: 0 });
        }
        let path = config.path.clone();
        let text = std::fs::read_to_string(&path)
            .map_err(|cause| DataError::Io { path: path.clone(), cause })?;
        let mut pairs = Vec::new();
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        for (at, line) in lines {
            let fail = |defect| PairError::Line { path: path.clone(), line: at + 1, defect };
            let value: Value = serde_json::from_str(line)
                .map_err(|error| fail(format!("not valid JSON: {error}")))?;
            let pair = pair(&path, at as u64, value, encoder)?;
            if pair.len() > config.pack_len {
                let (len, most) = (pair.len(), config.pack_len);
                return Err(fail(format!("{len} tokens; `data.pack_len` allows {most}")));
            }
            pairs.push(pair);
        }
        if pairs.is_empty() {
            return Err(PairError::Empty { path });
        }
        let mut hash = blake3::Hasher::new();
        let settings = PairConfig { path: PathBuf::new(), ..config.clone() };
        hash.update(&serde_json::to_vec(&settings).expect("settings are JSON"));
        hash.update(text.as_bytes());
        hash.update(encoder.tokenizer().to_json().as_bytes());
        let fingerprint = hash.finalize().to_hex().to_string();
        let (config, reference) = (config.clone(), Vec::new());
        Ok(Self { config, pairs, reference, reader: None, fingerprint, step: 0 })
    }

    /// All pairs, in the order of the file.
    #[must_use]
    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// Place of the run's pair `index`, epoch by epoch, each in an order of its own.
    fn pick(&self, index: u64) -> usize {
        let n = self.pairs.len() as u64;
        let draws = Draws::new(self.config.seed, Purpose::Epoch, 0, index / n);
        Permutation::new(n, draws).at(index % n) as usize
    }
}

impl Batches for PairBatches {
    fn step(&mut self, policy: &Policy) -> Result<Vec<PackedBatch>, BoxError> {
        self.precompute(policy.comm)?;
        let size = self.config.batch_size as u64;
        let picked = (self.step * size..(self.step + 1) * size).map(|index| self.pick(index));
        let picked: Vec<usize> = picked.collect();
        let ranks = policy.comm.size();
        if picked.len() < ranks {
            return Err(
                format!("data.batch_size: expected a pair for each of {ranks} ranks").into()
            );
        }
        // A rank has at least one pair; beyond that packs are filled in order.
        let most = picked.len() / ranks;
        let mut packs: Vec<(usize, usize, PackedBatch)> = Vec::new();
        for at in picked {
            let pair = &self.pairs[at];
            let fits = |&(tokens, count, _): &(usize, usize, PackedBatch)| {
                tokens + pair.len() <= self.config.pack_len && count < most
            };
            if !packs.last().is_some_and(fits) {
                packs.push((0, 0, PackedBatch::default()));
            }
            let (tokens, count, pack) = packs.last_mut().expect("one was pushed");
            pair.push_to(pack);
            if let Some(reference) = self.reference.get(at) {
                pack.reference.get_or_insert_default().extend(reference);
            }
            (*tokens, *count) = (*tokens + pair.len(), *count + 1);
        }
        self.step += 1;
        Ok(packs.into_iter().map(|(_, _, pack)| pack).collect())
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    fn state(&self) -> Value {
        json!({ "step": self.step, "fingerprint": self.fingerprint })
    }

    fn restore(&mut self, state: &Value) -> Result<(), BoxError> {
        match (state["fingerprint"].as_str() == Some(&self.fingerprint), state["step"].as_u64()) {
            (true, Some(step)) => {
                self.step = step;
                Ok(())
            }
            _ => Err(format!("pairs: expected those of {}", self.fingerprint).into()),
        }
    }
}

/// A line as two documents.
fn pair(path: &Path, at: u64, value: Value, encoder: &SampleEncoder) -> Result<Pair, PairError> {
    let fail =
        |defect: String| PairError::Line { path: path.to_owned(), line: at as usize + 1, defect };
    let Value::Object(mut fields) = value else {
        return Err(fail("expected an object with prompt, chosen and rejected".to_owned()));
    };
    let mut take = |name: &str, role: &str| match fields.shift_remove(name) {
        Some(Value::String(text)) => Ok(vec![json!({ "role": role, "content": text })]),
        Some(Value::Array(messages)) if !messages.is_empty() => Ok(messages),
        other => {
            let found = other.map_or("nothing".to_owned(), |other| other.to_string());
            let found: String = found.chars().take(64).collect();
            Err(fail(format!("`{name}`: expected messages or a text, found {found}")))
        }
    };
    let prompt = take("prompt", "user")?;
    let (chosen, rejected) = (take("chosen", "assistant")?, take("rejected", "assistant")?);
    let tools = fields.shift_remove("tools").filter(|tools| !tools.is_null());
    let source = path.to_string_lossy().into();
    let place = Place { source, unit: "line", number: at + 1 };
    let document = |answer: Vec<Value>| -> Result<Document, PairError> {
        let mut record = Map::new();
        let messages: Vec<Value> = prompt.iter().cloned().chain(answer).collect();
        record.insert("messages".to_owned(), Value::Array(messages));
        record.extend(tools.clone().map(|tools| ("tools".to_owned(), tools)));
        let record = Record::from_json(Value::Object(record), &place, &[])?;
        encoder.last_turn(record, &place)?.ok_or_else(|| {
            fail("expected the answers to end with an assistant's message".to_owned())
        })
    };
    let pair = Pair { chosen: document(chosen)?, rejected: document(rejected)? };
    if pair.chosen == pair.rejected {
        return Err(fail("`chosen` and `rejected` are the same".to_owned()));
    }
    Ok(pair)
}

//! [`Corpus`]: sample `i` of a run. [`DataLoader`]: the packs of each step, in order.
//!
//! The loader's state is the next sample and the names of the documents that wait in the pool;
//! restored, it gives the same packs as if it had never stopped. The state names the data and the
//! settings by a checksum and is refused by others.

use super::config::{DataConfig, TooLong};
use super::draw::{Draws, Purpose};
use super::error::{DataError, Place};
use super::mixture::{Mixture, Pick};
use super::packing::best_fit;
use super::record::Record;
use super::sample::{Document, SampleEncoder};
use super::source::{Generator, Source};
use hybra_model::training::PackedBatch;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// So many samples in a row that are all dropped end a run.
const MAX_DROPPED_IN_A_ROW: u64 = 10_000;

/// Sample by sample, the data of a run.
pub struct Corpus {
    config: DataConfig,
    sources: Vec<Source>,
    mixture: Mixture,
    encoder: SampleEncoder,
    fingerprint: String,
}

/// A sample of a run.
#[derive(Debug)]
pub struct Sample {
    /// Its record.
    pub pick: Pick,
    /// Where that is.
    pub place: Place,
    /// What is learned from it. A document that was dropped as too long leaves its number free.
    pub documents: Vec<Option<Document>>,
}

impl Sample {
    /// Documents that were too long.
    #[must_use]
    pub fn num_dropped(&self) -> u64 {
        self.documents.iter().filter(|document| document.is_none()).count() as u64
    }
}

impl Corpus {
    /// Opens the sources of a run. Paths are relative to the working directory; `task` makes the
    /// generator for a name and its arguments, or says what is wrong with them.
    ///
    /// # Errors
    /// Settings out of range, files that cannot be read, tasks that are unknown.
    pub fn open(
        config: &DataConfig,
        encoder: SampleEncoder,
        task: &dyn Fn(&str, &Map<String, Value>) -> Result<Generator, String>,
    ) -> Result<Self, DataError> {
        config.validate()?;
        let mut sources = Vec::with_capacity(config.sources.len());
        for (index, source) in config.sources.iter().enumerate() {
            sources.push(match (&source.path, &source.task) {
                (Some(path), _) => Source::open(path)?,
                (None, name) => {
                    let name = name.as_deref().unwrap_or_default();
                    let generator =
                        task(name, &source.args).map_err(|found| DataError::Config {
                            field: format!("sources[{index}].task"),
                            expected: "a known task with its arguments",
                            found,
                        })?;
                    let args = Value::Object(source.args.clone()).to_string();
                    Source::generated(name, &args, generator)
                }
            });
        }
        let shares = config.sources.iter().zip(&sources);
        let shares: Vec<_> = shares.map(|(c, source)| (c.weight, source.num_records())).collect();
        let mixture = Mixture::new(config.seed, &shares);
        let fingerprint = fingerprint(config, &sources, &encoder);
        Ok(Self { config: config.clone(), sources, mixture, encoder, fingerprint })
    }

    /// The settings.
    pub fn config(&self) -> &DataConfig {
        &self.config
    }

    /// The sources, in the order of the settings.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The maker of documents.
    pub fn encoder(&self) -> &SampleEncoder {
        &self.encoder
    }

    /// Checksum of data, settings and tokenizer.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Sample `index` of the run, from 0, without end.
    ///
    /// # Errors
    /// A record that is damaged, or a document that is too long where that is an error.
    pub fn sample(&self, index: u64) -> Result<Sample, DataError> {
        let pick = self.mixture.pick(index);
        let (source, options) = (&self.sources[pick.source], &self.config.sources[pick.source]);
        let place = source.place(pick.record);
        let record = Record::from_json(source.record(pick.record)?, &place, &options.ignore)?;
        let mut draws = Draws::new(self.config.seed, Purpose::Trace, pick.source as u64, index);
        let documents = self.encoder.documents(&record, options, &place, &mut draws)?;
        let max_len = options.max_len.unwrap_or(self.config.pack_len);
        let fitting = |document: Document| match document.tokens.len() {
            len if len <= max_len => Ok(Some(document)),
            _ if options.too_long == TooLong::Drop => Ok(None),
            len => Err(DataError::TooLong { place: place.clone(), len, max_len }),
        };
        let documents = documents.into_iter().map(fitting).collect::<Result<_, _>>()?;
        Ok(Sample { pick, place, documents })
    }
}

fn fingerprint(config: &DataConfig, sources: &[Source], encoder: &SampleEncoder) -> String {
    let mut hash = blake3::Hasher::new();
    let mut add = |text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    let mut config = config.clone();
    // Files may move; their content may not change.
    config.sources.iter_mut().for_each(|source| source.path = None);
    add(&serde_json::to_string(&config).expect("settings are JSON"));
    sources.iter().for_each(|source| add(source.fingerprint()));
    add(&encoder.tokenizer().to_json());
    add(&encoder.tokenizer().to_config_json());
    hash.finalize().to_hex().to_string()
}

/// Where a loader is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// The next step.
    pub step: u64,
    /// The next sample to read.
    pub next_sample: u64,
    /// Documents that wait: sample, and number in the sample; oldest first.
    pub pool: Vec<(u64, u32)>,
    /// Documents dropped so far as too long.
    pub num_dropped: u64,
    /// [`Corpus::fingerprint`].
    pub fingerprint: String,
}

/// Gives the packs of a run, step after step.
pub struct DataLoader {
    corpus: Corpus,
    state: LoaderState,
    /// The documents of `state.pool`.
    documents: Vec<Document>,
}

impl DataLoader {
    /// At the beginning of a run.
    pub fn new(corpus: Corpus) -> Self {
        let fingerprint = corpus.fingerprint.clone();
        let state = LoaderState { fingerprint, ..LoaderState::default() };
        Self { corpus, state, documents: Vec::new() }
    }

    /// At another sample than the first; before the first step.
    ///
    /// # Panics
    /// If there was a step.
    pub fn begin_at(&mut self, sample: u64) {
        assert_eq!((self.state.step, self.documents.len()), (0, 0), "before the first step");
        self.state.next_sample = sample;
    }

    /// The data.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// What a checkpoint keeps.
    pub fn state(&self) -> &LoaderState {
        &self.state
    }

    /// Goes to a saved state.
    ///
    /// # Errors
    /// A state of other data or settings; the loader stays where it was.
    pub fn restore(&mut self, state: LoaderState) -> Result<(), DataError> {
        let wrong =
            |field, expected: String, found: String| DataError::State { field, expected, found };
        if state.fingerprint != self.corpus.fingerprint {
            let expected = self.corpus.fingerprint.clone();
            return Err(wrong("fingerprint", expected, state.fingerprint));
        }
        let mut documents = Vec::with_capacity(state.pool.len().min(self.corpus.config.pool * 2));
        for &(sample, number) in &state.pool {
            let found = self.corpus.sample(sample)?.documents;
            let document = found.into_iter().nth(number as usize).flatten();
            documents.push(document.ok_or_else(|| {
                wrong("pool", "documents of the data".to_owned(), format!("{sample}/{number}"))
            })?);
        }
        (self.state, self.documents) = (state, documents);
        Ok(())
    }

    /// The packs of step `step`, `batch_size` of them. Steps come in order.
    ///
    /// # Errors
    /// Another step than the next one, and faults of the data; the loader stays where it was.
    pub fn step(&mut self, step: u64) -> Result<Vec<PackedBatch>, DataError> {
        if step != self.state.step {
            let (expected, found) = (self.state.step.to_string(), step.to_string());
            return Err(DataError::State { field: "step", expected, found });
        }
        let (state, documents) = (self.state.clone(), self.documents.clone());
        let packs: Result<_, _> =
            (0..self.corpus.config.batch_size).map(|_| self.next_pack()).collect();
        match packs {
            Ok(_) => self.state.step += 1,
            Err(_) => (self.state, self.documents) = (state, documents),
        }
        packs
    }

    fn next_pack(&mut self) -> Result<PackedBatch, DataError> {
        self.fill_pool()?;
        let lengths: Vec<usize> = self.documents.iter().map(|d| d.tokens.len()).collect();
        let mut taken = best_fit(&lengths, self.corpus.config.pack_len);
        let mut pack = PackedBatch::default();
        for &at in &taken {
            let document = &self.documents[at];
            document.push_to(&mut pack);
        }
        taken.sort_unstable();
        for &at in taken.iter().rev() {
            self.documents.remove(at);
            self.state.pool.remove(at);
        }
        Ok(pack)
    }

    fn fill_pool(&mut self) -> Result<(), DataError> {
        let mut without = 0;
        while self.documents.len() < self.corpus.config.pool {
            let index = self.state.next_sample;
            let sample = self.corpus.sample(index)?;
            self.state.next_sample += 1;
            self.state.num_dropped += sample.num_dropped();
            let before = self.documents.len();
            for (number, document) in (0..).zip(sample.documents) {
                if let Some(document) = document {
                    self.documents.push(document);
                    self.state.pool.push((index, number));
                }
            }
            without = if self.documents.len() > before { 0 } else { without + 1 };
            if without >= MAX_DROPPED_IN_A_ROW {
                return Err(DataError::NothingFits { num_samples: without });
            }
        }
        Ok(())
    }
}

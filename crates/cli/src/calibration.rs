//! Calibration documents of the command line: files, tasks or a run file's `[data]`, as tokens of
//! the model's own tokenizer and template.

use crate::source::{self, Source};
use anyhow::{Context, Result, bail};
use hybra_chat::ChatModel;
use hybra_model::Config;
use hybra_model::training::PackedBatch;
use hybra_train::RunConfig;
use hybra_train::data::{
    Corpus, DataConfig, Document, SampleEncoder, SourceConfig, TooLong, task_generator,
};
use std::path::PathBuf;
use toml::Table;

/// Where calibration documents come from.
#[derive(clap::Args)]
#[command(next_help_heading = "Calibration")]
pub(crate) struct CalibrationArgs {
    /// Take the blend of a run file's `data` table: best what the model was trained on
    #[arg(long, value_name = "RUN.toml", conflicts_with_all = ["data", "task"])]
    config: Option<PathBuf>,
    /// Conversations or texts, JSONL or Parquet; may be repeated
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,
    /// A generated task (`hybra data`); may be repeated
    #[arg(long, value_name = "TASK")]
    task: Vec<String>,
    /// Samples
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..))]
    samples: u64,
    /// Longer documents are left out
    #[arg(long, value_name = "TOKENS", default_value_t = 4096)]
    max_len: usize,
    /// Which samples
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Samples of a blend.
pub(crate) struct Calibration {
    data: DataConfig,
    samples: u64,
}

/// The first `samples` of a run file's `[data]` in the order of another seed.
pub(crate) fn of_table(data: &Table, samples: u64, seed: u64) -> Result<Calibration> {
    let data: DataConfig = data.clone().try_into().context("[data]")?;
    Ok(Calibration::new(DataConfig { seed, ..data }, samples))
}

impl CalibrationArgs {
    /// The samples that the command line asks for.
    pub(crate) fn calibration(&self) -> Result<Calibration> {
        if let Some(path) = &self.config {
            let run = RunConfig::read(path, &[])?;
            let data: DataConfig = run.data.try_into().context("[data]")?;
            let data = DataConfig { pack_len: self.max_len, seed: self.seed, ..data };
            return Ok(Calibration::new(data, self.samples));
        }
        let base = SourceConfig::default;
        let file = |path: &PathBuf| SourceConfig { path: Some(path.clone()), ..base() };
        let task = |name: &String| SourceConfig { task: Some(name.clone()), ..base() };
        let sources: Vec<_> =
            self.data.iter().map(file).chain(self.task.iter().map(task)).collect();
        if sources.is_empty() {
            bail!("calibration data: expected --config RUN.toml, --data FILE or --task TASK");
        }
        let (seed, pack_len) = (self.seed, self.max_len);
        let data = DataConfig { seed, pack_len, batch_size: 1, pool: 1, sources };
        Ok(Calibration::new(data, self.samples))
    }
}

impl Calibration {
    fn new(mut data: DataConfig, samples: u64) -> Self {
        data.sources.iter_mut().for_each(|source| source.too_long = TooLong::Drop);
        Self { data, samples }
    }

    /// The tokens of the documents.
    pub(crate) fn tokens(&self, source: &Source, config: &Config) -> Result<Vec<Vec<u32>>> {
        let documents = self.documents(source, config)?;
        Ok(documents.into_iter().map(|document| document.tokens).collect())
    }

    /// The documents laid end to end, several thousand tokens in a pack.
    pub(crate) fn packs(&self, source: &Source, config: &Config) -> Result<Vec<PackedBatch>> {
        const PACK_TOKENS: usize = 4096;
        let mut packs = vec![PackedBatch::default()];
        for document in self.documents(source, config)? {
            let filled = packs.last().expect("at least one").tokens.len();
            if filled > 0 && filled + document.tokens.len() > PACK_TOKENS {
                packs.push(PackedBatch::default());
            }
            document.push_to(packs.last_mut().expect("at least one"));
        }
        Ok(packs)
    }

    fn documents(&self, source: &Source, config: &Config) -> Result<Vec<Document>> {
        let loaded = source::load_tokenizer(source, config)?;
        let source::LoadedTokenizer { tokenizer, eos_token_ids, defaults } = loaded;
        let model = ChatModel::new(source.name.clone(), tokenizer, eos_token_ids, defaults)?;
        let encoder = SampleEncoder::new(model)?;
        let corpus = Corpus::open(&self.data, encoder, &task_generator).context("calibration")?;
        let mut documents = Vec::new();
        for index in 0..self.samples {
            documents.extend(corpus.sample(index)?.documents.into_iter().flatten());
        }
        if documents.is_empty() {
            bail!("calibration: no document has at most {} tokens", self.data.pack_len);
        }
        Ok(documents)
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        let (samples, seed) = (self.samples, self.data.seed);
        format!("{samples} samples, seed {seed}, of {}", name(&self.data))
    }
}

fn name(data: &DataConfig) -> String {
    let name = |source: &SourceConfig| match (&source.path, &source.task) {
        (Some(path), _) => path.display().to_string(),
        (None, task) => task.clone().unwrap_or_default(),
    };
    data.sources.iter().map(name).collect::<Vec<_>>().join(", ")
}

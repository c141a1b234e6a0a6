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

/// Where calibration documents come from.
#[derive(clap::Args)]
#[command(next_help_heading = "Calibration")]
pub(crate) struct CalibrationArgs {
    /// Take the blend of a run file's [data]: best what the model was trained on
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

impl CalibrationArgs {
    /// The tokens of the documents, and what they are, for people.
    pub(crate) fn tokens(
        &self,
        source: &Source,
        config: &Config,
    ) -> Result<(Vec<Vec<u32>>, String)> {
        let (documents, text) = self.documents(source, config)?;
        Ok((documents.into_iter().map(|document| document.tokens).collect(), text))
    }

    /// The documents laid end to end, several thousand tokens in a pack.
    pub(crate) fn packs(
        &self,
        source: &Source,
        config: &Config,
    ) -> Result<(Vec<PackedBatch>, String)> {
        const PACK_TOKENS: usize = 4096;
        let (documents, text) = self.documents(source, config)?;
        let mut packs = vec![PackedBatch::default()];
        for document in &documents {
            let filled = packs.last().expect("at least one").tokens.len();
            if filled > 0 && filled + document.tokens.len() > PACK_TOKENS {
                packs.push(PackedBatch::default());
            }
            let pack = packs.last_mut().expect("at least one");
            document.push_to(pack);
        }
        Ok((packs, text))
    }

    fn documents(&self, source: &Source, config: &Config) -> Result<(Vec<Document>, String)> {
        let data = self.data()?;
        let loaded = source::load_tokenizer(source, config)?;
        let source::LoadedTokenizer { tokenizer, eos_token_ids, defaults } = loaded;
        let model = ChatModel::new(source.name.clone(), tokenizer, eos_token_ids, defaults)?;
        let encoder = SampleEncoder::new(model)?;
        let corpus = Corpus::open(&data, encoder, &task_generator).context("calibration")?;
        let mut documents = Vec::new();
        for index in 0..self.samples {
            let sample = corpus.sample(index)?;
            documents.extend(sample.documents.into_iter().flatten());
        }
        if documents.is_empty() {
            bail!("calibration: no document has at most {} tokens; see --max-len", self.max_len);
        }
        let text = format!("{} samples, seed {}, of {}", self.samples, self.seed, name(&data));
        Ok((documents, text))
    }

    fn data(&self) -> Result<DataConfig> {
        if let Some(path) = &self.config {
            let run = RunConfig::read(path, &[])?;
            let mut data: DataConfig = run.data.try_into().context("[data]")?;
            (data.pack_len, data.seed) = (self.max_len, self.seed);
            data.sources.iter_mut().for_each(|source| source.too_long = TooLong::Drop);
            return Ok(data);
        }
        let base = SourceConfig { too_long: TooLong::Drop, ..SourceConfig::default() };
        let file = |path: &PathBuf| SourceConfig { path: Some(path.clone()), ..base.clone() };
        let task = |name: &String| SourceConfig { task: Some(name.clone()), ..base.clone() };
        let sources: Vec<_> =
            self.data.iter().map(file).chain(self.task.iter().map(task)).collect();
        if sources.is_empty() {
            bail!("calibration data: expected --config RUN.toml, --data FILE or --task TASK");
        }
        let (seed, pack_len) = (self.seed, self.max_len);
        Ok(DataConfig { seed, pack_len, batch_size: 1, pool: 1, sources })
    }
}

fn name(data: &DataConfig) -> String {
    let name = |source: &SourceConfig| match (&source.path, &source.task) {
        (Some(path), _) => path.display().to_string(),
        (None, task) => task.clone().unwrap_or_default(),
    };
    data.sources.iter().map(name).collect::<Vec<_>>().join(", ")
}

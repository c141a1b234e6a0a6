//! `hybra init`: a checkpoint of random weights, of any size.
//!
//! The weights keep activations finite and of the same size in all layers, so speed, memory and
//! formats can be tried without a trained model. The checkpoint has a tokenizer and a chat
//! template: every command takes it. The same preset, type and seed give the same bytes.

mod vocabulary;

use crate::convert::metadata::{Vocabulary, config_files, gguf_metadata};
use crate::convert::output::{Beside, Container, OutTensor, Output, StoredType, to_decay_rates};
use crate::convert::{report_fallbacks, summary};
use crate::cpu::CpuArgs;
use crate::source::{self, Described};
use anyhow::{Context, Result, bail};
use hybra_chat::GenerationDefaults;
use hybra_kernels::Cpu;
use hybra_model::config::Config;
use hybra_model::memory::WeightFormat;
use hybra_model::random::RandomTensor;
use hybra_model::tensors::{GgufTransform, tensor_specs};
use hybra_tokenizer::{GgufVocab, Tokenizer};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Write a checkpoint of random weights, of any size
///
/// OUT ending in .gguf becomes a GGUF file, anything else a Hugging Face directory; quantized
/// types exist in GGUF only, and go to OUT/model.gguf where OUT is a directory. Activations stay
/// finite, and a tokenizer and a chat template for the vocabulary size come along.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra init nano2-9b --dtype q4_0        the 9B shape in 4 bits: nano2-9b-q4_0.gguf
  hybra init micro micro-dir --dtype f32  a small directory for tests
  hybra init model/config.json out.gguf   a shape of your own, in bf16

`hybra inspect --presets` lists the presets.")]
pub(crate) struct Args {
    /// A preset's name, a config.json, or a model whose shape to take
    #[arg(value_name = "PRESET|CONFIG")]
    shape: String,
    /// What to write: FILE.gguf or a directory [default: named after shape and type]
    #[arg(value_name = "OUT")]
    output: Option<PathBuf>,
    /// Element type of the matrices
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    dtype: StoredType,
    /// Other seeds give other weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Replace OUT if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    cpu: CpuArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let Described { config, name, .. } = source::describe(Some(&args.shape))?;
    let path = target(&args, &name)?;
    let cpu = args.cpu.cpu()?;
    let shape = Shape { name: &name, config, dtype: args.dtype };
    let (tensors, time) = write(shape, &path, args.seed, args.force, &cpu)?;
    summary(&path, &tensors, time);
    Ok(ExitCode::SUCCESS)
}

/// What a random checkpoint looks like.
pub(crate) struct Shape<'a> {
    /// For people.
    pub(crate) name: &'a str,
    pub(crate) config: Config,
    /// Type of the matrices.
    pub(crate) dtype: StoredType,
}

/// Writes random weights to `path`; gives the tensors and the time it took.
pub(crate) fn write(
    shape: Shape,
    path: &Path,
    seed: u64,
    force: bool,
    cpu: &Cpu,
) -> Result<(Vec<OutTensor>, Duration)> {
    let Shape { name, mut config, dtype: stored_type } = shape;
    let tokenizer = tokenizer(&config, name)?;
    if let Some((_, tokenizer)) = &tokenizer {
        config.bos_token_id = tokenizer.bos();
        config.pad_token_id = tokenizer.pad();
        config.eos_token_ids = tokenizer.eos_ids().to_vec();
    }
    let dtype = stored_type.dtype();
    let container = Container::of(path);
    let format = match container {
        Container::Safetensors => WeightFormat::stored(dtype),
        // GGUF holds small tensors in F32.
        Container::Gguf => WeightFormat::loaded(dtype),
    };
    let tensors: Vec<OutTensor> = tensor_specs(&config)
        .into_iter()
        .map(|spec| OutTensor { dtype: format.dtype_of(&spec), spec })
        .collect();
    report_fallbacks(&tensors, Some(stored_type));
    let (eos, defaults) = (&config.eos_token_ids, GenerationDefaults::default());
    let (files, keys);
    let beside = match container {
        Container::Safetensors => {
            let mut all = config_files(&config, eos, &defaults, dtype);
            if let Some((_, tokenizer)) = &tokenizer {
                all.push(("tokenizer.json", tokenizer.to_json()));
                all.push(("tokenizer_config.json", tokenizer.to_config_json()));
            }
            files = all;
            Beside::Files(&files)
        }
        Container::Gguf => {
            let vocabulary = tokenizer.map(|(vocabulary, _)| Vocabulary::Gguf(vocabulary));
            let vocabulary = vocabulary.unwrap_or(Vocabulary::Absent);
            keys = gguf_metadata(name, &config, eos, &defaults, dtype, vocabulary);
            Beside::Metadata(&keys)
        }
    };
    let mut output = Output::create(path, &tensors, &beside, force, cpu.pool())?;
    for tensor in &tensors {
        let random = RandomTensor::new(seed, &tensor.spec, &config);
        let is_decay = tensor.spec.gguf_transform == GgufTransform::NegExpALog;
        output.write_values(tensor, |first, out| {
            random.fill(first, out);
            if is_decay && container == Container::Gguf {
                to_decay_rates(out);
            }
        })?;
    }
    let time = output.finish()?;
    Ok((tensors, time))
}

/// Where to write: a file or a directory.
fn target(args: &Args, name: &str) -> Result<PathBuf> {
    let quantized = args.dtype.is_quantized();
    let Some(output) = &args.output else {
        let dtype = args.dtype.dtype().name().to_lowercase();
        let ending = if quantized { ".gguf" } else { "" };
        return Ok(PathBuf::from(format!("{name}-{dtype}{ending}")));
    };
    if !quantized || Container::of(output) == Container::Gguf {
        return Ok(output.clone());
    }
    let file = "model.gguf";
    refuse_other_models(output, file)?;
    std::fs::create_dir_all(output).with_context(|| output.display().to_string())?;
    Ok(output.join(file))
}

/// Two models in one directory would be ambiguous.
fn refuse_other_models(directory: &Path, file: &str) -> Result<()> {
    let Ok(entries) = directory.read_dir() else { return Ok(()) };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_model = [".gguf", ".safetensors"].iter().any(|ending| name.ends_with(ending));
        if is_model && name != file {
            bail!("{}: already holds a model, {name}", directory.display());
        }
    }
    Ok(())
}

/// The vocabulary and its tokenizer, or `None` where the model has too few rows for one.
fn tokenizer(config: &Config, name: &str) -> Result<Option<(GgufVocab, Tokenizer)>> {
    let rows = config.vocab_size;
    if rows < vocabulary::SMALLEST {
        eprintln!(
            "note: {name} has {rows} rows in its vocabulary, a tokenizer needs {}: none is written",
            vocabulary::SMALLEST
        );
        return Ok(None);
    }
    let mut vocabulary = vocabulary::vocabulary(rows, &config.eos_token_ids);
    let tokenizer = Tokenizer::from_gguf(&vocabulary)?;
    // With the id that ends a turn, which the template tells.
    vocabulary.eos_ids = tokenizer.eos_ids().to_vec();
    Ok(Some((vocabulary, tokenizer)))
}

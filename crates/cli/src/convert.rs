//! `hybra convert`: safetensors to GGUF and back, and from one element type to another.
//!
//! Streams tensor by tensor. Matrices that keep their type keep their bytes; so does everything
//! that a change of format only renames or reshapes. The one value that changes with the format is
//! the decay rate: GGUF stores −exp(A_log), so a round trip returns A_log to within rounding.
//! Small tensors (norms, biases, convolutions, A, D) are never quantized: GGUF gets them in F32.

pub(crate) mod metadata;
pub(crate) mod output;

use crate::cpu::CpuArgs;
use crate::size;
use crate::source::{self, LoadedTokenizer, Source};
use anyhow::{Context, Result, bail};
use hybra_chat::GenerationDefaults;
use hybra_checkpoint::Format;
use hybra_kernels::DType;
use hybra_kernels::Isa;
use hybra_kernels::ops::quantize::dequantize_row;
use hybra_model::config::Config;
use hybra_model::load::{Found, find_tensors};
use hybra_model::memory::storable_dtype;
use hybra_model::tensors::GgufTransform;
use metadata::{Vocabulary, config_files, gguf_metadata};
use output::{Beside, Container, OutTensor, Output, StoredType, to_decay_rates};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Files of a directory that are carried over as they are.
const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"];

/// Convert a model between safetensors and GGUF, and between element types
///
/// OUT ending in .gguf becomes a GGUF file, anything else a Hugging Face directory. Without
/// --dtype every matrix keeps its type, where OUT can hold it: quantized matrices become bf16 in
/// safetensors. Norms, biases, convolutions and the like are never quantized; GGUF holds them in
/// F32. Tokenizer, chat template and generation defaults go along.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra convert nvidia/NVIDIA-Nemotron-Nano-9B-v2 nano2-q4_0.gguf --dtype q4_0
  hybra convert model.gguf model-dir               back to safetensors
  hybra convert model-dir model-f16 --dtype f16    another element type")]
pub(crate) struct Args {
    /// Directory, .gguf or .safetensors file, or hub id
    #[arg(value_name = "IN")]
    input: String,
    /// What to write: FILE.gguf or a directory
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Element type of the matrices [default: as stored]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<StoredType>,
    /// Replace OUT if it exists
    #[arg(long)]
    force: bool,
    /// Put tokenizer.json itself into the GGUF file: for tokenizers that llama.cpp has no equal
    /// of. Hybra reads such a file, llama.cpp finds no vocabulary in it
    #[arg(long)]
    tokenizer_json: bool,
    #[command(flatten)]
    cpu: CpuArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let container = Container::of(&args.output);
    if let (Container::Safetensors, Some(dtype)) = (container, args.dtype)
        && dtype.is_quantized()
    {
        let dtype = dtype.dtype();
        bail!("{}: only GGUF holds {dtype}; let OUT end in .gguf", args.output.display());
    }
    let source = source::resolve(Some(&args.input))?;
    let config = Config::from_checkpoint(&source.checkpoint)?;
    source::notes(&source)?.iter().for_each(|note| eprintln!("note: {note}"));
    let found = find_tensors(&source.checkpoint, &config)?;
    let tensors: Vec<OutTensor> = found
        .iter()
        .map(|found| OutTensor {
            spec: found.spec.clone(),
            dtype: target_type(found, container, args.dtype.map(StoredType::dtype)),
        })
        .collect();
    report_fallbacks(&tensors, args.dtype);
    let cpu = args.cpu.cpu()?;
    let beside = beside(&args, &source, &config, container, main_type(&tensors))?;
    let beside = match &beside {
        Owned::Files(files) => Beside::Files(files),
        Owned::Metadata(keys) => Beside::Metadata(keys),
    };
    let mut output = Output::create(&args.output, &tensors, &beside, args.force, cpu.pool())?;
    for (found, tensor) in found.iter().zip(&tensors) {
        write(&mut output, found, tensor, container, cpu.isa())?;
    }
    let time = output.finish()?;
    summary(&args.output, &tensors, time);
    Ok(ExitCode::SUCCESS)
}

/// One line about a written checkpoint.
pub(crate) fn summary(path: &Path, tensors: &[OutTensor], time: std::time::Duration) {
    let bytes = tensors.iter().map(OutTensor::bytes).sum();
    // A rate over an instant means nothing.
    let rate = match time.as_secs() {
        0 => String::new(),
        _ => format!(", {}", size::byte_rate(bytes, time)),
    };
    println!(
        "{}: {} tensors, {} {} in {}{rate}",
        path.display(),
        tensors.len(),
        size::bytes(bytes),
        main_type(tensors),
        size::duration(time)
    );
}

/// The type that most bytes of the matrices have.
fn main_type(tensors: &[OutTensor]) -> DType {
    let matrices = || tensors.iter().filter(|tensor| tensor.spec.is_matrix());
    let bytes = |dtype: DType| -> u64 {
        matrices().filter(|tensor| tensor.dtype == dtype).map(OutTensor::bytes).sum()
    };
    DType::ALL.into_iter().max_by_key(|&dtype| bytes(dtype)).expect("there are types")
}

/// The type of a tensor in the output.
fn target_type(found: &Found, container: Container, asked: Option<DType>) -> DType {
    let (stored, is_plain) = (found.dtype, found.dtype.block_len() == 1);
    match (found.spec.is_matrix(), container) {
        (false, Container::Gguf) => DType::F32,
        (false, Container::Safetensors) => {
            if is_plain {
                stored
            } else {
                DType::F32
            }
        }
        (true, Container::Gguf) => {
            asked.map_or(stored, |dtype| storable_dtype(dtype, found.spec.row_len()))
        }
        (true, Container::Safetensors) => {
            asked.unwrap_or(if is_plain { stored } else { DType::Bf16 })
        }
    }
}

/// Says which matrices could not get the type that was asked for.
pub(crate) fn report_fallbacks(tensors: &[OutTensor], asked: Option<StoredType>) {
    let Some(asked) = asked.map(StoredType::dtype) else { return };
    let other = |tensor: &&OutTensor| tensor.spec.is_matrix() && tensor.dtype != asked;
    let Some(first) = tensors.iter().find(other) else { return };
    eprintln!(
        "note: {} matrices become {} because their rows are not whole blocks of {} values, \
         the first is {} with rows of {}",
        tensors.iter().filter(other).count(),
        first.dtype,
        asked.block_len(),
        first.spec.name,
        first.spec.row_len()
    );
}

/// [`Beside`] with its contents.
enum Owned {
    Files(Vec<(&'static str, String)>),
    Metadata(Vec<(&'static str, hybra_checkpoint::GgufValue)>),
}

fn beside(
    args: &Args,
    source: &Source,
    config: &Config,
    container: Container,
    dtype: DType,
) -> Result<Owned> {
    let loaded = match source::has_tokenizer(source)? {
        true => Some(source::load_tokenizer(source, config)?),
        false => {
            eprintln!("note: {} has no tokenizer, so neither has the output", args.input);
            None
        }
    };
    let (eos, defaults) = match &loaded {
        Some(loaded) => (loaded.eos_token_ids.clone(), loaded.defaults.clone()),
        None => (config.eos_token_ids.clone(), GenerationDefaults::default()),
    };
    Ok(match container {
        Container::Safetensors => {
            let mut files = config_files(config, &eos, &defaults, dtype);
            files.extend(tokenizer_files(source, loaded.as_ref())?);
            Owned::Files(files)
        }
        Container::Gguf => {
            let vocabulary = vocabulary(args, source, config, loaded.as_ref())?;
            let name = source.name.trim_end_matches(".gguf");
            Owned::Metadata(gguf_metadata(name, config, &eos, &defaults, dtype, vocabulary))
        }
    })
}

/// The tokenizer's files: copies, or made from GGUF metadata.
fn tokenizer_files(
    source: &Source,
    loaded: Option<&LoadedTokenizer>,
) -> Result<Vec<(&'static str, String)>> {
    let Some(loaded) = loaded else { return Ok(Vec::new()) };
    if source.checkpoint.format() == Format::Gguf {
        let tokenizer = &loaded.tokenizer;
        return Ok(vec![
            ("tokenizer.json", tokenizer.to_json()),
            ("tokenizer_config.json", tokenizer.to_config_json()),
        ]);
    }
    let mut files = Vec::new();
    for name in TOKENIZER_FILES {
        files.extend(source.checkpoint.read_text(name)?.map(|text| (name, text)));
    }
    Ok(files)
}

/// The tokenizer in the form for a GGUF file.
fn vocabulary(
    args: &Args,
    source: &Source,
    config: &Config,
    loaded: Option<&LoadedTokenizer>,
) -> Result<Vocabulary> {
    let Some(LoadedTokenizer { tokenizer, .. }) = loaded else { return Ok(Vocabulary::Absent) };
    if args.tokenizer_json {
        let from_gguf = source.checkpoint.format() == Format::Gguf;
        let text = |name| source.checkpoint.read_text(name);
        return Ok(Vocabulary::Files {
            json: if from_gguf {
                tokenizer.to_json()
            } else {
                text("tokenizer.json")?.unwrap_or_default()
            },
            config: match from_gguf {
                true => Some(tokenizer.to_config_json()),
                false => text("tokenizer_config.json")?,
            },
            template: tokenizer.chat_template().ok().map(|template| template.source().to_owned()),
        });
    }
    let vocab = tokenizer.to_gguf_vocab(config.vocab_size).with_context(|| {
        format!(
            "{}: llama.cpp has no equal of this tokenizer; --tokenizer-json writes a GGUF file \
             that carries tokenizer.json for Hybra",
            args.input
        )
    })?;
    Ok(Vocabulary::Gguf(vocab))
}

fn write(
    output: &mut Output,
    found: &Found,
    tensor: &OutTensor,
    container: Container,
    isa: Isa,
) -> Result<()> {
    let from_gguf = found.format == Format::Gguf;
    let changes_format = from_gguf != (container == Container::Gguf);
    let is_decay = found.spec.gguf_transform == GgufTransform::NegExpALog;
    if found.dtype == tensor.dtype && !(changes_format && is_decay) {
        return output.write_bytes(tensor, found.view.data);
    }
    if !found.spec.is_matrix() {
        let mut values = found.f32_values()?;
        if is_decay && container == Container::Gguf {
            to_decay_rates(&mut values);
        }
        return output.write_values(tensor, |first, out| {
            out.copy_from_slice(&values[first..first + out.len()]);
        });
    }
    let (len, bytes) = (found.dtype.block_len(), found.dtype.block_bytes());
    output.write_values(tensor, |first, out| {
        let start = first / len * bytes;
        let data = &found.view.data[start..start + out.len() / len * bytes];
        dequantize_row(isa, found.dtype, data, out);
    })
}

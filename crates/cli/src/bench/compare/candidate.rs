//! What a name on the command line of a comparison stands for, and how it is loaded.
//!
//! A checkpoint is loaded as it is; a shape without weights gets random ones, streamed to a
//! temporary file that is gone as soon as it is mapped (elsewhere than on Unix, at the end).

use crate::convert::output::StoredType;
use crate::cpu::LoadOptions;
use crate::init::{self, Shape};
use crate::source::{self, Described, Source};
use anyhow::{Context, Result, bail};
use hybra_kernels::{Cpu, DType};
use hybra_model::load::find_tensors;
use hybra_model::presets::{dense_transformer, preset};
use hybra_model::{Config, NemotronH};
use std::path::Path;
use tempfile::TempDir;

/// Asks for a dense Transformer as large as the model.
const DERIVED: &str = "transformer";

/// One of the two models.
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) config: Config,
    /// Type of the matrices: of most of their bytes, or of the random weights.
    pub(super) dtype: DType,
    origin: Origin,
}

enum Origin {
    Checkpoint(Box<Source>),
    Random(StoredType),
}

/// A model with what keeps its weights in place.
pub(super) struct Loaded {
    pub(super) model: NemotronH,
    _directory: Option<TempDir>,
}

/// The model and what it is compared with. Random weights take `dtype`, else the type of the
/// other's file, else Q4_0.
pub(super) fn pair(
    model: Option<&str>,
    other: &str,
    dtype: Option<StoredType>,
) -> Result<[Candidate; 2]> {
    let model = model.or((other == "transformer-8b").then_some("nano2-9b"));
    let first = describe(model)?;
    let second = match other {
        DERIVED if !Path::new(other).exists() => Described {
            config: dense_transformer(&first.config)?,
            name: "transformer".to_owned(),
            source: None,
        },
        _ => describe(Some(other))?,
    };
    let stored = [&first, &second].map(|described| {
        described.source.as_ref().map(|source| main_type(source, &described.config))
    });
    let [a, b] = stored.map(Option::transpose);
    let stored = [a?, b?];
    let random = dtype.or_else(|| stored.iter().flatten().copied().find_map(storable));
    let random = random.unwrap_or(StoredType::Q4_0);
    let candidate = |described: Described, stored: Option<DType>| {
        let Described { config, name, source } = described;
        let origin =
            source.map_or(Origin::Random(random), |source| Origin::Checkpoint(Box::new(source)));
        Candidate { name, config, dtype: stored.unwrap_or(random.dtype()), origin }
    };
    let [a, b] = stored;
    Ok([candidate(first, a), candidate(second, b)])
}

/// A preset or config has no source; everything else has weights.
fn describe(model: Option<&str>) -> Result<Described> {
    let is_shape = |text: &str| {
        let path = Path::new(text);
        let is_config = path.extension().is_some_and(|ending| ending == "json");
        is_config || (preset(text).is_ok() && !path.exists())
    };
    if model.is_some_and(is_shape) {
        return source::describe(model);
    }
    let source = source::resolve(model)?;
    let config = Config::from_checkpoint(&source.checkpoint)?;
    Ok(Described { config, name: source.name.clone(), source: Some(source) })
}

/// The type with the most bytes.
fn main_type(source: &Source, config: &Config) -> Result<DType> {
    let found = find_tensors(&source.checkpoint, config)?;
    let bytes = |dtype: DType| -> usize {
        let of_type = found.iter().filter(|tensor| tensor.dtype == dtype);
        of_type.map(|tensor| tensor.view.data.len()).sum()
    };
    let most = DType::ALL.into_iter().max_by_key(|&dtype| bytes(dtype));
    most.context("there are types")
}

fn storable(dtype: DType) -> Option<StoredType> {
    use clap::ValueEnum;
    StoredType::value_variants().iter().copied().find(|stored| stored.dtype() == dtype)
}

impl Candidate {
    /// Whether the weights are made up.
    pub(super) fn is_random(&self) -> bool {
        matches!(self.origin, Origin::Random(_))
    }

    /// Takes the weights of the checkpoint, or makes some.
    pub(super) fn load(&self, cpu: &Cpu, options: LoadOptions) -> Result<Loaded> {
        let dtype = match &self.origin {
            Origin::Checkpoint(source) => {
                let model = source::load_model(source, cpu, options)?;
                return Ok(Loaded { model, _directory: None });
            }
            Origin::Random(dtype) => *dtype,
        };
        let directory = tempfile::tempdir().context("a directory for random weights")?;
        let path = directory.path().join("model.gguf");
        let shape = Shape { name: &self.name, config: self.config.clone(), dtype };
        init::write(shape, &path, 0, false, cpu)
            .with_context(|| format!("random weights in {}", path.display()))?;
        let Some(path) = path.to_str() else { bail!("{}: is not UTF-8", path.display()) };
        let model = source::load_model(&source::resolve(Some(path))?, cpu, options)?;
        // A mapped file stays readable on Unix, and an interrupted run leaves nothing behind.
        let directory = if cfg!(unix) { None } else { Some(directory) };
        Ok(Loaded { model, _directory: directory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_get_the_type_of_the_other_and_the_8b_gets_the_9b() {
        let [model, other] = pair(None, DERIVED, None).unwrap();
        assert!(!model.is_random() && other.is_random());
        assert_eq!(model.dtype, other.dtype);
        let [model, other] = pair(None, "transformer-8b", None).unwrap();
        assert_eq!((model.name.as_str(), other.name.as_str()), ("nano2-9b", "transformer-8b"));
        assert_eq!([model.dtype, other.dtype], [DType::Q4_0; 2]);
        let [model, _] = pair(Some("micro"), "micro", Some(StoredType::Bf16)).unwrap();
        assert_eq!(model.dtype, DType::Bf16);
        assert!(pair(None, "nowhere", None).is_err());
    }

    #[test]
    fn random_weights_leave_no_file_behind() {
        let cpu = Cpu::new(hybra_kernels::Isa::Scalar, 1);
        let [model, _] = pair(Some("micro"), "micro", None).unwrap();
        let loaded = model.load(&cpu, LoadOptions::default()).unwrap();
        assert_eq!(loaded.model.config().hidden_size, 64);
        assert_eq!(loaded._directory.is_some(), !cfg!(unix));
    }
}

//! Importance on disk: a directory with `importance.json` and the moments as F64 tensors.
//!
//! It names the weights that it was measured on by their hash and is refused for others.

use crate::depth::Removal;
use crate::moments::{ChannelMoments, LayerMoments, Moments};
use hybra_checkpoint::{Checkpoint, Dtype, SafetensorsOptions, SafetensorsWriter, TensorInfo};
use hybra_model::Config;
use hybra_model::layer::LayerConfig;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The first field of the file.
const FORMAT: &str = "hybra importance 1";
const FILE: &str = "importance.json";

/// What was measured of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Importance {
    /// What people and other commands want to know.
    pub summary: Summary,
    /// The sums.
    pub moments: Moments,
}

/// `importance.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Version of the file.
    format: String,
    /// BLAKE3 of the model's weights.
    pub model: String,
    /// What the calibration documents are, for people.
    pub data: String,
    /// Documents seen.
    pub documents: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Whether Gram matrices were kept.
    pub gram: bool,
    /// `iterative` or `cosine`.
    pub depth: String,
    /// Layers in the order in which they go.
    pub removals: Vec<Removal>,
}

/// Why importance cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ImportanceError {
    /// The tensors.
    #[error(transparent)]
    Checkpoint(#[from] hybra_checkpoint::Error),
    /// The JSON file is absent or damaged.
    #[error("{}: {cause}; expected a directory that `hybra importance` wrote", path.display())]
    Summary {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// A tensor that is not what the model needs.
    #[error("{}: tensor `{tensor}`: expected F64 {expected:?}, found {found}", path.display())]
    Tensor {
        /// The directory.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape.
        expected: Vec<usize>,
        /// Type and shape.
        found: String,
    },
    /// It is another model's.
    #[error(
        "{}: measured on weights {expected}, but the model has {found}; run `hybra importance` on it",
        path.display()
    )]
    Model {
        /// The directory.
        path: PathBuf,
        /// BLAKE3 in the file.
        expected: String,
        /// BLAKE3 of the model.
        found: String,
    },
}

impl Importance {
    /// Joins what was measured.
    #[must_use]
    pub fn new(model: String, data: String, depth: &str, rest: (Vec<Removal>, Moments)) -> Self {
        let (removals, moments) = rest;
        let (documents, tokens) = (moments.documents, moments.tokens);
        let gram = !moments.head.gram.is_empty();
        let (format, depth) = (FORMAT.to_owned(), depth.to_owned());
        let summary = Summary { format, model, data, documents, tokens, gram, depth, removals };
        Self { summary, moments }
    }

    /// Writes the directory, whole or not at all.
    ///
    /// # Errors
    /// What the file system says, or a target that exists.
    pub fn write(&self, dir: &Path, overwrite: bool) -> Result<(), ImportanceError> {
        let tensors = self.tensors();
        let info =
            |(name, values): &(String, &[f64])| TensorInfo::new(name, Dtype::F64, &[values.len()]);
        let infos: Vec<_> = tensors.iter().map(info).collect();
        let text = serde_json::to_string_pretty(&self.summary).expect("plain values") + "\n";
        let files = [(FILE, text.as_bytes())];
        let options = SafetensorsOptions { overwrite, ..Default::default() };
        let mut writer = SafetensorsWriter::create(dir, &infos, &files, &options)?;
        for (name, values) in &tensors {
            writer.write(name, bytemuck::cast_slice(values))?;
        }
        Ok(writer.finish()?)
    }

    /// Names and values of all sums.
    fn tensors(&self) -> Vec<(String, &[f64])> {
        let mut all = Vec::new();
        let mut add = |name: String, values| {
            // Sums that were not asked for, or that the layer's kind has not.
            let values: &[f64] = values;
            if !values.is_empty() {
                all.push((name, values));
            }
        };
        for (i, layer) in self.moments.layers.iter().enumerate() {
            channels(&format!("layers.{i}.normed"), &layer.normed, &mut add);
            channels(&format!("layers.{i}.mixed"), &layer.mixed, &mut add);
            add(format!("layers.{i}.x_abs"), &layer.x_abs);
            add(format!("layers.{i}.cosine"), std::slice::from_ref(&layer.cosine));
        }
        channels("head", &self.moments.head, &mut add);
        all
    }

    /// Reads a directory and checks that it is of the model with these weights.
    ///
    /// # Errors
    /// [`ImportanceError`].
    pub fn read(dir: &Path, config: &Config, model: &str) -> Result<Self, ImportanceError> {
        let path = dir.join(FILE);
        let wrong = |cause: String| ImportanceError::Summary { path: path.clone(), cause };
        let text = std::fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
        let summary: Summary =
            serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if summary.format != FORMAT {
            return Err(wrong(format!("format {:?}, expected {FORMAT:?}", summary.format)));
        }
        if summary.model != model {
            let (expected, found) = (summary.model, model.to_owned());
            return Err(ImportanceError::Model { path: dir.to_owned(), expected, found });
        }
        let reader = Reader { checkpoint: Checkpoint::open(dir)?, gram: summary.gram };
        let h = config.hidden_size;
        let layer = |(i, layer): (usize, &LayerConfig)| {
            let (mixed, x) = match layer {
                LayerConfig::Mamba2(m) => (m.d_inner(), m.d_inner()),
                LayerConfig::Attention(a) => (a.q_width(), 0),
                LayerConfig::Mlp(m) => (m.intermediate_size, 0),
            };
            Ok::<_, ImportanceError>(LayerMoments {
                normed: reader.channels(&format!("layers.{i}.normed"), h)?,
                mixed: reader.channels(&format!("layers.{i}.mixed"), mixed)?,
                x_abs: reader.values(&format!("layers.{i}.x_abs"), x)?,
                cosine: reader.values(&format!("layers.{i}.cosine"), 1)?[0],
            })
        };
        let layers = config.layers.iter().enumerate().map(layer).collect::<Result<_, _>>()?;
        let (documents, tokens) = (summary.documents, summary.tokens);
        let head = reader.channels("head", h)?;
        Ok(Self { summary, moments: Moments { documents, tokens, layers, head } })
    }
}

/// Adds the sums of one row of activations.
fn channels<'a>(name: &str, moments: &'a ChannelMoments, add: &mut impl FnMut(String, &'a [f64])) {
    add(format!("{name}.abs"), &moments.abs);
    add(format!("{name}.square"), &moments.square);
    add(format!("{name}.gram"), &moments.gram);
}

struct Reader {
    checkpoint: Checkpoint,
    gram: bool,
}

impl Reader {
    fn channels(&self, name: &str, width: usize) -> Result<ChannelMoments, ImportanceError> {
        Ok(ChannelMoments {
            abs: self.values(&format!("{name}.abs"), width)?,
            square: self.values(&format!("{name}.square"), width)?,
            gram: self.values(&format!("{name}.gram"), width * width * usize::from(self.gram))?,
        })
    }

    /// The values of a tensor of this length; none of length 0, which is not stored.
    fn values(&self, name: &str, len: usize) -> Result<Vec<f64>, ImportanceError> {
        if len == 0 {
            return Ok(Vec::new());
        }
        let view = self.checkpoint.require(name)?;
        if view.dtype != Dtype::F64 || view.shape != [len] {
            let found = format!("{} {:?}", view.dtype.name(), view.shape);
            let (path, tensor) = (self.checkpoint.path().to_owned(), name.to_owned());
            return Err(ImportanceError::Tensor { path, tensor, expected: vec![len], found });
        }
        let bytes = view.data.chunks_exact(8);
        Ok(bytes.map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes"))).collect())
    }
}

//! Checkpoints of the same shape merged into one, tensor by tensor.
//!
//! - *Linear*: `Σ w_i·θ_i` with weights that sum to 1.
//! - *Slerp*: along the arc between two matrices taken as vectors; a vector, and a matrix that is zero
//!   or nearly parallel to the other (sin of the angle below 1e-3), takes the straight line.
//! - *Task arithmetic*: `base + Σ s_i·(θ_i − base)`.
//!
//! Sums are in f64 and rounded once, so merging a model with itself gives its bits, and a weight of 1
//! beside zeros gives that model's.
//!
//! Sources: Wortsman et al. 2022 (model soups); Shoemake 1985 (slerp); Ilharco et al. 2023 (task
//! arithmetic).

use hybra_checkpoint::{Checkpoint, SafetensorsOptions, SafetensorsWriter, TensorInfo};
use hybra_kernels::ops::quantize::{dequantize_row, quantize_row};
use hybra_kernels::{DType, Isa};
use hybra_model::load::{Found, LoadError, file_type, find_tensors};
use hybra_model::{Config, ConfigError};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// How models become one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "method")]
pub enum Merge {
    /// A weight for each model.
    Linear {
        /// They sum to 1.
        weights: Vec<f64>,
    },
    /// Between two models.
    Slerp {
        /// 0 is the first, 1 the second.
        alpha: f64,
    },
    /// A scale for each model's difference from the base.
    TaskArithmetic {
        /// 1 for the whole difference.
        scales: Vec<f64>,
    },
}

/// Why models cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// No valid configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Tensors that are not those of the configuration.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The result cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] hybra_checkpoint::Error),
    /// Models of different shapes.
    #[error("{}: {what} is {found}, but {expected} in {}", path.display(), first.display())]
    Shape {
        /// The model that differs.
        path: PathBuf,
        /// The first model.
        first: PathBuf,
        /// Such as `hidden_size`.
        what: String,
        /// In the first model.
        expected: String,
        /// In this one.
        found: String,
    },
    /// Weights that make no mean, or of another number of models.
    #[error("merge: {field}: expected {expected}, found {found}")]
    Weights {
        /// `weights`, `alpha` or `scales`.
        field: &'static str,
        /// What would do.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A value that the first model's type cannot hold.
    #[error(
        "tensor `{tensor}`: value {index} becomes {found}, which {dtype} cannot hold; merge with smaller weights"
    )]
    TooLarge {
        /// The tensor.
        tensor: String,
        /// Position of the value.
        index: usize,
        /// The value.
        found: f32,
        /// The type.
        dtype: DType,
    },
    /// A tensor of an adapter that belongs to no matrix of its base.
    #[error("{}: tensor `{tensor}` belongs to no matrix of the base {}", path.display(), base.display())]
    Stray {
        /// The adapter.
        path: PathBuf,
        /// Its tensor.
        tensor: String,
        /// The base.
        base: PathBuf,
    },
    /// A tensor of an adapter of another shape or type than its matrix asks for.
    #[error("{}: tensor `{tensor}`: expected {expected}, found {found}", path.display())]
    Pair {
        /// The adapter.
        path: PathBuf,
        /// Its tensor.
        tensor: String,
        /// What the base and r ask for.
        expected: String,
        /// Type and shape.
        found: String,
    },
    /// Half a pair of an adapter.
    #[error("{}: `{matrix}` has lora_{found} but no lora_{missing}", path.display())]
    Half {
        /// The adapter.
        path: PathBuf,
        /// The matrix of the base.
        matrix: String,
        /// What is there.
        found: char,
        /// What is not.
        missing: char,
    },
    /// GGUF holds rounded blocks.
    #[error("{}: is GGUF; merge Hugging Face directories (`hybra convert`)", path.display())]
    Gguf {
        /// The model.
        path: PathBuf,
    },
}

impl Merge {
    /// Checks numbers against the count of models.
    ///
    /// # Errors
    /// [`MergeError::Weights`].
    pub fn check(&self, models: usize) -> Result<(), MergeError> {
        let wrong = |field, expected: String, found: String| {
            Err(MergeError::Weights { field, expected, found })
        };
        let (field, numbers) = match self {
            Self::Linear { weights } => ("weights", weights.clone()),
            Self::Slerp { alpha } => ("alpha", vec![1.0 - alpha, *alpha]),
            Self::TaskArithmetic { scales } => ("scales", scales.clone()),
        };
        if numbers.len() != models || numbers.iter().any(|number| !number.is_finite()) {
            return wrong(field, format!("numbers for {models} models"), format!("{numbers:?}"));
        }
        match self {
            Self::Slerp { alpha } if !(0.0..=1.0).contains(alpha) => {
                wrong("alpha", "0 to 1".to_owned(), alpha.to_string())
            }
            Self::Linear { weights } if (weights.iter().sum::<f64>() - 1.0).abs() > 1e-9 => {
                let sum: f64 = weights.iter().sum();
                wrong("weights", "numbers that sum to 1".to_owned(), format!("a sum of {sum}"))
            }
            _ => Ok(()),
        }
    }

    /// One tensor of the result. `base` is used by task arithmetic alone.
    fn tensor(&self, models: &[Vec<f32>], base: &[f32], is_matrix: bool) -> Vec<f32> {
        match self {
            Self::Linear { weights } => sum(weights, models),
            Self::Slerp { alpha } => slerp(*alpha, &models[0], &models[1], is_matrix),
            Self::TaskArithmetic { scales } => {
                let value = |i: usize| {
                    let origin = f64::from(base[i]);
                    let parts = scales.iter().zip(models);
                    let moved: f64 = parts.map(|(s, m)| s * (f64::from(m[i]) - origin)).sum();
                    (origin + moved) as f32
                };
                (0..base.len()).map(value).collect()
            }
        }
    }
}

fn sum(weights: &[f64], models: &[Vec<f32>]) -> Vec<f32> {
    let value = |i: usize| {
        let parts = weights.iter().zip(models).filter(|(w, _)| **w != 0.0);
        parts.map(|(w, model)| w * f64::from(model[i])).sum::<f64>() as f32
    };
    (0..models[0].len()).map(value).collect()
}

/// Along the arc from `a` to `b`.
fn slerp(alpha: f64, a: &[f32], b: &[f32], is_matrix: bool) -> Vec<f32> {
    /// Sine of an angle below which the arc is a line.
    const PARALLEL: f64 = 1e-3;
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    let angle = (dot(a, b) / norms).clamp(-1.0, 1.0).acos();
    let arc = is_matrix && norms > 0.0 && angle.sin() >= PARALLEL;
    let (of_a, of_b) = match arc {
        true => (((1.0 - alpha) * angle).sin() / angle.sin(), (alpha * angle).sin() / angle.sin()),
        false => (1.0 - alpha, alpha),
    };
    // The ends are the models themselves, whatever sines round to.
    match alpha {
        0.0 => a.to_vec(),
        1.0 => b.to_vec(),
        _ => a
            .iter()
            .zip(b)
            .map(|(&a, &b)| (of_a * f64::from(a) + of_b * f64::from(b)) as f32)
            .collect(),
    }
}

/// Models to be merged, of one shape.
pub struct Models<'c> {
    models: Vec<Vec<Found<'c>>>,
    base: Option<Vec<Found<'c>>>,
}

impl<'c> Models<'c> {
    /// Takes the tensors of checkpoints that have the first one's shape.
    ///
    /// # Errors
    /// [`MergeError`].
    pub fn new(
        checkpoints: &[&'c Checkpoint],
        base: Option<&'c Checkpoint>,
    ) -> Result<Self, MergeError> {
        let first = checkpoints[0];
        let shape = Config::from_checkpoint(first)?;
        let tensors = |checkpoint: &&'c Checkpoint| {
            let path = checkpoint.path().to_owned();
            if checkpoint.gguf().is_some() {
                return Err(MergeError::Gguf { path });
            }
            let config = Config::from_checkpoint(checkpoint)?;
            if let Some((what, expected, found)) = difference(&shape, &config) {
                let (what, first) = (what.to_owned(), first.path().to_owned());
                return Err(MergeError::Shape { path, first, what, expected, found });
            }
            Ok(find_tensors(checkpoint, &config)?)
        };
        let models = checkpoints.iter().map(tensors).collect::<Result<_, _>>()?;
        let base = base.as_ref().map(tensors).transpose()?;
        Ok(Self { models, base })
    }

    /// Writes the merged model to `out`, in the element types of the first.
    ///
    /// # Errors
    /// [`MergeError`]; `out` is then as it was.
    ///
    /// # Panics
    /// If task arithmetic has no base.
    pub fn merge(
        &self,
        merge: &Merge,
        out: &Path,
        side_files: &[(&str, &[u8])],
        overwrite: bool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), MergeError> {
        merge.check(self.models.len())?;
        let first = &self.models[0];
        let info = |found: &Found| {
            TensorInfo::new(&found.spec.name, file_type(found.dtype), &found.spec.shape)
        };
        let infos: Vec<_> = first.iter().map(info).collect();
        let options = SafetensorsOptions { overwrite, ..Default::default() };
        let mut writer = SafetensorsWriter::create(out, &infos, side_files, &options)?;
        for (at, found) in first.iter().enumerate() {
            let values = |model: &Vec<Found>| model[at].f32_values();
            let models = self.models.iter().map(values).collect::<Result<Vec<_>, _>>()?;
            let base = match merge {
                Merge::TaskArithmetic { .. } => values(self.base.as_ref().expect("a base"))?,
                _ => Vec::new(),
            };
            let merged = merge.tensor(&models, &base, found.spec.is_matrix());
            let bytes = encode(found, &merged)?;
            writer.write(&found.spec.name, &bytes)?;
            progress(at + 1, first.len());
        }
        Ok(writer.finish()?)
    }
}

/// The values as stored.
pub(crate) fn encode(found: &Found, values: &[f32]) -> Result<Vec<u8>, MergeError> {
    let mut bytes = vec![0; values.len() * found.dtype.block_bytes()];
    quantize_row(found.dtype, values, &mut bytes);
    let mut stored = vec![0.0; values.len()];
    dequantize_row(Isa::best(), found.dtype, &bytes, &mut stored);
    match stored.iter().position(|value| !value.is_finite()) {
        None => Ok(bytes),
        Some(index) => Err(MergeError::TooLarge {
            tensor: found.spec.name.clone(),
            index,
            found: values[index],
            dtype: found.dtype,
        }),
    }
}

/// What of two shapes differs first: name and both values.
fn difference(a: &Config, b: &Config) -> Option<(String, String, String)> {
    let parts = |config: &Config| {
        [
            ("vocab_size", config.vocab_size.to_string()),
            ("hidden_size", config.hidden_size.to_string()),
            ("the pattern", config.pattern()),
            ("tie_word_embeddings", config.tie_word_embeddings.to_string()),
            ("layer_norm_epsilon", config.norm_eps.to_string()),
            ("time_step_limit", format!("{:?}", config.time_step_limit)),
        ]
    };
    let pairs = parts(a).into_iter().zip(parts(b));
    let part =
        pairs.into_iter().find(|(a, b)| a != b).map(|((what, a), (_, b))| (what.to_owned(), a, b));
    let mut layers = a.layers.iter().zip(&b.layers).enumerate();
    part.or_else(|| {
        let (index, (a, b)) = layers.find(|(_, (a, b))| a != b)?;
        Some((format!("layer {index}"), format!("{a:?}"), format!("{b:?}")))
    })
}

/// The checkpoints that both descend from: none means that merging them makes no sense. Each list
/// holds a checkpoint's own hash and those of its ancestors.
#[must_use]
pub fn common_ancestors(a: &[String], b: &[String]) -> Vec<String> {
    a.iter().filter(|hash| b.contains(hash)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_arc_keeps_the_norm_and_a_line_does_not() {
        let (a, b) = (vec![3.0, 0.0, 0.0, 4.0], vec![0.0, 5.0, 0.0, 0.0]);
        let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        for alpha in [0.1, 0.5, 0.9] {
            assert!((norm(&slerp(alpha, &a, &b, true)) - 5.0).abs() < 1e-6);
            assert!(norm(&slerp(alpha, &a, &b, false)) < 4.6);
        }
        let twice: Vec<f32> = a.iter().map(|x| 2.0 * x).collect();
        assert_eq!(slerp(0.5, &a, &twice, true), [4.5, 0.0, 0.0, 6.0]);
        assert_eq!(slerp(0.5, &a, &[0.0; 4], true), [1.5, 0.0, 0.0, 2.0]);
    }

    #[test]
    fn numbers_that_make_no_mean_are_refused() {
        let refused = |merge: Merge, models| merge.check(models).unwrap_err().to_string();
        assert!(refused(Merge::Linear { weights: vec![0.5, 0.6] }, 2).contains("sum of 1.1"));
        assert!(refused(Merge::Linear { weights: vec![1.0] }, 2).contains("2 models"));
        assert!(refused(Merge::Slerp { alpha: 1.5 }, 2).contains("0 to 1"));
        assert!(refused(Merge::Slerp { alpha: 0.5 }, 3).contains("3 models"));
        assert!(refused(Merge::TaskArithmetic { scales: vec![f64::NAN] }, 1).contains("NaN"));
    }

    proptest! {
        /// A model with itself is itself; the ends are the models; a whole difference is the model.
        #[test]
        fn equalities_hold_to_the_bit(
            a in prop::collection::vec(-1e3f32..1e3, 8), b in prop::collection::vec(-1e3f32..1e3, 8),
            alpha in 0.0f64..1.0,
        ) {
            let line = |alpha: f64| Merge::Linear { weights: vec![1.0 - alpha, alpha] };
            let same = [a.clone(), a.clone()];
            prop_assert_eq!(&line(alpha).tensor(&same, &[], true), &a);
            let both = [a.clone(), b.clone()];
            for merge in [line(0.0), Merge::Slerp { alpha: 0.0 }] {
                prop_assert_eq!(&merge.tensor(&both, &[], true), &a);
            }
            for merge in [line(1.0), Merge::Slerp { alpha: 1.0 }] {
                prop_assert_eq!(&merge.tensor(&both, &[], true), &b);
            }
            let whole = Merge::TaskArithmetic { scales: vec![1.0] };
            for (got, want) in whole.tensor(&both[1..], &a, true).iter().zip(&b) {
                prop_assert!((got - want).abs() <= 1e-6 * want.abs().max(1e-3));
            }
        }
    }
}

//! From an open checkpoint to the tensors of a config: names, shapes and forms are checked here.
//!
//! Invariants: every tensor of the registry is present once and has its shape, no tensor is left
//! over except those that [`crate::tensors::skip_reason`] names, and GGUF's changes of form are
//! undone by [`Found::f32_values`].

use crate::config::Config;
use crate::tensors::{GgufTransform, TensorSpec, canonical_name, skip_reason, tensor_specs};
use hybra_checkpoint::{Checkpoint, Dtype, Format, TensorView};
use hybra_kernels::ops::quantize::dequantize_row;
use hybra_kernels::{DType, Isa};
use std::collections::HashMap;
use std::path::PathBuf;

/// Why a checkpoint does not hold the model of its config.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A tensor of the registry is absent.
    #[error("{}: tensor `{tensor}` is missing, expected with shape {shape:?}", path.display())]
    Missing {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor, as the format spells it.
        tensor: String,
        /// Its shape by the config.
        shape: Vec<usize>,
    },
    /// A tensor that the config has no place for.
    #[error("{}: tensor `{tensor}` has no place in the model that the config describes", path.display())]
    Extra {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The same tensor under two names (`backbone.` and `model.`).
    #[error("{}: tensor `{tensor}` is present twice, with prefix `backbone.` and `model.`", path.display())]
    Twice {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A shape that the config contradicts.
    #[error("{}: tensor `{tensor}`: expected shape {expected:?} by the config, found {found:?}", path.display())]
    Shape {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// By the config.
        expected: Vec<usize>,
        /// In the file.
        found: Vec<usize>,
    },
    /// An element type that is no weight.
    #[error("{}: tensor `{tensor}`: expected a weight type such as F32, BF16 or Q4_0, found {found:?}", path.display())]
    Type {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// In the file.
        found: Dtype,
    },
    /// NaN or infinity among small tensors, which would poison every output.
    #[error("{}: tensor `{tensor}`: value {index} is {found}, expected finite numbers", path.display())]
    NotFinite {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Position of the value.
        index: usize,
        /// The value.
        found: f32,
    },
    /// A decay rate that GGUF stores as −exp(A_log) must be negative.
    #[error("{}: tensor `{tensor}`: value {index} is {found}, expected −exp(A_log) < 0", path.display())]
    DecayRate {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Position of the value.
        index: usize,
        /// The value.
        found: f32,
    },
}

/// A tensor of the registry and where it lies in the checkpoint.
pub struct Found<'c> {
    /// The registry's entry.
    pub spec: TensorSpec,
    /// The file's tensor; of the same shape up to GGUF's change of form.
    pub view: TensorView<'c>,
    /// Its element type.
    pub dtype: DType,
    /// The file's format.
    pub format: Format,
    path: PathBuf,
}

/// Finds every tensor of `config`, in registry order.
///
/// # Errors
/// A tensor that is missing, left over, present twice, or of a wrong shape or type.
pub fn find_tensors<'c>(
    checkpoint: &'c Checkpoint,
    config: &Config,
) -> Result<Vec<Found<'c>>, LoadError> {
    let (format, path) = (checkpoint.format(), checkpoint.path().to_owned());
    let mut names: HashMap<String, &str> = HashMap::new();
    for info in checkpoint.tensors() {
        let name = match format {
            Format::Safetensors => canonical_name(&info.name).into_owned(),
            Format::Gguf => info.name.clone(),
        };
        if skip_reason(&info.name).is_none() && names.insert(name.clone(), &info.name).is_some() {
            return Err(LoadError::Twice { path, tensor: name });
        }
    }
    let mut found = Vec::new();
    for spec in tensor_specs(config) {
        let (name, shape) = match format {
            Format::Safetensors => (&spec.name, &spec.shape),
            Format::Gguf => (&spec.gguf_name, &spec.gguf_shape),
        };
        let view = names.remove(name).and_then(|name| checkpoint.get(name));
        let Some(view) = view else {
            return Err(LoadError::Missing { path, tensor: name.clone(), shape: shape.clone() });
        };
        let tensor = || name.clone();
        if !same_shape(view.shape, shape) {
            let (expected, found) = (shape.clone(), view.shape.to_vec());
            return Err(LoadError::Shape { path, tensor: tensor(), expected, found });
        }
        let Some(dtype) = weight_type(view.dtype) else {
            return Err(LoadError::Type { path, tensor: tensor(), found: view.dtype });
        };
        found.push(Found { spec, view, dtype, format, path: path.clone() });
    }
    match names.into_values().min() {
        Some(tensor) => Err(LoadError::Extra { path, tensor: tensor.to_owned() }),
        None => Ok(found),
    }
}

/// Trailing dimensions of 1 do not count: GGUF writers drop or keep them.
fn same_shape(a: &[usize], b: &[usize]) -> bool {
    let trim = |s: &[usize]| s.len() - s.iter().rev().take_while(|d| **d == 1).count();
    a[..trim(a)] == b[..trim(b)]
}

impl Found<'_> {
    /// The name as the file's format spells it.
    #[must_use]
    pub fn file_name(&self) -> &str {
        match self.format {
            Format::Safetensors => &self.spec.name,
            Format::Gguf => &self.spec.gguf_name,
        }
    }

    /// All values in f32 as safetensors would hold them: GGUF's −exp(A_log) is undone.
    ///
    /// # Errors
    /// A value that is not finite, or a decay rate that is not negative.
    pub fn f32_values(&self) -> Result<Vec<f32>, LoadError> {
        let mut values = vec![0.0; self.view.shape.iter().product()];
        dequantize_row(Isa::best(), self.dtype, self.view.data, &mut values);
        if self.format == Format::Gguf && self.spec.gguf_transform == GgufTransform::NegExpALog {
            for (index, a) in values.iter_mut().enumerate() {
                let found = *a;
                if found >= 0.0 || found.is_nan() {
                    let (path, tensor) = (self.path.clone(), self.file_name().to_owned());
                    return Err(LoadError::DecayRate { path, tensor, index, found });
                }
                *a = (-found).ln();
            }
        }
        match values.iter().position(|v| !v.is_finite()) {
            Some(index) => Err(LoadError::NotFinite {
                path: self.path.clone(),
                tensor: self.file_name().to_owned(),
                index,
                found: values[index],
            }),
            None => Ok(values),
        }
    }
}

/// The weight type behind a file's element type, if it is one.
#[must_use]
pub fn weight_type(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::Bf16,
        Dtype::Q4_0 => DType::Q4_0,
        Dtype::Q4_1 => DType::Q4_1,
        Dtype::Q5_0 => DType::Q5_0,
        Dtype::Q5_1 => DType::Q5_1,
        Dtype::Q8_0 => DType::Q8_0,
        Dtype::Iq4Nl => DType::Iq4Nl,
        Dtype::Q4K => DType::Q4K,
        Dtype::Q5K => DType::Q5K,
        Dtype::Q6K => DType::Q6K,
        _ => return None,
    })
}

/// The file's element type for a weight type: the inverse of [`weight_type`].
#[must_use]
pub fn file_type(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::Bf16 => Dtype::Bf16,
        DType::Q4_0 => Dtype::Q4_0,
        DType::Q4_1 => Dtype::Q4_1,
        DType::Q5_0 => Dtype::Q5_0,
        DType::Q5_1 => Dtype::Q5_1,
        DType::Q8_0 => Dtype::Q8_0,
        DType::Iq4Nl => Dtype::Iq4Nl,
        DType::Q4K => Dtype::Q4K,
        DType::Q5K => Dtype::Q5K,
        DType::Q6K => Dtype::Q6K,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_crates_mean_the_same_bytes_by_a_type() {
        for dtype in DType::ALL {
            let file = file_type(dtype);
            assert_eq!(weight_type(file), Some(dtype));
            assert_eq!(file.block_len(), dtype.block_len(), "{dtype}");
            assert_eq!(file.block_bytes(), dtype.block_bytes(), "{dtype}");
            assert_eq!(file.name(), dtype.name());
        }
        assert_eq!(weight_type(Dtype::I64), None);
    }

    #[test]
    fn trailing_ones_do_not_make_a_shape() {
        assert!(same_shape(&[8], &[8, 1]) && same_shape(&[8, 1, 4], &[8, 1, 4]));
        assert!(!same_shape(&[8, 1, 4], &[8, 4]) && !same_shape(&[8], &[1, 8]));
    }
}

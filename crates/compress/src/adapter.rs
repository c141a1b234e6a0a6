//! A low-rank adapter merged into its base, file to file, one matrix in memory at a time.
//!
//! Weights of matrices with a pair become W₀ + s·B·A, summed in f32 and rounded once to the base's
//! element type; all others keep their bits. Every tensor of the adapter must be half of a pair that
//! fits a matrix of the base.

use crate::merge::{MergeError, encode};
use hybra_checkpoint::{Checkpoint, SafetensorsOptions, SafetensorsWriter, TensorInfo};
use hybra_kernels::Isa;
use hybra_kernels::ops::quantize::dequantize_row;
use hybra_model::Config;
use hybra_model::load::{Found, file_type, find_tensors, weight_type};
use hybra_model::lora::{AdapterConfig, add_product, matrix_of};
use std::collections::BTreeMap;
use std::path::Path;

/// A and B of a matrix, as values.
type Pairs = BTreeMap<String, [Option<Vec<f32>>; 2]>;

/// Writes `base` with the adapter in it to `out`.
///
/// # Errors
/// [`MergeError`]; `out` is then as it was.
pub fn merge_adapter(
    base: &Checkpoint,
    (adapter, settings): (&Checkpoint, &AdapterConfig),
    out: &Path,
    side_files: &[(&str, &[u8])],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(), MergeError> {
    if base.gguf().is_some() {
        return Err(MergeError::Gguf { path: base.path().to_owned() });
    }
    let tensors = find_tensors(base, &Config::from_checkpoint(base)?)?;
    let mut pairs = read_pairs(base, &tensors, adapter, settings.r)?;
    let info = |found: &Found| {
        TensorInfo::new(&found.spec.name, file_type(found.dtype), &found.spec.shape)
    };
    let infos: Vec<_> = tensors.iter().map(info).collect();
    let options = SafetensorsOptions { overwrite: true, ..Default::default() };
    let mut writer = SafetensorsWriter::create(out, &infos, side_files, &options)?;
    for (at, found) in tensors.iter().enumerate() {
        let bytes = match pairs.remove(&found.spec.name) {
            Some([Some(a), Some(b)]) => {
                let mut values = found.f32_values()?;
                add_product(settings.scale(), (&a, &b), &mut values, found.spec.row_len());
                encode(found, &values)?
            }
            _ => found.view.data.to_vec(),
        };
        writer.write(&found.spec.name, &bytes)?;
        progress(at + 1, tensors.len());
    }
    Ok(writer.finish()?)
}

/// The pairs by the name of their matrix, all whole.
fn read_pairs(
    base: &Checkpoint,
    tensors: &[Found],
    adapter: &Checkpoint,
    r: usize,
) -> Result<Pairs, MergeError> {
    let path = || adapter.path().to_owned();
    let mut pairs = Pairs::new();
    for info in adapter.tensors() {
        let name = &info.name;
        let matrix = matrix_of(name).and_then(|(matrix, is_b)| {
            let found = tensors.iter().find(|t| t.spec.name == matrix && t.spec.is_matrix())?;
            Some((matrix, found, is_b))
        });
        let Some((matrix, found, is_b)) = matrix else {
            let (tensor, base) = (name.clone(), base.path().to_owned());
            return Err(MergeError::Stray { path: path(), tensor, base });
        };
        let shape = if is_b { [found.spec.shape[0], r] } else { [r, found.spec.row_len()] };
        let view = adapter.require(name)?;
        let mut values = vec![0.0; view.shape.iter().product()];
        let dtype = weight_type(view.dtype).filter(|dtype| dtype.block_len() == 1);
        if let Some(dtype) = dtype.filter(|_| view.shape == shape) {
            dequantize_row(Isa::best(), dtype, view.data, &mut values);
        }
        if dtype.is_none() || view.shape != shape || values.iter().any(|value| !value.is_finite()) {
            return Err(MergeError::Pair {
                path: path(),
                tensor: name.clone(),
                expected: format!("finite values of F32, F16 or BF16 of shape {shape:?}"),
                found: format!("{:?} {:?}", view.dtype, view.shape),
            });
        }
        pairs.entry(matrix).or_default()[usize::from(is_b)] = Some(values);
    }
    for (matrix, pair) in &pairs {
        if let [Some(_), None] | [None, Some(_)] = pair {
            let (found, missing) = if pair[0].is_some() { ('A', 'B') } else { ('B', 'A') };
            return Err(MergeError::Half { path: path(), matrix: matrix.clone(), found, missing });
        }
    }
    Ok(pairs)
}

//! Writing checkpoints: all tensors are declared first, then their bytes are streamed in declared
//! order, in pieces of any size; no more than a buffer is held.
//!
//! What is written can be read back: whatever the readers refuse is refused here before any file
//! exists. `staging` makes the result atomic, `progress` checks the stream against the
//! declarations.

mod gguf;
mod progress;
mod safetensors;
mod staging;

use std::collections::HashSet;

use crate::{MAX_TENSORS, ShapeError, TensorInfo, WriteError};

pub use gguf::{GgufValue, GgufWriter};
pub use safetensors::{DEFAULT_SHARD_BYTES, SafetensorsOptions, SafetensorsWriter};

/// Bytes collected before they go to a file.
const BUFFER_BYTES: usize = 1 << 20;

/// Checks what both formats ask of declarations; gives the byte length of each.
fn check_declared(tensors: &[TensorInfo]) -> Result<Vec<u64>, WriteError> {
    if tensors.len() > MAX_TENSORS {
        let found = tensors.len();
        return Err(WriteError::TooMany { what: "tensors", found, max: MAX_TENSORS });
    }
    let mut names = HashSet::new();
    for tensor in tensors {
        if !names.insert(&tensor.name) {
            return Err(WriteError::DeclaredTwice { name: tensor.name.clone() });
        }
    }
    let mut lens = Vec::new();
    let mut total = 0u64;
    for info in tensors {
        let refused = |defect| WriteError::BadShape {
            tensor: info.name.clone(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            defect,
        };
        let len = info.byte_len().map_err(refused)? as u64;
        // Half the range is left for headers and padding, so later sums of offsets cannot overflow.
        total = total
            .checked_add(len)
            .filter(|&total| total <= u64::MAX / 2)
            .ok_or_else(|| refused(ShapeError::Overflow))?;
        lens.push(len);
    }
    Ok(lens)
}

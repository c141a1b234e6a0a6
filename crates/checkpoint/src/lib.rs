//! Safetensors and GGUF, read and written: the only parser of model files; knows no model.
//!
//! What always holds:
//! - [`Checkpoint::open`] checks every header field before a tensor can be reached; a view it hands
//!   out lies inside its file, has exactly the bytes its type and shape ask for, and shares no byte
//!   with another tensor.
//! - Bytes from outside give an [`Error`] that names the file and the tensor, key or offset. No
//!   input panics, and no allocation is sized by a number read from a file.
//! - Tensor data is never copied: a [`Region`] keeps its mapping alive and is cheap to clone.
//! - A writer's target is the complete new checkpoint or what was there before, never a part. Only
//!   replacing a directory has an instant with neither; see [`SafetensorsOptions::overwrite`].
//!
//! Values are moved as bytes. Turning them into numbers (dequantization) belongs to the kernels.
//!
//! Sources: the [safetensors format](https://github.com/huggingface/safetensors#format) and the
//! [GGUF specification](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

#![deny(unsafe_code)]

mod checkpoint;
mod dtype;
mod error;
mod files;
mod gguf;
mod json;
mod mmap;
mod safetensors;
mod shard;
mod tensor;
mod write;

pub use checkpoint::{Checkpoint, Format};
pub use dtype::{Dtype, ShapeError};
pub use error::{Error, GgufError, IndexError, SafetensorsError, WriteError};
pub use files::MAX_TEXT_BYTES;
pub use gguf::{Gguf, OneOrMany};
pub use json::relax_json;
pub use mmap::{Mapping, Region};
pub use safetensors::{MAX_HEADER_BYTES, MAX_RANK};
pub use tensor::{MAX_TENSORS, TensorInfo, TensorView};
pub use write::{
    DEFAULT_SHARD_BYTES, GgufValue, GgufWriter, SafetensorsOptions, SafetensorsWriter,
};

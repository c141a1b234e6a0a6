//! What a checkpoint knows of a tensor: its declaration and, once read, where its bytes lie.

use crate::{Dtype, Region, ShapeError};

/// Most tensors a file may declare. Members of the family hold a few hundred; a header that
/// declares more than this is built to waste memory.
pub const MAX_TENSORS: usize = 65_536;

/// Name, element type and shape of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in the file.
    pub name: String,
    /// The element type in the file.
    pub dtype: Dtype,
    /// Dimensions in row-major order (NumPy, Hugging Face), also for GGUF, whose own order is the
    /// reverse. `[]` is a single value.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Puts a declaration together; nothing is checked until it is read or written.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: &[usize]) -> TensorInfo {
        TensorInfo { name: name.into(), dtype, shape: shape.to_vec() }
    }

    /// Bytes of the tensor's data.
    ///
    /// # Errors
    /// See [`Dtype::byte_len`].
    pub fn byte_len(&self) -> Result<usize, ShapeError> {
        self.dtype.byte_len(&self.shape)
    }
}

/// A tensor of an open checkpoint. `data.len()` is what `dtype` and `shape` ask for.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// The name in the file.
    pub name: &'a str,
    /// The element type in the file.
    pub dtype: Dtype,
    /// Dimensions in row-major order.
    pub shape: &'a [usize],
    /// The bytes, little-endian, as they lie in the file; of no particular alignment.
    pub data: &'a [u8],
    region: &'a Region,
}

impl TensorView<'_> {
    /// The bytes as an owned handle that keeps the file mapped; nothing is copied.
    pub fn region(&self) -> Region {
        self.region.clone()
    }
}

/// A tensor that passed every check of its format's reader.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) info: TensorInfo,
    pub(crate) region: Region,
}

impl Tensor {
    pub(crate) fn view(&self) -> TensorView<'_> {
        let TensorInfo { name, dtype, shape } = &self.info;
        TensorView { name, dtype: *dtype, shape, data: &self.region, region: &self.region }
    }
}

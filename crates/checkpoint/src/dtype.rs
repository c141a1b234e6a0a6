//! Element types as files spell them, and the byte size of a tensor.
//!
//! A type is a block of `block_len` consecutive values of one row stored in `block_bytes` bytes;
//! plain numbers are blocks of one. Sizes are computed with checked arithmetic only.

use std::fmt;

use thiserror::Error;

/// The type of a tensor's elements in a file.
///
/// The plain numbers come in the order of the reference safetensors writer (rising alignment); that
/// writer lays tensors out in falling order of this enum. The ggml block types follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned 8 bit.
    U8,
    /// Signed 8 bit.
    I8,
    /// Signed 16 bit.
    I16,
    /// Unsigned 16 bit.
    U16,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Signed 32 bit.
    I32,
    /// Unsigned 32 bit.
    U32,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// Signed 64 bit.
    I64,
    /// Unsigned 64 bit.
    U64,
    /// ggml: 32 values in 18 bytes.
    Q4_0,
    /// ggml: 32 values in 20 bytes.
    Q4_1,
    /// ggml: 32 values in 22 bytes.
    Q5_0,
    /// ggml: 32 values in 24 bytes.
    Q5_1,
    /// ggml: 32 values in 34 bytes.
    Q8_0,
    /// ggml: 32 values in 18 bytes, non-linear levels.
    Iq4Nl,
    /// ggml: 256 values in 144 bytes.
    Q4K,
    /// ggml: 256 values in 176 bytes.
    Q5K,
    /// ggml: 256 values in 210 bytes.
    Q6K,
}

/// One row per type: (type, file name, values in a block, bytes of a block, ggml id).
/// The ggml id is `None` where GGUF files of this family never hold the type.
const TABLE: [(Dtype, &str, usize, usize, Option<u32>); 22] = [
    (Dtype::Bool, "BOOL", 1, 1, None),
    (Dtype::U8, "U8", 1, 1, None),
    (Dtype::I8, "I8", 1, 1, None),
    (Dtype::I16, "I16", 1, 2, None),
    (Dtype::U16, "U16", 1, 2, None),
    (Dtype::F16, "F16", 1, 2, Some(1)),
    (Dtype::Bf16, "BF16", 1, 2, Some(30)),
    (Dtype::I32, "I32", 1, 4, None),
    (Dtype::U32, "U32", 1, 4, None),
    (Dtype::F32, "F32", 1, 4, Some(0)),
    (Dtype::F64, "F64", 1, 8, None),
    (Dtype::I64, "I64", 1, 8, None),
    (Dtype::U64, "U64", 1, 8, None),
    (Dtype::Q4_0, "Q4_0", 32, 18, Some(2)),
    (Dtype::Q4_1, "Q4_1", 32, 20, Some(3)),
    (Dtype::Q5_0, "Q5_0", 32, 22, Some(6)),
    (Dtype::Q5_1, "Q5_1", 32, 24, Some(7)),
    (Dtype::Q8_0, "Q8_0", 32, 34, Some(8)),
    (Dtype::Iq4Nl, "IQ4_NL", 32, 18, Some(20)),
    (Dtype::Q4K, "Q4_K", 256, 144, Some(12)),
    (Dtype::Q5K, "Q5_K", 256, 176, Some(13)),
    (Dtype::Q6K, "Q6_K", 256, 210, Some(14)),
];

/// Names of the ggml types that are not read, for error messages (ggml.h, `enum ggml_type`).
const OTHER_GGML: [(u32, &str); 19] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
];

/// Why a type and a shape make no tensor.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ShapeError {
    /// A dimension is 0: the tensor would have no bytes of its own.
    #[error("dimension {axis} is 0")]
    ZeroDim {
        /// Index of the dimension, row-major order.
        axis: usize,
    },
    /// The number of elements or bytes does not fit this machine's address space.
    #[error("the size overflows")]
    Overflow,
    /// Quantized rows are whole blocks.
    #[error("the row length {row} is not a multiple of the block length {block}")]
    RowNotBlocks {
        /// Values in a row (the last dimension).
        row: usize,
        /// Values in a block.
        block: usize,
    },
}

impl Dtype {
    fn row(self) -> &'static (Dtype, &'static str, usize, usize, Option<u32>) {
        &TABLE[self as usize]
    }

    /// The type's name as safetensors or ggml spells it.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Values in a block; 1 for plain numbers.
    pub fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// Whether the type is one of ggml's block formats, which only GGUF files hold.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of a tensor of this type with `shape` in row-major order; `[]` is one value.
    ///
    /// # Errors
    /// A dimension of 0, a size that overflows, or a last dimension that is not whole blocks.
    pub fn byte_len(self, shape: &[usize]) -> Result<usize, ShapeError> {
        if let Some(axis) = shape.iter().position(|&dim| dim == 0) {
            return Err(ShapeError::ZeroDim { axis });
        }
        let values = shape
            .iter()
            .try_fold(1usize, |product, &dim| product.checked_mul(dim))
            .ok_or(ShapeError::Overflow)?;
        let (row, block) = (shape.last().copied().unwrap_or(1), self.block_len());
        if row % block != 0 {
            return Err(ShapeError::RowNotBlocks { row, block });
        }
        (values / block).checked_mul(self.block_bytes()).ok_or(ShapeError::Overflow)
    }

    /// The type a safetensors header calls `name`.
    pub(crate) fn from_safetensors(name: &str) -> Option<Dtype> {
        TABLE.iter().find(|row| row.1 == name && row.2 == 1).map(|row| row.0)
    }

    /// The type with ggml's number `id`, if it is one that is read here.
    pub(crate) fn from_ggml(id: u32) -> Option<Dtype> {
        TABLE.iter().find(|row| row.4 == Some(id)).map(|row| row.0)
    }

    /// ggml's number of the type, if GGUF files may hold it.
    pub(crate) fn ggml_id(self) -> Option<u32> {
        self.row().4
    }
}

/// ggml's name for a type that is not read here, or its number.
pub(crate) fn ggml_name(id: u32) -> String {
    OTHER_GGML
        .iter()
        .find(|(other, _)| *other == id)
        .map_or_else(|| format!("number {id}"), |(_, name)| (*name).to_owned())
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, index, "{}", row.1);
            assert_eq!(row.0.name(), row.1);
        }
    }

    #[test]
    fn byte_lengths() {
        assert_eq!(Dtype::F32.byte_len(&[]), Ok(4));
        assert_eq!(Dtype::Q4K.byte_len(&[3, 512]), Ok(3 * 2 * 144));
        assert_eq!(Dtype::Q6K.byte_len(&[2, 256]), Ok(420));
        assert_eq!(
            Dtype::Q4K.byte_len(&[4480, 4480]),
            Err(ShapeError::RowNotBlocks { row: 4480, block: 256 })
        );
        assert_eq!(Dtype::Q8_0.byte_len(&[]), Err(ShapeError::RowNotBlocks { row: 1, block: 32 }));
        assert_eq!(Dtype::I8.byte_len(&[4, 0]), Err(ShapeError::ZeroDim { axis: 1 }));
        assert_eq!(Dtype::I8.byte_len(&[usize::MAX, 2]), Err(ShapeError::Overflow));
        assert_eq!(Dtype::I16.byte_len(&[usize::MAX]), Err(ShapeError::Overflow));
    }

    #[test]
    fn names_lead_back() {
        assert_eq!(Dtype::from_safetensors("BF16"), Some(Dtype::Bf16));
        assert_eq!(Dtype::from_safetensors("Q4_0"), None);
        assert_eq!(Dtype::from_ggml(20), Some(Dtype::Iq4Nl));
        assert_eq!(Dtype::from_ggml(10), None);
        assert_eq!(ggml_name(10), "Q2_K");
        assert_eq!(ggml_name(23), "IQ4_XS");
        assert_eq!(ggml_name(4_000_000_000), "number 4000000000");
    }
}

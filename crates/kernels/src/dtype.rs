//! Element types of weights, their block layouts and byte sizes.
//!
//! A block format stores `block_len` consecutive values of a row in `block_bytes` bytes, in
//! ggml's layout; a row is a whole number of blocks. Values decode to f32 exactly as in ggml
//! (see [`crate::ops::quantize`]).

use std::fmt;

/// Element type of a weight matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 32 values: f16 scale, 4-bit values minus 8.
    Q4_0,
    /// 32 values: f16 scale and minimum, 4-bit values.
    Q4_1,
    /// 32 values: f16 scale, 5-bit values minus 16.
    Q5_0,
    /// 32 values: f16 scale and minimum, 5-bit values.
    Q5_1,
    /// 32 values: f16 scale, int8 values.
    Q8_0,
    /// 32 values: f16 scale, 4-bit indices into a table of 16 levels.
    Iq4Nl,
    /// 256 values: 8 sub-blocks with 6-bit scales and minima, 4-bit values.
    Q4K,
    /// 256 values: 8 sub-blocks with 6-bit scales and minima, 5-bit values.
    Q5K,
    /// 256 values: 16 sub-blocks with 8-bit scales, 6-bit values minus 32.
    Q6K,
}

impl DType {
    /// All element types.
    pub const ALL: [DType; 12] = [
        DType::F32,
        DType::F16,
        DType::Bf16,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
        DType::Iq4Nl,
        DType::Q4K,
        DType::Q5K,
        DType::Q6K,
    ];

    /// The name that GGUF tools use.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::Bf16 => "BF16",
            DType::Q4_0 => "Q4_0",
            DType::Q4_1 => "Q4_1",
            DType::Q5_0 => "Q5_0",
            DType::Q5_1 => "Q5_1",
            DType::Q8_0 => "Q8_0",
            DType::Iq4Nl => "IQ4_NL",
            DType::Q4K => "Q4_K",
            DType::Q5K => "Q5_K",
            DType::Q6K => "Q6_K",
        }
    }

    /// Values in a block.
    pub fn block_len(self) -> usize {
        match self {
            DType::F32 | DType::F16 | DType::Bf16 => 1,
            DType::Q4K | DType::Q5K | DType::Q6K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
            DType::Q4_0 | DType::Iq4Nl => 18,
            DType::Q4_1 => 20,
            DType::Q5_0 => 22,
            DType::Q5_1 => 24,
            DType::Q8_0 => 34,
            DType::Q4K => 144,
            DType::Q5K => 176,
            DType::Q6K => 210,
        }
    }

    /// Bytes of a row of `cols` values, or `None` if it is not a whole number of blocks.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let blocks = cols.is_multiple_of(self.block_len()).then_some(cols / self.block_len())?;
        blocks.checked_mul(self.block_bytes())
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A weight matrix in its stored format: `rows` output features of `cols` input features.
#[derive(Clone, Copy)]
pub struct WeightRef<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    data: &'a [u8],
}

impl<'a> WeightRef<'a> {
    /// A view of `data`; it may lie at any address.
    ///
    /// # Panics
    /// If the length does not fit the shape (loaders check shapes before).
    pub fn new(dtype: DType, rows: usize, cols: usize, data: &'a [u8]) -> Self {
        let row_bytes = dtype.row_bytes(cols).expect("rows are whole blocks");
        assert_eq!(data.len(), rows * row_bytes, "{dtype} {rows}×{cols}");
        Self { dtype, rows, cols, row_bytes, data }
    }

    /// Element type.
    pub fn dtype(self) -> DType {
        self.dtype
    }

    /// Output features.
    pub fn rows(self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(self) -> usize {
        self.cols
    }

    /// The stored bytes of the values `from .. from + len` of row `r`; both must be multiples of
    /// the block length.
    #[inline(always)]
    pub fn row_part(self, r: usize, from: usize, len: usize) -> &'a [u8] {
        let (bl, bb) = (self.dtype.block_len(), self.dtype.block_bytes());
        let start = r * self.row_bytes + from / bl * bb;
        &self.data[start..start + len / bl * bb]
    }
}

//! Weight matrices on the device: layouts and upload.
//!
//! | file | computing in f32 | computing in bf16 |
//! |---|---|---|
//! | F32, F16 | f32, exact | rounded to bf16 |
//! | BF16 | f32, exact | bf16, exact |
//! | Q8_0 | f32, exact | 8-bit quants and f16 scales, exact |
//! | Q4_0 | f32, exact | 4-bit quants and f16 scales, exact |
//! | every other | f32, exact | decoded and rounded to bf16: 2 bytes a value |
//!
//! Invariants: a row is [`stride`] values, those behind the columns count as zero. Quants and
//! scales lie apart, quants first, both from a multiple of 256 bytes on. Quants of a row follow each
//! other in the order in which the lanes of a warp take them as operands of m16n8k16:
//! - 8 bits, 16 values in 16 bytes: byte 4t + 2o + h is value 2t + 8h + o (t < 4, o and h 0 or 1);
//! - 4 bits, 32 values in 16 bytes: nibble 8t + 4o + h is value 2t + 8h + o (t < 4, o < 2, h < 4).
//!
//! Scales are `[rows / 64, blocks, 64]`: the scale of block b (32 values) of row r is at
//! \[r / 64, b, r % 64\], so that tiles of columns of a product read it in whole sectors.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::DeviceBuffer;
use crate::stride;
use bytemuck::cast_slice_mut;
use half::bf16;
use half::slice::HalfFloatSliceExt;
use hybra_kernels::ops::quantize::dequantize_row;
use hybra_kernels::{DType, Isa, WeightRef};

/// What a model's matrix products compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// f32 throughout: the exact path.
    F32,
    /// bf16 activations on tensor cores, sums in f32.
    Bf16,
}

/// How a matrix lies on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// f32.
    F32,
    /// bf16.
    Bf16,
    /// 8-bit quants, an f16 scale for 32.
    Q8,
    /// 4-bit quants less 8, an f16 scale for 32.
    Q4,
}

impl Format {
    /// The format that weights of `dtype` get.
    fn of(dtype: DType, compute: Compute) -> Self {
        match (compute, dtype) {
            (Compute::F32, _) => Self::F32,
            (Compute::Bf16, DType::Q8_0) => Self::Q8,
            (Compute::Bf16, DType::Q4_0) => Self::Q4,
            (Compute::Bf16, _) => Self::Bf16,
        }
    }

    /// Bits of a value, without scales.
    pub(crate) const fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::Bf16 => 16,
            Self::Q8 => 8,
            Self::Q4 => 4,
        }
    }

    /// Bytes of a row, without scales.
    const fn row_bytes(self, cols: usize) -> usize {
        stride(cols) * self.bits() / 8
    }

    /// Scales of a row.
    const fn blocks(self, cols: usize) -> usize {
        match self {
            Self::F32 | Self::Bf16 => 0,
            Self::Q8 | Self::Q4 => stride(cols) / 32,
        }
    }
}

/// Rows whose scales lie together.
const GROUP: usize = 64;

/// Bytes of host memory that an upload takes, if a group of rows is not longer.
const CHUNK_BYTES: usize = 16 << 20;

const fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(256)
}

/// Bytes of device memory that [`DeviceMatrix::upload`] takes for a matrix.
#[must_use]
pub fn device_bytes(dtype: DType, rows: usize, cols: usize, compute: Compute) -> usize {
    let format = Format::of(dtype, compute);
    let scales = rows.next_multiple_of(GROUP) * format.blocks(cols) * 2;
    aligned(rows * format.row_bytes(cols)) + aligned(scales)
}

/// A weight matrix on the device: `rows` output features of `cols` input features.
pub struct DeviceMatrix {
    format: Format,
    rows: usize,
    cols: usize,
    data: DeviceBuffer<u8>,
}

impl DeviceMatrix {
    /// Copies a matrix to the device, a part after the other, on so many threads.
    ///
    /// # Errors
    /// Not enough device memory.
    pub fn upload(
        gpu: &Gpu,
        weight: WeightRef,
        compute: Compute,
        threads: usize,
    ) -> Result<Self, CudaError> {
        let (rows, cols) = (weight.rows(), weight.cols());
        let format = Format::of(weight.dtype(), compute);
        let mut data = gpu.alloc::<u8>(device_bytes(weight.dtype(), rows, cols, compute))?;
        let (row_bytes, blocks) = (format.row_bytes(cols), format.blocks(cols));
        let scales = aligned(rows * row_bytes);
        let groups = (CHUNK_BYTES / (GROUP * (row_bytes + 2 * blocks)).max(1)).max(1);
        // f32, so that any format may lie there.
        let mut chunk = vec![0f32; (GROUP * groups).min(rows) * row_bytes / 4];
        let mut chunk_scales = vec![0u16; GROUP * groups * blocks];
        for first in (0..rows).step_by(GROUP * groups) {
            let len = (GROUP * groups).min(rows - first);
            let to = first * row_bytes..(first + len) * row_bytes;
            if format == Format::Bf16 && weight.dtype() == DType::Bf16 && cols == stride(cols) {
                gpu.upload(data.slice_mut(to), weight.row_part(first, 0, len * cols))?;
                continue;
            }
            let quants: &mut [u8] = cast_slice_mut(&mut chunk[..len * row_bytes / 4]);
            let chunk_scales = &mut chunk_scales[..len.next_multiple_of(GROUP) * blocks];
            chunk_scales.fill(0);
            encode(weight, format, first, (quants, chunk_scales), threads);
            gpu.upload(data.slice_mut(to), quants)?;
            let (from, bytes) = (scales + first * blocks * 2, size_of_val(chunk_scales));
            let to = data.slice_mut(from..from + bytes);
            gpu.upload(to, bytemuck::cast_slice(chunk_scales))?;
        }
        Ok(Self { format, rows, cols, data })
    }

    /// Output features.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The layout.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Bytes of device memory: [`device_bytes`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.bytes()
    }

    /// Address of the first row.
    pub(crate) fn ptr(&self) -> u64 {
        self.data.slice(..).ptr()
    }

    /// Address of the first scale; null where there are none.
    pub(crate) fn scales_ptr(&self) -> u64 {
        match self.format.blocks(self.cols) {
            0 => 0,
            _ => self.ptr() + aligned(self.rows * self.format.row_bytes(self.cols)) as u64,
        }
    }
}

/// Rows from `first` on in the layout of `format`, as many as `quants` holds. What is behind the
/// matrix's columns and rows stays as it is: zero.
fn encode(
    weight: WeightRef,
    format: Format,
    first: usize,
    (quants, scales): (&mut [u8], &mut [u16]),
    threads: usize,
) {
    let group_bytes = GROUP * format.row_bytes(weight.cols());
    let group_scales = GROUP * format.blocks(weight.cols());
    let groups = quants.len().div_ceil(group_bytes.max(1)).div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        let mut scales = scales.chunks_mut((groups * group_scales).max(1));
        for (i, quants) in quants.chunks_mut((groups * group_bytes).max(1)).enumerate() {
            let scales = scales.next().unwrap_or_default();
            scope.spawn(move || {
                encode_part(weight, format, first + i * groups * GROUP, quants, scales)
            });
        }
    });
}

fn encode_part(
    weight: WeightRef,
    format: Format,
    first: usize,
    quants: &mut [u8],
    scales: &mut [u16],
) {
    let (isa, cols, blocks) = (Isa::best(), weight.cols(), format.blocks(weight.cols()));
    let mut decoded = vec![0f32; cols];
    for (i, row) in quants.chunks_exact_mut(format.row_bytes(cols)).enumerate() {
        let data = weight.row_part(first + i, 0, cols);
        let mut scale = |b: usize, bits: u16| {
            scales[i / GROUP * blocks * GROUP + b * GROUP + i % GROUP] = bits;
        };
        match format {
            Format::F32 => {
                let row: &mut [f32] = cast_slice_mut(row);
                dequantize_row(isa, weight.dtype(), data, &mut row[..cols]);
            }
            Format::Bf16 => {
                dequantize_row(isa, weight.dtype(), data, &mut decoded);
                let row: &mut [bf16] = cast_slice_mut(row);
                row[..cols].convert_from_f32_slice(&decoded);
            }
            Format::Q8 => {
                let (to, _) = row.as_chunks_mut();
                for (b, (from, to)) in data.as_chunks().0.iter().zip(to).enumerate() {
                    scale(b, encode_q8(from, to));
                }
            }
            Format::Q4 => {
                let (to, _) = row.as_chunks_mut();
                for (b, (from, to)) in data.as_chunks().0.iter().zip(to).enumerate() {
                    scale(b, encode_q4(from, to));
                }
            }
        }
    }
}

/// The quants of a block of Q8_0 in the device's order; its scale.
fn encode_q8(from: &[u8; 34], to: &mut [u8; 32]) -> u16 {
    for (half, to) in to.chunks_exact_mut(16).enumerate() {
        let from = &from[2 + 16 * half..][..16];
        for t in 0..4 {
            for (i, value) in [2 * t, 2 * t + 8, 2 * t + 1, 2 * t + 9].into_iter().enumerate() {
                to[4 * t + i] = from[value];
            }
        }
    }
    u16::from_le_bytes([from[0], from[1]])
}

/// The quants of a block of Q4_0 in the device's order; its scale.
fn encode_q4(from: &[u8; 18], to: &mut [u8; 16]) -> u16 {
    // Byte j of the block holds values j (low) and j + 16 (high).
    let pairs = &from[2..];
    for t in 0..4 {
        for odd in 0..2 {
            let (first, second) = (pairs[2 * t + odd], pairs[2 * t + odd + 8]);
            to[4 * t + 2 * odd] = first & 15 | second << 4;
            to[4 * t + 2 * odd + 1] = first >> 4 | second & 0xf0;
        }
    }
    u16::from_le_bytes([from[0], from[1]])
}

//! Matrix products with weights: `x · Wᵀ`, x `[M, stride(K)]` of the compute type, W `[N, K]`.
//!
//! An output is one f32 sum over k in ascending order, never split, so that a row has the same bits
//! for any number of rows and any shape of tile:
//! - f32: a fused multiply-add for every k;
//! - bf16: tensor cores, 16 products at a time (their sum within is the hardware's own);
//! - 8 and 4 bits: `acc = fma(scale, Σ x·q, acc)` for every block of 32, the inner sum on tensor
//!   cores. Quants are exact there; only activations are bf16.
//!
//! Shapes of tile for few rows stream the weights once through many small blocks; the largest is
//! for many rows. Which one runs depends on the number of rows, columns and multiprocessors.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::{DeviceSlice, DeviceSliceMut};
use crate::ops::Value;
use crate::stride;
use crate::weights::{DeviceMatrix, Format};

/// As in matmul.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct MatmulArgs {
    x: u64,
    weight: u64,
    scales: u64,
    out: u64,
    ld_out: u64,
    m: u32,
    n: u32,
    stride: u32,
    columns: u32,
    epilogue: u32,
    row_tiles: u32,
}

/// What becomes of the products, M rows of N.
pub enum Epilogue<'a, T> {
    /// `out = product`: row m starts at `m * stride`, the last may end after N values.
    Store {
        /// The output.
        out: DeviceSliceMut<'a, f32>,
        /// From row to row, at least N.
        stride: usize,
    },
    /// `out += product`, the residual stream; as for `Store`.
    Add {
        /// The sum.
        out: DeviceSliceMut<'a, f32>,
        /// From row to row, at least N.
        stride: usize,
    },
    /// `out = max(product, 0)²`, `[M, stride(N)]` with zeros behind N: input of the next product.
    Relu2 {
        /// The output.
        out: DeviceSliceMut<'a, T>,
    },
}

/// A shape of tile: how many rows and columns of the output a block computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 8 × 16.
    R8C16,
    /// 8 × 32.
    R8C32,
    /// 16 × 32.
    R16C32,
    /// 32 × 32.
    R32C32,
    /// 64 × 64.
    R64C64,
    /// 128 × 128.
    R128C128,
}

/// A kernel: its name, k in a stage and stages.
type Kernel = (&'static str, u32, u32);

/// All there is to launch a shape; as in matmul.cu. Weights in f32 have two shapes, with fixed
/// shared memory.
struct Launch {
    rows: u32,
    columns: u32,
    threads: u32,
    kernels: [Kernel; 3],
}

const fn launch(rows: u32, columns: u32, threads: u32, kernels: [Kernel; 3]) -> Launch {
    Launch { rows, columns, threads, kernels }
}

impl Tile {
    /// All shapes.
    pub const ALL: [Self; 6] =
        [Self::R8C16, Self::R8C32, Self::R16C32, Self::R32C32, Self::R64C64, Self::R128C128];

    #[rustfmt::skip]
    const fn launch(self) -> Launch {
        match self {
            Self::R8C16 => launch(8, 16, 64, [
                ("matmul_bf16_8x16", 256, 4),
                ("matmul_q8_8x16", 256, 4),
                ("matmul_q4_8x16", 256, 6),
            ]),
            Self::R8C32 => launch(8, 32, 64, [
                ("matmul_bf16_8x32", 128, 6),
                ("matmul_q8_8x32", 256, 4),
                ("matmul_q4_8x32", 256, 6),
            ]),
            Self::R16C32 => launch(16, 32, 64, [
                ("matmul_bf16_16x32", 128, 6),
                ("matmul_q8_16x32", 256, 4),
                ("matmul_q4_16x32", 256, 6),
            ]),
            Self::R32C32 => launch(32, 32, 128, [
                ("matmul_bf16_32x32", 128, 4),
                ("matmul_q8_32x32", 128, 6),
                ("matmul_q4_32x32", 128, 6),
            ]),
            Self::R64C64 => launch(64, 64, 128, [
                ("matmul_bf16_64x64", 64, 4),
                ("matmul_q8_64x64", 64, 4),
                ("matmul_q4_64x64", 64, 4),
            ]),
            Self::R128C128 => launch(128, 128, 128, [
                ("matmul_bf16_128x128", 32, 4),
                ("matmul_q8_128x128", 32, 4),
                ("matmul_q4_128x128", 32, 4),
            ]),
        }
    }

    /// The shape for `rows` × `columns` outputs.
    fn choose(rows: usize, columns: usize, multiprocessors: usize) -> Self {
        let blocks = |tile: Self| {
            let Launch { rows: r, columns: c, .. } = tile.launch();
            rows.div_ceil(r as usize) * columns.div_ceil(c as usize)
        };
        match rows {
            // Two blocks or more on a multiprocessor hide the latency of memory.
            ..=8 if blocks(Self::R8C32) >= 2 * multiprocessors => Self::R8C32,
            ..=8 => Self::R8C16,
            9..=16 => Self::R16C32,
            17..=32 => Self::R32C32,
            65.. if blocks(Self::R128C128) >= multiprocessors => Self::R128C128,
            _ if blocks(Self::R64C64) >= multiprocessors => Self::R64C64,
            // Blocks with the same weights run together and read them once from memory.
            _ => Self::R32C32,
        }
    }

    /// Kernel, tile rows and columns, threads, and bytes of dynamic shared memory.
    fn kernel(self, format: Format) -> (&'static str, [u32; 2], u32, u32) {
        let Launch { rows, columns, threads, kernels } = self.launch();
        let ((name, k, stages), scales) = match format {
            Format::F32 if rows <= 32 => return ("matmul_f32_8x32", [8, 32], 128, 0),
            Format::F32 => return ("matmul_f32_64x64", [64, 64], 256, 0),
            Format::Bf16 => (kernels[0], 0),
            Format::Q8 => (kernels[1], 1),
            Format::Q4 => (kernels[2], 1),
        };
        let weight_bytes = columns * k * format.bits() as u32 / 8 + k / 32 * columns * 2 * scales;
        (name, [rows, columns], threads, stages * (rows * k * 2 + weight_bytes))
    }
}

/// `x · weightᵀ`; M is the number of rows in `x`.
///
/// # Errors
/// What the driver says.
///
/// # Panics
/// If the sizes do not fit, or `T` is not what the weights are for: f32 for f32, else bf16.
pub fn matmul<T: Value>(
    gpu: &Gpu,
    x: DeviceSlice<T>,
    weight: &DeviceMatrix,
    epilogue: Epilogue<T>,
) -> Result<(), CudaError> {
    let rows = x.len() / stride(weight.cols());
    let tile = Tile::choose(rows, weight.rows(), gpu.info().multiprocessors);
    matmul_in_tiles(gpu, tile, x, weight, epilogue)
}

/// [`matmul`] in tiles of a given shape: same bits, for measurements and tests.
///
/// # Errors
/// As of [`matmul`].
///
/// # Panics
/// As of [`matmul`].
pub fn matmul_in_tiles<T: Value>(
    gpu: &Gpu,
    tile: Tile,
    x: DeviceSlice<T>,
    weight: &DeviceMatrix,
    epilogue: Epilogue<T>,
) -> Result<(), CudaError> {
    let (n, k) = (weight.rows(), stride(weight.cols()));
    let m = x.len() / k;
    assert_eq!(x.len(), m * k, "rows of {k} values");
    let format = weight.format();
    let fits = if format == Format::F32 { size_of::<f32>() } else { 2 };
    assert_eq!(size_of::<T>(), fits, "compute type for weights in {format:?}");
    let (kind, out, len, ld_out) = match &epilogue {
        Epilogue::Store { out, stride } => (0, out.ptr(), out.len(), *stride),
        Epilogue::Add { out, stride } => (1, out.ptr(), out.len(), *stride),
        Epilogue::Relu2 { out } => (2, out.ptr(), out.len(), stride(n)),
    };
    let columns = if kind == 2 { stride(n) } else { n };
    assert!(ld_out >= columns, "rows of {n} values, {ld_out} apart");
    if m == 0 {
        return Ok(());
    }
    assert!(len >= (m - 1) * ld_out + columns, "{m} rows of {n} values in {len}");
    let (name, [tile_rows, tile_columns], threads, shared_bytes) = tile.kernel(format);
    let row_tiles = (m as u32).div_ceil(tile_rows);
    let blocks = row_tiles as usize * columns.div_ceil(tile_columns as usize);
    let args = MatmulArgs {
        x: x.ptr(),
        weight: weight.ptr(),
        scales: weight.scales_ptr(),
        out,
        ld_out: ld_out as u64,
        m: m as u32,
        n: n as u32,
        stride: k as u32,
        columns: columns as u32,
        epilogue: kind,
        row_tiles,
    };
    gpu.launch(name, [blocks as u32, 1, 1], threads, shared_bytes, &args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_batches_stream_weights_and_prefill_takes_large_tiles() {
        let on_h200 = |rows, columns| Tile::choose(rows, columns, 132);
        assert_eq!(on_h200(1, 22656), Tile::R8C32);
        assert_eq!(on_h200(1, 4480), Tile::R8C16);
        assert_eq!(on_h200(16, 4480), Tile::R16C32);
        assert_eq!(on_h200(64, 4480), Tile::R32C32);
        assert_eq!(on_h200(64, 22656), Tile::R64C64);
        assert_eq!(on_h200(8192, 4480), Tile::R128C128);
        assert_eq!(on_h200(130, 7), Tile::R32C32);
    }

    #[test]
    fn every_shape_fits_into_shared_memory() {
        for tile in Tile::ALL {
            for format in [Format::F32, Format::Bf16, Format::Q8, Format::Q4] {
                let (name, .., bytes) = tile.kernel(format);
                assert!(bytes <= 96 << 10, "{name}: {bytes} bytes");
            }
        }
    }
}

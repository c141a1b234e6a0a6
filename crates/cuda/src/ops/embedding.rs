//! `out[t] = table[ids[t]]`: rows of a weight matrix of any format, decoded to f32, not rounded.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::{DeviceSlice, DeviceSliceMut};
use crate::stride;
use crate::weights::{DeviceMatrix, Format};

/// As in embedding.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct EmbeddingArgs {
    table: u64,
    scales: u64,
    ids: u64,
    out: u64,
    columns: u32,
    stride: u32,
}

/// Rows `ids` `[T]` of `table` `[V, D]` into `out`, `[T, D]`. Ids must be below V: they are not
/// checked here.
///
/// # Errors
/// What the driver says.
///
/// # Panics
/// If the sizes do not fit.
pub fn embedding(
    gpu: &Gpu,
    table: &DeviceMatrix,
    ids: DeviceSlice<u32>,
    out: DeviceSliceMut<f32>,
) -> Result<(), CudaError> {
    assert_eq!(out.len(), ids.len() * table.cols(), "rows of {} values", table.cols());
    let args = EmbeddingArgs {
        table: table.ptr(),
        scales: table.scales_ptr(),
        ids: ids.ptr(),
        out: out.ptr(),
        columns: table.cols() as u32,
        stride: stride(table.cols()) as u32,
    };
    let kernel = match table.format() {
        Format::F32 => "embedding_f32",
        Format::Bf16 => "embedding_bf16",
        Format::Q8 => "embedding_q8",
        Format::Q4 => "embedding_q4",
    };
    gpu.launch(kernel, [ids.len() as u32, 1, 1], 256, 0, &args)
}

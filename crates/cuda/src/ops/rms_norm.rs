//! Root-mean-square norms of rows, in f32.
//!
//! - [`rms_norm`]: `out = x · weight / √(mean(x²) + eps)` over each row.
//! - [`rms_norm_gated`]: `u = y · silu(z)`, then the same over each of G groups of columns of u: the
//!   norm at the end of a Mamba-2 mixer, where the gate comes first.
//!
//! Sources: Zhang and Sennrich 2019; `RMSNormGated` of state-spaces/mamba.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::{DeviceSlice, DeviceSliceMut};
use crate::ops::Value;
use crate::stride;

/// As in rms_norm.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct RmsNormArgs {
    x: u64,
    weight: u64,
    out: u64,
    width: u32,
    stride: u32,
    eps: f32,
    _end: u32,
}

/// Norms the rows of `x`, `[rows, width]`, into `out`, `[rows, stride(width)]`; `weight` `[width]`.
///
/// # Errors
/// What the driver says.
///
/// # Panics
/// If the sizes do not fit.
pub fn rms_norm<T: Value>(
    gpu: &Gpu,
    x: DeviceSlice<f32>,
    weight: DeviceSlice<f32>,
    eps: f32,
    out: DeviceSliceMut<T>,
) -> Result<(), CudaError> {
    let width = weight.len();
    let rows = x.len() / width;
    assert_eq!((x.len(), out.len()), (rows * width, rows * stride(width)), "rows of {width}");
    let args = RmsNormArgs {
        x: x.ptr(),
        weight: weight.ptr(),
        out: out.ptr(),
        width: width as u32,
        stride: stride(width) as u32,
        eps,
        _end: 0,
    };
    gpu.launch(T::pick("rms_norm_f32", "rms_norm_bf16"), [rows as u32, 1, 1], 256, 0, &args)
}

/// As in rms_norm_gated.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct RmsNormGatedArgs {
    y: u64,
    z: u64,
    weight: u64,
    out: u64,
    groups: u32,
    width: u32,
    y_stride: u32,
    z_stride: u32,
    stride: u32,
    eps: f32,
}

/// Norms `y · silu(z)` over each of `n_groups` groups of columns into `out`, `[rows, stride(D)]`;
/// `weight` `[D]`. `y` and `z` are the first D columns of matrices, each given with its columns.
///
/// # Errors
/// What the driver says.
///
/// # Panics
/// If the sizes do not fit.
pub fn rms_norm_gated<T: Value>(
    gpu: &Gpu,
    y: (DeviceSlice<f32>, usize),
    z: (DeviceSlice<f32>, usize),
    weight: DeviceSlice<f32>,
    n_groups: usize,
    eps: f32,
    out: DeviceSliceMut<T>,
) -> Result<(), CudaError> {
    let (cols, [(y, y_cols), (z, z_cols)]) = (weight.len(), [y, z]);
    let rows = y.len() / y_cols;
    assert!(n_groups > 0 && cols.is_multiple_of(n_groups), "{cols} columns, {n_groups} groups");
    assert!(cols <= y_cols && cols <= z_cols, "{cols} of {y_cols} and of {z_cols} columns");
    assert_eq!([y.len(), z.len()], [rows * y_cols, rows * z_cols], "rows of y and z");
    assert_eq!(out.len(), rows * stride(cols), "{rows} rows of {cols}");
    let args = RmsNormGatedArgs {
        y: y.ptr(),
        z: z.ptr(),
        weight: weight.ptr(),
        out: out.ptr(),
        groups: n_groups as u32,
        width: (cols / n_groups) as u32,
        y_stride: y_cols as u32,
        z_stride: z_cols as u32,
        stride: stride(cols) as u32,
        eps,
    };
    let kernel = T::pick("rms_norm_gated_f32", "rms_norm_gated_bf16");
    gpu.launch(kernel, [rows as u32, n_groups as u32, 1], 256, 0, &args)
}

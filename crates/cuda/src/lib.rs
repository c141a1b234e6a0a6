//! Numeric ops of the model on an NVIDIA GPU.
//!
//! An op is a launcher in `src/ops/*.rs` over CUDA C++ in the `.cu` file beside it; it has the name
//! and meaning of the CPU's op in `hybra-kernels`. The driver and the compiler (NVRTC) are loaded
//! when a device is opened, so a binary with this crate builds and starts where neither exists.
//!
//! Invariants:
//! - A row's bits do not depend on the other rows of a call, nor on their number.
//! - No atomics: every sum has one order, and a call has the same bits whenever it is repeated.
//! - All work of a [`Gpu`] is in one stream, in the order of the calls.
//! - Inputs of matrix products are `[rows, stride]` of the model's compute type, with
//!   [`stride`]`(columns)` and zeros in the padding; everything else is f32.
//!
//! Tests run the kernels on an emulated device (`tests/emulator`), which has the driver's interface
//! and runs the same sources on the CPU, and on a GPU where there is one (docs/cuda.md).

#[cfg(feature = "cuda")]
mod compile;
#[cfg_attr(not(feature = "cuda"), path = "absent.rs")]
mod driver;
mod error;
mod memory;
pub mod ops;
mod weights;

#[cfg(feature = "cuda")]
pub use compile::{compile, kernel_sources};
pub use driver::{Gpu, Graph, Staging};
pub use error::CudaError;
pub use memory::{DeviceBuffer, DeviceInfo, DeviceSlice, DeviceSliceMut};
pub use weights::{Compute, DeviceMatrix, device_bytes};

/// Columns of a row that holds `columns` values: the next multiple of 64.
#[must_use]
pub const fn stride(columns: usize) -> usize {
    columns.div_ceil(64) * 64
}

//! One file per instruction set: the only place that imports `core::arch`.
//!
//! Each holds a zero-size token that can be made only where the CPU has the features, and the
//! [`crate::simd::Simd`] methods over its intrinsics.

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
pub mod peaks;
pub mod scalar;
pub(crate) mod tiles;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

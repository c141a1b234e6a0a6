//! The ops: a launcher each, over the CUDA source of the same name.

pub mod attention;
pub mod embedding;
pub mod limits;
pub mod mamba_split_conv1d_scan;
pub mod matmul;
pub mod rms_norm;
pub mod sample;

/// A compute type: of the inputs of matrix products, and of keys and values.
pub trait Value: bytemuck::Pod {
    /// The kernel for this type.
    fn pick(f32: &'static str, bf16: &'static str) -> &'static str;
}

impl Value for f32 {
    fn pick(f32: &'static str, _: &'static str) -> &'static str {
        f32
    }
}

impl Value for half::bf16 {
    fn pick(_: &'static str, bf16: &'static str) -> &'static str {
        bf16
    }
}

//! One file per op: formula and source, naive twin, body over [`crate::simd::Simd`], tests.

#![forbid(unsafe_code)]

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod attention_backward;
pub mod causal_conv1d;
pub mod embedding;
pub mod gemm;
mod iq4_nl;
mod kv_block;
mod kv_cache;
pub mod linear_cross_entropy;
pub mod linear_kl_div;
mod logits;
pub mod mamba_split_conv1d_scan;
pub mod mamba_split_conv1d_scan_backward;
pub mod packed;
pub mod product;
pub mod q8_rows;
pub mod quantize;
pub mod rms_norm;
pub mod selective_state_update;
pub mod ssd;
mod ssd_backward;
mod ssd_chunk;
mod ssd_tile;
pub mod ssm_state;
#[cfg(test)]
pub(crate) mod testing;
mod tile;

//! Training: data, losses, optimizer, trainer, communicator.

#![forbid(unsafe_code)]

pub mod cross_entropy;
pub mod data;
pub mod dpo;
pub mod objective;

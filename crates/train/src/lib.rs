//! Training: data, losses, optimizer, trainer, communicator.

#![forbid(unsafe_code)]

pub mod data;

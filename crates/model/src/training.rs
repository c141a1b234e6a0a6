//! Forward and backward of a model under training.

mod packed_batch;

pub use packed_batch::PackedBatch;

//! From conversations to packs of tokens with a loss mask.
//!
//! What always holds:
//! - Sample `i` of a run is a pure function of the seed and `i`: which source, which record, whether
//!   its reasoning is stripped or cut. Any part of a run can be made again on its own.
//! - The prompt part of a document equals, id by id, what [`hybra_chat`] sends to the engine for
//!   the same conversation; only what the model has to write is learned.
//! - A document is never split: it fits into a pack, or it is an error or a counted drop.
//! - Whatever a file holds is a document or an error that names file, line and field.

mod bpe;
mod config;
pub(crate) mod draw;
mod error;
mod literal;
mod loader;
pub(crate) mod mixture;
mod packing;
mod parquet_rows;
mod phases;
mod record;
mod sample;
mod source;
mod tasks;
mod trace;
mod turn;

pub use bpe::{BpeFiles, train_bpe};
pub use config::{DataConfig, SourceConfig, TooLong};
pub use error::{DataError, Place};
pub use loader::{Corpus, DataLoader, LoaderState, Sample};
pub use mixture::{Mixture, Pick};
pub use phases::Phases;
pub use record::{Conversation, Record};
pub use sample::{Document, SampleEncoder, Thinking, TokenClass};
pub use source::{Generator, Source};
pub use tasks::{task_examples, task_generator};

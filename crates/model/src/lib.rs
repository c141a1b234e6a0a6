//! Nemotron-H: config, tensor registry, weights, state, forward; no requests, no text.
//!
//! - [`nemotron_h`]: the model and its forward pass; read it first. [`reference`](mod@reference)
//!   is its slow twin.
//! - [`config`]: what a model is, read from `config.json` or GGUF and written to both;
//!   [`layer`]: one block of it; [`presets`]: built-in shapes.
//! - [`tensors`]: the registry of tensor names, shapes and roles; [`load`] finds them in a
//!   checkpoint; [`weights`] holds them.
//! - [`state`]: what a sequence carries, [`state_image`] as bytes; [`batch`]: the new tokens of several sequences;
//!   [`mod@logits`]: what a pass says of the next ones;
//!   [`NemotronH::accept`] forgets drafted tokens; [`NemotronH::run_layers`] runs some of the blocks.
//! - [`memory`], [`report`]: parameters and bytes, from the config alone.
//!
//! Deterministic: a result depends on weights, tokens, states and the instruction set, not on the
//! number of threads or on what else is in the batch.
#![forbid(unsafe_code)]

pub mod activations;
mod attention;
pub mod batch;
pub mod config;
pub mod density;
mod device;
mod draft;
pub mod error;
pub mod layer;
pub mod load;
pub mod logits;
pub mod lora;
mod mamba2;
mod matrix;
pub mod memory;
mod mlp;
pub mod nemotron_h;
pub mod observer;
pub mod parameters;
mod pieces;
pub mod presets;
pub mod random;
pub mod reference;
pub mod report;
pub mod state;
pub mod state_image;
pub mod states;
pub mod tensors;
pub mod training;
pub mod weights;

pub use activations::Activations;
pub use batch::{Batch, LogitsFor, Segment};
pub use config::Config;
pub use error::ConfigError;
pub use load::LoadError;
pub use logits::{LogitRow, Logits, TopLogits};
pub use nemotron_h::{ForwardError, NemotronH, OpenError, SCAN_CHUNK};
pub use observer::{BlockActivations, NoObserver, Observer};
pub use state::{SequenceState, StateDtypes};
pub use state_image::{StateBytes, StateImageError};
pub use states::States;
pub use weights::Weights;

//! The text side of generation: conversations become engine requests, events become text.
//!
//! What always holds:
//! - A prompt ends in the form of thinking (open, closed) that its request asks for, or it is an
//!   error; where a section starts is told to the engine, never guessed by it.
//! - [`Reply`] splits text by the engine's phases alone: reasoning, tags, answer and tool text are
//!   together all bytes of all tokens before a stop string, and no piece ends inside a character.
//! - Nothing here opens a file, prints, waits or draws randomness.
#![forbid(unsafe_code)]

mod chat_model;
mod error;
mod prompt;
mod reply;
mod sampling;

pub use chat_model::{ChatModel, Table};
pub use error::ChatError;
pub use prompt::{ChatInput, Prompt};
pub use reply::Reply;
pub use sampling::GenerationDefaults;

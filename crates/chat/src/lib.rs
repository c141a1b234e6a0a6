//! The text side of generation: conversations become engine requests, events become text.
//!
//! What always holds:
//! - A prompt ends in the form of thinking (open, closed) that its request asks for, or it is an
//!   error; where a section starts is told to the engine, never guessed by it.
//! - [`Reply`] splits text by the engine's phases alone: reasoning, tags, answer and tool text are
//!   together all bytes of all tokens before a stop string, and no piece ends inside a character.
//! - A grammar that a client sends compiles within a fixed time on a stack of its own, or is an
//!   error; what of a schema cannot be held is an error that names it.
//! - Nothing here opens a file, prints, waits or draws randomness.
#![forbid(unsafe_code)]

mod chat_model;
mod error;
mod grammar;
mod grammar_cache;
mod grammar_constraint;
mod grammar_language;
mod grammar_schema;
mod grammar_source;
mod prompt;
mod reply;
mod sampling;
mod tool_calls;
mod tool_calls_json;
mod tool_calls_parser;
mod tool_calls_string;

pub use chat_model::{ChatModel, Table};
pub use error::ChatError;
pub use grammar::{GrammarError, GrammarSpec, Grammars};
pub use prompt::{ChatInput, Prompt};
pub use reply::Reply;
pub use sampling::GenerationDefaults;
pub use tool_calls::{ToolChoice, ToolSpec, Tools};
pub use tool_calls_parser::{ToolCallParser, ToolDelta};

//! Text to token ids and back, chat template, streaming decode: the only crate that knows text.
//!
//! What always holds:
//! - Token ids are `u32`; the bytes that an id stands for are a function of the id alone
//!   ([`TokenBytes`]), so whole decoding, streaming decoding and text detection over bytes agree.
//! - A chat prompt becomes ids by [`ChatTemplate::render`] and then [`Tokenizer::encode_rendered`].
//!   No control string that a user, a tool or a client wrote reaches a control token; see
//!   [`ControlStrings`] for how.
//! - A template runs under fuel, an output limit and its own stack; a hostile one is an error.
//! - Nothing here opens a file: callers pass text (`from_files`) or metadata (`from_gguf`).
//!
//! ```no_run
//! use hybra_tokenizer::{ChatRequest, Message, SpecialIds, Tokenizer};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let json = std::fs::read_to_string("model/tokenizer.json")?;
//! let config = std::fs::read_to_string("model/tokenizer_config.json")?;
//! let tokenizer = Tokenizer::from_files(&json, Some(&config), None, &SpecialIds::default())?;
//! let request = ChatRequest {
//!     messages: vec![Message::new("user", "Hello")],
//!     add_generation_prompt: true,
//!     ..ChatRequest::default()
//! };
//! let rendered = tokenizer.chat_template()?.render(&request)?;
//! let ids = tokenizer.encode_rendered(&rendered)?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod chat_template;
mod control;
mod error;
mod gguf;
mod hf;
mod message;
mod special;
mod stream;
mod template_env;
mod tojson;
mod token_bytes;
mod tokenizer;

pub use chat_template::ChatTemplate;
pub use control::{ControlStrings, Rendered};
pub use error::{Error, TemplateError};
pub use gguf::{GgufVocab, TokenType};
pub use message::{ChatRequest, Content, Message};
pub use special::{ForcedClose, PromptThinking, ThinkTags, ThinkingVocab};
pub use stream::StreamDecoder;
pub use token_bytes::TokenBytes;
pub use tokenizer::{SpecialIds, Tokenizer};

//! Errors of this crate: [`Error`] for tokenizers, [`TemplateError`] for chat templates.
//!
//! One variant per defect that a caller would tell apart. Every message names the field and, where
//! there is one, what was expected and found.

use thiserror::Error;

/// Why a tokenizer could not be built, exported or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A file is not JSON.
    #[error("{file}: not valid JSON: {source}")]
    Json {
        /// Which file of the model directory.
        file: &'static str,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },
    /// The tokenizer library refused the file.
    #[error("tokenizer.json: {0}")]
    Tokenizer(String),
    /// A part of `tokenizer.json` is of a kind that this crate does not run.
    #[error("tokenizer.json: {part} is {found}; supported: {supported}")]
    Unsupported {
        /// Dotted path of the part.
        part: &'static str,
        /// What the file has.
        found: String,
        /// What would be accepted.
        supported: &'static str,
    },
    /// A token id is far outside the range that the number of tokens justifies.
    #[error("tokenizer.json: token {token:?} has id {id}, but there are only {count} tokens")]
    SparseIds {
        /// Text of the token.
        token: String,
        /// Its id.
        id: u64,
        /// Number of tokens in the file.
        count: usize,
    },
    /// Two tokens share one id.
    #[error("tokens {first:?} and {second:?} have the same id {id}")]
    DuplicateId {
        /// The shared id.
        id: u32,
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// A byte-level vocabulary lacks one of the 256 byte tokens, so text would be lost.
    #[error("byte-level vocabulary has no token for byte 0x{byte:02x} ({token:?})")]
    MissingByte {
        /// The byte that cannot be encoded.
        byte: u8,
        /// The token that should exist.
        token: char,
    },
    /// A special token named by `tokenizer_config.json` is not in the vocabulary.
    #[error("tokenizer_config.json: {field} is {token:?}, which is not in the vocabulary")]
    UnknownSpecial {
        /// Field, for example `bos_token`.
        field: &'static str,
        /// The token it names.
        token: String,
    },
    /// A special id given by the caller or by GGUF metadata is outside the vocabulary.
    #[error("{field} is {id}, but the vocabulary has {vocab_size} ids")]
    IdOutOfRange {
        /// Name of the id.
        field: &'static str,
        /// The id.
        id: u32,
        /// Number of ids.
        vocab_size: usize,
    },
    /// Text could not be encoded (for example an unknown word and no unknown token).
    #[error("cannot encode: {0}")]
    Encode(String),
    /// `tokenizer.ggml.model` is not byte-level BPE.
    #[error("tokenizer.ggml.model is {0:?}; only \"gpt2\" (byte-level BPE) is supported")]
    GgufModel(String),
    /// `tokenizer.ggml.pre` names an unknown pre-tokenizer.
    #[error("tokenizer.ggml.pre is {found:?}, which is unknown; known: {known}")]
    GgufPre {
        /// The name in the file.
        found: String,
        /// The known names.
        known: String,
    },
    /// A GGUF tokenizer field does not fit the others.
    #[error("{field}: {detail}")]
    GgufField {
        /// Metadata key.
        field: &'static str,
        /// Expected and found.
        detail: String,
    },
    /// This tokenizer has no faithful form in GGUF metadata.
    #[error("cannot write this tokenizer as GGUF metadata: {0}; keep the safetensors directory")]
    NotGguf(String),
    /// A message to insert at a thinking cut holds the close tag.
    #[error("thinking_budget_message: the tag {tag:?} would end thinking inside it")]
    TagInMessage {
        /// The tag.
        tag: String,
    },
}

/// Why a chat template could not be loaded or rendered.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The model has no chat template.
    #[error("the model has no chat template (chat_template.jinja or tokenizer_config.json)")]
    Missing,
    /// The source is larger than any sane template.
    #[error("chat template has {found} bytes; the limit is {limit}")]
    TooLarge {
        /// Size in bytes.
        found: usize,
        /// Limit in bytes.
        limit: usize,
    },
    /// The source does not parse.
    #[error("chat template does not parse: {0}")]
    Syntax(String),
    /// The template called `raise_exception`; the text is the template's own.
    #[error("{0}")]
    Raised(String),
    /// The template failed while it ran.
    #[error("chat template failed: {0}")]
    Render(String),
    /// The template ran for too long or built too much.
    #[error("chat template used up its fuel of {fuel} steps")]
    Fuel {
        /// The limit.
        fuel: u64,
    },
    /// The template took too long; until it ends, others are refused ([`TemplateError::Stuck`]).
    #[error("chat template ran for more than {seconds} s")]
    Timeout {
        /// The limit.
        seconds: u64,
    },
    /// An earlier rendering that took too long still runs, so no other one is started.
    #[error("chat template is busy with an earlier rendering that took too long")]
    Stuck,
    /// The prompt became too large.
    #[error("chat template printed more than {limit} bytes")]
    OutputTooLarge {
        /// Limit in bytes.
        limit: usize,
    },
    /// The operating system gave no thread for the template's stack.
    #[error("cannot start the template thread: {0}")]
    Thread(String),
    /// A template argument would replace a variable of the engine.
    #[error("template argument {0:?} is reserved")]
    ReservedArgument(String),
    /// Template arguments are too large.
    #[error("template arguments have {found} bytes; the limit is {limit}")]
    ArgumentsTooLarge {
        /// Size as JSON.
        found: usize,
        /// Limit in bytes.
        limit: usize,
    },
    /// A content part is not text.
    #[error("message {index}: content part is not {{\"type\": \"text\", \"text\": …}}: {found}")]
    ContentPart {
        /// Index of the message.
        index: usize,
        /// The part's type, or a description.
        found: String,
    },
    /// `continue_final_message` cannot be honoured.
    #[error("continue_final_message: {0}")]
    Continue(&'static str),
    /// The conversation uses every private-use character, so none is left to mark its text.
    #[error("the conversation uses all private-use characters")]
    PrivateCharacters,
}

//! Why data cannot become samples: one variant per defect, each with the place in the file.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Where a record comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// File as the caller named it, or the name of a generator.
    pub source: Arc<str>,
    /// What `number` counts: `line` and `row` from 1, `record` from 0.
    pub unit: &'static str,
    /// Position in the source.
    pub number: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.source, self.unit, self.number)
    }
}

/// A fault of data, of its settings, or of a loader's state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file cannot be read or written.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A record is not JSON.
    #[error("{place}: not valid JSON: {cause}")]
    Json {
        /// Where.
        place: Place,
        /// What the parser said; its line is counted from the record's own first line.
        cause: serde_json::Error,
    },
    /// A Parquet file cannot be decoded.
    #[error("{}: not a readable Parquet file{}: {detail}", path.display(), after(*rows))]
    Parquet {
        /// The file.
        path: PathBuf,
        /// Rows read before.
        rows: u64,
        /// What the decoder said.
        detail: String,
    },
    /// A source holds no record.
    #[error("{}: no records; expected one JSON object per line (or Parquet row)", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A field of a record is missing or wrong.
    #[error("{place}: `{field}`: expected {expected}, found {found}")]
    Field {
        /// Where.
        place: Place,
        /// Such as `messages[2].role`.
        field: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// The model's template or tokenizer refuses a conversation.
    #[error("{place}: messages[{message}]: {cause}")]
    Chat {
        /// Where.
        place: Place,
        /// Index of the assistant message that was to be learned.
        message: usize,
        /// Why.
        cause: hybra_chat::ChatError,
    },
    /// The model's template prints a turn in a form that cannot be learned.
    #[error("{place}: messages[{message}]: the chat template {detail}")]
    Template {
        /// Where.
        place: Place,
        /// Index of the assistant message.
        message: usize,
        /// What it does.
        detail: &'static str,
    },
    /// A document is longer than allowed.
    #[error(
        "{place}: a document of {len} tokens, at most {max_len} are allowed; raise `max_len` and \
         `pack_len`, or set `too_long = \"drop\"`"
    )]
    TooLong {
        /// Where.
        place: Place,
        /// Tokens of the document.
        len: usize,
        /// The limit.
        max_len: usize,
    },
    /// A setting is out of range.
    #[error("`{field}`: expected {expected}, found {found}")]
    Config {
        /// Dotted name.
        field: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// Sample after sample was dropped.
    #[error("{num_samples} samples in a row were too long; raise `max_len` and `pack_len`")]
    NothingFits {
        /// How many.
        num_samples: u64,
    },
    /// A saved state belongs to other data, or a step was asked out of order.
    #[error(
        "data loader: {field}: expected {expected}, found {found}; resume with the data, the \
             settings and the state of the same run"
    )]
    State {
        /// Field of the state.
        field: &'static str,
        /// What would fit.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A tokenizer cannot be trained.
    #[error("tokenizer training: {0}")]
    Tokenizer(String),
}

fn after(rows: u64) -> String {
    if rows == 0 { String::new() } else { format!(" (after row {rows})") }
}

impl DataError {
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |cause| Self::Io { path, cause }
    }
}

/// A short description of a JSON value for "found".
pub(super) fn found(value: &serde_json::Value) -> String {
    let text = value.to_string();
    let short: String = text.chars().take(60).collect();
    match value {
        serde_json::Value::Null => "nothing".to_owned(),
        _ if short.len() < text.len() => format!("{short}…"),
        _ => text,
    }
}

//! The errors of this crate, one enum per concern: a request's numbers, one sampling step, and the
//! tables that the thinking budget is built from.
//!
//! A [`RequestError`] is the client's fault, a [`SamplingError`] ends one sequence and leaves the
//! engine running, a [`ThinkingVocabError`] is a defect of the tokenizer's data or of a message.

use thiserror::Error;

/// A request parameter that cannot be served as asked.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum RequestError {
    /// A float field is NaN.
    #[error("{field}: expected {expected}, found NaN")]
    NotANumber {
        /// Name of the request field.
        field: &'static str,
        /// The accepted range.
        expected: &'static str,
    },
    /// A number lies outside its range.
    #[error("{field}: expected {expected}, found {found}")]
    OutOfRange {
        /// Name of the request field.
        field: &'static str,
        /// The accepted range.
        expected: &'static str,
        /// The value as given.
        found: String,
    },
    /// A list is longer than allowed.
    #[error("{field}: expected at most {max} entries, found {found}")]
    TooMany {
        /// Name of the request field.
        field: &'static str,
        /// The largest accepted length.
        max: usize,
        /// The length as given.
        found: usize,
    },
    /// A token id is not in the vocabulary.
    #[error("{field}: expected token ids below {vocab_size}, found {found}")]
    TokenOutOfVocab {
        /// Name of the request field.
        field: &'static str,
        /// Rows of the logits.
        vocab_size: usize,
        /// The id as given.
        found: u32,
    },
    /// Two fields contradict each other.
    #[error("{first} contradicts {second}: {rule}")]
    Conflict {
        /// First field with its value.
        first: String,
        /// Second field with its value.
        second: String,
        /// The rule they break.
        rule: &'static str,
    },
    /// A string field does not have the form of its type.
    #[error("{field}: expected {expected}, found {found:?}")]
    Malformed {
        /// Name of the request field.
        field: &'static str,
        /// The accepted forms.
        expected: &'static str,
        /// The text as given, cut to 64 characters.
        found: String,
    },
}

/// One sequence's logits cannot be sampled from; other sequences are not concerned.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum SamplingError {
    /// The model produced NaN or +infinity.
    #[error("logits: expected finite values or -inf, found {value} at token {token}")]
    NotFinite {
        /// First offending token id.
        token: u32,
        /// Its logit.
        value: f32,
    },
    /// Every token is at -infinity, so that nothing can be chosen.
    #[error(
        "logits: all {vocab_size} tokens are forbidden or -inf; loosen logit_bias or min_tokens"
    )]
    NoCandidate {
        /// Length of the logits row.
        vocab_size: usize,
    },
}

/// Token ids handed to the thinking budget do not spell what they must.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum ThinkingVocabError {
    /// A tag text is empty or longer than 255 bytes.
    #[error("{which}: expected 1 to 255 bytes, found {len}")]
    TagLength {
        /// `open`, `close` or `tool_open`.
        which: &'static str,
        /// Bytes as given.
        len: usize,
    },
    /// The number of remainders is not the number of proper prefixes of the close tag.
    #[error("rests: expected {expected} id sequences, one per proper prefix, found {found}")]
    RestCount {
        /// Length of the close tag minus one.
        expected: usize,
        /// Sequences as given.
        found: usize,
    },
    /// An id sequence decodes to other bytes than it must insert.
    #[error("{which}: expected ids that decode to {expected:?}, found {found:?}")]
    WrongBytes {
        /// `after_newline`, `after_text` or `rests[j]`.
        which: String,
        /// Text to insert (lossy UTF-8).
        expected: String,
        /// Text that the ids spell (lossy UTF-8).
        found: String,
    },
    /// A message at the cut holds a tag, which would end or open a section.
    #[error("thinking_budget_message: must not contain {tag:?}")]
    MessageHoldsTag {
        /// The tag found in the message.
        tag: String,
    },
}

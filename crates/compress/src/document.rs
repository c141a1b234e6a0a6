//! Calibration documents, checked and cut into batches.

use hybra_model::{Batch, Config, LogitsFor};

/// Tokens of a batch, about: enough to keep all threads busy, little enough memory.
const BATCH_TOKENS: usize = 4096;

/// Why documents cannot be run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DocumentError {
    /// There is none, or one has no token.
    #[error("calibration: document {index} is empty; expected at least one document with tokens")]
    Empty {
        /// The document.
        index: usize,
    },
    /// A token that the model does not know.
    #[error("calibration: document {index} has token {token}, but the vocabulary has {vocab_size}")]
    Token {
        /// The document.
        index: usize,
        /// The token.
        token: u32,
        /// V.
        vocab_size: usize,
    },
}

/// The documents of a model, several in a batch, in order.
pub(crate) struct Batches<'a> {
    rest: &'a [Vec<u32>],
}

impl<'a> Batches<'a> {
    pub(crate) fn new(config: &Config, documents: &'a [Vec<u32>]) -> Result<Self, DocumentError> {
        if documents.is_empty() {
            return Err(DocumentError::Empty { index: 0 });
        }
        for (index, document) in documents.iter().enumerate() {
            if document.is_empty() {
                return Err(DocumentError::Empty { index });
            }
            let vocab_size = config.vocab_size;
            if let Some(&token) = document.iter().find(|&&token| token as usize >= vocab_size) {
                return Err(DocumentError::Token { index, token, vocab_size });
            }
        }
        Ok(Self { rest: documents })
    }
}

impl Iterator for Batches<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        while let Some((document, rest)) = self.rest.split_first() {
            let tokens = batch.tokens().len();
            if tokens > 0 && tokens + document.len() > BATCH_TOKENS {
                break;
            }
            batch.push(document, LogitsFor::None);
            self.rest = rest;
        }
        (!batch.tokens().is_empty()).then_some(batch)
    }
}

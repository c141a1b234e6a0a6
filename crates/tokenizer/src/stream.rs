//! Streaming decode: ids in, text out, never half a character.
//!
//! The concatenation of all pieces and the final [`StreamDecoder::flush`] equals
//! [`crate::Tokenizer::decode`] of all ids, for every sequence of ids. Bytes that cannot become
//! text give U+FFFD exactly where `String::from_utf8_lossy` of the whole would put it.

use std::sync::Arc;

use crate::{TokenBytes, Tokenizer};

/// Decoder of one sequence.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    bytes: Arc<TokenBytes>,
    /// Ids to leave out; `None` keeps all.
    skip: Option<Arc<[bool]>>,
    /// Bytes of an unfinished character: at most three.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// `skip_special` leaves special tokens out, as in [`Tokenizer::decode`].
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        let (bytes, special) = tokenizer.tables();
        Self { bytes, skip: skip_special.then_some(special), pending: Vec::new() }
    }

    /// Text that `id` completes; empty while a character is unfinished.
    pub fn push(&mut self, id: u32) -> String {
        let skip = self.skip.as_ref().and_then(|skip| skip.get(id as usize));
        if skip != Some(&true) {
            self.pending.extend_from_slice(self.bytes.get(id));
        }
        let mut out = String::new();
        let mut used = 0;
        loop {
            let rest = &self.pending[used..];
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    used = self.pending.len();
                    break;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    out.push_str(&String::from_utf8_lossy(&rest[..valid]));
                    used += valid;
                    let Some(bad) = error.error_len() else { break };
                    out.push('\u{FFFD}');
                    used += bad;
                }
            }
        }
        self.pending.drain(..used);
        out
    }

    /// Ends the sequence: U+FFFD for an unfinished character, else nothing. The decoder can be
    /// used for another sequence afterwards.
    pub fn flush(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

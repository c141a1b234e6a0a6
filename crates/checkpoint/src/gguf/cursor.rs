//! A position in a byte slice that only moves over bytes that are there.
//!
//! Lengths from the file are compared with what is left before anything is added to the position,
//! so no sum can wrap.

use std::ops::Range;

use crate::GgufError;

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// Moves over `len` bytes and gives their range; `what` names them in errors.
    pub(super) fn take(&mut self, len: u64, what: &str) -> Result<Range<usize>, GgufError> {
        let (offset, left) = (self.position, self.left());
        match usize::try_from(len) {
            Ok(len) if len <= left => {
                self.position += len;
                Ok(offset..self.position)
            }
            _ => Err(GgufError::Truncated { offset, what: what.to_owned(), need: len, left }),
        }
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let range = self.take(N as u64, what)?;
        Ok(std::array::from_fn(|index| self.bytes[range.start + index]))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A string: its length in 8 bytes, then UTF-8.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a str, GgufError> {
        let len = self.u64(what)?;
        let range = self.take(len, what)?;
        std::str::from_utf8(&self.bytes[range.clone()]).map_err(|error| GgufError::NotUtf8 {
            offset: range.start + error.valid_up_to(),
            what: what.to_owned(),
        })
    }

    /// The name of a key or tensor: a string of at most `max` bytes.
    pub(super) fn name(&mut self, what: &str, max: usize) -> Result<&'a str, GgufError> {
        let offset = self.position;
        let len = u64::from_le_bytes(self.array(what)?);
        if len > max as u64 && len <= self.left() as u64 {
            return Err(GgufError::NameTooLong { offset, what: what.to_owned(), len, max });
        }
        self.position = offset;
        self.string(what)
    }

    /// `count` as a size, if so many things of at least `min_bytes` can still follow. `offset` is
    /// where the count stood.
    pub(super) fn bounded_count(
        &self,
        offset: usize,
        count: u64,
        what: &str,
        min_bytes: usize,
    ) -> Result<usize, GgufError> {
        let left = self.left();
        let max = left / min_bytes;
        match usize::try_from(count) {
            Ok(count) if count <= max => Ok(count),
            _ => Err(GgufError::CountPastEnd { offset, what: what.to_owned(), count, left, max }),
        }
    }
}

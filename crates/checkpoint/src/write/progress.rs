//! The stream of tensor data held against the declarations: right tensor, right number of bytes.

use crate::{TensorInfo, WriteError};

/// How far the stream has come. `written < lens[next]` always, while a tensor is left.
#[derive(Debug)]
pub(super) struct Progress {
    tensors: Vec<(String, u64)>,
    next: usize,
    written: u64,
    failed: bool,
}

impl Progress {
    pub(super) fn new(tensors: &[TensorInfo], lens: &[u64]) -> Progress {
        let names = tensors.iter().map(|tensor| tensor.name.clone());
        let tensors = names.zip(lens.iter().copied()).collect();
        Progress { tensors, next: 0, written: 0, failed: false }
    }

    /// The index of the tensor that `len` bytes for `name` belong to, and whether they are its
    /// first. Nothing moves until [`advance`](Self::advance).
    pub(super) fn check(&self, name: &str, len: u64) -> Result<(usize, bool), WriteError> {
        if self.failed {
            return Err(WriteError::Failed);
        }
        let Some((tensor, expected)) = self.tensors.get(self.next) else {
            return Err(WriteError::NothingLeft { found: name.to_owned() });
        };
        if tensor != name {
            return Err(match self.written {
                0 => WriteError::OutOfOrder { expected: tensor.clone(), found: name.to_owned() },
                _ => self.too_short(),
            });
        }
        let found = self.written.saturating_add(len);
        if found > *expected {
            return Err(WriteError::TooLong { tensor: tensor.clone(), expected: *expected, found });
        }
        Ok((self.next, self.written == 0))
    }

    /// Whether `len` more bytes, which were checked, complete the tensor.
    pub(super) fn completes(&self, len: u64) -> bool {
        self.written + len == self.tensors[self.next].1
    }

    /// Records that checked bytes are written.
    pub(super) fn advance(&mut self, len: u64) {
        if self.completes(len) {
            self.next += 1;
            self.written = 0;
        } else {
            self.written += len;
        }
    }

    /// Records that the file's contents are unknown from here on.
    pub(super) fn fail(&mut self) {
        self.failed = true;
    }

    /// Whether everything declared has been written.
    pub(super) fn finish(&self) -> Result<(), WriteError> {
        if self.failed {
            return Err(WriteError::Failed);
        }
        if self.next < self.tensors.len() { Err(self.too_short()) } else { Ok(()) }
    }

    fn too_short(&self) -> WriteError {
        let (tensor, expected) = self.tensors[self.next].clone();
        WriteError::TooShort { tensor, expected, found: self.written }
    }
}

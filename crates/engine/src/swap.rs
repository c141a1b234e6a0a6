//! A state moved to a temporary file, for a sequence that must wait.
//!
//! Invariant: what comes back has the bits of what went. The file has no name: it goes with its
//! owner, whatever becomes of the process. It lies in the system's folder for temporary files.

use hybra_model::{SequenceState, StateDtypes, StateImageError, States};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Seek, Write};

/// A state on disk.
pub(crate) struct Swapped {
    file: File,
    len: usize,
    bytes: u64,
}

impl Swapped {
    /// Writes a state.
    pub(crate) fn write(state: &SequenceState) -> io::Result<Self> {
        let mut to = BufWriter::new(tempfile::tempfile()?);
        state.write_to(&mut to)?;
        to.flush()?;
        let file = to.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(Self { file, len: state.len(), bytes: state.image_bytes() as u64 })
    }

    /// Reads it back.
    pub(crate) fn read(
        mut self,
        states: States<'_>,
        dtypes: StateDtypes,
    ) -> Result<SequenceState, StateImageError> {
        self.file.rewind()?;
        let mut from = BufReader::new(self.file);
        states.read(dtypes, self.len, self.bytes, &mut from)
    }
}

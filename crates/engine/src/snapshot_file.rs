//! A file with the state of a prompt's prefix.
//!
//! ```text
//! magic "HYBRASNP" | version u32 | kv u8, ssm u8, 0, 0 | model u64 | salt u64
//! number of tokens u64 | bytes of the state u64 | tokens u32… | state | BLAKE3 of all before it
//! ```
//! Numbers are in the machine's byte order: a file of another order has another version.
//!
//! Invariants: a file is complete or not there under its name; one that was cut or changed is never
//! a state; nothing is allocated by a number in a file that the file's length does not bear out.

use hybra_kernels::ops::attention::KvDtype;
use hybra_kernels::ops::ssm_state::SsmDtype;
use hybra_model::{SequenceState, StateDtypes, States};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

const MAGIC: [u8; 8] = *b"HYBRASNP";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 48;
const CHECKSUM_BYTES: u64 = 32;

/// Why a file holds no state for this engine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// Another version, model or number type: it may be of use to another engine.
    #[error("the file is of another version or model")]
    Foreign,
    /// Cut, or changed: of no use to anybody.
    #[error("the file is not complete")]
    Torn,
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What all files of an engine have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) model_id: u64,
    pub(crate) dtypes: StateDtypes,
}

/// What a file says about its state.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) salt: u64,
    pub(crate) tokens: Vec<u32>,
    state_bytes: u64,
}

impl Form {
    /// The first 24 bytes of its files.
    fn bytes(&self) -> [u8; 24] {
        let kv = match self.dtypes.kv {
            KvDtype::F32 => 0,
            KvDtype::Bf16 => 1,
            KvDtype::Q8 => 2,
        };
        let ssm = match self.dtypes.ssm {
            SsmDtype::F32 => 0,
            SsmDtype::Bf16 => 1,
        };
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_ne_bytes());
        bytes[12..14].copy_from_slice(&[kv, ssm]);
        bytes[16..].copy_from_slice(&self.model_id.to_ne_bytes());
        bytes
    }

    /// A number that tells forms apart, for names.
    pub(crate) fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.bytes());
        hasher.finish()
    }

    /// Bytes of the file of such a state.
    pub(crate) fn file_bytes(&self, tokens: &[u32], state: &SequenceState) -> u64 {
        let contents = size_of_val(tokens) + state.image_bytes();
        HEADER_BYTES + contents as u64 + CHECKSUM_BYTES
    }

    /// Writes a file under a name beside `path`, and renames it when it is safe on disk.
    pub(crate) fn write(
        &self,
        path: &Path,
        salt: u64,
        tokens: &[u32],
        state: &SequenceState,
    ) -> io::Result<()> {
        let unfinished = path.with_extension("tmp");
        let written = self.write_all(&unfinished, salt, tokens, state);
        let renamed = written.and_then(|()| fs::rename(&unfinished, path));
        if renamed.is_err() {
            // What is left of it is removed at the next start.
            let _ = fs::remove_file(&unfinished);
        }
        renamed?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }

    fn write_all(
        &self,
        path: &Path,
        salt: u64,
        tokens: &[u32],
        state: &SequenceState,
    ) -> io::Result<()> {
        let file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        let mut to = Hashed { inner: file, hasher: blake3::Hasher::new() };
        to.write_all(&self.bytes())?;
        for number in [salt, tokens.len() as u64, state.image_bytes() as u64] {
            to.write_all(&number.to_ne_bytes())?;
        }
        tokens.iter().try_for_each(|token| to.write_all(&token.to_ne_bytes()))?;
        state.write_to(&mut to)?;
        let Hashed { inner: mut file, hasher } = to;
        file.write_all(hasher.finalize().as_bytes())?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }

    /// Reads what a file says about its state; its length must agree.
    pub(crate) fn read_header(&self, path: &Path) -> Result<Header, SnapshotError> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        self.header(&mut BufReader::new(file), len)
    }

    fn header(&self, from: &mut dyn Read, file_len: u64) -> Result<Header, SnapshotError> {
        let mut form = [0; 24];
        read(from, &mut form)?;
        if form != self.bytes() {
            let cut = form[..8] != MAGIC;
            return Err(if cut { SnapshotError::Torn } else { SnapshotError::Foreign });
        }
        let mut number = || {
            let mut bytes = [0; 8];
            read(from, &mut bytes).map(|()| u64::from_ne_bytes(bytes))
        };
        let (salt, count, state_bytes) = (number()?, number()?, number()?);
        let contents = count.checked_mul(4).and_then(|n| n.checked_add(state_bytes));
        let expected = contents.and_then(|n| n.checked_add(HEADER_BYTES + CHECKSUM_BYTES));
        if expected != Some(file_len) {
            return Err(SnapshotError::Torn);
        }
        let tokens = (0..count).map(|_| {
            let mut bytes = [0; 4];
            read(from, &mut bytes).map(|()| u32::from_ne_bytes(bytes))
        });
        Ok(Header { salt, tokens: tokens.collect::<Result<_, _>>()?, state_bytes })
    }

    /// Reads a file whole and checks it.
    pub(crate) fn read(
        &self,
        path: &Path,
        states: States<'_>,
    ) -> Result<(Header, SequenceState), SnapshotError> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let file = BufReader::with_capacity(1 << 20, file);
        let mut from = Hashed { inner: file, hasher: blake3::Hasher::new() };
        let header = self.header(&mut from, len)?;
        let (tokens, bytes) = (header.tokens.len(), header.state_bytes);
        let state = states.read(self.dtypes, tokens, bytes, &mut from);
        let state = state.map_err(|_| SnapshotError::Torn)?;
        let Hashed { inner: mut file, hasher } = from;
        let mut checksum = [0; CHECKSUM_BYTES as usize];
        read(&mut file, &mut checksum)?;
        if hasher.finalize() != checksum {
            return Err(SnapshotError::Torn);
        }
        Ok((header, state))
    }
}

/// Fills `to`; a file that ends before is torn.
fn read(from: &mut dyn Read, to: &mut [u8]) -> Result<(), SnapshotError> {
    from.read_exact(to).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => SnapshotError::Torn,
        _ => SnapshotError::Io(error),
    })
}

/// A stream that is hashed as it goes by.
struct Hashed<T> {
    inner: T,
    hasher: blake3::Hasher,
}

impl<T: Write> Write for Hashed<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashed<T> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(to)?;
        self.hasher.update(&to[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybra_kernels::{Cpu, Isa};
    use hybra_model::presets::preset;

    const FORM: Form =
        Form { model_id: 7, dtypes: StateDtypes { kv: KvDtype::Bf16, ssm: SsmDtype::F32 } };

    fn image(state: &SequenceState) -> Vec<u8> {
        let mut bytes = Vec::new();
        state.write_to(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_file_comes_back_whole_or_not_at_all() {
        let (dir, config) = (tempfile::tempdir().unwrap(), preset("micro").unwrap());
        let path = dir.path().join("a.state");
        let mut state = SequenceState::new(&config, FORM.dtypes);
        state.pretend_read(&Cpu::new(Isa::best(), 1), 64);
        let tokens: Vec<u32> = (0..64).collect();
        FORM.write(&path, 5, &tokens, &state).unwrap();
        let whole = fs::read(&path).unwrap();
        assert_eq!(whole.len() as u64, FORM.file_bytes(&tokens, &state));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        let (header, again) = FORM.read(&path, States::of(&config)).unwrap();
        assert_eq!((header.salt, &header.tokens), (5, &tokens));
        assert_eq!(FORM.read_header(&path).unwrap(), header);
        assert!(image(&again) == image(&state));

        // Every cut around the parts, and many between.
        let ends = [0, 7, 8, 23, 24, 47, 48, 303, 304, whole.len() - 33, whole.len() - 1];
        for cut in (0..whole.len()).step_by(997).chain(ends) {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(matches!(FORM.read_header(&path), Err(SnapshotError::Torn)), "{cut} bytes");
            assert!(
                matches!(FORM.read(&path, States::of(&config)), Err(SnapshotError::Torn)),
                "{cut} bytes"
            );
        }
        // Every bit that flips behind the form is seen.
        for at in (24..whole.len()).step_by(1009).chain([24, 40, 48, whole.len() - 1]) {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert!(
                matches!(FORM.read(&path, States::of(&config)), Err(SnapshotError::Torn)),
                "byte {at}"
            );
        }
        fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
        assert!(matches!(FORM.read_header(&path), Err(SnapshotError::Torn)));
    }

    #[test]
    fn files_of_others_are_told_apart() {
        let (dir, config) = (tempfile::tempdir().unwrap(), preset("micro").unwrap());
        let path = dir.path().join("a.state");
        let state = SequenceState::new(&config, FORM.dtypes);
        FORM.write(&path, 0, &[], &state).unwrap();
        let whole = fs::read(&path).unwrap();
        let other = |dtypes, model_id| Form { model_id, dtypes }.read_header(&path);
        let Form { dtypes, .. } = FORM;
        let q8 = StateDtypes { kv: KvDtype::Q8, ..dtypes };
        let bf16 = StateDtypes { ssm: SsmDtype::Bf16, ..dtypes };
        for result in [other(dtypes, 8), other(q8, 7), other(bf16, 7)] {
            assert!(matches!(result, Err(SnapshotError::Foreign)));
        }
        let mut version = whole.clone();
        version[8..12].reverse();
        fs::write(&path, version).unwrap();
        assert!(matches!(FORM.read_header(&path), Err(SnapshotError::Foreign)));
    }
}

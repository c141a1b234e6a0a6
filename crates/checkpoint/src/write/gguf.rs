//! The GGUF writer: version 3, little-endian, tensor data aligned to 32 bytes and padded, also
//! behind the last tensor.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::progress::Progress;
use super::staging::{STAGED_FILE, Staging, Target};
use super::{BUFFER_BYTES, check_declared};
use crate::gguf::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, MAX_NAME_BYTES, VERSION, ValueType,
};
use crate::{Error, MAX_TENSORS, TensorInfo, WriteError};

/// The value of a key.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the variants say what they hold")]
pub enum GgufValue {
    U32(u32),
    F32(f32),
    Bool(bool),
    Str(String),
    U32s(Vec<u32>),
    /// llama.cpp's converter writes token types and per-layer sizes so.
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Bools(Vec<bool>),
    Strs(Vec<String>),
}

/// Writes a GGUF file. Nothing is at the target before [`finish`](Self::finish); dropping the
/// writer removes what it wrote.
#[derive(Debug)]
pub struct GgufWriter {
    staging: Staging,
    file: BufWriter<File>,
    lens: Vec<u64>,
    progress: Progress,
}

impl GgufWriter {
    /// Begins a file at `path`, whose directory must exist. `general.alignment` is added to
    /// `metadata` and must not be in it. A file that holds something is replaced only with
    /// `overwrite`; the replacement is one rename.
    ///
    /// # Errors
    /// [`WriteError`] for a target that may not be replaced and for declarations that the format or
    /// this crate's reader does not allow; [`Error::Io`].
    pub fn create(
        path: &Path,
        metadata: &[(&str, GgufValue)],
        tensors: &[TensorInfo],
        overwrite: bool,
    ) -> Result<GgufWriter, Error> {
        let lens = check(metadata, tensors).map_err(|defect| Error::write(path, defect))?;
        let staging = Staging::new(path, Target::File, overwrite)?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, staging.create(STAGED_FILE)?);
        let progress = Progress::new(tensors, &lens);
        let mut writer = GgufWriter { staging, file, lens, progress };
        write_head(&mut writer.file, metadata, tensors, &writer.lens)
            .map_err(|cause| Error::io(path, "write the head of", cause))?;
        Ok(writer)
    }

    /// Appends bytes to the tensor `name`, which must be the next one in declared order that is not
    /// complete. A tensor is complete with its last byte; no call ends it.
    ///
    /// # Errors
    /// [`WriteError`] for another tensor's turn or too many bytes (nothing is written then);
    /// [`Error::Io`], after which the writer accepts nothing more.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let refused = |defect| Error::write(self.staging.target(), defect);
        let len = bytes.len() as u64;
        let (tensor, _) = self.progress.check(name, len).map_err(refused)?;
        let completes = self.progress.completes(len);
        let mut put = || -> io::Result<()> {
            self.file.write_all(bytes)?;
            if completes { pad(&mut self.file, self.lens[tensor]) } else { Ok(()) }
        };
        let written = put();
        match &written {
            Ok(()) => self.progress.advance(len),
            Err(_) => self.progress.fail(),
        }
        written.map_err(|cause| Error::io(self.staging.target(), "write", cause))
    }

    /// Puts the file in place.
    ///
    /// # Errors
    /// [`WriteError::TooShort`] where data is missing; [`WriteError::TargetExists`] where the
    /// target came up meanwhile; [`Error::Io`]. The target is as it was, unless the
    /// message says that the new checkpoint is in place and only could not be made durable.
    pub fn finish(mut self) -> Result<(), Error> {
        self.progress.finish().map_err(|defect| Error::write(self.staging.target(), defect))?;
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .map_err(|cause| Error::io(self.staging.target(), "write", cause))?;
        self.staging.commit()
    }
}

fn check(metadata: &[(&str, GgufValue)], tensors: &[TensorInfo]) -> Result<Vec<u64>, WriteError> {
    // One key is added.
    if metadata.len() >= MAX_TENSORS {
        return Err(WriteError::TooMany { what: "keys", found: metadata.len(), max: MAX_TENSORS });
    }
    let mut keys = HashSet::new();
    for (key, _) in metadata {
        if *key == ALIGNMENT_KEY {
            return Err(WriteError::Reserved { name: (*key).to_owned() });
        }
        if !keys.insert(key) {
            return Err(WriteError::DeclaredTwice { name: (*key).to_owned() });
        }
    }
    let names = metadata.iter().map(|(key, _)| *key).chain(tensors.iter().map(|t| &*t.name));
    if let Some(found) = names.map(str::len).max().filter(|&len| len > MAX_NAME_BYTES) {
        return Err(WriteError::TooMany { what: "bytes of a name", found, max: MAX_NAME_BYTES });
    }
    for TensorInfo { name, dtype, shape } in tensors {
        let (tensor, rank) = (name.clone(), shape.len());
        if dtype.ggml_id().is_none() {
            let format = "GGUF";
            return Err(WriteError::DtypeNotInFormat { tensor, dtype: *dtype, format });
        }
        if rank > MAX_DIMS {
            return Err(WriteError::TooManyDims { tensor, rank, max: MAX_DIMS });
        }
    }
    check_declared(tensors)
}

/// Everything before the data, and the padding up to it.
fn write_head(
    file: &mut impl Write,
    metadata: &[(&str, GgufValue)],
    tensors: &[TensorInfo],
    lens: &[u64],
) -> io::Result<()> {
    let mut file = Counted { file, len: 0 };
    file.write_all(MAGIC)?;
    file.write_all(&VERSION.to_le_bytes())?;
    file.write_all(&(tensors.len() as u64).to_le_bytes())?;
    file.write_all(&(metadata.len() as u64 + 1).to_le_bytes())?;
    for (key, value) in metadata {
        write_str(&mut file, key)?;
        write_value(&mut file, value)?;
    }
    write_str(&mut file, ALIGNMENT_KEY)?;
    write_value(&mut file, &GgufValue::U32(DEFAULT_ALIGNMENT))?;
    let mut offset = 0u64;
    for (TensorInfo { name, dtype, shape }, len) in tensors.iter().zip(lens) {
        write_str(&mut file, name)?;
        file.write_all(&(shape.len() as u32).to_le_bytes())?;
        // ggml lists the fastest dimension first.
        for &dim in shape.iter().rev() {
            file.write_all(&(dim as u64).to_le_bytes())?;
        }
        let id = dtype.ggml_id().expect("checked when the writer was created");
        file.write_all(&id.to_le_bytes())?;
        file.write_all(&offset.to_le_bytes())?;
        offset += len.next_multiple_of(DEFAULT_ALIGNMENT.into());
    }
    let len = file.len;
    pad(&mut file, len)
}

fn write_str(file: &mut impl Write, text: &str) -> io::Result<()> {
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(text.as_bytes())
}

fn write_value(file: &mut impl Write, value: &GgufValue) -> io::Result<()> {
    use ValueType::{Bool, F32, I32, Str, U32};
    let mut one = |ty: ValueType, bytes: &[u8]| {
        file.write_all(&(ty as u32).to_le_bytes())?;
        file.write_all(bytes)
    };
    match value {
        GgufValue::U32(value) => one(U32, &value.to_le_bytes()),
        GgufValue::F32(value) => one(F32, &value.to_le_bytes()),
        GgufValue::Bool(value) => one(Bool, &[u8::from(*value)]),
        GgufValue::Str(text) => {
            one(Str, &[])?;
            write_str(file, text)
        }
        GgufValue::U32s(values) => {
            write_array(file, U32, values, |file, v| file.write_all(&v.to_le_bytes()))
        }
        GgufValue::I32s(values) => {
            write_array(file, I32, values, |file, v| file.write_all(&v.to_le_bytes()))
        }
        GgufValue::F32s(values) => {
            write_array(file, F32, values, |file, v| file.write_all(&v.to_le_bytes()))
        }
        GgufValue::Bools(values) => {
            write_array(file, Bool, values, |file, &v| file.write_all(&[u8::from(v)]))
        }
        GgufValue::Strs(values) => write_array(file, Str, values, |file, v| write_str(file, v)),
    }
}

fn write_array<W: Write, T>(
    file: &mut W,
    ty: ValueType,
    values: &[T],
    mut write: impl FnMut(&mut W, &T) -> io::Result<()>,
) -> io::Result<()> {
    file.write_all(&(ValueType::Array as u32).to_le_bytes())?;
    file.write_all(&(ty as u32).to_le_bytes())?;
    file.write_all(&(values.len() as u64).to_le_bytes())?;
    values.iter().try_for_each(|value| write(file, value))
}

/// Writes the zeros that follow `len` bytes up to the alignment.
fn pad(file: &mut impl Write, len: u64) -> io::Result<()> {
    let zeros = [0; DEFAULT_ALIGNMENT as usize];
    let padding = len.next_multiple_of(DEFAULT_ALIGNMENT.into()) - len;
    file.write_all(&zeros[..padding as usize])
}

/// Counts what goes through it.
struct Counted<'a, W> {
    file: &'a mut W,
    len: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

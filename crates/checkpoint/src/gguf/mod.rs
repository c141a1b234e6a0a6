//! GGUF versions 2 and 3, little-endian: typed access to the metadata, and the file's layout.
//!
//! Layout: magic, version, number of tensors, number of keys; the keys with their values; the
//! tensor declarations; padding to the alignment; the data. Keys and declarations are read by
//! `keys` and `tensors`, all through the bounded `cursor`, which never goes behind the end of the
//! file.
//!
//! A value is kept as its range in the file and decoded when asked for, so a vocabulary costs no
//! memory while nobody reads it. Everything a getter decodes was checked when the file was opened.

mod cursor;
mod keys;
mod tensors;
mod value;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::tensor::Tensor;
use crate::{Error, GgufError, MAX_TENSORS, Mapping};
use cursor::Cursor;
use value::{Entry, Value};

pub(crate) use keys::MAX_NAME_BYTES;
pub(crate) use value::ValueType;

/// The first bytes of every GGUF file.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
/// The version that is written.
pub(crate) const VERSION: u32 = 3;
/// The key that sets the alignment of tensor data.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";
/// The alignment of tensor data where no key sets it.
pub(crate) const DEFAULT_ALIGNMENT: u32 = 32;
/// Most dimensions of a tensor (ggml's `GGML_MAX_DIMS`).
pub(crate) const MAX_DIMS: usize = 4;
/// Powers of two in this range are accepted as alignments: the specification asks for a multiple of
/// 8, and nothing is served by more than 64 KiB.
const ALIGNMENTS: std::ops::RangeInclusive<u32> = 8..=65_536;

/// The metadata of a GGUF file: keys with typed values.
///
/// A getter gives `Ok(None)` for an absent key and an error that names key, expected and found for
/// a value it cannot give as asked. Integers of every width are taken wherever their value fits.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Arc<Mapping>,
    version: u32,
    entries: BTreeMap<String, Entry>,
}

/// The value of a key that writers store as a scalar or, per layer, as an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OneOrMany<T> {
    /// A scalar.
    One(T),
    /// An array.
    Many(Vec<T>),
}

impl Gguf {
    /// Reads and checks everything but the tensors' values.
    pub(crate) fn read(map: Arc<Mapping>, path: &Path) -> Result<(Gguf, Vec<Tensor>), Error> {
        let parse = || {
            let mut cursor = Cursor::new(&map);
            let (version, tensor_count, key_count) = read_preamble(&mut cursor)?;
            let entries = keys::read(&mut cursor, key_count)?;
            let alignment = alignment(&map, &entries)?;
            let tensors = tensors::read(&mut cursor, tensor_count, alignment, &map)?;
            Ok((version, entries, tensors))
        };
        let (version, entries, tensors) = parse().map_err(|defect| Error::gguf(path, defect))?;
        Ok((Gguf { path: path.to_owned(), map, version, entries }, tensors))
    }

    /// The file's version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// A value in words for people: its type and, where short, the value.
    pub fn describe(&self, key: &str) -> Option<String> {
        self.value(key).map(|value| value.to_string())
    }

    /// An integer that fits `u32`.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>, Error> {
        self.get(key, "an integer in u32", |value| value.as_u32())
    }

    /// A float; a 64-bit one is rounded.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>, Error> {
        self.get(key, "a float", |value| value.as_f32())
    }

    /// A bool.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.get(key, "a bool", |value| value.as_bool())
    }

    /// A string.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn get_str(&self, key: &str) -> Result<Option<&str>, Error> {
        self.get(key, "a string", |value| value.as_str())
    }

    /// An integer, or an array of integers, that fit `u32`.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn get_u32s(&self, key: &str) -> Result<Option<OneOrMany<u32>>, Error> {
        self.get(key, "an integer in u32 or an array of those", |value| {
            let one = value.as_u32().map(OneOrMany::One);
            one.or_else(|| value.elements(|value| value.as_u32()).map(OneOrMany::Many))
        })
    }

    /// An array of floats; 64-bit ones are rounded.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn get_f32s(&self, key: &str) -> Result<Option<Vec<f32>>, Error> {
        self.get(key, "an array of floats", |value| value.elements(|value| value.as_f32()))
    }

    /// An array of strings.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn get_strs(&self, key: &str) -> Result<Option<Vec<&str>>, Error> {
        self.get(key, "an array of strings", |value| value.elements(|value| value.as_str()))
    }

    /// The error for an absent key, for callers that cannot do without it.
    pub fn missing(&self, key: &str) -> Error {
        Error::gguf(&self.path, GgufError::MissingKey { key: key.to_owned() })
    }

    fn value(&self, key: &str) -> Option<Value<'_>> {
        self.entries.get(key).map(|entry| entry.value(&self.map))
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match read(value) {
            Some(found) => Ok(Some(found)),
            None => Err(Error::gguf(&self.path, wrong_type(key, expected, value))),
        }
    }
}

fn wrong_type(key: &str, expected: &'static str, value: Value<'_>) -> GgufError {
    GgufError::WrongType { key: key.to_owned(), expected, found: value.to_string() }
}

/// Magic, version, and the numbers of tensors and keys.
fn read_preamble(cursor: &mut Cursor<'_>) -> Result<(u32, usize, usize), GgufError> {
    let magic = cursor.array::<4>("the magic")?;
    if magic != *MAGIC {
        return Err(GgufError::BadMagic { found: magic });
    }
    let version = cursor.u32("the version")?;
    if matches!(version.swap_bytes(), 1..=3) {
        return Err(GgufError::BigEndian);
    }
    if !matches!(version, 2 | VERSION) {
        return Err(GgufError::Version { found: version });
    }
    let (at_tensors, tensors) = (cursor.position(), cursor.u64("the tensor count")?);
    let (at_keys, keys) = (cursor.position(), cursor.u64("the key count")?);
    let tensors = bounded(cursor, at_tensors, tensors, "tensors", tensors::MIN_BYTES)?;
    let keys = bounded(cursor, at_keys, keys, "keys", keys::MIN_BYTES)?;
    Ok((version, tensors, keys))
}

/// A count that the rest of the file can hold and that is not absurd.
fn bounded(
    cursor: &Cursor<'_>,
    offset: usize,
    count: u64,
    what: &'static str,
    min_bytes: usize,
) -> Result<usize, GgufError> {
    let count_usize = cursor.bounded_count(offset, count, what, min_bytes)?;
    if count_usize > MAX_TENSORS {
        return Err(GgufError::TooMany { offset, what, count, max: MAX_TENSORS });
    }
    Ok(count_usize)
}

/// The alignment of tensor data in bytes.
fn alignment(bytes: &[u8], entries: &BTreeMap<String, Entry>) -> Result<u32, GgufError> {
    let Some(entry) = entries.get(ALIGNMENT_KEY) else { return Ok(DEFAULT_ALIGNMENT) };
    let value = entry.value(bytes);
    match value.as_u32() {
        Some(found) if found.is_power_of_two() && ALIGNMENTS.contains(&found) => Ok(found),
        Some(found) => {
            let (min, max) = (*ALIGNMENTS.start(), *ALIGNMENTS.end());
            Err(GgufError::Alignment { found, min, max })
        }
        None => Err(wrong_type(ALIGNMENT_KEY, "an integer in u32", value)),
    }
}

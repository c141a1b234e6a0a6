//! The key-value section of a GGUF file.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use super::value::{Entry, ValueType};
use crate::GgufError;

/// Bytes of the smallest key with its value: length of the name, type, one byte.
pub(super) const MIN_BYTES: usize = 8 + 4 + 1;
/// Longest name of a key or tensor: the specification's limit for keys.
pub(crate) const MAX_NAME_BYTES: usize = 65_535;

/// Reads `count` keys and checks their values.
pub(super) fn read(
    cursor: &mut Cursor<'_>,
    count: usize,
) -> Result<BTreeMap<String, Entry>, GgufError> {
    let mut entries = BTreeMap::new();
    for index in 0..count {
        let key = cursor.name(&format!("the name of key {index}"), MAX_NAME_BYTES)?;
        let entry = read_value(cursor, key)?;
        if entries.insert(key.to_owned(), entry).is_some() {
            return Err(GgufError::DuplicateKey { key: key.to_owned() });
        }
    }
    Ok(entries)
}

fn read_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Entry, GgufError> {
    match read_type(cursor, key)? {
        ValueType::Array => {
            let offset = cursor.position();
            let ty = read_type(cursor, key)?;
            if ty == ValueType::Array {
                return Err(GgufError::NestedArray { offset, key: key.to_owned() });
            }
            let (offset, count) = (cursor.position(), cursor.u64(key)?);
            // A string takes at least the 8 bytes of its length.
            let min_bytes = ty.size().unwrap_or(8);
            let what = format!("elements of key `{key}`");
            let count = cursor.bounded_count(offset, count, &what, min_bytes)?;
            read_elements(cursor, key, ty, count, Some(count))
        }
        ty => read_elements(cursor, key, ty, 1, None),
    }
}

fn read_type(cursor: &mut Cursor<'_>, key: &str) -> Result<ValueType, GgufError> {
    let offset = cursor.position();
    let found = cursor.u32(key)?;
    ValueType::from_id(found).ok_or_else(|| {
        let key = key.to_owned();
        GgufError::UnknownValueType { offset, key, found }
    })
}

/// Moves over `len` values of a type and checks what their type demands.
fn read_elements(
    cursor: &mut Cursor<'_>,
    key: &str,
    ty: ValueType,
    len: usize,
    count: Option<usize>,
) -> Result<Entry, GgufError> {
    let start = cursor.position();
    match ty.size() {
        None => {
            for _ in 0..len {
                cursor.string(key)?;
            }
        }
        Some(_) if ty == ValueType::Bool => {
            for _ in 0..len {
                let offset = cursor.position();
                let [found] = cursor.array(key)?;
                if found > 1 {
                    return Err(GgufError::NotABool { offset, key: key.to_owned(), found });
                }
            }
        }
        Some(size) => {
            // An array's count was bounded by the bytes that are left, so this cannot overflow.
            cursor.take(len as u64 * size as u64, key)?;
        }
    }
    Ok(Entry { ty, count, range: start..cursor.position() })
}

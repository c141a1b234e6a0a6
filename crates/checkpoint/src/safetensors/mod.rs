//! The safetensors reader: 8 bytes of header length, a JSON header, the data.
//!
//! A file passes only if its tensors, ordered by offset, cover the data section exactly: no
//! overlap, no hole, no byte left over, no tensor without bytes. This is the reference reader's
//! rule, minus its tolerance for empty tensors (many of those can share one offset, and no model
//! has any).

mod header;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::Number;

use crate::tensor::Tensor;
use crate::{Dtype, Error, MAX_TENSORS, Mapping, Region, SafetensorsError, TensorInfo};
pub(crate) use header::METADATA_KEY;
use header::RawEntry;

/// Longest header that is read, as in the reference reader.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Most dimensions of a safetensors tensor that are read.
pub const MAX_RANK: usize = 8;

/// The tensors of a file in the order of their data.
pub(crate) fn read(map: &Arc<Mapping>, path: &Path) -> Result<Vec<Tensor>, Error> {
    parse(map).map_err(|defect| Error::safetensors(path, defect))
}

fn parse(map: &Arc<Mapping>) -> Result<Vec<Tensor>, SafetensorsError> {
    let (text, data_start) = split_header(map)?;
    let header = header::parse(text)?;
    if header.count > MAX_TENSORS {
        let count = header.count;
        return Err(SafetensorsError::TooManyTensors { count, max: MAX_TENSORS });
    }
    let data_len = map.len() - data_start;
    let mut names = HashSet::new();
    for entry in &header.entries {
        if !names.insert(entry.name.as_str()) {
            return Err(SafetensorsError::DuplicateTensor { tensor: entry.name.clone() });
        }
    }
    let mut placed = header
        .entries
        .into_iter()
        .map(|entry| place(entry, data_len))
        .collect::<Result<Vec<_>, _>>()?;
    placed.sort_by_key(|(_, begin, _)| *begin);
    check_coverage(&placed, data_len)?;
    Ok(placed
        .into_iter()
        .map(|(info, begin, end)| {
            let region = Region::new(map, data_start + begin..data_start + end);
            Tensor { info, region }
        })
        .collect())
}

/// The header's text and the offset at which the data begins.
fn split_header(bytes: &[u8]) -> Result<(&str, usize), SafetensorsError> {
    let file_len = bytes.len();
    let Some((prefix, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(SafetensorsError::FileTooShort { len: file_len });
    };
    let len = u64::from_le_bytes(*prefix);
    if len > MAX_HEADER_BYTES {
        return Err(SafetensorsError::HeaderTooLarge { len, max: MAX_HEADER_BYTES });
    }
    // At most MAX_HEADER_BYTES: no overflow, and it fits usize.
    let Some(header) = rest.get(..len as usize) else {
        return Err(SafetensorsError::HeaderPastEnd { end: 8 + len, file_len });
    };
    match std::str::from_utf8(header) {
        Ok(text) => Ok((text, 8 + header.len())),
        Err(error) => Err(SafetensorsError::HeaderNotUtf8 { offset: 8 + error.valid_up_to() }),
    }
}

/// A tensor's declaration and its range in the data, checked for itself.
fn place(entry: RawEntry, data_len: usize) -> Result<(TensorInfo, usize, usize), SafetensorsError> {
    let tensor = entry.name;
    let Some(dtype) = Dtype::from_safetensors(&entry.dtype) else {
        return Err(SafetensorsError::UnknownDtype { tensor, dtype: entry.dtype });
    };
    if entry.rank > MAX_RANK {
        return Err(SafetensorsError::TooManyDims { tensor, rank: entry.rank, max: MAX_RANK });
    }
    let shape = entry
        .dims
        .iter()
        .map(|dim| unsigned(dim, &tensor, "shape"))
        .collect::<Result<Vec<_>, _>>()?;
    let begin = unsigned(&entry.offsets.0, &tensor, "data_offsets")?;
    let end = unsigned(&entry.offsets.1, &tensor, "data_offsets")?;
    let expected = match dtype.byte_len(&shape) {
        Ok(expected) => expected,
        Err(defect) => return Err(SafetensorsError::BadShape { tensor, shape, defect }),
    };
    if begin > end {
        return Err(SafetensorsError::OffsetsReversed { tensor, begin, end });
    }
    if end > data_len {
        return Err(SafetensorsError::PastEnd { tensor, end, data_len });
    }
    if end - begin != expected {
        let found = end - begin;
        return Err(SafetensorsError::WrongLength { tensor, dtype, shape, expected, found });
    }
    Ok((TensorInfo { name: tensor, dtype, shape }, begin, end))
}

/// A number of the header as a size.
fn unsigned(number: &Number, tensor: &str, field: &'static str) -> Result<usize, SafetensorsError> {
    if let Some(value) = number.as_u64().and_then(|value| usize::try_from(value).ok()) {
        return Ok(value);
    }
    let (tensor, found) = (tensor.to_owned(), number.to_string());
    if found.starts_with('-') {
        Err(SafetensorsError::Negative { tensor, field, found })
    } else {
        Err(SafetensorsError::NotAnInteger { tensor, field, found })
    }
}

/// Whether the tensors, sorted by their begin, cover the data exactly.
fn check_coverage(
    placed: &[(TensorInfo, usize, usize)],
    data_len: usize,
) -> Result<(), SafetensorsError> {
    let mut covered = 0;
    for (index, (info, begin, end)) in placed.iter().enumerate() {
        let (tensor, begin) = (info.name.clone(), *begin);
        if begin > covered {
            return Err(SafetensorsError::Hole { tensor, begin, end: covered });
        }
        if begin < covered {
            // The first tensor begins at 0 or behind it, so there is one before this.
            let other = placed[index - 1].0.name.clone();
            return Err(SafetensorsError::Overlap { tensor, begin, other, end: covered });
        }
        covered = *end;
    }
    if covered < data_len {
        return Err(SafetensorsError::TrailingBytes { end: covered, data_len });
    }
    Ok(())
}

//! The tensor declarations of a GGUF file, and the check of the data they point at.
//!
//! Tensors may not share bytes; gaps between them are padding. Padding behind the last tensor may
//! be absent: some writers pad only between tensors.

use std::collections::HashSet;
use std::sync::Arc;

use super::MAX_DIMS;
use super::cursor::Cursor;
use super::keys::MAX_NAME_BYTES;
use crate::dtype::ggml_name;
use crate::tensor::Tensor;
use crate::{Dtype, GgufError, Mapping, Region, ShapeError, TensorInfo};

/// Bytes of the smallest declaration: length of the name, number of dimensions, type, offset.
pub(super) const MIN_BYTES: usize = 8 + 4 + 4 + 8;

struct Declared {
    info: TensorInfo,
    /// From the start of the data.
    offset: u64,
    len: usize,
}

/// Reads `count` declarations and places them in the data that follows.
pub(super) fn read(
    cursor: &mut Cursor<'_>,
    count: usize,
    alignment: u32,
    map: &Arc<Mapping>,
) -> Result<Vec<Tensor>, GgufError> {
    let mut declared = Vec::new();
    for index in 0..count {
        declared.push(read_declaration(cursor, index, alignment)?);
    }
    let mut names = HashSet::new();
    for Declared { info, .. } in &declared {
        if !names.insert(info.name.as_str()) {
            return Err(GgufError::DuplicateTensor { tensor: info.name.clone() });
        }
    }
    // A position in a slice plus at most 65,536 is far below usize::MAX. Where the padding itself
    // is cut off there is no data.
    let data_start = cursor.position().next_multiple_of(alignment as usize).min(map.len());
    let data_len = map.len() - data_start;
    let begins =
        declared.iter().map(|tensor| begin(tensor, data_len)).collect::<Result<Vec<_>, _>>()?;
    check_overlap(&declared, &begins)?;
    Ok(declared
        .into_iter()
        .zip(begins)
        .map(|(Declared { info, len, .. }, begin)| {
            let start = data_start + begin;
            Tensor { info, region: Region::new(map, start..start + len) }
        })
        .collect())
}

fn read_declaration(
    cursor: &mut Cursor<'_>,
    index: usize,
    alignment: u32,
) -> Result<Declared, GgufError> {
    let name = cursor.name(&format!("the name of tensor {index}"), MAX_NAME_BYTES)?;
    let tensor = name.to_owned();
    let (offset, dims) = (cursor.position(), cursor.u32(name)?);
    if dims as usize > MAX_DIMS {
        return Err(GgufError::TooManyDims { offset, tensor, found: dims });
    }
    // ggml lists the fastest dimension first; ours is the row-major order.
    let mut shape = Vec::new();
    for _ in 0..dims {
        shape.insert(0, cursor.u64(name)?);
    }
    let id = cursor.u32(name)?;
    let offset = cursor.u64(name)?;
    let Some(dtype) = Dtype::from_ggml(id) else {
        return Err(GgufError::UnsupportedType { tensor, found: ggml_name(id) });
    };
    let (shape, len) = match sizes(dtype, &shape) {
        Ok(found) => found,
        Err(defect) => return Err(GgufError::BadShape { tensor, dtype, shape, defect }),
    };
    if offset % u64::from(alignment) != 0 {
        return Err(GgufError::Unaligned { tensor, found: offset, alignment });
    }
    Ok(Declared { info: TensorInfo { name: tensor, dtype, shape }, offset, len })
}

fn sizes(dtype: Dtype, shape: &[u64]) -> Result<(Vec<usize>, usize), ShapeError> {
    let shape = shape
        .iter()
        .map(|&dim| usize::try_from(dim).map_err(|_| ShapeError::Overflow))
        .collect::<Result<Vec<_>, _>>()?;
    let len = dtype.byte_len(&shape)?;
    Ok((shape, len))
}

/// The tensor's begin in the data, if all of it lies inside.
fn begin(tensor: &Declared, data_len: usize) -> Result<usize, GgufError> {
    let Declared { info, offset, len } = tensor;
    match usize::try_from(*offset) {
        Ok(begin) if begin <= data_len && *len <= data_len - begin => Ok(begin),
        _ => Err(GgufError::PastEnd {
            tensor: info.name.clone(),
            offset: *offset,
            len: *len,
            data_len,
        }),
    }
}

fn check_overlap(declared: &[Declared], begins: &[usize]) -> Result<(), GgufError> {
    let mut order: Vec<usize> = (0..declared.len()).collect();
    order.sort_by_key(|&index| begins[index]);
    for pair in order.windows(2) {
        let end = begins[pair[0]] + declared[pair[0]].len;
        if begins[pair[1]] < end {
            return Err(GgufError::Overlap {
                tensor: declared[pair[1]].info.name.clone(),
                begin: begins[pair[1]],
                other: declared[pair[0]].info.name.clone(),
                end,
            });
        }
    }
    Ok(())
}

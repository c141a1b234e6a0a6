//! Vectors of a layout in one safetensors file of f32: moments, adapters.

use super::{StoreError, failed};
use hybra_checkpoint::{Checkpoint, Dtype, SafetensorsOptions, SafetensorsWriter, TensorInfo};
use hybra_model::parameters::{Layout, Slot};
use std::fs;
use std::path::Path;

/// Writes vectors of a layout into one safetensors file, each under a prefix, by way of a directory
/// in `staging`.
pub(super) fn write_values(
    staging: &Path,
    to: &Path,
    layout: &Layout,
    vectors: &[(&str, &[f32])],
) -> Result<(), StoreError> {
    let slots = layout.slots();
    let name = |prefix: &str, slot: &Slot| format!("{prefix}{}", slot.spec.name);
    let all = vectors.iter().flat_map(|(prefix, _)| slots.iter().map(move |slot| (prefix, slot)));
    let tensors: Vec<_> = all
        .map(|(prefix, slot)| TensorInfo::new(name(prefix, slot), Dtype::F32, &slot.spec.shape))
        .collect();
    let options = SafetensorsOptions { max_shard_bytes: u64::MAX, overwrite: true };
    let beside = staging.join("values");
    let mut writer = SafetensorsWriter::create(&beside, &tensors, &[], &options)?;
    for (prefix, values) in vectors {
        for slot in slots {
            writer.write(&name(prefix, slot), bytemuck::cast_slice(&values[slot.range.clone()]))?;
        }
    }
    writer.finish()?;
    fs::rename(beside.join("model.safetensors"), to).map_err(failed(to, "move in place"))
}

pub(super) fn read_values(
    file: &Checkpoint,
    prefix: &str,
    layout: &Layout,
) -> Result<Vec<f32>, StoreError> {
    let mut values = Vec::with_capacity(layout.len());
    for slot in layout.slots() {
        let tensor = format!("{prefix}{}", slot.spec.name);
        let view = file.require(&tensor)?;
        if view.dtype != Dtype::F32 || view.shape != slot.spec.shape {
            let (path, expected) = (file.path().to_owned(), slot.range.len());
            let found = format!("{:?} {:?}", view.dtype, view.shape);
            return Err(StoreError::Moment { path, tensor, expected, found });
        }
        values.extend(crate::comm::plain::<f32>(view.data));
    }
    Ok(values)
}

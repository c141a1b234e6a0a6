//! The weights of the moment as a checkpoint in memory: one safetensors file of f32.

use crate::objective::BoxError;
use hybra_checkpoint::{Checkpoint, Mapping};
use hybra_model::Config;
use hybra_model::parameters::Layout;
use serde_json::{Map, json};

/// A checkpoint of these values; the flat vector is the file's data as it stands.
pub(super) fn checkpoint(
    config: &Config,
    layout: &Layout,
    parameters: &[f32],
) -> Result<Checkpoint, BoxError> {
    let mut header = Map::new();
    for slot in layout.slots() {
        let offsets = [4 * slot.range.start, 4 * slot.range.end];
        let entry = json!({ "dtype": "F32", "shape": slot.spec.shape, "data_offsets": offsets });
        header.insert(slot.spec.name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = Vec::with_capacity(8 + header.len() + 4 * parameters.len());
    file.extend_from_slice(&(header.len() as u64).to_le_bytes());
    file.extend_from_slice(&header);
    // Files of weights are little-endian, as every target of this project is.
    file.extend_from_slice(bytemuck::cast_slice(parameters));
    let files = [
        ("config.json", Mapping::from(config.to_json().into_bytes())),
        ("model.safetensors", Mapping::from(file)),
    ];
    Ok(Checkpoint::from_memory("the model under training", files)?)
}

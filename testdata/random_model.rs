//! A small hybrid of random weights in bf16, with a vocabulary of any size: for tests that look at the
//! engine and not at what the model says.

use hybra_model::parameters::Layout;
use hybra_model::{Config, NemotronH};
use serde_json::{Map, Value, json};

/// The shape of the default model with `vocab_size` rows.
pub(crate) fn random_model(vocab_size: usize) -> NemotronH {
    let shape = include_str!("../assets/default-model/config.json");
    let (own, new) = ("\"vocab_size\": 512", format!("\"vocab_size\": {vocab_size}"));
    assert!(shape.contains(own));
    let text = shape.replace(own, &new);
    let config = Config::from_json(&text, "random").unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("model.safetensors"), safetensors(&config)).unwrap();
    std::fs::write(directory.path().join("config.json"), text).unwrap();
    NemotronH::open(directory.path()).unwrap()
}

/// A file: length of the header, header, matrices in bf16 and the rest in f32.
fn safetensors(config: &Config) -> Vec<u8> {
    let layout = Layout::new(config);
    let values = layout.random(config, 1);
    let (mut header, mut data) = (Map::new(), Vec::new());
    for slot in layout.slots() {
        let (spec, from) = (&slot.spec, data.len());
        for value in &values[slot.range.clone()] {
            let bytes = value.to_bits().to_le_bytes();
            data.extend_from_slice(if spec.is_matrix() { &bytes[2..] } else { &bytes });
        }
        let dtype = if spec.is_matrix() { "BF16" } else { "F32" };
        let entry =
            json!({ "dtype": dtype, "shape": spec.shape, "data_offsets": [from, data.len()] });
        header.insert(spec.name.clone(), entry);
    }
    let header = Value::from(header).to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

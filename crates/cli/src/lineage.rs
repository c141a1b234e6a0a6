//! `lineage.json` of checkpoints that are made without training.

use hybra_train::checkpoint_store::Lineage;
use serde_json::Value;

/// The text for a checkpoint made by `stage` from the weights with the hash `parent`.
pub(crate) fn text(parent: &str, stage: &str, metrics: Value) -> String {
    let lineage = Lineage {
        parent: Some(parent.to_owned()),
        stage: stage.to_owned(),
        run_file: String::new(),
        seed: 0,
        code_version: env!("CARGO_PKG_VERSION").to_owned(),
        step: 0,
        metrics,
    };
    let text = serde_json::to_string_pretty(&lineage).expect("strings and numbers");
    text + "\n"
}

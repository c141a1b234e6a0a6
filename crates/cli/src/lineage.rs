//! `lineage.json`: where a checkpoint comes from, through all its stages.

use anyhow::{Context, Result};
use hybra_checkpoint::Checkpoint;
use hybra_train::checkpoint_store::Lineage;
use serde_json::Value;

/// The hash of a checkpoint's weights, and those of all that it descends from as far as its
/// `lineage.json` knows.
pub(crate) fn ancestry(checkpoint: &Checkpoint) -> Result<Vec<String>> {
    let mut ancestry = vec![checkpoint.hash()];
    if let Some(text) = checkpoint.read_text("lineage.json")? {
        let path = checkpoint.path().join("lineage.json");
        let lineage: Lineage =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        // Older files name the parent alone.
        ancestry.extend(lineage.parent.filter(|parent| !lineage.ancestors.contains(parent)));
        ancestry.extend(lineage.ancestors);
    }
    Ok(ancestry)
}

/// The text for a checkpoint made by `stage` from weights with this ancestry.
pub(crate) fn text(ancestors: &[String], stage: &str, metrics: Value) -> String {
    let lineage = Lineage {
        parent: ancestors.first().cloned(),
        ancestors: ancestors.to_vec(),
        stage: stage.to_owned(),
        run_file: String::new(),
        seed: 0,
        code_version: env!("CARGO_PKG_VERSION").to_owned(),
        step: 0,
        metrics,
    };
    serde_json::to_string_pretty(&lineage).expect("strings and numbers") + "\n"
}

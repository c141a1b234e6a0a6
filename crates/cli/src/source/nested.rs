//! The students of a nested checkpoint: `MODEL --size NAME`, or `MODEL/NAME` wherever a MODEL stands.
//!
//! The student is sliced into a temporary folder, mapped from there, and gone with its [`Source`]:
//! memory is the student's alone.

use super::{Described, Source, display_name};
use crate::prune::{kept_files, write_cut};
use anyhow::{Context, Result, bail};
use hybra_checkpoint::Checkpoint;
use hybra_compress::PrunePlan;
use hybra_compress::nested::{FILE, Nested, prefix};
use hybra_compress::prune::Teacher;
use hybra_model::Config;
use std::path::Path;

/// The checkpoint and the name of a student in it, if a path that does not exist stands for one.
pub(super) fn student_of(path: &Path) -> Option<(&Path, &str)> {
    let (model, name) = (path.parent()?, path.file_name()?.to_str()?);
    model.join(FILE).is_file().then_some((model, name))
}

/// What `--size` makes of a MODEL: a path for [`super::resolve`].
pub(crate) fn sized(model: Option<&str>, size: Option<&str>) -> Result<Option<String>> {
    let Some(size) = size else { return Ok(model.map(str::to_owned)) };
    let Some(model) = model else { bail!("--size: the model inside this binary has no sizes") };
    if !Path::new(model).join(FILE).is_file() {
        bail!("--size: {model} has no {FILE}; `hybra prune --nested` makes a model with sizes");
    }
    Ok(Some(Path::new(model).join(size).to_string_lossy().into_owned()))
}

fn read(checkpoint: &Checkpoint) -> Result<Nested> {
    let path = checkpoint.path().display();
    let text = checkpoint.read_text(FILE)?.with_context(|| format!("{path}: no {FILE}"))?;
    Nested::from_json(&text).with_context(|| path.to_string())
}

/// The shape of a student, without reading a weight.
pub(super) fn describe(model: &Path, size: &str) -> Result<Described> {
    let checkpoint = Checkpoint::open(model)?;
    let (teacher, nested) = (Config::from_checkpoint(&checkpoint)?, read(&checkpoint)?);
    let config = nested.size(size).context(display_name(model))?.shape.config(&teacher)?;
    Ok(Described { config, name: name(model, size), source: None })
}

/// Slices a student.
pub(super) fn open(model: &Path, size: &str) -> Result<Source> {
    let name = name(model, size);
    let whole = Source { checkpoint: Checkpoint::open(model)?, name: name.clone(), folder: None };
    let nested = read(&whole.checkpoint)?;
    let size = nested.size(size).context(display_name(model))?;
    let teacher = Teacher::new(&whole.checkpoint)?;
    let plan = prefix(&PrunePlan::everything(&teacher.config), &teacher.config, &size.shape);
    let plan = plan.with_context(|| name.clone())?;
    let mut files = kept_files(&whole)?;
    // The student's ancestors are those of the whole.
    files.extend(whole.checkpoint.read_text("lineage.json")?.map(|text| ("lineage.json", text)));
    let folder = tempfile::tempdir().context("a folder for the sliced model")?;
    let out = folder.path().join("model");
    write_cut(&teacher, &plan, Some(size), files, &out)?;
    Ok(Source { checkpoint: Checkpoint::open(&out)?, name, folder: Some(folder) })
}

fn name(model: &Path, size: &str) -> String {
    format!("{}/{size}", display_name(model))
}

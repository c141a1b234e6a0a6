//! Loss and gradients of the model, as a trainer computes them, against those of the reference.

use super::difference::Difference;
use super::reference::{Case, Training};
use super::report::{ErrorLine, TensorLine};
use crate::source::Source;
use anyhow::{Context, Result};
use hybra_kernels::Cpu;
use hybra_model::Config;
use hybra_model::training::{Keep, PackedBatch, Trainable};
use hybra_train::Objective;
use hybra_train::cross_entropy::CrossEntropy;

/// Largest relative error of a gradient: f32 sums of two implementations in different orders.
const TOLERANCE: f64 = 1e-4;

/// One line for the loss and each gradient.
pub(super) fn compare(
    cpu: &Cpu,
    source: &Source,
    config: &Config,
    cases: &[Case<'_>],
    training: &Training<'_>,
) -> Result<Vec<TensorLine>> {
    let case = cases.iter().find(|case| case.prefix.is_empty()).context("`input_ids`")?;
    let model = Trainable::new(config.clone(), Keep::Projections);
    let parameters = model.layout().load(&source.checkpoint, config)?;
    let mut batch = PackedBatch::default();
    case.input_ids.iter().for_each(|ids| batch.push(ids, &vec![true; ids.len()]));
    let (layout, mut gradient) = (model.layout().clone(), vec![0.0; parameters.len()]);
    let learned = batch.num_learned().max(1);
    let scale = 1.0 / learned as f32;
    let mut objective = CrossEntropy::new(model);
    let sums = objective.micro_batch(cpu, &parameters, &batch, scale, &mut gradient);
    let loss = (sums.loss / learned as f64) as f32;
    let mut lines = Vec::new();
    if let Some(expected) = training.loss {
        lines.push(line("loss", expected, &[loss]));
    }
    for slot in layout.slots() {
        let name = &slot.spec.name;
        if let Some(expected) = training.gradients.get(name) {
            let found = &gradient[slot.range.clone()];
            lines.push(line(&format!("grad.{name}"), *expected, found));
        }
    }
    Ok(lines)
}

fn line(name: &str, expected: super::reference::Tensor<'_>, found: &[f32]) -> TensorLine {
    let mut difference = Difference::default();
    difference.add(0, found, expected.values(0, found.len()));
    TensorLine {
        name: name.to_owned(),
        layer: None,
        shape: expected.shape.to_vec(),
        error: ErrorLine::new(&difference, expected.shape),
        pass: difference.is_within(TOLERANCE),
    }
}

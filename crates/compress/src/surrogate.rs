//! What a shape will cost, guessed from shapes that differ from the teacher on one axis.
//!
//! Errors of single axes are measured (a *probe*: the divergence right after pruning) and added: an
//! additive surrogate. It ranks shapes without making them, so that dead zones are never trained;
//! ranking by size would fill the list with shapes at the limit. Finalists must differ: of two that
//! are one step apart the better one stands for both.

use crate::target::Target;
use std::collections::{BTreeMap, BTreeSet};

/// The axes of a target, one at a time.
const AXES: [fn(&mut Target, &Target); 6] = [
    |to, from| to.layers.clone_from(&from.layers),
    |to, from| to.hidden_size = from.hidden_size,
    |to, from| to.intermediate_size = from.intermediate_size,
    |to, from| to.mamba_num_heads = from.mamba_num_heads,
    |to, from| to.mamba_head_dim = from.mamba_head_dim,
    |to, from| to.num_attention_heads = from.num_attention_heads,
];

/// The teacher's shape with one axis of `target` after the other; an axis that is the teacher's own
/// gives none.
fn single_axes(full: &Target, target: &Target) -> impl Iterator<Item = Target> {
    AXES.iter().filter_map(move |axis| {
        let mut single = full.clone();
        axis(&mut single, target);
        (single != *full).then_some(single)
    })
}

/// The shapes to measure before `targets` can be ranked, each once, in a fixed order.
#[must_use]
pub fn probes(full: &Target, targets: &[Target]) -> Vec<Target> {
    let all: BTreeSet<Target> =
        targets.iter().flat_map(|target| single_axes(full, target)).collect();
    all.into_iter().collect()
}

/// The sum of the errors of the target's axes.
///
/// # Panics
/// If a probe is missing.
#[must_use]
pub fn predict(full: &Target, target: &Target, errors: &BTreeMap<Target, f64>) -> f64 {
    single_axes(full, target).map(|single| errors[&single]).sum()
}

/// Indices of `count` targets: the least predicted error first, none within one step of a better
/// one as long as others are left.
#[must_use]
pub fn finalists(targets: &[Target], predicted: &[f64], count: usize) -> Vec<usize> {
    let steps = Steps::new(targets);
    let mut order: Vec<usize> = (0..targets.len()).collect();
    order.sort_by(|&a, &b| predicted[a].total_cmp(&predicted[b]).then(a.cmp(&b)));
    let (mut chosen, mut near): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    for at in order {
        let apart = |&other: &usize| steps.between(&targets[at], &targets[other]) > 1;
        if chosen.iter().all(apart) { chosen.push(at) } else { near.push(at) }
    }
    chosen.extend(near);
    chosen.truncate(count);
    chosen
}

/// Distances on the grid of a set of targets.
struct Steps {
    values: [Vec<usize>; 6],
}

fn coordinates(target: &Target) -> [usize; 6] {
    [
        target.layers.len(),
        target.hidden_size,
        target.intermediate_size,
        target.mamba_num_heads,
        target.mamba_head_dim,
        target.num_attention_heads,
    ]
}

impl Steps {
    fn new(targets: &[Target]) -> Self {
        let mut values: [BTreeSet<usize>; 6] = Default::default();
        for target in targets {
            let axes = values.iter_mut().zip(coordinates(target));
            axes.for_each(|(values, value)| values.extend([value]));
        }
        Self { values: values.map(|values| values.into_iter().collect()) }
    }

    /// Σ over axes of the number of grid steps; layers of the same number but not the same count
    /// as one step.
    fn between(&self, a: &Target, b: &Target) -> usize {
        let place = |axis: usize, value: usize| self.values[axis].partition_point(|v| *v < value);
        let axes = coordinates(a).into_iter().zip(coordinates(b)).enumerate();
        let steps: usize = axes.map(|(i, (a, b))| place(i, a).abs_diff(place(i, b))).sum();
        let others = a.layers.len() == b.layers.len() && a.layers != b.layers;
        steps + usize::from(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(layers: usize, hidden_size: usize, intermediate_size: usize) -> Target {
        Target {
            layers: (0..layers).collect(),
            hidden_size,
            intermediate_size,
            mamba_num_heads: 8,
            mamba_head_dim: 32,
            num_attention_heads: 4,
        }
    }

    #[test]
    fn errors_add_up_and_the_best_are_apart() {
        let full = target(4, 100, 100);
        let mut targets = Vec::new();
        for layers in [3, 4] {
            for hidden in [80, 90, 100] {
                targets.extend([60, 80, 100].map(|ffn| target(layers, hidden, ffn)));
            }
        }
        let singles = probes(&full, &targets);
        assert_eq!(singles.len(), 1 + 2 + 2);
        let error = |t: &Target| {
            let cut = |whole: usize, part: usize| (whole - part) as f64;
            cut(4, t.layers.len()) * 50.0
                + cut(100, t.hidden_size) * 2.0
                + cut(100, t.intermediate_size)
        };
        let errors = singles.iter().map(|single| (single.clone(), error(single))).collect();
        let predicted: Vec<f64> =
            targets.iter().map(|target| predict(&full, target, &errors)).collect();
        for (target, predicted) in targets.iter().zip(&predicted) {
            assert_eq!(*predicted, error(target));
        }
        let chosen = finalists(&targets, &predicted, 3);
        assert_eq!(targets[chosen[0]], full);
        // (4, 90, 100) and (4, 100, 80) cost less and are one step from the best.
        assert_eq!(targets[chosen[1]], target(4, 80, 100));
        assert_eq!(targets[chosen[2]], target(4, 90, 80));
        assert_eq!(finalists(&targets, &predicted, 100).len(), targets.len());
    }
}

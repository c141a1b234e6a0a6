//! The sum of a rank's micro-batches, and which tensors it reaches.
//!
//! The branch of the tree needs a buffer per level: a leaf is computed into zeros, and two
//! neighbours are added when both are done.

use crate::comm::{Comm, CommError, halfway};
use crate::objective::LossSums;
use hybra_kernels::Cpu;
use hybra_kernels::ops::activation::{add_values, zero_values};
use hybra_model::parameters::Layout;
use std::ops::Range;

/// The gradient of a rank, and room for branches of its tree.
pub(super) struct Gradient {
    sum: Vec<f32>,
    spare: Vec<Vec<f32>>,
}

/// Computes one micro-batch into a gradient of zeros.
type Leaf<'a> = dyn FnMut(usize, &mut [f32]) -> LossSums + 'a;

impl Gradient {
    /// For this many parameters.
    pub(super) fn new(len: usize) -> Self {
        Self { sum: vec![0.0; len], spare: Vec::new() }
    }

    /// The sum of the last [`Self::compute`].
    pub(super) fn values(&self) -> &[f32] {
        &self.sum
    }

    /// Sums the micro-batches of `range`, which is not empty.
    pub(super) fn compute(&mut self, cpu: &Cpu, range: Range<usize>, leaf: &mut Leaf) -> LossSums {
        let Self { sum, spare } = self;
        branch(cpu, range, leaf, sum, spare)
    }
}

fn branch(
    cpu: &Cpu,
    range: Range<usize>,
    leaf: &mut Leaf,
    sum: &mut [f32],
    spare: &mut Vec<Vec<f32>>,
) -> LossSums {
    assert!(!range.is_empty(), "a rank has a micro-batch");
    if range.len() == 1 {
        zero_values(cpu, sum);
        return leaf(range.start, sum);
    }
    let middle = halfway(&range);
    let left = branch(cpu, range.start..middle, leaf, sum, spare);
    let mut other = spare.pop().unwrap_or_else(|| vec![0.0; sum.len()]);
    let right = branch(cpu, middle..range.end, leaf, &mut other, spare);
    add_values(cpu, sum, &other);
    spare.push(other);
    let numbers: Vec<f64> =
        left.numbers().iter().zip(right.numbers()).map(|(a, b)| a + b).collect();
    left.with_numbers(&numbers)
}

/// The tensors whose gradient is all zeros, from every rank's shard of it.
pub(super) fn without(
    comm: &dyn Comm,
    layout: &Layout,
    gradient: &[f32],
    shards: &[Range<usize>],
) -> Result<Vec<String>, CommError> {
    let own = shards[comm.rank()].clone();
    let reached = layout.slots().iter().map(|slot| {
        let (from, to) = (slot.range.start.max(own.start), slot.range.end.min(own.end));
        let part = if from < to { &gradient[from - own.start..to - own.start] } else { &[] };
        u8::from(part.iter().any(|value| *value != 0.0))
    });
    let all = comm.all_gather(&reached.collect::<Vec<u8>>())?;
    let missed = |index: &usize| all.iter().all(|flags| flags.get(*index) != Some(&1));
    let slots = layout.slots();
    Ok((0..slots.len()).filter(missed).map(|index| slots[index].spec.name.clone()).collect())
}

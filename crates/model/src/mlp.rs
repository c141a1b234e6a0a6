//! The MLP mixer: `down(relu(up(x))²)`, no gate, no bias.

use crate::activations::{Activations, sized};
use crate::mamba2::Pass;
use crate::weights::MlpWeights;
use hybra_kernels::ops::packed::Epilogue;
use hybra_kernels::{MatMut, MatRef};

/// Reads `act.normed`, adds to `act.hidden`.
pub(crate) fn forward(pass: &Pass, w: &MlpWeights, act: &mut Activations) {
    let (cpu, tokens) = (pass.cpu, pass.batch.tokens().len());
    let (hidden, width) = (w.up_proj.cols(), w.up_proj.rows());
    let x = MatRef::new(&act.normed, hidden);
    act.rounded.prepare(cpu, x, &[&w.up_proj]);
    let up = sized(&mut act.wide, tokens * width);
    let to = MatMut::new(up, width);
    w.up_proj.apply(cpu, x, &act.rounded, to, Epilogue::Relu2, &mut act.out);
    let x = MatRef::new(up, width);
    act.rounded.prepare(cpu, x, &[&w.down_proj]);
    let to = MatMut::new(&mut act.hidden[..tokens * hidden], hidden);
    w.down_proj.apply(cpu, x, &act.rounded, to, Epilogue::Add, &mut act.out);
}

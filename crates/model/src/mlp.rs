//! The MLP mixer: `down(relu(up(x))²)`, no gate, no bias.

use crate::activations::{Activations, sized};
use crate::mamba2::Pass;
use crate::weights::MlpWeights;
use hybra_kernels::ops::activation::relu2;
use hybra_kernels::ops::gemm::gemm;
use hybra_kernels::{MatMut, MatRef};

/// Reads `act.normed`, writes `act.out`.
pub(crate) fn forward(pass: &Pass, w: &MlpWeights, act: &mut Activations) {
    let (cpu, tokens) = (pass.cpu, pass.batch.tokens().len());
    let (hidden, width) = (w.up_proj.cols(), w.up_proj.rows());
    let up = sized(&mut act.wide, tokens * width);
    gemm(cpu, MatRef::new(&act.normed, hidden), w.up_proj.view(), MatMut::new(up, width));
    relu2(cpu, MatMut::new(up, width));
    let out = MatMut::new(sized(&mut act.out, tokens * hidden), hidden);
    gemm(cpu, MatRef::new(up, width), w.down_proj.view(), out);
}

/// The hidden units that [`forward`] left behind, after the squared ReLU: `[T, width]`.
pub(crate) fn hidden(act: &Activations, tokens: usize, width: usize) -> &[f32] {
    &act.wide[..tokens * width]
}

//! A view into a running forward pass: comparison with a reference, importance scores.

/// What a block computed; matrices have a row for each of the batch's tokens, T in all. Of a model
/// on a device `output` alone is seen, the others are empty.
pub struct BlockActivations<'a> {
    /// The block's input after its norm, `[T, h]`: what its first projections read.
    pub normed: &'a [f32],
    /// Mamba's `z | x | B | C | dt` before the convolution, `[T, 2HP + 2GN + H]`; empty otherwise.
    pub in_proj: &'a [f32],
    /// What the last projection reads: Mamba's gated norm `[T, HP]`, the attention output
    /// `[T, q·hd]`, or the MLP's units after the squared ReLU `[T, f]`.
    pub mixed: &'a [f32],
    /// The residual stream behind the block, `[T, h]`.
    pub output: &'a [f32],
}

/// Called during a forward pass.
pub trait Observer {
    /// Block `layer` is done.
    fn block(&mut self, layer: usize, seen: &BlockActivations);

    /// Whether it looks at what it is shown.
    fn looks(&self) -> bool {
        true
    }
}

/// Observes nothing.
pub struct NoObserver;

impl Observer for NoObserver {
    fn block(&mut self, _: usize, _: &BlockActivations) {}

    fn looks(&self) -> bool {
        false
    }
}

//! A view into a running forward pass: comparison with a reference, importance scores.

/// Called during a forward pass; every method does nothing by default.
pub trait Observer {
    /// The residual stream after block `layer`: `hidden` is `[T, h]`, T the batch's tokens.
    fn block_output(&mut self, layer: usize, hidden: &[f32]) {
        let _ = (layer, hidden);
    }

    /// The hidden units of MLP layer `layer` after the squared ReLU, before `down`: `[T, width]`.
    fn mlp_hidden(&mut self, layer: usize, hidden: &[f32], width: usize) {
        let _ = (layer, hidden, width);
    }
}

/// Observes nothing.
pub struct NoObserver;

impl Observer for NoObserver {}

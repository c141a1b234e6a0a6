//! A view into a running forward pass: comparison with a reference, importance scores.

/// Called during a forward pass; every method does nothing by default.
pub trait Observer {
    /// The residual stream after block `layer`: `hidden` is `[T, h]`, T the batch's tokens.
    fn block_output(&mut self, layer: usize, hidden: &[f32]) {
        let _ = (layer, hidden);
    }
}

/// Observes nothing.
pub struct NoObserver;

impl Observer for NoObserver {}

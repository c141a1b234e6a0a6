//! Scratch of a forward pass, kept from call to call so that steps of a size seen before allocate
//! nothing.
//!
//! Shapes (T tokens of the batch, R rows with logits): `hidden` and `normed` `[T, h]`, `wide`
//! `[T, widest first projection]`, `mix` `[T, widest input of an output projection]`, `out`
//! `[T, h]`, `logits` `[R, V]`; `rounded` holds the input of the projections that run next.

use crate::device::DeviceActivations;
use crate::matrix::Rounded;

/// The buffers; see the file header for the shapes.
#[derive(Default)]
pub struct Activations {
    pub(crate) hidden: Vec<f32>,
    pub(crate) normed: Vec<f32>,
    pub(crate) wide: Vec<f32>,
    pub(crate) mix: Vec<f32>,
    pub(crate) out: Vec<f32>,
    pub(crate) logits: Vec<f32>,
    /// What a GPU kept of rows of logits.
    pub(crate) records: Vec<u64>,
    pub(crate) rounded: Rounded,
    pub(crate) device: DeviceActivations,
}

impl Activations {
    /// Empty buffers; they grow at the first use.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The residual stream of the last pass or piece of one: its first `len` values, T·h.
    #[must_use]
    pub fn residual(&self, len: usize) -> &[f32] {
        &self.hidden[..len]
    }

    /// Puts a residual stream, `[T, h]`, before the layers that [`crate::NemotronH::run_layers`]
    /// runs next.
    pub fn set_residual(&mut self, hidden: &[f32]) {
        sized(&mut self.hidden, hidden.len()).copy_from_slice(hidden);
    }

    /// Steps on a GPU that were replays of what was recorded before.
    #[must_use]
    pub fn replays(&self) -> u64 {
        self.device.replays()
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let buffers = [&self.hidden, &self.normed, &self.wide, &self.mix, &self.out, &self.logits];
        let values: usize = buffers.iter().map(|b| b.capacity()).sum();
        4 * values + self.rounded.bytes()
    }
}

/// The first `len` values of a buffer, grown without slack if it is too small.
pub(crate) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.reserve_exact(len - buffer.len());
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

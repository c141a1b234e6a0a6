//! How many hidden units of the MLPs are nonzero after the squared ReLU.
//!
//! A unit that is zero for a token takes no column of `down`: the share of nonzero units is what
//! a decode step must read of it. A step of several tokens must read the union of theirs, so the
//! union over windows of consecutive tokens is counted too. Windows follow each other without
//! overlap, over the borders of forward passes; one that is not full counts nothing.

use crate::config::Config;
use crate::layer::LayerConfig;
use crate::observer::{BlockActivations, Observer};
use serde::Serialize;

/// Lengths of the windows.
pub const WINDOWS: [usize; 3] = [4, 8, 16];

/// The density of one MLP layer: shares of its hidden units, from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerDensity {
    /// Index of the layer in the model.
    pub layer: usize,
    /// Hidden units.
    pub width: usize,
    /// Tokens seen.
    pub tokens: usize,
    /// Nonzero units of a token, on average.
    pub mean: f64,
    /// Of the token with the fewest.
    pub min: f64,
    /// Of the token with the most.
    pub max: f64,
    /// Units that are nonzero for a token or more of a window, on average, by window.
    pub unions: Vec<Union>,
}

/// The union over windows of one length.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Union {
    /// Consecutive tokens of a window.
    pub tokens: usize,
    /// Share of nonzero units; `None` where no window was full.
    pub mean: Option<f64>,
}

/// An [`Observer`] that counts. It expects the passes of one sequence, in order.
pub struct DensityCounter {
    layers: Vec<Layer>,
}

struct Layer {
    layer: usize,
    width: usize,
    tokens: usize,
    total: u64,
    min: usize,
    max: usize,
    windows: [Window; WINDOWS.len()],
}

#[derive(Default)]
struct Window {
    len: usize,
    /// A bit for each unit; of the tokens of the window so far.
    union: Vec<u64>,
    filled: usize,
    total: u64,
    full: u64,
}

impl DensityCounter {
    /// Counts nothing yet.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let layers = config.layers.iter().enumerate().filter_map(|(layer, kind)| match kind {
            LayerConfig::Mlp(m) => Some(Layer::new(layer, m.intermediate_size)),
            _ => None,
        });
        Self { layers: layers.collect() }
    }

    /// What was seen so far, MLP by MLP; layers that have seen no token are left out.
    #[must_use]
    pub fn layers(&self) -> Vec<LayerDensity> {
        self.layers.iter().filter(|layer| layer.tokens > 0).map(Layer::density).collect()
    }

    /// Nonzero hidden units over all units of all layers and tokens; `None` before the first.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        let units: usize = self.layers.iter().map(|layer| layer.tokens * layer.width).sum();
        let nonzero: u64 = self.layers.iter().map(|layer| layer.total).sum();
        (units > 0).then(|| nonzero as f64 / units as f64)
    }
}

impl Observer for DensityCounter {
    fn block(&mut self, layer: usize, seen: &BlockActivations) {
        if let Some(counted) = self.layers.iter_mut().find(|counted| counted.layer == layer) {
            seen.mixed.chunks_exact(counted.width).for_each(|token| counted.add(token));
        }
    }
}

impl Layer {
    fn new(layer: usize, width: usize) -> Self {
        let words = width.div_ceil(64);
        let window = |len| Window { len, union: vec![0; words], ..Window::default() };
        let windows = WINDOWS.map(window);
        Self { layer, width, tokens: 0, total: 0, min: usize::MAX, max: 0, windows }
    }

    fn add(&mut self, token: &[f32]) {
        let bits = token.chunks(64).map(|units| {
            units.iter().rev().fold(0, |word, &unit| word << 1 | u64::from(unit != 0.0))
        });
        let bits: Vec<u64> = bits.collect();
        let nonzero = count(&bits);
        self.tokens += 1;
        self.total += nonzero;
        self.min = self.min.min(nonzero as usize);
        self.max = self.max.max(nonzero as usize);
        self.windows.iter_mut().for_each(|window| window.add(&bits));
    }

    fn density(&self) -> LayerDensity {
        let share = |units: f64| units / self.width as f64;
        let union = |window: &Window| Union {
            tokens: window.len,
            mean: (window.full > 0).then(|| share(window.total as f64 / window.full as f64)),
        };
        LayerDensity {
            layer: self.layer,
            width: self.width,
            tokens: self.tokens,
            mean: share(self.total as f64 / self.tokens as f64),
            min: share(self.min as f64),
            max: share(self.max as f64),
            unions: self.windows.iter().map(union).collect(),
        }
    }
}

impl Window {
    fn add(&mut self, bits: &[u64]) {
        self.union.iter_mut().zip(bits).for_each(|(union, bits)| *union |= bits);
        self.filled += 1;
        if self.filled == self.len {
            self.total += count(&self.union);
            self.full += 1;
            self.filled = 0;
            self.union.fill(0);
        }
    }
}

fn count(bits: &[u64]) -> u64 {
    bits.iter().map(|word| u64::from(word.count_ones())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets::preset;

    #[test]
    fn shares_and_unions_of_a_known_pattern() {
        let mut config = preset("micro").unwrap();
        let LayerConfig::Mlp(mlp) = &mut config.layers[1] else { panic!("layer 1 is an MLP") };
        mlp.intermediate_size = 100;
        let mut counter = DensityCounter::new(&config);
        assert_eq!((counter.layers(), counter.mean()), (vec![], None));
        // Token t has the units 5t to 5t + 9, the last token all of them.
        let mut hidden = vec![0.0; 10 * 100];
        for t in 0..9 {
            hidden[t * 100 + 5 * t..][..10].fill(0.5);
        }
        hidden[900..].fill(1.0);
        for mixed in [&hidden[..300], &hidden[300..]] {
            let (normed, in_proj, output) = (&[][..], &[][..], &[][..]);
            counter.block(1, &BlockActivations { normed, in_proj, mixed, output });
        }
        let layers = counter.layers();
        let [layer] = &layers[..] else { panic!("{layers:?}") };
        assert_eq!((layer.layer, layer.width, layer.tokens), (1, 100, 10));
        let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(close(layer.mean, 0.19) && close(layer.min, 0.1) && close(layer.max, 1.0));
        // Four tokens cover 25 units, eight 45; a window of 16 was never full.
        let unions: Vec<_> = layer.unions.iter().map(|u| (u.tokens, u.mean)).collect();
        assert_eq!(unions, [(4, Some(0.25)), (8, Some(0.45)), (16, None)]);
        assert!(close(counter.mean().unwrap(), 0.19));
    }
}

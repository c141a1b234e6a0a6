//! The tensors of a flat vector, by what they are: slices to read or to write.

use crate::config::Config;
use crate::layer::LayerConfig;
use crate::parameters::Layout;

/// All tensors of a model.
pub(super) struct Views<P> {
    pub(super) embedding: P,
    pub(super) blocks: Vec<Block<P>>,
    pub(super) final_norm: P,
    /// `None` where the embedding is the head.
    pub(super) lm_head: Option<P>,
}

/// Tensors of a block.
pub(super) struct Block<P> {
    pub(super) norm: P,
    pub(super) mixer: Mixer<P>,
}

/// Tensors of a mixer, shaped as in safetensors.
pub(super) enum Mixer<P> {
    Mamba2(Mamba2<P>),
    Attention { q_proj: P, k_proj: P, v_proj: P, o_proj: P },
    Mlp { up_proj: P, down_proj: P },
}

pub(super) struct Mamba2<P> {
    pub(super) in_proj: P,
    pub(super) conv_weight: P,
    pub(super) conv_bias: Option<P>,
    pub(super) a_log: P,
    pub(super) d: P,
    pub(super) dt_bias: P,
    pub(super) gated_norm: P,
    pub(super) out_proj: P,
}

impl<'p> Views<&'p [f32]> {
    pub(super) fn of(config: &Config, layout: &Layout, values: &'p [f32]) -> Self {
        assert_eq!(values.len(), layout.len(), "parameters of the layout");
        let mut slots = layout.slots().iter();
        Self::new(config, || &values[slots.next().expect("a slot").range.clone()])
    }
}

impl<'p> Views<&'p mut [f32]> {
    pub(super) fn of_mut(config: &Config, layout: &Layout, values: &'p mut [f32]) -> Self {
        assert_eq!(values.len(), layout.len(), "gradients of the layout");
        let (mut slots, mut rest) = (layout.slots().iter(), values);
        Self::new(config, || {
            let len = slots.next().expect("a slot").range.len();
            rest.split_off_mut(..len).expect("the slots fill the vector")
        })
    }
}

impl<P> Views<P> {
    /// Asks for the tensors in the order of the registry.
    fn new(config: &Config, mut next: impl FnMut() -> P) -> Self {
        let embedding = next();
        let blocks = config.layers.iter().map(|layer| Block::new(layer, &mut next)).collect();
        let final_norm = next();
        let lm_head = (!config.tie_word_embeddings).then(next);
        Self { embedding, blocks, final_norm, lm_head }
    }
}

impl<P> Block<P> {
    fn new(layer: &LayerConfig, next: &mut impl FnMut() -> P) -> Self {
        let norm = next();
        let mixer = match layer {
            LayerConfig::Mamba2(m) => Mixer::Mamba2(Mamba2 {
                in_proj: next(),
                conv_weight: next(),
                conv_bias: m.use_conv_bias.then(&mut *next),
                a_log: next(),
                d: next(),
                dt_bias: next(),
                gated_norm: next(),
                out_proj: next(),
            }),
            LayerConfig::Attention(_) => {
                Mixer::Attention { q_proj: next(), k_proj: next(), v_proj: next(), o_proj: next() }
            }
            LayerConfig::Mlp(_) => Mixer::Mlp { up_proj: next(), down_proj: next() },
        };
        Self { norm, mixer }
    }
}

//! Which layers matter least: the order in which layers are removed.
//!
//! *Iterative*: of the layers that remain, the one without which the logits change least goes, and
//! the rest is measured again. The error of a removal is normalized, `Σ‖l − l′‖² / Σ‖l‖²` with l the
//! logits of the whole model and l′ those without the layers removed so far and the candidate.
//! Logits are never made: with W the head and d the difference of its inputs, `‖W·d‖² = dᵀ(WᵀW)d`.
//! A candidate runs only the layers behind it, from a residual stream that the layers before it left.
//! *Cosine*: `1 − mean cos(input, output)` of one pass, smallest first, never measured again.
//!
//! Sources: Minitron-SSM (arXiv 2504.11409, iterative), Nemotron Elastic (arXiv 2511.16664, the
//! normalization), ShortGPT (arXiv 2403.03853, cosine).

use crate::document::{Batches, DocumentError};
use crate::moments::Moments;
use hybra_kernels::ops::product::{Write, product};
use hybra_kernels::ops::quantize::dequantize_row;
use hybra_kernels::ops::rms_norm::rms_norm;
use hybra_kernels::{Cpu, MatMut, MatRef};
use hybra_model::layer::LayerKind;
use hybra_model::{Activations, Batch, Config, NemotronH, NoObserver};
use serde::{Deserialize, Serialize};

/// Layers of each kind that stay in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Floors {
    /// Mamba-2 layers.
    pub mamba: usize,
    /// Attention layers.
    pub attention: usize,
    /// MLP layers.
    pub mlp: usize,
}

impl Default for Floors {
    fn default() -> Self {
        Self { mamba: 1, attention: 1, mlp: 1 }
    }
}

impl Floors {
    /// The least number of layers of a kind.
    #[must_use]
    pub fn of(&self, kind: LayerKind) -> usize {
        match kind {
            LayerKind::Mamba2 => self.mamba,
            LayerKind::Attention => self.attention,
            LayerKind::Mlp => self.mlp,
        }
    }
}

/// A layer that goes, and what that costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Removal {
    /// The layer, from 0 in the whole model.
    pub layer: usize,
    /// Its letter.
    pub kind: char,
    /// The normalized error of the logits without it and those removed before it; of the cosine
    /// method, 1 − mean cos of this layer alone.
    pub error: f64,
    /// What the other candidates of the round would have cost: layer and error.
    pub candidates: Vec<(usize, f64)>,
}

/// The layers that may go next: those whose kind is above its floor.
fn candidates(config: &Config, kept: &[usize], floors: Floors) -> Vec<usize> {
    let kind = |layer: usize| config.layers[layer].kind();
    let above = |&layer: &usize| {
        kept.iter().filter(|&&other| kind(other) == kind(layer)).count() > floors.of(kind(layer))
    };
    kept.iter().copied().filter(above).collect()
}

/// The iterative order, until `keep` layers remain or floors forbid more. `progress` is told the
/// number of layers that are left to run in the worst case, first of all and after each round.
///
/// # Errors
/// Documents that cannot be run.
pub fn iterative_order(
    cpu: &Cpu,
    model: &NemotronH,
    documents: &[Vec<u32>],
    keep: usize,
    floors: Floors,
    progress: &mut dyn FnMut(&Removal),
) -> Result<Vec<Removal>, DocumentError> {
    let config = model.config();
    let batches: Vec<Batch> = Batches::new(config, documents)?.collect();
    let mut probe = Probe { cpu, model, gram: head_gram(cpu, model), act: Activations::new() };
    let mut kept: Vec<usize> = (0..config.layers.len()).collect();
    let whole: Vec<Vec<f32>> = batches.iter().map(|batch| probe.whole(batch, &kept)).collect();
    let size: f64 = whole.iter().map(|rows| probe.squared_logits(rows)).sum();
    let mut removals = Vec::new();
    while kept.len() > keep {
        let going = candidates(config, &kept, floors);
        let mut errors = vec![0.0; config.layers.len()];
        for (batch, whole) in batches.iter().zip(&whole) {
            probe.round(batch, whole, &kept, &going, &mut errors);
        }
        let mut found: Vec<(usize, f64)> = going
            .iter()
            .map(|&layer| (layer, errors[layer] / size.max(f64::MIN_POSITIVE)))
            .collect();
        found.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        let Some(&(layer, error)) = found.first() else { break };
        let kind = config.layers[layer].kind().letter();
        let removal = Removal { layer, kind, error, candidates: found.split_off(1) };
        progress(&removal);
        removals.push(removal);
        kept.retain(|&other| other != layer);
    }
    Ok(removals)
}

/// The order by 1 − mean cosine, smallest first, until floors forbid more.
#[must_use]
pub fn cosine_order(config: &Config, moments: &Moments, floors: Floors) -> Vec<Removal> {
    let tokens = moments.tokens.max(1) as f64;
    let error = |layer: usize| 1.0 - moments.layers[layer].cosine / tokens;
    let mut kept: Vec<usize> = (0..config.layers.len()).collect();
    let mut removals = Vec::new();
    loop {
        let least = candidates(config, &kept, floors)
            .into_iter()
            .min_by(|&a, &b| error(a).total_cmp(&error(b)).then(a.cmp(&b)));
        let Some(layer) = least else { return removals };
        let (kind, error) = (config.layers[layer].kind().letter(), error(layer));
        removals.push(Removal { layer, kind, error, candidates: Vec::new() });
        kept.retain(|&other| other != layer);
    }
}

/// A number of layers that the order cannot leave.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DepthError {
    /// The order does not reach so far, or the teacher has not so many.
    #[error(
        "cannot keep {num_layers} layers with {attention} of attention: of the teacher's {of}, \
         {removable} may go by the order; measure it with lower floors"
    )]
    OutOfReach {
        /// Layers asked for.
        num_layers: usize,
        /// Attention layers asked for: a number or `any number`.
        attention: String,
        /// Layers of the teacher.
        of: usize,
        /// Layers in the order.
        removable: usize,
    },
    /// A layer that the teacher has not.
    #[error("the order of layers: expected layers below {of}, found {layer}")]
    NoLayer {
        /// In the order.
        layer: usize,
        /// Layers of the teacher.
        of: usize,
    },
    /// A layer that goes twice.
    #[error("the order of layers: expected each layer once, found {layer} twice")]
    Twice {
        /// In the order.
        layer: usize,
    },
}

/// The layers that stay of `num_layers`: attention layers beyond `attention` go first, then others,
/// both in `order`, the least important first; with no number of attention layers, simply in order.
///
/// # Errors
/// [`DepthError`].
pub fn kept_layers(
    teacher: &Config,
    order: &[usize],
    num_layers: usize,
    attention: Option<usize>,
) -> Result<Vec<usize>, DepthError> {
    let of = teacher.layers.len();
    let wrong = || DepthError::OutOfReach {
        num_layers,
        attention: attention.map_or_else(|| "any number".to_owned(), |count| count.to_string()),
        of,
        removable: order.len(),
    };
    if let Some(&layer) = order.iter().find(|&&layer| layer >= of) {
        return Err(DepthError::NoLayer { layer, of });
    }
    if let Some(at) = (1..order.len()).find(|&at| order[..at].contains(&order[at])) {
        return Err(DepthError::Twice { layer: order[at] });
    }
    let is_attention = |layer: usize| teacher.layers[layer].kind() == LayerKind::Attention;
    let mut kept: Vec<usize> = (0..of).collect();
    if let Some(attention) = attention {
        let surplus = kept.iter().filter(|&&layer| is_attention(layer)).count();
        let surplus = surplus.checked_sub(attention).ok_or_else(wrong)?;
        let going = order.iter().filter(|&&layer| is_attention(layer)).take(surplus);
        let going: Vec<usize> = going.copied().collect();
        kept.retain(|layer| !going.contains(layer));
        if going.len() < surplus {
            return Err(wrong());
        }
    }
    let surplus = kept.len().checked_sub(num_layers).ok_or_else(wrong)?;
    let free = |layer: &&usize| attention.is_none() || !is_attention(**layer);
    let going: Vec<usize> = order.iter().filter(free).take(surplus).copied().collect();
    kept.retain(|layer| !going.contains(layer));
    if kept.len() == num_layers && num_layers > 0 { Ok(kept) } else { Err(wrong()) }
}

/// WᵀW of the output head, `[h, h]`.
fn head_gram(cpu: &Cpu, model: &NemotronH) -> Vec<f32> {
    /// Rows of the head that are decoded at a time.
    const ROWS: usize = 1024;
    let weights = model.weights();
    let head = weights.lm_head.as_ref().unwrap_or(&weights.embedding);
    let (view, h) = (head.view(), head.cols());
    let (mut gram, mut rows) = (vec![0.0; h * h], vec![0.0; ROWS * h]);
    for from in (0..head.rows()).step_by(ROWS) {
        let count = ROWS.min(head.rows() - from);
        for (r, row) in rows.chunks_exact_mut(h).take(count).enumerate() {
            dequantize_row(cpu.isa(), view.dtype(), view.row_part(from + r, 0, h), row);
        }
        let w = MatRef::new(&rows[..count * h], h);
        product(cpu, w.t(), w, MatMut::new(&mut gram, h), Write::Add);
    }
    gram
}

/// Runs parts of the model.
struct Probe<'a> {
    cpu: &'a Cpu,
    model: &'a NemotronH,
    gram: Vec<f32>,
    act: Activations,
}

impl Probe<'_> {
    /// The head's input over `kept` layers, `[T, h]`.
    fn whole(&mut self, batch: &Batch, kept: &[usize]) -> Vec<f32> {
        self.model.embed(self.cpu, batch, &mut self.act).expect(crate::ON_CPU);
        self.layers(batch, kept);
        self.head_input(batch)
    }

    /// Adds to `errors` the squared logit error without each of the `going` layers.
    fn round(
        &mut self,
        batch: &Batch,
        whole: &[f32],
        kept: &[usize],
        going: &[usize],
        errors: &mut [f64],
    ) {
        let rows = batch.tokens().len() * self.model.config().hidden_size;
        self.model.embed(self.cpu, batch, &mut self.act).expect(crate::ON_CPU);
        let mut prefix = self.act.residual(rows).to_vec();
        for (at, &layer) in kept.iter().enumerate() {
            if going.contains(&layer) {
                self.act.set_residual(&prefix);
                self.layers(batch, &kept[at + 1..]);
                let mut without = self.head_input(batch);
                without.iter_mut().zip(whole).for_each(|(a, b)| *a -= b);
                errors[layer] += self.squared_logits(&without);
            }
            self.act.set_residual(&prefix);
            self.layers(batch, &[layer]);
            prefix.copy_from_slice(self.act.residual(rows));
        }
    }

    fn layers(&mut self, batch: &Batch, layers: &[usize]) {
        let new = |_| self.model.new_state(crate::STATE);
        let mut states: Vec<_> = batch.segments().iter().map(new).collect();
        let mut states: Vec<_> = states.iter_mut().collect();
        let (act, layers) = (&mut self.act, layers.iter().copied());
        let model = self.model;
        let read = model.run_layers(self.cpu, batch, &mut states, act, layers, &mut NoObserver);
        read.expect(crate::ON_CPU);
    }

    fn head_input(&self, batch: &Batch) -> Vec<f32> {
        let (h, eps) = (self.model.config().hidden_size, self.model.config().norm_eps);
        let hidden = self.act.residual(batch.tokens().len() * h);
        let mut normed = vec![0.0; hidden.len()];
        let (x, out) = (MatRef::new(hidden, h), MatMut::new(&mut normed, h));
        rms_norm(self.cpu, x, &self.model.weights().final_norm, eps, out);
        normed
    }

    /// Σ over rows d of ‖W·d‖².
    fn squared_logits(&self, rows: &[f32]) -> f64 {
        let h = self.model.config().hidden_size;
        let mut image = vec![0.0; rows.len()];
        let (x, gram) = (MatRef::new(rows, h), MatRef::new(&self.gram, h));
        product(self.cpu, x, gram, MatMut::new(&mut image, h), Write::Store);
        rows.iter().zip(&image).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    }
}

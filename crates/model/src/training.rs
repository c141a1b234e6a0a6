//! A model under training: forward and backward over packed documents, in f32 or with products of
//! bf16.
//!
//! Parameters and gradients are flat vectors in the order of a [`Layout`]. The forward pass goes
//! document by document from empty states, and keeps of every block its input, its first projection
//! and the input of its last one, of a scan also its output and states ([`Tape`]); with
//! [`Keep::Inputs`] the input alone, and the block is run once more on the way back. The output head
//! belongs to the loss: [`Trainable::forward`] ends at the final norm, and [`Trainable::backward`]
//! starts there. Behind the last block in which tokens meet both take only the rows that are read.
//!
//! A batch with [`Signals`] is an engine's own answers: its forward pass has the engine's bits.
//!
//! **Invariants.** A gradient is a left fold over documents in order, so packing changes no bit of
//! it, nor does the number of threads. Source of the formulas: the ops' own files.

mod backward;
mod block;
mod mlp;
mod packed_batch;
mod read_rows;
mod saved;
mod views;

pub use packed_batch::{PackedBatch, Signals, SoftLabels};

use crate::activations::sized;
use crate::config::Config;
use crate::layer::LayerConfig;
use crate::parameters::Layout;
use block::Pass;
use hybra_kernels::ops::embedding::{embedding, embedding_backward};
use hybra_kernels::ops::gemm::gemm;
use hybra_kernels::ops::rms_norm::{rms_norm, rms_norm_backward};
use hybra_kernels::{Cpu, DType, MatMut, MatRef, WeightRef};
use read_rows::ReadRows;
use saved::{Saved, Scratch};
use serde::{Deserialize, Serialize};
use views::Views;

/// What a forward pass keeps for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// Inputs, projections and scans: the faster way.
    #[default]
    Projections,
    /// The inputs of blocks, h values per token and block: less memory, one more forward pass.
    Inputs,
}

/// Arithmetic of a pass. Weights, gradients, the residual stream and states are f32 in either.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// Products of the blocks round their operands to bf16 and add up in f32; scan, norms,
    /// attention, the output head and the loss are f32, and so is a forward pass with [`Signals`].
    Bf16,
}

/// The shape of a model under training; its parameters are the caller's.
pub struct Trainable {
    config: Config,
    layout: Layout,
    keep: Keep,
    precision: Precision,
}

/// What a forward pass leaves for the backward pass; kept from call to call for its memory.
#[derive(Default)]
pub struct Tape {
    blocks: Vec<Saved>,
    /// The rows that the loss reads, unless that are all.
    read: Option<ReadRows>,
    /// Residual stream after the last block, of the rows that are read.
    hidden: Vec<f32>,
    /// After the final norm, `[T, h]`: the input of the output head.
    normed: Vec<f32>,
    scratch: Scratch,
}

impl Tape {
    /// The rows that the output head reads, `[T, h]`; 0 where it was said to read none.
    #[must_use]
    pub fn normed(&self) -> &[f32] {
        &self.normed
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(Saved::bytes).sum();
        4 * (self.hidden.capacity() + self.normed.capacity()) + blocks + self.scratch.bytes()
    }
}

impl Trainable {
    /// A model of this configuration, in f32.
    #[must_use]
    pub fn new(config: Config, keep: Keep) -> Self {
        let layout = Layout::new(&config);
        Self { config, layout, keep, precision: Precision::F32 }
    }

    /// The same model in this arithmetic.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where each tensor lies in parameters and gradients.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The output head in `parameters`, `[V, h]`.
    #[must_use]
    pub fn head<'p>(&self, parameters: &'p [f32]) -> MatRef<'p> {
        let views = self.views(parameters);
        MatRef::new(views.lm_head.unwrap_or(views.embedding), self.config.hidden_size)
    }

    /// Where the output head's gradient goes, `[V, h]`.
    pub fn head_gradient<'g>(&self, gradient: &'g mut [f32]) -> MatMut<'g> {
        let views = Views::of_mut(&self.config, &self.layout, gradient);
        MatMut::new(views.lm_head.unwrap_or(views.embedding), self.config.hidden_size)
    }

    /// Logits of rows of the final norm's output, `[n, V]`, with the bits of an engine that runs
    /// these weights.
    ///
    /// # Panics
    /// If a shape disagrees.
    pub fn logits(&self, cpu: &Cpu, parameters: &[f32], rows: MatRef, out: MatMut) {
        let views = self.views(parameters);
        let head = views.lm_head.unwrap_or(views.embedding);
        gemm(cpu, rows, stored(head, self.config.hidden_size), out);
    }

    fn views<'p>(&self, parameters: &'p [f32]) -> Views<&'p [f32]> {
        Views::of(&self.config, &self.layout, parameters)
    }

    /// Runs the documents and leaves the head's input in `tape`: that of the tokens with a weight,
    /// `[T]`. What only the others' output needs, behind the last block in which tokens meet, is not
    /// computed.
    ///
    /// # Panics
    /// If a token is outside the vocabulary or a length disagrees.
    pub fn forward(
        &self,
        cpu: &Cpu,
        parameters: &[f32],
        batch: &PackedBatch,
        weights: &[f32],
        tape: &mut Tape,
    ) {
        let (h, tokens, views) =
            (self.config.hidden_size, batch.tokens.len(), self.views(parameters));
        assert_eq!(batch.documents.iter().sum::<usize>(), tokens, "lengths of the documents");
        assert_eq!(weights.len(), tokens, "a weight for each token");
        let meeting = self.last_meeting();
        tape.read = meeting.and_then(|_| ReadRows::new(&batch.documents, weights));
        let Tape { blocks, read, hidden, normed, scratch } = tape;
        let num_read = read.as_ref().map_or(tokens, ReadRows::len);
        hidden.resize(num_read * h, 0.0);
        blocks.resize_with(self.config.layers.len(), Saved::default);
        for (layer, saved) in blocks.iter_mut().enumerate() {
            let rows = if Some(layer) > meeting { num_read } else { tokens };
            saved.x.resize(rows * h, 0.0);
        }
        let first = blocks.first_mut().map_or(&mut *hidden, |saved| &mut saved.x);
        let table = stored(views.embedding, h);
        embedding(cpu, table, &batch.tokens, MatMut::new(first, h));
        for (layer, block) in views.blocks.iter().enumerate() {
            let pass = self.pass(cpu, batch, read.as_ref(), layer);
            let (done, rest) = blocks.split_at_mut(layer + 1);
            let saved = &mut done[layer];
            let next = rest.first_mut().map_or(&mut *hidden, |saved| &mut saved.x);
            match self.keep {
                Keep::Projections => pass.forward(layer, block, saved, next, scratch),
                Keep::Inputs => {
                    let mut again = std::mem::take(&mut scratch.again);
                    std::mem::swap(&mut again.x, &mut saved.x);
                    pass.forward(layer, block, &mut again, next, scratch);
                    std::mem::swap(&mut again.x, &mut saved.x);
                    scratch.again = again;
                }
            }
        }
        normed.resize(tokens * h, 0.0);
        let x = MatRef::new(hidden, h);
        let norm = |out: &mut [f32]| {
            rms_norm(cpu, x, views.final_norm, self.config.norm_eps, MatMut::new(out, h));
        };
        match read {
            Some(rows) => {
                let out = sized(&mut scratch.out, num_read * h);
                norm(out);
                rows.scatter(out, h, normed);
            }
            None => norm(normed),
        }
    }

    /// Adds the gradients of all parameters but the head's to `gradient`, given that of
    /// [`Tape::normed`], after [`Self::forward`] over the same batch and parameters.
    ///
    /// # Panics
    /// If a length disagrees.
    pub fn backward(
        &self,
        cpu: &Cpu,
        parameters: &[f32],
        batch: &PackedBatch,
        tape: &mut Tape,
        dnormed: &[f32],
        gradient: &mut [f32],
    ) {
        let h = self.config.hidden_size;
        let views = self.views(parameters);
        let mut g = Views::of_mut(&self.config, &self.layout, gradient);
        let Tape { blocks, read, hidden, scratch, .. } = tape;
        let mut d = std::mem::take(&mut scratch.dhidden);
        d.clear();
        d.resize(hidden.len(), 0.0);
        let dout = match read {
            Some(rows) => rows.gather(dnormed, h, &mut scratch.out),
            None => dnormed,
        };
        let (x, dout, dx) = (MatRef::new(hidden, h), MatRef::new(dout, h), MatMut::new(&mut d, h));
        let eps = self.config.norm_eps;
        rms_norm_backward(cpu, x, views.final_norm, eps, dout, dx, g.final_norm);
        for (layer, block) in views.blocks.iter().enumerate().rev() {
            let pass = self.pass(cpu, batch, read.as_ref(), layer);
            let (saved, g) = (&mut blocks[layer], &mut g.blocks[layer]);
            if self.keep == Keep::Inputs {
                let mut again = std::mem::take(&mut scratch.again);
                std::mem::swap(&mut again.x, &mut saved.x);
                // Its output is not needed: it goes over the last block's, which has been read.
                hidden.resize(d.len(), 0.0);
                pass.forward(layer, block, &mut again, hidden, scratch);
                pass.backward(layer, block, &again, g, &mut d, scratch);
                std::mem::swap(&mut again.x, &mut saved.x);
                scratch.again = again;
            } else {
                pass.backward(layer, block, saved, g, &mut d, scratch);
            }
        }
        let dtable = MatMut::new(g.embedding, h);
        embedding_backward(cpu, &batch.tokens, MatRef::new(&d, h), dtable);
        scratch.dhidden = d;
    }

    /// The last block in which tokens meet.
    fn last_meeting(&self) -> Option<usize> {
        self.config.layers.iter().rposition(|layer| !matches!(layer, LayerConfig::Mlp(_)))
    }

    fn pass<'a>(
        &'a self,
        cpu: &'a Cpu,
        batch: &'a PackedBatch,
        read: Option<&'a ReadRows>,
        layer: usize,
    ) -> Pass<'a> {
        let (config, precision) = (&self.config, self.precision);
        let prompts = batch.signals.as_ref().map(|signals| &signals.prompts[..]);
        let of_each = prompts.is_none_or(|p| p.len() == batch.documents.len());
        assert!(of_each, "a prompt in each document");
        let behind = read.filter(|_| Some(layer) > self.last_meeting());
        let documents = behind.map_or(&batch.documents, |rows| &rows.documents);
        let read = read.filter(|_| Some(layer) == self.last_meeting());
        Pass { cpu, config, documents, prompts, read, eps: config.norm_eps, precision }
    }
}

/// A matrix as files and engines hold it; bytes of weights are little-endian, as every target of
/// this project is.
fn stored(w: &[f32], cols: usize) -> WeightRef<'_> {
    WeightRef::new(DType::F32, w.len() / cols, cols, bytemuck::cast_slice(w))
}

//! What one pass over calibration data leaves behind: moments of every channel that can be dropped.
//!
//! Raw sums are kept, in f64 and in the order of the documents, so that any score can be computed
//! later without another pass, and the same data give the same bits for any number of threads.
//! Every document starts from an empty state.

use crate::document::{Batches, DocumentError};
use hybra_kernels::ops::product::{Write, product};
use hybra_kernels::ops::rms_norm::rms_norm;
use hybra_kernels::{Cpu, MatMut, MatRef};
use hybra_model::layer::LayerConfig;
use hybra_model::{Activations, Batch, BlockActivations, Config, NemotronH, Observer};

/// Sums over the channels of one row of activations, w wide.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChannelMoments {
    /// Σ over documents of (mean over tokens of |x|)², `[w]`: what published scores aggregate.
    pub abs: Vec<f64>,
    /// Σ over tokens of x², `[w]`.
    pub square: Vec<f64>,
    /// Σ over tokens of x·xᵀ, `[w, w]`; empty where it was not asked for.
    pub gram: Vec<f64>,
}

/// What was seen of one layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerMoments {
    /// What the layer's first projections read, h wide.
    pub normed: ChannelMoments,
    /// What its last projection reads: Mamba's gated norm (HP wide), the attention output (q·hd),
    /// the MLP's units after the squared ReLU (f).
    pub mixed: ChannelMoments,
    /// Of Mamba's x before the convolution, HP wide, as [`ChannelMoments::abs`].
    pub x_abs: Vec<f64>,
    /// Σ over tokens of the cosine between the residual stream before and behind the layer.
    pub cosine: f64,
}

/// What was seen of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Moments {
    /// Number of documents.
    pub documents: u64,
    /// Number of tokens.
    pub tokens: u64,
    /// Layer by layer.
    pub layers: Vec<LayerMoments>,
    /// What the output head reads, h wide.
    pub head: ChannelMoments,
}

impl Moments {
    /// Runs the model over `documents`, about `batch_tokens` tokens at a time. `gram` also keeps
    /// the Gram matrices, which least squares need: 8·w² bytes for every projection's input.
    /// `progress` is told how many documents are done.
    ///
    /// # Errors
    /// No document, an empty one, or a token outside the vocabulary.
    pub fn collect(
        cpu: &Cpu,
        model: &NemotronH,
        documents: &[Vec<u32>],
        gram: bool,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self, DocumentError> {
        let batches = Batches::new(model.config(), documents)?;
        let config = model.config();
        let mut collector = Collector::new(cpu, config, gram);
        let (mut act, h) = (Activations::new(), config.hidden_size);
        let mut done = 0;
        for batch in batches {
            let rows = batch.tokens().len() * h;
            let mut states: Vec<_> =
                batch.segments().iter().map(|_| model.new_state(crate::STATE)).collect();
            let mut states: Vec<_> = states.iter_mut().collect();
            model.embed(cpu, &batch, &mut act).expect(crate::ON_CPU);
            collector.start(&batch, act.residual(rows));
            let layers = 0..config.layers.len();
            let read = model.run_layers(cpu, &batch, &mut states, &mut act, layers, &mut collector);
            read.expect(crate::ON_CPU);
            collector.end(act.residual(rows), &model.weights().final_norm, config.norm_eps);
            done += batch.segments().len();
            progress(done);
        }
        Ok(collector.moments)
    }
}

/// Adds up what a pass shows.
struct Collector<'a> {
    cpu: &'a Cpu,
    config: &'a Config,
    gram: bool,
    moments: Moments,
    /// Lengths of the batch's documents.
    lens: Vec<usize>,
    /// The residual stream before the layer that comes next.
    before: Vec<f32>,
    scratch: Vec<f32>,
}

impl<'a> Collector<'a> {
    fn new(cpu: &'a Cpu, config: &'a Config, gram: bool) -> Self {
        let layers = vec![LayerMoments::default(); config.layers.len()];
        let moments = Moments { layers, ..Moments::default() };
        let (lens, before, scratch) = (Vec::new(), Vec::new(), Vec::new());
        Self { cpu, config, gram, moments, lens, before, scratch }
    }

    fn start(&mut self, batch: &Batch, hidden: &[f32]) {
        self.lens = batch.segments().iter().map(|segment| segment.len).collect();
        self.moments.documents += self.lens.len() as u64;
        self.moments.tokens += batch.tokens().len() as u64;
        self.before.clear();
        self.before.extend_from_slice(hidden);
    }

    fn end(&mut self, hidden: &[f32], norm: &[f32], eps: f32) {
        let h = self.config.hidden_size;
        let mut normed = vec![0.0; hidden.len()];
        let out = MatMut::new(&mut normed, h);
        rms_norm(self.cpu, MatRef::new(hidden, h), norm, eps, out);
        let mut head = std::mem::take(&mut self.moments.head);
        self.add(&mut head, &normed, h);
        self.moments.head = head;
    }

    fn add(&mut self, to: &mut ChannelMoments, x: &[f32], width: usize) {
        add_abs(&mut to.abs, x, width, width, 0, &self.lens);
        to.square.resize(width, 0.0);
        for row in x.chunks_exact(width) {
            to.square.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
        }
        if self.gram {
            self.scratch.resize(width * width, 0.0);
            let (x, out) = (MatRef::new(x, width), MatMut::new(&mut self.scratch, width));
            product(self.cpu, x.t(), x, out, Write::Store);
            to.gram.resize(width * width, 0.0);
            to.gram.iter_mut().zip(&self.scratch).for_each(|(sum, &x)| *sum += f64::from(x));
        }
    }
}

impl Observer for Collector<'_> {
    fn block(&mut self, layer: usize, seen: &BlockActivations) {
        let h = self.config.hidden_size;
        let mut moments = std::mem::take(&mut self.moments.layers[layer]);
        self.add(&mut moments.normed, seen.normed, h);
        let width = match &self.config.layers[layer] {
            LayerConfig::Mamba2(m) => {
                let (inner, rows) = (m.d_inner(), m.in_proj_rows());
                add_abs(&mut moments.x_abs, seen.in_proj, rows, inner, inner, &self.lens);
                inner
            }
            LayerConfig::Attention(a) => a.q_width(),
            LayerConfig::Mlp(m) => m.intermediate_size,
        };
        self.add(&mut moments.mixed, seen.mixed, width);
        let rows = self.before.chunks_exact(h).zip(seen.output.chunks_exact(h));
        moments.cosine += rows.map(|(before, behind)| cosine(before, behind)).sum::<f64>();
        self.moments.layers[layer] = moments;
        self.before.copy_from_slice(seen.output);
    }
}

/// Adds the squares of every document's mean |x| of columns `from..from + len` of rows `width` wide.
fn add_abs(to: &mut Vec<f64>, x: &[f32], width: usize, len: usize, from: usize, lens: &[usize]) {
    to.resize(len, 0.0);
    let (mut sums, mut rows) = (vec![0.0f64; len], x.chunks_exact(width));
    for &tokens in lens {
        sums.fill(0.0);
        for row in rows.by_ref().take(tokens) {
            let row = &row[from..from + len];
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(x.abs()));
        }
        to.iter_mut().zip(&sums).for_each(|(to, sum)| *to += (sum / tokens as f64).powi(2));
    }
}

/// The cosine of the angle between two rows; 1 where one is zero.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 1.0 }
}

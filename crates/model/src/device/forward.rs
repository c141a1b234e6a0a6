//! The forward pass on a device: the twin of `nemotron_h.rs` and the mixers.
//!
//! Nothing here computes: it says which op reads which buffer, in order.

use super::graphs::Shape;
use super::scratch::{Lens, Number, Scratch};
use super::tables::Tables;
use super::weights::{DeviceMamba2, DeviceMixer};
use super::{DeviceModel, Piece};
use crate::batch::{Batch, LogitsFor};
use crate::config::Config;
use crate::layer::{AttentionConfig, LayerConfig, Mamba2Config};
use crate::observer::{BlockActivations, NoObserver, Observer};
use crate::state::SequenceState;
use hybra_cuda::ops::attention::{HeadColumns, KvLayer, attention, kv_append};
use hybra_cuda::ops::embedding::embedding;
use hybra_cuda::ops::mamba_split_conv1d_scan::{
    MixerParams, MixerScratch, mamba_split_conv1d_scan,
};
use hybra_cuda::ops::matmul::{Epilogue, matmul};
use hybra_cuda::ops::rms_norm::rms_norm;
use hybra_cuda::ops::sample::{RECORD_LEN, reduce, reduce_scratch_len};
use hybra_cuda::{CudaError, DeviceMatrix, Gpu, stride};
use std::sync::Arc;

/// What the mixers of a pass have in common.
#[derive(Clone, Copy)]
struct Pass<'a> {
    model: &'a DeviceModel,
    /// Where launches go.
    gpu: &'a Gpu,
    /// h.
    hidden: usize,
    /// T.
    tokens: usize,
    eps: f32,
    dt_limit: (f32, f32),
}

impl DeviceModel {
    /// Embedding and all layers: one upload.
    pub(super) fn read_in<T: Number>(
        &self,
        piece: &mut Piece,
        states: &mut [&mut SequenceState],
        observer: &mut dyn Observer,
    ) -> Result<(), CudaError> {
        self.begin::<T>(piece, states)?;
        self.embed::<T>(&self.gpu, piece)?;
        self.run::<T>(&self.gpu, piece, 0..piece.config.layers.len(), observer)
    }

    /// Embedding alone.
    pub(super) fn embed_in<T: Number>(&self, piece: &mut Piece) -> Result<(), CudaError> {
        let scratch = T::scratch(piece.act);
        self.layout.in_room(|| {
            scratch
                .hidden
                .sized(&self.gpu, piece.batch.tokens().len() * piece.config.hidden_size)?;
            scratch.tables.fill_ids(&self.gpu, piece.batch)
        })?;
        self.embed::<T>(&self.gpu, piece)
    }

    /// Some layers alone.
    pub(super) fn run_layers_in<T: Number>(
        &self,
        piece: &mut Piece,
        states: &mut [&mut SequenceState],
        layers: impl IntoIterator<Item = usize>,
        observer: &mut dyn Observer,
    ) -> Result<(), CudaError> {
        self.begin::<T>(piece, states)?;
        self.run::<T>(&self.gpu, piece, layers, observer)
    }

    /// Brings states and tables to the device, and makes room for all of a pass.
    fn begin<T: Number>(
        &self,
        piece: &mut Piece,
        states: &mut [&mut SequenceState],
    ) -> Result<(), CudaError> {
        let scratch = T::scratch(piece.act);
        scratch.tables.fill(&self.gpu, &self.layout, piece.batch, states)?;
        self.reserve(piece.config, piece.batch, scratch)
    }

    /// `hidden = embedding[token]`.
    fn embed<T: Number>(&self, gpu: &Gpu, piece: &mut Piece) -> Result<(), CudaError> {
        let Scratch { hidden, tables, .. } = T::scratch(piece.act);
        let hidden = hidden.get_mut(piece.batch.tokens().len() * piece.config.hidden_size);
        embedding(gpu, &self.weights.embedding, tables.ids(), hidden)
    }

    /// `hidden += mixer(rms_norm(hidden))`, layer by layer.
    fn run<T: Number>(
        &self,
        gpu: &Gpu,
        piece: &mut Piece,
        layers: impl IntoIterator<Item = usize>,
        observer: &mut dyn Observer,
    ) -> Result<(), CudaError> {
        let config = piece.config;
        let pass = Pass {
            model: self,
            gpu,
            hidden: config.hidden_size,
            tokens: piece.batch.tokens().len(),
            eps: config.norm_eps,
            dt_limit: config.time_step_limit,
        };
        let scratch = T::scratch(piece.act);
        for layer in layers {
            pass.block(layer, &config.layers[layer], scratch)?;
            if observer.looks() {
                let output = &gpu.to_vec(scratch.hidden.get(pass.tokens * pass.hidden))?;
                let (normed, in_proj, mixed) = (&[][..], &[][..], &[][..]);
                observer.block(layer, &BlockActivations { normed, in_proj, mixed, output });
            }
        }
        Ok(())
    }

    /// Makes room for all layers and the end of a pass whose tables are filled.
    fn reserve<T: Number>(
        &self,
        config: &Config,
        batch: &Batch,
        scratch: &mut Scratch<T>,
    ) -> Result<(), CudaError> {
        let (tokens, rows) = (batch.tokens().len(), batch.logit_rows().count());
        let mut partial = 0;
        for (layer, kind) in config.layers.iter().enumerate() {
            if let LayerConfig::Attention(a) = kind {
                let layer = self.kv_layer(layer, a, &scratch.tables);
                partial = partial.max(layer.attention_scratch_len::<T>(scratch.tables.lens()));
            }
        }
        let lens = Lens::of(config, tokens, rows);
        self.layout.in_room(|| scratch.reserve(&self.gpu, &lens, partial))
    }

    /// Attention layer `layer` over the pages of a pass.
    fn kv_layer<'a>(&self, layer: usize, a: &AttentionConfig, tables: &'a Tables) -> KvLayer<'a> {
        KvLayer {
            num_heads: a.num_heads,
            num_kv_heads: a.num_kv_heads,
            head_dim: a.head_dim,
            layer_offset: self.layout.attention[layer].expect("an attention layer") as usize,
            segments: tables.attention(&self.layout),
        }
    }

    /// The rows that need logits, into `to`, `[R, V]`.
    pub(super) fn whole_logits_in<T: Number>(
        &self,
        piece: &mut Piece,
        to: &mut Vec<f32>,
    ) -> Result<(), CudaError> {
        let len = self.head::<T>(&self.gpu, piece)? * piece.config.vocab_size;
        if len == 0 {
            // Whoever reads a prompt piece by piece hears of a device that fails.
            return self.gpu.synchronize();
        }
        let to = crate::activations::sized(to, len);
        self.gpu.download(to, T::scratch(piece.act).logits.get(len))
    }

    /// Their records, into `to`; the rows stay.
    pub(super) fn reduced_logits_in<T: Number>(
        &self,
        piece: &mut Piece,
        to: &mut Vec<u64>,
    ) -> Result<(), CudaError> {
        self.reduce::<T>(&self.gpu, piece)?;
        self.records::<T>(piece, to)
    }

    /// A whole pass and its records, into `to`; a step of single tokens as a graph.
    pub(super) fn read_reduced_in<T: Number>(
        &self,
        piece: &mut Piece,
        states: &mut [&mut SequenceState],
        to: &mut Vec<u64>,
    ) -> Result<(), CudaError> {
        self.begin::<T>(piece, states)?;
        let layers = 0..piece.config.layers.len();
        let scratch = T::scratch(piece.act);
        let decodes = piece.batch.segments().iter().all(|s| s.logits == LogitsFor::Last);
        let context = scratch.tables.decode_context().filter(|_| decodes && self.uses_graphs);
        let (buffers, mut graphs) = (scratch.addresses(), std::mem::take(&mut scratch.graphs));
        let mut launch = |gpu: &Gpu| {
            self.embed::<T>(gpu, piece)?;
            self.run::<T>(gpu, piece, layers.clone(), &mut NoObserver)?;
            self.reduce::<T>(gpu, piece)
        };
        let launched = match context {
            Some(context) => {
                let (layout, num) = (Arc::clone(&self.layout), states.len());
                graphs.run(&self.gpu, Shape { layout, num, context, buffers }, launch)
            }
            None => launch(&self.gpu),
        };
        T::scratch(piece.act).graphs = graphs;
        launched?;
        self.records::<T>(piece, to)
    }

    /// Logits of the rows that need them, and their records.
    fn reduce<T: Number>(&self, gpu: &Gpu, piece: &mut Piece) -> Result<(), CudaError> {
        let (rows, vocab) = (self.head::<T>(gpu, piece)?, piece.config.vocab_size);
        if rows == 0 {
            return Ok(());
        }
        let Scratch { logits, records, candidates, tables, .. } = T::scratch(piece.act);
        let room = candidates.get_mut(reduce_scratch_len(rows, vocab));
        let (logits, records) = (logits.get(rows * vocab), records.get_mut(rows * RECORD_LEN));
        reduce(gpu, (logits, vocab), tables.scales(rows), records, room)
    }

    /// Downloads the records of a pass.
    fn records<T: Number>(&self, piece: &mut Piece, to: &mut Vec<u64>) -> Result<(), CudaError> {
        let len = piece.batch.logit_rows().count() * RECORD_LEN;
        if len == 0 {
            return self.gpu.synchronize();
        }
        to.resize(len, 0);
        self.gpu.download(to, T::scratch(piece.act).records.get(len))
    }

    /// Final norm and head over the rows that need logits; how many there are.
    fn head<T: Number>(&self, gpu: &Gpu, piece: &mut Piece) -> Result<usize, CudaError> {
        let config = piece.config;
        let (h, vocab) = (config.hidden_size, config.vocab_size);
        let rows: Vec<usize> = piece.batch.logit_rows().collect();
        if rows.is_empty() {
            return Ok(0);
        }
        let Scratch { hidden, normed, logits, .. } = T::scratch(piece.act);
        let mut out = normed.get_mut(rows.len() * stride(h));
        let mut done = 0;
        for run in rows.chunk_by(|a, b| a + 1 == *b) {
            let x = hidden.range(run[0] * h..(run[0] + run.len()) * h);
            let to = out.part(done * stride(h)..(done + run.len()) * stride(h));
            rms_norm(gpu, x, self.weights.final_norm.slice(..), config.norm_eps, to)?;
            done += run.len();
        }
        let head = self.weights.lm_head.as_ref().unwrap_or(&self.weights.embedding);
        let out = logits.get_mut(rows.len() * vocab);
        let x = normed.get(rows.len() * stride(h));
        matmul(gpu, x, head, Epilogue::Store { out, stride: vocab })?;
        Ok(rows.len())
    }
}

impl Pass<'_> {
    fn block<T: Number>(
        self,
        layer: usize,
        config: &LayerConfig,
        scratch: &mut Scratch<T>,
    ) -> Result<(), CudaError> {
        let (gpu, weights) = (self.gpu, &self.model.weights.layers[layer]);
        let (tokens, h) = (self.tokens, self.hidden);
        let out = scratch.normed.get_mut(tokens * stride(h));
        rms_norm(gpu, scratch.hidden.get(tokens * h), weights.norm.slice(..), self.eps, out)?;
        match (config, &weights.mixer) {
            (LayerConfig::Mamba2(m), DeviceMixer::Mamba2(w)) => self.mamba2(layer, m, w, scratch),
            (LayerConfig::Attention(a), DeviceMixer::Attention(w)) => {
                self.attention(layer, a, w, scratch)
            }
            (LayerConfig::Mlp(_), DeviceMixer::Mlp(w)) => self.mlp(w, scratch),
            _ => unreachable!("weights are loaded for this config"),
        }
    }

    fn mamba2<T: Number>(
        self,
        layer: usize,
        m: &Mamba2Config,
        w: &DeviceMamba2,
        scratch: &mut Scratch<T>,
    ) -> Result<(), CudaError> {
        let (gpu, tokens) = (self.gpu, self.tokens);
        let (rows, inner) = (m.in_proj_rows(), m.d_inner());
        let x = scratch.normed.get(tokens * stride(self.hidden));
        let out = scratch.wide.get_mut(tokens * rows);
        matmul(gpu, x, &w.in_proj, Epilogue::Store { out, stride: rows })?;
        let params = MixerParams {
            num_heads: m.num_heads,
            head_dim: m.head_dim,
            n_groups: m.n_groups,
            state_size: m.state_size,
            a: w.a.slice(..),
            d: w.d.slice(..),
            dt_bias: w.dt_bias.slice(..),
            dt_limit: self.dt_limit,
            conv_weight: w.conv_weight.slice(..),
            conv_bias: w.conv_bias.as_ref().map(|bias| bias.slice(..)),
            norm_weight: w.gated_norm.slice(..),
            norm_eps: self.eps,
        };
        let len = tokens * params.conv_dim();
        let rounded = if params.scans_chunks::<T>() { len } else { 0 };
        let partial = MixerScratch {
            xbc: scratch.partial.get_mut(len),
            rounded: scratch.rounded.get_mut(rounded),
        };
        let out = scratch.mix.get_mut(tokens * stride(inner));
        let (wide, segments) = (scratch.wide.get(tokens * rows), scratch.tables.mixer(layer));
        mamba_split_conv1d_scan(gpu, &params, wide, &segments, partial, out)?;
        self.add(&w.out_proj, scratch)
    }

    fn attention<T: Number>(
        self,
        layer: usize,
        a: &AttentionConfig,
        [q_proj, k_proj, v_proj, o_proj]: &[DeviceMatrix; 4],
        scratch: &mut Scratch<T>,
    ) -> Result<(), CudaError> {
        let (gpu, tokens) = (self.gpu, self.tokens);
        let (q_width, kv_width) = (a.q_width(), a.kv_width());
        let width = q_width + 2 * kv_width;
        let x = scratch.normed.get(tokens * stride(self.hidden));
        let mut wide = scratch.wide.get_mut(tokens * width);
        for (first, w) in [(0, q_proj), (q_width, k_proj), (q_width + kv_width, v_proj)] {
            let out = wide.part(first..tokens * width);
            matmul(gpu, x, w, Epilogue::Store { out, stride: width })?;
        }
        let layer = self.model.kv_layer(layer, a, &scratch.tables);
        let columns =
            |first| HeadColumns { rows: scratch.wide.get(tokens * width), first, stride: width };
        let (q, k, v) = (columns(0), columns(q_width), columns(q_width + kv_width));
        kv_append::<T>(gpu, &layer, k, v)?;
        let lens = scratch.tables.lens();
        let partial = layer.attention_scratch_len::<T>(lens);
        let partial = scratch.partial.get_mut(partial);
        let out = scratch.mix.get_mut(tokens * stride(q_width));
        attention(gpu, &layer, lens, q, out, partial)?;
        self.add(o_proj, scratch)
    }

    fn mlp<T: Number>(
        self,
        [up_proj, down_proj]: &[DeviceMatrix; 2],
        scratch: &mut Scratch<T>,
    ) -> Result<(), CudaError> {
        let (gpu, tokens) = (self.gpu, self.tokens);
        let x = scratch.normed.get(tokens * stride(self.hidden));
        let out = scratch.mix.get_mut(tokens * stride(up_proj.rows()));
        matmul(gpu, x, up_proj, Epilogue::Relu2 { out })?;
        self.add(down_proj, scratch)
    }

    /// `hidden += mix · wᵀ`.
    fn add<T: Number>(self, w: &DeviceMatrix, scratch: &mut Scratch<T>) -> Result<(), CudaError> {
        let x = scratch.mix.get(self.tokens * stride(w.cols()));
        let out = scratch.hidden.get_mut(self.tokens * self.hidden);
        matmul(self.gpu, x, w, Epilogue::Add { out, stride: self.hidden })
    }
}

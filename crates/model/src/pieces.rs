//! A forward pass in pieces: embedding, then any of the layers, in any order, then the end.
//!
//! Whoever measures what a layer is worth leaves one out and runs those behind it from a residual
//! stream that is already there; a server runs the layers of a prompt between the tokens of others.
//! The pieces of a whole pass give the bits of
//! [`NemotronH::forward`], which is made of them.

use crate::activations::{Activations, sized};
use crate::batch::{Batch, Segment};
use crate::device::{DeviceModel, Piece};
use crate::layer::LayerConfig;
use crate::logits::Logits;
use crate::nemotron_h::{ForwardError, NemotronH};
use crate::observer::{BlockActivations, Observer};
use crate::state::SequenceState;
use hybra_kernels::ops::embedding::embedding;
use hybra_kernels::{Cpu, MatMut};

/// The states' lengths after a pass on a device.
fn advance(batch: &Batch, states: &mut [&mut SequenceState]) {
    for (segment, state) in batch.segments().iter().zip(states) {
        state.advance(segment.len);
    }
}

impl NemotronH {
    /// Puts the embeddings of the batch's tokens into the residual stream.
    ///
    /// # Errors
    /// A token outside the vocabulary, or a device that fails.
    pub fn embed(
        &self,
        cpu: &Cpu,
        batch: &Batch,
        act: &mut Activations,
    ) -> Result<(), ForwardError> {
        self.check_tokens(batch)?;
        if let Some(device) = self.device_model() {
            return Ok(device.embed_ids(&mut self.piece(batch, act))?);
        }
        let (tokens, h) = (batch.tokens().len(), self.config().hidden_size);
        let out = MatMut::new(sized(&mut act.hidden, tokens * h), h);
        embedding(cpu, self.weights().embedding.view(), batch.tokens(), out);
        Ok(())
    }

    /// Adds `layers`, one after the other, to the residual stream of the batch, and moves their
    /// states on; the states' lengths stay.
    ///
    /// # Errors
    /// A device that is full, which the first piece of a pass finds out for all of them: no state
    /// has changed. A device that fails: the states are of no use.
    ///
    /// # Panics
    /// If a layer does not exist, or there are not as many states as segments.
    pub fn run_layers(
        &self,
        cpu: &Cpu,
        batch: &Batch,
        states: &mut [&mut SequenceState],
        act: &mut Activations,
        layers: impl IntoIterator<Item = usize>,
        observer: &mut dyn Observer,
    ) -> Result<(), ForwardError> {
        assert_eq!(batch.segments().len(), states.len(), "one state per segment");
        if let Some(device) = self.device_model() {
            let piece = &mut self.piece(batch, act);
            return Ok(device.run_layers(piece, states, layers, observer)?);
        }
        let (pass, tokens) = (self.pass(cpu, batch), batch.tokens().len());
        for layer in layers {
            self.block(&pass, layer, act, states);
            observer.block(layer, &self.seen(layer, act, tokens));
        }
        Ok(())
    }

    /// The end of a pass whose layers have all run: the states' lengths, and the logits as of
    /// [`NemotronH::read`].
    ///
    /// # Errors
    /// A device that fails: the states are of no use.
    ///
    /// # Panics
    /// If the residual stream is not that of the batch.
    pub fn finish<'a>(
        &self,
        cpu: &Cpu,
        batch: &Batch,
        states: &mut [&mut SequenceState],
        act: &'a mut Activations,
    ) -> Result<Logits<'a>, ForwardError> {
        if let Some(device) = self.device_model() {
            let mut records = std::mem::take(&mut act.records);
            let reduced = device.reduced_logits(&mut self.piece(batch, act), &mut records);
            act.records = records;
            reduced?;
            return Ok(self.reduced(device, batch, states, act));
        }
        let vocab_size = self.config().vocab_size;
        Ok(Logits::whole(self.finish_here(cpu, batch, states, act), vocab_size))
    }

    /// [`Self::finish`] of a model on the CPU.
    pub(crate) fn finish_here<'a>(
        &self,
        cpu: &Cpu,
        batch: &Batch,
        states: &mut [&mut SequenceState],
        act: &'a mut Activations,
    ) -> &'a [f32] {
        for (segment, state) in batch.segments().iter().zip(states) {
            state.advance(segment.len);
            if segment.draft {
                state.await_accept(segment.len);
            }
        }
        self.logits(&self.pass(cpu, batch), act)
    }

    /// [`Self::read`] of a model on a device.
    pub(crate) fn read_on<'a>(
        &self,
        device: &DeviceModel,
        batch: &Batch,
        states: &mut [&mut SequenceState],
        act: &'a mut Activations,
    ) -> Result<Logits<'a>, ForwardError> {
        self.check(batch, states)?;
        let mut records = std::mem::take(&mut act.records);
        let read = device.read_reduced(&mut self.piece(batch, act), states, &mut records);
        act.records = records;
        read?;
        Ok(self.reduced(device, batch, states, act))
    }

    /// The end of a pass whose records are there.
    fn reduced<'a>(
        &self,
        device: &DeviceModel,
        batch: &Batch,
        states: &mut [&mut SequenceState],
        act: &'a mut Activations,
    ) -> Logits<'a> {
        advance(batch, states);
        device.logits_of(act, batch.logit_rows().count(), self.config().vocab_size)
    }

    /// [`Self::finish`] of a model on a device, with whole rows.
    pub(crate) fn finish_whole<'a>(
        &self,
        device: &DeviceModel,
        batch: &Batch,
        states: &mut [&mut SequenceState],
        act: &'a mut Activations,
    ) -> Result<&'a [f32], ForwardError> {
        let mut logits = std::mem::take(&mut act.logits);
        let copied = device.logits(&mut self.piece(batch, act), &mut logits);
        act.logits = logits;
        copied?;
        advance(batch, states);
        let rows: usize = batch.segments().iter().map(Segment::num_logits).sum();
        Ok(&act.logits[..rows * self.config().vocab_size])
    }

    /// Whether a pass may begin.
    pub(crate) fn check(
        &self,
        batch: &Batch,
        states: &[&mut SequenceState],
    ) -> Result<(), ForwardError> {
        assert_eq!(batch.segments().len(), states.len(), "one state per segment");
        assert!(states.iter().all(|s| s.drafted() == 0), "drafts are judged before the next pass");
        self.check_tokens(batch)
    }

    /// Whether all tokens are of the vocabulary.
    fn check_tokens(&self, batch: &Batch) -> Result<(), ForwardError> {
        let vocab_size = self.config().vocab_size;
        match batch.tokens().iter().position(|&id| id as usize >= vocab_size) {
            Some(index) => {
                Err(ForwardError::Token { index, id: batch.tokens()[index], vocab_size })
            }
            None => Ok(()),
        }
    }

    /// A pass as a device takes it.
    pub(crate) fn piece<'a>(&'a self, batch: &'a Batch, act: &'a mut Activations) -> Piece<'a> {
        Piece { config: self.config(), batch, act: &mut act.device }
    }

    /// What block `layer` left in its buffers.
    fn seen<'a>(&self, layer: usize, act: &'a Activations, tokens: usize) -> BlockActivations<'a> {
        let rows = tokens * self.config().hidden_size;
        let (in_proj, mixed) = match &self.config().layers[layer] {
            LayerConfig::Mamba2(m) => {
                (&act.wide[..tokens * m.in_proj_rows()], &act.mix[..tokens * m.d_inner()])
            }
            LayerConfig::Attention(a) => (&[][..], &act.mix[..tokens * a.q_width()]),
            LayerConfig::Mlp(m) => (&[][..], &act.wide[..tokens * m.intermediate_size]),
        };
        let (normed, output) = (&act.normed[..rows], &act.hidden[..rows]);
        BlockActivations { normed, in_proj, mixed, output }
    }
}

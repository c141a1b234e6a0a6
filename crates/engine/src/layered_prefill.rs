//! A piece of a prompt that goes through the layers in several steps, so that those who wait for
//! tokens wait for a part of it at most ("layered prefill").
//!
//! A scan chunk cannot be split without changing bits; its layers can run one after another with
//! steps of other sequences between them, for rows do not depend on each other.
//!
//! Invariants: one piece at a time; its sequence runs, and its state, whose length is that before
//! the piece, belongs to nobody else until the last layer has run; where nobody decodes, the piece
//! ends in its next step.

use crate::engine::Engine;
use crate::full_device::PassError;
use crate::isolation::isolated;
use crate::sequence::{Event, Sequence, SequenceId};
use hybra_model::{Activations, Batch, NoObserver};

/// The piece under way, if there is one, and its memory.
#[derive(Default)]
pub(crate) struct Layered {
    /// Whose it is.
    sequence: Option<SequenceId>,
    batch: Batch,
    activations: Activations,
    /// Layers that have run.
    done: usize,
}

impl Layered {
    /// Whether a piece is under way.
    pub(crate) fn is_some(&self) -> bool {
        self.sequence.is_some()
    }

    /// Whether it is this sequence's.
    pub(crate) fn is_of(&self, id: SequenceId) -> bool {
        self.sequence == Some(id)
    }

    /// Whether some of its layers have run.
    pub(crate) fn has_run(&self) -> bool {
        self.done > 0
    }

    /// Drops the piece of a sequence that is over, or of which no layer has run.
    pub(crate) fn forget(&mut self, id: SequenceId) {
        self.sequence = self.sequence.filter(|own| *own != id);
    }

    /// Begins with the next `len` tokens of a sequence.
    pub(crate) fn begin(&mut self, sequence: &Sequence, len: usize) {
        self.sequence = Some(sequence.id);
        self.done = 0;
        self.batch.clear();
        self.batch.push(&sequence.pending()[..len], sequence.logits_of(len));
        self.batch.set_scale(sequence.scale());
    }
}

impl Engine {
    /// As many layers of the piece under way as cost what `prefill` tokens cost in all layers, rounded
    /// up; after the last one what its logits become.
    pub(crate) fn run_layered(&mut self, prefill: usize, events: &mut Vec<Event>) {
        let Some(id) = self.layered.sequence else { return };
        let mut piece = std::mem::take(&mut self.layered);
        let Some(index) = self.running.iter().position(|s| s.id == id) else { return };
        let (tokens, layers) = (piece.batch.tokens().len(), self.model.config().layers.len());
        let share = layers.div_ceil(tokens.div_ceil(prefill));
        let end = layers.min(piece.done + share);
        let (model, cpu) = (&self.model, &self.cpu);
        let Layered { batch, activations, done, .. } = &mut piece;
        let mut states = [self.running[index].state_mut()];
        let first = *done == 0;
        let read = isolated(|| {
            if first {
                model.embed(cpu, batch, activations)?;
            }
            model.run_layers(cpu, batch, &mut states, activations, *done..end, &mut NoObserver)?;
            let logits =
                (end == layers).then(|| model.finish(cpu, batch, &mut states, activations));
            logits.transpose()
        });
        match read.map_err(PassError::Failed).and_then(|read| Ok(read?)) {
            Ok(None) => {
                piece.done = end;
                self.layered = piece;
            }
            Ok(Some(logits)) => {
                self.fed.clear();
                self.fed.push((index, tokens));
                std::mem::swap(&mut self.batch, batch);
                self.count_prefilled();
                self.keep_snapshots();
                self.decide(&logits, events);
                piece.sequence = None;
                self.layered = piece;
            }
            // It is planned again.
            Err(PassError::Full(error)) if first => self.make_device_room(&error, events),
            Err(PassError::Full(error) | PassError::Failed(error)) => {
                events.push(self.running.remove(index).fail(error));
            }
        }
    }
}

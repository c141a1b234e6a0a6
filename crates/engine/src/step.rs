//! One step: the batch, the model, and what its logits become.
//!
//! Invariants: before and after every step a state has read the tokens that its sequence says, but
//! for the layers that a piece of a prompt has passed already ([`crate::layered_prefill`]); a panic
//! in a sequence's own work fails that sequence, one in the model those in the batch; a step of
//! sequences that decode allocates nothing.

use crate::engine::Engine;
use crate::full_device::PassError;
use crate::isolation::isolated;
use crate::next_token::{next_tokens, score_prompt};
use crate::sampler::Sampler;
use crate::scheduler::{Demand, Plan, StepBudget};
use crate::sequence::{Event, Sequence};
use hybra_model::{Activations, Logits, NoObserver, SCAN_CHUNK, SequenceState};

impl Engine {
    /// Runs the model once and appends what happened to `events`.
    pub fn step(&mut self, events: &mut Vec<Event>) {
        self.admit();
        events.append(&mut self.ended);
        if self.running.is_empty() {
            return self.warm_step();
        }
        self.counters.steps += 1;
        let prefill_while_decoding = self.schedule();
        if !self.fed.is_empty() {
            self.read(events);
        }
        let decodes = self.running.iter().any(|s| s.output_len() > 0);
        self.run_layered(if decodes { prefill_while_decoding } else { usize::MAX }, events);
    }

    /// Reads the planned tokens.
    fn read(&mut self, events: &mut Vec<Event>) {
        self.fill();
        let mut activations = std::mem::take(&mut self.activations);
        let replays = activations.replays();
        match self.forward(&mut activations) {
            Ok(logits) => {
                self.count_prefilled();
                self.keep_snapshots();
                self.decide(&logits, events);
                self.counters.cuda_graph_steps += activations.replays() - replays;
                self.activations = activations;
                self.forget_wrong_guesses(events);
            }
            // Nothing was read: it is planned again.
            Err(PassError::Full(error)) => {
                self.activations = activations;
                self.make_device_room(&error, events);
            }
            // The activations are dropped, and with the sequences their states.
            Err(PassError::Failed(error)) => {
                while let Some((i, _)) = self.fed.pop() {
                    events.push(self.running.remove(i).fail(error.clone()));
                }
            }
        }
    }

    /// Decides which tokens are read, and gives [`Plan::prefill_while_decoding`].
    fn schedule(&mut self) -> usize {
        self.batch.clear();
        self.fed.clear();
        // One prompt is scored at a time, in pieces of which every row has logits.
        let mut is_scoring = false;
        let demand = |s: &Sequence| Demand {
            pending: match s.scores() {
                _ if self.layered.is_of(s.id) => 0,
                Some(_) if std::mem::replace(&mut is_scoring, true) => 0,
                _ => s.pending().len(),
            },
            decodes: s.output_len() > 0,
            until_stop: match s.scores() {
                Some(_) => SCAN_CHUNK,
                None => s.stops.last().map_or(usize::MAX, |stop| stop - s.state().len()),
            },
            priority: s.priority,
            last_served: (s.last_served, s.id.0),
        };
        self.scheduler.demands.clear();
        self.scheduler.demands.extend(self.running.iter().map(demand));
        let Plan { takes, layered, prefill_while_decoding } = self.scheduler.plan(StepBudget {
            tokens: self.config.max_num_batched_tokens,
            prefill_while_decoding: self.config.max_prefill_while_decoding,
            is_layered: self.layered.is_some(),
        });
        self.fed.extend(takes.iter().copied().enumerate().filter(|(_, len)| *len > 0));
        if let Some((i, len)) = layered {
            self.begin_reading(i);
            self.layered.begin(&self.running[i], len);
        }
        prefill_while_decoding
    }

    /// Puts the planned tokens into the batch, and guesses where room is left for them.
    fn fill(&mut self) {
        let planned: usize = self.fed.iter().map(|(_, len)| len).sum();
        let mut room = self.config.max_num_batched_tokens.saturating_sub(planned);
        for k in 0..self.fed.len() {
            let (i, len) = self.fed[k];
            let sequence = &mut self.running[i];
            if isolated(|| sequence.propose(room)).is_err() {
                // Without guesses it has the same tokens.
                sequence.speculation = None;
            }
            let (pending, draft) = (sequence.pending(), sequence.draft());
            room -= draft.len();
            if !draft.is_empty() {
                self.batch.push_draft(pending[0], draft);
            } else {
                self.batch.push(&pending[..len], sequence.logits_of(len));
            }
            self.batch.set_scale(sequence.scale());
            self.begin_reading(i);
        }
    }

    /// Others' prompts have their turn first now.
    fn begin_reading(&mut self, index: usize) {
        let sequence = &mut self.running[index];
        if sequence.output_len() == 0 {
            sequence.last_served = self.counters.steps;
        }
    }

    /// Counts what was read of prompts.
    pub(crate) fn count_prefilled(&mut self) {
        let prompts = self.fed.iter().filter(|(i, _)| self.running[*i].output_len() == 0);
        self.counters.prefilled_tokens += prompts.map(|(_, len)| *len as u64).sum::<u64>();
    }

    /// Reads the batch.
    fn forward<'a>(&mut self, activations: &'a mut Activations) -> Result<Logits<'a>, PassError> {
        let mut states = emptied(std::mem::take(&mut self.states));
        let mut fed = self.fed.iter().map(|(i, _)| *i).peekable();
        let running = self.running.iter_mut().enumerate();
        let states_of = |(i, s)| fed.next_if_eq(&i).map(|_| Sequence::state_mut(s));
        states.extend(running.filter_map(states_of));
        let (model, cpu, batch) = (&self.model, &self.cpu, &self.batch);
        let logits = isolated(|| model.read(cpu, batch, &mut states, activations, &mut NoObserver));
        self.states = emptied(states);
        Ok(logits.map_err(PassError::Failed)??)
    }

    /// Keeps and shares the states of prompts that are at a stop.
    pub(crate) fn keep_snapshots(&mut self) {
        for k in 0..self.fed.len() {
            let sequence = &mut self.running[self.fed[k].0];
            let read = sequence.state().len();
            if sequence.stops.pop_if(|stop| *stop == read).is_none() {
                continue;
            }
            let mut room = self.cache_room();
            let sequence = &self.running[self.fed[k].0];
            room -= self.groups.share(sequence, &self.waiting, room);
            self.snapshots.shrink_to(room);
            if self.snapshots.is_on() {
                let prefixes = sequence.prefixes().up_to(read);
                // The last stop is the end of the prompt.
                let lasting = sequence.stops.is_empty();
                self.snapshots.keep(prefixes, sequence.state(), room, lasting);
            }
        }
    }

    /// Lets each sequence decide its next tokens.
    pub(crate) fn decide(&mut self, logits: &Logits<'_>, events: &mut Vec<Event>) {
        let (mut over, mut first) = (Vec::new(), 0);
        for (&(i, _), segment) in self.fed.iter().zip(self.batch.segments()) {
            let sequence = &mut self.running[i];
            let before = sequence.output_len();
            if before == 0 {
                let (done, total) = (sequence.state().len(), sequence.prompt_len);
                let cached = sequence.cached_tokens;
                events.push(Event::Prefill { sequence: sequence.id, done, total, cached });
            }
            let rows = (first..first + segment.num_logits()).map(|row| logits.row(row));
            first += segment.num_logits();
            let sampler = &mut self.sampler;
            let decided = isolated(|| match sequence.scores() {
                Some(_) => score_prompt(sequence, rows, sampler, &*self.table, events),
                None => next_tokens(sequence, rows, sampler, &*self.table, events),
            });
            let is_over = decided.unwrap_or_else(|error| {
                self.sampler = Sampler::new();
                events.push(sequence.fail(error));
                true
            });
            self.counters.generated_tokens += (sequence.output_len() - before) as u64;
            if is_over {
                over.push(i);
            }
        }
        self.counters.logit_rows_fetched += std::mem::take(&mut self.sampler.num_fetched);
        for i in over.into_iter().rev() {
            self.running.remove(i);
        }
    }

    /// States keep what the sequences' tokens say.
    fn forget_wrong_guesses(&mut self, events: &mut Vec<Event>) {
        let mut failed = Vec::new();
        for (i, sequence) in self.running.iter_mut().enumerate() {
            let known = sequence.tokens.len();
            let state = sequence.state_mut();
            if state.drafted() == 0 {
                continue;
            }
            let right = state.drafted() - (state.len() + 1 - known);
            let (model, activations) = (&self.model, &mut self.activations);
            if let Err(error) = isolated(|| model.accept(&self.cpu, state, right, activations)) {
                self.activations = Activations::new();
                events.push(sequence.fail(error));
                failed.push(i);
            }
        }
        for i in failed.into_iter().rev() {
            self.running.remove(i);
        }
    }
}

/// The memory of `list` for states that live for another time.
fn emptied<'b>(mut list: Vec<&mut SequenceState>) -> Vec<&'b mut SequenceState> {
    list.clear();
    // Collecting a vector's own iterator keeps its memory; a test of allocations holds it to that.
    list.into_iter().map(|_| unreachable!("the list is empty")).collect()
}

//! Times the model's forward pass: prompts in pieces as the engine feeds them, and single steps.
//!
//! Depth is real: the state behind `depth` tokens comes from reading as many, once, and every
//! pass at that depth works on a copy; only comparisons pretend to a depth. Token ids are
//! arbitrary and the same in every run; choosing tokens is not part of a step.

use super::plan::Point;
use anyhow::Result;
use hybra_kernels::Cpu;
use hybra_model::{
    Activations, Batch, Config, LogitsFor, NemotronH, NoObserver, Observer, SequenceState,
    StateDtypes,
};
use std::collections::BTreeMap;
use std::time::Instant;

/// Short passes are repeated within a sample until they have taken this many seconds.
pub(crate) const SAMPLE_SECONDS: f64 = 0.1;

/// A model under measurement.
pub(crate) struct Bencher<'m> {
    cpu: &'m Cpu,
    model: &'m NemotronH,
    dtypes: StateDtypes,
    /// Tokens of a prompt in one forward pass.
    chunk: usize,
    act: Activations,
    /// States by the number of tokens read.
    snapshots: BTreeMap<usize, SequenceState>,
}

impl<'m> Bencher<'m> {
    /// Nothing is measured or filled yet.
    pub(crate) fn new(
        cpu: &'m Cpu,
        model: &'m NemotronH,
        dtypes: StateDtypes,
        chunk: usize,
    ) -> Self {
        let act = Activations::new();
        Self { cpu, model, dtypes, chunk, act, snapshots: BTreeMap::new() }
    }

    /// The deepest state at hand that is not behind `depth`.
    pub(crate) fn filled(&self, depth: usize) -> usize {
        self.snapshots.range(..=depth).next_back().map_or(0, |(filled, _)| *filled)
    }

    /// One sample of `point`, in tokens per second; a decode point generates `steps` tokens for
    /// each sequence. Filling a depth for the first time is not part of the sample.
    pub(crate) fn sample(&mut self, point: Point, steps: usize) -> Result<f64> {
        let (mut tokens, mut seconds) = (0, 0.0);
        while seconds < SAMPLE_SECONDS {
            seconds += match point {
                Point::Prefill { tokens } => self.prefill(tokens)?,
                Point::Decode { depth, batch } => self.decode(depth, batch, steps)?,
            };
            tokens += match point {
                Point::Prefill { tokens } => tokens,
                Point::Decode { batch, .. } => batch * steps,
            };
        }
        Ok(tokens as f64 / seconds)
    }

    /// The context that passes run in.
    pub(crate) fn cpu(&self) -> &'m Cpu {
        self.cpu
    }

    /// The model's configuration.
    pub(crate) fn config(&self) -> &'m Config {
        self.model.config()
    }

    /// A state that is as long as `len` tokens without having read them.
    pub(crate) fn pretended_state(&self, len: usize) -> SequenceState {
        let mut state = self.model.new_state(self.dtypes);
        state.pretend_read(self.cpu, len);
        state
    }

    /// Seconds to read a prompt of `tokens` tokens and give the logits of its last one.
    pub(crate) fn prefill(&mut self, tokens: usize) -> Result<f64> {
        self.observe(tokens, &mut NoObserver)
    }

    /// [`prefill`](Self::prefill) under an observer.
    pub(crate) fn observe(&mut self, tokens: usize, observer: &mut dyn Observer) -> Result<f64> {
        let mut state = self.model.new_state(self.dtypes);
        let started = Instant::now();
        self.read(&mut state, tokens, LogitsFor::Last, observer)?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Seconds to read `tokens` more tokens of a prompt into `state`, without logits.
    pub(crate) fn read_slice(&mut self, state: &mut SequenceState, tokens: usize) -> Result<f64> {
        let started = Instant::now();
        self.read(state, tokens, LogitsFor::None, &mut NoObserver)?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Seconds for `steps` steps of `batch` sequences that are `depth` tokens long.
    pub(crate) fn decode(&mut self, depth: usize, batch: usize, steps: usize) -> Result<f64> {
        let state = self.snapshot(depth)?;
        let mut states = vec![state; batch];
        // Not timed: caches grow their first block here.
        self.step(&mut states, depth)?;
        let started = Instant::now();
        for i in 0..steps {
            self.step(&mut states, depth + 1 + i)?;
        }
        Ok(started.elapsed().as_secs_f64())
    }

    /// The state behind `depth` tokens, from the deepest one at hand.
    fn snapshot(&mut self, depth: usize) -> Result<SequenceState> {
        if depth == 0 {
            return Ok(self.model.new_state(self.dtypes));
        }
        if let Some(state) = self.snapshots.get(&depth) {
            return Ok(state.clone());
        }
        let mut state = match self.filled(depth) {
            0 => self.model.new_state(self.dtypes),
            filled => self.snapshots[&filled].clone(),
        };
        let missing = depth - state.len();
        self.read(&mut state, missing, LogitsFor::None, &mut NoObserver)?;
        self.snapshots.insert(depth, state.clone());
        Ok(state)
    }

    /// Appends `tokens` tokens in pieces; `last` tells whose logits the last piece gives.
    fn read(
        &mut self,
        state: &mut SequenceState,
        tokens: usize,
        last: LogitsFor,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let end = state.len() + tokens;
        while state.len() < end {
            let len = self.chunk.min(end - state.len());
            let ids: Vec<u32> = (0..len).map(|i| self.token(state.len() + i, 0)).collect();
            let logits = if state.len() + len == end { last } else { LogitsFor::None };
            let batch = Batch::single(&ids, logits);
            let mut states = [&mut *state];
            self.model.forward(self.cpu, &batch, &mut states, &mut self.act, observer)?;
        }
        Ok(())
    }

    /// One token for every sequence.
    pub(crate) fn step(&mut self, states: &mut [SequenceState], position: usize) -> Result<()> {
        let mut batch = Batch::default();
        for sequence in 0..states.len() {
            batch.push(&[self.token(position, sequence)], LogitsFor::Last);
        }
        let mut states: Vec<_> = states.iter_mut().collect();
        self.model.read(self.cpu, &batch, &mut states, &mut self.act, &mut NoObserver)?;
        Ok(())
    }

    /// An arbitrary token that differs from its neighbours.
    fn token(&self, position: usize, sequence: usize) -> u32 {
        let vocab = self.model.config().vocab_size;
        ((position * 7919 + sequence * 104_729 + 13) % vocab) as u32
    }
}

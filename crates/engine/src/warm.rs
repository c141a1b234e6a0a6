//! Prompts that are read in idle time, only to leave a snapshot: the next turn starts there.
//!
//! A job goes on by one scan chunk in a step in which nothing else is to do, so that a request
//! waits for one chunk at most. A job whose memory is needed is dropped.

use crate::engine::Engine;
use crate::isolation::isolated;
use crate::prefix::{Prefixes, prefix_keys};
use hybra_model::{Activations, Batch, LogitsFor, NoObserver, SCAN_CHUNK, SequenceState};
use std::collections::VecDeque;

/// Jobs that wait; the oldest makes room.
const MOST_JOBS: usize = 4;

/// The jobs.
#[derive(Default)]
pub(crate) struct WarmQueue(VecDeque<Job>);

struct Job {
    salt: u64,
    tokens: Vec<u32>,
    keys: Vec<u64>,
    /// `None` before its first chunk.
    state: Option<SequenceState>,
}

impl Job {
    fn prefixes(&self) -> Prefixes<'_> {
        Prefixes { salt: self.salt, tokens: &self.tokens, keys: &self.keys }
    }
}

impl WarmQueue {
    /// Jobs to do.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Bytes of states.
    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().filter_map(|job| job.state.as_ref()).map(SequenceState::bytes).sum()
    }

    /// Drops the jobs that hold memory; false if none does.
    pub(crate) fn drop_begun(&mut self) -> bool {
        let before = self.0.len();
        self.0.retain(|job| job.state.is_none());
        self.0.len() < before
    }
}

impl Engine {
    /// Reads `tokens` when nothing else is to do, so that a later prompt that begins with them
    /// starts there. False if it is not taken: no cache, less than a scan chunk, a token outside
    /// the vocabulary, or more than may ever be read.
    pub fn warm(&mut self, mut tokens: Vec<u32>, salt: u64) -> bool {
        tokens.truncate(tokens.len() / SCAN_CHUNK * SCAN_CHUNK);
        let vocab_size = self.model().config().vocab_size;
        let unread = tokens.is_empty() || tokens.iter().any(|&id| id as usize >= vocab_size);
        if !self.snapshots.is_on() || unread || tokens.len() >= self.max_model_len() {
            return false;
        }
        let jobs = &mut self.warm.0;
        if !jobs.iter().any(|job| job.salt == salt && job.tokens == tokens) {
            jobs.truncate(MOST_JOBS);
            if jobs.len() == MOST_JOBS {
                jobs.pop_front();
            }
            let keys = prefix_keys(salt, &tokens);
            jobs.push_back(Job { salt, tokens, keys, state: None });
        }
        true
    }

    /// One chunk of the oldest job.
    pub(crate) fn warm_step(&mut self) {
        let Some(mut job) = self.warm.0.pop_front() else { return };
        let Some(room) = self.cache_room().checked_sub(self.costs.at(job.tokens.len())) else {
            return;
        };
        self.snapshots.shrink_to(room);
        let mut state = job.state.take().unwrap_or_else(|| {
            let found = self.snapshots.find(job.prefixes(), self.model.states(), room);
            found.unwrap_or_else(|| self.new_state())
        });
        if state.len() < job.tokens.len() && self.read_chunk(&job, &mut state).is_err() {
            return;
        }
        if state.len() < job.tokens.len() {
            job.state = Some(state);
            self.warm.0.push_front(job);
            return;
        }
        self.snapshots.note(&job.keys);
        let room = self.cache_room();
        self.snapshots.keep(job.prefixes(), &state, room, true);
    }

    /// Reads the next chunk of a job.
    fn read_chunk(&mut self, job: &Job, state: &mut SequenceState) -> Result<(), String> {
        let chunk = &job.tokens[state.len()..][..SCAN_CHUNK];
        let batch = Batch::single(chunk, LogitsFor::None);
        let activations = &mut self.activations;
        let (model, cpu) = (&self.model, &self.cpu);
        let read = isolated(|| {
            model.forward(cpu, &batch, &mut [state], activations, &mut NoObserver).map(|_| ())
        });
        self.counters.prefilled_tokens += SCAN_CHUNK as u64;
        match read {
            Ok(read) => read.map_err(|error| error.to_string()),
            Err(panic) => {
                self.activations = Activations::new();
                Err(panic)
            }
        }
    }
}

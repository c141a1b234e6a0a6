//! Who runs: places, priorities and memory.
//!
//! Sequences wait in the order of (priority, arrival). The first that may start does so when a
//! place is free and its prompt fits into memory; a strictly better priority takes the place and
//! the memory of the worst that runs. Who lost its place goes on later from the state it had.
//!
//! Memory is one pool. What is needed is taken from the cache first, then from warm-ups, from
//! sequences that wait with a state (it goes to a file), from what choices share, and last from
//! the worst sequence that runs.
//!
//! Invariants: a sequence alone always fits, so the first of the queue starts at the latest when
//! nothing runs; what a sequence generates does not depend on when it ran.

use crate::engine::Engine;
use crate::prefix::last_split;
use crate::sequence::{Held, Sequence, SequenceId};
use crate::swap::Swapped;
use hybra_model::SequenceState;

impl Engine {
    /// Moves sequences from the queue into the batch.
    pub(crate) fn admit(&mut self) {
        self.keep_within_memory();
        let places = self.places();
        while let Some(first) = self.first_to_start() {
            if !self.make_room(first, places) {
                break;
            }
            let mut sequence = self.waiting.remove(first).expect("it was found there");
            match self.start(&mut sequence) {
                Ok(()) => self.running.push(sequence),
                Err(error) => self.ended.push(sequence.fail(error)),
            }
        }
        self.groups.retain(&self.waiting);
    }

    /// Puts a sequence into its place in the queue.
    pub(crate) fn enqueue(&mut self, sequence: Sequence) {
        let at = self.waiting.partition_point(|other| other.rank() < sequence.rank());
        self.waiting.insert(at, sequence);
    }

    /// The first of the queue that does not wait for another to read its prompt.
    fn first_to_start(&self) -> Option<usize> {
        self.waiting.iter().position(|s| !self.groups.must_wait(s, &self.running))
    }

    /// Whether one of `places` and memory are there for the sequence at `index` of the queue.
    fn make_room(&mut self, index: usize, places: usize) -> bool {
        let (id, priority) = (self.waiting[index].id, self.waiting[index].priority);
        loop {
            let has_place = self.running.len() < places;
            let fits = self.make_memory(id);
            if has_place && fits {
                return true;
            }
            match self.worst_running().filter(|&i| self.running[i].priority > priority) {
                Some(worst) => self.preempt(worst, !fits),
                None => return false,
            }
        }
    }

    /// Who gives way first.
    pub(crate) fn worst_running(&self) -> Option<usize> {
        (0..self.running.len()).max_by_key(|&i| self.running[i].rank())
    }

    /// Takes memory for a waiting sequence from everyone but those that run; false if that is not
    /// enough.
    fn make_memory(&mut self, id: SequenceId) -> bool {
        let Some(limit) = self.config.state_memory else { return true };
        loop {
            let sequence = self.waiting.iter().find(|s| s.id == id).expect("it waits");
            // Room to grow, so that it is not the next to be moved out.
            let growth = if self.running.is_empty() { 0 } else { self.costs.block };
            let need = self.reserved_bytes(sequence) + growth;
            let used = self.used_bytes(Some(id));
            if let Some(left) = limit.checked_sub(used + need) {
                self.snapshots.shrink_to(left);
                return true;
            }
            if !self.reclaim(Some(id)) {
                return false;
            }
        }
    }

    /// Takes memory for what runs and grows.
    fn keep_within_memory(&mut self) {
        let Some(limit) = self.config.state_memory else { return };
        loop {
            if let Some(left) = limit.checked_sub(self.used_bytes(None)) {
                return self.snapshots.shrink_to(left);
            }
            if self.reclaim(None) {
                continue;
            }
            match self.worst_running().filter(|_| self.running.len() > 1) {
                Some(worst) => self.preempt(worst, true),
                None => return self.snapshots.shrink_to(0),
            }
        }
    }

    /// Bytes of states, the cache aside, as they may be after the next step; `but` a waiting one.
    fn used_bytes(&self, but: Option<SequenceId>) -> usize {
        let running: usize = self.running.iter().map(|s| self.reserved_bytes(s)).sum();
        let others = self.waiting.iter().filter(|s| Some(s.id) != but);
        let waiting: usize = others.map(|s| s.held.bytes()).sum();
        running + waiting + self.groups.bytes() + self.warm.bytes()
    }

    /// Bytes that a sequence needs while its prompt is read, and in its next step.
    fn reserved_bytes(&self, sequence: &Sequence) -> usize {
        let next = sequence.tokens.len() + 1 + self.config.num_speculative_tokens;
        let len = next.min(sequence.max_len).max(sequence.prompt_len);
        self.costs.at(len) + self.draft_bytes()
    }

    /// Bytes that drafts of a sequence may take.
    pub(crate) fn draft_bytes(&self) -> usize {
        match self.config.num_speculative_tokens {
            0 => 0,
            most => self.costs.draft + (1 + most) * self.costs.draft_token,
        }
    }

    /// Bytes that the cache may hold.
    pub(crate) fn cache_room(&self) -> usize {
        let limit = self.config.state_memory;
        limit.map_or(usize::MAX, |limit| limit.saturating_sub(self.used_bytes(None)))
    }

    /// Frees the memory of somebody who does not run, but not of `keep`; false if there is nobody.
    pub(crate) fn reclaim(&mut self, keep: Option<SequenceId>) -> bool {
        let idle = |s: &Sequence| matches!(s.held, Held::Memory(_)) && Some(s.id) != keep;
        if self.warm.drop_begun() {
            return true;
        }
        if let Some(index) = self.waiting.iter().rposition(idle) {
            let mut sequence = self.waiting.remove(index).expect("it was found there");
            self.swap_out(&mut sequence);
            self.enqueue(sequence);
            return true;
        }
        // What choices share goes to the one that is to start, if it is theirs.
        let sequence = self.waiting.iter_mut().find(|s| Some(s.id) == keep && s.held.is_nothing());
        if let Some(sequence) = sequence
            && let Some(shared) = sequence.group.and_then(|group| self.groups.take(group))
        {
            sequence.cached_tokens = shared.cached_tokens;
            sequence.held = Held::Memory(shared.state);
            return true;
        }
        self.groups.drop_one()
    }

    /// Takes a place away. The state stays, in memory or in a file.
    pub(crate) fn preempt(&mut self, index: usize, swap: bool) {
        let id = self.running[index].id;
        if !self.layered.has_run() {
            self.layered.forget(id);
        } else if self.layered.is_of(id) {
            // Part of its layers have read more than the others.
            let mut events = std::mem::take(&mut self.ended);
            self.run_layered(usize::MAX, &mut events);
            self.ended = events;
        }
        // It may have ended.
        let Some(index) = self.running.iter().position(|s| s.id == id) else { return };
        let mut sequence = self.running.remove(index);
        if swap {
            self.swap_out(&mut sequence);
        }
        self.counters.preemptions += 1;
        self.enqueue(sequence);
    }

    /// Moves a state to a file. Where that fails a prompt is read again, and a sequence with output
    /// waits for an error.
    fn swap_out(&mut self, sequence: &mut Sequence) {
        let Held::Memory(state) = std::mem::replace(&mut sequence.held, Held::Nothing) else {
            return;
        };
        if let Ok(swapped) = Swapped::write(&state) {
            sequence.held = Held::Disk(swapped);
        }
    }

    /// Gives a sequence the state it goes on from.
    fn start(&mut self, sequence: &mut Sequence) -> Result<(), String> {
        match std::mem::replace(&mut sequence.held, Held::Nothing) {
            Held::Memory(state) => sequence.held = Held::Memory(state),
            Held::Disk(swapped) => {
                let state = swapped.read(self.model.states(), self.config.dtypes());
                sequence.held = Held::Memory(state.map_err(|error| error.to_string())?);
            }
            Held::Nothing if sequence.output_len() > 0 => {
                return Err("the state could not be moved to a temporary file".to_owned());
            }
            Held::Nothing => self.begin(sequence),
        }
        Ok(())
    }

    /// The state of a sequence that has read nothing: what its request has read, what an earlier
    /// prompt left, or a new one.
    fn begin(&mut self, sequence: &mut Sequence) {
        let last = last_split(sequence.prompt_len);
        if let Some(shared) = sequence.group.and_then(|group| self.groups.get(group)) {
            sequence.cached_tokens = shared.cached_tokens;
            sequence.held = Held::Memory(shared.state.clone());
            return;
        }
        let mut found = None;
        let room = self.cache_room().saturating_sub(self.reserved_bytes(sequence));
        sequence.stops.clear();
        if self.snapshots.is_on() && sequence.prompt_logprobs.is_none() {
            let states = self.model.states();
            found = self.snapshots.find(sequence.prefixes().up_to(last), states, room);
            let (keys, points) = (&sequence.keys, &sequence.cache_points);
            sequence.stops = self.snapshots.stops(keys, sequence.prompt_len, points);
        } else if sequence.group.is_some() {
            sequence.stops.push(last);
        }
        let state = found.unwrap_or_else(|| self.new_state());
        let read = state.len();
        sequence.stops.retain(|&stop| stop > read);
        sequence.cached_tokens = read;
        self.counters.prompt_tokens += sequence.prompt_len as u64;
        self.counters.cache_hit_tokens += read as u64;
        sequence.held = Held::Memory(state);
        let shared = self.groups.share(sequence, &self.waiting, room);
        self.snapshots.shrink_to(room - shared);
    }

    /// A state that has read nothing.
    pub(crate) fn new_state(&self) -> SequenceState {
        self.model.new_state(self.config.dtypes())
    }
}

//! Generates for many requests at once: what an owner asks of it. [`Engine::step`] does the work.
//!
//! Every step admits sequences ([`admission`](crate::admission)), takes one token of each that
//! decodes and pieces of prompts ([`scheduler`](crate::scheduler)), fills what is left with drafts,
//! runs the model once, takes a prompt through some of the layers where others decode
//! ([`layered_prefill`](crate::layered_prefill)), and lets each sequence's thinking budget or the
//! sampler decide its next tokens.
//!
//! Invariants: prompts are split only at multiples of the model's scan chunk, so a sequence's
//! tokens have the same bits whatever else is in the batch, whatever was read for it before, and
//! whenever it had to wait; drafts change no token, only how many come in a step; a sequence that
//! fails ends alone; randomness depends on (seed, position) only.

use crate::choices::Groups;
use crate::config::EngineConfig;
use crate::constraint::{Arming, ConstraintScope};
use crate::error::RequestError;
use crate::layered_prefill::Layered;
use crate::logits_processor::TokenHistory;
use crate::prefix::{last_split, prefix_keys};
use crate::prompt_logprobs;
use crate::prompt_lookup::{Drafter, PromptLookup};
use crate::sampler::Sampler;
use crate::scheduler::Scheduler;
use crate::sequence::{Event, FinishReason, GenerationRequest, Held, Sequence, SequenceId};
use crate::snapshots::Snapshots;
use crate::speculation::{MAX_SPECULATIVE_TOKENS, Speculation};
use crate::stats::{Counters, Stats};
use crate::stop::StopWatch;
use crate::thinking_budget::{
    BudgetPlan, FinishCause, ThinkingBudget, ThinkingConfig, ThinkingVocab, TokenRoom,
};
use crate::warm::WarmQueue;
use hybra_kernels::Cpu;
use hybra_model::{Activations, Batch, NemotronH, SCAN_CHUNK, SequenceState, StateBytes};
use std::collections::VecDeque;
use std::sync::Arc;

/// The bytes behind token ids.
pub trait TokenTable: Send + Sync {
    /// Bytes of `id`; empty for control tokens.
    fn bytes(&self, id: u32) -> &[u8];
}

/// Output tokens that a sequence has memory for from its start.
const MOST_TOKENS_RESERVED: usize = 64 * 1024;

/// Generates for many requests at once. Single-threaded: one owner calls [`Engine::step`].
pub struct Engine {
    pub(crate) model: Arc<NemotronH>,
    pub(crate) cpu: Arc<Cpu>,
    vocab: Arc<ThinkingVocab>,
    pub(crate) table: Arc<dyn TokenTable>,
    pub(crate) config: EngineConfig,
    /// What states cost.
    pub(crate) costs: StateBytes,
    /// Ordered by priority and arrival.
    pub(crate) waiting: VecDeque<Sequence>,
    pub(crate) running: Vec<Sequence>,
    next_id: u64,
    /// Tokens of the longest sequence that memory has room for.
    fits_alone: usize,
    pub(crate) groups: Groups,
    pub(crate) snapshots: Snapshots,
    pub(crate) warm: WarmQueue,
    pub(crate) scheduler: Scheduler,
    pub(crate) batch: Batch,
    pub(crate) activations: Activations,
    pub(crate) sampler: Sampler,
    pub(crate) ended: Vec<Event>,
    /// The sequences in the batch, ascending: index and planned tokens.
    pub(crate) fed: Vec<(usize, usize)>,
    pub(crate) layered: Layered,
    /// Sequences that may run, since the device was full.
    pub(crate) seats: Option<usize>,
    /// Empty between steps: keeps the memory of a step's list of states.
    pub(crate) states: Vec<&'static mut SequenceState>,
    new_drafter: Box<dyn Fn() -> Box<dyn Drafter> + Send>,
    pub(crate) counters: Counters,
}

impl Engine {
    /// An engine without requests.
    pub fn new(
        model: Arc<NemotronH>,
        cpu: Arc<Cpu>,
        vocab: Arc<ThinkingVocab>,
        table: Arc<dyn TokenTable>,
        mut config: EngineConfig,
    ) -> Self {
        let whole_chunks = |tokens: usize| tokens.max(1).next_multiple_of(SCAN_CHUNK);
        config.max_num_batched_tokens = whole_chunks(config.max_num_batched_tokens);
        config.max_prefill_while_decoding = match config.max_prefill_while_decoding {
            0..SCAN_CHUNK => config.max_prefill_while_decoding.max(1),
            tokens => whole_chunks(tokens),
        };
        config.max_num_seqs = config.max_num_seqs.max(1);
        config.num_speculative_tokens = config.num_speculative_tokens.min(MAX_SPECULATIVE_TOKENS);
        let costs = model.states().costs(config.dtypes());
        let mut engine = Self {
            snapshots: Snapshots::new(&config),
            model,
            cpu,
            vocab,
            table,
            config,
            costs,
            waiting: VecDeque::new(),
            running: Vec::new(),
            next_id: 0,
            fits_alone: usize::MAX,
            groups: Groups::default(),
            warm: WarmQueue::default(),
            scheduler: Scheduler::default(),
            batch: Batch::default(),
            activations: Activations::new(),
            sampler: Sampler::new(),
            ended: Vec::new(),
            fed: Vec::new(),
            layered: Layered::default(),
            seats: None,
            states: Vec::new(),
            new_drafter: Box::new(|| Box::<PromptLookup>::default()),
            counters: Counters::default(),
        };
        // What a sequence alone may grow to.
        if let Some(limit) = engine.config.state_memory {
            let longest = costs.longest(limit.saturating_sub(engine.draft_bytes()));
            engine.fits_alone = longest;
        }
        engine
    }

    /// Guesses of sequences added from now on come from here instead of [`PromptLookup`].
    pub fn set_drafter(&mut self, new: impl Fn() -> Box<dyn Drafter> + Send + 'static) {
        self.new_drafter = Box::new(new);
    }

    /// The model.
    pub fn model(&self) -> &NemotronH {
        &self.model
    }

    /// Longest sequence, prompt and output: the context length, or what memory has room for.
    pub fn max_model_len(&self) -> usize {
        self.config.max_model_len.min(self.fits_alone)
    }

    /// Why [`EngineConfig::cache_dir`] cannot be used, if so: the engine goes on without it.
    pub fn cache_dir_error(&self) -> Option<&std::io::Error> {
        self.snapshots.disk_error()
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.has_no_requests() && self.warm.len() == 0
    }

    /// Whether no request is left; there may be prompts to warm up.
    pub(crate) fn has_no_requests(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.ended.is_empty()
    }

    /// Queues a request.
    ///
    /// # Errors
    /// A field out of range, a contradiction, a token outside the vocabulary, or a prompt that
    /// leaves no room in the context or in memory.
    pub fn add(&mut self, request: GenerationRequest) -> Result<SequenceId, RequestError> {
        let sequence = self.sequence(request)?;
        let id = sequence.id;
        self.enqueue(sequence);
        Ok(id)
    }

    fn sequence(&mut self, request: GenerationRequest) -> Result<Sequence, RequestError> {
        let vocab_size = self.model.config().vocab_size;
        prompt_logprobs::validate(request.prompt_logprobs, &request.sampling, vocab_size)?;
        request.thinking.validate(request.sampling.max_tokens)?;
        self.check_prompt(&request.prompt)?;
        let prompt_len = request.prompt.len();
        let context = self.max_model_len() - prompt_len;
        let max_tokens = request.sampling.max_tokens.map_or(context, |m| context.min(m as usize));
        let room = TokenRoom {
            max_tokens: request.sampling.max_tokens,
            context: u32::try_from(context).unwrap_or(u32::MAX),
            answer_reserve: request.thinking.answer_token_reserve,
            insertion_len: request.insertion.max_len(),
        };
        let resolved = request.thinking.resolve(self.config.server_budget);
        let scope = request.constraint.as_ref().map(|constraint| constraint.scope());
        let answer_only = scope == Some(ConstraintScope::Answer);
        let config = ThinkingConfig {
            plan: BudgetPlan::new(resolved, request.reserve_answer.then_some(room)),
            start: request.start,
            min_thinking_tokens: request.thinking.min_thinking_tokens,
            tools: request.tools,
            answer_only,
            stop_in_thinking: request.thinking.stop_in_thinking,
        };
        let most = self.config.num_speculative_tokens;
        let speculation =
            (most > 0).then(|| Speculation::new((self.new_drafter)(), most, vocab_size));
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let salt = request.cache_salt;
        let is_cached = self.snapshots.is_on() && request.prompt_logprobs.is_none();
        let keys = if is_cached { prefix_keys(salt, &request.prompt) } else { Vec::new() };
        let mut tokens = request.prompt;
        let history = TokenHistory::new(&tokens);
        // A step allocates nothing. Capped: most sequences end long before the context does.
        tokens.reserve(max_tokens.min(MOST_TOKENS_RESERVED));
        let stops = &request.sampling.stop;
        let stop_in_thinking = request.thinking.stop_in_thinking;
        let stop = (!stops.is_empty()).then(|| StopWatch::new(stops, stop_in_thinking));
        Ok(Sequence {
            id,
            priority: request.priority,
            salt,
            group: None,
            keys,
            cache_points: request.cache_points,
            stops: Vec::new(),
            last_served: 0,
            stop,
            constraint: request.constraint.map(Arming::new),
            cached_tokens: 0,
            prompt_logprobs: request.prompt_logprobs,
            eos_sampled: None,
            max_len: prompt_len + max_tokens,
            prompt_len,
            held: Held::Nothing,
            history,
            tokens,
            sampling: request.sampling,
            eos: request.eos_token_ids,
            budget: ThinkingBudget::new(Arc::clone(&self.vocab), request.insertion, config),
            speculation,
        })
    }

    /// Queues the choices of one request: all of them or none. Where they have the same prompt and
    /// salt, as they should, it is read once.
    ///
    /// # Errors
    /// As [`Engine::add`].
    pub fn add_choices(
        &mut self,
        requests: Vec<GenerationRequest>,
    ) -> Result<Vec<SequenceId>, RequestError> {
        let choices = requests.into_iter().map(|request| self.sequence(request));
        let mut choices = choices.collect::<Result<Vec<_>, _>>()?;
        let same =
            |pair: &[Sequence]| pair[0].salt == pair[1].salt && pair[0].tokens == pair[1].tokens;
        let is_scored = choices.iter().any(|choice| choice.prompt_logprobs.is_some());
        let first = choices.first().filter(|s| choices.len() > 1 && last_split(s.prompt_len) > 0);
        let group = first.map(|s| s.id.0).filter(|_| !is_scored && choices.windows(2).all(same));
        choices.iter_mut().for_each(|choice| choice.group = group);
        let ids = choices.iter().map(|choice| choice.id).collect();
        choices.into_iter().for_each(|choice| self.enqueue(choice));
        Ok(ids)
    }

    /// What the engine is doing.
    pub fn stats(&self) -> Stats {
        let states = self.running.iter().chain(&self.waiting).map(|s| s.held.bytes());
        let (cache_bytes, cache_entries) = self.snapshots.size();
        Stats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            warm_pending: self.warm.len(),
            state_bytes: states.sum::<usize>() + self.groups.bytes() + self.warm.bytes(),
            cache_bytes,
            cache_entries,
            cache_file_errors: self.snapshots.file_errors(),
            counters: self.counters,
        }
    }

    fn check_prompt(&self, prompt: &[u32]) -> Result<(), RequestError> {
        let vocab_size = self.model.config().vocab_size;
        if let Some(&found) = prompt.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(RequestError::TokenOutOfVocab { field: "prompt", vocab_size, found });
        }
        if prompt.is_empty() || prompt.len() >= self.max_model_len() {
            let expected = if self.config.max_model_len <= self.fits_alone {
                "1 token or more, and fewer than the context length (max_model_len)"
            } else {
                "1 token or more, and a state that fits into memory (state_memory)"
            };
            let found = format!("{} tokens", prompt.len());
            return Err(RequestError::OutOfRange { field: "prompt", expected, found });
        }
        Ok(())
    }

    /// Ends the thinking section of a sequence at the next step; false if it is not thinking.
    pub fn end_thinking(&mut self, id: SequenceId) -> bool {
        let sequences = self.running.iter_mut().chain(&mut self.waiting);
        sequences.filter(|s| s.id == id).any(|s| s.budget.end_now())
    }

    /// Ends a sequence; its last event comes with the next step. False if it is unknown.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        let Some(mut sequence) = self.take(id) else { return false };
        let runs = sequence.budget.finish(FinishCause::Cancel);
        let event = sequence.finish_event(FinishReason::Cancelled, None, runs);
        self.ended.push(Event::Finish(event));
        true
    }

    /// Ends every sequence with an error, after a panic that left the engine's own work undone.
    pub(crate) fn fail_all(&mut self, error: &str, events: &mut Vec<Event>) {
        events.append(&mut self.ended);
        for mut sequence in self.running.drain(..).chain(self.waiting.drain(..)) {
            events.push(sequence.fail(error.to_owned()));
        }
        (self.groups, self.warm) = (Groups::default(), WarmQueue::default());
        (self.sampler, self.activations) = (Sampler::new(), Activations::new());
        self.snapshots = Snapshots::new(&self.config);
        self.layered = Layered::default();
        self.seats = None;
    }

    fn take(&mut self, id: SequenceId) -> Option<Sequence> {
        if let Some(i) = self.running.iter().position(|s| s.id == id) {
            self.layered.forget(id);
            return Some(self.running.remove(i));
        }
        let i = self.waiting.iter().position(|s| s.id == id)?;
        self.waiting.remove(i)
    }
}

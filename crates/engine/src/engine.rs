//! The step loop: which tokens go through the model next, and what their logits become.
//!
//! Every step takes one token of each running sequence, fills the rest of the token budget with
//! prompts (chunked prefill) and what then is left with drafts, runs the model once, and lets each
//! sequence's thinking budget or the sampler decide its next tokens.
//!
//! Invariants: prompts are split only at multiples of the model's scan chunk, so a sequence's
//! tokens have the same bits whatever else is in the batch; drafts change no token, only how many
//! come in a step; a sequence that fails ends alone; randomness depends on (seed, position) only.

use crate::error::RequestError;
use crate::handle::Stats;
use crate::logits_processor::TokenHistory;
use crate::next_token::next_tokens;
use crate::prompt_lookup::{Drafter, PromptLookup};
use crate::request::ServerBudget;
use crate::sampler::Sampler;
use crate::sequence::{Event, FinishReason, GenerationRequest, Sequence, SequenceId};
use crate::speculation::{MAX_SPECULATIVE_TOKENS, Speculation};
use crate::stop::StopWatch;
use crate::thinking_budget::{
    BudgetPlan, FinishCause, ThinkingBudget, ThinkingConfig, ThinkingVocab, TokenRoom,
};
use hybra_kernels::Cpu;
use hybra_kernels::ops::attention::KvDtype;
use hybra_kernels::ops::ssm_state::SsmDtype;
use hybra_model::{
    Activations, Batch, LogitsFor, NemotronH, NoObserver, SCAN_CHUNK, SequenceState, StateDtypes,
};
use std::collections::VecDeque;
use std::sync::Arc;

/// The bytes behind token ids.
pub trait TokenTable: Send + Sync {
    /// Bytes of `id`; empty for control tokens.
    fn bytes(&self, id: u32) -> &[u8];
}

/// Limits of an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Sequences that run at the same time.
    pub max_num_seqs: usize,
    /// Tokens of one step; rounded up to a multiple of the scan chunk.
    pub max_num_batched_tokens: usize,
    /// Longest sequence, prompt and output.
    pub max_model_len: usize,
    /// Number type of keys and values.
    pub kv_dtype: KvDtype,
    /// Number type of the recurrent state.
    pub state_dtype: SsmDtype,
    /// The operator's default and ceiling for thinking budgets.
    pub server_budget: ServerBudget,
    /// Most tokens of a sequence that are guessed and read in a step, beside the one that is
    /// known; 0: none. At most [`MAX_SPECULATIVE_TOKENS`].
    pub num_speculative_tokens: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_num_seqs: 16,
            max_num_batched_tokens: 512,
            max_model_len: 131_072,
            kv_dtype: KvDtype::Bf16,
            state_dtype: SsmDtype::F32,
            server_budget: ServerBudget::default(),
            num_speculative_tokens: 0,
        }
    }
}

/// Output tokens that a sequence has memory for from its start.
const MOST_TOKENS_RESERVED: usize = 64 * 1024;

/// Generates for many requests at once. Single-threaded: one owner calls [`Engine::step`].
pub struct Engine {
    model: Arc<NemotronH>,
    cpu: Arc<Cpu>,
    vocab: Arc<ThinkingVocab>,
    table: Arc<dyn TokenTable>,
    config: EngineConfig,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    next_id: u64,
    batch: Batch,
    activations: Activations,
    sampler: Sampler,
    ended: Vec<Event>,
    /// The sequences in the batch, ascending: index and planned tokens.
    fed: Vec<(usize, usize)>,
    /// Empty between steps: keeps the memory of a step's list of states.
    states: Vec<&'static mut SequenceState>,
    new_drafter: Box<dyn Fn() -> Box<dyn Drafter> + Send>,
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
        let chunks = config.max_num_batched_tokens.max(1).div_ceil(SCAN_CHUNK);
        config.max_num_batched_tokens = chunks * SCAN_CHUNK;
        config.max_num_seqs = config.max_num_seqs.max(1);
        config.num_speculative_tokens = config.num_speculative_tokens.min(MAX_SPECULATIVE_TOKENS);
        Self {
            model,
            cpu,
            vocab,
            table,
            config,
            waiting: VecDeque::new(),
            running: Vec::new(),
            next_id: 0,
            batch: Batch::default(),
            activations: Activations::new(),
            sampler: Sampler::new(),
            ended: Vec::new(),
            fed: Vec::new(),
            states: Vec::new(),
            new_drafter: Box::new(|| Box::<PromptLookup>::default()),
        }
    }

    /// Guesses of sequences added from now on come from here instead of [`PromptLookup`].
    pub fn set_drafter(&mut self, new: impl Fn() -> Box<dyn Drafter> + Send + 'static) {
        self.new_drafter = Box::new(new);
    }

    /// The model.
    pub fn model(&self) -> &NemotronH {
        &self.model
    }

    /// Longest sequence, prompt and output.
    pub fn max_model_len(&self) -> usize {
        self.config.max_model_len
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.ended.is_empty()
    }

    /// Queues a request.
    ///
    /// # Errors
    /// A field out of range, a contradiction, a token outside the vocabulary, or a prompt that
    /// leaves no room in the context.
    pub fn add(&mut self, request: GenerationRequest) -> Result<SequenceId, RequestError> {
        let vocab_size = self.model.config().vocab_size;
        request.sampling.validate(vocab_size)?;
        request.thinking.validate(request.sampling.max_tokens)?;
        self.check_prompt(&request.prompt)?;
        let prompt_len = request.prompt.len();
        let context = self.config.max_model_len - prompt_len;
        let max_tokens = request.sampling.max_tokens.map_or(context, |m| context.min(m as usize));
        let room = TokenRoom {
            max_tokens: request.sampling.max_tokens,
            context: u32::try_from(context).unwrap_or(u32::MAX),
            answer_reserve: request.thinking.answer_token_reserve,
            insertion_len: request.insertion.max_len(),
        };
        let resolved = request.thinking.resolve(self.config.server_budget);
        let config = ThinkingConfig {
            plan: BudgetPlan::new(resolved, request.reserve_answer.then_some(room)),
            start: request.start,
            min_thinking_tokens: request.thinking.min_thinking_tokens,
            tools: request.tools,
            stop_in_thinking: request.thinking.stop_in_thinking,
        };
        let most = self.config.num_speculative_tokens;
        let speculation =
            (most > 0).then(|| Speculation::new((self.new_drafter)(), most, vocab_size));
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let mut tokens = request.prompt;
        let history = TokenHistory::new(&tokens);
        // A step allocates nothing. Capped: most sequences end long before the context does.
        tokens.reserve(max_tokens.min(MOST_TOKENS_RESERVED));
        let dtypes = StateDtypes { kv: self.config.kv_dtype, ssm: self.config.state_dtype };
        let stops = &request.sampling.stop;
        let stop_in_thinking = request.thinking.stop_in_thinking;
        let stop = (!stops.is_empty()).then(|| StopWatch::new(stops, stop_in_thinking));
        self.waiting.push_back(Sequence {
            id,
            stop,
            constraint: request.constraint,
            cached_tokens: 0,
            max_len: prompt_len + max_tokens,
            prompt_len,
            state: self.model.new_state(dtypes),
            history,
            tokens,
            sampling: request.sampling,
            eos: request.eos_token_ids,
            budget: ThinkingBudget::new(Arc::clone(&self.vocab), request.insertion, config),
            speculation,
        });
        Ok(id)
    }

    /// Queues the choices of one request, which have the same prompt: all of them or none.
    ///
    /// # Errors
    /// As [`Engine::add`].
    pub fn add_choices(
        &mut self,
        requests: Vec<GenerationRequest>,
    ) -> Result<Vec<SequenceId>, RequestError> {
        let before = self.waiting.len();
        let ids: Result<Vec<_>, _> =
            requests.into_iter().map(|request| self.add(request)).collect();
        if ids.is_err() {
            self.waiting.truncate(before);
        }
        ids
    }

    /// What the engine is doing.
    pub fn stats(&self) -> Stats {
        Stats { running: self.running.len(), waiting: self.waiting.len() }
    }

    fn check_prompt(&self, prompt: &[u32]) -> Result<(), RequestError> {
        let vocab_size = self.model.config().vocab_size;
        if let Some(&found) = prompt.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(RequestError::TokenOutOfVocab { field: "prompt", vocab_size, found });
        }
        if prompt.is_empty() || prompt.len() >= self.config.max_model_len {
            let expected = "1 token or more, and fewer than the context length (max_model_len)";
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

    fn take(&mut self, id: SequenceId) -> Option<Sequence> {
        if let Some(i) = self.running.iter().position(|s| s.id == id) {
            return Some(self.running.remove(i));
        }
        let i = self.waiting.iter().position(|s| s.id == id)?;
        self.waiting.remove(i)
    }

    /// Runs the model once and appends what happened to `events`.
    pub fn step(&mut self, events: &mut Vec<Event>) {
        events.append(&mut self.ended);
        while self.running.len() < self.config.max_num_seqs
            && let Some(sequence) = self.waiting.pop_front()
        {
            self.running.push(sequence);
        }
        self.schedule();
        let fed = &self.fed;
        if fed.is_empty() {
            return;
        }
        let mut states = emptied(std::mem::take(&mut self.states));
        let running = self.running.iter_mut().enumerate();
        states.extend(
            running.filter(|(i, _)| fed.iter().any(|(j, _)| i == j)).map(|(_, s)| &mut s.state),
        );
        let logits = self
            .model
            .forward(&self.cpu, &self.batch, &mut states, &mut self.activations, &mut NoObserver)
            .expect("prompts and sampled tokens are inside the vocabulary");
        self.states = emptied(states);
        let (vocab_size, mut at) = (self.model.config().vocab_size, 0);
        let mut finished = Vec::new();
        for (&(i, _), segment) in self.fed.iter().zip(self.batch.segments()) {
            let sequence = &mut self.running[i];
            if sequence.output_len() == 0 {
                let (done, total) = (sequence.state.len(), sequence.prompt_len);
                events.push(Event::Prefill { sequence: sequence.id, done, total });
            }
            let rows = &logits[at * vocab_size..(at + segment.num_logits()) * vocab_size];
            at += segment.num_logits();
            let rows = rows.chunks(vocab_size);
            if next_tokens(sequence, rows, &mut self.sampler, &*self.table, events) {
                finished.push(i);
            }
        }
        for i in finished.into_iter().rev() {
            self.running.remove(i);
        }
        self.forget_wrong_guesses();
    }

    /// States keep what the sequences' tokens say.
    fn forget_wrong_guesses(&mut self) {
        for Sequence { state, tokens, .. } in &mut self.running {
            if state.drafted() > 0 {
                let wrong = state.len() + 1 - tokens.len();
                let right = state.drafted() - wrong;
                self.model.accept(&self.cpu, state, right, &mut self.activations);
            }
        }
    }

    /// Fills the batch.
    fn schedule(&mut self) {
        self.batch.clear();
        self.fed.clear();
        let mut left = self.config.max_num_batched_tokens;
        let decoding = self.running.iter().filter(|s| s.pending().len() == 1).count();
        // Decoding comes first; what remains is shared by prompts in order of arrival.
        let mut prefill = left.saturating_sub(decoding) / SCAN_CHUNK * SCAN_CHUNK;
        if prefill == 0 {
            prefill = SCAN_CHUNK;
            left = prefill + decoding;
        }
        for (i, sequence) in self.running.iter().enumerate() {
            let pending = sequence.pending();
            let len = if pending.len() == 1 {
                1
            } else if pending.len() <= prefill {
                pending.len()
            } else {
                prefill
            };
            if len == 0 || len > left {
                continue;
            }
            left -= len;
            if pending.len() > 1 {
                prefill = (prefill - len) / SCAN_CHUNK * SCAN_CHUNK;
            }
            self.fed.push((i, len));
        }
        let planned: usize = self.fed.iter().map(|(_, len)| len).sum();
        self.fill(self.config.max_num_batched_tokens.saturating_sub(planned));
    }

    /// Puts the planned tokens into the batch, and guesses where `room` is left for them.
    fn fill(&mut self, mut room: usize) {
        for &(i, len) in &self.fed {
            let sequence = &mut self.running[i];
            sequence.propose(room);
            let (pending, draft) = (sequence.pending(), sequence.draft());
            room -= draft.len();
            if !draft.is_empty() {
                self.batch.push_draft(pending[0], draft);
            } else {
                let all = len == pending.len();
                let logits = if all { LogitsFor::Last } else { LogitsFor::None };
                self.batch.push(&pending[..len], logits);
            }
        }
    }
}

/// The memory of `list` for states that live for another time.
fn emptied<'b>(mut list: Vec<&mut SequenceState>) -> Vec<&'b mut SequenceState> {
    list.clear();
    // Collecting a vector's own iterator keeps its memory; a test of allocations holds it to that.
    list.into_iter().map(|_| unreachable!("the list is empty")).collect()
}

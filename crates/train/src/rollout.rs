//! Answers of the model under training, by the engine that serves: batched, with thinking budgets.
//!
//! Weights are the f32 values of the moment, taken as they are; the keys and values of attention are
//! f32. Ranks answer a share each and all get all. A rollout is a function of weights, prompt, budget
//! and seed: batch and number of ranks change no token and no log-probability.

mod memory;
mod packs;
mod prompts;

pub use packs::pack;
pub(crate) use prompts::budget;
pub use prompts::{Prompt, PromptConfig, Prompts, RolloutConfig};

use crate::comm::{Comm, share};
use crate::data::TokenClass;
use crate::objective::{BoxError, Policy};
use hybra_chat::{ChatInput, ChatModel, Reply};
use hybra_engine::{
    Engine, EngineConfig, Event, FinishEvent, FinishReason, GenerationRequest, Phase,
    SamplingParams, SequenceId, TokenEvent, TokenTable,
};
use hybra_eval::{Budget, Call};
use hybra_kernels::ops::attention::KvDtype;
use hybra_kernels::{Cpu, Isa};
use hybra_model::nemotron_h::NemotronH;
use hybra_model::weights::Weights;
use hybra_model::{Config, parameters::Layout};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;

/// Sequences that are generated at the same time.
const BATCH: usize = 64;

/// A conversation to answer.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The turns so far.
    pub input: ChatInput,
    /// How much to think.
    pub budget: Budget,
    /// Key of the random stream.
    pub seed: u64,
}

/// A generated token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Generated {
    /// The id.
    pub id: u32,
    /// Chosen by the model, and not inserted by the budget.
    pub sampled: bool,
    /// What it is.
    pub class: TokenClass,
    /// Bits of its log-probability under the raw model distribution, as the engine computed it.
    logprob: u32,
}

impl Generated {
    /// Its log-probability under the raw model distribution.
    #[must_use]
    pub fn logprob(&self) -> f32 {
        f32::from_bits(self.logprob)
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// What followed, with the end of the turn if the model ended it.
    pub tokens: Vec<Generated>,
    /// Text of the thinking section.
    pub reasoning: String,
    /// Text for the reader, and what of the tool text is no call.
    pub answer: String,
    /// Tool calls: names and arguments.
    pub calls: Vec<(String, String)>,
    /// Tokens of thinking that count against the budget.
    pub thinking_tokens: u32,
    /// The model ended its turn.
    pub finished: bool,
    /// Exactly as many close tags as the prompt opened sections.
    pub well_formed: bool,
}

impl Rollout {
    /// The calls as verifiers take them.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        let call = |(name, arguments): &(String, String)| Call {
            name: name.clone(),
            arguments: arguments.clone(),
        };
        self.calls.iter().map(call).collect()
    }
}

/// Makes rollouts for one model.
pub struct Roller {
    chat: ChatModel,
    config: Config,
    layout: Layout,
    cpu: Arc<Cpu>,
    temperature: f32,
    max_tokens: u32,
}

/// A sequence in the engine.
struct Running {
    index: usize,
    rollout: Rollout,
    reply: Reply,
    bytes: Vec<u8>,
    opens: bool,
}

impl Roller {
    /// For a model of this shape and text; answers have at most `max_tokens`. The engine's threads
    /// are its own.
    #[must_use]
    pub fn new(
        chat: ChatModel,
        config: Config,
        (isa, threads): (Isa, usize),
        (temperature, max_tokens): (f32, u32),
    ) -> Self {
        let (layout, cpu) = (Layout::new(&config), Arc::new(Cpu::new(isa, threads)));
        Self { chat, config, layout, cpu, temperature, max_tokens }
    }

    /// The text side of the model.
    #[must_use]
    pub fn chat(&self) -> &ChatModel {
        &self.chat
    }

    /// Answers of the policy, in the order of `asks`, the same on all ranks.
    ///
    /// # Errors
    /// A conversation that the template refuses, a failed sequence, a lost rank.
    pub fn roll(&self, policy: &Policy, asks: &[Ask]) -> Result<Vec<Rollout>, BoxError> {
        self.answer(&self.model(policy.parameters)?, policy.comm, asks)
    }

    /// Answers of any model of the roller's shape and text.
    ///
    /// # Errors
    /// As [`Self::roll`].
    pub fn answer(
        &self,
        model: &Arc<NemotronH>,
        comm: &dyn Comm,
        asks: &[Ask],
    ) -> Result<Vec<Rollout>, BoxError> {
        let own = share(0..asks.len(), comm.rank(), comm.size());
        let found = self.generate(model, &asks[own])?;
        let parts = comm.all_gather(&serde_json::to_vec(&found)?)?;
        let mut all = Vec::with_capacity(asks.len());
        for part in parts {
            all.extend(serde_json::from_slice::<Vec<Rollout>>(&part)?);
        }
        Ok(all)
    }

    fn generate(&self, model: &Arc<NemotronH>, asks: &[Ask]) -> Result<Vec<Rollout>, BoxError> {
        if asks.is_empty() {
            return Ok(Vec::new());
        }
        let mut engine = self.engine(model);
        let (mut waiting, mut events) = (asks.iter().enumerate(), Vec::new());
        let mut running: HashMap<SequenceId, Running> = HashMap::new();
        let mut done: Vec<Option<Rollout>> = asks.iter().map(|_| None).collect();
        loop {
            while running.len() < BATCH
                && let Some((index, ask)) = waiting.next()
            {
                let request = self.request(ask)?;
                let sequence = Running::new(index, ask, &request);
                running.insert(engine.add(request)?, sequence);
            }
            if running.is_empty() {
                return Ok(done.into_iter().map(|rollout| rollout.expect("all ended")).collect());
            }
            engine.step(&mut events);
            for event in events.drain(..) {
                match event {
                    Event::Token(token) => {
                        let sequence = running.get_mut(&token.sequence).expect("its own sequences");
                        sequence.token(&token, self.chat.table.bytes(token.token));
                    }
                    Event::Finish(end) => {
                        let sequence = running.remove(&end.sequence).expect("its own sequences");
                        let (index, rollout) = sequence.finish(&self.chat, &end)?;
                        done[index] = Some(rollout);
                    }
                    _ => {}
                }
            }
        }
    }

    /// The weights of the moment as a model.
    fn model(&self, parameters: &[f32]) -> Result<Arc<NemotronH>, BoxError> {
        let checkpoint = memory::checkpoint(&self.config, &self.layout, parameters)?;
        let weights = Weights::load(&checkpoint, &self.config, |_, _| {})?;
        Ok(Arc::new(NemotronH::new(self.config.clone(), weights)))
    }

    fn engine(&self, model: &Arc<NemotronH>) -> Engine {
        let config = EngineConfig {
            max_num_seqs: BATCH,
            max_model_len: self.config.max_position_embeddings,
            kv_dtype: KvDtype::F32,
            ..EngineConfig::default()
        };
        let table = Arc::clone(&self.chat.table) as Arc<dyn TokenTable>;
        let (model, cpu) = (Arc::clone(model), Arc::clone(&self.cpu));
        Engine::new(model, cpu, Arc::clone(&self.chat.vocab), table, config)
    }

    fn request(&self, ask: &Ask) -> Result<GenerationRequest, BoxError> {
        let sampling = SamplingParams {
            temperature: self.temperature,
            seed: Some(ask.seed),
            max_tokens: Some(self.max_tokens),
            logprobs: Some(0),
            ..SamplingParams::default()
        };
        let prompt = self.chat.chat_prompt(&ask.input, &ask.budget.switch())?;
        let thinking = match self.chat.tags {
            None => Default::default(),
            Some(_) => ask.budget.params(Default::default()),
        };
        Ok(self.chat.request(prompt, sampling, thinking, None)?)
    }
}

impl Running {
    fn new(index: usize, ask: &Ask, request: &GenerationRequest) -> Self {
        let rollout = Rollout {
            prompt: request.prompt.clone(),
            tokens: Vec::new(),
            reasoning: String::new(),
            answer: String::new(),
            calls: Vec::new(),
            thinking_tokens: 0,
            finished: false,
            well_formed: true,
        };
        let opens = ask.budget != Budget::Off;
        Self { index, rollout, reply: Reply::new(&[], false), bytes: Vec::new(), opens }
    }

    fn token(&mut self, token: &TokenEvent, bytes: &[u8]) {
        let class = match token.step.phase {
            Phase::Thinking | Phase::Tag => TokenClass::Thinking,
            Phase::Answer => TokenClass::Answer,
            Phase::Tool => TokenClass::Tool,
        };
        self.push(token.token, !token.step.forced, class, token.logprob);
        self.bytes.extend_from_slice(bytes);
        self.reply.token(token, bytes, &mut |_, _| {});
    }

    fn push(&mut self, id: u32, sampled: bool, class: TokenClass, logprob: Option<f32>) {
        let logprob = logprob.unwrap_or(0.0).to_bits();
        self.rollout.tokens.push(Generated { id, sampled, class, logprob });
    }

    fn finish(mut self, chat: &ChatModel, end: &FinishEvent) -> Result<(usize, Rollout), BoxError> {
        if matches!(end.reason, FinishReason::Failed | FinishReason::Cancelled) {
            let reason = end.error.clone().unwrap_or_else(|| format!("{:?}", end.reason));
            return Err(format!("rollout {}: {reason}", self.index).into());
        }
        self.reply.finish(end, &mut |_, _| {});
        if let Some(eos) = end.eos {
            let class = self.rollout.tokens.last().map_or(TokenClass::Answer, |last| last.class);
            self.push(eos.token, true, class, eos.logprob);
        }
        let (calls, rest) = Call::parse(&self.reply.tool);
        let mut rollout = self.rollout;
        rollout.reasoning = self.reply.reasoning;
        rollout.answer = format!("{}{rest}", self.reply.answer);
        rollout.calls = calls.into_iter().map(|call| (call.name, call.arguments)).collect();
        rollout.thinking_tokens = end.budget.used;
        rollout.finished = end.reason == FinishReason::Stop;
        if let Some(tags) = &chat.tags {
            let close = tags.close.as_bytes();
            let found = self.bytes.windows(close.len()).filter(|bytes| *bytes == close).count();
            rollout.well_formed = found == usize::from(self.opens);
        }
        Ok((self.index, rollout))
    }
}

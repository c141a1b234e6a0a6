//! A model of random weights behind an engine, with a token table of single characters.
#![allow(dead_code, reason = "not every test binary needs everything")]

#[path = "../../../../testdata/random_model.rs"]
mod weights;

use hybra_engine::{
    Engine, EngineConfig, Event, FinishEvent, GenerationRequest, Insertion, SamplingParams,
    SequenceId, Start, TagTexts, ThinkingParams, ThinkingVocab, TokenTable,
};
use hybra_kernels::{Cpu, Isa};
use hybra_model::NemotronH;
use std::collections::HashMap;
use std::sync::Arc;

pub(crate) use weights::random_model;

const CHARACTERS: &[u8; 64] = b"</think>TOLCA[\n 0123456789abcdefgjlmopqrsuvwxyzBDEFGHIJKMNPQRSUV";

/// Every id is a character.
pub(crate) struct Table;

impl TokenTable for Table {
    fn bytes(&self, id: u32) -> &[u8] {
        &CHARACTERS[id as usize..][..1]
    }
}

fn encode(text: &[u8]) -> Vec<u32> {
    let id = |byte| CHARACTERS.iter().position(|c| c == byte).unwrap() as u32;
    text.iter().map(id).collect()
}

/// The parts of engines.
pub(crate) struct Kit {
    pub(crate) model: Arc<NemotronH>,
    cpu: Arc<Cpu>,
    vocab: Arc<ThinkingVocab>,
    insertion: Arc<Insertion>,
}

impl Kit {
    pub(crate) fn new() -> Self {
        Self::of(random_model(CHARACTERS.len()))
    }

    pub(crate) fn of(model: NemotronH) -> Self {
        let (close, separator) = (b"</think>", b"\n\n");
        let (open, tool_open) = (b"<think>", b"<TOOLCALL>[");
        let texts = TagTexts { open, close, tool_open, separator };
        let whole = [&close[..], separator].concat();
        let rests = (1..close.len()).map(|j| encode(&whole[j..])).collect();
        let bytes = |id| Table.bytes(id).to_vec();
        let vocab = ThinkingVocab::new(texts, rests, 64, bytes).unwrap();
        let text = |newline| encode(&Insertion::text(close, b"", newline, separator));
        let insertion = Insertion::new(&vocab, b"", text(true), text(false), bytes).unwrap();
        Self {
            model: Arc::new(model),
            cpu: Arc::new(Cpu::new(Isa::best(), 1)),
            vocab: Arc::new(vocab),
            insertion: Arc::new(insertion),
        }
    }

    pub(crate) fn engine(&self, config: EngineConfig) -> Engine {
        self.engine_with(config, Arc::new(Table))
    }

    pub(crate) fn engine_with(&self, config: EngineConfig, table: Arc<dyn TokenTable>) -> Engine {
        let (model, cpu) = (Arc::clone(&self.model), Arc::clone(&self.cpu));
        Engine::new(model, cpu, Arc::clone(&self.vocab), table, config)
    }

    /// Generates `max_tokens` sampled tokens, with log-probabilities, and does not think.
    pub(crate) fn request(&self, prompt: &[u32], seed: u64, max_tokens: u32) -> GenerationRequest {
        let sampling = SamplingParams {
            seed: Some(seed),
            max_tokens: Some(max_tokens),
            logprobs: Some(1),
            ignore_eos: true,
            ..SamplingParams::default()
        };
        GenerationRequest {
            prompt: prompt.to_vec(),
            sampling,
            thinking: ThinkingParams::default(),
            start: Start::Closed { tail: Vec::new() },
            insertion: Arc::clone(&self.insertion),
            reserve_answer: false,
            tools: false,
            eos_token_ids: vec![2],
            constraint: None,
            priority: 0,
            cache_salt: 0,
            cache_points: Vec::new(),
            prompt_logprobs: None,
        }
    }

    /// As [`Self::request`], inside a thinking section.
    pub(crate) fn thinking(&self, prompt: &[u32], seed: u64, max_tokens: u32) -> GenerationRequest {
        let start = self.vocab.start_of(b"<think>\n");
        GenerationRequest { start, reserve_answer: true, ..self.request(prompt, seed, max_tokens) }
    }
}

/// Numbers that look random; the same for the same seed.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) as usize % n
    }

    pub(crate) fn tokens(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.below(64) as u32).collect()
    }
}

/// What became of a sequence.
#[derive(Clone, Debug, Default)]
pub(crate) struct Output {
    /// Tokens and the bits of their log-probabilities.
    pub(crate) tokens: Vec<(u32, u32)>,
    /// Prompt tokens read, as reported.
    pub(crate) prefill: Vec<usize>,
    pub(crate) end: Option<FinishEvent>,
}

/// Outputs by sequence.
#[derive(Default)]
pub(crate) struct Outputs(pub(crate) HashMap<SequenceId, Output>);

impl Outputs {
    pub(crate) fn take(&mut self, event: Event) {
        let output = self.0.entry(event.sequence()).or_default();
        assert!(output.end.is_none(), "an event after the last: {event:?}");
        match event {
            Event::Prefill { done, total, .. } => {
                let before = output.prefill.last().copied().unwrap_or(0);
                assert!(before < done && done <= total, "{before}, then {done} of {total}");
                output.prefill.push(done);
            }
            Event::Token(token) => {
                let bits = token.logprob.map_or(u32::MAX, f32::to_bits);
                output.tokens.push((token.token, bits));
            }
            Event::PromptLogprobs(_) => panic!("no request here asks for them"),
            Event::Finish(end) => output.end = Some(end),
        }
    }

    pub(crate) fn step(&mut self, engine: &mut Engine) {
        let mut events = Vec::new();
        engine.step(&mut events);
        events.into_iter().for_each(|event| self.take(event));
    }

    /// Steps until the engine is idle.
    pub(crate) fn drain(&mut self, engine: &mut Engine) {
        for _ in 0..100_000 {
            if engine.is_idle() {
                return;
            }
            self.step(engine);
        }
        panic!("the engine does not come to rest: {:?}", engine.stats());
    }

    pub(crate) fn end(&self, id: SequenceId) -> &FinishEvent {
        self.0[&id].end.as_ref().unwrap()
    }
}

/// Runs one request to its end.
pub(crate) fn run(engine: &mut Engine, request: GenerationRequest) -> Output {
    let id = engine.add(request).unwrap();
    let mut outputs = Outputs::default();
    outputs.drain(engine);
    outputs.0.remove(&id).unwrap()
}

//! The engine on the model inside the binary: who shares the batch changes nothing, budgets hold,
//! signals work, drafts change no token.

#[path = "engine/prompt_logprobs.rs"]
mod prompt_logprobs;
#[path = "engine/speculation.rs"]
mod speculation;

use hybra_checkpoint::Checkpoint;
use hybra_engine::{
    EndedBy, Engine, EngineConfig, Event, FinishEvent, FinishReason, GenerationRequest, Grace,
    Insertion, Phase, SamplingParams, SequenceId, TagTexts, ThinkingParams, ThinkingVocab,
    TokenTable,
};
use hybra_kernels::ops::attention::KvDtype;
use hybra_kernels::{Cpu, Isa};
use hybra_model::{Config, NemotronH, Weights};
use hybra_tokenizer::{ForcedClose, SpecialIds, ThinkTags, Tokenizer};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

const PROGRAMS: [&str; 5] =
    ["c=b-7;b=0;d=c*9;d?", "a=3;a?", "f=7;a=f-2;a?", "b=5;g=b*3;h=g-1;h?", "e=9;j=e-9;j?"];

struct Table(Arc<Tokenizer>);

impl TokenTable for Table {
    fn bytes(&self, id: u32) -> &[u8] {
        self.0.token_bytes(id)
    }
}

/// The parts an engine is made of.
struct Kit {
    model: Arc<NemotronH>,
    tokenizer: Arc<Tokenizer>,
    vocab: Arc<ThinkingVocab>,
    insertion: Arc<Insertion>,
}

fn kit() -> Kit {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/default-model");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let config = Config::from_checkpoint(&checkpoint).unwrap();
    let weights = Weights::load(&checkpoint, &config, |_, _| {}).unwrap();
    let text = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let (json, side) = (text("tokenizer.json"), text("tokenizer_config.json"));
    let tokenizer =
        Tokenizer::from_files(&json, Some(&side), None, &SpecialIds::default()).unwrap();
    let tags = ThinkTags::detect(&tokenizer).unwrap();
    let forced = ForcedClose::new(&tokenizer, &tags, None).unwrap();
    let bytes = |id: u32| tokenizer.token_bytes(id).to_vec();
    let texts = TagTexts {
        open: tags.open.as_bytes(),
        close: tags.close.as_bytes(),
        tool_open: b"<TOOLCALL>[",
        separator: tags.after_close.as_bytes(),
    };
    let size = tokenizer.vocab_size() as u32;
    let vocab = ThinkingVocab::new(texts, forced.partial, size, bytes).unwrap();
    let insertion =
        Insertion::new(&vocab, b"", forced.after_newline, forced.mid_line, bytes).unwrap();
    Kit {
        model: Arc::new(NemotronH::new(config, weights)),
        tokenizer: Arc::new(tokenizer),
        vocab: Arc::new(vocab),
        insertion: Arc::new(insertion),
    }
}

impl Kit {
    fn engine(&self, isa: Isa, max_num_seqs: usize, max_num_batched_tokens: usize) -> Engine {
        self.drafting_engine(isa, max_num_seqs, max_num_batched_tokens, 0)
    }

    fn drafting_engine(
        &self,
        isa: Isa,
        max_num_seqs: usize,
        max_num_batched_tokens: usize,
        num_speculative_tokens: usize,
    ) -> Engine {
        let config = EngineConfig {
            max_num_seqs,
            max_num_batched_tokens,
            max_model_len: 4096,
            kv_dtype: KvDtype::Bf16,
            num_speculative_tokens,
            ..EngineConfig::default()
        };
        let table = Arc::new(Table(Arc::clone(&self.tokenizer)));
        let cpu = Arc::new(Cpu::new(isa, 2));
        Engine::new(Arc::clone(&self.model), cpu, Arc::clone(&self.vocab), table, config)
    }

    fn request(&self, program: &str) -> GenerationRequest {
        let text = format!(
            "<SPECIAL_10>System\n\n<SPECIAL_11>User\n{program}\n<SPECIAL_11>Assistant\n<think>\n"
        );
        GenerationRequest {
            prompt: self.tokenizer.encode(&text, false).unwrap(),
            sampling: SamplingParams { max_tokens: Some(200), ..SamplingParams::greedy() },
            thinking: ThinkingParams::default(),
            start: self.vocab.start_of(text.as_bytes()),
            insertion: Arc::clone(&self.insertion),
            reserve_answer: true,
            tools: false,
            eos_token_ids: self.tokenizer.eos_ids().to_vec(),
            constraint: None,
            priority: 0,
            cache_salt: 0,
            cache_points: Vec::new(),
            prompt_logprobs: None,
        }
    }
}

/// Tokens and end of every sequence.
fn drain(engine: &mut Engine) -> HashMap<SequenceId, (Vec<u32>, FinishEvent)> {
    let (mut tokens, mut ends) = (HashMap::<_, Vec<u32>>::new(), HashMap::new());
    let mut events = Vec::new();
    for _ in 0..10_000 {
        if engine.is_idle() {
            break;
        }
        engine.step(&mut events);
        for event in events.drain(..) {
            match event {
                Event::Prefill { .. } | Event::PromptLogprobs(_) => {}
                Event::Token(t) => tokens.entry(t.sequence).or_default().push(t.token),
                Event::Finish(end) => {
                    let own = tokens.remove(&end.sequence).unwrap_or_default();
                    assert_eq!(own.len(), end.completion_tokens);
                    ends.insert(end.sequence, (own, end));
                }
            }
        }
    }
    assert!(engine.is_idle(), "the engine does not come to rest");
    ends
}

/// Greedy and sampled sequences, in any company, slot and chunking, have the tokens they have
/// alone.
#[test]
fn company_changes_nothing() {
    let kit = kit();
    for isa in Isa::available() {
        let requests: Vec<_> = (0..PROGRAMS.len())
            .flat_map(|i| {
                let greedy = kit.request(PROGRAMS[i]);
                let mut sampled = kit.request(&PROGRAMS[i].repeat(1 + 9 * (i % 2)));
                sampled.sampling = SamplingParams {
                    temperature: 1.3,
                    seed: Some(i as u64),
                    max_tokens: Some(60),
                    logprobs: Some(3),
                    ..SamplingParams::default()
                };
                [greedy, sampled]
            })
            .collect();
        let alone: Vec<_> = requests
            .iter()
            .map(|request| {
                let mut engine = kit.engine(isa, 1, 4096);
                let id = engine.add(request.clone()).unwrap();
                drain(&mut engine).remove(&id).unwrap().0
            })
            .collect();
        for (seqs, tokens) in [(10, 64), (3, 128), (7, 1024)] {
            let mut engine = kit.engine(isa, seqs, tokens);
            let ids: Vec<_> = requests.iter().map(|r| engine.add(r.clone()).unwrap()).collect();
            let mut together = drain(&mut engine);
            for (id, alone) in ids.iter().zip(&alone) {
                let (tokens, _) = together.remove(id).unwrap();
                assert_eq!(tokens, *alone, "{isa}, {seqs} sequences: {id:?}");
            }
        }
    }
}

/// At every budget the section closes inside the window and an answer follows; where the cut fell
/// on a line end, as the model was trained, it closes exactly once.
#[test]
fn every_budget_holds_and_is_answered() {
    let kit = kit();
    let mut engine = kit.engine(Isa::best(), 16, 512);
    let mut limits = HashMap::new();
    for budget in 0..40 {
        for grace in [Grace::Default, Grace::Tokens(0), Grace::Tokens(5)] {
            let mut request = kit.request(PROGRAMS[0]);
            request.thinking = ThinkingParams { budget: Some(budget), grace, ..Default::default() };
            limits
                .insert(engine.add(request).unwrap(), (budget as u32, grace.tokens(budget as u32)));
        }
    }
    for (id, (tokens, end)) in drain(&mut engine) {
        let (budget, grace) = limits[&id];
        let report = end.budget;
        assert!(report.used <= budget + grace, "{report:?}");
        let closes = kit.tokenizer.decode(&tokens, false).matches("</think>").count();
        let hard = report.ended_by == Some(EndedBy::BudgetHard);
        assert!(closes == 1 || hard && closes > 0, "{closes} close tags: {report:?}");
        assert!(end.completion_tokens > end.reasoning_tokens as usize, "no answer: {report:?}");
        assert_eq!(end.reason, FinishReason::Stop);
        match report.ended_by.unwrap() {
            EndedBy::Natural => assert!(report.used <= 24 && report.forced == 0),
            EndedBy::BudgetNewline => {
                assert!(grace > 0 && (budget..=budget + grace).contains(&report.used));
            }
            EndedBy::BudgetHard => assert_eq!(report.used, budget + grace),
            EndedBy::Off => assert_eq!((budget, report.used), (0, 0)),
            other => panic!("{other:?}: {report:?}"),
        }
    }
}

/// A small `max_tokens` cuts the thinking, not the answer.
#[test]
fn max_tokens_leaves_an_answer() {
    let kit = kit();
    for max_tokens in [6, 8, 16, 24] {
        let mut engine = kit.engine(Isa::best(), 1, 512);
        let mut request = kit.request(PROGRAMS[0]);
        request.sampling.max_tokens = Some(max_tokens);
        let id = engine.add(request).unwrap();
        let (_, end) = drain(&mut engine).remove(&id).unwrap();
        assert!(end.completion_tokens <= max_tokens as usize);
        assert!(end.completion_tokens > end.reasoning_tokens as usize, "{max_tokens}: {end:?}");
    }
}

#[test]
fn answer_now_and_cancel() {
    let kit = kit();
    let mut engine = kit.engine(Isa::best(), 4, 512);
    let now = engine.add(kit.request(PROGRAMS[0])).unwrap();
    let gone = engine.add(kit.request(PROGRAMS[3])).unwrap();
    let plain = engine.add(kit.request(PROGRAMS[0])).unwrap();
    let mut events = Vec::new();
    for _ in 0..5 {
        engine.step(&mut events);
    }
    let thinking =
        |event: &Event| matches!(event, Event::Token(t) if t.step.phase == Phase::Thinking);
    assert_eq!(events.iter().filter(|e| thinking(e)).count(), 15);
    assert!(engine.end_thinking(now));
    assert!(engine.cancel(gone));
    assert!(!engine.cancel(gone) && !engine.end_thinking(gone));
    let mut ends = HashMap::new();
    while !engine.is_idle() {
        engine.step(&mut events);
    }
    for event in events {
        if let Event::Finish(end) = event {
            ends.insert(end.sequence, end);
        }
    }
    assert_eq!(ends[&now].budget.ended_by, Some(EndedBy::Client));
    assert_eq!(ends[&now].budget.used, 5);
    assert_eq!(ends[&now].reason, FinishReason::Stop);
    assert_eq!(ends[&gone].reason, FinishReason::Cancelled);
    assert_eq!(ends[&plain].budget.ended_by, Some(EndedBy::Natural));
}

#[test]
fn bad_requests_are_refused_by_name() {
    let kit = kit();
    let mut engine = kit.engine(Isa::best(), 4, 512);
    let mut refuse = |change: &dyn Fn(&mut GenerationRequest), words: &str| {
        let mut request = kit.request(PROGRAMS[0]);
        change(&mut request);
        let error = engine.add(request).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} lacks {words:?}");
    };
    refuse(&|r| r.prompt.clear(), "prompt");
    refuse(&|r| r.prompt = vec![1; 4096], "4096 tokens");
    refuse(&|r| r.prompt.push(512), "prompt: expected token ids below 512, found 512");
    refuse(&|r| r.sampling.temperature = f32::NAN, "temperature");
    refuse(&|r| r.thinking.budget = Some(-2), "thinking_budget");
    refuse(&|r| r.thinking.budget = Some(200), "max_tokens");
}

//! Grammars in the engine: whatever the budget cuts, the answer satisfies its schema, and drafts
//! change no token. Weights are random.

#[path = "../../../testdata/json_tokenizer.rs"]
mod json_tokenizer;
#[path = "../../../testdata/random_model.rs"]
mod random_model;
#[path = "../../../testdata/schemas.rs"]
mod schemas;

use hybra_chat::{GrammarSpec, Grammars, ToolCallParser, ToolChoice, ToolDelta, ToolSpec, Tools};
use hybra_engine::{
    Constraint, Engine, EngineConfig, Event, FinishEvent, FinishReason, GenerationRequest,
    Insertion, Phase, SamplingParams, Start, TagTexts, ThinkingParams, ThinkingVocab, TokenTable,
};
use hybra_kernels::{Cpu, Isa};
use hybra_model::NemotronH;
use hybra_tokenizer::{ForcedClose, ThinkTags, Tokenizer};
use schemas::{Numbers, random_schema, satisfies};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;

const BUDGETS: [i64; 5] = [0, 1, 2, 5, 20];

struct Table(Arc<Tokenizer>);

impl TokenTable for Table {
    fn bytes(&self, id: u32) -> &[u8] {
        let bytes = self.0.token_bytes(id);
        let tag = matches!(bytes, b"<TOOLCALL>" | b"</TOOLCALL>");
        if self.0.is_special(id) && !tag { &[] } else { bytes }
    }
}

struct Kit {
    model: Arc<NemotronH>,
    table: Arc<Table>,
    vocab: Arc<ThinkingVocab>,
    insertion: Arc<Insertion>,
    grammars: Grammars,
}

/// A finished sequence.
struct Story {
    tokens: Vec<u32>,
    answer: String,
    tool: String,
    end: FinishEvent,
}

fn kit(tool_tokens: bool) -> Kit {
    let tokenizer = Arc::new(json_tokenizer::json_tokenizer(tool_tokens));
    let after_close = "\n".to_owned();
    let tags = ThinkTags { open: "<think>".into(), close: "</think>".into(), after_close };
    let forced = ForcedClose::new(&tokenizer, &tags, None).unwrap();
    let table = Arc::new(Table(Arc::clone(&tokenizer)));
    let bytes = |id: u32| table.bytes(id).to_vec();
    let texts = TagTexts {
        open: b"<think>",
        close: b"</think>",
        tool_open: b"<TOOLCALL>[",
        separator: b"\n",
    };
    let vocab = ThinkingVocab::new(texts, forced.partial, 64, bytes).unwrap();
    let insertion =
        Insertion::new(&vocab, b"", forced.after_newline, forced.mid_line, bytes).unwrap();
    Kit {
        model: Arc::new(random_model::random_model(64)),
        grammars: Grammars::new(tokenizer, vec![2, 5]),
        table,
        vocab: Arc::new(vocab),
        insertion: Arc::new(insertion),
    }
}

impl Kit {
    fn request(&self, seed: u64, constraint: Option<Box<dyn Constraint>>) -> GenerationRequest {
        GenerationRequest {
            prompt: vec![4, 20 + seed as u32 % 30, 6],
            sampling: SamplingParams {
                temperature: 1.5,
                seed: Some(seed),
                max_tokens: Some(600),
                ..SamplingParams::default()
            },
            thinking: ThinkingParams::default(),
            start: Start::Open { tail: Vec::new() },
            insertion: Arc::clone(&self.insertion),
            reserve_answer: true,
            tools: false,
            eos_token_ids: vec![2, 5],
            constraint,
            priority: 0,
            cache_salt: 0,
            cache_points: Vec::new(),
            prompt_logprobs: None,
        }
    }

    fn run(&self, requests: &[GenerationRequest], drafts: usize) -> Vec<Story> {
        let config = EngineConfig {
            max_model_len: 2048,
            num_speculative_tokens: drafts,
            ..EngineConfig::default()
        };
        let table = Arc::clone(&self.table) as Arc<dyn TokenTable>;
        let cpu = Arc::new(Cpu::new(Isa::best(), 1));
        let vocab = Arc::clone(&self.vocab);
        let mut engine = Engine::new(Arc::clone(&self.model), cpu, vocab, table, config);
        let ids: Vec<_> = requests.iter().map(|r| engine.add(r.clone()).unwrap()).collect();
        let (mut tokens, mut ends) = (HashMap::<_, Vec<_>>::new(), HashMap::new());
        let mut events = Vec::new();
        while !engine.is_idle() {
            engine.step(&mut events);
            for event in events.drain(..) {
                match event {
                    Event::Prefill { .. } | Event::PromptLogprobs(_) => {}
                    Event::Token(token) => tokens.entry(token.sequence).or_default().push(token),
                    Event::Finish(end) => drop(ends.insert(end.sequence, end)),
                }
            }
        }
        let story = |id| {
            let end: FinishEvent = ends.remove(&id).unwrap();
            let (mut held, mut answer, mut tool) = (Vec::new(), Vec::new(), Vec::new());
            let mut split = |phase, bytes: &[u8]| match phase {
                Phase::Answer => answer.extend_from_slice(bytes),
                Phase::Tool => tool.extend_from_slice(bytes),
                Phase::Thinking | Phase::Tag => {}
            };
            let tokens = tokens.remove(&id).unwrap_or_default();
            for token in &tokens {
                held.extend_from_slice(self.table.bytes(token.token));
                token.step.runs.drain(&mut held, &mut split);
            }
            end.runs.drain(&mut held, &mut split);
            let tokens = tokens.iter().map(|token| token.token).collect();
            let text = |bytes| String::from_utf8(bytes).unwrap();
            Story { tokens, answer: text(answer), tool: text(tool), end }
        };
        ids.into_iter().map(story).collect()
    }

    /// The stories, the same with and without drafts; and how many guesses came true.
    fn run_both(&self, requests: &[GenerationRequest]) -> (Vec<Story>, usize) {
        let (plain, drafted) = (self.run(requests, 0), self.run(requests, 8));
        for (plain, drafted) in plain.iter().zip(&drafted) {
            assert_eq!(plain.tokens, drafted.tokens);
            assert_eq!(plain.end.reason, drafted.end.reason);
            assert_eq!(plain.end.error, drafted.end.error);
        }
        let accepted = |story: &Story| story.end.speculation.map_or(0, |report| report.accepted);
        (plain, drafted.iter().map(accepted).sum())
    }
}

#[test]
fn answers_satisfy_their_schema_after_every_cut() {
    let kit = kit(false);
    let (mut numbers, mut requests, mut asked) = (Numbers(3), Vec::new(), Vec::new());
    for seed in 0..12 {
        let schema = random_schema(&mut numbers, 2);
        let spec = GrammarSpec::JsonSchema(schema.clone());
        for budget in BUDGETS {
            for greedy in [false, true] {
                let constraint = kit.grammars.constraint(&spec).unwrap();
                let mut request = kit.request(seed, Some(constraint));
                request.thinking.budget = Some(budget);
                if greedy {
                    request.sampling.temperature = 0.0;
                }
                requests.push(request);
                asked.push((schema.clone(), budget));
            }
        }
        // Thinking that the prompt closed, and none at all.
        for start in [Start::Absent, Start::Closed { tail: Vec::new() }] {
            let mut request = kit.request(seed, Some(kit.grammars.constraint(&spec).unwrap()));
            request.start = start;
            requests.push(request);
            asked.push((schema.clone(), 0));
        }
    }
    let mut thought = 0;
    let (stories, accepted) = kit.run_both(&requests);
    assert!(accepted > 0, "no draft came true");
    for (story, (schema, budget)) in stories.iter().zip(asked) {
        let Story { answer, tool, end, .. } = story;
        assert_eq!((end.reason, &end.error), (FinishReason::Stop, &None), "{answer}");
        let value: Value = serde_json::from_str(answer).unwrap_or_else(|e| panic!("{answer}: {e}"));
        assert!(satisfies(&value, &schema), "{schema}\n{answer}");
        assert!(tool.is_empty());
        let grace = hybra_engine::Grace::Default.tokens(budget as u32);
        assert!(end.budget.used <= budget as u32 + grace, "{:?}", end.budget);
        thought += end.budget.used;
    }
    assert!(thought > 100, "the model did not think");
}

#[test]
fn required_tools_are_called_after_every_cut() {
    for tool_tokens in [false, true] {
        let kit = kit(tool_tokens);
        let parameters = json!({
            "type": "object", "properties": { "a": { "enum": ["b", 1, null] } },
            "required": ["a"], "additionalProperties": false,
        });
        let add = ToolSpec { name: "add".to_owned(), parameters: Some(parameters), strict: false };
        let tools = Tools { specs: vec![add], choice: ToolChoice::Required, single: true };
        let requests: Vec<_> = (0..6)
            .flat_map(|seed| BUDGETS.map(|budget| (seed, budget)))
            .map(|(seed, budget)| {
                let constraint = kit.grammars.tool_constraint(&tools, None).unwrap();
                let mut request = kit.request(seed, constraint);
                request.thinking.budget = Some(budget);
                request.tools = true;
                if tool_tokens {
                    // A call may also begin in the section.
                    request.sampling.logit_bias = vec![(62, 40.0), (10, 40.0)];
                }
                request
            })
            .collect();
        let mut in_section = 0;
        for Story { answer, tool, end, .. } in kit.run_both(&requests).0 {
            assert_eq!((end.reason, end.error), (FinishReason::Stop, None), "{answer} {tool}");
            assert_eq!(answer, "");
            let mut parser = ToolCallParser::new();
            let deltas = parser.push(&tool);
            assert!(parser.finish().is_empty() && parser.num_calls() == 1, "{tool}");
            let ToolDelta::Arguments { fragment, .. } = &deltas[1] else { panic!("{deltas:?}") };
            let arguments: Value = serde_json::from_str(fragment).unwrap();
            assert!(arguments["a"] == "b" || arguments["a"] == 1 || arguments["a"].is_null());
            in_section += usize::from(end.budget.ended_by == Some(hybra_engine::EndedBy::ToolCall));
        }
        assert_eq!(in_section > 0, tool_tokens, "calls in the section");
    }
}

/// Minimum, ignored end and bias do not break a grammar; a dead end ends its sequence alone.
#[test]
fn limits_and_dead_ends() {
    let kit = kit(false);
    let choice = |text: &str| {
        let spec = GrammarSpec::Choice(vec![text.to_owned()]);
        Some(kit.grammars.constraint(&spec).unwrap())
    };
    let closed = |constraint| {
        let mut request = kit.request(1, constraint);
        request.start = Start::Closed { tail: b"x".to_vec() };
        request
    };
    // `4` is in no token; the end would be, were it not for the minimum.
    let dead = closed(choice("a4"));
    let mut minimum = closed(choice("tea"));
    minimum.sampling.min_tokens = 50;
    let regex = GrammarSpec::Regex("ab*".to_owned());
    let mut ignored = closed(Some(kit.grammars.constraint(&regex).unwrap()));
    ignored.sampling.ignore_eos = true;
    ignored.sampling.max_tokens = Some(30);
    let mut biased = closed(choice("tea"));
    biased.sampling.logit_bias = vec![(19, 100.0), (2, 100.0)];
    let mut short = closed(choice("teateateatea"));
    short.sampling.max_tokens = Some(4);
    let none = closed(Some(kit.grammars.constraint(&GrammarSpec::Regex(String::new())).unwrap()));
    let mut forbidden = closed(choice("tea"));
    forbidden.sampling.logit_bias = (8..62).map(|id| (id, -100.0)).collect();
    let free = closed(None);
    let all = [dead, minimum, ignored, biased, short, none, forbidden, free];
    let stories = kit.run(&all, 0);
    let ends: Vec<_> = stories.iter().map(|s| (s.end.reason, s.answer.as_str())).collect();
    assert_eq!(ends[0], (FinishReason::Failed, "a"));
    let error = stories[0].end.error.as_deref().unwrap();
    assert!(error.starts_with("constraint: a dead end"), "{error}");
    assert_eq!(ends[1], (FinishReason::Stop, "tea"));
    assert_eq!(ends[2].0, FinishReason::Length);
    assert_eq!(ends[2].1.len(), 30);
    assert!(ends[2].1.trim_start_matches('a').chars().all(|c| c == 'b'), "{}", ends[2].1);
    assert_eq!(ends[3], (FinishReason::Stop, "tea"));
    assert_eq!(ends[4].0, FinishReason::Length);
    assert_eq!(ends[5], (FinishReason::Stop, ""));
    assert_eq!(ends[6], (FinishReason::Stop, "tea"), "a bias forbids nothing that is needed");
    assert!(ends[7].0 != FinishReason::Failed);
}

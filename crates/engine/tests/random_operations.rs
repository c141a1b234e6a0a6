//! Random sequences of operations on engines of random settings: every sequence has the tokens and
//! log-probabilities that it has alone, to the bit.

mod support;

use hybra_engine::{Engine, EngineConfig, FinishReason, GenerationRequest, SequenceId};
use hybra_kernels::ops::attention::KvDtype;
use hybra_model::StateBytes;
use std::collections::HashMap;
use support::{Kit, Numbers, Output, Outputs, run};

/// Prompts with much in common, and requests of all kinds.
struct Requests<'k> {
    kit: &'k Kit,
    numbers: Numbers,
    texts: Vec<Vec<u32>>,
}

impl Requests<'_> {
    fn prompt(&mut self) -> Vec<u32> {
        let text = self.numbers.below(self.texts.len());
        let len = 1 + self.numbers.below(self.texts[text].len() - 40);
        let end = self.numbers.below(40);
        [&self.texts[text][..len], &self.numbers.tokens(end)].concat()
    }

    fn next(&mut self) -> GenerationRequest {
        let (prompt, seed) = (self.prompt(), self.numbers.below(1000) as u64);
        let max_tokens = 1 + self.numbers.below(80) as u32;
        let mut request = match self.numbers.below(3) {
            0 => self.kit.thinking(&prompt, seed, max_tokens),
            _ => self.kit.request(&prompt, seed, max_tokens),
        };
        request.sampling.temperature = [0.0, 0.3, 1.0][self.numbers.below(3)];
        request.priority = self.numbers.below(3) as i32;
        request.cache_salt = self.numbers.below(8) as u64 / 7;
        request.cache_points = vec![self.numbers.below(300), 300 + self.numbers.below(300)];
        request
    }
}

fn settings(kit: &Kit, numbers: &mut Numbers) -> EngineConfig {
    let costs = StateBytes::of(kit.model.config(), KvDtype::Bf16);
    let num_speculative_tokens = [0, 3][numbers.below(2)];
    let draft = if num_speculative_tokens > 0 { costs.draft + 4 * costs.draft_token } else { 0 };
    let alone = costs.at(832) + draft;
    EngineConfig {
        max_num_seqs: 1 + numbers.below(4),
        max_num_batched_tokens: [64, 128, 512][numbers.below(3)],
        max_prefill_while_decoding: [0, 16, 64, 100][numbers.below(4)],
        num_speculative_tokens,
        cache_memory: [0, 2 * costs.at(512), 1 << 30][numbers.below(3)],
        state_memory: [None, Some(alone), Some(2 * alone)][numbers.below(3)],
        ..EngineConfig::default()
    }
}

/// Cancels, answers now, warms up, or does nothing.
fn disturb(engine: &mut Engine, requests: &mut Requests, ids: &[SequenceId]) -> Disturbed {
    let numbers = &mut requests.numbers;
    let any = (!ids.is_empty()).then(|| ids[numbers.below(ids.len())]);
    match (numbers.below(12), any) {
        (0, Some(id)) if engine.cancel(id) => Disturbed::Cancelled,
        (1, Some(id)) if engine.end_thinking(id) => Disturbed::Answered(id),
        (2 | 3, _) => {
            engine.warm(requests.prompt(), 0);
            Disturbed::Nothing
        }
        _ => Disturbed::Nothing,
    }
}

enum Disturbed {
    Nothing,
    Cancelled,
    /// Its thinking was ended after as many tokens as it has.
    Answered(SequenceId),
}

/// Runs a request alone, its thinking ended after `answered` tokens.
fn alone(kit: &Kit, request: GenerationRequest, answered: Option<usize>) -> Output {
    let mut engine = kit.engine(EngineConfig::default());
    let Some(after) = answered else { return run(&mut engine, request) };
    let id = engine.add(request).unwrap();
    let mut outputs = Outputs::default();
    while outputs.0.get(&id).map_or(0, |output| output.tokens.len()) < after {
        outputs.step(&mut engine);
    }
    assert!(engine.end_thinking(id));
    outputs.drain(&mut engine);
    outputs.0.remove(&id).unwrap()
}

#[test]
fn everyone_has_the_tokens_they_have_alone() {
    let kit = Kit::new();
    let (mut hits, mut preemptions, mut cancelled, mut answers) = (0, 0, 0, 0);
    for case in 0..12 {
        let mut numbers = Numbers(case);
        let config = settings(&kit, &mut numbers);
        let mut engine = kit.engine(config.clone());
        let texts = (0..3).map(|_| numbers.tokens(600)).collect();
        let mut requests = Requests { kit: &kit, numbers, texts };
        let mut sent: HashMap<SequenceId, GenerationRequest> = HashMap::new();
        let mut answered = HashMap::new();
        let mut ids = Vec::new();
        let mut outputs = Outputs::default();
        for _ in 0..8 {
            let request = requests.next();
            let count = [1, 1, 1, 3][requests.numbers.below(4)];
            let choice = |i| {
                let mut choice = request.clone();
                choice.sampling.seed = request.sampling.seed.map(|seed| seed + i);
                choice
            };
            let choices: Vec<_> = (0..count).map(choice).collect();
            let added = engine.add_choices(choices.clone()).unwrap();
            sent.extend(added.iter().copied().zip(choices));
            ids.extend(added);
            for _ in 0..requests.numbers.below(25) {
                match disturb(&mut engine, &mut requests, &ids) {
                    Disturbed::Cancelled => cancelled += 1,
                    Disturbed::Answered(id) => {
                        let so_far = outputs.0.get(&id).map_or(0, |output| output.tokens.len());
                        answered.entry(id).or_insert(so_far);
                        answers += 1;
                    }
                    Disturbed::Nothing => {}
                }
                outputs.step(&mut engine);
                let stats = engine.stats();
                let limit = config.state_memory.unwrap_or(usize::MAX);
                assert!(stats.cache_bytes <= config.cache_memory, "case {case}: {stats:?}");
                assert!(stats.state_bytes + stats.cache_bytes <= limit, "case {case}: {stats:?}");
            }
        }
        outputs.drain(&mut engine);
        hits += engine.stats().counters.cache_hit_tokens;
        preemptions += engine.stats().counters.preemptions;
        for (id, request) in sent {
            let output = &outputs.0[&id];
            let end = output.end.as_ref().expect("every sequence ends");
            let alone = alone(&kit, request, answered.get(&id).copied());
            match end.reason {
                FinishReason::Cancelled => {
                    assert_eq!(output.tokens, alone.tokens[..output.tokens.len()], "case {case}");
                }
                reason => {
                    assert_eq!(output.tokens, alone.tokens, "case {case}, {config:?}");
                    assert_eq!(Some(reason), alone.end.map(|end| end.reason));
                }
            }
        }
    }
    assert!(hits > 1000 && preemptions > 5, "{hits} hits, {preemptions} preemptions");
    assert!(cancelled > 3 && answers > 3, "{cancelled} cancelled, {answers} answered now");
}

//! Drafts change no token, no log-probability, no count and no end: only the number of steps.

use super::*;
use hybra_engine::{Drafter, SpeculationReport};

/// What happened to a sequence, in words; floats keep all their digits.
#[derive(Debug, Default, PartialEq)]
struct Story {
    tokens: Vec<u32>,
    events: Vec<String>,
    end: String,
}

/// Runs the requests; their stories, what drafts brought, and the steps taken.
fn run(
    engine: &mut Engine,
    requests: &[GenerationRequest],
) -> (Vec<Story>, SpeculationReport, usize) {
    let ids: Vec<_> = requests.iter().map(|r| engine.add(r.clone()).unwrap()).collect();
    let mut stories: HashMap<_, _> = ids.iter().map(|&id| (id, Story::default())).collect();
    let (mut events, mut total, mut steps) = (Vec::new(), SpeculationReport::default(), 0);
    while !engine.is_idle() {
        engine.step(&mut events);
        steps += 1;
        assert!(steps < 100_000, "the engine does not come to rest");
        for event in events.drain(..) {
            match event {
                Event::Prefill { .. } | Event::PromptLogprobs(_) => {}
                Event::Token(t) => {
                    let story = stories.get_mut(&t.sequence).unwrap();
                    assert!(story.end.is_empty(), "a token after the end");
                    story.tokens.push(t.token);
                    story.events.push(format!("{t:?}"));
                }
                Event::Finish(mut end) => {
                    let report = end.speculation.take().unwrap_or_default();
                    assert!(report.accepted <= report.drafted, "{report:?}");
                    total.drafted += report.drafted;
                    total.accepted += report.accepted;
                    stories.get_mut(&end.sequence).unwrap().end = format!("{end:?}");
                }
            }
        }
    }
    (ids.iter().map(|id| stories.remove(id).unwrap()).collect(), total, steps)
}

fn assert_same(got: &[Story], want: &[Story], what: &str) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.tokens, want.tokens, "{what}: tokens of request {i}");
        assert_eq!(got, want, "{what}: request {i}");
    }
    assert_eq!(got.len(), want.len());
}

/// Everything a request can ask for that decides tokens and ends.
fn requests(kit: &Kit) -> Vec<GenerationRequest> {
    let base = kit.request(PROGRAMS[0]);
    let with = |change: &dyn Fn(&mut GenerationRequest)| {
        let mut request = base.clone();
        change(&mut request);
        request
    };
    let mut all: Vec<_> = PROGRAMS.iter().map(|p| kit.request(p)).collect();
    for budget in [0, 1, 7, -1] {
        for grace in [Grace::Default, Grace::Tokens(0)] {
            all.push(with(&|r| {
                r.thinking = ThinkingParams { budget: Some(budget), grace, ..Default::default() };
                r.sampling.logprobs = Some(2);
            }));
        }
    }
    // Loops, of prompts that need more than one chunk too.
    for (repeat, seed) in [(1, None), (9, None), (1, Some(1)), (9, Some(2)), (30, Some(3))] {
        let mut request = kit.request(&PROGRAMS[3].repeat(repeat));
        request.sampling = SamplingParams {
            temperature: if seed.is_some() { 0.9 } else { 0.0 },
            seed,
            ignore_eos: true,
            max_tokens: Some(97),
            logprobs: seed.map(|_| 3),
            ..SamplingParams::default()
        };
        all.push(request);
    }
    for max_tokens in [1, 2, 3, 5, 11, 23] {
        all.push(with(&|r| r.sampling.max_tokens = Some(max_tokens)));
        all.push(with(&|r| {
            r.reserve_answer = false;
            r.sampling.max_tokens = Some(max_tokens);
        }));
    }
    let digits = || ["0", "3", "7"].map(|d| kit.tokenizer.token_to_id(d).unwrap()).to_vec();
    all.push(with(&|r| r.sampling.stop_token_ids = digits()));
    all.push(with(&|r| {
        r.sampling.stop_token_ids = digits();
        r.thinking.stop_in_thinking = true;
    }));
    all.push(with(&|r| {
        r.sampling.stop_token_ids = digits();
        r.sampling.min_tokens = 40;
    }));
    all.push(with(&|r| r.thinking.min_thinking_tokens = 60));
    all.push(with(&|r| {
        r.sampling.repetition_penalty = 1.3;
        r.sampling.frequency_penalty = 0.4;
        r.sampling.presence_penalty = -0.3;
        r.sampling.logit_bias = vec![(5, 1.5), (9, -2.0)];
    }));
    for seed in 0..6 {
        let sampled = |r: &mut GenerationRequest| {
            r.sampling.temperature = 0.7 + 0.2 * seed as f32;
            r.sampling.top_p = 0.9;
            r.sampling.seed = Some(seed);
            r.sampling.frequency_penalty = 0.1 * seed as f32;
        };
        all.push(with(&sampled));
        all.push(with(&|r| {
            sampled(r);
            r.thinking.budget = Some(7);
        }));
    }
    all
}

/// Guesses from the plain outputs with mistakes strewn in, so that drafts end at every place.
struct Oracle {
    texts: Arc<Vec<Vec<u32>>>,
    /// One guess in so many is wrong; 0: none.
    mistakes: u64,
    numbers: u64,
}

impl Oracle {
    fn number(&mut self) -> u64 {
        self.numbers = self.numbers.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.numbers >> 33
    }
}

impl Drafter for Oracle {
    fn draft(&mut self, tokens: &[u32], most: usize, draft: &mut Vec<u32>) {
        let texts = Arc::clone(&self.texts);
        let text = texts.iter().find(|text| text.starts_with(tokens));
        for at in tokens.len()..tokens.len() + most {
            let known = text.and_then(|text| text.get(at));
            let wrong = self.mistakes > 0 && self.number().is_multiple_of(self.mistakes);
            match known.filter(|_| !wrong) {
                Some(&token) => draft.push(token),
                None => draft.push(self.number() as u32 % 512),
            }
        }
    }
}

fn texts(requests: &[GenerationRequest], stories: &[Story]) -> Arc<Vec<Vec<u32>>> {
    let text = |(r, s): (&GenerationRequest, &Story)| [&r.prompt[..], &s.tokens].concat();
    Arc::new(requests.iter().zip(stories).map(text).collect())
}

#[test]
fn prompt_lookup_changes_no_event() {
    let kit = kit();
    let all = requests(&kit);
    for isa in Isa::available() {
        let best = isa == Isa::best();
        let requests: Vec<_> = all.iter().step_by(if best { 1 } else { 5 }).cloned().collect();
        let (plain, none, _) = run(&mut kit.engine(isa, 4, 512), &requests);
        assert_eq!(none, SpeculationReport::default());
        let engines = [(7, 64, 3), (1, 512, 8), (40, 128, 1), (40, 2048, 32)];
        for (seqs, tokens, most) in &engines[..if best { 4 } else { 1 }] {
            let mut engine = kit.drafting_engine(isa, *seqs, *tokens, *most);
            let (got, report, _) = run(&mut engine, &requests);
            assert_same(&got, &plain, &format!("{isa}, {seqs} sequences, {most} tokens"));
            assert!(report.accepted > requests.len(), "{report:?}");
        }
    }
}

#[test]
fn no_draft_changes_an_event() {
    let kit = kit();
    let requests = requests(&kit);
    let (plain, ..) = run(&mut kit.engine(Isa::best(), 16, 512), &requests);
    let texts = texts(&requests, &plain);
    for (mistakes, seqs, tokens, most) in
        [(0, 40, 64, 8), (2, 9, 64, 5), (6, 3, 512, 13), (1, 9, 64, 8)]
    {
        let mut engine = kit.drafting_engine(Isa::best(), seqs, tokens, most);
        let texts = Arc::clone(&texts);
        engine.set_drafter(move || {
            Box::new(Oracle { texts: Arc::clone(&texts), mistakes, numbers: 7 * mistakes })
        });
        let (got, report, _) = run(&mut engine, &requests);
        let what = format!("one mistake in {mistakes}, {seqs} sequences, {most} tokens");
        assert_same(&got, &plain, &what);
        assert!(report.drafted > 100, "{what}: {report:?}");
    }
}

/// Every step brings one token more than were accepted, and no step is longer than it may be.
#[test]
fn accepted_tokens_save_steps_within_the_token_limit() {
    let kit = kit();
    let mut request = kit.request(PROGRAMS[0]);
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = Some(120);
    let (plain, _, plain_steps) = run(&mut kit.engine(Isa::best(), 1, 512), &[request.clone()]);
    let texts = texts(&[request.clone()], &plain);
    let oracle = move || {
        let texts = Arc::clone(&texts);
        Box::new(Oracle { texts, mistakes: 0, numbers: 1 }) as Box<dyn Drafter>
    };
    let mut engine = kit.drafting_engine(Isa::best(), 1, 512, 8);
    engine.set_drafter(oracle.clone());
    let (_, report, steps) = run(&mut engine, &[request.clone()]);
    // The first token comes from the prompt alone, 117 in thirteen steps of nine, two in the last.
    assert_eq!((plain_steps, steps), (120, 15));
    assert_eq!((report.drafted, report.accepted), (105, 105));

    let mut engine = kit.drafting_engine(Isa::best(), 20, 64, 8);
    engine.set_drafter(oracle);
    for _ in 0..20 {
        engine.add(request.clone()).unwrap();
    }
    let (mut events, mut most) = (Vec::new(), 0);
    while !engine.is_idle() {
        engine.step(&mut events);
        let tokens = events.iter().filter(|e| matches!(e, Event::Token(_))).count();
        assert!(tokens <= 64, "{tokens} tokens in a step");
        most = most.max(tokens);
        events.clear();
    }
    assert_eq!(most, 64);
}

/// A signal between steps holds from the next token on, drafts or not.
#[test]
fn answer_now_holds_at_once() {
    let kit = kit();
    let mut engine = kit.drafting_engine(Isa::best(), 2, 512, 8);
    let mut request = kit.request(PROGRAMS[0]);
    request.thinking.min_thinking_tokens = 100;
    let id = engine.add(request).unwrap();
    let mut events = Vec::new();
    for _ in 0..6 {
        engine.step(&mut events);
    }
    let thought = events.iter().filter(|e| matches!(e, Event::Token(_))).count();
    assert!(engine.end_thinking(id));
    while !engine.is_idle() {
        engine.step(&mut events);
    }
    let Some(Event::Finish(end)) = events.last() else { panic!("no end: {events:?}") };
    assert_eq!(end.budget.ended_by, Some(EndedBy::Client));
    assert_eq!(end.budget.used as usize, thought);
}

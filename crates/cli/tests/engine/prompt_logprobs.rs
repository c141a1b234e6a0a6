//! Prompts are scored as their generation was, and with the same bits in any chunking and company.

use crate::{Kit, PROGRAMS, kit};
use hybra_engine::{Engine, Event, GenerationRequest, TokenLogprob};
use hybra_kernels::Isa;

type Scores = Vec<(TokenLogprob, Vec<TokenLogprob>)>;

/// Scores of prompts, scores of generated tokens, and how many were generated, by request.
fn run(engine: &mut Engine, requests: &[GenerationRequest]) -> Vec<(Scores, Scores, usize)> {
    let ids: Vec<_> = requests.iter().map(|r| engine.add(r.clone()).unwrap()).collect();
    let mut all = vec![(Scores::new(), Scores::new(), 0); ids.len()];
    let mut events = Vec::new();
    while !engine.is_idle() {
        engine.step(&mut events);
        for event in events.drain(..) {
            let own = ids.iter().position(|&id| id == event.sequence()).unwrap();
            match event {
                Event::Prefill { .. } => {}
                Event::PromptLogprobs(scored) => {
                    assert_eq!(scored.start, all[own].0.len() + 1);
                    assert!(scored.tokens.len() <= 64);
                    all[own].0.extend(scored.tokens);
                }
                Event::Token(t) => {
                    let chosen = TokenLogprob { token: t.token, logprob: t.logprob.unwrap() };
                    all[own].1.push((chosen, t.top_logprobs));
                }
                Event::Finish(end) => all[own].2 = end.completion_tokens,
            }
        }
    }
    all
}

fn engine(kit: &Kit, max_num_batched_tokens: usize) -> Engine {
    kit.engine(Isa::available()[0], 4, max_num_batched_tokens)
}

#[test]
fn a_prompt_has_the_scores_of_its_generation() {
    let kit = kit();
    // Long enough for several chunks.
    let program = PROGRAMS.join(";");
    let mut generated = kit.request(&program);
    (generated.sampling.logprobs, generated.sampling.ignore_eos) = (Some(3), true);
    generated.sampling.max_tokens = Some(150);
    let (none, said, _) = run(&mut engine(&kit, 512), &[generated.clone()]).remove(0);
    assert!(none.is_empty() && said.len() == 150);
    let mut scored = generated.clone();
    scored.prompt.extend(said.iter().map(|(chosen, _)| chosen.token));
    scored.prompt_logprobs = Some(3);
    scored.sampling.max_tokens = Some(0);
    assert!(scored.prompt.len() > 3 * 64);
    let mut first = None;
    for batched in [64, 512] {
        let requests = [scored.clone(), generated.clone(), scored.clone()];
        let all = run(&mut engine(&kit, batched), &requests);
        for i in [0, 2] {
            let (scores, own, count) = &all[i];
            assert_eq!((scores.len(), own.len(), *count), (scored.prompt.len() - 1, 0, 0));
            for ((a, _), (b, _)) in scores[scores.len() - said.len()..].iter().zip(&said) {
                assert!(a.token == b.token && (a.logprob - b.logprob).abs() < 1e-4, "{a:?} {b:?}");
            }
            assert_eq!(scores, first.get_or_insert_with(|| scores.clone()), "{batched}");
        }
        assert_eq!(all[1].1, said);
    }
}

#[test]
fn only_a_scored_prompt_may_ask_for_no_tokens() {
    let kit = kit();
    let mut request = kit.request(PROGRAMS[0]);
    request.sampling.max_tokens = Some(0);
    let mut engine = engine(&kit, 512);
    assert!(engine.add(request.clone()).unwrap_err().to_string().starts_with("max_tokens"));
    request.prompt_logprobs = Some(21);
    assert!(engine.add(request).unwrap_err().to_string().starts_with("prompt_logprobs"));
}

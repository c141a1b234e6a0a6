//! Kept states: found where they should be, never where they should not, and without a trace in
//! what is generated.

mod support;

use hybra_engine::EngineConfig;
use hybra_kernels::ops::ssm_state::SsmDtype;
use support::{Kit, Numbers, Outputs, run};

fn cached() -> EngineConfig {
    EngineConfig { cache_memory: 1 << 30, ..EngineConfig::default() }
}

/// Conversations that grow: each turn is read from the last turn's end on.
#[test]
fn a_longer_prompt_goes_on_from_the_shorter_one() {
    let kit = Kit::new();
    let tokens = Numbers(1).tokens(1500);
    let mut engine = kit.engine(cached());
    let mut cold = 0;
    for (len, cached) in [(64, 0), (65, 0), (300, 64), (301, 256), (1500, 256), (1500, 1472)] {
        let request = kit.request(&tokens[..len], 5, 20);
        let alone = run(&mut kit.engine(EngineConfig::default()), request.clone());
        let warm = run(&mut engine, request);
        let end = warm.end.unwrap();
        assert_eq!((end.cached_tokens, end.prompt_tokens), (cached, len));
        assert_eq!(warm.tokens, alone.tokens, "{len} tokens");
        assert!(warm.prefill[0] > cached && *warm.prefill.last().unwrap() == len);
        cold += len - cached;
    }
    let stats = engine.stats();
    assert_eq!(stats.counters.prefilled_tokens, cold as u64);
    assert_eq!(stats.counters.prompt_tokens, 64 + 65 + 300 + 301 + 1500 + 1500);
    assert_eq!(stats.counters.cache_hit_tokens, 64 + 256 + 256 + 1472);
    assert!(stats.cache_bytes > 0 && stats.cache_entries == 3);
}

/// The second prompt that leaves a common beginning finds where; the third starts there.
#[test]
fn branch_points_are_found_and_used() {
    let kit = Kit::new();
    let system = Numbers(2).tokens(300);
    let mut engine = kit.engine(cached());
    for (user, cached) in [(1, 0), (2, 0), (3, 256), (4, 256)] {
        let prompt = [system.clone(), Numbers(100 + user).tokens(150)].concat();
        let request = kit.request(&prompt, user, 12);
        let alone = run(&mut kit.engine(EngineConfig::default()), request.clone());
        let warm = run(&mut engine, request);
        assert_eq!(warm.end.unwrap().cached_tokens, cached, "user {user}");
        assert_eq!(warm.tokens, alone.tokens);
    }
}

#[test]
fn ends_of_messages_are_kept() {
    let kit = Kit::new();
    let tokens = Numbers(3).tokens(700);
    let mut engine = kit.engine(cached());
    let mut first = kit.request(&tokens, 1, 1);
    first.cache_points = vec![130, 330, 650];
    run(&mut engine, first);
    for (kept, cached) in [(640, 640), (500, 320), (200, 128), (100, 0)] {
        let edited = [&tokens[..kept], &[7; 90]].concat();
        let output = run(&mut engine, kit.request(&edited, 1, 1));
        assert_eq!(output.end.unwrap().cached_tokens, cached, "edited at {kept}");
    }
}

/// A changed token, or another salt, never meets a state that read something else.
#[test]
fn an_early_edit_reads_again() {
    let kit = Kit::new();
    let tokens = Numbers(4).tokens(400);
    let mut engine = kit.engine(cached());
    run(&mut engine, kit.request(&tokens, 1, 4));
    for at in [0, 63, 64, 200, 383, 384] {
        let mut edited = tokens.clone();
        edited[at] = (edited[at] + 1) % 64;
        let alone = run(&mut kit.engine(EngineConfig::default()), kit.request(&edited, 1, 16));
        let warm = run(&mut engine, kit.request(&edited, 1, 16));
        assert_eq!(warm.tokens, alone.tokens, "edited at {at}");
        assert!(warm.end.unwrap().cached_tokens <= at);
    }
    let mut other = kit.request(&tokens, 1, 4);
    other.cache_salt = 9;
    assert_eq!(run(&mut engine, other).end.unwrap().cached_tokens, 0);
}

#[test]
fn the_least_recently_used_go_and_bytes_hold() {
    let kit = Kit::new();
    let prompt = |i| Numbers(i).tokens(200);
    let mut probe = kit.engine(cached());
    run(&mut probe, kit.request(&prompt(0), 0, 1));
    let one = probe.stats().cache_bytes;
    let config = EngineConfig { cache_memory: 3 * one + one / 2, ..EngineConfig::default() };
    let mut engine = kit.engine(config);
    let hit = |engine: &mut _, i| {
        run(engine, kit.request(&prompt(i), 0, 1)).end.unwrap().cached_tokens > 0
    };
    for i in 0..3 {
        assert!(!hit(&mut engine, i));
    }
    assert!(hit(&mut engine, 0));
    assert!(!hit(&mut engine, 3));
    assert_eq!((engine.stats().cache_bytes, engine.stats().cache_entries), (3 * one, 3));
    assert!(hit(&mut engine, 0) && hit(&mut engine, 2) && !hit(&mut engine, 1));
}

/// Half the memory for the recurrent state; what follows is the continuation of rounded states.
#[test]
fn bf16_snapshots_are_smaller_and_close() {
    let kit = Kit::new();
    let tokens = Numbers(5).tokens(500);
    let mut exact = kit.engine(cached());
    let config = EngineConfig { cache_state_dtype: Some(SsmDtype::Bf16), ..cached() };
    let mut rounded = kit.engine(config);
    for engine in [&mut exact, &mut rounded] {
        run(engine, kit.request(&tokens[..300], 1, 1));
    }
    assert!(rounded.stats().cache_bytes < exact.stats().cache_bytes);
    let mut request = kit.request(&tokens, 1, 1);
    request.sampling.temperature = 0.0;
    let logprob = |output: &support::Output| f32::from_bits(output.tokens[0].1);
    let (exact, rounded) = (run(&mut exact, request.clone()), run(&mut rounded, request));
    assert_eq!(rounded.end.as_ref().unwrap().cached_tokens, 256);
    let (a, b) = (logprob(&exact), logprob(&rounded));
    assert!(a != b && (a - b).abs() < 0.05, "{a} and {b}");
}

/// One choice reads, the others start behind it; without a cache too.
#[test]
fn choices_read_their_prompt_once() {
    let kit = Kit::new();
    for config in [EngineConfig::default(), cached()] {
        let tokens = Numbers(6).tokens(500);
        let mut engine = kit.engine(config.clone());
        let requests: Vec<_> = (0..4).map(|seed| kit.request(&tokens, seed, 20)).collect();
        let ids = engine.add_choices(requests.clone()).unwrap();
        let mut outputs = Outputs::default();
        outputs.drain(&mut engine);
        for (id, request) in ids.iter().zip(requests.clone()) {
            let alone = run(&mut kit.engine(EngineConfig::default()), request);
            assert_eq!(outputs.0[id].tokens, alone.tokens);
            assert_eq!(outputs.end(*id).cached_tokens, 0);
        }
        let counters = engine.stats().counters;
        assert_eq!((counters.prompt_tokens, counters.prefilled_tokens), (500, 500 + 3 * 52));
        // The same again, from the cache if there is one.
        let ids = engine.add_choices(requests).unwrap();
        outputs.drain(&mut engine);
        let cached = if config.cache_memory > 0 { 448 } else { 0 };
        assert!(ids.iter().all(|id| outputs.end(*id).cached_tokens == cached));
    }
}

#[test]
fn a_choice_takes_over_from_one_that_is_gone() {
    let kit = Kit::new();
    let tokens = Numbers(7).tokens(2000);
    let mut engine = kit.engine(EngineConfig::default());
    let requests: Vec<_> = (0..3).map(|seed| kit.request(&tokens, seed, 9)).collect();
    let ids = engine.add_choices(requests.clone()).unwrap();
    let mut outputs = Outputs::default();
    outputs.step(&mut engine);
    assert_eq!((engine.stats().running, engine.stats().waiting), (1, 2));
    assert!(engine.cancel(ids[0]));
    outputs.drain(&mut engine);
    for i in [1, 2] {
        let alone = run(&mut kit.engine(EngineConfig::default()), requests[i].clone());
        assert_eq!(outputs.0[&ids[i]].tokens, alone.tokens);
    }
    assert_eq!(engine.stats().counters.prefilled_tokens, 512 + 2000 + 2000 - 1984);
}

/// Read in idle time, one chunk a step; a request comes between.
#[test]
fn the_next_turn_is_warm() {
    let kit = Kit::new();
    let tokens = Numbers(8).tokens(1000);
    let mut engine = kit.engine(cached());
    run(&mut engine, kit.request(&tokens[..500], 1, 4));
    assert!(engine.warm(tokens[..900].to_vec(), 0));
    let before = engine.stats().counters.prefilled_tokens;
    let mut outputs = Outputs::default();
    outputs.step(&mut engine);
    assert_eq!(engine.stats().counters.prefilled_tokens, before + 64);
    let other = Numbers(9).tokens(100);
    let id = engine.add(kit.request(&other, 1, 4)).unwrap();
    outputs.step(&mut engine);
    assert_eq!(outputs.0[&id].prefill, [64], "a request goes first");
    outputs.drain(&mut engine);
    assert_eq!(engine.stats().warm_pending, 0);
    let next = run(&mut engine, kit.request(&tokens, 1, 10));
    let alone = run(&mut kit.engine(EngineConfig::default()), kit.request(&tokens, 1, 10));
    assert_eq!(next.end.unwrap().cached_tokens, 896);
    assert_eq!(next.tokens, alone.tokens);
}

#[test]
fn warm_ups_are_bounded_and_checked() {
    let kit = Kit::new();
    assert!(!kit.engine(EngineConfig::default()).warm(vec![1; 100], 0), "no cache");
    let mut engine = kit.engine(cached());
    assert!(!engine.warm(vec![1; 63], 0) && !engine.warm(vec![64; 100], 0));
    for i in 0..10 {
        assert!(engine.warm(Numbers(i % 6).tokens(100), 0));
    }
    assert_eq!(engine.stats().warm_pending, 4);
    Outputs::default().drain(&mut engine);
    assert_eq!(engine.stats().cache_entries, 4);
}

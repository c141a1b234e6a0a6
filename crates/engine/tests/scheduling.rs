//! Who runs when: priorities, fairness, smooth streams, memory. None of it changes a bit.

mod support;

use hybra_engine::{EngineConfig, FinishReason, GenerationRequest};
use hybra_kernels::ops::attention::KvDtype;
use hybra_model::StateBytes;
use support::{Kit, Numbers, Outputs, run};

fn costs(kit: &Kit) -> StateBytes {
    StateBytes::of(kit.model.config(), KvDtype::Bf16)
}

#[test]
fn a_better_priority_takes_the_place_and_gives_it_back() {
    let kit = Kit::new();
    let config = EngineConfig { max_num_seqs: 2, ..EngineConfig::default() };
    let mut engine = kit.engine(config);
    let requests: Vec<_> = (0..4).map(|i| kit.request(&Numbers(i).tokens(90), i, 60)).collect();
    let mut ids = Vec::new();
    let mut outputs = Outputs::default();
    for (i, priority) in [(0, 5), (1, 5), (2, 5), (3, -1)] {
        let mut request = requests[i].clone();
        request.priority = priority;
        ids.push(engine.add(request).unwrap());
        for _ in 0..5 {
            outputs.step(&mut engine);
        }
    }
    assert_eq!((engine.stats().running, engine.stats().waiting), (2, 2));
    assert_eq!(engine.stats().counters.preemptions, 1);
    assert!(!outputs.0[&ids[3]].tokens.is_empty(), "the best runs");
    assert!(!outputs.0.contains_key(&ids[2]), "the last of equals waits");
    let paused = outputs.0[&ids[1]].tokens.len();
    outputs.step(&mut engine);
    assert_eq!(outputs.0[&ids[1]].tokens.len(), paused);
    outputs.drain(&mut engine);
    for (id, request) in ids.iter().zip(requests) {
        let alone = run(&mut kit.engine(EngineConfig::default()), request);
        assert_eq!(outputs.0[id].tokens, alone.tokens, "{id:?}");
    }
}

#[test]
fn running_streams_get_a_token_in_every_step_and_short_prompts_do_not_wait() {
    let kit = Kit::new();
    let mut engine = kit.engine(EngineConfig::default());
    let stream = engine.add(kit.request(&[1; 10], 0, 3000)).unwrap();
    let mut outputs = Outputs::default();
    outputs.step(&mut engine);
    let long = engine.add(kit.request(&Numbers(1).tokens(3000), 1, 5)).unwrap();
    outputs.step(&mut engine);
    let short = engine.add(kit.request(&Numbers(2).tokens(100), 2, 5)).unwrap();
    for step in 2..14 {
        let before = engine.stats().counters.prefilled_tokens;
        outputs.step(&mut engine);
        assert_eq!(outputs.0[&stream].tokens.len(), step + 1);
        // At first two wait for one.
        let most = if step < 4 { 128 } else { 64 };
        assert!(engine.stats().counters.prefilled_tokens - before <= most, "step {step}");
    }
    assert_eq!(outputs.0[&short].tokens.len(), 5);
    assert_eq!(outputs.0[&short].prefill, [64, 100]);
    assert!(outputs.0[&long].tokens.is_empty());
    engine.cancel(stream);
    engine.cancel(long);
    outputs.drain(&mut engine);
    assert_eq!(outputs.end(long).reason, FinishReason::Cancelled);
}

/// A piece goes through the layers while a stream goes on, whatever becomes of either.
#[test]
fn a_piece_of_a_prompt_goes_through_the_layers_between_tokens() {
    let kit = Kit::new();
    let config = EngineConfig { max_prefill_while_decoding: 16, ..EngineConfig::default() };
    let layers = kit.model.config().layers.len();
    let steps = layers.div_ceil((16 * layers).div_ceil(64));
    assert!(steps > 1, "{layers} layers");
    let late = kit.request(&Numbers(1).tokens(100), 1, 5);
    let alone = run(&mut kit.engine(EngineConfig::default()), late.clone());
    let mut outputs = Outputs::default();
    let begun = |max_num_seqs, outputs: &mut Outputs| {
        let mut engine = kit.engine(EngineConfig { max_num_seqs, ..config.clone() });
        let stream = engine.add(kit.request(&[1; 10], 0, 3000)).unwrap();
        outputs.step(&mut engine);
        let late = engine.add(late.clone()).unwrap();
        outputs.step(&mut engine);
        (engine, stream, late)
    };

    let (mut engine, stream, id) = begun(16, &mut outputs);
    for step in 1..steps {
        assert!(!outputs.0.contains_key(&id), "step {step} of {steps}");
        outputs.step(&mut engine);
        assert_eq!(outputs.0[&stream].tokens.len(), step + 2);
    }
    assert_eq!(outputs.0[&id].prefill, [64]);
    engine.cancel(stream);
    outputs.step(&mut engine);
    assert_eq!(outputs.0[&id].prefill, [64, 100], "nobody waits for tokens");
    outputs.drain(&mut engine);
    assert_eq!(outputs.0.remove(&id).unwrap().tokens, alone.tokens);

    // The stream ends with the piece under way: it is read to its end.
    outputs = Outputs::default();
    let (mut engine, stream, id) = begun(16, &mut outputs);
    engine.cancel(stream);
    outputs.step(&mut engine);
    assert_eq!(outputs.0[&id].prefill, [64]);
    outputs.drain(&mut engine);
    assert_eq!(outputs.0.remove(&id).unwrap().tokens, alone.tokens);

    // Its sequence ends: another begins with a piece of its own.
    outputs = Outputs::default();
    let (mut engine, _, cancelled) = begun(16, &mut outputs);
    engine.cancel(cancelled);
    let next = engine.add(late.clone()).unwrap();
    (0..steps).for_each(|_| outputs.step(&mut engine));
    assert_eq!(outputs.end(cancelled).reason, FinishReason::Cancelled);
    assert_eq!(outputs.0[&next].prefill, [64]);

    // It loses its place: the piece is read to its end first.
    outputs = Outputs::default();
    let (mut engine, stream, id) = begun(2, &mut outputs);
    let urgent = engine.add(GenerationRequest { priority: -1, ..late.clone() }).unwrap();
    outputs.step(&mut engine);
    assert_eq!((engine.stats().running, engine.stats().counters.preemptions), (2, 1));
    assert_eq!(outputs.0[&id].prefill, [64]);
    (0..100).for_each(|_| outputs.step(&mut engine));
    assert_eq!(outputs.0.remove(&urgent).unwrap().tokens, alone.tokens);
    assert_eq!(outputs.0.remove(&id).unwrap().tokens, alone.tokens);
    assert_eq!(outputs.0[&stream].tokens.len(), 103);
}

/// Growth that does not fit moves the worst to a file and back, with the same bits.
#[test]
fn memory_holds_and_a_swapped_sequence_goes_on() {
    let kit = Kit::new();
    for num_speculative_tokens in [0, 3] {
        let costs = costs(&kit);
        let draft =
            if num_speculative_tokens > 0 { costs.draft + 4 * costs.draft_token } else { 0 };
        let limit = 3 * (costs.at(192) + draft);
        let config = EngineConfig {
            state_memory: Some(limit),
            num_speculative_tokens,
            ..EngineConfig::default()
        };
        let mut engine = kit.engine(config);
        let requests: Vec<_> =
            (0..5).map(|i| kit.request(&Numbers(i).tokens(100), i, 250)).collect();
        let ids: Vec<_> = requests.iter().map(|r| engine.add(r.clone()).unwrap()).collect();
        let mut outputs = Outputs::default();
        while !engine.is_idle() {
            outputs.step(&mut engine);
            assert!(engine.stats().state_bytes <= limit, "{:?} of {limit}", engine.stats());
        }
        assert!(engine.stats().counters.preemptions > 0);
        for (id, request) in ids.iter().zip(requests) {
            let alone = run(&mut kit.engine(EngineConfig::default()), request);
            assert_eq!(outputs.0[id].tokens, alone.tokens, "{id:?}");
        }
    }
}

#[test]
fn the_cache_gives_way_to_sequences() {
    let kit = Kit::new();
    let limit = 3 * costs(&kit).at(256);
    let config = EngineConfig {
        state_memory: Some(limit),
        cache_memory: 1 << 30,
        ..EngineConfig::default()
    };
    let mut engine = kit.engine(config);
    let mut outputs = Outputs::default();
    for i in 0..4 {
        engine.add(kit.request(&Numbers(i).tokens(180), i, 1)).unwrap();
        outputs.drain(&mut engine);
    }
    assert!(engine.stats().cache_bytes > limit / 2);
    for i in 4..7 {
        engine.add(kit.request(&Numbers(i).tokens(180), i, 20)).unwrap();
    }
    let mut most = 0;
    while !engine.is_idle() {
        outputs.step(&mut engine);
        let stats = engine.stats();
        assert!(stats.state_bytes + stats.cache_bytes <= limit, "{stats:?}");
        most = most.max(stats.running);
    }
    assert!(most > 1, "sequences are not kept out by the cache");
}

#[test]
fn what_never_fits_is_refused_and_lengths_end_where_memory_does() {
    let kit = Kit::new();
    let config =
        EngineConfig { state_memory: Some(costs(&kit).at(192)), ..EngineConfig::default() };
    let mut engine = kit.engine(config);
    assert_eq!(engine.max_model_len(), 192);
    let error = engine.add(kit.request(&[1; 192], 0, 1)).unwrap_err().to_string();
    assert!(error.contains("prompt") && error.contains("memory"), "{error}");
    let output = run(&mut engine, kit.request(&[1; 150], 0, 1000));
    let end = output.end.unwrap();
    assert_eq!((end.reason, end.completion_tokens), (FinishReason::Length, 42));
    let config = EngineConfig { state_memory: Some(1000), ..EngineConfig::default() };
    assert!(kit.engine(config).add(kit.request(&[1], 0, 1)).is_err());
}

//! A sequence that panics or meets NaN ends alone; the engine, its thread and everyone else go on.

mod support;

use hybra_engine::{
    Engine, EngineConfig, EngineHandle, Event, FinishReason, SubmitError, TokenTable,
};
use hybra_model::weights::LayerWeights;
use hybra_model::{NemotronH, Weights};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::{Kit, Numbers, Outputs, Table, random_model, run};

/// Panics at one token.
struct Trap(u32);

impl TokenTable for Trap {
    fn bytes(&self, id: u32) -> &[u8] {
        assert_ne!(id, self.0, "the trap");
        Table.bytes(id)
    }
}

fn trapped(kit: &Kit) -> Engine {
    kit.engine_with(EngineConfig::default(), Arc::new(Trap(63)))
}

#[test]
fn a_panic_fails_one_sequence() {
    let kit = Kit::new();
    let mut engine = trapped(&kit);
    let requests: Vec<_> = (0..3).map(|i| kit.request(&Numbers(i).tokens(100), i, 30)).collect();
    let mut bad = requests[1].clone();
    bad.sampling.logit_bias = vec![(63, 100.0)];
    let mut clean = requests.clone();
    for request in &mut clean {
        request.sampling.logit_bias = vec![(63, -100.0)];
    }
    let ids = [&clean[0], &bad, &clean[2]].map(|r| engine.add(r.clone()).unwrap());
    let mut outputs = Outputs::default();
    outputs.drain(&mut engine);
    let end = outputs.end(ids[1]);
    assert_eq!((end.reason, end.completion_tokens), (FinishReason::Failed, 0));
    let error = end.error.as_ref().unwrap();
    assert!(error.starts_with("internal error: ") && error.contains("the trap"), "{error}");
    for i in [0, 2] {
        let alone = run(&mut kit.engine(EngineConfig::default()), clean[i].clone());
        assert_eq!(outputs.0[&ids[i]].tokens, alone.tokens);
    }
}

/// A model with a weight changed.
fn broken(change: impl FnOnce(&mut Weights)) -> Kit {
    let (config, mut weights) = random_model(64).into_parts();
    change(&mut weights);
    Kit::of(NemotronH::new(config, weights))
}

#[test]
fn a_panic_in_the_model_fails_the_batch_and_not_the_engine() {
    let kit = broken(|weights| weights.final_norm.truncate(3));
    let mut engine = kit.engine(EngineConfig::default());
    for _ in 0..2 {
        let ids = [1, 2].map(|seed| engine.add(kit.request(&[3; 70], seed, 5)).unwrap());
        let mut outputs = Outputs::default();
        outputs.drain(&mut engine);
        for id in ids {
            assert_eq!(outputs.end(id).reason, FinishReason::Failed);
            assert!(outputs.end(id).error.as_ref().unwrap().starts_with("internal error: "));
        }
    }
}

/// NaN fails what samples from it. Forced tokens need no logits, and the request that forces them
/// does not hang.
#[test]
fn nan_fails_one_sequence_and_forced_tokens_are_harmless() {
    let kit = broken(|weights| {
        let LayerWeights::Mamba2(first) = &mut weights.layers[0] else { panic!("M first") };
        first.d.fill(f32::NAN);
    });
    let mut engine = kit.engine(EngineConfig::default());
    let mut thinking = kit.thinking(&[3; 10], 1, 60);
    thinking.thinking.budget = Some(0);
    let ids = [kit.request(&[3; 10], 1, 5), thinking].map(|r| engine.add(r).unwrap());
    let mut outputs = Outputs::default();
    outputs.drain(&mut engine);
    for id in ids {
        let end = outputs.end(id);
        assert_eq!(end.reason, FinishReason::Failed);
        assert!(end.error.as_ref().unwrap().contains("NaN"), "{:?}", end.error);
    }
    assert_eq!(outputs.end(ids[0]).completion_tokens, 0);
    assert!(outputs.end(ids[1]).completion_tokens > 0, "forced tokens came");
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sinks and callbacks that panic, sequences that fail: the thread answers the next request.
#[test]
fn the_thread_outlives_everything() {
    let kit = Kit::new();
    let handle = EngineHandle::spawn(trapped(&kit), 100).unwrap();
    handle
        .submit(vec![kit.request(&[1; 10], 1, 5)], Box::new(|_| panic!("a sink")), |_| {})
        .unwrap();
    let panics = |_: Result<_, SubmitError>| panic!("a callback");
    handle.submit(vec![kit.request(&[1; 10], 1, 5)], Box::new(|_| true), panics).unwrap();
    let (sender, events) = channel();
    let mut request = kit.request(&[1; 10], 1, 5);
    request.sampling.logit_bias = vec![(63, -100.0)];
    let sink = Box::new(move |event| sender.send(event).is_ok());
    handle.submit(vec![request], sink, |result| assert!(result.is_ok())).unwrap();
    let end = events.iter().find_map(|event| match event {
        Event::Finish(end) => Some(end),
        _ => None,
    });
    assert_eq!(end.unwrap().reason, FinishReason::Length);
    wait_for("idle", || handle.stats().running == 0 && handle.stats().waiting == 0);
}

/// Nothing is lost between the sender's count and the engine's, however requests come and go.
#[test]
fn the_number_that_wait_is_exact() {
    let kit = Kit::new();
    let engine = kit.engine(EngineConfig { max_num_seqs: 1, ..EngineConfig::default() });
    let handle = EngineHandle::spawn(engine, 8).unwrap();
    let ids = Arc::new(Mutex::new(Vec::new()));
    let submit = |len: u32| {
        let ids = Arc::clone(&ids);
        handle.submit(vec![kit.request(&[1; 10], 1, len)], Box::new(|_| true), move |accepted| {
            ids.lock().unwrap().extend(accepted.unwrap());
        })
    };
    submit(100_000).unwrap();
    wait_for("the first runs", || handle.stats().running == 1);
    assert_eq!(handle.stats().waiting, 0);
    for waiting in 0..8 {
        assert_eq!(handle.stats().waiting, waiting);
        submit(5).unwrap();
    }
    assert_eq!(submit(5), Err(SubmitError::QueueFull { waiting: 8 }));
    wait_for("all are taken", || ids.lock().unwrap().len() == 9);
    assert_eq!(handle.stats().waiting, 8);
    // A refused request leaves no trace.
    let queued = ids.lock().unwrap()[1..].to_vec();
    for id in &queued[..4] {
        handle.cancel(*id);
    }
    wait_for("four are gone", || handle.stats().waiting == 4);
    let refused = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&refused);
    let bad = kit.request(&[], 1, 1);
    handle
        .submit(vec![bad], Box::new(|_| true), move |result| {
            told.store(result.is_err(), Ordering::SeqCst);
        })
        .unwrap();
    wait_for("a refusal", || refused.load(Ordering::SeqCst));
    wait_for("four wait", || handle.stats().waiting == 4);
    handle.cancel(ids.lock().unwrap()[0]);
    wait_for("the rest ran", || handle.stats().running == 0 && handle.stats().waiting == 0);
    assert!(handle.stats().counters.generated_tokens >= 20);
}

/// A warm-up runs while nobody asks for anything, on the engine's thread.
#[test]
fn the_thread_warms_up_while_idle() {
    let kit = Kit::new();
    let config = EngineConfig { cache_memory: 1 << 30, ..EngineConfig::default() };
    let handle = EngineHandle::spawn(kit.engine(config), 8).unwrap();
    handle.warm(Numbers(1).tokens(700), 0);
    wait_for("a snapshot", || handle.stats().cache_entries == 1);
    assert_eq!(handle.stats().warm_pending, 0);
}

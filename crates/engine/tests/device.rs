//! The engine with its model on a GPU: batches, kept states, preemption and memory limits change no
//! token there, either. On the emulated device of `hybra-cuda`'s tests, or on the machine's own GPU
//! where `HYBRA_TEST_GPU` is set.

#[allow(dead_code)]
#[path = "../../cuda/tests/emulated/mod.rs"]
mod emulated;
mod support;

use hybra_cuda::{Compute, DeviceBuffer};
use hybra_engine::{
    Draw, EngineConfig, FinishReason, GenerationRequest, SampleInput, Sampler, SamplingParams,
    TokenHistory, TokenTable,
};
use hybra_kernels::ops::attention::KvDtype;
use hybra_kernels::{Cpu, Isa};
use hybra_model::{Activations, Batch, LogitsFor, NoObserver};
use std::sync::Arc;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use support::{Kit, Numbers, Outputs, random_model, run};

/// A test that fills the device has it alone.
static DEVICE: RwLock<()> = RwLock::new(());

/// A share of the device.
fn share() -> RwLockReadGuard<'static, ()> {
    DEVICE.read().unwrap_or_else(PoisonError::into_inner)
}

fn kit(compute: Compute) -> Option<Kit> {
    let gpu = emulated::gpu()?;
    let mut model = random_model(64);
    model.move_to_device(gpu, compute, 1, |_| {}).unwrap();
    Some(Kit::of(model))
}

#[test]
fn tokens_are_those_of_the_cpu() {
    let _shared = share();
    let Some(kit) = kit(Compute::F32) else { return };
    let config = EngineConfig { kv_dtype: KvDtype::F32, ..EngineConfig::default() };
    let request = kit.thinking(&Numbers(1).tokens(100), 1, 12);
    let found = run(&mut kit.engine(config.clone()), request.clone());
    let expected = run(&mut Kit::new().engine(config), request);
    let ids = |tokens: &[(u32, u32)]| tokens.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    assert_eq!(ids(&found.tokens), ids(&expected.tokens));
}

#[test]
fn a_batch_has_the_tokens_of_single_requests() {
    let _shared = share();
    for (compute, lens) in [(Compute::F32, &[3, 70][..]), (Compute::Bf16, &[3, 90, 64, 130])] {
        let Some(kit) = kit(compute) else { return };
        let requests = lens.iter().enumerate();
        let requests: Vec<_> = requests
            .map(|(i, len)| kit.request(&Numbers(i as u64).tokens(*len), i as u64, 6))
            .collect();
        let mut engine = kit.engine(EngineConfig::default());
        let ids: Vec<_> = requests.iter().map(|r| engine.add(r.clone()).unwrap()).collect();
        let mut outputs = Outputs::default();
        outputs.drain(&mut engine);
        for (id, request) in ids.iter().zip(requests) {
            let alone = run(&mut kit.engine(EngineConfig::default()), request);
            assert_eq!(outputs.0[id].tokens, alone.tokens, "{compute:?} {id:?}");
        }
    }
}

#[test]
fn a_longer_prompt_goes_on_from_the_state_of_the_shorter_one() {
    let _shared = share();
    let Some(kit) = kit(Compute::Bf16) else { return };
    let config = EngineConfig { cache_memory: 1 << 30, ..EngineConfig::default() };
    let tokens = Numbers(1).tokens(500);
    let mut engine = kit.engine(config);
    for (len, cached) in [(100, 0), (300, 64), (321, 256)] {
        let request = kit.request(&tokens[..len], 5, 4);
        let alone = run(&mut kit.engine(EngineConfig::default()), request.clone());
        let warm = run(&mut engine, request);
        assert_eq!(warm.end.unwrap().cached_tokens, cached);
        assert_eq!(warm.tokens, alone.tokens, "{len} tokens");
    }
}

/// With memory for one, the other's state goes to a file and comes back.
#[test]
fn states_that_find_no_room_go_to_files_and_come_back() {
    let _shared = share();
    let Some(kit) = kit(Compute::Bf16) else { return };
    let costs = kit.model.states().costs(KvDtype::Bf16);
    let memory = costs.at(64) + costs.at(128);
    let config = EngineConfig { state_memory: Some(memory), ..EngineConfig::default() };
    let mut engine = kit.engine(config);
    let requests = [0, 1].map(|i| kit.request(&Numbers(i).tokens(60), i, 12));
    let ids = requests.clone().map(|request| engine.add(request).unwrap());
    let mut outputs = Outputs::default();
    outputs.drain(&mut engine);
    assert!(engine.stats().counters.preemptions > 0, "{:?}", engine.stats());
    for (id, request) in ids.iter().zip(requests) {
        let alone = run(&mut kit.engine(EngineConfig::default()), request);
        assert_eq!(outputs.0[id].tokens, alone.tokens, "{id:?}");
    }
}

/// Device memory that the engine does not know is gone leaves room for two of four sequences: they
/// take turns, whether prompts are read at once or layer by layer, and no token changes.
#[test]
fn sequences_take_turns_on_a_device_that_is_full() {
    let _alone = DEVICE.write().unwrap_or_else(PoisonError::into_inner);
    let Some(kit) = kit(Compute::Bf16) else { return };
    let requests = [0, 1, 2, 3].map(|i| kit.request(&Numbers(i).tokens(70), i, 8));
    let alone = requests
        .clone()
        .map(|request| run(&mut kit.engine(EngineConfig::default()), request).tokens);
    for max_prefill_while_decoding in [64, 8] {
        let config = EngineConfig { max_prefill_while_decoding, ..EngineConfig::default() };
        let mut engine = kit.engine(config);
        // Now the buffers of a pass are there, and one state's memory.
        run(&mut engine, kit.request(&Numbers(9).tokens(150), 9, 2));
        let _ballast = fill_but(kit.model.new_state(KvDtype::Bf16).bytes() * 3 / 2);
        let mut outputs = Outputs::default();
        let ids = requests.clone().map(|request| {
            let id = engine.add(request).unwrap();
            // Those before decode when the next one comes.
            (0..3).for_each(|_| outputs.step(&mut engine));
            id
        });
        outputs.drain(&mut engine);
        let stats = engine.stats().counters;
        assert!(stats.preemptions > 0, "{max_prefill_while_decoding}: {stats:?}");
        assert_eq!(stats.prefilled_tokens, 150 + 4 * 70, "what was not read does not count");
        for (id, alone) in ids.iter().zip(&alone) {
            assert_eq!(&outputs.0[id].tokens, alone, "{max_prefill_while_decoding} {id:?}");
        }
    }
}

/// Of two requests that find no room, each fails alone and says so; the engine goes on.
#[test]
fn a_request_that_does_not_fit_alone_fails_and_says_so() {
    let _alone = DEVICE.write().unwrap_or_else(PoisonError::into_inner);
    let Some(kit) = kit(Compute::Bf16) else { return };
    let mut engine = kit.engine(EngineConfig::default());
    let ballast = fill_but(kit.model.new_state(KvDtype::Bf16).bytes() / 2);
    let requests = [0, 1].map(|i| kit.request(&Numbers(i).tokens(70), i, 4));
    let ids = requests.clone().map(|request| engine.add(request).unwrap());
    let mut outputs = Outputs::default();
    outputs.drain(&mut engine);
    for id in ids {
        let end = outputs.end(id);
        let error = end.error.as_deref().unwrap();
        assert_eq!(end.reason, FinishReason::Failed);
        let expected = "no room on the device for this request of 70 tokens alone: out of device";
        assert!(error.contains(expected), "{error}");
    }
    drop(ballast);
    for request in requests {
        let again = run(&mut engine, request.clone());
        assert_eq!(again.tokens, run(&mut kit.engine(EngineConfig::default()), request).tokens);
    }
}

/// Takes the device's memory but for `left` bytes.
fn fill_but(left: usize) -> DeviceBuffer<u8> {
    let gpu = emulated::gpu().unwrap();
    let free = usize::try_from(gpu.free_bytes().unwrap()).unwrap();
    gpu.alloc(free - left).unwrap()
}

/// Bytes of any id.
struct Wide;

impl TokenTable for Wide {
    fn bytes(&self, id: u32) -> &[u8] {
        support::Table.bytes(id % 64)
    }
}

/// What a request generates if every row of logits comes to the host whole.
fn from_whole_rows(kit: &Kit, request: &GenerationRequest) -> Vec<u32> {
    let (cpu, mut act) = (Cpu::new(Isa::best(), 1), Activations::new());
    let (mut sampler, mut state) = (Sampler::new(), kit.model.new_state(KvDtype::Bf16));
    let (mut history, mut output) = (TokenHistory::new(&request.prompt), Vec::new());
    let mut batch = Batch::single(&request.prompt, LogitsFor::Last);
    while output.len() < request.sampling.max_tokens.unwrap() as usize {
        let states = &mut [&mut state];
        let row = kit.model.forward(&cpu, &batch, states, &mut act, &mut NoObserver).unwrap();
        let draw = Draw { seed: request.sampling.seed.unwrap(), position: output.len() as u64 };
        let params = &request.sampling;
        let forbidden: &[&[u32]] = &[];
        let input = SampleInput { params, history: &history, allowed: None, forbidden, draw };
        let token = sampler.sample(row, input).unwrap();
        history.observe(token);
        output.push(token);
        batch = Batch::single(&[token], LogitsFor::Last);
    }
    output
}

/// Rows of 300 logits stay on the device unless their largest 64 leave a choice open.
#[test]
fn tokens_are_those_of_whole_rows() {
    let _shared = share();
    let Some(gpu) = emulated::gpu() else { return };
    let mut model = random_model(300);
    model.move_to_device(gpu, Compute::Bf16, 1, |_| {}).unwrap();
    let kit = Kit::of(model);
    let plain = SamplingParams::default();
    let cases = [
        (SamplingParams { temperature: 0.0, ..plain.clone() }, false),
        (SamplingParams { temperature: 0.7, top_k: 40, top_p: 0.9, ..plain.clone() }, false),
        (SamplingParams { temperature: 0.05, top_p: 0.8, ..plain.clone() }, false),
        (SamplingParams { temperature: 0.1, min_p: 0.3, ..plain.clone() }, false),
        (plain.clone(), true),
        (SamplingParams { presence_penalty: 0.5, top_k: 4, ..plain.clone() }, true),
        (SamplingParams { logit_bias: vec![(7, 3.0)], ..plain }, true),
    ];
    let mut engine = kit.engine_with(EngineConfig::default(), Arc::new(Wide));
    let mut fetched = 0;
    for (i, (sampling, takes_whole)) in cases.into_iter().enumerate() {
        let mut request = kit.request(&Numbers(i as u64).tokens(20), i as u64, 10);
        request.sampling = SamplingParams {
            seed: request.sampling.seed,
            max_tokens: request.sampling.max_tokens,
            ignore_eos: true,
            ..sampling
        };
        let expected = from_whole_rows(&kit, &request);
        let found = run(&mut engine, request.clone());
        let found: Vec<u32> = found.tokens.iter().map(|(id, _)| *id).collect();
        assert_eq!(found, expected, "{:?}", request.sampling);
        let before = std::mem::replace(&mut fetched, engine.stats().counters.logit_rows_fetched);
        assert_eq!(fetched - before, if takes_whole { 10 } else { 0 }, "{:?}", request.sampling);
    }
    // All steps but those that launched or recorded a shape for the first time, of 9 each.
    assert!(engine.stats().counters.cuda_graph_steps >= 7 * 9 - 4, "{:?}", engine.stats());
}

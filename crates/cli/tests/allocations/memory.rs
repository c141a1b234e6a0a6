//! What `hybra inspect` says a model takes, against what the engine's parts really allocate.

use crate::{IN_USE, LOCK};
use hybra_checkpoint::Checkpoint;
use hybra_kernels::ops::attention::KvDtype;
use hybra_kernels::{Cpu, DType, Isa};
use hybra_model::layer::LayerConfig;
use hybra_model::memory::{KvFormat, MemoryModel, MemorySettings, WeightFormat};
use hybra_model::{Activations, Batch, Config, LogitsFor, NemotronH, NoObserver, Weights};
use std::process::Command;
use std::sync::atomic::Ordering;

/// Bytes in use after a prompt of `chunk` tokens behind `context − chunk` others, in each of `batch`
/// sequences, and the bytes that the model of memory says.
fn measured_and_said(dtype: DType, kv: KvDtype, context: usize, batch: usize) -> (f64, f64) {
    let chunk = 512;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    // A student of odd widths, as the search makes them.
    let shape = dir.path().join("config.json");
    let base = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/default-model/config.json");
    let text = std::fs::read_to_string(base).unwrap();
    let mut config = Config::from_json(&text, base).unwrap();
    (config.hidden_size, config.vocab_size) = (448, 4096);
    for layer in &mut config.layers {
        match layer {
            LayerConfig::Mamba2(m) => m.head_dim = 40,
            LayerConfig::Mlp(m) => m.intermediate_size = 1312,
            LayerConfig::Attention(_) => {}
        }
    }
    std::fs::write(&shape, config.to_json()).unwrap();
    let made = Command::new(env!("CARGO_BIN_EXE_hybra"))
        .args(["init", shape.to_str().unwrap(), path.to_str().unwrap()])
        .args(["--dtype", &dtype.name().to_lowercase()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let checkpoint = Checkpoint::open(&path).unwrap();
    let config = Config::from_checkpoint(&checkpoint).unwrap();
    let cpu = Cpu::new(Isa::best(), 1);
    let before = IN_USE.load(Ordering::SeqCst);
    let mut weights = Weights::load(&checkpoint, &config, |_, _| {}).unwrap();
    weights.pack(&cpu, |_, _| {}).unwrap();
    // Matrices lie in mappings of their own, the small tensors in the heap.
    let small = IN_USE.load(Ordering::SeqCst) - before;
    let bytes = weights.bytes();
    let model = NemotronH::new(config.clone(), weights);
    let before = IN_USE.load(Ordering::SeqCst);
    let mut states: Vec<_> = (0..batch).map(|_| model.new_state(kv)).collect();
    let tokens: Vec<u32> = (0..chunk as u32).map(|t| t * 7 % 4096).collect();
    let mut act = Activations::new();
    for state in &mut states {
        state.pretend_read(&cpu, context - chunk);
        let whole = Batch::single(&tokens, LogitsFor::Last);
        model.forward(&cpu, &whole, &mut [state], &mut act, &mut NoObserver).unwrap();
    }
    let running = IN_USE.load(Ordering::SeqCst) - before;
    assert!(small <= bytes);
    let settings = MemorySettings {
        weights: WeightFormat::loaded(dtype),
        kv: KvFormat::from(kv),
        prefill_chunk: chunk,
    };
    let plan = MemoryModel::new(&config, &settings).plan(context as u64, batch as u64);
    ((bytes + running) as f64, plan.total as f64)
}

#[test]
fn the_memory_model_is_within_two_percent_of_what_is_allocated() {
    let _alone = LOCK.lock();
    for (dtype, kv, context, batch) in
        [(DType::Bf16, KvDtype::Bf16, 8192, 1), (DType::Q8_0, KvDtype::F32, 2048, 4)]
    {
        let (measured, said) = measured_and_said(dtype, kv, context, batch);
        let error = measured / said - 1.0;
        assert!(error.abs() < 0.02, "{dtype:?} {kv:?}: measured {measured}, said {said}: {error}");
    }
}

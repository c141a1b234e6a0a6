//! A model on a GPU gives what the CPU gives: here on the emulated device of `hybra-cuda`'s tests,
//! which runs the same kernels, or on the machine's own GPU where `HYBRA_TEST_GPU` is set.

#[allow(dead_code)]
#[path = "../../cuda/tests/emulated/mod.rs"]
mod emulated;
#[path = "../../../testdata/shared_dir.rs"]
mod shared_dir;

use hybra_checkpoint::Checkpoint;
use hybra_cuda::{Compute, Gpu};
use hybra_kernels::ops::attention::KvDtype;
use hybra_kernels::{Cpu, Isa};
use hybra_model::{
    Activations, Batch, BlockActivations, Config, LogitRow, LogitsFor, NemotronH, NoObserver,
    Observer, SCAN_CHUNK, SequenceState, Weights,
};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

const CASES: [&str; 3] = ["golden/micro", "golden/odd", "golden/nano2"];

fn load(case: &str) -> Option<NemotronH> {
    let checkpoint = Checkpoint::open(&shared_dir::shared(case)?).unwrap();
    let config = Config::from_checkpoint(&checkpoint).unwrap();
    let weights = Weights::load(&checkpoint, &config, |_, _| {}).unwrap();
    Some(NemotronH::new(config, weights))
}

fn on_device(case: &str, gpu: &Gpu, compute: Compute) -> Option<NemotronH> {
    let mut model = load(case)?;
    model.move_to_device(gpu, compute, 1, |_| {}).unwrap();
    Some(model)
}

/// A test that fills the device has it alone.
static DEVICE: RwLock<()> = RwLock::new(());

/// A share of the device.
fn share() -> RwLockReadGuard<'static, ()> {
    DEVICE.read().unwrap_or_else(PoisonError::into_inner)
}

/// A model at work.
struct Run {
    model: NemotronH,
    cpu: Cpu,
    act: Activations,
}

impl Run {
    fn of(model: NemotronH) -> Self {
        Self { model, cpu: Cpu::new(Isa::best(), 1), act: Activations::new() }
    }

    fn state(&self) -> SequenceState {
        self.model.new_state(KvDtype::F32)
    }

    fn feed(&mut self, batch: &Batch, states: &mut [&mut SequenceState]) -> Vec<f32> {
        self.model
            .forward(&self.cpu, batch, states, &mut self.act, &mut NoObserver)
            .unwrap()
            .to_vec()
    }

    /// All logits of more tokens of one sequence.
    fn read(&mut self, tokens: &[u32], state: &mut SequenceState) -> Vec<f32> {
        self.feed(&Batch::single(tokens, LogitsFor::All), &mut [state])
    }

    /// Arbitrary tokens, the same for the same seed.
    fn tokens(&self, seed: usize, len: usize) -> Vec<u32> {
        let vocab = self.model.config().vocab_size;
        (0..len).map(|i| ((seed * 7919 + i * 104_729 + i * i * 31) % vocab) as u32).collect()
    }
}

/// |a − b| over |b|.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let apart = square(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (apart / square(&mut b.iter().map(|b| f64::from(*b)))).sqrt()
}

/// Mean divergence of next-token distributions, in nats.
fn divergence(found: &[f32], expected: &[f32], vocab: usize) -> f64 {
    let logs = |row: &[f32]| -> Vec<f64> {
        let most = row.iter().fold(f32::MIN, |a, b| a.max(*b));
        let sum: f64 = row.iter().map(|v| f64::from(v - most).exp()).sum();
        row.iter().map(|v| f64::from(v - most) - sum.ln()).collect()
    };
    let rows = found.chunks(vocab).zip(expected.chunks(vocab));
    let total: f64 = rows
        .map(|(found, expected)| {
            let pairs = logs(expected).into_iter().zip(logs(found));
            pairs.map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
        })
        .sum();
    total / (found.len() / vocab) as f64
}

#[test]
fn logits_are_those_of_the_cpu() {
    let Some(gpu) = emulated::gpu() else { return };
    let _shared = share();
    for case in CASES {
        let Some(model) = load(case) else { return };
        let mut host = Run::of(model);
        // Its sizes are the family's: the emulator takes a second for three tokens.
        let len = if case.ends_with("nano2") { 20 } else { 3 * SCAN_CHUNK + 7 };
        let tokens = host.tokens(1, len);
        let expected = host.read(&tokens, &mut host.state());
        let vocab = host.model.config().vocab_size;
        let mut exact = Run::of(on_device(case, gpu, Compute::F32).unwrap());
        let found = exact.read(&tokens, &mut exact.state());
        let apart = difference(&found, &expected);
        assert!(apart < 2e-5, "{case} in f32: {apart:e}");
        let mut rounded = Run::of(on_device(case, gpu, Compute::Bf16).unwrap());
        let found = rounded.read(&tokens, &mut rounded.state());
        let apart = divergence(&found, &expected, vocab);
        println!("{case}: bf16 {:e}, {apart:e} nats", difference(&found, &expected));
        assert!(apart < 1e-3, "{case} in bf16: {apart:e} nats");
    }
}

/// Residual streams behind each block.
#[derive(Default)]
struct Blocks(Vec<Vec<f32>>);

impl Observer for Blocks {
    fn block(&mut self, layer: usize, seen: &BlockActivations) {
        assert_eq!(layer, self.0.len());
        self.0.push(seen.output.to_vec());
    }
}

#[test]
fn every_block_is_that_of_the_cpu() {
    let Some(gpu) = emulated::gpu() else { return };
    let _shared = share();
    let Some(model) = load("golden/micro") else { return };
    let run = |mut run: Run| {
        let (tokens, mut seen) = (run.tokens(2, 70), Blocks::default());
        let batch = Batch::single(&tokens, LogitsFor::Last);
        let mut state = run.state();
        let states = &mut [&mut state];
        run.model.forward(&run.cpu, &batch, states, &mut run.act, &mut seen).unwrap();
        seen.0
    };
    let expected = run(Run::of(model));
    let found = run(Run::of(on_device("golden/micro", gpu, Compute::F32).unwrap()));
    assert!(expected.len() == found.len() && !found.is_empty());
    for (layer, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let apart = difference(found, expected);
        assert!(apart < 2e-5, "block {layer}: {apart:e}");
    }
}

#[test]
fn ragged_batches_have_the_bits_of_single_sequences() {
    let Some(gpu) = emulated::gpu() else { return };
    let _shared = share();
    for (case, compute) in [("golden/micro", Compute::F32), ("golden/odd", Compute::Bf16)] {
        let Some(model) = on_device(case, gpu, compute) else { return };
        let mut run = Run::of(model);
        let lens = [1, 70, 3, 128, 2];
        let parts: Vec<_> = lens.iter().enumerate().map(|(i, n)| run.tokens(i, *n)).collect();
        let mut singles = Vec::new();
        let mut alone: Vec<_> = parts.iter().map(|_| run.state()).collect();
        for (tokens, state) in parts.iter().zip(&mut alone) {
            singles.extend(run.read(tokens, state));
        }
        let mut batch = Batch::default();
        parts.iter().for_each(|tokens| batch.push(tokens, LogitsFor::All));
        let mut together: Vec<_> = parts.iter().map(|_| run.state()).collect();
        let mut states: Vec<_> = together.iter_mut().collect();
        assert!(run.feed(&batch, &mut states) == singles, "{case}: prompts");
        // One step of all of them, and of each.
        let mut batch = Batch::default();
        (0..lens.len()).for_each(|i| batch.push(&[i as u32], LogitsFor::Last));
        let mut states: Vec<_> = together.iter_mut().collect();
        let found = run.feed(&batch, &mut states);
        let steps = alone.iter_mut().enumerate();
        let singles: Vec<_> = steps.flat_map(|(i, s)| run.read(&[i as u32], s)).collect();
        assert!(found == singles, "{case}: steps");
    }
}

#[test]
fn pieces_at_multiples_of_the_chunk_have_the_bits_of_the_whole() {
    let Some(gpu) = emulated::gpu() else { return };
    let _shared = share();
    for (compute, len) in [(Compute::F32, 3 * SCAN_CHUNK + 1), (Compute::Bf16, 5 * SCAN_CHUNK + 9)]
    {
        let Some(model) = on_device("golden/odd", gpu, compute) else { return };
        let mut run = Run::of(model);
        let tokens = run.tokens(3, len);
        let whole = run.read(&tokens, &mut run.state());
        let (mut state, mut found) = (run.state(), Vec::new());
        let (first, rest) = tokens.split_at(SCAN_CHUNK);
        for piece in [first].into_iter().chain(rest.chunks(2 * SCAN_CHUNK)) {
            found.extend(run.read(piece, &mut state));
        }
        assert!(found == whole, "{compute:?}, {len} tokens");
    }
}

#[test]
fn steps_give_the_logits_of_a_prompt() {
    let Some(gpu) = emulated::gpu() else { return };
    let _shared = share();
    for (compute, bound) in [(Compute::F32, 2e-5), (Compute::Bf16, 0.05)] {
        let Some(model) = on_device("golden/micro", gpu, compute) else { return };
        let mut run = Run::of(model);
        let tokens = run.tokens(4, 80);
        let whole = run.read(&tokens, &mut run.state());
        let mut state = run.state();
        let steps: Vec<_> = tokens.iter().flat_map(|t| run.read(&[*t], &mut state)).collect();
        let apart = difference(&steps, &whole);
        assert!(apart < bound, "{compute:?}: {apart:e}");
    }
}

#[test]
fn copies_images_and_layers_in_turns_change_no_bit() {
    let Some(gpu) = emulated::gpu() else { return };
    let _shared = share();
    let Some(model) = on_device("golden/micro", gpu, Compute::Bf16) else { return };
    let mut run = Run::of(model);
    let (prompt, next) = (run.tokens(5, 100), run.tokens(6, 30));
    let mut state = run.state();
    run.read(&prompt, &mut state);
    let copy = state.clone();
    let mut image = Vec::new();
    state.write_to(&mut image).unwrap();
    assert_eq!(image.len(), state.image_bytes());
    let expected = run.read(&next, &mut state);
    assert!(run.read(&next, &mut copy.clone()) == expected, "a copy");
    let states = run.model.states();
    let read = |len: usize, mut bytes: &[u8]| {
        states.read(KvDtype::Bf16, len, bytes.len() as u64, &mut bytes)
    };
    let mut again = read(prompt.len(), &image).unwrap();
    assert!(read(prompt.len() + 64, &image).is_err(), "a longer state");
    assert!(read(prompt.len(), &image[1..]).is_err(), "a shorter image");
    assert!(run.read(&next, &mut again) == expected, "an image");
    // The layers of a piece, with another sequence's step between them.
    let (mut piece, mut other) = (copy.clone(), copy);
    let batch = Batch::single(&next, LogitsFor::All);
    let mut own = Activations::new();
    let layers = run.model.config().layers.len();
    run.model.embed(&run.cpu, &batch, &mut own).unwrap();
    for range in [0..layers / 2, layers / 2..layers] {
        let states = &mut [&mut piece];
        run.model.run_layers(&run.cpu, &batch, states, &mut own, range, &mut NoObserver).unwrap();
        run.read(&[1], &mut other);
    }
    let found = run.model.finish(&run.cpu, &batch, &mut [&mut piece], &mut own).unwrap();
    for (i, expected) in expected.chunks(run.model.config().vocab_size).enumerate() {
        let LogitRow::Top(row) = found.row(i) else { panic!("a whole row") };
        let mut whole = Vec::new();
        row.fetch(&mut whole).unwrap();
        assert!(whole == expected, "layers in turns, row {i}");
        let most = expected.iter().copied().fold(f32::MIN, f32::max);
        let first = expected.iter().position(|value| *value == most).unwrap();
        assert_eq!(row.record().candidates().next(), Some((first as u32, most)), "row {i}");
    }
}

#[test]
fn a_device_that_is_full_says_so_and_goes_on() {
    let Some(gpu) = emulated::gpu() else { return };
    let _alone = DEVICE.write().unwrap_or_else(PoisonError::into_inner);
    let Some(model) = on_device("golden/micro", gpu, Compute::F32) else { return };
    let mut run = Run::of(model);
    let mut first = run.state();
    let expected = run.read(&[1, 2, 3], &mut first);
    // What is left goes into one buffer, with less than a state beside it.
    let free = gpu.free_bytes().unwrap() as usize;
    let ballast = gpu.alloc::<u8>(free.saturating_sub(run.state().bytes() / 2)).unwrap();
    let mut state = run.state();
    let batch = Batch::single(&[1, 2, 3], LogitsFor::All);
    let states = &mut [&mut state];
    let full = run.model.forward(&run.cpu, &batch, states, &mut run.act, &mut NoObserver);
    let error = full.unwrap_err().to_string();
    assert!(error.contains("out of device memory"), "{error}");
    // A copy finds room on the host, and has the same bits.
    let mut copy = first.clone();
    let next = run.read(&[4], &mut first);
    drop(ballast);
    assert!(run.read(&[4], &mut copy) == next, "a copy that was on the host");
    assert!(run.read(&[1, 2, 3], &mut run.state()) == expected);
}

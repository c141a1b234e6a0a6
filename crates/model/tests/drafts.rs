//! Drafts: logits and state have the bits of single steps, whatever was guessed and however much
//! of it stays.

#[path = "../../../testdata/shared_dir.rs"]
mod shared_dir;

use hybra_checkpoint::Checkpoint;
use hybra_kernels::ops::attention::KvDtype;
use hybra_kernels::{Cpu, Isa};
use hybra_model::state::LayerState;
use hybra_model::{
    Activations, Batch, Config, LogitsFor, NemotronH, NoObserver, SequenceState, Weights,
};

const CASES: [&str; 3] = ["golden/micro", "golden/odd", "golden/nano2"];

fn load(case: &str) -> Option<NemotronH> {
    let dir = shared_dir::shared(case)?;
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let config = Config::from_checkpoint(&checkpoint).unwrap();
    let weights = Weights::load(&checkpoint, &config, |_, _| {}).unwrap();
    Some(NemotronH::new(config, weights))
}

/// Numbers that look random; the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) as usize % n
    }

    fn tokens(&mut self, model: &NemotronH, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.below(model.config().vocab_size) as u32).collect()
    }
}

/// A model at work, with memory of its own.
struct Run<'a> {
    model: &'a NemotronH,
    cpu: &'a Cpu,
    act: Activations,
}

impl Run<'_> {
    fn feed(&mut self, batch: &Batch, states: &mut [&mut SequenceState]) -> Vec<f32> {
        let observer = &mut NoObserver;
        self.model.forward(self.cpu, batch, states, &mut self.act, observer).unwrap().to_vec()
    }

    fn read(&mut self, tokens: &[u32], state: &mut SequenceState) -> Vec<f32> {
        self.feed(&Batch::single(tokens, LogitsFor::All), &mut [state])
    }

    /// One by one; all logits.
    fn steps(&mut self, tokens: &[u32], state: &mut SequenceState) -> Vec<f32> {
        tokens.iter().flat_map(|t| self.read(&[*t], state)).collect()
    }

    fn accept(&mut self, state: &mut SequenceState, len: usize) {
        self.model.accept(self.cpu, state, len, &mut self.act);
    }
}

/// The same bits in Mamba layers, as many positions in attention layers. What the caches hold
/// shows in the logits of later tokens.
fn assert_same(a: &SequenceState, b: &SequenceState, what: &str) {
    assert_eq!((a.len(), a.drafted()), (b.len(), b.drafted()), "{what}");
    for (i, layers) in a.layers().iter().zip(b.layers()).enumerate() {
        let same = match layers {
            (LayerState::Mamba2(a), LayerState::Mamba2(b)) => a.conv == b.conv && a.ssm == b.ssm,
            (LayerState::Attention(a), LayerState::Attention(b)) => a.len() == b.len(),
            (LayerState::Mlp, LayerState::Mlp) => true,
            _ => false,
        };
        assert!(same, "{what}: layer {i}");
    }
}

/// Rounds of drafts with a true beginning of any length: the kept part has the logits and leaves
/// the state of single steps.
#[test]
fn what_is_kept_has_the_bits_of_single_steps() {
    for case in CASES {
        let Some(model) = load(case) else { return };
        let vocab = model.config().vocab_size;
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 2);
            let mut run = Run { model: &model, cpu: &cpu, act: Activations::new() };
            for (prompt, kv) in [(1, KvDtype::F32), (61, KvDtype::Bf16)] {
                let mut numbers = Numbers(prompt as u64);
                let mut state = model.new_state(kv);
                run.read(&numbers.tokens(&model, prompt), &mut state);
                let mut plain = state.clone();
                for round in 0..18 {
                    let what = format!("{case} on {isa}, prompt {prompt}, round {round}");
                    let true_tokens = numbers.tokens(&model, 1 + round % 9);
                    let keep = true_tokens.len();
                    let wrong = numbers.below(5);
                    let guess = [true_tokens.clone(), numbers.tokens(&model, wrong)].concat();
                    let mut batch = Batch::default();
                    batch.push_draft(guess[0], &guess[1..]);
                    let got = run.feed(&batch, &mut [&mut state]);
                    assert_eq!(state.drafted(), guess.len());
                    let want = run.steps(&true_tokens, &mut plain);
                    assert!(got[..keep * vocab] == want, "{what}: logits");
                    run.accept(&mut state, keep);
                    assert_same(&state, &plain, &what);
                }
            }
        }
    }
}

/// Every length of what is kept, none included; a snapshot of a waiting draft can be judged too.
#[test]
fn any_number_of_tokens_can_be_kept() {
    for case in CASES {
        let Some(model) = load(case) else { return };
        let cpu = Cpu::new(Isa::best(), 2);
        let mut run = Run { model: &model, cpu: &cpu, act: Activations::new() };
        let mut numbers = Numbers(7);
        let mut before = model.new_state(KvDtype::Bf16);
        run.read(&numbers.tokens(&model, 30), &mut before);
        let (guess, next) = (numbers.tokens(&model, 8), numbers.tokens(&model, 3));
        let mut waiting = before.clone();
        let mut batch = Batch::default();
        batch.push_draft(guess[0], &guess[1..]);
        run.feed(&batch, &mut [&mut waiting]);
        for keep in 0..=guess.len() {
            let (mut state, mut plain) = (waiting.clone(), before.clone());
            run.accept(&mut state, keep);
            run.steps(&guess[..keep], &mut plain);
            assert_same(&state, &plain, &format!("{case}, {keep} kept"));
            let (got, want) = (run.steps(&next, &mut state), run.steps(&next, &mut plain));
            assert!(got == want, "{case}, {keep} kept: later logits");
        }
    }
}

/// A prompt, a step and two drafts in one batch do not see each other.
#[test]
fn drafts_share_a_batch_with_everything() {
    for case in CASES {
        let Some(model) = load(case) else { return };
        let cpu = Cpu::new(Isa::best(), 2);
        let mut run = Run { model: &model, cpu: &cpu, act: Activations::new() };
        let mut numbers = Numbers(3);
        let parts: Vec<_> = [70, 1, 5, 9].map(|n| numbers.tokens(&model, n)).into();
        let mut states: Vec<_> = (0..4).map(|_| model.new_state(KvDtype::Bf16)).collect();
        for state in &mut states[1..] {
            run.read(&numbers.tokens(&model, 20), state);
        }
        let mut alone = states.clone();
        let mut batch = Batch::default();
        batch.push(&parts[0], LogitsFor::Last);
        batch.push(&parts[1], LogitsFor::Last);
        batch.push_draft(parts[2][0], &parts[2][1..]);
        batch.push_draft(parts[3][0], &parts[3][1..]);
        let got = run.feed(&batch, &mut states.iter_mut().collect::<Vec<_>>());
        let vocab = model.config().vocab_size;
        let mut want = run.read(&parts[0], &mut alone[0]).split_off(69 * vocab);
        for i in 1..4 {
            want.extend(run.steps(&parts[i], &mut alone[i]));
        }
        assert!(got == want, "{case}: logits");
        run.accept(&mut states[2], 5);
        run.accept(&mut states[3], 9);
        for (together, alone) in states.iter().zip(&alone) {
            assert_same(together, alone, case);
        }
    }
}

/// The second draft of a length, and all after it, use the memory of the first.
#[test]
fn memory_is_kept() {
    let Some(model) = load(CASES[0]) else { return };
    let cpu = Cpu::new(Isa::best(), 1);
    let mut run = Run { model: &model, cpu: &cpu, act: Activations::new() };
    let (mut numbers, mut state) = (Numbers(5), model.new_state(KvDtype::F32));
    run.read(&numbers.tokens(&model, 3), &mut state);
    let plain = state.bytes();
    let mut sizes = Vec::new();
    for round in 0..6 {
        let guess = numbers.tokens(&model, 8);
        let mut batch = Batch::default();
        batch.push_draft(guess[0], &guess[1..]);
        run.feed(&batch, &mut [&mut state]);
        run.accept(&mut state, round);
        sizes.push((state.bytes(), run.act.bytes()));
    }
    assert!(sizes[0].0 > plain, "copies are counted: {sizes:?}");
    assert!(sizes.iter().all(|s| *s == sizes[0]), "{sizes:?}");
    assert_eq!(state.clone().bytes(), plain, "a snapshot leaves them out");
}

#[test]
#[should_panic(expected = "drafts are judged before the next pass")]
fn a_waiting_draft_stops_the_next_pass() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/default-model");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let config = Config::from_checkpoint(&checkpoint).unwrap();
    let weights = Weights::load(&checkpoint, &config, |_, _| {}).unwrap();
    let (model, cpu) = (NemotronH::new(config, weights), Cpu::new(Isa::best(), 1));
    let mut run = Run { model: &model, cpu: &cpu, act: Activations::new() };
    let mut state = model.new_state(KvDtype::F32);
    let mut batch = Batch::default();
    batch.push_draft(1, &[2]);
    run.feed(&batch, &mut [&mut state]);
    run.feed(&batch, &mut [&mut state]);
}

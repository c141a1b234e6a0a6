//! What must be equal: fast = slow twin, prefill = steps, any split = whole, batch = singles,
//! on every instruction set of the machine and for any number of threads.

#[path = "../../../testdata/shared_dir.rs"]
mod shared_dir;

use hybra_checkpoint::Checkpoint;
use hybra_kernels::ops::attention::KvDtype;
use hybra_kernels::ops::ssm_state::SsmDtype;
use hybra_kernels::{Cpu, Isa};
use hybra_model::reference::Reference;
use hybra_model::{
    Activations, Batch, Config, LogitsFor, NemotronH, NoObserver, SCAN_CHUNK, SequenceState,
    StateDtypes, Weights,
};

const CASES: [&str; 3] = ["golden/micro", "golden/odd", "golden/nano2"];

fn load(case: &str) -> Option<NemotronH> {
    let dir = shared_dir::shared(case)?;
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let config = Config::from_checkpoint(&checkpoint).unwrap();
    let weights = Weights::load(&checkpoint, &config, |_, _| {}).unwrap();
    Some(NemotronH::new(config, weights))
}

fn tokens(model: &NemotronH, n: usize, seed: usize) -> Vec<u32> {
    let vocab = model.config().vocab_size;
    (0..n).map(|i| ((i * 7919 + seed * 104_729 + i * i) % vocab) as u32).collect()
}

/// Exact, and with the recurrent state rounded.
const DTYPES: [StateDtypes; 2] = [
    StateDtypes { kv: KvDtype::F32, ssm: SsmDtype::F32 },
    StateDtypes { kv: KvDtype::F32, ssm: SsmDtype::Bf16 },
];

/// Feeds `tokens` in pieces of the given lengths; logits of every token.
fn feed(model: &NemotronH, cpu: &Cpu, tokens: &[u32], lens: &[usize]) -> Vec<f32> {
    feed_in(DTYPES[0], model, cpu, tokens, lens)
}

/// [`feed`] with a state of other number types.
fn feed_in(
    dtypes: StateDtypes,
    model: &NemotronH,
    cpu: &Cpu,
    tokens: &[u32],
    lens: &[usize],
) -> Vec<f32> {
    let mut state = model.new_state(dtypes);
    let (mut act, mut logits, mut at) = (Activations::new(), Vec::new(), 0);
    for &len in lens {
        let batch = Batch::single(&tokens[at..at + len], LogitsFor::All);
        let states = &mut [&mut state];
        let rows = model.forward(cpu, &batch, states, &mut act, &mut NoObserver).unwrap();
        logits.extend_from_slice(rows);
        at += len;
    }
    assert_eq!((at, state.len()), (tokens.len(), tokens.len()));
    logits
}

fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let diff: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(a - b))).sum();
    let size: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    assert_eq!(a.len(), b.len());
    (diff / size).sqrt()
}

#[test]
fn fast_equals_the_slow_twin_token_by_token() {
    for case in CASES {
        let Some(model) = load(case) else { return };
        let tokens = tokens(&model, 40, 1);
        let mut slow = Reference::new(model.config(), model.weights());
        let want: Vec<f32> = tokens.iter().flat_map(|&t| slow.step(t)).map(|v| v as f32).collect();
        for isa in Isa::available() {
            let got = feed(&model, &Cpu::new(isa, 2), &tokens, &[tokens.len()]);
            let error = relative_error(&got, &want);
            assert!(error < 5e-6, "{case} on {isa}: {error:e}");
        }
    }
}

#[test]
fn any_split_equals_the_whole() {
    for case in CASES {
        let Some(model) = load(case) else { return };
        let n = 2 * SCAN_CHUNK + 9;
        let tokens = tokens(&model, n, 2);
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 2);
            let whole = feed(&model, &cpu, &tokens, &[n]);
            for lens in [vec![1; n], vec![n - 1, 1], vec![3, 70, n - 73], vec![1, n - 1]] {
                let error = relative_error(&feed(&model, &cpu, &tokens, &lens), &whole);
                assert!(error < 5e-6, "{case} on {isa}, split {lens:?}: {error:e}");
            }
            // At multiples of the scan chunk the arithmetic is the same: so are the bits.
            for dtypes in DTYPES {
                let [whole, aligned] = [vec![n], vec![SCAN_CHUNK, SCAN_CHUNK, 9]]
                    .map(|lens| feed_in(dtypes, &model, &cpu, &tokens, &lens));
                assert!(aligned == whole, "{case} on {isa}, {dtypes:?}: aligned split, other bits");
            }
        }
    }
}

/// Rounding the recurrent state to bf16 (2⁻⁹ at each store) moves the logits by less than 3 %,
/// in chunks and token by token.
#[test]
fn a_bf16_state_stays_near_the_exact_one() {
    for case in CASES {
        let Some(model) = load(case) else { return };
        let tokens = tokens(&model, 2 * SCAN_CHUNK + 9, 8);
        let cpu = Cpu::new(Isa::best(), 2);
        for lens in [vec![tokens.len()], vec![1; tokens.len()]] {
            let [exact, rounded] = DTYPES.map(|d| feed_in(d, &model, &cpu, &tokens, &lens));
            let error = relative_error(&rounded, &exact);
            assert!(error > 0.0 && error < 3e-2, "{case}, {} pieces: {error:e}", lens.len());
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    for case in CASES {
        let Some(model) = load(case) else { return };
        let tokens = tokens(&model, 70, 3);
        for isa in Isa::available() {
            let one = feed(&model, &Cpu::new(isa, 1), &tokens, &[70]);
            let four = feed(&model, &Cpu::new(isa, 4), &tokens, &[70]);
            assert!(one == four, "{case} on {isa}");
        }
    }
}

/// Sequences of different lengths, fed together in uneven pieces, have the bits they have alone.
#[test]
fn a_batch_equals_its_singles_bit_for_bit() {
    for case in CASES {
        let Some(model) = load(case) else { return };
        for (isa, dtypes) in Isa::available().into_iter().flat_map(|i| DTYPES.map(|d| (i, d))) {
            let cpu = Cpu::new(isa, 2);
            let all: Vec<_> = (0..4).map(|s| tokens(&model, 30 + 7 * s, s)).collect();
            let mut states: Vec<SequenceState> =
                all.iter().map(|_| model.new_state(dtypes)).collect();
            let mut act = Activations::new();
            let mut got = vec![Vec::new(); all.len()];
            // First a prompt each, then one token each until the shortest ends.
            let steps = std::iter::once(20).chain(std::iter::repeat_n(1, 10));
            let mut at = 0;
            for len in steps {
                let mut batch = Batch::default();
                all.iter().for_each(|t| batch.push(&t[at..at + len], LogitsFor::All));
                let mut refs: Vec<_> = states.iter_mut().collect();
                let rows =
                    model.forward(&cpu, &batch, &mut refs, &mut act, &mut NoObserver).unwrap();
                let per = len * model.config().vocab_size;
                got.iter_mut().zip(rows.chunks(per)).for_each(|(g, r)| g.extend_from_slice(r));
                at += len;
            }
            for (tokens, got) in all.iter().zip(&got) {
                let lens: Vec<_> = std::iter::once(20).chain(std::iter::repeat_n(1, 10)).collect();
                let alone = feed_in(dtypes, &model, &cpu, &tokens[..30], &lens);
                assert!(*got == alone, "{case} on {isa}, {dtypes:?}");
            }
        }
    }
}

#[test]
fn only_asked_for_logits_come_and_they_are_the_same() {
    let Some(model) = load(CASES[0]) else { return };
    let cpu = Cpu::new(Isa::best(), 1);
    let (tokens, vocab) = (tokens(&model, 12, 5), model.config().vocab_size);
    let all = feed(&model, &cpu, &tokens, &[12]);
    let (mut state, mut act) = (model.new_state(KvDtype::F32), Activations::new());
    let mut run = |tokens: &[u32], logits, state: &mut SequenceState| {
        let batch = Batch::single(tokens, logits);
        model.forward(&cpu, &batch, &mut [state], &mut act, &mut NoObserver).unwrap().to_vec()
    };
    assert!(run(&tokens[..5], LogitsFor::None, &mut state).is_empty());
    let last = run(&tokens[5..], LogitsFor::Last, &mut state);
    assert_eq!(last.len(), vocab);
    assert!(relative_error(&last, &all[11 * vocab..]) < 5e-6);
}

#[test]
fn a_snapshot_goes_on_like_the_original() {
    let Some(model) = load(CASES[1]) else { return };
    let cpu = Cpu::new(Isa::best(), 2);
    let tokens = tokens(&model, 50, 6);
    let (mut state, mut act) = (model.new_state(KvDtype::Bf16), Activations::new());
    let mut run = |tokens: &[u32], state: &mut SequenceState| {
        let batch = Batch::single(tokens, LogitsFor::All);
        model.forward(&cpu, &batch, &mut [state], &mut act, &mut NoObserver).unwrap().to_vec()
    };
    run(&tokens[..30], &mut state);
    let mut snapshot = state.clone();
    let first = run(&tokens[30..], &mut state);
    let again = run(&tokens[30..], &mut snapshot);
    assert!(first == again);
    assert_eq!((state.len(), snapshot.len()), (50, 50));
}

#[test]
fn a_token_outside_the_vocabulary_is_an_error_and_changes_nothing() {
    let Some(model) = load(CASES[0]) else { return };
    let cpu = Cpu::new(Isa::best(), 1);
    let (mut state, mut act) = (model.new_state(KvDtype::F32), Activations::new());
    let batch = Batch::single(&[1, 256], LogitsFor::Last);
    let error =
        model.forward(&cpu, &batch, &mut [&mut state], &mut act, &mut NoObserver).unwrap_err();
    assert_eq!(
        error.to_string(),
        "token 1 of the batch is id 256, but the vocabulary has 256 entries"
    );
    assert_eq!(state.len(), 0);
}

/// Memory that `inspect` promises and memory that is held.
#[test]
fn buffers_are_as_large_as_the_memory_model_says() {
    use hybra_kernels::DType;
    use hybra_model::memory::{WeightFormat, ssm_state_values, state_bytes, workspace};
    for case in CASES {
        let Some(model) = load(case) else { return };
        let (config, cpu) = (model.config(), Cpu::new(Isa::best(), 1));
        let (mut state, mut act) = (model.new_state(KvDtype::F32), Activations::new());
        let batch = Batch::single(&tokens(&model, 64, 1), LogitsFor::Last);
        model.forward(&cpu, &batch, &mut [&mut state], &mut act, &mut NoObserver).unwrap();
        assert_eq!(act.bytes() as u64, workspace(config, 64, 1).total_bytes(), "{case}");
        let mamba = model.new_state(KvDtype::F32).bytes() as u64;
        assert_eq!(mamba, state_bytes(config), "{case}: state before the first token");
        let halved = model.new_state(DTYPES[1]).bytes() as u64;
        assert_eq!(mamba - halved, 2 * ssm_state_values(config), "{case}: bf16 state");
        let stored = if case.ends_with("nano2") { DType::Bf16 } else { DType::F32 };
        let bytes = WeightFormat::loaded(stored).weight_bytes(config);
        assert_eq!(model.weights().bytes() as u64, bytes, "{case}: weights");
    }
}

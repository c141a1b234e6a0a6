//! Decode steps that are replayed as CUDA graphs have the bits of steps whose kernels are launched
//! one by one, whatever happens to states and buffers between them.

#[allow(dead_code)]
#[path = "../../cuda/tests/emulated/mod.rs"]
mod emulated;
#[path = "../../../testdata/shared_dir.rs"]
mod shared_dir;

use hybra_cuda::Compute;
use hybra_kernels::ops::attention::KvDtype;
use hybra_kernels::{Cpu, Isa};
use hybra_model::{Activations, Batch, LogitRow, LogitsFor, NemotronH, NoObserver, SequenceState};

/// A model at work, with all that it said.
struct Run {
    model: NemotronH,
    cpu: Cpu,
    act: Activations,
    rows: Vec<Vec<f32>>,
    /// Steps that were replays, as they were made.
    replays: Vec<bool>,
}

impl Run {
    fn read(&mut self, batch: &Batch, states: &mut [&mut SequenceState]) {
        let before = self.act.replays();
        let Self { model, cpu, act, rows, .. } = self;
        let logits = model.read(cpu, batch, states, act, &mut NoObserver).unwrap();
        for i in 0..batch.logit_rows().count() {
            let LogitRow::Top(row) = logits.row(i) else { panic!("a whole row") };
            let mut whole = Vec::new();
            row.fetch(&mut whole).unwrap();
            let (best, value) = row.record().candidates().next().unwrap();
            assert_eq!(whole[best as usize], value);
            rows.push(whole);
        }
        self.replays.push(self.act.replays() > before);
    }

    fn prompt(&mut self, seed: usize, len: usize) -> SequenceState {
        let vocab = self.model.config().vocab_size;
        let tokens: Vec<u32> = (0..len).map(|i| ((seed * 31 + i * i * 7) % vocab) as u32).collect();
        let mut state = self.model.new_state(KvDtype::Bf16);
        self.read(&Batch::single(&tokens, LogitsFor::Last), &mut [&mut state]);
        state
    }

    /// `num` steps of all sequences.
    fn steps(&mut self, states: &mut [SequenceState], num: usize) {
        for step in 0..num {
            let mut batch = Batch::default();
            (0..states.len()).for_each(|i| batch.push(&[(3 * i + step) as u32], LogitsFor::Last));
            self.read(&batch, &mut states.iter_mut().collect::<Vec<_>>());
        }
    }
}

/// Everything said in a life of sequences that come, go, are copied and moved out and back.
fn life(graphs: bool) -> Option<(Vec<Vec<f32>>, Vec<bool>)> {
    let gpu = emulated::gpu()?;
    let mut model = NemotronH::open(&shared_dir::shared("golden/micro")?).unwrap();
    model.move_to_device(gpu, Compute::Bf16, 1, |_| {}).unwrap();
    model.use_graphs(graphs);
    let cpu = Cpu::new(Isa::best(), 1);
    let (rows, replays) = (Vec::new(), Vec::new());
    let mut run = Run { model, cpu, act: Activations::new(), rows, replays };
    // One gets a new page on its way, and one a second span.
    let mut states: Vec<_> = [5, 60, 505].map(|len| run.prompt(len, len)).into();
    run.steps(&mut states, 4);
    let copy = states[0].clone();
    states[1] = copy;
    let mut image = Vec::new();
    states[2].write_to(&mut image).unwrap();
    let (len, bytes) = (states[2].len(), image.len() as u64);
    // Its memory is that of another sequence before it comes back.
    states.remove(2);
    let other = run.prompt(7, 9);
    states.push(run.model.states().read(KvDtype::Bf16, len, bytes, &mut &image[..]).unwrap());
    run.steps(&mut states, 2);
    states[0] = other;
    run.steps(&mut states, 3);
    // Buffers grow.
    let long = run.prompt(3, 700);
    run.steps(&mut states, 3);
    // Two numbers of sequences in turn.
    states.push(long);
    run.steps(&mut states, 2);
    let long = states.pop().unwrap();
    run.steps(&mut states, 2);
    states.push(long);
    run.steps(&mut states, 1);
    Some((run.rows, run.replays))
}

#[test]
fn replays_have_the_bits_of_launches() {
    let Some((expected, none)) = life(false) else { return };
    let (found, replays) = life(true).unwrap();
    assert!(!none.contains(&true));
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!(found == expected, "row {i}");
    }
    let (no, yes) = (false, true);
    let prompts = [no; 3];
    // The first of a shape is launched, the second recorded.
    let first = [no, yes, yes, yes];
    // The longest has 509 tokens when it comes back, and gets a second span on its way.
    let others = [no, yes, yes, yes, no, yes];
    let grown = [no, no, yes, yes];
    let more = [no, yes, no, yes, yes];
    let all = [&prompts[..], &first, &others, &grown, &more].concat();
    assert_eq!(replays, all);
}

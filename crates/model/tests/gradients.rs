//! Loss and every gradient against the reference implementation, and the equalities of training.

#[path = "../../../testdata/shared_dir.rs"]
mod shared_dir;

use hybra_checkpoint::Checkpoint;
use hybra_kernels::ops::linear_cross_entropy::{HeadGradients, Labels, linear_cross_entropy};
use hybra_kernels::ops::linear_kl_div::{Direction, KlOptions, Teacher, linear_kl_div};
use hybra_kernels::{Cpu, Isa, MatMut, MatRef};
use hybra_model::Config;
use hybra_model::parameters::Slot;
use hybra_model::training::{Keep, PackedBatch, Precision, Tape, Trainable};
use shared_dir::shared;
use std::path::Path;

struct Case {
    model: Trainable,
    parameters: Vec<f32>,
}

fn open(dir: &Path, keep: Keep) -> Case {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let config = Config::from_checkpoint(&checkpoint).unwrap();
    let model = Trainable::new(config, keep);
    let parameters = model.layout().load(&checkpoint, model.config()).unwrap();
    Case { model, parameters }
}

fn f32s(file: &Checkpoint, name: &str) -> Vec<f32> {
    let data = file.require(name).unwrap().data;
    data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn ids(file: &Checkpoint, name: &str) -> Vec<u32> {
    let data = file.require(name).unwrap().data;
    data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
}

/// Rows of `len` tokens, each a document of which all but the first token are learned.
fn documents(tokens: &[u32], len: usize) -> PackedBatch {
    let mut batch = PackedBatch::default();
    tokens.chunks(len).for_each(|row| batch.push(row, &vec![true; len]));
    batch
}

impl Case {
    fn with_precision(self, precision: Precision) -> Self {
        Self { model: self.model.with_precision(precision), ..self }
    }

    /// Mean cross entropy and its gradient.
    fn cross_entropy(&self, cpu: &Cpu, batches: &[PackedBatch]) -> (f64, Vec<f32>) {
        self.cross_entropy_of(cpu, batches, |batch| batch.weights.clone())
    }

    /// The same with a forward pass of the rows that `read` gives a weight.
    fn cross_entropy_of(
        &self,
        cpu: &Cpu,
        batches: &[PackedBatch],
        read: impl Fn(&PackedBatch) -> Vec<f32>,
    ) -> (f64, Vec<f32>) {
        let mut gradient = vec![0.0; self.parameters.len()];
        let learned: usize = batches.iter().map(PackedBatch::num_learned).sum();
        let (mut tape, mut loss) = (Tape::default(), 0.0);
        for batch in batches {
            loss += self.run(cpu, (batch, &read(batch)), &mut tape, &mut gradient, |x, w, g| {
                let labels = Labels { ids: &batch.labels, weights: &batch.weights };
                let mut logprobs = vec![0.0; batch.tokens.len()];
                let scale = 1.0 / learned as f32;
                linear_cross_entropy(cpu, x, w, labels, scale, &mut logprobs, Some(g))
            });
        }
        (loss / learned as f64, gradient)
    }

    fn run(
        &self,
        cpu: &Cpu,
        (batch, read): (&PackedBatch, &[f32]),
        tape: &mut Tape,
        gradient: &mut [f32],
        loss: impl FnOnce(MatRef, MatRef, HeadGradients) -> f64,
    ) -> f64 {
        self.model.forward(cpu, &self.parameters, batch, read, tape);
        let h = self.model.config().hidden_size;
        let mut dx = vec![0.0; tape.normed().len()];
        let g = HeadGradients { x: MatMut::new(&mut dx, h), w: self.model.head_gradient(gradient) };
        let loss = loss(MatRef::new(tape.normed(), h), self.model.head(&self.parameters), g);
        self.model.backward(cpu, &self.parameters, batch, tape, &dx, gradient);
        loss
    }

    /// Demands the reference's gradient of every tensor, to 1e-4 of its size.
    fn check(&self, file: &Checkpoint, prefix: &str, gradient: &[f32], what: &str) {
        for (name, error, size) in self.errors(file, prefix, gradient) {
            let error = (error / size).sqrt();
            assert!(error <= 1e-4, "{what}: {name}: relative error {error:e}");
        }
    }

    /// Of every tensor, the squared norms of the difference from the reference and of that.
    fn errors(&self, file: &Checkpoint, prefix: &str, gradient: &[f32]) -> Vec<(&str, f64, f64)> {
        let of = |slot: &'_ Slot| {
            let want = f32s(file, &format!("{prefix}{}", slot.spec.name));
            let got = &gradient[slot.range.clone()];
            assert_eq!(got.len(), want.len(), "{}", slot.spec.name);
            let square = |v: f32| f64::from(v) * f64::from(v);
            let error: f64 = got.iter().zip(&want).map(|(g, w)| square(g - w)).sum();
            (error, want.iter().map(|w| square(*w)).sum())
        };
        let slots = self.model.layout().slots().iter();
        slots
            .map(|slot| {
                let (error, size) = of(slot);
                (slot.spec.name.as_str(), error, size)
            })
            .collect()
    }
}

#[test]
fn gradients_are_those_of_the_reference() {
    for name in ["micro", "odd"] {
        let Some(dir) = shared(&format!("golden/{name}")) else { return };
        let reference = Checkpoint::open(&dir.join("reference.safetensors")).unwrap();
        let len = reference.require("input_ids").unwrap().shape[1];
        let batch = documents(&ids(&reference, "input_ids"), len);
        for keep in [Keep::Projections, Keep::Inputs] {
            let case = open(&dir, keep);
            for isa in Isa::available() {
                let what = format!("{name} {isa} {keep:?}");
                let (loss, gradient) =
                    case.cross_entropy(&Cpu::new(isa, 2), std::slice::from_ref(&batch));
                let want = f64::from(f32s(&reference, "loss")[0]);
                assert!((loss - want).abs() < 1e-5, "{what}: loss {loss}, expected {want}");
                case.check(&reference, "grad.", &gradient, &what);
            }
        }
    }
}

/// bf16 has 8 bits of precision: an operand is off by up to 2⁻⁹ of itself.
#[test]
fn products_of_bf16_give_nearly_the_gradients_of_the_reference() {
    for name in ["micro", "odd"] {
        let Some(dir) = shared(&format!("golden/{name}")) else { return };
        let reference = Checkpoint::open(&dir.join("reference.safetensors")).unwrap();
        let len = reference.require("input_ids").unwrap().shape[1];
        let batch = documents(&ids(&reference, "input_ids"), len);
        let case = open(&dir, Keep::Projections).with_precision(Precision::Bf16);
        for isa in Isa::available() {
            let what = format!("{name} {isa}");
            let cpu = Cpu::new(isa, 2);
            let (loss, gradient) = case.cross_entropy(&cpu, std::slice::from_ref(&batch));
            let want = f64::from(f32s(&reference, "loss")[0]);
            assert!((loss - want).abs() < 2e-3, "{what}: loss {loss}, expected {want}");
            assert!((loss - want).abs() > 1e-7, "{what}: nothing was rounded");
            let (mut all, mut whole) = (0.0, 0.0);
            for (name, error, size) in case.errors(&reference, "grad.", &gradient) {
                let relative = (error / size).sqrt();
                assert!(relative <= 0.1, "{what}: {name}: relative error {relative:e}");
                (all, whole) = (all + error, whole + size);
            }
            let relative = f64::sqrt(all / whole);
            assert!(relative <= 0.03, "{what}: relative error {relative:e}");
        }
    }
}

#[test]
fn distillation_is_that_of_the_reference() {
    let Some(dir) = shared("golden") else { return };
    let student = open(&dir.join("micro"), Keep::Projections);
    let teacher = open(&dir.join("train/teacher"), Keep::Projections);
    let reference = Checkpoint::open(&dir.join("train/train.safetensors")).unwrap();
    let shape = reference.require("batches").unwrap().shape.to_vec();
    let tokens = &ids(&reference, "batches")[..shape[1] * shape[2]];
    let mut batch = documents(tokens, shape[2]);
    // Every position counts, the last one, too.
    batch.weights.fill(1.0);
    let cpu = Cpu::new(Isa::best(), 2);
    let (mut tape, mut of_teacher) = (Tape::default(), Tape::default());
    let read = &batch.weights;
    teacher.model.forward(&cpu, &teacher.parameters, &batch, read, &mut of_teacher);
    let x_t = MatRef::new(of_teacher.normed(), teacher.model.config().hidden_size);
    let w_t = teacher.model.head(&teacher.parameters);
    for (temperature, name) in [(1.0, "kd.loss"), (2.0, "kd2.loss")] {
        let mut gradient = vec![0.0; student.parameters.len()];
        let count = batch.tokens.len();
        let loss = student.run(&cpu, (&batch, read), &mut tape, &mut gradient, |x, w, g| {
            let options = KlOptions {
                weights: &batch.weights,
                temperature,
                direction: Direction::Forward,
                scale: 1.0 / count as f32,
            };
            let teacher = Teacher::Logits { x: x_t, w: w_t };
            linear_kl_div(&cpu, x, w, teacher, options, &mut vec![0.0; count], Some(g))
        });
        let (loss, want) = (loss / count as f64, f64::from(f32s(&reference, name)[0]));
        assert!((loss / want - 1.0).abs() < 1e-5, "{name}: {loss}, expected {want}");
        if temperature == 1.0 {
            student.check(&reference, "kd.grad.", &gradient, name);
        }
    }
}

/// Documents packed into one pass, one pass each, any number of threads, and blocks run twice:
/// the same bits.
#[test]
fn packing_threads_and_recomputation_change_no_bit() {
    let Some(dir) = shared("golden/micro") else { return };
    for precision in [Precision::F32, Precision::Bf16] {
        let open = |keep| open(&dir, keep).with_precision(precision);
        let (case, again) = (open(Keep::Projections), open(Keep::Inputs));
        equal_bits(&case, &again, &[70, 1, 129, 30], |_| true);
        // More than an MLP takes at a time: the last document is cut where it is packed.
        equal_bits(&case, &again, &[1500, 1, 199], |_| true);
        // The second document is not learned at all.
        equal_bits(&case, &again, &[70, 9, 129, 30], |t| t > 90 && t % 7 < 3);
    }
}

/// What no loss reads adds nothing: gradients in f32 are those of a pass over every row.
#[test]
fn rows_that_are_not_read_are_not_missed() {
    let Some(dir) = shared("golden/micro") else { return };
    for pattern in [|t| t > 12, |t| t % 5 == 0, |_| false] as [fn(usize) -> bool; 3] {
        let mut batch = PackedBatch::default();
        for len in [40, 3, 75] {
            let tokens: Vec<u32> = (0..len as u32).map(|i| i * i * 7 % 256).collect();
            batch.push(&tokens, &(0..len).map(pattern).collect::<Vec<_>>());
        }
        for keep in [Keep::Projections, Keep::Inputs] {
            let (case, cpu) = (open(&dir, keep), Cpu::new(Isa::best(), 2));
            let batches = std::slice::from_ref(&batch);
            let (loss, gradient) = case.cross_entropy(&cpu, batches);
            let all = case.cross_entropy_of(&cpu, batches, |batch| vec![1.0; batch.tokens.len()]);
            assert!(loss == all.0 || batch.num_learned() == 0, "{loss} {}", all.0);
            assert!(gradient == all.1, "{keep:?}: {} learned", batch.num_learned());
        }
    }
}

/// `learn` says which tokens are learned, counted over all documents.
fn equal_bits(case: &Case, again: &Case, documents: &[usize], learn: fn(u32) -> bool) {
    let (mut packed, mut singles, mut from) = (PackedBatch::default(), Vec::new(), 0);
    for &len in documents {
        let tokens: Vec<u32> = (from..from + len as u32).map(|i| i * i * 7 % 256).collect();
        let (tokens, mask): (_, Vec<bool>) =
            (&tokens[..], (from..from + len as u32).map(learn).collect());
        from += len as u32;
        packed.push(tokens, &mask);
        singles.push(PackedBatch::default());
        singles.last_mut().unwrap().push(tokens, &mask);
    }
    for isa in Isa::available() {
        let (loss, want) = case.cross_entropy(&Cpu::new(isa, 1), std::slice::from_ref(&packed));
        let packed = [packed.clone()];
        for (what, got) in [
            ("3 threads", case.cross_entropy(&Cpu::new(isa, 3), &packed)),
            ("unpacked", case.cross_entropy(&Cpu::new(isa, 2), &singles)),
            ("blocks run twice", again.cross_entropy(&Cpu::new(isa, 2), &packed)),
        ] {
            assert!((got.0 - loss).abs() < 1e-12, "{isa} {what}: {} {loss}", got.0);
            for slot in case.model.layout().slots() {
                let range = slot.range.clone();
                let same = got.1[range.clone()]
                    .iter()
                    .zip(&want[range])
                    .all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{isa} {what}: {}", slot.spec.name);
            }
        }
    }
}

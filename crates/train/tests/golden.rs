//! Twenty optimizer steps and a preference loss against the reference implementation.

#[path = "../../../testdata/shared_dir.rs"]
mod shared_dir;

use hybra_checkpoint::Checkpoint;
use hybra_kernels::ops::adamw::{AdamWStep, adamw, sum_of_squares};
use hybra_kernels::{Cpu, Isa};
use hybra_model::Config;
use hybra_model::training::{Keep, PackedBatch, Trainable};
use hybra_train::cross_entropy::CrossEntropy;
use hybra_train::dpo::{DpoLoss, dpo_loss};
use hybra_train::objective::Objective;
use shared_dir::shared;

fn f32s(file: &Checkpoint, name: &str) -> Vec<f32> {
    let data = file.require(name).unwrap().data;
    data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The batches of the file, every row a document.
fn batches(file: &Checkpoint) -> Vec<PackedBatch> {
    let view = file.require("batches").unwrap();
    let [_, rows, len] = view.shape[..] else { panic!("{:?}", view.shape) };
    let ids = view.data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32);
    let ids: Vec<u32> = ids.collect();
    let batch = |ids: &[u32]| {
        let mut batch = PackedBatch::default();
        ids.chunks(len).for_each(|row| batch.push(row, &vec![true; len]));
        batch
    };
    ids.chunks(rows * len).map(batch).collect()
}

/// Log-probabilities of every row's tokens, summed.
fn logps(cpu: &Cpu, model: &mut CrossEntropy, parameters: &[f32], batch: &PackedBatch) -> Vec<f64> {
    model.micro_batch(cpu, parameters, batch, 0.0, &mut vec![0.0; parameters.len()]);
    let len = batch.documents[0];
    model.logprobs().chunks(len).map(|row| row.iter().map(|v| f64::from(*v)).sum()).collect()
}

#[test]
fn twenty_adamw_steps_and_the_preference_loss_are_those_of_the_reference() {
    let Some(dir) = shared("golden") else { return };
    let cpu = Cpu::new(Isa::best(), 2);
    let checkpoint = Checkpoint::open(&dir.join("micro")).unwrap();
    let config = Config::from_checkpoint(&checkpoint).unwrap();
    let model = Trainable::new(config, Keep::Projections);
    let layout = model.layout().clone();
    let mut p = layout.load(&checkpoint, model.config()).unwrap();
    let mut objective = CrossEntropy::new(model);
    let file = Checkpoint::open(&dir.join("train/train.safetensors")).unwrap();
    let (batches, losses, norms) =
        (batches(&file), f32s(&file, "adamw.losses"), f32s(&file, "adamw.norms"));
    let before = [1, 2].map(|i| logps(&cpu, &mut objective, &p, &batches[i]));
    let (mut m, mut v) = (vec![0.0; p.len()], vec![0.0; p.len()]);
    for (step, batch) in batches.iter().enumerate() {
        let (mut g, learned) = (vec![0.0; p.len()], batch.num_learned() as f64);
        let scale = (1.0 / learned) as f32;
        let loss = objective.micro_batch(&cpu, &p, batch, scale, &mut g).loss / learned;
        let norm = sum_of_squares(&cpu, &g).sqrt();
        let (want, want_norm) = (f64::from(losses[step]), f64::from(norms[step]));
        assert!((loss - want).abs() < 1e-4, "step {step}: loss {loss}, expected {want}");
        assert!((norm / want_norm - 1.0).abs() < 1e-3, "step {step}: {norm}, {want_norm}");
        for slot in layout.slots() {
            let r = slot.range.clone();
            let options = AdamWStep {
                lr: 1e-3 * ((step + 1) as f32 / 4.0).min(1.0),
                betas: (0.9, 0.95),
                eps: 1e-8,
                weight_decay: if slot.decays() { 0.1 } else { 0.0 },
                step: step as u64 + 1,
                gradient_scale: (1.0 / norm).min(1.0) as f32,
            };
            let (p, g) = (&mut p[r.clone()], &g[r.clone()]);
            adamw(&cpu, &options, p, g, &mut m[r.clone()], &mut v[r]);
        }
    }
    for slot in layout.slots() {
        let want = f32s(&file, &format!("adamw.{}", slot.spec.name));
        let square = |v: f32| f64::from(v) * f64::from(v);
        let pairs = p[slot.range.clone()].iter().zip(&want);
        let error: f64 = pairs.map(|(got, want)| square(got - want)).sum();
        let size: f64 = want.iter().map(|v| square(*v)).sum();
        let error = (error / size).sqrt();
        assert!(error <= 1e-3, "{}: relative error {error:e}", slot.spec.name);
    }
    let after = [1, 2].map(|i| logps(&cpu, &mut objective, &p, &batches[i]));
    let pair = |row: usize| {
        let gain = |i: usize| after[i][row] - before[i][row];
        dpo_loss(DpoLoss::Sigmoid, 0.1, gain(0) - gain(1)).0
    };
    let rows = before[0].len();
    let loss = (0..rows).map(pair).sum::<f64>() / rows as f64;
    let want = f64::from(f32s(&file, "dpo.loss")[0]);
    assert!((loss / want - 1.0).abs() < 1e-3, "preference loss {loss}, expected {want}");
}

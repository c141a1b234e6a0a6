//! Runs of a toy: killed and resumed, on several ranks, with bad numbers and bad checkpoints.

mod support;

use hybra_checkpoint::Checkpoint;
use hybra_kernels::{Cpu, Isa};
use hybra_model::parameters::Layout;
use hybra_model::training::PackedBatch;
use hybra_train::lora::Lora;
use hybra_train::{Batches, Comm, LocalComm, LossSums, Objective, Outcome, RunConfig, TrainError};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use support::{Counter, Pull, alone, config, model, train};

fn plain() -> Pull {
    Pull { poison: None, seen: 0 }
}

/// A whole run on one rank.
fn run(dir: &Path, config: &RunConfig, packs: u64, threads: usize) {
    let (outcome, warnings) =
        train(dir, &LocalComm::single(), config, &mut plain(), packs, threads);
    assert_eq!(outcome.unwrap(), Outcome::Done(dir.join("model")));
    assert_eq!(warnings, [""; 0]);
}

/// Final weights and log.
fn result(dir: &Path) -> (Vec<u8>, String) {
    let weights = std::fs::read(dir.join("model/model.safetensors")).unwrap();
    (weights, std::fs::read_to_string(dir.join("log.jsonl")).unwrap())
}

fn weights(dir: &Path) -> Vec<f32> {
    let config = model();
    Layout::new(&config).load(&Checkpoint::open(&dir.join("model")).unwrap(), &config).unwrap()
}

#[test]
fn ranks_and_threads_change_no_bit_and_the_loss_falls() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(7, &["optimizer.lr=0.05"]);
    let one = dir.path().join("1");
    run(&one, &config, 8, 1);
    let want = result(&one);
    let losses: Vec<f64> = want
        .1
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap())
        .collect();
    assert_eq!(losses.len(), 7, "{}", want.1);
    assert!(losses[6] < 0.9 * losses[0], "{losses:?}");
    for size in [2, 3, 4] {
        let path = dir.path().join(size.to_string());
        std::thread::scope(|scope| {
            for comm in LocalComm::group(size) {
                let (path, config) = (&path, &config);
                scope.spawn(move || {
                    train(path, &comm, config, &mut plain(), 8, 1 + comm.rank() % 2).0.unwrap()
                });
            }
        });
        assert!(result(&path) == want, "{size} ranks");
        let optimizer = |dir: &Path| {
            std::fs::read(dir.join("checkpoints/step-000007/optimizer.safetensors")).unwrap()
        };
        assert!(optimizer(&path) == optimizer(&one), "{size} ranks: moments");
    }
}

/// An adapter trains to the same bits on any number of ranks, and goes on to them where it stopped; the
/// base with the adapter is the model.
#[test]
fn an_adapter_is_trained_in_place_of_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let changes = ["optimizer.lr=0.05", "model.from=base", "lora.rank=2"];
    let config = config(7, &changes);
    let one = dir.path().join("1");
    let (outcome, warnings) = train(&one, &LocalComm::single(), &config, &mut plain(), 8, 1);
    assert!(outcome.is_ok() && warnings.is_empty(), "{outcome:?} {warnings:?}");
    let adapter =
        |dir: &Path| std::fs::read(dir.join("adapter/adapter_model.safetensors")).unwrap();
    let loss = |log: &str, at: usize| {
        let line: Value = serde_json::from_str(log.lines().nth(at).unwrap()).unwrap();
        line["loss"].as_f64().unwrap()
    };
    let (merged, log) = result(&one);
    assert!(loss(&log, 6) < loss(&log, 0), "{log}");
    let (trained, base) = (weights(&one), Layout::new(&model()).random(&model(), config.seed));
    let lora = Lora::new(config.lora.as_ref().unwrap(), &model(), base.clone());
    for slot in Layout::new(&model()).slots() {
        let same = trained[slot.range.clone()] == base[slot.range.clone()];
        assert_eq!(same, hybra_model::lora::module_of(&slot.spec).is_none(), "{}", slot.spec.name);
    }
    let saved = Checkpoint::open(&one.join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(saved.tensors().count(), lora.layout().slots().len());
    let two = dir.path().join("2");
    std::thread::scope(|scope| {
        for comm in LocalComm::group(2) {
            let (path, config) = (&two, &config);
            scope.spawn(move || train(path, &comm, config, &mut plain(), 8, 1).0.unwrap());
        }
    });
    assert!(result(&two) == (merged, log) && adapter(&two) == adapter(&one), "2 ranks");
    // What a kill after step 6 leaves: the checkpoints up to there, and logs that go on.
    std::fs::remove_dir_all(two.join("checkpoints/step-000007")).unwrap();
    std::fs::remove_dir_all(two.join("adapter")).unwrap();
    std::fs::remove_dir_all(two.join("model")).unwrap();
    run(&two, &config, 8, 1);
    assert!(result(&two) == result(&one) && adapter(&two) == adapter(&one), "resumed");
}

#[test]
fn accumulation_is_a_larger_batch() {
    let mut whole = PackedBatch::default();
    for pack in (Counter { next: 0, packs: 6 }).step(&alone()).unwrap() {
        whole.tokens.extend(pack.tokens);
        whole.documents.extend(pack.documents);
        whole.labels.extend(pack.labels);
        whole.weights.extend(pack.weights);
    }
    let scale = (1.0 / plain().weight(&whole)) as f32;
    let layout = Layout::new(&model());
    let parameters = layout.random(&model(), 1);
    let mut gradient = vec![0.0; layout.len()];
    let cpu = Cpu::new(Isa::best(), 1);
    let sums = plain().micro_batch(&cpu, &parameters, &whole, scale, &mut gradient);
    let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &config(1, &["seed=1"]), 6, 2);
    let line: Value = serde_json::from_str(result(dir.path()).1.trim()).unwrap();
    let near = |got: &Value, want: f64| {
        let got = got.as_f64().unwrap();
        assert!((got / want - 1.0).abs() < 1e-6, "{got} ≠ {want}");
    };
    near(&line["loss"], sums.loss / sums.weight);
    near(&line["grad_norm"], norm);
}

/// The child of the test below: trains until it is done or killed.
#[test]
fn child() {
    if let Some(dir) = std::env::var_os("HYBRA_TEST_RUN") {
        run_child(Path::new(&dir));
    }
}

fn run_child(dir: &Path) {
    let (outcome, _) = train(dir, &LocalComm::single(), &config(40, &[]), &mut plain(), 4, 2);
    outcome.unwrap();
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    let started = std::time::Instant::now();
    run(&whole, &config(40, &[]), 4, 1);
    let whole_ms = started.elapsed().as_millis() as u64;
    let mut num_killed = 0;
    for attempt in 0u64.. {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--test-threads=1"])
            .env("HYBRA_TEST_RUN", &killed)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Anywhere in a run, also in the middle of a checkpoint.
        let until = 20 + (attempt * 7919 + 13) % 97 * whole_ms.max(200) / 200;
        // Attempts that always die early would never end.
        if attempt < 12 {
            std::thread::sleep(std::time::Duration::from_millis(until));
            let _ = child.kill();
        }
        let status = child.wait().unwrap();
        if status.success() {
            break;
        }
        assert!(attempt < 12, "the run that nobody killed failed: {status}");
        num_killed += 1;
    }
    assert!(num_killed > 0, "no run was killed");
    assert!(result(&killed) == result(&whole), "killed {num_killed} times");
}

#[test]
fn a_changed_checkpoint_is_refused_and_the_one_before_it_taken() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(9, &[]);
    run(dir.path(), &config, 2, 1);
    let want = result(dir.path());
    let checkpoint = |step: u64| dir.path().join(format!("checkpoints/step-{step:06}"));
    assert!(!checkpoint(3).exists() && checkpoint(6).exists(), "two are kept");
    let newest = checkpoint(9).join("optimizer.safetensors");
    let mut bytes = std::fs::read(&newest).unwrap();
    let at = bytes.len() - 5;
    bytes[at] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    let again = || train(dir.path(), &LocalComm::single(), &config, &mut plain(), 2, 1);
    let (outcome, warnings) = again();
    outcome.unwrap();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("step-000009") && warnings[0].contains("BLAKE3"), "{warnings:?}");
    assert!(result(dir.path()) == want);
    std::fs::remove_file(checkpoint(9).join("trainer.json")).unwrap();
    std::fs::write(checkpoint(6).join("model.safetensors"), "torn").unwrap();
    let (outcome, warnings) = again();
    assert_eq!(warnings.len(), 2);
    let message = outcome.unwrap_err().to_string();
    assert!(message.contains("none of the 2 checkpoints is whole"), "{message}");
}

#[test]
fn a_bad_number_stops_before_the_step_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(&model());
    let slot = &layout.slots()[5];
    for size in [1, 2] {
        let path = dir.path().join(size.to_string());
        let errors: Vec<_> = std::thread::scope(|scope| {
            let start = |comm: LocalComm| {
                let (path, at, from) = (&path, slot.range.start + 1, 8 / size);
                scope.spawn(move || {
                    let mut bad = Pull { poison: Some((at, from)), seen: 0 };
                    train(path, &comm, &config(9, &[]), &mut bad, 2, 1).0.unwrap_err()
                })
            };
            let threads: Vec<_> = LocalComm::group(size).into_iter().map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (rank, error) in errors.iter().enumerate() {
            let TrainError::NotFinite { step, tensor, path: file, .. } = error else {
                panic!("{error}");
            };
            assert_eq!((*step, tensor.as_ref()), (5, Some(&slot.spec.name)));
            let kept: Value =
                serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
            let packs = kept["micro_batches"].as_array().unwrap();
            assert_eq!(packs.len(), 2 / size);
            let pack = support::pack(8 + rank as u64);
            assert_eq!(packs[0]["tokens"], serde_json::json!(pack.tokens));
        }
        // Without the bad number the run goes on as if nothing had been.
        let single = LocalComm::single();
        train(&path, &single, &config(9, &[]), &mut plain(), 2, 1).0.unwrap();
    }
    let whole = dir.path().join("whole");
    run(&whole, &config(9, &[]), 2, 1);
    for size in ["1", "2"] {
        assert_eq!(weights(&dir.path().join(size)), weights(&whole), "{size}");
    }
}

/// Gives the first `0` parameters a gradient.
struct First(usize);

impl Objective for First {
    fn micro_batch(
        &mut self,
        _: &Cpu,
        _: &[f32],
        batch: &PackedBatch,
        _: f32,
        gradient: &mut [f32],
    ) -> LossSums {
        gradient[..self.0].fill(1.0);
        LossSums { loss: 1.0, weight: self.weight(batch), metrics: Vec::new() }
    }
}

#[test]
fn tensors_without_gradient_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(&model());
    let all = layout.slots().len();
    let first = |num: usize| {
        let path = dir.path().join(num.to_string());
        train(&path, &LocalComm::single(), &config(1, &[]), &mut First(num), 1, 1)
    };
    let (outcome, warnings) = first(1);
    outcome.unwrap();
    assert!(warnings[0].starts_with(&format!("{} of {all} tensors", all - 1)), "{warnings:?}");
    assert!(warnings[0].contains("lm_head.weight") && !warnings[0].contains("embeddings"));
    assert_eq!(first(layout.len() - 1).1, [""; 0]);
    assert!(matches!(first(0).0, Err(TrainError::NoGradient)));
}

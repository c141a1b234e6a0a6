//! Distillation: the loss against a direct computation, gradients against differences, ranks, phases.

mod support;

use hybra_chat::{ChatModel, GenerationDefaults};
use hybra_kernels::{Cpu, Isa};
use hybra_model::Config;
use hybra_model::parameters::Layout;
use hybra_model::training::{Keep, PackedBatch, Tape, Trainable};
use hybra_tokenizer::{SpecialIds, Tokenizer};
use hybra_train::config::PhaseConfig;
use hybra_train::data::{DataConfig, Phases, SampleEncoder};
use hybra_train::distil::{
    CountedTokens, DistilConfig, Distillation, KlDirection, Weighted, divergence,
};
use hybra_train::teacher_cache::{self, CachedBatches, Manifest};
use hybra_train::{Batches, LocalComm, Objective, Outcome};
use support::{Counter, alone, config, model, train};

fn cpu() -> Cpu {
    Cpu::new(Isa::best(), 2)
}

/// Another depth and width than the student's.
fn teacher() -> Weighted {
    let mut config = model();
    config.hidden_size = 48;
    config.layers.truncate(2);
    let parameters = Layout::new(&config).random(&config, 11);
    Weighted { model: Trainable::new(config, Keep::Inputs), parameters }
}

fn student(seed: u64) -> Weighted {
    let parameters = Layout::new(&model()).random(&model(), seed);
    Weighted { model: Trainable::new(model(), Keep::Projections), parameters }
}

fn settings(direction: KlDirection, tokens: CountedTokens, temperature: f32) -> DistilConfig {
    DistilConfig { teacher: Some("teacher".into()), cache: None, temperature, direction, tokens }
}

fn batch() -> PackedBatch {
    let mut batch = Counter { next: 1, packs: 1 }.step(&alone()).unwrap().remove(0);
    batch.classes = (0..batch.tokens.len()).map(|i| (i % 3) as u8).collect();
    batch
}

/// log-probabilities of every row, in f64, by the head's whole matrix.
fn log_probs(side: &Weighted, batch: &PackedBatch, temperature: f64) -> Vec<Vec<f64>> {
    let mut tape = Tape::default();
    let all = vec![1.0; batch.tokens.len()];
    side.model.forward(&cpu(), &side.parameters, batch, &all, &mut tape);
    let (config, head): (&Config, _) = (side.model.config(), side.model.head(&side.parameters));
    let row = |x: &[f32]| {
        let dot = |v| -> f64 {
            head.row(v).iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
        };
        let logits: Vec<f64> = (0..config.vocab_size).map(|v| dot(v) / temperature).collect();
        let top = logits.iter().copied().fold(f64::MIN, f64::max);
        let lse = top + logits.iter().map(|l| (l - top).exp()).sum::<f64>().ln();
        logits.iter().map(|l| l - lse).collect()
    };
    tape.normed().chunks_exact(config.hidden_size).map(row).collect()
}

#[test]
fn the_loss_is_the_divergence_over_the_counted_tokens() {
    let batch = batch();
    for direction in [KlDirection::Forward, KlDirection::Reverse] {
        for tokens in [CountedTokens::All, CountedTokens::Learned] {
            let settings = settings(direction, tokens, 2.0);
            let (p, q) = (log_probs(&teacher(), &batch, 2.0), log_probs(&student(1), &batch, 2.0));
            let counted = match tokens {
                CountedTokens::All => batch.followed(),
                CountedTokens::Learned => batch.weights.clone(),
            };
            let mut want = 0.0;
            for ((p, q), weight) in p.iter().zip(&q).zip(&counted) {
                let (of, from) = if direction == KlDirection::Forward { (p, q) } else { (q, p) };
                let kl: f64 = of.iter().zip(from).map(|(a, b)| a.exp() * (a - b)).sum();
                want += f64::from(*weight) * 4.0 * kl;
            }
            let Weighted { model, parameters } = student(1);
            let mut gradient = vec![0.0; parameters.len()];
            let mut objective = Distillation::new(model, Some(teacher()), settings);
            let sums = objective.micro_batch(&cpu(), &parameters, &batch, 1.0, &mut gradient);
            assert!((sums.loss / want - 1.0).abs() < 1e-4, "{} {want}", sums.loss);
            assert_eq!(sums.weight, objective.weight(&batch));
            assert_eq!(sums.weight, counted.iter().map(|w| f64::from(*w)).sum::<f64>());
            let classes: f64 = sums.metrics.iter().map(|(_, loss, _)| loss).sum();
            assert!((classes - sums.loss).abs() < 1e-3 * sums.loss, "{classes} {}", sums.loss);
            assert_eq!(sums.metrics[3], ("kl_tool", 0.0, 0.0));
        }
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    let (batch, Weighted { model, parameters }) = (batch(), student(2));
    let layout = Layout::new(model.config());
    let settings = settings(KlDirection::Forward, CountedTokens::All, 1.0);
    let mut objective = Distillation::new(model, Some(teacher()), settings);
    let mut gradient = vec![0.0; parameters.len()];
    objective.micro_batch(&cpu(), &parameters, &batch, 1.0, &mut gradient);
    let mut measured = 0;
    for slot in layout.slots() {
        // Along the gradient of one tensor, the loss must rise by its squared norm.
        let direction = &gradient[slot.range.clone()];
        let norm: f64 = direction.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        // Below, f32 sums of the loss are too coarse for a slope.
        if norm < 0.05 {
            continue;
        }
        measured += 1;
        let mut at = |step: f64| {
            let mut moved = parameters.clone();
            let part = moved[slot.range.clone()].iter_mut().zip(direction);
            part.for_each(|(p, g)| *p += (step * f64::from(*g) / norm) as f32);
            let mut ignored = vec![0.0; moved.len()];
            objective.micro_batch(&cpu(), &moved, &batch, 1.0, &mut ignored).loss
        };
        let slope = (at(3e-3) - at(-3e-3)) / 6e-3;
        assert!((slope / norm - 1.0).abs() < 0.05, "{}: {slope} {norm}", slot.spec.name);
    }
    assert!(measured > layout.slots().len() / 2, "{measured}");
}

#[test]
fn a_student_that_is_its_teacher_learns_nothing_new() {
    let batch = batch();
    let same = divergence(&cpu(), &student(3), &student(3), std::slice::from_ref(&batch));
    assert!(same.kl.abs() < 1e-6, "{same:?}");
    let other = divergence(&cpu(), &teacher(), &student(3), &[batch.clone(), batch.clone()]);
    assert!(other.kl > 0.1 && other.tokens == 2 * (batch.tokens.len() as u64 - 2), "{other:?}");
    let Weighted { model, parameters } = student(3);
    let mut gradient = vec![0.0; parameters.len()];
    let settings = settings(KlDirection::Reverse, CountedTokens::All, 1.0);
    let mut objective = Distillation::new(model, Some(student(3)), settings);
    objective.micro_batch(&cpu(), &parameters, &batch, 1.0, &mut gradient);
    let largest = gradient.iter().fold(0.0f32, |most, g| most.max(g.abs()));
    assert!(largest < 1e-4, "{largest}");
}

#[test]
fn a_run_brings_the_student_nearer_and_ranks_change_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(12, &["optimizer.lr=0.003"]);
    let objective = || {
        let settings = settings(KlDirection::Forward, CountedTokens::All, 1.0);
        Distillation::new(student(0).model, Some(teacher()), settings)
    };
    let one = dir.path().join("1");
    let single = LocalComm::single();
    let (outcome, _) = train(&one, &single, &config, &mut objective(), 4, 2);
    assert_eq!(outcome.unwrap(), Outcome::Done(one.join("model")));
    let log = std::fs::read_to_string(one.join("log.jsonl")).unwrap();
    let value = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let losses: Vec<f64> = log.lines().map(|line| value(line)["loss"].as_f64().unwrap()).collect();
    assert!(losses[11] < 0.9 * losses[0], "{losses:?}");
    assert!(value(log.lines().next().unwrap())["metrics"]["kl_prompt"].is_number(), "{log}");
    let two = dir.path().join("2");
    std::thread::scope(|scope| {
        for comm in LocalComm::group(2) {
            let (two, config) = (&two, &config);
            scope.spawn(move || {
                let settings = settings(KlDirection::Forward, CountedTokens::All, 1.0);
                let mut objective = Distillation::new(student(0).model, Some(teacher()), settings);
                train(two, &comm, config, &mut objective, 4, 1).0.unwrap()
            });
        }
    });
    let bytes = |dir: &std::path::Path| std::fs::read(dir.join("model/model.safetensors")).unwrap();
    assert!(bytes(&one) == bytes(&two));
}

fn encoder() -> SampleEncoder {
    let file = |name: &str| {
        let path = format!("{}/../../assets/default-model/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    };
    let (json, settings) = (file("tokenizer.json"), file("tokenizer_config.json"));
    let template = file("chat_template.jinja");
    let ids = SpecialIds::default();
    let tokenizer = Tokenizer::from_files(&json, Some(&settings), Some(&template), &ids).unwrap();
    let eos = tokenizer.eos_ids().to_vec();
    let model = ChatModel::new("m".into(), tokenizer, eos, GenerationDefaults::default()).unwrap();
    SampleEncoder::new(model).unwrap()
}

#[test]
fn phases_follow_each_other_and_go_on_where_they_stopped() {
    let text = "pack_len = 512\nbatch_size = 2\npool = 8\n[[sources]]\ntask = \"chainbox\"\n";
    let data: DataConfig = toml::from_str(text).unwrap();
    let phase = |steps, pack_len, batch_size| PhaseConfig { steps, pack_len, batch_size };
    let phases = [phase(2, Some(256), None), phase(3, None, Some(1))];
    let open = || Phases::open(&data, &phases, &encoder()).unwrap();
    let mut whole = open();
    let steps: Vec<_> = (0..5).map(|_| whole.step(&alone()).unwrap()).collect();
    let shape = |packs: &Vec<PackedBatch>| {
        (packs.len(), packs.iter().map(|pack| pack.tokens.len()).max().unwrap())
    };
    assert!(steps[..2].iter().all(|packs| shape(packs).0 == 2 && shape(packs).1 <= 256));
    assert!(steps[2..].iter().all(|packs| shape(packs).0 == 1 && shape(packs).1 > 256));
    assert_ne!(steps[0][0].tokens[..64], steps[2][0].tokens[..64]);
    for done in 0..5 {
        let mut first = open();
        (0..done).for_each(|_| drop(first.step(&alone()).unwrap()));
        let mut second = open();
        second.restore(&first.state()).unwrap();
        for want in &steps[done..] {
            assert_eq!(&second.step(&alone()).unwrap(), want, "after {done} steps");
        }
    }
    let mut state = whole.state();
    state["phase"] = serde_json::json!(7);
    assert!(open().restore(&state).unwrap_err().to_string().contains("phase"));
    // Classes tell prompts from what the assistant writes.
    let classes = &steps[0][0].classes;
    assert!((0..3).all(|class| classes.contains(&class)) && !classes.contains(&3));
}

#[test]
fn a_cache_says_what_the_teacher_says_and_is_bound_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let counter = || Box::new(Counter { next: 0, packs: 2 });
    let manifest = |teacher: &str, top_k, steps| {
        let data = counter().fingerprint();
        Manifest::new(teacher.to_owned(), data, 2.0, top_k, steps)
    };
    let vocab = model().vocab_size;
    let write = |name: &str, top_k, steps| {
        let (path, mut batches) = (dir.path().join(name), counter());
        let made = manifest("hash", top_k, steps);
        let done = &mut |_| {};
        teacher_cache::write(&cpu(), &path, &made, &teacher(), &mut *batches, done).unwrap();
        path
    };
    let loss = |path: &std::path::Path, run: &Manifest| {
        let mut cached = CachedBatches::open(path, run, counter()).unwrap();
        let settings = settings(KlDirection::Forward, CountedTokens::All, 2.0);
        let mut objective = Distillation::new(student(1).model, None, settings.clone());
        let mut online = Distillation::new(student(1).model, Some(teacher()), settings);
        let parameters = student(1).parameters;
        cached.step(&alone()).unwrap();
        let packs = cached.step(&alone()).unwrap();
        let mut gradients = [vec![0.0; parameters.len()], vec![0.0; parameters.len()]];
        let [a, b] = &mut gradients;
        let cached = objective.micro_batch(&cpu(), &parameters, &packs[1], 1.0, a).loss;
        let mut plain = packs[1].clone();
        plain.soft_labels = None;
        let online = online.micro_batch(&cpu(), &parameters, &plain, 1.0, b).loss;
        let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let apart: Vec<f32> = a.iter().zip(&*b).map(|(a, b)| a - b).collect();
        (cached, online, norm(&apart) / norm(b))
    };
    let whole = write("whole", vocab, 3);
    let (cached, online, gradients) = loss(&whole, &manifest("hash", 0, 3));
    assert!((cached / online - 1.0).abs() < 1e-3, "{cached} {online}");
    assert!(gradients < 2e-2, "{gradients}");
    // Fewer tokens see less: merging outcomes never raises a divergence.
    let few = write("few", 8, 3);
    let (cached, online, _) = loss(&few, &manifest("hash", 0, 2));
    assert!(cached < online && cached > 0.0, "{cached} {online}");
    let refused = |run: &Manifest| match CachedBatches::open(&few, run, counter()) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("not refused"),
    };
    assert!(refused(&manifest("other", 0, 3)).contains("`teacher` is hash"));
    assert!(refused(&manifest("hash", 0, 9)).contains("`steps` is 3"));
    let cold = Manifest::new("hash".into(), counter().fingerprint(), 1.0, 0, 3);
    assert!(refused(&cold).contains("`temperature` is 2"));
    let foreign = Manifest::new("hash".into(), "other data".into(), 2.0, 0, 3);
    assert!(refused(&foreign).contains("`data`"));
    // A torn file is noticed when it is read.
    let torn = few.join("step-000001.topk");
    let bytes = std::fs::read(&torn).unwrap();
    std::fs::write(&torn, &bytes[..bytes.len() - 1]).unwrap();
    let mut cached = CachedBatches::open(&few, &manifest("", 0, 3), counter()).unwrap();
    assert!(cached.step(&alone()).unwrap_err().to_string().contains("damaged"));
}

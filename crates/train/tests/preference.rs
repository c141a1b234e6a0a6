//! DPO and GRPO on a real small model: rollouts, losses at the start, gradients, resumes, ranks.

mod support;

use hybra_chat::{ChatModel, GenerationDefaults};
use hybra_kernels::{Cpu, Isa};
use hybra_model::Config;
use hybra_model::SCAN_CHUNK;
use hybra_model::parameters::Layout;
use hybra_model::training::{Keep, PackedBatch, Precision, Signals, Trainable};
use hybra_tokenizer::{SpecialIds, Tokenizer};
use hybra_train::data::SampleEncoder;
use hybra_train::distil::Weighted;
use hybra_train::dpo::{Dpo, DpoConfig, DpoLoss, Pair, PairBatches, PairConfig};
use hybra_train::grpo::{GrpoBatches, GrpoConfig, Judge, JudgeConfig};
use hybra_train::policy_gradient::{ClipConfig, PolicyGradient};
use hybra_train::rollout::{PromptConfig, Prompts, Roller, Rollout, RolloutConfig};
use hybra_train::{Batches, LocalComm, LossSums, Objective, Policy};
use std::path::{Path, PathBuf};
use support::{Counter, alone, model};

fn cpu() -> Cpu {
    Cpu::new(Isa::best(), 2)
}

fn asset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/default-model").join(name)
}

/// The model in the binary, in f32.
fn trained() -> (Config, Vec<f32>, ChatModel) {
    let checkpoint = hybra_checkpoint::Checkpoint::open(&asset("")).unwrap();
    let config = Config::from_checkpoint(&checkpoint).unwrap();
    let parameters = Layout::new(&config).load(&checkpoint, &config).unwrap();
    let text = |name: &str| std::fs::read_to_string(asset(name)).unwrap();
    let (json, settings) = (text("tokenizer.json"), text("tokenizer_config.json"));
    let template = text("chat_template.jinja");
    let special = SpecialIds::default();
    let tokenizer =
        Tokenizer::from_files(&json, Some(&settings), Some(&template), &special).unwrap();
    let eos = config.eos_token_ids.clone();
    let chat = ChatModel::new("m".into(), tokenizer, eos, GenerationDefaults::default()).unwrap();
    (config, parameters, chat)
}

fn prompts(group: usize) -> Prompts {
    let data = "pack_len = 512\nseed = 3\n[[sources]]\ntask = \"chainbox\"\nweight = 2\n\
                [[sources]]\ntask = \"tools\"\n";
    let data: PromptConfig = toml::from_str(data).unwrap();
    let rollout = "prompts = 6\nmax_tokens = 60\nbudgets = [\"off\", 8, \"inf\"]\n";
    let rollout: RolloutConfig = toml::from_str(rollout).unwrap();
    Prompts::open(&data, &RolloutConfig { group, ..rollout }).unwrap()
}

fn roller() -> (Roller, Vec<f32>) {
    let (config, parameters, chat) = trained();
    (Roller::new(chat, config, (Isa::best(), 2), (1.0, 60)), parameters)
}

/// Rollouts of a few prompts on so many ranks, as each rank sees them.
fn rolled(size: usize) -> Vec<Vec<Rollout>> {
    let rank = |comm: LocalComm| {
        let (roller, parameters) = roller();
        let policy = Policy { parameters: &parameters, comm: &comm };
        let prompts = prompts(2);
        let asks: Vec<_> = (0..8).flat_map(|index| prompts.prompt(index).asks).collect();
        roller.roll(&policy, &asks).unwrap()
    };
    std::thread::scope(|scope| {
        let ranks = LocalComm::group(size);
        let ranks: Vec<_> = ranks.into_iter().map(|comm| scope.spawn(|| rank(comm))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn rollouts_are_the_same_on_any_number_of_ranks() {
    let alone = rolled(1).remove(0);
    for found in rolled(3) {
        assert!(found == alone);
    }
    assert!(alone.iter().any(|r| r.tokens.iter().any(|token| !token.sampled)), "a cut");
    assert!(alone.iter().all(|r| r.well_formed));
    assert!(alone.iter().any(|r| r.finished), "a whole answer");
    assert!(alone.iter().any(|r| !r.calls.is_empty()), "a call");
}

/// What an objective's batch said, summed.
fn metric(sums: &LossSums, name: &str) -> (f64, f64) {
    let (_, value, count) = sums.metrics.iter().find(|(n, ..)| *n == name).unwrap();
    (*value, *count)
}

/// Budgets cut some of the answers, and prompts are longer than a chunk of the scan.
#[test]
fn training_gives_sampled_tokens_the_log_probabilities_of_the_engine_to_the_bit() {
    for isa in Isa::available() {
        let (config, parameters, chat) = trained();
        let roller = Roller::new(chat, config.clone(), (isa, 2), (1.0, 60));
        let mut batches = GrpoBatches::new(prompts(2), roller, GrpoConfig::default());
        let comm = LocalComm::single();
        let policy = Policy { parameters: &parameters, comm: &comm };
        let mut packs = batches.step(&policy).unwrap();
        let of = |batch: &PackedBatch| batch.signals.clone().unwrap();
        let mut lens = packs.iter().flat_map(|batch| of(batch).prompts);
        assert!(lens.any(|len| len > SCAN_CHUNK && len % SCAN_CHUNK > 1));
        let inserted = |batch: &PackedBatch| {
            let sampled = of(batch).sampled;
            (0..sampled.len()).any(|t| sampled[t] != 0.0 && batch.weights[t] == 0.0)
        };
        assert!(packs.iter().any(inserted), "tokens that a budget inserted");
        let gap = |packs: &[PackedBatch], keep, precision, threads| {
            let model = Trainable::new(config.clone(), keep).with_precision(precision);
            let mut objective = PolicyGradient::new(model, None, ClipConfig::default());
            let (mut gradient, cpu) = (vec![0.0; parameters.len()], Cpu::new(isa, threads));
            let mut gap = |batch| {
                let sums = objective.micro_batch(&cpu, &parameters, batch, 1.0, &mut gradient);
                metric(&sums, "logprob_gap")
            };
            let gaps: Vec<_> = packs.iter().map(&mut gap).collect();
            let (gap, count) = gaps.iter().fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
            assert!(count > 100.0, "{count} tokens");
            gap / count
        };
        for (keep, precision, threads) in [
            (Keep::Projections, Precision::F32, 1),
            (Keep::Inputs, Precision::F32, 3),
            (Keep::Projections, Precision::Bf16, 2),
        ] {
            assert_eq!(gap(&packs, keep, precision, threads), 0.0, "{isa} {keep:?} {precision:?}");
        }
        // Read in chunks to their ends, the same answers have other bits.
        for batch in &mut packs {
            batch.signals.as_mut().unwrap().prompts.copy_from_slice(&batch.documents);
        }
        let gap = gap(&packs, Keep::Projections, Precision::F32, 2);
        assert!(gap > 0.0 && gap < 1e-4, "{isa}: {gap}");
    }
}

#[test]
fn a_step_of_grpo_begins_at_ratio_1_and_a_restored_run_sees_the_same_answers() {
    let batches = || {
        let (roller, parameters) = roller();
        let config = GrpoConfig { updates: 2, ..GrpoConfig::default() };
        (GrpoBatches::new(prompts(4), roller, config), parameters)
    };
    let (mut first, parameters) = batches();
    let comm = LocalComm::single();
    let policy = Policy { parameters: &parameters, comm: &comm };
    let one = first.step(&policy).unwrap();
    let names: Vec<&str> = first.metrics().iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"reward") && names.contains(&"flat_groups"), "{names:?}");
    let saved = first.state();
    let two = first.step(&policy).unwrap();
    assert!(first.metrics().is_empty(), "the second half of the same answers");
    let (mut second, _) = batches();
    second.restore(&serde_json::from_str(&saved.to_string()).unwrap()).unwrap();
    assert!(second.step(&policy).unwrap() == two);
    assert!(second.step(&policy).unwrap() == first.step(&policy).unwrap(), "a new round");

    let (config, ..) = trained();
    let model = Trainable::new(config.clone(), Keep::Projections);
    let reference =
        Weighted { model: Trainable::new(config, Keep::Inputs), parameters: parameters.clone() };
    let clip = ClipConfig { kl: 0.1, ..ClipConfig::default() };
    let mut objective = PolicyGradient::new(model, Some(reference), clip);
    let mut gradient = vec![0.0; parameters.len()];
    for batch in &one {
        let sums = objective.micro_batch(&cpu(), &parameters, batch, 1.0, &mut gradient);
        let advantages = &batch.signals.as_ref().unwrap().advantages;
        let learned = advantages.iter().zip(&batch.weights);
        let want: f64 = learned.map(|(a, w)| -f64::from(a * w)).sum();
        assert!((sums.loss - want).abs() < 1e-4 * (1.0 + want.abs()), "{} {want}", sums.loss);
        for name in ["kl", "clipped"] {
            assert_eq!(metric(&sums, name).0, 0.0, "{name}: r is 1, no way from itself");
        }
    }
    assert!(gradient.iter().any(|g| *g != 0.0));
}

/// The shipped model was never taught to judge: its verdicts cannot be read.
#[test]
fn a_judge_that_cannot_judge_ends_the_run_on_every_rank_and_names_itself() {
    let batches = |weight: f64| {
        let text = format!("model = 'some-judge'\nweight = {weight}\nmax_tokens = 40");
        let config: JudgeConfig = toml::from_str(&text).unwrap();
        let (shape, parameters, chat) = trained();
        let checkpoint = hybra_checkpoint::Checkpoint::open(&asset("")).unwrap();
        let weights = hybra_model::weights::Weights::load(&checkpoint, &shape, |_, _| {}).unwrap();
        let model = hybra_model::nemotron_h::NemotronH::new(shape.clone(), weights);
        let of_judge = Roller::new(chat, shape, (Isa::best(), 1), (0.0, 40));
        let judge = Judge::new(model.into(), of_judge, config, checkpoint.hash());
        let batches = GrpoBatches::new(prompts(3), roller().0, GrpoConfig::default());
        (batches.with_judge(judge), parameters)
    };
    let run = |comm: LocalComm| {
        let (mut batches, parameters) = batches(1.0);
        let policy = Policy { parameters: &parameters, comm: &comm };
        batches.step(&policy).unwrap_err().to_string()
    };
    let alone = run(LocalComm::single());
    assert!(alone.contains("some-judge: expected two scores from 1 to 5"), "{alone}");
    let ranks = LocalComm::group(2);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = ranks.into_iter().map(|comm| scope.spawn(|| run(comm))).collect();
        for rank in ranks {
            assert_eq!(rank.join().unwrap(), alone);
        }
    });
    let fingerprint = |weight| batches(weight).0.fingerprint();
    assert_eq!(fingerprint(1.0), fingerprint(1.0));
    assert_ne!(fingerprint(1.0), fingerprint(2.0));
    assert_ne!(fingerprint(1.0), prompts(3).fingerprint());
}

/// d loss of the objective against central differences along the gradient.
fn check_gradient(objective: &mut dyn Objective, parameters: &[f32], batch: &PackedBatch) {
    let mut gradient = vec![0.0; parameters.len()];
    objective.micro_batch(&cpu(), parameters, batch, 1.0, &mut gradient);
    let norm = gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt();
    let step = 1e-3 / norm;
    let mut at = |sign: f64| {
        let moved: Vec<f32> = parameters
            .iter()
            .zip(&gradient)
            .map(|(p, g)| (f64::from(*p) + sign * step * f64::from(*g)) as f32)
            .collect();
        let mut unused = vec![0.0; parameters.len()];
        objective.micro_batch(&cpu(), &moved, batch, 1.0, &mut unused).loss
    };
    let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
    let error = (slope / (norm * norm) - 1.0).abs();
    assert!(error < 2e-2, "slope {slope}, gradient {}", norm * norm);
}

fn random(seed: u64) -> Vec<f32> {
    Layout::new(&model()).random(&model(), seed)
}

#[test]
fn gradients_of_both_losses_are_derivatives() {
    let mut batch = Counter { next: 1, packs: 1 }.step(&alone()).unwrap().remove(0);
    let n = batch.tokens.len();
    let sampled = (0..n).map(|t| -4.1 - 0.2 * (t % 3) as f32).collect();
    let advantages = (0..n).map(|t| [1.0, -0.5, 0.25][t % 3]).collect();
    let prompts = batch.documents.iter().map(|len| len.div_ceil(2)).collect();
    batch.signals = Some(Signals { advantages, sampled, prompts });
    let reference =
        || Weighted { model: Trainable::new(model(), Keep::Inputs), parameters: random(2) };
    let policy = || Trainable::new(model(), Keep::Projections);
    let wide = ClipConfig { clip_low: 0.9, clip_high: 9.0, dual_clip: 0.0, kl: 0.2 };
    check_gradient(&mut PolicyGradient::new(policy(), Some(reference()), wide), &random(1), &batch);
    for loss in [DpoLoss::Sigmoid, DpoLoss::Ipo] {
        for length_normalized in [false, true] {
            let config =
                DpoConfig { beta: 0.3, loss, length_normalized, sft: 0.2, ..DpoConfig::default() };
            check_gradient(&mut Dpo::new(policy(), reference(), config), &random(1), &batch);
        }
    }
}

/// Five pairs, of which a pass takes two.
#[test]
fn what_a_reference_said_before_is_what_it_says_beside_the_policy() {
    let (config, parameters, chat) = trained();
    let encoder = SampleEncoder::new(chat).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.jsonl");
    let line =
        |n: u32| format!(r#"{{"prompt": "a={n};a?", "chosen": "{n}", "rejected": "no {n}"}}"#);
    std::fs::write(&path, (1..6).map(line).collect::<Vec<_>>().join("\n")).unwrap();
    let open = |pack_len| {
        let settings = PairConfig { path: path.clone(), seed: 0, pack_len, batch_size: 5 };
        PairBatches::open(&settings, &encoder).unwrap()
    };
    let longest = |pair: &Pair| pair.chosen.tokens.len() + pair.rejected.tokens.len();
    let pack_len = 2 * open(512).pairs().iter().map(longest).max().unwrap();
    let weighted = || Weighted {
        model: Trainable::new(config.clone(), Keep::Inputs),
        parameters: parameters.clone(),
    };
    let moved: Vec<f32> = parameters.iter().map(|p| p * 1.001).collect();
    // Sums and gradients of a start and of a later step.
    let learned = |packs: &[PackedBatch], precompute_ref_log_probs| {
        let settings = DpoConfig { precompute_ref_log_probs, ..DpoConfig::default() };
        let policy = Trainable::new(config.clone(), Keep::Projections);
        let mut dpo = Dpo::new(policy, weighted(), settings);
        let mut gradient = vec![0.0; parameters.len()];
        let mut step = |weights, pack| dpo.micro_batch(&cpu(), weights, pack, 1.0, &mut gradient);
        let sums: Vec<_> = [&parameters, &moved]
            .into_iter()
            .flat_map(|weights| packs.iter().map(move |pack| (weights, pack)))
            .map(|(weights, pack)| step(weights, pack))
            .collect();
        (sums, gradient)
    };
    let packs = open(pack_len).step(&alone()).unwrap();
    assert_eq!(packs.iter().map(|pack| pack.documents.len()).collect::<Vec<_>>(), [4, 4, 2]);
    let want = learned(&packs, false);
    let precomputed = |comm: LocalComm| {
        let mut batches = open(pack_len).with_reference(cpu(), weighted(), |_, _| {});
        batches.precompute(&comm).unwrap();
        batches.step(&alone()).unwrap()
    };
    for size in [1, 2, 7] {
        let ranks = std::thread::scope(|scope| {
            let ranks = LocalComm::group(size).into_iter();
            let ranks: Vec<_> = ranks.map(|comm| scope.spawn(|| precomputed(comm))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(ranks.iter().all(|found| *found == ranks[0]), "{size} ranks");
        assert!(learned(&ranks[0], true) == want, "{size} ranks");
    }
}

#[test]
fn dpo_starts_at_ln_2_and_pairs_are_read_with_their_prompts() {
    let (config, parameters, chat) = trained();
    let encoder = SampleEncoder::new(chat).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.jsonl");
    let lines = r#"{"prompt": "a=1;a?", "chosen": "1", "rejected": "2"}
{"prompt": [{"role": "user", "content": "b=2;b?"}], "chosen": [{"role": "assistant", "reasoning_content": "b=2", "content": "2"}], "rejected": [{"role": "assistant", "reasoning_content": "b=3", "content": "3"}]}
"#;
    std::fs::write(&path, lines).unwrap();
    let settings = PairConfig { path: path.clone(), seed: 0, pack_len: 512, batch_size: 2 };
    let mut batches = PairBatches::open(&settings, &encoder).unwrap();
    for pair in batches.pairs() {
        let first = |mask: &[bool]| mask.iter().position(|learned| *learned).unwrap();
        let (a, b) = (first(&pair.chosen.mask), first(&pair.rejected.mask));
        assert_eq!(pair.chosen.tokens[..a], pair.rejected.tokens[..b], "the same prompt");
    }
    let packs = batches.step(&alone()).unwrap();
    assert_eq!(packs[0].documents.len(), 4);
    let weighted = || Weighted {
        model: Trainable::new(config.clone(), Keep::Inputs),
        parameters: parameters.clone(),
    };
    let policy = || Trainable::new(config.clone(), Keep::Projections);
    let mut dpo = Dpo::new(policy(), weighted(), DpoConfig::default());
    let mut gradient = vec![0.0; parameters.len()];
    let start = dpo.micro_batch(&cpu(), &parameters, &packs[0], 0.5, &mut gradient);
    assert_eq!(start.loss / start.weight, std::f64::consts::LN_2);
    let moved: Vec<f32> = parameters.iter().zip(&gradient).map(|(p, g)| p - 0.02 * g).collect();
    let after = dpo.micro_batch(&cpu(), &moved, &packs[0], 0.5, &mut gradient);
    assert!(after.loss / after.weight < std::f64::consts::LN_2, "{}", after.loss);

    let refused = |line: &str, part: &str| {
        std::fs::write(
            &path,
            format!("{}{line}\n", lines.lines().next().unwrap().to_owned() + "\n"),
        )
        .unwrap();
        let message = PairBatches::open(&settings, &encoder).err().unwrap().to_string();
        assert!(message.contains("line 2") && message.contains(part), "{message}");
    };
    refused("{\"prompt\": \"x\", \"chosen\": \"y\"}", "`rejected`");
    refused("{\"prompt\": \"x\", \"chosen\": \"y\", \"rejected\": \"y\"}", "the same");
    refused("nonsense", "JSON");
    let long = "a".repeat(3000);
    refused(
        &format!("{{\"prompt\": \"{long}\", \"chosen\": \"1\", \"rejected\": \"2\"}}"),
        "pack_len",
    );
}

//! Shrinking as a user does it: importance, prune, divergence, distil, merge, search; with refusals.

mod support;

use std::fs;
use std::path::Path;
use support::{hybra, hybra_fails, hybra_with};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/default-model");

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

fn importance(at: &Path, more: &[&str]) -> String {
    let words = ["importance", MODEL, "-o", "imp", "--task", "chainbox", "--samples", "12"];
    hybra(at, &[&words[..], more].concat())
}

#[test]
fn a_student_is_cut_planned_and_compared() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let told = importance(at, &["--gram", "--depth-documents", "2", "--keep-layers", "13"]);
    assert!(told.contains("layers in the order in which they go"), "{told}");
    let again = hybra_fails(at, &["importance", MODEL, "-o", "imp", "--task", "chainbox"]);
    assert!(again.contains("--force"), "{again}");
    let shape = ["--num-layers", "14", "--hidden-size", "112", "--mamba-head-dim", "24"];
    let prune = |out: &str, more: &[&str]| {
        let words = ["prune", MODEL, out, "--importance", "imp", "--json"];
        json(&hybra(at, &[&words[..], &shape, more].concat()))
    };
    let student = prune("student", &[]);
    assert_eq!(student["repaired"], serde_json::json!(["norms", "consumers"]));
    assert_eq!(
        (student["layers"].as_u64(), student["hidden_size"].as_u64()),
        (Some(14), Some(112))
    );
    let plain =
        prune("plain", &["--compensate", "none", "--scores", "act-l2", "--channels", "shared"]);
    assert_eq!(plain["parameters"], student["parameters"]);
    let kl = |student: &str| {
        let words =
            ["divergence", MODEL, student, "--task", "chainbox", "--samples", "8", "--seed"];
        json(&hybra(at, &[&words[..], &["5", "--json"]].concat()))["kl"].as_f64().unwrap()
    };
    assert_eq!(kl(MODEL), 0.0);
    let (repaired, published) = (kl("student"), kl("plain"));
    assert!(repaired < 0.8 * published, "{repaired} {published}");
    // The plan beside the student makes the same student again; a plan of another teacher does not.
    hybra(at, &["prune", MODEL, "again", "--plan", "student/plan.json", "--importance", "imp"]);
    let weights = |model: &str| fs::read(at.join(model).join("model.safetensors")).unwrap();
    assert!(weights("again") == weights("student"));
    for option in [["--hidden-size", "96"], ["--scores", "random"]] {
        let words = ["prune", MODEL, "x", "--plan", "student/plan.json"];
        let both = hybra_with(at, &[], &[&words[..], &option].concat());
        assert!(both.code == 2 && both.stderr.contains(option[0]), "{}", both.stderr);
    }
    let foreign = hybra_fails(at, &["prune", "student", "x", "--plan", "student/plan.json"]);
    assert!(foreign.contains("made for the teacher"), "{foreign}");
    let other =
        hybra_fails(at, &["prune", "student", "x", "--importance", "imp", "--hidden-size", "96"]);
    assert!(other.contains("measured on weights"), "{other}");
    let wide =
        hybra_fails(at, &["prune", MODEL, "x", "--importance", "imp", "--hidden-size", "999"]);
    assert!(wide.contains("hidden_size") && wide.contains("128"), "{wide}");
    let blind = hybra_fails(at, &["prune", MODEL, "x", "--hidden-size", "96"]);
    assert!(blind.contains("hybra importance"), "{blind}");
    // It is a model like any other.
    let report = hybra(at, &["inspect", "student", "--json"]);
    assert_eq!(json(&report)["checkpoint"]["types"][0]["dtype"], "BF16");
    hybra(at, &["generate", "student", "--prompt", "a=1;a?", "--max-tokens", "8"]);
}

#[test]
fn one_checkpoint_holds_several_students() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    importance(at, &["--depth-documents", "2", "--keep-layers", "13"]);
    let sizes = "[small]\nnum_layers = 14\nhidden_size = 112\nmamba_head_dim = 24\n\
                 [narrow]\nintermediate_size = 256\n";
    fs::write(at.join("sizes.toml"), sizes).unwrap();
    let words = ["prune", MODEL, "nested", "--importance", "imp", "--nested", "sizes.toml"];
    let told = hybra(at, &words);
    assert!(told.contains("small") && told.contains("narrow"), "{told}");
    let kl = |student: &str| {
        let words = ["divergence", MODEL, student, "--task", "chainbox", "--samples", "8"];
        json(&hybra(at, &[&words[..], &["--seed", "5", "--json"]].concat()))["kl"].as_f64().unwrap()
    };
    assert!(kl("nested") < 1e-3, "the teacher's weights in bf16, in another order");
    // The same channels as of a student that was pruned alone, but for the heads' order.
    let shape = ["--num-layers", "14", "--hidden-size", "112", "--mamba-head-dim", "24"];
    let prune = ["prune", MODEL, "alone", "--importance", "imp", "--compensate", "norms"];
    hybra(at, &[&prune[..], &shape].concat());
    let (sliced, alone) = (kl("nested/small"), kl("alone"));
    assert!((sliced / alone - 1.0).abs() < 0.02, "{sliced} {alone}");
    let report =
        |model: &str| json(&hybra(at, &["inspect", model, "--json"]))["parameters"].clone();
    assert_eq!(report("nested/small"), report("alone"));
    let words = ["generate", "nested", "--prompt", "a=1;a?", "--max-tokens", "8"];
    let (whole, small) =
        (hybra(at, &words), hybra(at, &[&words[..], &["--size", "small"]].concat()));
    assert!(!whole.is_empty() && !small.is_empty());
    let unknown = hybra_fails(at, &[&words[..], &["--size", "huge"]].concat());
    assert!(unknown.contains("narrow, small") && unknown.contains("huge"), "{unknown}");
    let plain = hybra_fails(at, &["generate", "alone", "--prompt", "x", "--size", "small"]);
    assert!(plain.contains("--nested"), "{plain}");
    fs::write(at.join("sizes.toml"), "[small]\nhidden = 1\n").unwrap();
    let words = ["prune", MODEL, "x", "--importance", "imp", "--nested", "sizes.toml"];
    let wrong = hybra_fails(at, &words);
    assert!(wrong.contains("sizes.toml") && wrong.contains("hidden_size"), "{wrong}");
}

const DISTIL: &str = r#"
steps = 6
[distil]
teacher = "TEACHER"
[optimizer]
lr = 1e-3
[[phases]]
steps = 4
pack_len = 256
[[phases]]
steps = 2
[data]
pack_len = 512
batch_size = 1
pool = 8
[[data.sources]]
task = "chainbox"
[model]
from = "student"
"#;

#[test]
fn a_student_learns_from_its_teacher_and_merges_with_its_kin() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let words = ["prune", MODEL, "student", "--scores", "random", "--intermediate-size", "128"];
    hybra(at, &words);
    fs::write(at.join("run.toml"), DISTIL.replace("TEACHER", MODEL)).unwrap();
    let distil = |out: &str, seed: &str| {
        let set = format!("seed={seed}");
        hybra(at, &["train", "distil", "--config", "run.toml", "--output", out, "--set", &set]);
        let log = fs::read_to_string(at.join(out).join("log.jsonl")).unwrap();
        log.lines().map(|line| json(line)["loss"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let losses = distil("a", "1");
    assert!(losses.len() == 6 && losses[5] < losses[0], "{losses:?}");
    distil("b", "1");
    let weights = |model: &str| fs::read(at.join(model).join("model.safetensors")).unwrap();
    assert!(weights("a/model") == weights("b/model"));
    // The teacher's answers can be kept; another temperature needs others.
    hybra(at, &["train", "cache", "--config", "run.toml", "--output", "cache", "--top-k", "32"]);
    let cached = |more: &[&'static str]| {
        let words = ["train", "distil", "--config", "run.toml", "--output", "cached"];
        [&words[..], &["--set", "distil.cache=cache"], more].concat()
    };
    let hot = hybra_fails(at, &cached(&["--set", "distil.temperature=2.0"]));
    assert!(hot.contains("`temperature` is 1"), "{hot}");
    hybra(at, &cached(&[]));
    let log = fs::read_to_string(at.join("cached/log.jsonl")).unwrap();
    let first = json(log.lines().next().unwrap())["loss"].as_f64().unwrap();
    assert!(first <= losses[0] && first > 0.9 * losses[0], "{first} {losses:?}");
    // The student of another run file's stage, or of another vocabulary, is refused.
    let sft = hybra_fails(at, &["train", "sft", "--config", "run.toml", "--output", "x"]);
    assert!(sft.contains("[distil]"), "{sft}");
    hybra(at, &["init", "micro", "other", "--dtype", "f32"]);
    let set = ["--output", "x", "--set", "distil.teacher=other"];
    let other = hybra_fails(at, &[&["train", "distil", "--config", "run.toml"][..], &set].concat());
    assert!(other.contains("vocabulary"), "{other}");
    // Both descend from the teacher; a model of the same shape from elsewhere does not.
    hybra(at, &["merge", "a/model", "student", "-o", "first", "--alpha", "0"]);
    let tensors = |model: &str| {
        let text =
            hybra(at, &["divergence", "a/model", model, "--task", "chainbox", "--samples", "4"]);
        text.lines().next().unwrap().to_owned()
    };
    assert!(tensors("first").contains("KL 0.00000"), "{}", tensors("first"));
    let words = ["merge", "a/model", "student", "-o", "best", "--method", "slerp", "-n", "4"];
    let table = hybra(at, &[&words[..], &["--sweep", "0,0.5", "--budgets", "off"]].concat());
    assert!(table.contains("chosen") && at.join("best/sweep.html").exists(), "{table}");
    let lineage = json(&fs::read_to_string(at.join("best/lineage.json")).unwrap());
    assert!(lineage["ancestors"].as_array().unwrap().len() >= 3, "{lineage}");
    fs::remove_file(at.join("student/lineage.json")).unwrap();
    fs::remove_file(at.join("a/model/lineage.json")).unwrap();
    let strangers = hybra_fails(at, &["merge", "a/model", "student", "-o", "x"]);
    assert!(strangers.contains("no common ancestor"), "{strangers}");
    hybra(at, &["merge", "a/model", "student", "-o", "x", "--allow-unrelated"]);
    let shapes = hybra_fails(at, &["merge", MODEL, "student", "-o", "y", "--allow-unrelated"]);
    assert!(shapes.contains("layer 1 is") && shapes.contains("intermediate_size"), "{shapes}");
    // Nothing is written that the type cannot hold, and no option goes unheard.
    for seed in ["1", "2"] {
        hybra(at, &["init", "micro", seed, "--dtype", "f16", "--seed", seed]);
    }
    let two = ["merge", "1", "2", "-o", "z", "--allow-unrelated"];
    let huge = hybra_fails(at, &[&two[..], &["--alpha", "1e8"]].concat());
    assert!(huge.contains("cannot hold") && !at.join("z").exists(), "{huge}");
    let words = ["--method", "task-arithmetic", "--base", "1", "--alpha", "0.5"];
    assert!(hybra_fails(at, &[&two[..], &words].concat()).contains("--scales"));
    let words = ["--method", "task-arithmetic"];
    assert!(hybra_fails(at, &[&two[..], &words].concat()).contains("--base"));
}

const SEARCH: &str = r#"
seed = 3
[space]
num_layers = [15, 16]
layer_order = [10]
intermediate_size = [128, 256, 512]
[budget]
memory = "80%"
context = 256
[importance]
samples = 6
held_out = 2
depth_documents = 2
floors = { mamba = 6, attention = 2, mlp = 7 }
[[rungs]]
candidates = 2
steps = 2
[final]
steps = 3
seeds = [1]
count = 4
controls = ["random", "scratch"]
[eval]
budgets = ["off"]
count = 4
[train.checkpoint]
every = 1
[train.data]
pack_len = 256
batch_size = 1
pool = 8
[[train.data.sources]]
task = "chainbox"
"#;

#[test]
fn a_search_finds_a_student_and_goes_on_after_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    fs::write(at.join("search.toml"), SEARCH).unwrap();
    let list = hybra(at, &["search", MODEL, "--config", "search.toml", "--list", "--json"]);
    let listed = json(&list);
    let feasible = listed["feasible"].as_array().unwrap();
    assert!(!feasible.is_empty() && feasible.len() < listed["shapes"].as_u64().unwrap() as usize);
    let budget = listed["budget"].as_u64().unwrap();
    assert!(feasible.iter().all(|f| f["memory"]["total"].as_u64().unwrap() <= budget));
    let search =
        |out: &str| hybra(at, &["search", MODEL, "--config", "search.toml", "--output", out]);
    let told = search("whole");
    assert!(told.contains("report.html") && told.contains("scratch"), "{told}");
    let model = |out: &str| at.join(out).join("final/found-1/run/model/model.safetensors");
    let page = fs::read_to_string(at.join("whole/report.html")).unwrap();
    assert!(page.contains("<svg") && !page.contains("NaN"), "{page}");
    // Killed in the middle: what is done stays, what is not is done.
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hybra"));
    command.args(["search", MODEL, "--config", "search.toml", "--output", "killed"]);
    let quiet = std::process::Stdio::null;
    let mut child = command.current_dir(at).stdout(quiet()).stderr(quiet()).spawn().unwrap();
    let begun = at.join("killed/final/found-1/run/checkpoints/step-000001");
    while !begun.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().ok();
    child.wait().unwrap();
    search("killed");
    assert!(fs::read(model("whole")).unwrap() == fs::read(model("killed")).unwrap());
    let scores = |out: &str| {
        let mut all = json(&fs::read_to_string(at.join(out).join("search.json")).unwrap());
        let times = |value: &mut serde_json::Value| {
            value["score"]["tokens_per_second"] = 0.into();
            value["measured"]["tokens_per_second"] = 0.into();
        };
        for list in ["trials", "finals"] {
            all[list].as_array_mut().unwrap().iter_mut().for_each(times);
        }
        all
    };
    assert_eq!(scores("whole"), scores("killed"));
    let changed = SEARCH.replace("seed = 3", "seed = 4");
    fs::write(at.join("search.toml"), changed).unwrap();
    let words = ["search", MODEL, "--config", "search.toml", "--output", "whole"];
    assert!(hybra_fails(at, &words).contains("another search"));
}

#[test]
fn the_published_candidates_are_among_those_that_fit() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../runs/nano2-9b/search.toml");
    let words = ["search", "nano2-12b", "--config", file, "--list", "--json"];
    let listed = json(&hybra(Path::new("."), &words));
    let feasible = listed["feasible"].as_array().unwrap();
    let bytes = |hidden: u64, ffn: u64, heads: u64| {
        let is = |f: &&serde_json::Value| {
            let target = &f["target"];
            (&target["hidden_size"], &target["intermediate_size"], &target["mamba_num_heads"])
                == (&hidden.into(), &ffn.into(), &heads.into())
                && target["layers"].as_array().unwrap().len() == 56
        };
        feasible.iter().find(is).map(|f| f["memory"]["total"].as_u64().unwrap())
    };
    let gib = |bytes: Option<u64>| bytes.map(|bytes| (bytes as f64 / 1.073_741_824e7).round());
    assert_eq!(gib(bytes(4480, 17920, 112)), Some(1874.0));
    assert_eq!(gib(bytes(4480, 15680, 128)), Some(1869.0));
    assert_eq!(gib(bytes(4800, 14400, 120)), Some(1883.0));
    assert_eq!(bytes(5120, 20480, 128), None);
}

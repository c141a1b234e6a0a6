//! A low-rank adapter as a user meets it: trained, served as a MODEL, merged, refused.

mod support;

use std::fs;
use support::{hybra, hybra_fails};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/default-model");

#[test]
fn an_adapter_is_a_model_with_its_base() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let text = "steps = 2\n[model]\n[optimizer]\nlr = 1e-2\n[lora]\nrank = 4\n[data]\npack_len = 256\n\
                [[data.sources]]\ntask = \"arithmetic\"\n";
    fs::write(at.join("run.toml"), text).unwrap();
    let from = format!("model.from={MODEL}");
    let train = ["train", "sft", "--config", "run.toml", "--output", "run", "--set", &from];
    let events = hybra(at, &[&train[..], &["--json"]].concat());
    for part in ["LoRA of rank 4", "in_proj", "q_proj", "up_proj"] {
        assert!(events.contains(part), "{events}");
    }
    let kl = |a: &str, b: &str| {
        let words = ["divergence", a, b, "--task", "arithmetic", "--samples", "4", "--json"];
        let found: serde_json::Value = serde_json::from_str(&hybra(at, &words)).unwrap();
        found["kl"].as_f64().unwrap_or_else(|| panic!("{found}"))
    };
    // The run's model has f32 weights, the adapter's base bf16 ones: the sum rounds to its type.
    assert!(kl("run/model", "run/adapter") < 1e-3);
    assert!(kl(MODEL, "run/adapter") > 2.0 * kl("run/model", "run/adapter"));
    hybra(at, &["convert", "run/adapter", "merged", "--dtype", "bf16"]);
    assert_eq!(kl("merged", "run/adapter"), 0.0);
    assert!(hybra(at, &["inspect", "run/adapter"]).contains("16 layers"));
    let density = ["--activations", "--prompt", "12+39?", "--json"];
    let density = |model| hybra(at, &[&["inspect", model][..], &density].concat());
    let layers = |model| {
        let found: serde_json::Value = serde_json::from_str(&density(model)).unwrap();
        found["layers"].clone()
    };
    assert!(!layers(MODEL).is_null() && layers("run/adapter") != layers(MODEL));
    let chain = ["train", "sft", "--config", "run.toml", "--output", "x"];
    let twice = hybra_fails(at, &[&chain[..], &["--set", "model.from=run/adapter"]].concat());
    assert!(twice.contains("is an adapter itself"), "{twice}");

    let settings = at.join("run/adapter/adapter_config.json");
    let plain = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, plain.replace("\"r\": 4", "\"r\": 5")).unwrap();
    let shape = hybra_fails(at, &["generate", "run/adapter", "--prompt", "1+1?"]);
    assert!(shape.contains("lora_A") && shape.contains("expected"), "{shape}");
    fs::write(&settings, plain.replace(MODEL, "nowhere/at/all")).unwrap();
    let base = hybra_fails(at, &["generate", "run/adapter", "--prompt", "1+1?"]);
    assert!(base.contains("base of") && base.contains("nowhere/at/all"), "{base}");
    let alone = hybra_fails(at, &["train", "sft", "--config", "run.toml", "--output", "x"]);
    assert!(alone.contains("lora") && alone.contains("model.from"), "{alone}");
}

//! Packs: order, coverage, resumption.

use crate::{CHAT, encoder, open, write};
use hybra_model::training::PackedBatch;
use hybra_train::data::{Corpus, DataConfig, DataError, DataLoader, LoaderState, SourceConfig};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Lines of random lengths, a file of conversations with cuts, and a generator.
fn loader(directory: &std::path::Path, seed: u64) -> DataLoader {
    let lines: String =
        (0..40).map(|i| format!("{{\"text\":\"{i} {}\"}}\n", "x7".repeat(i * 37 % 61))).collect();
    let text = SourceConfig {
        path: Some(write(directory, "text.jsonl", lines)),
        weight: 2.0,
        ..SourceConfig::default()
    };
    let chat = SourceConfig {
        path: Some(write(directory, "chat.jsonl", CHAT)),
        p_off: 0.2,
        p_truncate: 0.4,
        ..SourceConfig::default()
    };
    let args = json!({ "step": 3 }).as_object().unwrap().clone();
    let task = SourceConfig { task: Some("count".into()), args, ..SourceConfig::default() };
    let sources = vec![text, chat, task];
    let config = DataConfig { seed, pack_len: 256, batch_size: 3, pool: 24, sources };
    let task = |name: &str, args: &serde_json::Map<String, Value>| {
        let step = args["step"].as_u64().ok_or("step")?;
        match name {
            "count" => Ok(Box::new(move |i: u64| json!({ "text": (i * step).to_string() })) as _),
            _ => Err(format!("no task {name}")),
        }
    };
    DataLoader::new(Corpus::open(&config, encoder(), &task).unwrap())
}

fn steps(loader: &mut DataLoader, range: std::ops::Range<u64>) -> Vec<Vec<PackedBatch>> {
    range.map(|step| loader.step(step).unwrap()).collect()
}

#[test]
fn a_restored_loader_gives_the_same_packs() {
    let directory = tempfile::tempdir().unwrap();
    let whole = steps(&mut loader(directory.path(), 1), 0..30);
    for at in [0, 1, 13] {
        let mut first = loader(directory.path(), 1);
        assert_eq!(steps(&mut first, 0..at), whole[..at as usize]);
        let saved = serde_json::to_string(first.state()).unwrap();
        assert!(saved.len() < 1000, "{saved}");
        let state: LoaderState = serde_json::from_str(&saved).unwrap();
        let mut second = loader(directory.path(), 1);
        second.restore(state).unwrap();
        assert_eq!(steps(&mut second, at..30), whole[at as usize..]);
        assert_eq!(
            second.step(29).unwrap_err().to_string().split(',').next(),
            Some("data loader: step: expected 30")
        );
    }
    assert_ne!(steps(&mut loader(directory.path(), 2), 0..30), whole);
}

#[test]
fn a_state_of_other_data_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = loader(directory.path(), 1);
    steps(&mut first, 0..2);
    let mut other = loader(directory.path(), 2);
    let refused = other.restore(first.state().clone()).unwrap_err();
    assert!(matches!(refused, DataError::State { field: "fingerprint", .. }), "{refused}");
    let mut state = first.state().clone();
    state.pool[0].1 = 77;
    let refused = first.restore(state).unwrap_err();
    assert!(matches!(refused, DataError::State { field: "pool", .. }), "{refused}");
    assert_eq!(steps(&mut first, 2..3), steps(&mut loader(directory.path(), 1), 0..3)[2..]);
}

#[test]
fn packs_hold_whole_documents_each_once_and_are_nearly_full() {
    let directory = tempfile::tempdir().unwrap();
    let mut loader = loader(directory.path(), 1);
    let (mut packed, mut packs, mut tokens) = (HashMap::new(), 0, 0);
    for step in 0..60 {
        for pack in loader.step(step).unwrap() {
            assert!(pack.tokens.len() <= 256 && pack.labels.len() == pack.tokens.len());
            assert_eq!(pack.documents.iter().sum::<usize>(), pack.tokens.len());
            let mut start = 0;
            for &len in &pack.documents {
                *packed.entry(pack.tokens[start..start + len].to_vec()).or_insert(0) += 1;
                start += len;
            }
            (packs, tokens) = (packs + 1, tokens + pack.tokens.len());
        }
    }
    let fill = tokens as f64 / (256 * packs) as f64;
    assert!(fill >= 0.9, "{fill}");
    // Exactly the documents of all samples so far, less those that wait.
    let state = loader.state().clone();
    let mut expected = HashMap::new();
    for index in 0..state.next_sample {
        let documents = loader.corpus().sample(index).unwrap().documents;
        for (number, document) in (0..).zip(documents) {
            if !state.pool.contains(&(index, number)) {
                *expected.entry(document.unwrap().tokens).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(packed, expected);
}

#[test]
fn settings_out_of_range_are_named() {
    let parse = |text: &str| toml::from_str::<DataConfig>(text).unwrap();
    let error = |text: &str| match open(&parse(text)) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{text}"),
    };
    let source = "[[sources]]\npath = 'x.jsonl'\n";
    let cases = [
        ("pack_len = 1\nsources = []", "`pack_len`: expected at least 2, found 1"),
        ("pack_len = 9\nsources = []", "`sources`: expected 1 to 32 sources, found 0"),
        (&format!("pack_len = 9\nbatch_size = 0\n{source}"), "`batch_size`: expected at least 1"),
        (&format!("pack_len = 9\n{source}task = 'y'"), "either `path` or `task`, found both"),
        ("pack_len = 9\n[[sources]]\n", "either `path` or `task`, found neither"),
        (&format!("pack_len = 9\n{source}weight = 0.0"), "`sources[0].weight`"),
        (&format!("pack_len = 9\n{source}p_off = 1.5"), "`sources[0].p_off`: expected a share"),
        (&format!("pack_len = 9\n{source}p_off = 0.6\np_truncate = 0.6"), "found 1.2"),
        (&format!("pack_len = 9\n{source}max_len = 10"), "`sources[0].max_len`: expected 2 to"),
        ("pack_len = 9\n[[sources]]\ntask = 'y'", "`sources[0].task`: expected a known task"),
        (&format!("pack_len = 9\n{source}"), "x.jsonl: "),
    ];
    for (text, want) in cases {
        assert!(error(text).contains(want), "{text}: {}", error(text));
    }
    assert!(toml::from_str::<DataConfig>(&format!("pack_len = 9\n{source}p_of = 0.1")).is_err());
}

#[test]
fn a_run_in_which_nothing_fits_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "long.jsonl", "{\"text\":\"1234567890\"}\n");
    let text = format!("pack_len = 5\n[[sources]]\npath = {path:?}\ntoo_long = 'drop'");
    let mut loader = DataLoader::new(open(&toml::from_str(&text).unwrap()).unwrap());
    let error = loader.step(0).unwrap_err();
    assert!(error.to_string().starts_with("10000 samples in a row were too long"), "{error}");
}

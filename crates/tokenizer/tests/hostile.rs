//! Hostile text and hostile tokenizer files: an error or correct ids, in time linear in the input.

mod common;

use std::time::{Duration, Instant};

use common::{byte_tokenizer, golden};
use hybra_tokenizer::{Error, SpecialIds, Tokenizer};
use serde_json::{Value, json};

fn load(json: &str) -> Result<Tokenizer, Error> {
    Tokenizer::from_files(json, None, None, &SpecialIds::default())
}

#[test]
fn a_megabyte_of_one_word_is_linear_and_right() {
    let Some(tokenizer) = golden() else { return };
    let words = [
        "a".repeat(1 << 20),
        "ab".repeat(1 << 19),
        " ".repeat(1 << 20),
        " ".repeat(1 << 20) + "x",
        "\n".repeat(1 << 20),
        " \n".repeat(1 << 19),
        "!".repeat(1 << 20),
        "\0".repeat(1 << 20),
        "é".repeat(1 << 19),
        "<".repeat(1 << 20),
        "aA".repeat(1 << 19),
        "\u{301}".repeat(1 << 19),
    ];
    for word in words {
        let start = Instant::now();
        let ids = tokenizer.encode(&word, false).unwrap();
        let elapsed = start.elapsed();
        eprintln!("{:?}… {} ids in {elapsed:?}", word.chars().next().unwrap(), ids.len());
        assert_eq!(tokenizer.decode(&ids, false), word);
        assert!(elapsed < Duration::from_secs(6), "{:?}: {elapsed:?}", word.get(..4));
    }
}

#[test]
fn odd_text_round_trips() {
    let Some(tokenizer) = golden() else { return };
    for text in
        ["\0", "\u{FEFF}x", "\u{FFFD}", "\u{10FFFF}\u{E000}", "a\0b", "\r\n\r", "<SPECIAL_99"]
    {
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false), text);
    }
}

#[test]
fn faults_of_tokenizer_json_are_named() {
    let good = byte_tokenizer(&["<s>"]);
    load(&good.to_string()).unwrap();
    let fault = |change: &dyn Fn(&mut Value)| {
        let mut json = good.clone();
        change(&mut json);
        load(&json.to_string()).unwrap_err().to_string()
    };
    let cases: [(&dyn Fn(&mut Value), &str); 14] = [
        (&|j| j["model"]["vocab"]["!"] = json!(4_294_967_295u32), "token \"!\" has id 4294967295"),
        (&|j| j["model"]["vocab"]["!"] = json!(-1), "has id"),
        (&|j| j["model"]["vocab"]["!"] = json!(1), "have the same id 1"),
        (&|j| drop(j["model"]["vocab"].as_object_mut().unwrap().remove("Ġ")), "byte 0x20"),
        (&|j| j["model"]["vocab"] = json!([]), "model.vocab is []"),
        (&|j| j["model"]["type"] = json!("Unigram"), "model is Unigram"),
        (&|j| j["model"]["dropout"] = json!(0.5), "0.5 (in model.dropout)"),
        (&|j| j["model"]["continuing_subword_prefix"] = json!("####"), "continuing_subword_prefix"),
        (&|j| j["model"]["merges"] = json!([["a", "zz"]]), "zz"),
        (
            &|j| j["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            "Precompiled",
        ),
        (&|j| j["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0}), "FixedLength"),
        (&|j| j["pre_tokenizer"]["add_prefix_space"] = json!(true), "add_prefix_space"),
        (&|j| j["decoder"] = Value::Null, "decoder is absent"),
        (&|j| j["version"] = json!("9"), "version"),
    ];
    for (change, want) in cases {
        let found = fault(change);
        assert!(found.contains(want), "{found:?} lacks {want:?}");
    }
    let regex = |pattern: String| {
        let pattern = json!({"Regex": pattern});
        json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
    };
    for pattern in [
        "(".repeat(50_000),
        "(".repeat(50_000) + &")".repeat(50_000),
        "a{1000000000}".into(),
        "(?<=a".into(),
    ] {
        assert!(!fault(&|j| j["pre_tokenizer"] = regex(pattern.clone())).is_empty());
    }
}

#[test]
fn broken_json_is_an_error() {
    let text = byte_tokenizer(&["<s>"]).to_string();
    for end in (0..text.len()).step_by(97) {
        let Some(cut) = text.get(..end) else { continue };
        assert!(matches!(load(cut), Err(Error::Json { file: "tokenizer.json", .. })), "{end}");
    }
    let deep = "[".repeat(100_000);
    assert!(matches!(load(&deep), Err(Error::Json { .. })));
    let surrogate = text.replace("\"<s>\"", "\"\\ud800\"");
    assert!(matches!(load(&surrogate), Err(Error::Json { .. })));
    for odd in ["null", "[]", "{}", "3", "{\"model\": []}"] {
        assert!(load(odd).is_err(), "{odd}");
    }
    let config = Some("{\"bos_token\": \"<nope>\"}");
    let error = Tokenizer::from_files(&text, config, None, &SpecialIds::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tokenizer_config.json: bos_token is \"<nope>\", which is not in the vocabulary"
    );
}

#[test]
fn padding_and_truncation_of_the_file_are_ignored() {
    let mut json = byte_tokenizer(&["<s>"]);
    json["padding"] = json!({
        "strategy": {"Fixed": 1u64 << 40}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
    });
    json["truncation"] =
        json!({"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0});
    assert_eq!(load(&json.to_string()).unwrap().encode("abc", true).unwrap().len(), 3);
}

#[test]
fn a_catastrophic_pattern_ends() {
    let mut json = byte_tokenizer(&[]);
    json["pre_tokenizer"]["pretokenizers"] = json!([
        {
            "type": "Split", "pattern": {"Regex": "(?:a|a)*b(?!x)|(a*)*\\1c"},
            "behavior": "Isolated", "invert": false,
        },
        json["pre_tokenizer"].clone(),
    ]);
    json["pre_tokenizer"]["type"] = json!("Sequence");
    let tokenizer = load(&json.to_string()).unwrap();
    let start = Instant::now();
    let text = "a".repeat(5_000);
    let ids = tokenizer.encode(&text, false).unwrap();
    assert_eq!(tokenizer.decode(&ids, false), text);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

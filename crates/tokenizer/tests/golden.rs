//! Encodings and renderings of `transformers`, from files and from GGUF metadata.

mod common;

use common::{chainbox, golden, json, request, shared};
use hybra_tokenizer::{Error, GgufVocab, SpecialIds, TemplateError, Tokenizer};
use serde_json::Value;

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// All encodings of golden/chat; returns how many.
fn check_encodings(tokenizer: &Tokenizer) -> usize {
    let cases = json(&shared().unwrap().join("golden/chat/encodings.json"));
    let cases = cases.as_array().unwrap();
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let want = ids(&case["ids"]);
        assert_eq!(tokenizer.encode(text, false).unwrap(), want, "{text:?}");
        assert_eq!(tokenizer.decode(&want, false), case["decoded"].as_str().unwrap());
        let with_bos = [&[1], &want[..]].concat();
        assert_eq!(tokenizer.encode(text, true).unwrap(), with_bos, "{text:?}");
    }
    cases.len()
}

fn check_renderings(tokenizer: &Tokenizer) -> usize {
    let cases = json(&shared().unwrap().join("golden/chat/renderings.json"));
    let template = tokenizer.chat_template().unwrap();
    for case in cases.as_array().unwrap() {
        let result = template.render(&request(&case["input"]));
        match case["error"].as_str() {
            None => {
                let rendered = result.unwrap();
                assert_eq!(rendered.text(), case["prompt"].as_str().unwrap());
                assert_eq!(rendered.segments().count(), 1);
                let ids = tokenizer.encode_rendered(&rendered).unwrap();
                assert_eq!(ids, tokenizer.encode(rendered.text(), false).unwrap());
                assert_ne!(ids.first(), Some(&1), "a chat prompt has no BOS");
            }
            Some(message) => match result.unwrap_err() {
                TemplateError::Raised(found) => assert_eq!(found, message),
                other => panic!("expected the template's own error, found {other:?}"),
            },
        }
    }
    cases.as_array().unwrap().len()
}

#[test]
fn chat_tokenizer_equals_the_reference() {
    let Some(tokenizer) = golden() else { return };
    assert!(check_encodings(&tokenizer) > 20);
    assert!(check_renderings(&tokenizer) > 10);
    assert_eq!(tokenizer.vocab_size(), 2048);
    assert_eq!((tokenizer.bos(), tokenizer.eos_ids()), (Some(1), &[2, 12][..]));
    assert!(tokenizer.adds_bos());
    assert_eq!(tokenizer.special_ids().collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
    assert_eq!(tokenizer.token_to_id("<SPECIAL_11>"), Some(11));
    assert!(tokenizer.chat_template().unwrap().reads_enable_thinking());
    assert_eq!(tokenizer.decode(&[10, 70, 12], true), tokenizer.decode(&[70], false));
}

#[test]
fn bos_is_added_once() {
    let Some(tokenizer) = golden() else { return };
    assert_eq!(tokenizer.encode("<s>", true).unwrap(), [1]);
    let plain = tokenizer.encode("Hi", false).unwrap();
    assert_eq!(tokenizer.encode("<s>Hi", true).unwrap(), [&[1], &plain[..]].concat());
    assert_eq!(tokenizer.encode("", true).unwrap(), [1]);
}

#[test]
fn every_gguf_file_gives_the_same_tokenizer() {
    let (Some(shared), Some(original)) = (shared(), golden()) else { return };
    let mut files = 0;
    for entry in std::fs::read_dir(shared.join("golden/gguf")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "gguf") {
            continue;
        }
        files += 1;
        let vocab = common::gguf_vocab(&path);
        let tokenizer = Tokenizer::from_gguf(&vocab).unwrap();
        check_encodings(&tokenizer);
        check_renderings(&tokenizer);
        assert_eq!(tokenizer.all_token_bytes(), original.all_token_bytes());
        assert_eq!(tokenizer.eos_ids(), original.eos_ids());
        assert_eq!(tokenizer.bos(), original.bos());
        assert!(tokenizer.special_ids().eq(original.special_ids()));
        // Writing gives the metadata back; the end of turn, which the file lacks, is added.
        let written = original.to_gguf_vocab(2048).unwrap();
        assert_eq!(written, GgufVocab { eos_ids: vec![2, 12], ..vocab });
    }
    assert_eq!(files, 12);
}

#[test]
fn files_written_from_gguf_read_back() {
    let Some(original) = golden() else { return };
    let padded = original.to_gguf_vocab(2056).unwrap();
    assert_eq!(padded.tokens[2055], "[PAD2055]");
    let from_gguf = Tokenizer::from_gguf(&padded).unwrap();
    let (json, config) = (from_gguf.to_json(), from_gguf.to_config_json());
    let ids = SpecialIds::default();
    let again = Tokenizer::from_files(&json, Some(&config), None, &ids).unwrap();
    check_encodings(&again);
    check_renderings(&again);
}

#[test]
fn chainbox_equals_its_reference_and_is_not_gguf() {
    let Some(tokenizer) = chainbox() else { return };
    let prompts = [
        (
            "e=g-9;h=g*5;g=3;e?",
            vec![17, 49, 19, 52, 48, 53, 20, 49, 19, 50, 44, 53, 19, 49, 42, 53, 17, 54],
        ),
        ("t", vec![32]),
    ];
    for (text, want) in prompts {
        assert_eq!(tokenizer.encode(text, true).unwrap(), want);
        assert_eq!(tokenizer.decode(&want, false), text);
    }
    let input = serde_json::json!({
        "messages": [{"role": "user", "content": "e = g-9; h=g*5; g=3; e?"}],
        "add_generation_prompt": true,
    });
    let rendered = tokenizer.chat_template().unwrap().render(&request(&input)).unwrap();
    // 0.input_ids of reference.safetensors.
    let want = [
        3, 8, 11, 11, 4, 9, 11, 17, 49, 19, 52, 48, 53, 20, 49, 19, 50, 44, 53, 19, 49, 42, 53, 17,
        54, 11, 4, 10, 11, 6, 11,
    ];
    assert_eq!(tokenizer.encode_rendered(&rendered).unwrap(), want);
    assert_eq!(tokenizer.eos_ids(), [2, 5]);
    let error = tokenizer.to_gguf_vocab(64).unwrap_err();
    assert!(matches!(error, Error::NotGguf(_)), "{error}");
    assert!(error.to_string().contains("WordLevel"), "{error}");
}

#[test]
fn gguf_metadata_faults_are_named() {
    let Some(original) = golden() else { return };
    let good = original.to_gguf_vocab(2048).unwrap();
    let fault = |change: &dyn Fn(&mut GgufVocab)| {
        let mut vocab = good.clone();
        change(&mut vocab);
        Tokenizer::from_gguf(&vocab).unwrap_err().to_string()
    };
    let cases: [(&dyn Fn(&mut GgufVocab), &str); 9] = [
        (&|v| v.pre = "wizard".into(), "tokenizer.ggml.pre is \"wizard\""),
        (&|v| v.model = "llama".into(), "tokenizer.ggml.model is \"llama\""),
        (&|v| v.token_types.truncate(5), "expected 2048 entries (one per token), found 5"),
        (&|v| v.token_types[7] = 9, "token 7 has type 9"),
        (&|v| v.tokens[30] = v.tokens[31].clone(), "occurs twice"),
        (&|v| v.merges[3] = "nospace".into(), "entry 3 is \"nospace\""),
        (&|v| v.merges[3] = "a zzzzz".into(), "entry 3 is \"a zzzzz\""),
        (&|v| v.eos_ids = vec![5000], "eos_token_id is 5000, but the vocabulary has 2048 ids"),
        (&|v| v.tokens[40] = "zzzzz".into(), "no token for byte"),
    ];
    for (change, want) in cases {
        let found = fault(change);
        assert!(found.contains(want), "{found:?} lacks {want:?}");
    }
    assert!(original.to_gguf_vocab(2047).unwrap_err().to_string().contains("2047 rows"));
}

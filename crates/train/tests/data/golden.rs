//! Documents of the reference model's tokenizer and chat template, against its recorded prompts.

use crate::{chat_model, shared_dir, write};
use hybra_tokenizer::{SpecialIds, Tokenizer};
use hybra_train::data::{Corpus, DataConfig, SampleEncoder, SourceConfig};
use serde_json::{Value, json};
use std::path::Path;

fn tokenizer(dir: &Path) -> Tokenizer {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let (json, config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    Tokenizer::from_files(&json, Some(&config), None, &SpecialIds::default()).unwrap()
}

#[test]
fn prompts_of_documents_are_the_recorded_ones() {
    let Some(dir) = shared_dir::shared("golden/chat") else { return };
    let renderings = std::fs::read_to_string(dir.join("renderings.json")).unwrap();
    let renderings: Vec<Value> = serde_json::from_str(&renderings).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for rendering in &renderings {
        let (input, Some(prompt)) = (&rendering["input"], rendering["prompt"].as_str()) else {
            continue;
        };
        if input["add_generation_prompt"] != true {
            continue;
        }
        let mut messages = input["messages"].as_array().unwrap().clone();
        for message in &mut messages {
            // Only the answer that is added here is learned.
            message["weight"] = 0.into();
        }
        let mut answer = json!({ "role": "assistant", "content": "The answer." });
        let on = prompt.ends_with("<think>\n");
        if on {
            answer["reasoning_content"] = "One step.\nAnother.".into();
        }
        messages.push(answer);
        let line = json!({ "messages": messages, "tools": input["tools"] }).to_string();
        let source = SourceConfig {
            path: Some(write(directory.path(), "golden.jsonl", line)),
            ..SourceConfig::default()
        };
        let sources = vec![source];
        let config = DataConfig { seed: 0, pack_len: 4096, batch_size: 1, pool: 1, sources };
        let encoder = SampleEncoder::new(chat_model(tokenizer(&dir))).unwrap();
        let corpus = Corpus::open(&config, encoder, &|name, _| Err(name.to_owned())).unwrap();
        let document = corpus.sample(0).unwrap().documents.remove(0).unwrap();
        let len = document.mask.iter().position(|learned| *learned).unwrap();
        let tokenizer = tokenizer(&dir);
        assert_eq!(document.tokens[..len], tokenizer.encode(prompt, false).unwrap(), "{prompt}");
        let trace = if on { "One step.\nAnother.\n</think>\n\n" } else { "" };
        let learned = tokenizer.decode(&document.tokens[len..], false);
        assert_eq!(learned, format!("{trace}The answer.\n<SPECIAL_12>"));
        compared += 1;
    }
    assert!(compared >= 9, "{compared}");
}

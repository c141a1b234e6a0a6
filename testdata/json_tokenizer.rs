//! A tokenizer of 64 tokens that can write JSON and tool calls: single characters, and pieces that
//! hold the joints of JSON and of tags.

use hybra_tokenizer::{SpecialIds, Tokenizer};
use serde_json::{Value, json};

const PIECES: [&str; 54] = [
    "{", "}", "[", "]", "\"", ":", ",", "\\", " ", "\n", "-", ".", "0", "1", "2", "3", "5", "9",
    "a", "b", "c", "d", "e", "f", "g", "i", "l", "m", "n", "o", "r", "s", "t", "u", "k", "h", "T",
    "O", "L", "C", "A", "<", ">", "/", "_", "{\"", "\": ", "\"}", "\n\n", "\n{", "]</", "[{\"",
    "true", "x",
];
const CONTROLS: [&str; 8] =
    ["<unk>", "<s>", "</s>", "<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>", "<think>", "</think>"];

/// The tokenizer; with `tool_tokens` the tool tags are special tokens, else they are spelled.
pub(crate) fn json_tokenizer(tool_tokens: bool) -> Tokenizer {
    let tail = if tool_tokens { ["<TOOLCALL>", "</TOOLCALL>"] } else { ["q", "y"] };
    let all: Vec<&str> = CONTROLS.into_iter().chain(PIECES).chain(tail).collect();
    let control = |i: usize| i < CONTROLS.len() || tool_tokens && i >= all.len() - tail.len();
    let added: Vec<Value> = (0..all.len())
        .filter(|&i| control(i))
        .map(|i| {
            let special = !all[i].contains("think");
            json!({
                "id": i, "content": all[i], "special": special, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let vocab: serde_json::Map<String, Value> =
        all.iter().enumerate().map(|(i, text)| ((*text).to_owned(), json!(i))).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Split", "pattern": { "Regex": "true|[\\s\\S]" }, "behavior": "Isolated",
            "invert": false,
        },
        "post_processor": null,
        "decoder": { "type": "Fuse" },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" },
    });
    let ids = SpecialIds { eos: vec![2, 5], ..SpecialIds::default() };
    Tokenizer::from_files(&json.to_string(), None, None, &ids).unwrap()
}

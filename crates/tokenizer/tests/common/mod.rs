//! What the integration tests share: reference data, models, a GGUF metadata reader.
#![allow(dead_code, reason = "every test binary uses its own part")]

#[path = "../../../../testdata/shared_dir.rs"]
mod shared_dir;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use hybra_tokenizer::{ChatRequest, GgufVocab, SpecialIds, Tokenizer};
use serde_json::Value;

/// The reference data folder, or `None` after saying so.
pub(crate) fn shared() -> Option<PathBuf> {
    shared_dir::shared("")
}

pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub(crate) fn json(path: &Path) -> Value {
    serde_json::from_str(&read(path)).unwrap()
}

/// golden/chat: byte-level BPE, think tags are ordinary text.
pub(crate) fn golden() -> Option<Tokenizer> {
    let dir = shared()?.join("golden/chat");
    let config = read(&dir.join("tokenizer_config.json"));
    let template = read(&dir.join("chat_template.jinja"));
    let json = read(&dir.join("tokenizer.json"));
    let ids = SpecialIds::default();
    Some(Tokenizer::from_files(&json, Some(&config), Some(&template), &ids).unwrap())
}

/// models/chainbox-probe: word level, think tags are tokens.
pub(crate) fn chainbox() -> Option<Tokenizer> {
    let dir = shared()?.join("models/chainbox-probe");
    let config = read(&dir.join("tokenizer_config.json"));
    let json = read(&dir.join("tokenizer.json"));
    let ids = SpecialIds { bos: Some(1), eos: vec![2, 5], pad: Some(0) };
    Some(Tokenizer::from_files(&json, Some(&config), None, &ids).unwrap())
}

/// A byte-level tokenizer without merges whose special tokens are ChatML's, with a template.
pub(crate) fn chatml(template: &str) -> Tokenizer {
    let extra =
        ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"];
    let json = byte_tokenizer(&extra).to_string();
    Tokenizer::from_files(&json, None, Some(template), &SpecialIds::default()).unwrap()
}

/// `tokenizer.json` of a byte-level vocabulary with `special` tokens after the 256 bytes.
pub(crate) fn byte_tokenizer(special: &[&str]) -> Value {
    let mut vocab = serde_json::Map::new();
    for c in (33..=126).chain(161..=172).chain(174..=255).chain(256..324) {
        let id = vocab.len();
        vocab.insert(char::from_u32(c).unwrap().to_string(), id.into());
    }
    assert_eq!(vocab.len(), 256);
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(i, content)| {
            serde_json::json!({
                "id": 256 + i, "content": content, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let byte_level = serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
        "decoder": byte_level, "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

/// A request from the JSON that `transformers` would get as keyword arguments.
pub(crate) fn request(input: &Value) -> ChatRequest {
    let list = |key: &str| input[key].as_array().cloned().unwrap_or_default();
    let messages = list("messages").into_iter().map(|m| serde_json::from_value(m).unwrap());
    ChatRequest {
        messages: messages.collect(),
        tools: list("tools"),
        add_generation_prompt: input["add_generation_prompt"] == true,
        continue_final_message: input["continue_final_message"] == true,
        enable_thinking: input["enable_thinking"].as_bool(),
        ..ChatRequest::default()
    }
}

/// Tokenizer metadata of a GGUF file (version 3, little-endian; the file is trusted).
pub(crate) fn gguf_vocab(path: &Path) -> GgufVocab {
    let bytes = std::fs::read(path).unwrap();
    let mut reader = Reader(&bytes);
    assert_eq!(reader.take(4), b"GGUF");
    assert_eq!(reader.u32(), 3);
    let (_tensors, keys) = (reader.u64(), reader.u64());
    let mut map: HashMap<String, Value> = HashMap::new();
    for _ in 0..keys {
        let key = reader.string();
        let kind = reader.u32();
        map.insert(key, reader.value(kind));
    }
    let get = |key: &str| map.get(&format!("tokenizer.{key}")).cloned().unwrap_or_default();
    let strings = |key: &str| -> Vec<String> { serde_json::from_value(get(key)).unwrap() };
    let id = |key: &str| get(key).as_u64().map(|id| id as u32);
    GgufVocab {
        model: get("ggml.model").as_str().unwrap().to_owned(),
        pre: get("ggml.pre").as_str().unwrap().to_owned(),
        tokens: strings("ggml.tokens"),
        token_types: serde_json::from_value(get("ggml.token_type")).unwrap(),
        merges: strings("ggml.merges"),
        bos_id: id("ggml.bos_token_id"),
        eos_ids: id("ggml.eos_token_id").into_iter().collect(),
        pad_id: id("ggml.padding_token_id"),
        add_bos: get("ggml.add_bos_token").as_bool(),
        chat_template: get("chat_template").as_str().map(str::to_owned),
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(n);
        self.0 = tail;
        head
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn string(&mut self) -> String {
        let len = self.u64() as usize;
        String::from_utf8(self.take(len).to_vec()).unwrap()
    }

    fn value(&mut self, kind: u32) -> Value {
        match kind {
            0 | 1 => self.take(1)[0].into(),
            2 | 3 => {
                self.take(2);
                Value::Null
            }
            4 => self.u32().into(),
            5 => (self.u32() as i32).into(),
            6 => f32::from_le_bytes(self.take(4).try_into().unwrap()).into(),
            7 => (self.take(1)[0] != 0).into(),
            8 => self.string().into(),
            9 => {
                let (kind, len) = (self.u32(), self.u64());
                (0..len).map(|_| self.value(kind)).collect()
            }
            10 | 11 => self.u64().into(),
            12 => f64::from_le_bytes(self.take(8).try_into().unwrap()).into(),
            other => panic!("GGUF value type {other}"),
        }
    }
}

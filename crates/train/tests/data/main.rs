//! Data for training: files to documents with masks, order, packs and their resumption.

#[path = "../../../../testdata/shared_dir.rs"]
mod shared_dir;

mod golden;
mod loader;
mod samples;
mod sources;
mod tokenizer;

use hybra_chat::{ChatModel, GenerationDefaults};
use hybra_tokenizer::Tokenizer;
use hybra_train::data::{
    Corpus, DataConfig, DataError, SampleEncoder, Source, SourceConfig, train_bpe,
};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Conversations of every form.
const CHAT: &str = r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"c=2;d=c*9;d?"},{"role":"assistant","reasoning_content":"d=c*9\nc=2\nd=8\n","content":"8"}]}
{"messages":[{"role":"user","content":"1+1?"},{"role":"assistant","content":"<think>\n1+1=2\n</think>\n\n2"},{"role":"user","content":"and 2+2?"},{"role":"assistant","reasoning_content":"2+2=4","content":"4","tool_calls":[]}]}
{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"Hello."},{"role":"user","content":"bye"},{"role":"assistant","content":"Goodbye."}]}

{"messages":[{"role":"user","content":"What is the weather in Bonn?"},{"role":"assistant","reasoning_content":"I look it up.","content":null,"tool_calls":[{"id":"a","type":"function","function":{"name":"weather","arguments":"{\"city\": \"Bonn\"}"}}]},{"role":"tool","tool_call_id":"a","content":"{\"sky\": \"grey\"}"},{"role":"assistant","reasoning_content":"The sky is grey.","content":"It is grey."}],"tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}],"task":"tools"}
{"text":"Plain text with <SPECIAL_12> in it, which stays text."}
{"input":[{"role":"user","content":"2*3?"}],"output":"<think>\n2*3=6\n</think>\n\n6","reasoning":"on","system_prompt":"","category":"math"}
{"input":"2*4?","output":"8","reasoning":"off","license":"cc-by-4.0"}
"#;

/// Writes a file that lives as long as the directory.
fn write(directory: &Path, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// A tokenizer trained on [`CHAT`].
fn tokenizer() -> Tokenizer {
    static FILES: OnceLock<hybra_train::data::BpeFiles> = OnceLock::new();
    let files = FILES.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let source = Source::open(&write(directory.path(), "chat.jsonl", CHAT)).unwrap();
        train_bpe(source.records(u64::MAX, &[]), 320).unwrap()
    });
    files.tokenizer().unwrap()
}

fn chat_model(tokenizer: Tokenizer) -> ChatModel {
    let eos = tokenizer.eos_ids().to_vec();
    ChatModel::new("test".into(), tokenizer, eos, GenerationDefaults::default()).unwrap()
}

fn encoder() -> SampleEncoder {
    SampleEncoder::new(chat_model(tokenizer())).unwrap()
}

fn config(path: PathBuf, source: SourceConfig) -> DataConfig {
    let sources = vec![SourceConfig { path: Some(path), ..source }];
    DataConfig { seed: 3, pack_len: 256, batch_size: 2, pool: 8, sources }
}

fn open(config: &DataConfig) -> Result<Corpus, DataError> {
    Corpus::open(config, encoder(), &|name, _| Err(format!("no task {name}")))
}

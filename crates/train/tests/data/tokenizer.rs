//! The trained tokenizer: symbols, control tokens, the thinking contract, stable bytes.

use crate::{CHAT, chat_model, tokenizer, write};
use hybra_chat::ChatInput;
use hybra_engine::ThinkingParams;
use hybra_tokenizer::{ChatRequest, Message, ThinkTags};
use hybra_train::data::{Source, train_bpe};

#[test]
fn symbols_are_single_tokens_and_all_text_round_trips() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.encode("d=c*9", false).unwrap().len(), 5);
    assert_eq!(tokenizer.encode("1234", false).unwrap().len(), 4);
    assert_eq!(tokenizer.encode("Assistant", false).unwrap().len(), 1);
    assert!(tokenizer.encode("</think>", false).unwrap().len() > 1);
    for (id, token) in [(1, "<s>"), (10, "<SPECIAL_10>"), (12, "<SPECIAL_12>"), (15, "<TOOLCALL>")]
    {
        assert_eq!(tokenizer.token_to_id(token), Some(id));
        assert_eq!(tokenizer.is_special(id), id < 13);
    }
    assert_eq!(tokenizer.eos_ids(), [2, 12]);
    let text = "Größe: 三 d=c*9;\n\n x\t\r\n <think>\u{0}🙂";
    let ids = tokenizer.encode(text, false).unwrap();
    assert_eq!(tokenizer.decode(&ids, false), text);
}

#[test]
fn the_template_keeps_the_contract_of_thinking() {
    let chat = chat_model(tokenizer());
    assert_eq!(chat.tags, ThinkTags::detect(&chat.tokenizer));
    assert!(chat.tags.is_some());
    let ask = |text: &str, enabled| {
        let input =
            ChatInput { messages: vec![Message::new("user", text)], ..ChatInput::default() };
        let thinking = ThinkingParams { enabled, ..ThinkingParams::default() };
        chat.chat_prompt(&input, &thinking).unwrap()
    };
    let head = "<SPECIAL_10>System\n\n<SPECIAL_11>User\nhi\n<SPECIAL_11>Assistant\n";
    let (on, off) = (format!("{head}<think>\n"), format!("{head}<think></think>"));
    assert_eq!(ask("hi", None).text, on);
    assert_eq!(ask("hi /no_think", None).text, off);
    assert_eq!(ask("hi", Some(false)).text, off);
    assert_eq!(ask("hi /no_think", Some(true)).text, on);
    assert!(ask("hi", None).is_thinking() && !ask("hi", Some(false)).is_thinking());

    let template = chat.tokenizer.chat_template().unwrap();
    let tool = |content| Message::new("tool", content);
    let call = serde_json::json!({ "function": { "name": "f", "arguments": { "a": 1 } } });
    let called = Message { tool_calls: vec![call.clone()], ..Message::new("assistant", "") };
    let messages = vec![
        Message::new("system", "S /think"),
        Message::new("user", "u"),
        called,
        tool("1"),
        tool("2"),
    ];
    let tools = vec![serde_json::json!({ "type": "function", "function": { "name": "f" } })];
    let request =
        ChatRequest { messages, tools, add_generation_prompt: true, ..ChatRequest::default() };
    assert_eq!(
        template.render(&request).unwrap().text(),
        "<SPECIAL_10>System\nS\n\n<AVAILABLE_TOOLS>[{\"name\": \"f\"}]</AVAILABLE_TOOLS>\n\
         <SPECIAL_11>User\nu\n<SPECIAL_11>Assistant\n\
         <TOOLCALL>[{\"name\": \"f\", \"arguments\": {\"a\": 1}}]</TOOLCALL>\n<SPECIAL_12>\n\
         <SPECIAL_11>User\n<TOOL_RESPONSE>[1, 2]</TOOL_RESPONSE>\n\
         <SPECIAL_11>Assistant\n<think>\n"
    );
}

#[test]
fn the_same_text_gives_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let train = |name: &str, text: &str, size| {
        let source = Source::open(&write(directory.path(), name, text)).unwrap();
        train_bpe(source.records(u64::MAX, &[]), size)
    };
    let files = train("a.jsonl", CHAT, 320).unwrap();
    assert_eq!(files.num_tokens, 320);
    let reversed: String = CHAT.lines().rev().map(|line| format!("{line}\n")).collect();
    for text in [CHAT, &reversed, CHAT, &reversed] {
        assert_eq!(train("b.jsonl", text, 320).unwrap(), files);
    }
    let output = directory.path().join("made/tokenizer");
    files.write(&output).unwrap();
    for (name, text) in &files.files {
        assert_eq!(std::fs::read_to_string(output.join(name)).unwrap(), *text, "{name}");
    }
    assert_eq!(std::fs::read_dir(&output).unwrap().count(), files.files.len());

    let error = train("c.jsonl", CHAT, 274).unwrap_err().to_string();
    assert!(error.contains("`vocab_size`: expected at least 275"), "{error}");
    let error = train("d.jsonl", "{\"text\":\"a\"}\n{\n", 320).unwrap_err().to_string();
    assert!(error.contains("d.jsonl: line 2: not valid JSON"), "{error}");
}

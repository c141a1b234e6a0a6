//! The contract of the thinking budget and of replies, over HTTP with the model inside the binary:
//! every spelling holds, counts are exact, streamed replies say what whole ones say.

use super::server::{CHAT, Server, chat};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};

/// The question of the embedded model: it thinks 24 tokens and answers 7.
const PROGRAM: &str = "c=b-7;b=0;d=c*9;d?";

fn body(mut fields: Value) -> Value {
    fields["messages"] = json!([{ "role": "user", "content": PROGRAM }]);
    fields
}

fn ask(server: &Server, fields: Value) -> Value {
    let reply = server.post(CHAT, "", &body(fields).to_string());
    assert_eq!(reply.status, 200, "{}", reply.body);
    serde_json::from_str(&reply.body).unwrap()
}

/// The objects of a stream, which must end in `[DONE]`.
fn stream(server: &Server, mut fields: Value) -> Vec<Value> {
    fields["stream"] = json!(true);
    fields["stream_options"] = json!({ "include_usage": true });
    let reply = server.post(CHAT, "", &body(fields).to_string());
    assert_eq!(reply.status, 200, "{}", reply.body);
    let data: Vec<_> = reply.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let (last, objects) = data.split_last().unwrap();
    assert_eq!(*last, "[DONE]", "{}", reply.body);
    objects.iter().map(|object| serde_json::from_str(object).unwrap()).collect()
}

/// A whole reply, put together from a stream.
fn joined(chunks: &[Value]) -> Value {
    let usage = &chunks.last().unwrap()["usage"];
    let mut choices: Vec<Value> = Vec::new();
    for delta in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        let index = delta["index"].as_u64().unwrap() as usize;
        if choices.len() <= index {
            choices.resize(index + 1, json!({ "content": "", "reasoning": "", "logprobs": [] }));
        }
        let choice = &mut choices[index];
        for (name, key) in [("content", "content"), ("reasoning", "reasoning_content")] {
            if let Some(text) = delta["delta"][key].as_str() {
                choice[name] = json!(format!("{}{text}", choice[name].as_str().unwrap()));
            }
        }
        if let Some(more) = delta["logprobs"]["content"].as_array() {
            choice["logprobs"].as_array_mut().unwrap().extend(more.iter().cloned());
        }
        if !delta["finish_reason"].is_null() {
            assert!(choice["finish_reason"].is_null(), "two ends");
            choice["finish_reason"] = delta["finish_reason"].clone();
            choice["budget"] = delta["reasoning_budget"].clone();
        }
    }
    json!({ "choices": choices, "usage": usage })
}

/// A whole reply in the same form.
fn whole(reply: &Value) -> Value {
    let choice = |choice: &Value| {
        json!({
            "content": choice["message"]["content"].as_str().unwrap_or(""),
            "reasoning": choice["message"]["reasoning_content"].as_str().unwrap_or(""),
            "logprobs": choice["logprobs"]["content"].as_array().cloned().unwrap_or_default(),
            "finish_reason": choice["finish_reason"],
            "budget": choice["reasoning_budget"],
        })
    };
    let choices: Vec<_> = reply["choices"].as_array().unwrap().iter().map(choice).collect();
    json!({ "choices": choices, "usage": reply["usage"] })
}

#[test]
fn every_spelling_of_the_budget_holds() {
    let server = Server::start(&[]);
    for fields in [
        json!({ "thinking_budget": 3 }),
        json!({ "thinking_token_budget": 3 }),
        json!({ "thinking_budget_tokens": 3 }),
        json!({ "reasoning_budget": 3 }),
        json!({ "reasoning_budget_tokens": 3 }),
        json!({ "max_thinking_tokens": 3 }),
        json!({ "reasoning_max_tokens": 3 }),
        json!({ "nvext": { "max_thinking_tokens": 3 } }),
        json!({ "thinking": { "type": "enabled", "budget_tokens": 3 } }),
        json!({ "reasoning": { "max_tokens": 3 } }),
        json!({ "chat_template_kwargs": { "thinking_budget": 3 } }),
    ] {
        let mut fields = fields;
        fields["thinking_budget_grace"] = json!(0);
        let reply = ask(&server, fields.clone());
        let report = &reply["choices"][0]["reasoning_budget"];
        assert_eq!((&report["limit"], &report["used"]), (&json!(3), &json!(3)), "{fields}");
        assert_eq!(report["ended_by"], "budget_hard", "{fields}");
    }
    for fields in [
        json!({ "enable_thinking": false }),
        json!({ "think": false }),
        json!({ "thinking": { "type": "disabled" } }),
        json!({ "reasoning": { "enabled": false } }),
        json!({ "reasoning_effort": "none" }),
        json!({ "thinking_budget": 0 }),
    ] {
        let reply = ask(&server, fields.clone());
        assert_eq!(reply["choices"][0]["reasoning_budget"]["ended_by"], "off", "{fields}");
        assert_eq!(reply["usage"]["completion_tokens_details"]["reasoning_tokens"], 0, "{fields}");
    }
}

#[test]
fn counts_are_exact_in_every_mode() {
    let server = Server::start(&["--speculate", "4"]);
    for budget in [0, 1, 2, 5, 20] {
        for n in [1, 3] {
            let fields = json!({ "thinking_budget": budget, "thinking_budget_grace": 0, "n": n });
            let reply = ask(&server, fields.clone());
            let streamed = joined(&stream(&server, fields));
            assert_eq!(whole(&reply)["choices"], streamed["choices"], "budget {budget}, n {n}");
            let mut reasoning = 0;
            for choice in reply["choices"].as_array().unwrap() {
                let report = &choice["reasoning_budget"];
                assert_eq!(report["used"], budget, "{report}");
                let by = if budget == 0 { "off" } else { "budget_hard" };
                assert_eq!(report["ended_by"], by);
                reasoning += report["used"].as_u64().unwrap() + report["forced"].as_u64().unwrap();
                let content = choice["message"]["content"].as_str().unwrap();
                assert!(!content.is_empty() && !content.contains("think>"), "{content:?}");
            }
            let details = &reply["usage"]["completion_tokens_details"];
            assert_eq!(details["reasoning_tokens"], reasoning, "budget {budget}, n {n}");
        }
    }
}

#[test]
fn streams_say_what_whole_replies_say() {
    let server = Server::start(&[]);
    for fields in [
        json!({}),
        json!({ "n": 3, "seed": 5, "temperature": 1.0 }),
        json!({ "logprobs": true, "top_logprobs": 3 }),
        json!({ "stop": ["7"], "logprobs": true }),
        json!({ "stop": "=7\n", "stop_in_thinking": true }),
        json!({ "max_tokens": 12 }),
        json!({ "thinking_budget": 6, "thinking_budget_message": "\na=1\n" }),
        json!({ "enable_thinking": false, "ignore_eos": true, "max_tokens": 40 }),
    ] {
        let reply = ask(&server, fields.clone());
        let streamed = joined(&stream(&server, fields.clone()));
        // The second of two requests finds more in the cache.
        assert_eq!(whole(&reply)["choices"], streamed["choices"], "{fields}");
        for name in ["prompt_tokens", "completion_tokens", "completion_tokens_details"] {
            assert_eq!(reply["usage"][name], streamed["usage"][name], "{fields}");
        }
    }
    let stopped = ask(&server, json!({ "stop": ["7"] }));
    assert_eq!(stopped["choices"][0]["message"]["content"], "");
    assert_eq!(stopped["choices"][0]["stop_reason"], "7");
    assert!(stopped["choices"][0]["message"]["reasoning_content"].as_str().unwrap().contains('7'));
}

#[test]
fn a_seed_gives_its_text_alone_and_in_company() {
    let server = Server::start(&[]);
    let fields =
        |seed: u64| json!({ "seed": seed, "temperature": 2, "ignore_eos": true, "max_tokens": 60 });
    let alone: Vec<_> =
        (0..6).map(|seed| whole(&ask(&server, fields(seed)))["choices"].clone()).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let ask = |seed| {
            scope.spawn({
                let server = &server;
                move || ask(server, fields(seed))
            })
        };
        let asked: Vec<_> = (0..6).map(ask).collect();
        asked.into_iter().map(|one| whole(&one.join().unwrap())["choices"].clone()).collect()
    });
    assert_eq!(alone, together);
    assert!(alone.iter().any(|one| *one != alone[0]), "seeds differ");
}

#[test]
fn thinking_ends_when_another_request_says_so() {
    let server = Server::start(&["--context", "200000"]);
    let long = json!({ "min_thinking_tokens": 100_000, "max_tokens": 150_000, "stream": true });
    let (mut lines, id) = open(&server, &long);
    let control = json!({ "id": id, "action": "reasoning_end" }).to_string();
    let path = "/v1/chat/completions/control";
    assert_eq!(server.post(path, "", &control).status, 200);
    let last = lines.find(|line| line.contains("reasoning_budget")).unwrap();
    assert!(last.contains(r#""ended_by":"client""#), "{last}");
    drop(lines);
    super::server::wait_for("its end", || server.post(path, "", &control).status == 404);
    let answering = json!({ "enable_thinking": false, "ignore_eos": true, "max_tokens": 150_000,
        "stream": true });
    let (_lines, id) = open(&server, &answering);
    let control = json!({ "id": id, "action": "reasoning_end" }).to_string();
    assert_eq!(server.post(path, "", &control).status, 409);
}

/// Opens a stream and reads its id; the lines that follow.
fn open(server: &Server, fields: &Value) -> (impl Iterator<Item = String>, String) {
    let mut stream = server.connect();
    let request = super::server::post(CHAT, "", &body(fields.clone()).to_string());
    stream.write_all(request.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.find_map(|line| line.strip_prefix("data: ").map(str::to_owned)).unwrap();
    let first: Value = serde_json::from_str(&first).unwrap();
    (lines, first["id"].as_str().unwrap().to_owned())
}

#[test]
fn an_answer_fits_into_few_tokens_and_into_the_context() {
    let server = Server::start(&["--context", "64"]);
    let reply = ask(&server, json!({}));
    assert_ne!(reply["choices"][0]["message"]["content"], "", "{reply}");
    assert_eq!(reply["choices"][0]["reasoning_budget"]["limit_source"], "context");
    let endless = ask(&server, json!({ "ignore_eos": true }));
    assert_eq!(endless["choices"][0]["finish_reason"], "length");
    assert_eq!(endless["usage"]["total_tokens"], 64);
    let long = json!({ "messages": [{ "role": "user", "content": "a=1;".repeat(40) }] });
    let reply = server.post(CHAT, "", &long.to_string());
    assert_eq!(reply.status, 400, "{}", reply.body);
    assert!(reply.error().contains("context length"), "{}", reply.body);
    assert_eq!(server.post(CHAT, "", &chat("")).status, 200);
}

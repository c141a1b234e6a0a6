//! Requests that no client should send: each is an error that names its field, at once, and the
//! server goes on.

use super::server::{CHAT, Server, chat};
use serde_json::{Value, json};

/// A body of valid fields and one hostile one.
fn with(name: &str, value: &Value) -> String {
    json!({ "messages": [{ "role": "user", "content": "a=1;a?" }], name: value }).to_string()
}

#[test]
fn numbers_out_of_range_are_named() {
    let server = Server::start(&[]);
    let big = 1_000_000_000_u64;
    let many_biases: Value =
        (0..2000).map(|id| (id.to_string(), json!(1))).collect::<serde_json::Map<_, _>>().into();
    for (name, value) in [
        ("n", json!(big)),
        ("n", json!(0)),
        ("n", json!(-1)),
        ("top_logprobs", json!(big)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(1.5)),
        ("max_tokens", json!("7")),
        ("max_tokens", json!(u64::MAX)),
        ("thinking_budget", json!(-2)),
        ("thinking_budget", json!(1.5)),
        ("thinking_budget", json!("x")),
        ("thinking_budget", json!(u64::MAX)),
        ("thinking_budget_grace", json!("x%")),
        ("reasoning_effort", json!("enormous")),
        ("seed", json!(-1)),
        ("temperature", json!(1e308)),
        ("temperature", json!(-1)),
        ("top_p", json!(0)),
        ("top_k", json!(-5)),
        ("min_p", json!(2)),
        ("repetition_penalty", json!(0)),
        ("frequency_penalty", json!(3)),
        ("logit_bias", json!({ "999999": 1 })),
        ("logit_bias", json!({ "x": 1 })),
        ("logit_bias", json!({ "1": 1e30 })),
        ("logit_bias", many_biases),
        ("stop", json!("")),
        ("stop", json!(vec!["x"; 100_000])),
        ("stop", json!("x".repeat(1 << 20))),
        ("stop_token_ids", json!([-1])),
        ("stop_token_ids", json!([u32::MAX])),
        ("min_tokens", json!(-1)),
        ("priority", json!(1e9)),
        ("tools", json!(7)),
        ("tool_choice", json!("required")),
        ("thinking_budget_message", json!("</think>")),
        ("messages", json!([])),
        ("messages", json!([["user", "x"]])),
        ("tools", json!([["function", {}]])),
        ("messages", json!([{ "role": "user", "content": [{ "type": "image_url" }] }])),
        ("chat_template", json!("{{ 1 }}")),
        ("chat_template_kwargs", json!({ "messages": [] })),
        ("chat_template_kwargs", json!({ "x": "y".repeat(10 << 20) })),
        ("model", json!("../../etc/passwd")),
        ("no_such_field", json!(1)),
    ] {
        let reply = server.post(CHAT, "", &with(name, &value));
        let shown: String = value.to_string().chars().take(60).collect();
        let expected = if name == "model" { 404 } else { 400 };
        assert_eq!(reply.status, expected, "{name} {shown}: {}", reply.body);
        let message = reply.error();
        assert!(message.contains(name), "{name} {shown}: {message}");
        assert!(message.len() < 1000, "{name}: {} bytes", message.len());
    }
    assert_eq!(server.post(CHAT, "", &chat("")).status, 200);
}

#[test]
fn prompts_of_the_wrong_shape_are_named() {
    let server = Server::start(&[]);
    for prompt in [
        json!([]),
        json!([[]]),
        json!([[1], "x"]),
        json!([-1]),
        json!([4_000_000_000_u64]),
        json!({ "x": 1 }),
        json!(vec!["x"; 1_000_000]),
        json!(null),
    ] {
        let body = json!({ "prompt": prompt, "max_tokens": 1 }).to_string();
        let reply = server.post("/v1/completions", "", &body);
        let shown: String = prompt.to_string().chars().take(60).collect();
        assert_eq!(reply.status, 400, "{shown}: {}", reply.body);
        assert!(reply.error().contains("prompt"), "{shown}: {}", reply.body);
    }
}

#[test]
fn contradictions_are_named() {
    let server = Server::start(&[]);
    for (fields, words) in [
        (
            r#""thinking_budget": 5, "reasoning": {"max_tokens": 6}"#,
            ["thinking_budget", "reasoning.max_tokens"],
        ),
        (
            r#""enable_thinking": false, "thinking_budget": 5"#,
            ["enable_thinking", "thinking_budget"],
        ),
        (
            r#""reasoning_effort": "none", "thinking_budget": 5"#,
            ["reasoning_effort", "thinking_budget"],
        ),
        (
            r#""min_thinking_tokens": 9, "thinking_budget": 5"#,
            ["min_thinking_tokens", "thinking_budget"],
        ),
        (r#""max_tokens": 5, "thinking_budget": 5"#, ["thinking_budget", "max_tokens"]),
        (r#""max_tokens": 5, "max_completion_tokens": 6"#, ["max_tokens", "max_completion_tokens"]),
        (r#""guided_regex": "a", "guided_choice": ["b"]"#, ["guided_choice", "guided_regex"]),
    ] {
        let reply = server.post(CHAT, "", &chat(fields));
        assert_eq!(reply.status, 400, "{fields}: {}", reply.body);
        let message = reply.error();
        assert!(words.iter().all(|word| message.contains(word)), "{fields}: {message}");
    }
}

#[test]
fn bodies_that_are_no_objects_are_refused() {
    let server = Server::start(&[]);
    let deep = format!("{{\"messages\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for body in ["", "[]", "7", "null", "{", "{\"a\": 1, \"a\": 2}", "{\"a\": \u{0}}", &deep] {
        let reply = server.post(CHAT, "", body);
        let shown: String = body.chars().take(30).collect();
        assert_eq!(reply.status, 400, "{shown}: {}", reply.body);
        assert!(reply.error().starts_with("body"), "{shown}: {}", reply.body);
    }
    let mut bytes = super::server::post(CHAT, "", "{\"messages\": \"??\"}").into_bytes();
    let at = bytes.len() - 4;
    bytes[at] = 0xff;
    assert_eq!(server.raw(bytes).status, 400);
}

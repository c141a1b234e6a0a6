//! From loading to the end.

use crate::server::{CHAT, LONG, ROOM, Reply, Server, chat, wait_for};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::time::Duration;

const SHORTER: &str = r#""max_tokens": 4000, "ignore_eos": true, "stream": true"#;

#[test]
fn a_server_that_loads_says_so() {
    // A hub that never answers: loading takes for ever.
    let hub = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", hub.local_addr().unwrap());
    let home = tempfile::tempdir().unwrap();
    let home = home.path().to_str().unwrap();
    let env = [("HF_ENDPOINT", endpoint.as_str()), ("HF_HOME", home), ("HF_HUB_OFFLINE", "0")];
    let mut server = Server::listening(&["some/model"], &env);
    let health = server.get("/health", "");
    assert_eq!((health.status, health.body.as_str()), (503, r#"{"status":"loading"}"#));
    assert_eq!(server.get("/health/live", "").status, 200);
    assert_eq!(server.get("/metrics", "").status, 200);
    let early = server.post(CHAT, "", &chat(""));
    assert_eq!((early.status, early.head.contains("retry-after")), (503, true));
    server.signal("-TERM");
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_server() {
    let mut server = Server::listening(&["no/such/model/anywhere"], &[]);
    assert_eq!(server.exit_code(), Some(1));
    assert!(server.said().contains("error: "), "{}", server.said());
}

#[test]
fn the_first_signal_drains() {
    let mut server = Server::start(&ROOM);
    let mut running = server.open(SHORTER);
    let reading = std::thread::spawn(move || Reply::read(&mut running));
    server.wait_for_metric("hybra_num_requests_running", 1);
    server.signal("-TERM");
    wait_for("draining", || server.get("/health", "").status == 503);
    assert_eq!(server.get("/health/live", "").status, 200);
    let late = server.post(CHAT, "", &chat(""));
    assert_eq!((late.status, late.head.contains("retry-after")), (503, true));
    let reply = reading.join().unwrap();
    assert!(
        reply.body.contains("[DONE]"),
        "{}",
        &reply.body[reply.body.len().saturating_sub(600)..]
    );
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn the_grace_period_ends() {
    let mut server = Server::start(&[ROOM[0], ROOM[1], "--grace-period", "1"]);
    let mut running = server.open(&format!(r#"{LONG}, "stream": true"#));
    // A reader that falls behind is cancelled before the signal comes.
    let reading = std::thread::spawn(move || Reply::read(&mut running));
    server.wait_for_metric("hybra_num_requests_running", 1);
    server.signal("-INT");
    let reply = reading.join().unwrap();
    assert!(reply.body.contains("shutting down"), "{}", reply.head);
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn the_second_signal_ends_at_once() {
    for (signal, code) in [("-TERM", 143), ("-INT", 130)] {
        let mut server = Server::start(&ROOM);
        let _running = server.open(LONG);
        server.wait_for_metric("hybra_num_requests_running", 1);
        server.signal(signal);
        wait_for("draining", || server.said().contains("draining"));
        server.signal(signal);
        assert_eq!(server.exit_code(), Some(code));
    }
}

/// A first turn of `question` by a route, and what that route counts as cached in the second one.
fn cached_in_second_turn(server: &Server, route: &str, question: &str) -> u64 {
    let (messages, limit, answer, cached) = match route {
        CHAT => (
            "messages",
            "max_tokens",
            "/choices/0/message/content",
            "/usage/prompt_tokens_details/cached_tokens",
        ),
        "/v1/messages" => {
            ("messages", "max_tokens", "/content/1/text", "/usage/cache_read_input_tokens")
        }
        _ => (
            "input",
            "max_output_tokens",
            "/output/1/content/0/text",
            "/usage/input_tokens_details/cached_tokens",
        ),
    };
    let ask = |turns: Value| -> Value {
        let body = json!({ messages: turns, limit: 2000 }).to_string();
        serde_json::from_str(&server.post(route, "", &body).body).unwrap()
    };
    let first = json!({ "role": "user", "content": question });
    let reply = ask(json!([first]));
    std::thread::sleep(Duration::from_millis(500));
    server.wait_for_metric("hybra_num_prompts_to_warm", 0);
    let answer = reply.pointer(answer).unwrap_or_else(|| panic!("{route}: {reply}"));
    let answer = json!({ "role": "assistant", "content": answer });
    let reply = ask(json!([first, answer, { "role": "user", "content": "b?" }]));
    reply.pointer(cached).and_then(Value::as_u64).unwrap_or_else(|| panic!("{route}: {reply}"))
}

#[test]
fn replies_are_read_for_the_next_turn_in_idle_time() {
    // Fewer tokens than a piece of the cache, and together with the reply more. Each route has names
    // of its own, so that no prompt was seen before.
    let question = |x: &str| format!("{}{x}=1;d=2;e=3;f=4;{x}?", format!("a={x};b=2;").repeat(60));
    let cached = |args: &[&str]| {
        let server = Server::start(args);
        [(CHAT, "x"), ("/v1/messages", "y"), ("/v1/responses", "z")]
            .map(|(route, name)| cached_in_second_turn(&server, route, &question(name)))
    };
    let (warm, cold) = (cached(&[]), cached(&["--no-warm"]));
    for (warm, cold) in warm.into_iter().zip(cold) {
        assert!(warm > cold && cold > 0, "{warm} {cold}");
    }
}

//! `hybra chat --url` against servers that have no thinking budget: the client applies it, cuts
//! where the engine would, goes on from the text so far, and says what it did.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// What a mock server offers beside chat.
#[derive(Clone, Copy, PartialEq)]
enum Style {
    /// `/apply-template`: prompts are text.
    LlamaCpp,
    /// `/tokenize` with messages and `/detokenize`: prompts are ids, one for each byte.
    Vllm,
    /// Nothing.
    Plain,
    /// Nothing, and its streams break off.
    Broken,
}

const PROMPT: &str = "<SPECIAL_11>User\nhi\n<SPECIAL_11>Assistant\n<think>\n";
const MAX_MODEL_LEN: usize = 512;
const TRACE: [&str; 6] = ["think", " hint", "\n", "more", "\n", "and more"];

/// A server whose model thinks [`TRACE`] and answers `fin<e>`; requests are kept.
struct Mock {
    url: String,
    requests: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Mock {
    fn start(style: Style) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let kept = Arc::clone(&kept);
                // A client that drops its stream makes a write fail; that ends the thread.
                std::thread::spawn(move || serve(stream.unwrap(), style, &kept).ok());
            }
        });
        Self { url, requests }
    }

    fn bodies(&self, path: &str) -> Vec<Value> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|(p, _)| p == path).map(|(_, body)| body.clone()).collect()
    }
}

fn serve(
    stream: TcpStream,
    style: Style,
    kept: &Mutex<Vec<(String, Value)>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut line, mut length) = (String::new(), 0);
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    kept.lock().unwrap().push((path.clone(), body.clone()));
    let bytes = |text: &str| text.bytes().map(u64::from).collect::<Vec<_>>();
    match (path.as_str(), style) {
        ("/v1/models", _) => reply(stream, 200, &json!({ "data": [{ "id": "mock" }] })),
        ("/apply-template", Style::LlamaCpp) => reply(stream, 200, &json!({ "prompt": PROMPT })),
        ("/tokenize", Style::Vllm) => {
            let text = body["prompt"].as_str().unwrap_or(PROMPT);
            reply(stream, 200, &json!({ "tokens": bytes(text), "max_model_len": MAX_MODEL_LEN }))
        }
        ("/detokenize", Style::Vllm) => reply(stream, 200, &json!({ "prompt": PROMPT })),
        ("/v1/completions", Style::LlamaCpp | Style::Vllm) => completion(stream, &body),
        ("/v1/chat/completions", Style::Broken) => broken(stream),
        ("/v1/chat/completions", _) => chat(stream),
        _ => reply(stream, 404, &json!({ "error": { "message": "no such path" } })),
    }
}

fn reply(mut stream: TcpStream, status: u16, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n")?;
    stream.write_all(body.as_bytes())
}

fn events(mut stream: TcpStream, events: impl IntoIterator<Item = Value>) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    )?;
    for event in events {
        write!(stream, "data: {event}\n\n")?;
        stream.flush()?;
    }
    stream.write_all(b"data: [DONE]\n\n")
}

/// The trace, again and again, until the section is closed in the prompt; then the answer.
fn completion(stream: TcpStream, body: &Value) -> std::io::Result<()> {
    let prompt = match &body["prompt"] {
        Value::String(text) => text.clone(),
        ids => {
            let ids = ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u8);
            String::from_utf8(ids.collect()).unwrap()
        }
    };
    let event = |text: &str| json!({ "choices": [{ "text": text, "finish_reason": null }] });
    if prompt.contains("</think>") {
        return events(stream, ["fin", "e", ""].map(event));
    }
    events(stream, TRACE.iter().cycle().take(10_000).map(|text| event(text)))
}

/// Half an answer.
fn broken(mut stream: TcpStream) -> std::io::Result<()> {
    let event = json!({ "choices": [{ "delta": { "content": "half" } }] });
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    write!(stream, "{head}data: {event}\n\n")
}

/// vLLM's spelling of the thinking, then the answer.
fn chat(stream: TcpStream) -> std::io::Result<()> {
    let event = |name: &str, text: &str| json!({ "choices": [{ "delta": { name: text } }] });
    events(stream, [event("reasoning", "hm\n"), event("content", "fine")])
}

/// What the program printed for a greeting: stdout and stderr, and whether it ended well.
fn chat_with(mock: &Mock, options: &[&str]) -> (String, String, bool) {
    ask(mock, "hi\n", options)
}

fn ask(mock: &Mock, question: &str, options: &[&str]) -> (String, String, bool) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hybra"))
        .args(["chat", "--url", &mock.url])
        .args(options)
        // Keys of the one who tests play no part.
        .env_remove("OPENAI_API_KEY")
        .env_remove("HYBRA_API_KEY")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that refuses its options reads nothing.
    let _ = child.stdin.take().unwrap().write_all(question.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.success())
}

#[test]
fn a_budget_is_cut_here_and_the_text_goes_on() {
    for style in [Style::LlamaCpp, Style::Vllm] {
        let mock = Mock::start(style);
        let (shown, numbers, _) = chat_with(&mock, &["--thinking-budget", "2"]);
        assert_eq!(shown, "<think>\nthink hint\n</think>\nfine\n", "{numbers}");
        assert!(numbers.contains("thought about 3 of 2, cut at a newline"), "{numbers}");
        let bodies = mock.bodies("/v1/completions");
        assert_eq!(bodies.len(), 2);
        let end = "<think>\nthink hint\n</think>\n\n";
        match &bodies[1]["prompt"] {
            Value::String(prompt) => assert!(prompt.ends_with(end), "{prompt}"),
            ids => {
                let num = ids.as_array().unwrap().len();
                assert_eq!(num, PROMPT.len() + end.len() - 8);
                assert_eq!(bodies[1]["max_tokens"], MAX_MODEL_LEN - num, "vLLM refuses more");
            }
        }
        assert!(mock.bodies("/v1/chat/completions").is_empty());
    }
}

#[test]
fn a_hard_cut_adds_the_newline_and_no_other_character() {
    let mock = Mock::start(Style::LlamaCpp);
    let options = ["--thinking-budget", "2", "--thinking-budget-grace", "0"];
    let (shown, numbers, _) = chat_with(&mock, &options);
    assert_eq!(shown, "<think>\nthink hint\n</think>\nfine\n", "{numbers}");
    assert!(numbers.contains("thought about 2 of 2, cut at the limit"), "{numbers}");
}

#[test]
fn no_thinking_closes_the_section_before_the_first_token() {
    let mock = Mock::start(Style::LlamaCpp);
    let (shown, numbers, _) = chat_with(&mock, &["--no-think"]);
    assert!(shown.ends_with("fine\n") && !shown.contains("think hint"), "{shown}");
    assert!(numbers.contains("thinking off"), "{numbers}");
    assert_eq!(mock.bodies("/v1/completions").len(), 1);
}

#[test]
fn a_server_that_cannot_go_on_from_a_text_takes_no_budget() {
    let mock = Mock::start(Style::Plain);
    let (shown, numbers, _) = chat_with(&mock, &["--thinking-budget", "2"]);
    assert_eq!(shown, "");
    assert!(numbers.contains("needs /apply-template (llama.cpp) or /tokenize (vLLM)"), "{numbers}");
    let (shown, numbers, _) = chat_with(&mock, &[]);
    assert_eq!(shown, "<think>\nhm\n</think>\nfine\n", "{numbers}");
}

#[test]
fn a_broken_stream_is_no_answer() {
    let mock = Mock::start(Style::Broken);
    let (shown, numbers, _) = chat_with(&mock, &[]);
    assert_eq!(shown, "half\n", "{numbers}");
    assert!(
        numbers.contains("error: the stream ended before the answer was complete"),
        "{numbers}"
    );
}

#[test]
fn options_of_a_model_here_are_refused() {
    let mock = Mock::start(Style::Plain);
    for option in [["--threads", "1"], ["--speculate", "4"], ["--kv-dtype", "f32"]] {
        let (_, error, sound) = chat_with(&mock, &option);
        assert!(!sound && error.contains("cannot be used with"), "{error}");
    }
}

/// `hybra serve` on a free port, ended with the value.
struct Server(std::process::Child, String);

impl Server {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hybra"))
            .args(["serve", "--port", "0", "--threads", "1"])
            .env("HYBRA_API_KEY", "s3cret")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines.find(|line| line.as_ref().unwrap().contains("http://"));
        let line = line.unwrap().unwrap();
        let url = line[line.find("http://").unwrap()..].trim().to_owned();
        // The server writes on; nobody reads it but this thread.
        std::thread::spawn(move || lines.for_each(drop));
        Self(child, url)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_hybra_server_keeps_the_budget_itself_and_wants_its_key() {
    let server = Server::start();
    let mock = Mock { url: format!("{}/v1", server.1), requests: Arc::default() };
    let question = "c=b-7;b=0;d=c*9;d?\n";
    let (_, error, sound) = ask(&mock, question, &["--api-key", "wrong"]);
    assert!(!sound && error.contains("API key"), "{error}");
    let options = ["--api-key", "s3cret", "--temperature", "0", "--thinking-budget"];
    let (shown, numbers, _) = ask(&mock, question, &[&options[..], &["100"]].concat());
    assert!(shown.starts_with("<think>\n") && shown.ends_with("</think>\n7\n"), "{shown}");
    assert!(numbers.contains("thought 24 of 100 (28 with the tag), ended by itself"), "{numbers}");
    let (_, numbers, _) = ask(&mock, question, &[&options[..], &["8"]].concat());
    assert!(numbers.contains("of 8 (") && numbers.contains("cut at a newline"), "{numbers}");
}

#[test]
fn an_address_without_a_server_is_named() {
    let mock = Mock { url: "http://127.0.0.1:9/v1".to_owned(), requests: Arc::default() };
    let (_, numbers, sound) = chat_with(&mock, &[]);
    assert!(!sound && numbers.contains("http://127.0.0.1:9"), "{numbers}");
}

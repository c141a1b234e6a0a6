//! Spans of requests, as a collector gets them.

use crate::server::{CHAT, LONG, Server, chat, wait_for};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

/// A trace that began elsewhere.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

#[test]
fn a_collector_gets_spans_of_requests_and_their_choices() {
    let (endpoint, delivered) = collector();
    let mut server = Server::start(&["--otlp-traces-endpoint", &endpoint]);
    let caller = format!("traceparent: 00-{TRACE}-{CALLER}-01\r\ntracestate: x=b-7\r\n");
    let reply =
        server.post(CHAT, &caller, &chat(r#""n": 2, "seed": 1, "thinking_token_budget": 4"#));
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(server.get("/nothing", "").status, 404);
    assert_eq!(
        server.raw("HEAD /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").status,
        200
    );
    // A client that leaves in the middle.
    let mut leaving = server.open(&format!(r#"{LONG}, "stream": true"#));
    leaving.read_exact(&mut [0]).expect("the reply begins");
    drop(leaving);
    wait_for("the end of the work", || {
        let metrics = server.get("/metrics", "").body;
        metrics.contains(r#"status="499""#) || server.said().contains("whole=false")
    });
    server.signal("-TERM");
    assert_eq!(server.exit_code(), Some(0));

    let all: Vec<ResourceSpans> = delivered.iter().flatten().collect();
    let resource = all[0].resource.as_ref().unwrap();
    assert_eq!(text(&resource.attributes, "service.name"), "hybra");
    let scopes = all.iter().flat_map(|all| &all.scope_spans);
    let spans: Vec<&Span> = scopes.flat_map(|scope| &scope.spans).collect();
    let named = |name: &str| spans.iter().filter(|s| s.name == name).copied().collect::<Vec<_>>();

    let of_caller = |span: &&&Span| hex(&span.trace_id) == TRACE;
    let (requests, asked) = (named("POST /v1/chat/completions"), "a trace for each request");
    assert_eq!(requests.len(), 2, "{asked}: {spans:#?}");
    let request = requests.iter().find(of_caller).expect("the caller's trace");
    assert_eq!(request.status.as_ref().map_or(0, |status| status.code), 0);
    let left = requests.iter().find(|span| !of_caller(span)).expect("one of its own");
    let of_left = |span: &&Span| span.trace_id == left.trace_id && span.name == "generate";
    for gone in [left, &spans.iter().copied().find(of_left).expect("its choice")] {
        assert_eq!(gone.status.as_ref().map(|status| status.code), Some(2), "{gone:#?}");
    }
    let head = named("HEAD /health");
    assert_eq!(head[0].status.as_ref().map_or(0, |status| status.code), 0, "{head:#?}");
    assert_eq!(hex(&request.parent_span_id), CALLER);
    assert_eq!(number(&request.attributes, "http.response.status_code"), 200.0);
    let choices: Vec<&Span> =
        named("generate").into_iter().filter(|span| span.trace_id == request.trace_id).collect();
    assert_eq!(choices.len(), 2, "{spans:#?}");
    let whole: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
    let usage = &whole["usage"];
    let total = |name| choices.iter().map(|c| number(&c.attributes, name)).sum::<f64>();
    assert_eq!(total("gen_ai.usage.output_tokens"), usage["completion_tokens"].as_f64().unwrap());
    for choice in choices {
        assert_eq!(
            (&choice.trace_id, &choice.parent_span_id),
            (&request.trace_id, &request.span_id)
        );
        assert!(text(&choice.attributes, "hybra.thinking_ended_by").starts_with("budget"));
        let [queued, first, whole] = ["time_in_queue", "time_to_first_token", "e2e"]
            .map(|name| number(&choice.attributes, &format!("gen_ai.latency.{name}")));
        assert!(queued <= first && first <= whole, "{queued} {first} {whole}");
        assert!(choice.end_time_unix_nano <= request.end_time_unix_nano);
    }
    let lost = |span: &&Span| number(&span.attributes, "http.response.status_code") == 404.0;
    let unknown = named("GET unknown").into_iter().find(lost).expect("the unknown path");
    assert_ne!(hex(&unknown.trace_id), TRACE);
    let told = format!("{spans:?}");
    assert!(!told.contains("a=1") && !told.contains("b-7"), "text of a user: {told}");
}

#[test]
fn a_collector_that_is_away_costs_no_request() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("http://{closed}/v1/traces");
    let mut server = Server::start(&["--otlp-traces-endpoint", &endpoint]);
    assert_eq!(server.post(CHAT, "", &chat("")).status, 200);
    server.signal("-TERM");
    assert_eq!(server.exit_code(), Some(0));
    assert!(server.said().contains("WARN"), "{}", server.said());
}

/// Its endpoint, and what it is sent until nobody sends any more.
fn collector() -> (String, mpsc::Receiver<Vec<ResourceSpans>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (sender, delivered) = mpsc::channel();
    std::thread::spawn(move || {
        // The server has one connection and ends it with its process.
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream);
        while let Some(body) = next_body(&mut reader) {
            let request = ExportTraceServiceRequest::decode(&body[..]).expect("OTLP");
            sender.send(request.resource_spans).unwrap();
        }
    });
    (endpoint, delivered)
}

/// Reads a request and answers it.
fn next_body(reader: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
    Some(body)
}

fn value<'a>(attributes: &'a [KeyValue], name: &str) -> &'a Value {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    let found = found.unwrap_or_else(|| panic!("{name}: {attributes:#?}"));
    found.value.as_ref().and_then(|value| value.value.as_ref()).expect("a value")
}

fn text(attributes: &[KeyValue], name: &str) -> String {
    let Value::StringValue(text) = value(attributes, name) else { panic!("{name}: no text") };
    text.clone()
}

fn number(attributes: &[KeyValue], name: &str) -> f64 {
    match value(attributes, name) {
        Value::IntValue(number) => *number as f64,
        Value::DoubleValue(number) => *number,
        other => panic!("{name}: {other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

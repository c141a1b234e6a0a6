//! What one request, one client or one connection may take.

use crate::server::{CHAT, LONG, ROOM, Reply, Server, chat, post, wait_for};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// One place in the batch, so that a second request waits.
const NARROW: [&str; 4] = [ROOM[0], ROOM[1], "--max-num-seqs", "1"];

#[test]
fn bodies_and_headers_have_limits() {
    let server = Server::start(&["--read-timeout", "2"]);
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n");
    let large = server.raw(format!("{head}content-length: 1000000000\r\n\r\n"));
    assert_eq!(large.status, 413);
    assert!(large.error().contains("16777216 bytes"));
    let mut endless = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
    for _ in 0..17 {
        endless.extend_from_slice(b"100000\r\n");
        endless.resize(endless.len() + (1 << 20), b' ');
        endless.extend_from_slice(b"\r\n");
    }
    // Cut while it is sent: the refusal may get lost on the way.
    assert!([413, 0].contains(&server.raw(endless).status));
    let zipped = server.post(CHAT, "content-encoding: gzip\r\n", "\u{1f}");
    assert_eq!((zipped.status, zipped.error().contains("gzip")), (415, true));
    let many: String = (0..150).map(|i| format!("x-{i}: 1\r\n")).collect();
    assert_eq!(server.get("/v1/models", &many).status, 431);
    let long = format!("x-long: {}\r\n", "a".repeat(40_000));
    assert_eq!(server.get("/v1/models", &long).status, 431);
    assert_eq!(server.get("/v1/models", &format!("x: {}\r\n", "a".repeat(1 << 20))).status, 431);
    let slow = server.raw(format!("{head}content-length: 10\r\n\r\n{{"));
    assert_eq!((slow.status, slow.error().contains("within 2 s")), (408, true));
    let begun = Instant::now();
    assert_eq!(server.raw("GET / HT").status, 0);
    assert!(begun.elapsed() > Duration::from_secs(1), "slow heads have their time, too");
    assert_eq!(server.get("/health", "").status, 200);
}

#[test]
fn requests_may_follow_each_other_and_wait_for_continue() {
    let server = Server::start(&[]);
    let one = "GET /health HTTP/1.1\r\nhost: a\r\n\r\n";
    let last = "GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let replies = server.raw(format!("{one}{one}{last}"));
    assert_eq!(replies.body.matches("HTTP/1.1 200").count(), 2, "{}", replies.body);
    let request = post(CHAT, "expect: 100-continue\r\n", &chat(""));
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let mut stream = server.connect();
    stream.write_all(format!("{head}\r\n\r\n").as_bytes()).unwrap();
    let mut answer = [0; 25];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body.as_bytes()).unwrap();
    assert_eq!(Reply::read(&mut stream).status, 200);
}

#[test]
fn connections_above_the_limit_are_refused_and_idle_ones_end() {
    let server = Server::start(&["--max-connections", "4", "--read-timeout", "3"]);
    let idle: Vec<_> = (0..4).map(|_| server.connect()).collect();
    wait_for("a refusal", || {
        let reply = server.get("/health", "");
        reply.status == 503 && reply.error() == "too many connections"
    });
    wait_for("the end of idle connections", || server.get("/health", "").status == 200);
    drop(idle);
}

#[test]
fn a_full_queue_refuses_with_429() {
    let server = Server::start(&[&NARROW[..], &["--max-queue", "1"]].concat());
    let _running = server.open(LONG);
    server.wait_for_metric("hybra_num_requests_running", 1);
    let _waiting = server.open(LONG);
    server.wait_for_metric("hybra_num_requests_waiting", 1);
    let reply = server.post(CHAT, "", &chat(""));
    assert_eq!(reply.status, 429, "{}", reply.body);
    assert!(reply.head.contains("\r\nretry-after: "), "{}", reply.head);
    assert!(reply.error().contains("1 requests wait"), "{}", reply.body);
}

#[test]
fn deadlines_end_requests() {
    let server = Server::start(&[&NARROW[..], &["--timeout", "60"]].concat());
    let short = "x-request-timeout: 1\r\n";
    let whole = server.post(CHAT, short, &chat(LONG));
    assert_eq!((whole.status, whole.error().as_str()), (504, "the deadline of 1 s passed"));
    let stream = server.post(CHAT, short, &chat(&format!(r#"{LONG}, "stream": true"#)));
    assert_eq!(stream.status, 200);
    assert!(stream.body.contains("event: error"), "{}", &stream.body[stream.body.len() - 300..]);
    assert!(!stream.body.contains("[DONE]"));
    server.wait_for_metric("hybra_num_requests_running", 0);
    let wrong = server.post(CHAT, "x-request-timeout: soon\r\n", &chat(""));
    assert_eq!((wrong.status, wrong.error().contains("86400")), (400, true));
}

#[test]
fn clients_that_go_away_free_their_places() {
    let server = Server::start(&NARROW);
    for fields in [LONG.to_owned(), format!(r#"{LONG}, "stream": true"#)] {
        let running = server.open_and_read(&fields);
        server.wait_for_metric("hybra_num_requests_running", 1);
        let read = server.metric("hybra_prompt_tokens_total");
        let waiting = server.open(&fields);
        server.wait_for_metric("hybra_num_requests_waiting", 1);
        drop(waiting);
        server.wait_for_metric("hybra_num_requests_waiting", 0);
        drop(running);
        server.wait_for_metric("hybra_num_requests_running", 0);
        assert_eq!(server.metric("hybra_prompt_tokens_total"), read, "a dead request ran");
    }
    assert!(server.said().contains("status=499"), "{}", server.said());
}

#[test]
fn readers_that_stop_reading_are_cancelled_and_hold_nobody_up() {
    let server = Server::start(&[ROOM[0], ROOM[1], "--write-timeout", "1"]);
    let stalled = server.open(&format!(r#"{LONG}, "stream": true, "logprobs": true"#));
    server.wait_for_metric("hybra_num_requests_running", 1);
    assert_eq!(server.post(CHAT, "", &chat("")).status, 200);
    server.wait_for_metric("hybra_num_requests_running", 0);
    assert!(server.metric("hybra_generation_tokens_total") < 150_000);
    drop(stalled);
}

#[test]
fn descriptors_do_not_pile_up() {
    let server = Server::start(&[]);
    let open = || std::fs::read_dir(format!("/proc/{}/fd", server.child.id())).unwrap().count();
    server.get("/health", "");
    let before = open();
    for i in 0..2000 {
        let reply = if i % 100 == 0 {
            server.post(CHAT, "", &chat(""))
        } else {
            server.get("/v1/models", "")
        };
        assert_eq!(reply.status, 200);
    }
    wait_for("closed connections", || open() <= before + 2);
}

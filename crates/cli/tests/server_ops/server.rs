//! A server of one's own, and a client that can misbehave.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running `hybra serve` on a free port.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) port: u16,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts it and waits until the model is there.
    pub(crate) fn start(args: &[&str]) -> Self {
        let server = Self::listening(args, &[]);
        wait_for("the model", || server.said().contains("http"));
        server
    }

    /// Starts it and waits until it listens.
    pub(crate) fn listening(args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hybra"))
            .args(["serve", "--port", "0"])
            .args(args)
            .envs(env.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let log = Arc::default();
        let stderr = child.stderr.take().expect("stderr is piped");
        std::thread::spawn({
            let log = Arc::clone(&log);
            move || keep(stderr, &log)
        });
        let mut server = Self { child, port: 0, log };
        wait_for("a port", || server.said().contains("listening"));
        let said = server.said();
        let address = said.split("127.0.0.1:").nth(1).expect("the log names the address");
        let digits = address.split(|c: char| !c.is_ascii_digit()).next();
        server.port = digits.and_then(|digits| digits.parse().ok()).expect("a port");
        server
    }

    /// Everything logged so far.
    pub(crate) fn said(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// A connection that waits for no longer than the tests' patience.
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends a request of plain text and reads the reply up to the connection's end.
    pub(crate) fn raw(&self, request: impl AsRef<[u8]>) -> Reply {
        let mut stream = self.connect();
        // A server that refuses early may close before it has read all.
        let _ = stream.write_all(request.as_ref());
        Reply::read(&mut stream)
    }

    pub(crate) fn get(&self, path: &str, headers: &str) -> Reply {
        self.raw(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n"))
    }

    pub(crate) fn post(&self, path: &str, headers: &str, body: &str) -> Reply {
        self.raw(post(path, headers, body))
    }

    /// Opens a request for a long reply and leaves it open.
    pub(crate) fn open(&self, fields: &str) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(post(CHAT, "", &chat(fields)).as_bytes()).unwrap();
        stream
    }

    /// As [`Server::open`], read by a thread until it is dropped: a stream that nobody reads is
    /// cancelled.
    pub(crate) fn open_and_read(&self, fields: &str) -> Reading {
        let stream = self.open(fields);
        let mut tap = stream.try_clone().unwrap();
        std::thread::spawn(move || std::io::copy(&mut tap, &mut std::io::sink()));
        Reading(stream)
    }

    /// A value of `/metrics`.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics", "").body;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("{name}: {text}")).parse().expect("a number")
    }

    pub(crate) fn wait_for_metric(&self, name: &str, value: u64) {
        wait_for(name, || self.metric(name) == value);
    }

    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// Waits for the end; the exit status.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the server did not end: {}", self.said());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keep(stderr: ChildStderr, log: &Mutex<String>) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    while stderr.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        log.lock().unwrap().push_str(&String::from_utf8_lossy(&line));
        line.clear();
    }
}

/// A connection that a thread reads.
pub(crate) struct Reading(TcpStream);

impl Drop for Reading {
    fn drop(&mut self) {
        // The server may have closed it before.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

/// What came back.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn read(stream: &mut impl Read) -> Self {
        let mut bytes = Vec::new();
        // A connection that was cut has still said something.
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Self { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    /// The message of an error in OpenAI's form.
    pub(crate) fn error(&self) -> String {
        let object: Value = serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.head, self.body));
        object["error"]["message"].as_str().expect("an error").to_owned()
    }
}

pub(crate) const CHAT: &str = "/v1/chat/completions";

/// Fields of a reply that takes a while.
pub(crate) const LONG: &str = r#""max_tokens": 150000, "ignore_eos": true"#;

/// Options under which [`LONG`] is possible.
pub(crate) const ROOM: [&str; 2] = ["--context", "200000"];

pub(crate) fn chat(fields: &str) -> String {
    let comma = if fields.is_empty() { "" } else { ", " };
    format!(r#"{{"messages": [{{"role": "user", "content": "a=1;a?"}}]{comma}{fields}}}"#)
}

pub(crate) fn post(path: &str, headers: &str, body: &str) -> String {
    let len = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {len}\r\n{headers}\r\n{body}"
    )
}

pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

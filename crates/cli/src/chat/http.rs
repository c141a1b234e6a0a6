//! A small OpenAI client: JSON calls, and server-sent events read by a thread of their own.
//!
//! Dropping [`Events`] ends the connection with the next event; a server that watches its clients
//! then stops generating.

use crate::options::fresh_seed;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Events that are read ahead.
const BUFFER: usize = 64;
/// Most bytes of a reply that is no stream.
const MAX_REPLY_BYTES: u64 = 64 << 20;

/// A server's address and key.
#[derive(Clone)]
pub(super) struct Http {
    agent: ureq::Agent,
    /// Without `/v1` and without a slash at its end.
    root: String,
    key: Option<String>,
    /// Keeps a conversation with one server of many, and so with its cache.
    conversation: String,
}

/// Why a call gave no JSON.
pub(super) enum CallError {
    /// The server answers that there is no such path, method or field.
    Unknown,
    /// Everything else.
    Failed(anyhow::Error),
}

impl Http {
    /// A client of the server at `url`, with or without `/v1` at its end.
    pub(super) fn new(url: &str, key: Option<String>) -> Result<Self> {
        if !url.starts_with("http://") && !url.starts_with("https://") {
            bail!("--url: expected http://… or https://…, found {url:?}");
        }
        let root = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .http_status_as_error(false)
            .build();
        let conversation = format!("{:016x}", fresh_seed());
        Ok(Self { agent: config.into(), root, key, conversation })
    }

    /// Where the server is.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// `GET`, as JSON.
    pub(super) fn get(&self, path: &str) -> Result<Value> {
        let mut request = self.agent.get(format!("{}{path}", self.root));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = request.call().with_context(|| self.root.clone())?;
        self.json(path, response).map_err(CallError::into_error)
    }

    /// `POST` of JSON, answered by JSON.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, CallError> {
        let response = self.send(path, body).map_err(CallError::Failed)?;
        self.json(path, response)
    }

    /// `POST` of JSON, answered by a stream.
    pub(super) fn stream(&self, path: &str, mut body: Value) -> Result<Events> {
        body["stream"] = json!(true);
        let response = self.send(path, &body)?;
        if response.status() != 200 {
            return Err(self.json(path, response).err().map_or_else(
                || anyhow::anyhow!("{}{path}: no stream came back", self.root),
                CallError::into_error,
            ));
        }
        let lines = BufReader::new(response.into_body().into_reader());
        let (sender, receiver) = sync_channel(BUFFER);
        std::thread::spawn(move || {
            for event in events(lines) {
                let last = event.is_err();
                if sender.send(event).is_err() || last {
                    return;
                }
            }
        });
        Ok(Events(receiver))
    }

    fn send(&self, path: &str, body: &Value) -> Result<ureq::http::Response<ureq::Body>> {
        let mut request = self.agent.post(format!("{}{path}", self.root));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request
            .header("content-type", "application/json")
            .header("x-conversation-id", &self.conversation);
        request.send(body.to_string()).with_context(|| self.root.clone())
    }

    fn json(
        &self,
        path: &str,
        response: ureq::http::Response<ureq::Body>,
    ) -> Result<Value, CallError> {
        let status = response.status();
        let mut text = String::new();
        let body =
            response.into_body().into_reader().take(MAX_REPLY_BYTES).read_to_string(&mut text);
        let failed =
            |message: String| CallError::Failed(anyhow::anyhow!("{}{path}: {message}", self.root));
        body.map_err(|error| failed(error.to_string()))?;
        let value: Option<Value> = serde_json::from_str(&text).ok();
        match (status.as_u16(), value) {
            (200, Some(value)) => Ok(value),
            (200, None) => Err(failed("the reply is not JSON".to_owned())),
            (404 | 405 | 501, _) => Err(CallError::Unknown),
            (_, value) => Err(failed(format!("{status}: {}", message(value.as_ref(), &text)))),
        }
    }
}

impl CallError {
    pub(super) fn into_error(self) -> anyhow::Error {
        match self {
            Self::Unknown => anyhow::anyhow!("the server has no such path"),
            Self::Failed(error) => error,
        }
    }
}

/// What an error reply says.
fn message(value: Option<&Value>, text: &str) -> String {
    let error = value.map(|value| &value["error"]);
    let said = error.and_then(|e| e["message"].as_str().or(e.as_str()));
    said.unwrap_or(text).chars().take(500).collect()
}

/// The events of a stream.
pub(super) struct Events(Receiver<Result<Value>>);

/// What waiting for an event brought.
pub(super) enum Waited {
    /// An event.
    Event(Value),
    /// Nothing yet.
    Nothing,
    /// The stream is over.
    Over,
}

impl Events {
    /// Waits at most `time`.
    pub(super) fn wait(&self, time: Duration) -> Result<Waited> {
        match self.0.recv_timeout(time) {
            Ok(event) => Ok(Waited::Event(event?)),
            Err(RecvTimeoutError::Timeout) => Ok(Waited::Nothing),
            Err(RecvTimeoutError::Disconnected) => Ok(Waited::Over),
        }
    }
}

/// The objects after `data:`, up to `[DONE]`. An error object is an error, and so is a stream that
/// ends without its end: what came of it is not the whole answer.
fn events(lines: impl BufRead) -> impl Iterator<Item = Result<Value>> {
    let mut lines = lines.lines();
    let mut over = false;
    std::iter::from_fn(move || {
        while !over {
            let Some(line) = lines.next() else {
                over = true;
                return Some(Err(anyhow!("the stream ended before the answer was complete")));
            };
            let line = match line.context("the connection broke") {
                Ok(line) => line,
                Err(error) => return Some(Err(error)),
            };
            match line.strip_prefix("data:").map(str::trim) {
                None => {}
                Some("[DONE]") => over = true,
                Some(data) => return Some(event(data)),
            }
        }
        None
    })
}

fn event(data: &str) -> Result<Value> {
    let value: Value = serde_json::from_str(data).context("an event of the stream is not JSON")?;
    match value.get("error") {
        Some(error) if !error.is_null() => bail!("{}", message(Some(&value), "")),
        _ => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_end_at_done_and_errors_are_errors() {
        let text =
            ": ping\n\ndata: {\"a\": 1}\n\nevent: x\ndata:{\"a\": 2}\n\ndata: [DONE]\n\ndata: {\n";
        let found: Vec<_> = events(text.as_bytes()).map(Result::unwrap).collect();
        assert_eq!(found, [json!({"a": 1}), json!({"a": 2})]);
        let text = "data: {\"error\": {\"message\": \"broken\"}}\n";
        let error = events(text.as_bytes()).next().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "broken");
        let mut cut = events(&b"data: {\"a\": 1}\n\n"[..]);
        assert_eq!(cut.next().unwrap().unwrap(), json!({"a": 1}));
        assert!(cut.next().unwrap().unwrap_err().to_string().contains("before the answer"));
        assert!(cut.next().is_none());
    }

    #[test]
    fn addresses_with_and_without_v1_are_the_same() {
        for url in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
            assert_eq!(Http::new(url, None).unwrap().root(), "http://h:1");
        }
        assert!(Http::new("h:1", None).is_err());
    }
}

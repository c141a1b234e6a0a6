//! From engine events to text: phases, whole characters, and the OpenAI object.
//!
//! Invariant: reasoning, tags, answer and tool text together are all bytes of all tokens; a piece
//! never ends inside a character.

use hybra_engine::{FinishEvent, FinishReason, Phase, Runs, TokenEvent, TokenTable};
use hybra_tokenizer::Tokenizer;
use serde_json::{Value, json};

/// Text of a reply, growing token by token.
#[derive(Default)]
pub(crate) struct Reply {
    /// Bytes that no phase owns yet.
    held: Vec<u8>,
    /// The beginning of a character, and its phase.
    partial: (Phase, Vec<u8>),
    pub(crate) reasoning: String,
    pub(crate) answer: String,
    pub(crate) tool: String,
    logprobs: Vec<Value>,
}

impl Reply {
    /// Takes a token; `show` gets the text it releases, piece by piece.
    pub(crate) fn token(
        &mut self,
        event: &TokenEvent,
        table: &dyn TokenTable,
        tokenizer: &Tokenizer,
        show: &mut dyn FnMut(Phase, &str),
    ) {
        self.held.extend_from_slice(table.bytes(event.token));
        self.release(&event.step.runs, show);
        if let Some(logprob) = event.logprob {
            self.logprobs.push(logprob_entry(event, logprob, tokenizer));
        }
    }

    /// Takes the end of the sequence.
    pub(crate) fn finish(&mut self, runs: &Runs, show: &mut dyn FnMut(Phase, &str)) {
        self.release(runs, show);
        self.flush(show);
    }

    fn release(&mut self, runs: &Runs, show: &mut dyn FnMut(Phase, &str)) {
        let mut held = std::mem::take(&mut self.held);
        runs.drain(&mut held, |phase, bytes| self.bytes(phase, bytes, show));
        self.held = held;
    }

    fn bytes(&mut self, phase: Phase, bytes: &[u8], show: &mut dyn FnMut(Phase, &str)) {
        if phase != self.partial.0 {
            self.flush(show);
            self.partial.0 = phase;
        }
        let mut pending = std::mem::take(&mut self.partial.1);
        pending.extend_from_slice(bytes);
        let whole = whole_characters(&pending);
        let text = String::from_utf8_lossy(&pending[..whole]).into_owned();
        self.partial.1 = pending.split_off(whole);
        self.append(phase, &text, show);
    }

    fn flush(&mut self, show: &mut dyn FnMut(Phase, &str)) {
        let bytes = std::mem::take(&mut self.partial.1);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        self.append(self.partial.0, &text, show);
    }

    fn append(&mut self, phase: Phase, text: &str, show: &mut dyn FnMut(Phase, &str)) {
        if text.is_empty() {
            return;
        }
        match phase {
            Phase::Thinking => self.reasoning.push_str(text),
            Phase::Answer => self.answer.push_str(text),
            Phase::Tool => self.tool.push_str(text),
            Phase::Tag => {}
        }
        show(phase, text);
    }

    /// The OpenAI `chat.completion` object of a finished reply.
    pub(crate) fn completion(
        &self,
        model: &str,
        end: &FinishEvent,
        id: u64,
        created: u64,
    ) -> Value {
        let calls = tool_calls(&self.tool, id);
        let mut message = json!({ "role": "assistant", "content": self.answer });
        if !self.reasoning.is_empty() {
            message["reasoning_content"] = json!(self.reasoning);
        }
        match &calls {
            Some(calls) if calls.is_empty() => {}
            Some(calls) => message["tool_calls"] = json!(calls),
            // Text that is no sound call stays visible.
            None => message["content"] = json!(format!("{}{}", self.answer, self.tool)),
        }
        let logprobs = if self.logprobs.is_empty() {
            Value::Null
        } else {
            json!({ "content": self.logprobs })
        };
        let mut object = json!({
            "id": format!("chatcmpl-{id:016x}"),
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [{
                "index": 0,
                "message": message,
                "logprobs": logprobs,
                "finish_reason": finish_reason(end.reason, calls.is_some_and(|c| !c.is_empty())),
                "reasoning_budget": end.budget,
            }],
            "usage": {
                "prompt_tokens": end.prompt_tokens,
                "completion_tokens": end.completion_tokens,
                "total_tokens": end.prompt_tokens + end.completion_tokens,
                "completion_tokens_details": { "reasoning_tokens": end.reasoning_tokens },
            },
        });
        if let Some(report) = end.speculation {
            object["choices"][0]["speculation"] = json!(report);
        }
        object
    }
}

/// Bytes at the front that no later byte can change: all but the beginning of a character.
fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    for at in (tail..bytes.len()).rev() {
        let need = match bytes[at] {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => return bytes.len(),
        };
        let sound = std::str::from_utf8(&bytes[at..]).is_err_and(|e| e.error_len().is_none());
        return if bytes.len() - at < need && sound { at } else { bytes.len() };
    }
    bytes.len()
}

fn logprob_entry(event: &TokenEvent, logprob: f32, tokenizer: &Tokenizer) -> Value {
    let token = |id: u32, logprob: f32| {
        let bytes = tokenizer.token_bytes(id);
        json!({
            "token": String::from_utf8_lossy(bytes),
            "logprob": if logprob.is_finite() { logprob } else { -9999.0 },
            "bytes": bytes,
        })
    };
    let mut entry = token(event.token, logprob);
    let top = event.top_logprobs.iter().map(|t| token(t.token, t.logprob));
    entry["top_logprobs"] = top.collect();
    if event.step.forced {
        entry["forced"] = json!(true);
    }
    entry
}

/// The calls of `<TOOLCALL>[…]</TOOLCALL>` in OpenAI's form; `None` if the text is no sound call.
fn tool_calls(text: &str, id: u64) -> Option<Vec<Value>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let body = text.trim().strip_prefix("<TOOLCALL>")?;
    let body = body.strip_suffix("</TOOLCALL>").unwrap_or(body);
    let calls: Vec<Value> = serde_json::from_str(body).ok()?;
    let call = |(i, call): (usize, &Value)| {
        let arguments = match &call["arguments"] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Some(json!({
            "id": format!("call_{id:016x}_{i}"),
            "type": "function",
            "function": { "name": call["name"].as_str()?, "arguments": arguments },
        }))
    };
    calls.iter().enumerate().map(call).collect()
}

fn finish_reason(reason: FinishReason, called: bool) -> &'static str {
    match reason {
        FinishReason::Stop if called => "tool_calls",
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
        FinishReason::Failed => "error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_beginning_of_a_character_waits() {
        for (bytes, whole) in [
            (&b"abc"[..], 3),
            (b"", 0),
            ("aé".as_bytes(), 3),
            (&"aé".as_bytes()[..2], 1),
            (&"a😀".as_bytes()[..4], 1),
            (&[b'a', 0xff], 2),
            (&[0x80, 0x80], 2),
            (&[0xe0, 0x80], 2),
        ] {
            assert_eq!(whole_characters(bytes), whole, "{bytes:?}");
        }
    }

    #[test]
    fn calls_are_read_and_broken_ones_are_not() {
        let text = r#"<TOOLCALL>[{"name": "add", "arguments": {"a": 1}}]</TOOLCALL>"#;
        let calls = tool_calls(text, 1).unwrap();
        assert_eq!(calls[0]["function"]["name"], "add");
        assert_eq!(calls[0]["function"]["arguments"], r#"{"a":1}"#);
        assert_eq!(tool_calls("<TOOLCALL>[{", 1), None);
        assert_eq!(tool_calls(r#"<TOOLCALL>[{"arguments": 1}]"#, 1), None);
    }
}

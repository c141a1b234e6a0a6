//! The OpenAI object of a finished reply.

use hybra_chat::{ChatModel, Reply as Text};
use hybra_engine::{FinishEvent, FinishReason, Phase, TokenEvent, TokenTable};
use hybra_tokenizer::Tokenizer;
use serde_json::{Value, json};

/// A reply with its log-probabilities, growing token by token.
#[derive(Default)]
pub(crate) struct Reply {
    pub(crate) text: Text,
    logprobs: Vec<Value>,
}

impl Reply {
    /// An empty reply that ends before the first of `stops`.
    pub(crate) fn new(stops: &[String]) -> Self {
        let stops: Vec<_> = stops.iter().map(|stop| stop.clone().into_bytes()).collect();
        Self { text: Text::new(&stops, false), logprobs: Vec::new() }
    }

    /// Takes a token; `show` gets the text it releases, piece by piece.
    pub(crate) fn token(
        &mut self,
        event: &TokenEvent,
        model: &ChatModel,
        show: &mut dyn FnMut(Phase, &str),
    ) {
        self.text.token(event, model.table.bytes(event.token), show);
        if let Some(logprob) = event.logprob {
            self.logprobs.push(logprob_entry(event, logprob, &model.tokenizer));
        }
    }

    /// The OpenAI `chat.completion` object of a finished reply.
    pub(crate) fn completion(
        &self,
        model: &str,
        end: &FinishEvent,
        id: u64,
        created: u64,
    ) -> Value {
        let calls = tool_calls(&self.text.tool, id);
        let mut message = json!({ "role": "assistant", "content": self.text.answer });
        if !self.text.reasoning.is_empty() {
            message["reasoning_content"] = json!(self.text.reasoning);
        }
        match &calls {
            Some(calls) if calls.is_empty() => {}
            Some(calls) => message["tool_calls"] = json!(calls),
            // Text that is no sound call stays visible.
            None => message["content"] = json!(format!("{}{}", self.text.answer, self.text.tool)),
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
    fn calls_are_read_and_broken_ones_are_not() {
        let text = r#"<TOOLCALL>[{"name": "add", "arguments": {"a": 1}}]</TOOLCALL>"#;
        let calls = tool_calls(text, 1).unwrap();
        assert_eq!(calls[0]["function"]["name"], "add");
        assert_eq!(calls[0]["function"]["arguments"], r#"{"a":1}"#);
        assert_eq!(tool_calls("<TOOLCALL>[{", 1), None);
        assert_eq!(tool_calls(r#"<TOOLCALL>[{"arguments": 1}]"#, 1), None);
    }
}

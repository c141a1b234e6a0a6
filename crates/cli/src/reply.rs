//! The OpenAI object of a finished reply.

use hybra_chat::{ChatModel, Reply as Text, ToolCallParser, ToolDelta};
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
        let (calls, other) = tool_calls(&self.text.tool, id);
        let content = format!("{}{other}", self.text.answer);
        let mut message = json!({ "role": "assistant", "content": content });
        if !self.text.reasoning.is_empty() {
            message["reasoning_content"] = json!(self.text.reasoning);
        }
        let called = !calls.is_empty();
        if called {
            message["tool_calls"] = json!(calls);
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
                "finish_reason": finish_reason(end.reason, called),
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

/// The calls of the tool text in OpenAI's form, and the text that is no call.
fn tool_calls(text: &str, id: u64) -> (Vec<Value>, String) {
    let (mut calls, mut content) = (Vec::<(String, String)>::new(), String::new());
    let mut parser = ToolCallParser::new();
    for delta in parser.push(text).into_iter().chain(parser.finish()) {
        match delta {
            ToolDelta::Content(text) => content.push_str(&text),
            ToolDelta::Call { name, .. } => calls.push((name, String::new())),
            ToolDelta::Arguments { index, fragment } => calls[index].1.push_str(&fragment),
        }
    }
    let call = |(i, (name, arguments))| {
        json!({
            "id": format!("call_{id:016x}_{i}"),
            "type": "function",
            "function": { "name": name, "arguments": arguments },
        })
    };
    (calls.into_iter().enumerate().map(call).collect(), content)
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
        let (calls, content) = tool_calls(text, 1);
        assert_eq!(calls[0]["function"]["name"], "add");
        assert_eq!(calls[0]["function"]["arguments"], r#"{"a": 1}"#);
        assert_eq!((calls.len(), content.as_str()), (1, ""));
        let broken = "<TOOLCALL>[{";
        assert_eq!(tool_calls(broken, 1), (Vec::new(), broken.to_owned()));
    }
}

//! Building the turns of an example.

use crate::verify::Call;
use hybra_tokenizer::{Content, Message};
use serde_json::{Value, json};

/// What the user says.
pub(crate) fn user(text: impl Into<String>) -> Message {
    turn("user", text)
}

/// An assistant's thinking and answer.
pub(crate) fn assistant(thinking: impl Into<String>, answer: impl Into<String>) -> Message {
    Message { reasoning_content: Some(thinking.into()), ..turn("assistant", answer) }
}

/// An assistant's turn that calls a function.
pub(crate) fn calling(thinking: impl Into<String>, id: &str, call: &Call) -> Message {
    let function = json!({ "name": call.name, "arguments": call.arguments });
    let call = json!({ "id": id, "type": "function", "function": function });
    Message { tool_calls: vec![call], ..assistant(thinking, "") }
}

/// What a function gave back.
pub(crate) fn tool(id: &str, result: impl Into<String>) -> Message {
    Message { tool_call_id: Some(id.to_owned()), ..turn("tool", result) }
}

fn turn(role: &str, text: impl Into<String>) -> Message {
    Message {
        role: role.to_owned(),
        content: Some(Content::Text(text.into())),
        ..Message::default()
    }
}

/// The text of a message; empty where it has none.
pub(crate) fn text(message: &Message) -> &str {
    match &message.content {
        Some(Content::Text(text)) => text,
        _ => "",
    }
}

/// A message as OpenAI's object, with the fields that it has.
pub(crate) fn to_json(message: &Message) -> Value {
    let mut object = json!({ "role": message.role });
    if let Some(thinking) = &message.reasoning_content {
        object["reasoning_content"] = json!(thinking);
    }
    object["content"] = match &message.content {
        None => Value::Null,
        Some(Content::Text(text)) => json!(text),
        Some(Content::Parts(parts)) => json!(parts),
    };
    if !message.tool_calls.is_empty() {
        object["tool_calls"] = json!(message.tool_calls);
    }
    for (key, value) in [("tool_call_id", &message.tool_call_id), ("name", &message.name)] {
        if let Some(value) = value {
            object[key] = json!(value);
        }
    }
    object
}

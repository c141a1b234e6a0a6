//! A record's JSON as a conversation or plain text.
//!
//! Forms: `messages` (OpenAI chat, with `reasoning_content` or `reasoning`, `tool_calls`, `weight`
//! 0 or 1 on assistant turns) and `tools`; `text`; `input` and `output` with `reasoning` on or off
//! and `system_prompt`, as post-training data is published. A trace inside `<think>` tags of an
//! assistant's content is split out. Nulls mean absent, lists may come as strings of JSON. Columns
//! that only describe a record ([`DESCRIPTIVE`]) are left alone; any other unknown one is an error.

use super::error::{DataError, Place, found};
use hybra_tokenizer::{Content, Message};
use serde_json::{Map, Value};

/// Columns that say something about a record and are not part of it.
const DESCRIPTIVE: [&str; 18] = [
    "id",
    "uuid",
    "metadata",
    "license",
    "generator",
    "version",
    "category",
    "used_in_training",
    "source",
    "task",
    "answer",
    "difficulty",
    "structure",
    "split",
    "index",
    "seed",
    "domain",
    "verifier",
];

/// What is learned from one record.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// Plain text, learned as a whole.
    Text(String),
    /// A conversation; its assistant turns are learned.
    Chat(Conversation),
}

/// Turns and tools.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// The turns. Reasoning is in `reasoning_content` alone, trimmed, absent when empty.
    pub messages: Vec<Message>,
    /// For each turn, whether it is learned.
    pub learned: Vec<bool>,
    /// Tool definitions.
    pub tools: Vec<Value>,
}

struct Reader<'a> {
    place: &'a Place,
}

impl Record {
    /// Reads a record. `ignore` names further columns to leave alone.
    ///
    /// # Errors
    /// A missing, unknown or wrong field, by name.
    pub fn from_json(value: Value, place: &Place, ignore: &[String]) -> Result<Self, DataError> {
        let reader = Reader { place };
        let Value::Object(mut fields) = value else {
            return Err(reader.wrong("record", "a JSON object", &value));
        };
        fields.retain(|key, value| {
            let ignored = DESCRIPTIVE.contains(&key.as_str()) || ignore.contains(key);
            !(value.is_null() || ignored)
        });
        reader.record(fields)
    }
}

impl Reader<'_> {
    fn wrong(&self, field: impl Into<String>, expected: &'static str, value: &Value) -> DataError {
        let (place, field) = (self.place.clone(), field.into());
        DataError::Field { place, field, expected, found: found(value) }
    }

    fn record(&self, mut fields: Map<String, Value>) -> Result<Record, DataError> {
        let reasoning = match fields.shift_remove("reasoning") {
            None => None,
            Some(Value::String(text)) if text == "on" => Some(true),
            Some(Value::String(text)) if text == "off" => Some(false),
            Some(other) => return Err(self.wrong("reasoning", "\"on\" or \"off\"", &other)),
        };
        let text = fields.shift_remove("text");
        let messages = match (fields.shift_remove("messages"), fields.shift_remove("input")) {
            (Some(messages), None) => Some(self.list("messages", messages)?),
            (None, Some(input)) => Some(self.input(input, &mut fields)?),
            (None, None) => None,
            (Some(_), Some(other)) => {
                return Err(self.wrong("input", "no `messages` beside it", &other));
            }
        };
        let tools = fields.shift_remove("tools").map(|tools| self.list("tools", tools));
        let tools = tools.transpose()?.unwrap_or_default();
        if let Some((key, value)) = fields.iter().next() {
            let expected = "messages, tools, text, input, output, reasoning or system_prompt \
                            (list other columns in `ignore`)";
            return Err(self.wrong(key.as_str(), expected, value));
        }
        match (text, messages) {
            (Some(Value::String(text)), None) if !text.is_empty() => Ok(Record::Text(text)),
            (Some(other), None) => Err(self.wrong("text", "text that is not empty", &other)),
            (Some(other), Some(_)) => Err(self.wrong("text", "no `messages` beside it", &other)),
            (None, None) => {
                Err(self.wrong("messages", "`messages`, `text` or `input`", &Value::Null))
            }
            (None, Some(messages)) => {
                self.conversation(messages, tools, reasoning).map(Record::Chat)
            }
        }
    }

    /// `input` (a question or messages) and `output` as messages.
    fn input(
        &self,
        input: Value,
        fields: &mut Map<String, Value>,
    ) -> Result<Vec<Value>, DataError> {
        let message = |role: &str, content: Value| {
            let pairs = [("role", Value::from(role)), ("content", content)];
            Value::Object(pairs.map(|(key, value)| (key.to_owned(), value)).into_iter().collect())
        };
        let mut messages = match input {
            Value::String(text) if !text.trim_start().starts_with('[') => {
                vec![message("user", text.into())]
            }
            other => self.list("input", other)?,
        };
        if let Some(system) = fields.shift_remove("system_prompt").filter(|s| s != "") {
            messages.insert(0, message("system", system));
        }
        let output = fields.shift_remove("output").unwrap_or(Value::Null);
        if !output.is_string() {
            return Err(self.wrong("output", "text", &output));
        }
        messages.push(message("assistant", output));
        Ok(messages)
    }

    /// An array, or a string of JSON that holds one.
    fn list(&self, field: &str, value: Value) -> Result<Vec<Value>, DataError> {
        match value {
            Value::Array(items) => Ok(items),
            Value::String(text) => match serde_json::from_str(&text) {
                Ok(Value::Array(items)) => Ok(items),
                _ => Err(self.wrong(field, "a list", &Value::String(text))),
            },
            other => Err(self.wrong(field, "a list", &other)),
        }
    }

    fn conversation(
        &self,
        messages: Vec<Value>,
        tools: Vec<Value>,
        reasoning: Option<bool>,
    ) -> Result<Conversation, DataError> {
        let mut conversation = Conversation { tools, ..Conversation::default() };
        for (index, message) in messages.into_iter().enumerate() {
            let (message, learned) = self.message(index, message)?;
            conversation.messages.push(message);
            conversation.learned.push(learned);
        }
        let messages = &mut conversation.messages;
        if messages.last().is_none_or(|last| last.role != "assistant") {
            let role = messages.last().map_or(Value::Null, |last| last.role.as_str().into());
            return Err(self.wrong("messages", "an assistant's turn at the end", &role));
        }
        match reasoning {
            Some(false) => messages.iter_mut().for_each(|m| m.reasoning_content = None),
            Some(true) if messages.iter().all(|m| m.reasoning_content.is_none()) => {
                return Err(self.wrong(
                    "reasoning",
                    "\"off\" for a record without a trace",
                    &"on".into(),
                ));
            }
            _ => {}
        }
        Ok(conversation)
    }

    fn message(&self, index: usize, value: Value) -> Result<(Message, bool), DataError> {
        let field = |name: &str| format!("messages[{index}].{name}");
        let Value::Object(mut fields) = value else {
            return Err(self.wrong(format!("messages[{index}]"), "an object", &value));
        };
        fields.retain(|_, value| !value.is_null());
        let role = match fields.shift_remove("role") {
            Some(Value::String(role)) => role,
            other => {
                let expected = "system, user, assistant or tool";
                return Err(self.wrong(field("role"), expected, &other.unwrap_or(Value::Null)));
            }
        };
        let mut text = |name: &str| match fields.shift_remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(field(name), "text", &other)),
        };
        let (long, short) = (text("reasoning_content")?, text("reasoning")?);
        let mut message = Message {
            role,
            reasoning_content: long.or(short),
            tool_call_id: text("tool_call_id")?,
            name: text("name")?,
            ..Message::default()
        };
        message.content = match fields.shift_remove("content") {
            None => None,
            Some(Value::String(text)) => Some(Content::Text(text)),
            Some(Value::Array(parts)) => Some(Content::Text(self.parts(&field("content"), parts)?)),
            Some(other) => return Err(self.wrong(field("content"), "text or text parts", &other)),
        };
        if let Some(calls) = fields.shift_remove("tool_calls") {
            message.tool_calls = self.tool_calls(index, calls)?;
        }
        let learned = match fields.shift_remove("weight").map(|weight| (weight.as_f64(), weight)) {
            None => message.role == "assistant",
            Some((Some(0.0), _)) => false,
            Some((Some(1.0), _)) => message.role == "assistant",
            Some((_, other)) => return Err(self.wrong(field("weight"), "0 or 1", &other)),
        };
        if let Some((key, value)) = fields.iter().next() {
            let expected =
                "role, content, reasoning_content, tool_calls, tool_call_id, name or weight";
            return Err(self.wrong(field(key), expected, value));
        }
        self.split_reasoning(index, &mut message)?;
        Ok((message, learned))
    }

    fn parts(&self, field: &str, parts: Vec<Value>) -> Result<String, DataError> {
        let text = |part: &Value| match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(text)) => Ok(text.to_owned()),
            _ => Err(self.wrong(field, "parts of the type text", part)),
        };
        Ok(parts.iter().map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
    }

    fn tool_calls(&self, index: usize, calls: Value) -> Result<Vec<Value>, DataError> {
        let mut calls = self.list(&format!("messages[{index}].tool_calls"), calls)?;
        for (number, call) in calls.iter_mut().enumerate() {
            let field = format!("messages[{index}].tool_calls[{number}]");
            if let Some(fields) = call.as_object_mut() {
                fields.retain(|_, value| !value.is_null());
            }
            let function = if call["function"].is_object() { &call["function"] } else { &*call };
            if !function["name"].is_string() {
                return Err(self.wrong(
                    field + ".name",
                    "the name of a function",
                    &function["name"],
                ));
            }
            let is_object = match &function["arguments"] {
                Value::Object(_) => true,
                Value::String(text) => serde_json::from_str::<Map<_, _>>(text).is_ok(),
                _ => false,
            };
            if !is_object {
                let expected = "an object, or a string of JSON that holds one";
                return Err(self.wrong(field + ".arguments", expected, &function["arguments"]));
            }
        }
        Ok(calls)
    }

    /// Moves a trace from the content of an assistant's turn to `reasoning_content`.
    fn split_reasoning(&self, index: usize, message: &mut Message) -> Result<(), DataError> {
        let (open, close) = ("<think>", "</think>");
        if message.role != "assistant" {
            return Ok(());
        }
        let field = format!("messages[{index}].content");
        if let Some(Content::Text(text)) = &message.content {
            let body = text.trim_start();
            let inner = body.strip_prefix(open);
            match (inner.unwrap_or(body).split_once(close), inner) {
                (Some((trace, answer)), _) if !answer.contains(close) => {
                    if message.reasoning_content.is_some() && !trace.trim().is_empty() {
                        let expected = "no trace beside `reasoning_content`";
                        return Err(self.wrong(field, expected, &text.as_str().into()));
                    }
                    let trace = trace.to_owned();
                    let answer = answer.trim().to_owned();
                    message.reasoning_content = message.reasoning_content.take().or(Some(trace));
                    message.content = Some(Content::Text(answer));
                }
                (None, None) => {}
                _ => {
                    let expected = "one <think>…</think> before the answer";
                    return Err(self.wrong(field, expected, &text.as_str().into()));
                }
            }
        }
        let trace = message.reasoning_content.take().map(|trace| trace.trim().to_owned());
        message.reasoning_content = trace.filter(|trace| !trace.is_empty());
        if message.reasoning_content.as_ref().is_some_and(|trace| trace.contains(close)) {
            let field = format!("messages[{index}].reasoning_content");
            return Err(self.wrong(field, "no </think> inside the trace", &close.into()));
        }
        let empty = match &message.content {
            Some(Content::Text(text)) => text.trim().is_empty(),
            _ => true,
        };
        if empty && message.tool_calls.is_empty() {
            return Err(self.wrong(field, "an answer or `tool_calls`", &Value::Null));
        }
        Ok(())
    }
}

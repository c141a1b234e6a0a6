//! Whether an answer is right: whitespace is forgiven, nothing else.
//!
//! | task | right is |
//! |---|---|
//! | chainbox, arithmetic, recall, format | the expected text; where that is JSON, an equal value |
//! | tools | every call by name and arguments, and an answer with no number but the expected one |
//! | about | an answer that holds the key phrase of what was asked |
//! | judge | the same scores and a ranking on the same side |

use crate::conversation::text;
use crate::example::Example;
use crate::judge::Verdict;
use crate::task::Task;
use hybra_chat::{ToolCallParser, ToolDelta};
use hybra_tokenizer::Message;
use serde_json::Value;

/// A call of a function.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Call {
    /// Name of the function.
    pub name: String,
    /// Its arguments, a JSON object as text.
    pub arguments: String,
}

impl Call {
    /// The calls in a reply's tool text, and the text that is no call.
    #[must_use]
    pub fn parse(tool_text: &str) -> (Vec<Self>, String) {
        let (mut calls, mut rest) = (Vec::<Self>::new(), String::new());
        let mut parser = ToolCallParser::new();
        for delta in parser.push(tool_text).into_iter().chain(parser.finish()) {
            match delta {
                ToolDelta::Content(text) => rest.push_str(&text),
                ToolDelta::Call { name, .. } => {
                    calls.push(Self { name, arguments: String::new() });
                }
                ToolDelta::Arguments { index, fragment } => {
                    calls[index].arguments.push_str(&fragment);
                }
            }
        }
        (calls, rest)
    }

    /// The same function with equal arguments.
    fn agrees(&self, other: &Self) -> bool {
        let value = |text: &str| serde_json::from_str::<Value>(text).ok();
        let (own, others) = (value(&self.arguments), value(&other.arguments));
        self.name == other.name && own.is_some() && own == others
    }
}

impl Example {
    /// Whether the `calls` of the whole conversation and its last `answer` are right.
    #[must_use]
    pub fn verify(&self, answer: &str, calls: &[Call]) -> bool {
        let expected: Vec<Call> = self.messages.iter().flat_map(calls_of).collect();
        self.answers(answer) && agree(&expected, calls)
    }

    /// Whether turn `turn` of the conversation, an assistant's, may be answered like this. A turn
    /// that calls says nothing beside, so that no result is invented. Of a question nothing is known
    /// to be right.
    #[must_use]
    pub fn verify_turn(&self, turn: usize, answer: &str, calls: &[Call]) -> bool {
        let Some(message) = self.messages.get(turn) else { return false };
        let expected = calls_of(message);
        let said = if turn + 1 == self.messages.len() {
            self.answers(answer)
        } else {
            same_text(text(message), answer)
        };
        said && agree(&expected, calls)
    }

    /// Whether `answer` is right as the last word.
    fn answers(&self, answer: &str) -> bool {
        match self.task {
            Some(Task::About) => lower(answer).contains(&lower(&self.answer)),
            Some(Task::Judge) => {
                let side = |text: &str| Verdict::parse(text).map(|v| (v.scores, v.ranking > 3));
                side(answer).is_some() && side(answer) == side(&self.answer)
            }
            Some(Task::Tools) => {
                let found = numbers(answer);
                match self.answer.parse::<f64>() {
                    Ok(_) => found == [self.answer.as_str()],
                    Err(_) => found.is_empty() && lower(answer).contains(&lower(&self.answer)),
                }
            }
            _ => same_text(&self.answer, answer) || same_json(&self.answer, answer),
        }
    }
}

/// The calls of an assistant's message. Arguments may be text, as OpenAI's, or an object.
pub(crate) fn calls_of(message: &Message) -> Vec<Call> {
    let call = |call: &Value| {
        let function = call.get("function").unwrap_or(call);
        let arguments = match &function["arguments"] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Call { name: function["name"].as_str().unwrap_or_default().to_owned(), arguments }
    };
    message.tool_calls.iter().map(call).collect()
}

fn agree(expected: &[Call], found: &[Call]) -> bool {
    expected.len() == found.len() && expected.iter().zip(found).all(|(a, b)| a.agrees(b))
}

fn same_text(expected: &str, found: &str) -> bool {
    expected.split_whitespace().eq(found.split_whitespace())
}

/// Objects are compared as values: their spacing and the order of keys are free.
fn same_json(expected: &str, found: &str) -> bool {
    let object = |text: &str| serde_json::from_str::<Value>(text).ok().filter(Value::is_object);
    object(expected).is_some_and(|expected| object(found) == Some(expected))
}

fn lower(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// The numbers of a text, with their sign.
pub(crate) fn numbers(text: &str) -> Vec<&str> {
    let word = |c: char| c.is_ascii_digit() || c == '-' || c == '.';
    let parts = text.split(|c| !word(c)).map(|part| part.trim_end_matches(['.', '-']));
    parts.filter(|part| part.contains(|c: char| c.is_ascii_digit())).collect()
}

//! One example: a conversation with its right answer, and the line of JSON that it is in a file.
//!
//! The line is OpenAI's messages format with `reasoning_content`; beside `messages` and `tools` it
//! has `task`, `answer` and `difficulty`. Reading a line gives the example back, but for its
//! structure.

use crate::conversation::{text, to_json};
use crate::task::Task;
use hybra_tokenizer::Message;
use serde::Deserialize;
use serde_json::{Value, json};

/// A conversation with its right answer, the last message, or a question alone, of which nothing
/// is known to be right (see [`Example::is_question`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The task; `None` for a conversation of a file that names none: its answer is the last
    /// message.
    pub task: Option<Task>,
    /// The turns.
    pub messages: Vec<Message>,
    /// Definitions of functions, as OpenAI's.
    pub tools: Vec<Value>,
    /// What the answer is checked against (see [`Example::verify`]).
    pub answer: String,
    /// Steps, digits or pairs, by the task.
    pub difficulty: u32,
    /// What the split goes by; empty for an example of a file.
    pub structure: String,
}

/// A line as it is in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// `prompt` in files of prompts, as TRL's.
    #[serde(alias = "prompt")]
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<Value>,
    #[serde(default)]
    task: Option<String>,
    #[serde(default)]
    answer: Option<String>,
    #[serde(default)]
    difficulty: u32,
}

impl Example {
    /// The object of one line.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let messages: Vec<Value> = self.messages.iter().map(to_json).collect();
        let mut object = json!({ "messages": messages });
        if !self.tools.is_empty() {
            object["tools"] = json!(self.tools);
        }
        if let Some(task) = self.task {
            object["task"] = json!(task.name());
        }
        object["answer"] = json!(self.answer);
        object["difficulty"] = json!(self.difficulty);
        object
    }

    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it: no JSON, an unknown field or task, a conversation that does not end
    /// with the assistant.
    pub fn from_json(line: &str) -> Result<Self, String> {
        let line = parse(line)?;
        match line.messages.last().is_some_and(|message| message.role == "assistant") {
            true => Self::from_line(line),
            false => Err(wrong_end("an assistant's message", &line.messages)),
        }
    }

    /// Reads a line that may end before the answer.
    ///
    /// # Errors
    /// As [`Example::from_json`]; a conversation that ends with neither assistant, user nor tool, or
    /// with a question although there is an `answer`.
    pub fn from_json_or_question(line: &str) -> Result<Self, String> {
        let line = parse(line)?;
        let last = line.messages.last().map_or("none", |message| message.role.as_str());
        match (last, &line.answer) {
            ("assistant", _) | ("user" | "tool", None) => Self::from_line(line),
            ("user" | "tool", Some(_)) => {
                Err(wrong_end("the assistant's message with the `answer`", &line.messages))
            }
            _ => Err(wrong_end("an assistant's, user's or tool's message", &line.messages)),
        }
    }

    fn from_line(line: Line) -> Result<Self, String> {
        let task = line.task.map(|name| name.parse::<Task>().map_err(|error| error.to_string()));
        let last = line.messages.last().filter(|message| message.role == "assistant");
        let given = last.map_or("", text);
        let answer = line.answer.unwrap_or_else(|| given.to_owned());
        let (messages, tools, difficulty) = (line.messages, line.tools, line.difficulty);
        let structure = String::new();
        Ok(Self { task: task.transpose()?, messages, tools, answer, difficulty, structure })
    }

    /// Whether the answer is missing: the conversation ends with a user's or tool's message.
    #[must_use]
    pub fn is_question(&self) -> bool {
        self.messages.last().is_none_or(|message| message.role != "assistant")
    }

    /// Places of the turns that a model may be asked for: the assistant's, of a question its end.
    #[must_use]
    pub fn asked_turns(&self) -> Vec<usize> {
        if self.is_question() { vec![self.messages.len()] } else { self.assistant_turns() }
    }

    /// Places of the assistant's turns.
    #[must_use]
    pub fn assistant_turns(&self) -> Vec<usize> {
        let turns = self.messages.iter().enumerate();
        turns.filter(|(_, message)| message.role == "assistant").map(|(at, _)| at).collect()
    }
}

fn parse(line: &str) -> Result<Line, String> {
    serde_json::from_str(line).map_err(|error| error.to_string())
}

fn wrong_end(expected: &str, messages: &[Message]) -> String {
    let found = messages.last().map_or("none", |message| message.role.as_str());
    format!("messages: expected {expected} at the end, found {found}")
}

//! The conversation as templates see it, and its normalisation.
//!
//! Before rendering: `content: null` becomes the empty string, a list of text parts becomes their
//! texts joined by a newline, `developer` becomes `system`. Any other part is an error. What a
//! template does with a later system message or an unknown role is the template's business.

use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::TemplateError;

/// Content of a message on the wire.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// One string.
    Text(String),
    /// Parts; only `{"type": "text", "text": …}` is accepted when rendering.
    Parts(Vec<Value>),
}

/// One turn of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant`, `tool`, or whatever the template knows.
    pub role: String,
    /// Text; absent and `null` mean the empty string.
    #[serde(default)]
    pub content: Option<Content>,
    /// Earlier thinking of an assistant turn, for templates that print it.
    #[serde(default)]
    pub reasoning_content: Option<String>,
    /// Calls of an assistant turn, passed to the template as they are.
    #[serde(default)]
    pub tool_calls: Vec<Value>,
    /// Call that a tool message answers.
    #[serde(default)]
    pub tool_call_id: Option<String>,
    /// Name of the speaker or tool.
    #[serde(default)]
    pub name: Option<String>,
}

impl Message {
    /// A message with plain text.
    pub fn new(role: &str, content: &str) -> Self {
        Self {
            role: role.to_owned(),
            content: Some(Content::Text(content.to_owned())),
            ..Self::default()
        }
    }

    /// Role after normalisation.
    pub(crate) fn template_role(&self) -> &str {
        if self.role == "developer" { "system" } else { &self.role }
    }

    /// Text after normalisation; `index` is for the error.
    pub(crate) fn text(&self, index: usize) -> Result<String, TemplateError> {
        let parts = match &self.content {
            None => return Ok(String::new()),
            Some(Content::Text(text)) => return Ok(text.clone()),
            Some(Content::Parts(parts)) => parts,
        };
        let texts: Result<Vec<&str>, TemplateError> = parts
            .iter()
            .map(|part| match (part["type"].as_str(), part["text"].as_str()) {
                (Some("text"), Some(text)) => Ok(text),
                (kind, _) => {
                    let found = kind.unwrap_or("a part without a type").to_owned();
                    Err(TemplateError::ContentPart { index, found })
                }
            })
            .collect();
        Ok(texts?.join("\n"))
    }
}

/// Everything that a chat template is rendered from.
#[derive(Debug, Clone, Default)]
pub struct ChatRequest {
    /// The conversation.
    pub messages: Vec<Message>,
    /// Tool definitions (JSON schema objects).
    pub tools: Vec<Value>,
    /// End the prompt with the header of an assistant turn.
    pub add_generation_prompt: bool,
    /// The last message is an assistant's beginning, to be continued.
    pub continue_final_message: bool,
    /// Passed as `enable_thinking` when given; see [`crate::ChatTemplate::reads_enable_thinking`].
    pub enable_thinking: Option<bool>,
    /// Further template variables; names that the engine sets are refused.
    pub kwargs: Map<String, Value>,
    /// Time that `strftime_now` shows (UTC); `None` means the system clock.
    pub now: Option<SystemTime>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Message {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn null_parts_and_developer() {
        assert_eq!(parse(r#"{"role":"assistant","content":null}"#).text(0).unwrap(), "");
        assert_eq!(parse(r#"{"role":"assistant"}"#).text(0).unwrap(), "");
        let parts =
            r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}"#;
        assert_eq!(parse(parts).text(0).unwrap(), "a\nb");
        assert_eq!(Message::new("developer", "x").template_role(), "system");
        let image = parse(r#"{"role":"user","content":[{"type":"image_url","image_url":"u"}]}"#);
        assert_eq!(
            image.text(3).unwrap_err().to_string(),
            "message 3: content part is not {\"type\": \"text\", \"text\": …}: image_url"
        );
        assert!(serde_json::from_str::<Message>(r#"{"role":"user","contnet":"x"}"#).is_err());
    }
}

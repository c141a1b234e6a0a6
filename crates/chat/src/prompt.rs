//! From a conversation to a prompt in ids, with thinking on or off as the request says.

use crate::chat_model::ChatModel;
use crate::error::ChatError;
use hybra_engine::{Effort, Start, ThinkingParams};
use hybra_tokenizer::{ChatRequest, Content, Message, Rendered};
use serde_json::{Map, Value};

/// A conversation to continue.
#[derive(Debug, Clone, Default)]
pub struct ChatInput {
    /// The turns.
    pub messages: Vec<Message>,
    /// Tool definitions.
    pub tools: Vec<Value>,
    /// The last message is an assistant's beginning, to be continued.
    pub continue_final_message: bool,
    /// Further variables of the template (`chat_template_kwargs`).
    pub kwargs: Map<String, Value>,
}

/// A prompt in ids.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// The tokens.
    pub ids: Vec<u32>,
    /// The text that they encode; empty for a prompt given in ids.
    pub text: String,
    pub(crate) start: Start,
    pub(crate) tools: bool,
    /// Chat, rather than raw text.
    pub(crate) chat: bool,
}

impl Prompt {
    /// Whether generated text begins inside a thinking section.
    #[must_use]
    pub fn is_thinking(&self) -> bool {
        matches!(self.start, Start::Open { .. })
    }
}

impl ChatModel {
    /// Renders a conversation, with thinking on or off as the request says (or as the template
    /// decides, if it says nothing).
    ///
    /// # Errors
    /// What the template refuses or would leave out, and thinking on a model without it.
    pub fn chat_prompt(
        &self,
        input: &ChatInput,
        thinking: &ThinkingParams,
    ) -> Result<Prompt, ChatError> {
        let wanted = switch(thinking);
        let mut rendered = self.render(input, wanted, true)?;
        match (&self.tags, wanted) {
            (Some(tags), Some(on))
                if !input.continue_final_message && !tags.set_prompt(&mut rendered, on) =>
            {
                return Err(ChatError::NoThinkForm);
            }
            (None, Some(true)) => return Err(ChatError::NoThinkTags { field: "enable_thinking" }),
            _ => {}
        }
        let (start, tools) = (self.start(&rendered), !input.tools.is_empty());
        let ids = self.tokenizer.encode_rendered(&rendered)?;
        Ok(Prompt { ids, text: rendered.text().to_owned(), start, tools, chat: true })
    }

    /// Renders a conversation as the template prints it. `prompt`: it ends where an assistant's
    /// turn begins.
    ///
    /// # Errors
    /// What the template refuses or would leave out.
    pub fn render(
        &self,
        input: &ChatInput,
        thinking: Option<bool>,
        prompt: bool,
    ) -> Result<Rendered, ChatError> {
        let template = self.tokenizer.chat_template()?;
        let mut request = ChatRequest {
            messages: input.messages.clone(),
            tools: input.tools.clone(),
            add_generation_prompt: prompt && !input.continue_final_message,
            continue_final_message: input.continue_final_message,
            kwargs: input.kwargs.clone(),
            ..ChatRequest::default()
        };
        match thinking {
            Some(on) if template.reads_enable_thinking() => request.enable_thinking = Some(on),
            Some(on) => add_flag_word(&mut request.messages, on),
            None => {}
        }
        let rendered = template.render(&request)?;
        check_dropped(&input.messages, rendered.text())?;
        Ok(rendered)
    }

    /// Encodes plain text, with a BOS if the tokenizer adds one.
    ///
    /// # Errors
    /// Text that the vocabulary cannot express.
    pub fn raw_prompt(&self, text: &str) -> Result<Prompt, ChatError> {
        let ids = self.tokenizer.encode(text, true)?;
        let start = self.start(&Rendered::from(text));
        Ok(Prompt { ids, text: text.to_owned(), start, tools: false, chat: false })
    }

    /// A prompt that is ids already.
    ///
    /// # Errors
    /// An id without a token.
    pub fn token_prompt(&self, ids: Vec<u32>) -> Result<Prompt, ChatError> {
        let vocab_size = self.tokenizer.vocab_size();
        if let Some(&found) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(ChatError::TokenId { vocab_size, found });
        }
        let text = self.tokenizer.decode(&ids, false);
        let start = self.start(&Rendered::from(text.as_str()));
        Ok(Prompt { ids, text, start, tools: false, chat: false })
    }
}

/// What a request says about thinking on or off; `None` leaves it to the template.
fn switch(thinking: &ThinkingParams) -> Option<bool> {
    let off = thinking.budget == Some(0)
        || thinking.enabled == Some(false)
        || thinking.budget.is_none() && thinking.effort == Some(Effort::None);
    let on = thinking.enabled.is_some() || thinking.budget.is_some() || thinking.effort.is_some();
    if off { Some(false) } else { on.then_some(true) }
}

/// For templates that read flag words: the word goes into the system message.
fn add_flag_word(messages: &mut Vec<Message>, on: bool) {
    let word = if on { "/think" } else { "/no_think" };
    if messages.first().is_none_or(|m| !is_system(m)) {
        messages.insert(0, Message::new("system", word));
        return;
    }
    let text = match messages[0].content.take() {
        Some(Content::Text(text)) => format!("{text}\n{word}"),
        Some(Content::Parts(mut parts)) => {
            parts.push(serde_json::json!({ "type": "text", "text": word }));
            messages[0].content = Some(Content::Parts(parts));
            return;
        }
        None => word.to_owned(),
    };
    messages[0].content = Some(Content::Text(text));
}

fn is_system(message: &Message) -> bool {
    matches!(message.role.as_str(), "system" | "developer")
}

/// A later system message that is nowhere in the prompt was dropped by the template.
fn check_dropped(messages: &[Message], rendered: &str) -> Result<(), ChatError> {
    for (index, message) in messages.iter().enumerate().skip(1).filter(|(_, m)| is_system(m)) {
        let shown = match &message.content {
            Some(Content::Text(text)) => rendered.contains(without_flags(text).trim()),
            _ => true,
        };
        if !shown {
            return Err(ChatError::Dropped { index, role: message.role.clone() });
        }
    }
    Ok(())
}

/// A text as templates with flag words print it.
fn without_flags(text: &str) -> String {
    text.replace("/no_think", "").replace("/think", "")
}

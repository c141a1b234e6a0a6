//! The Responses API's conversations, as chat requests.

use super::{ChatRequest, chat_request};
use crate::error::ApiError;
use crate::json::typed;
use crate::state::AppState;
use crate::wire::chat::{
    ChatFields, ChatMessage, FunctionName, FunctionSpec, JsonSchemaFormat, MessageContent,
    NamedTool, ResponseFormat, Tool, ToolChoiceField,
};
use crate::wire::responses::{
    InputCall, InputCallOutput, InputItem, InputMessage, InputPart, InputReasoning,
    ResponsesFields, ResponsesTool, ResponsesToolChoice, TextFormat,
};
use crate::wire::sampling::SamplingFields;
use crate::wire::thinking::ThinkingFields;
use serde_json::{Value, json};

/// Checks a request.
///
/// # Errors
/// Every defect, with the name of its field.
pub fn response_request(
    state: &AppState,
    fields: &ResponsesFields,
    sampling: SamplingFields,
    thinking: ThinkingFields,
) -> Result<ChatRequest, ApiError> {
    check_stateless(fields)?;
    if sampling.n.is_some_and(|n| n != 1) {
        return Err(ApiError::unsupported("n", "this endpoint gives one reply"));
    }
    let tool = |tool: &ResponsesTool| {
        let ResponsesTool { kind, name, description, parameters, strict } = tool.clone();
        Tool { kind, function: FunctionSpec { name, description, parameters, strict } }
    };
    let chat = ChatFields {
        model: fields.model.clone(),
        messages: messages(fields)?,
        tools: fields.tools.as_ref().map(|tools| tools.iter().map(tool).collect()),
        tool_choice: fields.tool_choice.clone().map(tool_choice),
        parallel_tool_calls: fields.parallel_tool_calls,
        response_format: fields.text.as_ref().and_then(|text| text.format.clone()).map(format),
        max_tokens: fields.max_output_tokens,
        user: fields.user.clone(),
        safety_identifier: fields.safety_identifier.clone(),
        prompt_cache_key: fields.prompt_cache_key.clone(),
        ..ChatFields::default()
    };
    let mut request = chat_request(state, chat, sampling, thinking)?;
    let idle = [
        ("stream_options", fields.stream_options.is_some()),
        ("include", fields.include.as_ref().is_some_and(|include| !include.is_empty())),
        ("max_tool_calls", fields.max_tool_calls.is_some()),
        ("service_tier", fields.service_tier.is_some()),
        ("prompt_cache_retention", fields.prompt_cache_retention.is_some()),
    ];
    let idle = idle.into_iter().filter(|(_, given)| *given);
    request.warnings.extend(idle.map(|(name, _)| format!("{name} has no effect")));
    Ok(request)
}

/// Refuses what needs replies that are kept, and what cannot be given.
fn check_stateless(fields: &ResponsesFields) -> Result<(), ApiError> {
    let other = |value: &Option<String>, only: &str| value.as_ref().is_some_and(|v| v != only);
    let include = fields.include.iter().flatten();
    let verbosity = fields.text.as_ref().map_or(&None, |text| &text.verbosity);
    for (name, refused, why) in [
        ("store", fields.store == Some(true), "replies are not stored"),
        ("background", fields.background == Some(true), "replies are not stored"),
        ("previous_response_id", fields.previous_response_id.is_some(), "replies are not stored"),
        ("conversation", fields.conversation.is_some(), "replies are not stored"),
        ("prompt", fields.prompt.is_some(), "prompts are not stored"),
        ("truncation", other(&fields.truncation, "disabled"), "input is never cut"),
        ("text.verbosity", other(verbosity, "medium"), "the model knows no verbosity"),
        ("top_logprobs", fields.top_logprobs.unwrap_or(0) > 0, "use /v1/chat/completions"),
        (
            "include",
            include.clone().any(|what| what != "reasoning.encrypted_content"),
            "only reasoning.encrypted_content is accepted",
        ),
    ] {
        if refused {
            return Err(ApiError::unsupported(name, why));
        }
    }
    Ok(())
}

fn tool_choice(choice: ResponsesToolChoice) -> ToolChoiceField {
    match choice {
        ResponsesToolChoice::Mode(mode) => ToolChoiceField::Mode(mode),
        ResponsesToolChoice::Named(named) => ToolChoiceField::Named(NamedTool {
            kind: named.kind,
            function: FunctionName { name: named.name },
        }),
    }
}

fn format(format: TextFormat) -> ResponseFormat {
    match format {
        TextFormat::Text {} => ResponseFormat::Text,
        TextFormat::JsonObject {} => ResponseFormat::JsonObject,
        TextFormat::JsonSchema { name, description, schema, strict } => {
            let name = Some(name);
            ResponseFormat::JsonSchema {
                json_schema: JsonSchemaFormat { name, description, schema, strict },
            }
        }
    }
}

/// The turns that the items make.
fn messages(fields: &ResponsesFields) -> Result<Vec<ChatMessage>, ApiError> {
    let mut turns = Turns::default();
    if let Some(instructions) = &fields.instructions {
        turns.say("system", instructions.clone());
    }
    match &fields.input {
        Value::String(text) => turns.say("user", text.clone()),
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                let at = format!("input[{i}]");
                turns.add(read_item(item.clone(), &at)?, &at)?;
            }
        }
        _ => {
            let message = "input: expected a string or a list of items";
            return Err(ApiError::invalid("input", message));
        }
    }
    Ok(turns.messages)
}

fn read_item(item: Value, at: &str) -> Result<InputItem, ApiError> {
    Ok(match item["type"].as_str().unwrap_or("message") {
        "message" => InputItem::Message(typed(item, at)?),
        "function_call" => InputItem::FunctionCall(typed(item, at)?),
        "function_call_output" => InputItem::FunctionCallOutput(typed(item, at)?),
        "reasoning" => InputItem::Reasoning(typed(item, at)?),
        other => {
            let other: String = other.chars().take(64).collect();
            let at = format!("{at}.type");
            let message = format!(
                "{at}: expected message, function_call, function_call_output or reasoning, found \
                 {other:?}"
            );
            return Err(ApiError::invalid(at, message));
        }
    })
}

/// Turns, growing item by item.
#[derive(Default)]
struct Turns {
    messages: Vec<ChatMessage>,
    /// Belongs to the assistant's next item.
    reasoning: Option<String>,
}

impl Turns {
    fn add(&mut self, item: InputItem, at: &str) -> Result<(), ApiError> {
        match item {
            InputItem::Message(InputMessage { role, content, .. }) => {
                self.say(&role, texts(content, &format!("{at}.content"))?);
            }
            InputItem::Reasoning(InputReasoning {
                summary, content, encrypted_content, ..
            }) => {
                if encrypted_content.is_some_and(|text| !text.is_empty()) {
                    let why = "this server gives thinking as text";
                    return Err(ApiError::unsupported(&format!("{at}.encrypted_content"), why));
                }
                let parts = content.filter(|parts| !parts.is_empty()).or(summary);
                let parts = parts.unwrap_or_default().into_iter();
                self.reasoning = Some(parts.map(InputPart::into_text).collect());
            }
            InputItem::FunctionCall(InputCall { call_id, name, arguments, .. }) => {
                let function = json!({ "name": name, "arguments": arguments });
                let call = json!({ "id": call_id, "type": "function", "function": function });
                self.assistant().tool_calls.get_or_insert_default().push(call);
            }
            InputItem::FunctionCallOutput(InputCallOutput { call_id, output, .. }) => {
                self.say("tool", texts(output, &format!("{at}.output"))?);
                let last = self.messages.last_mut().expect("a turn was just added");
                last.tool_call_id = Some(call_id);
            }
        }
        Ok(())
    }

    /// A turn; system texts at the beginning are one.
    fn say(&mut self, role: &str, text: String) {
        let system = matches!(role, "system" | "developer");
        if let [ChatMessage { role: first, content: Some(MessageContent::Text(all)), .. }] =
            &mut self.messages[..]
            && system
            && first == "system"
        {
            all.push_str("\n\n");
            all.push_str(&text);
            return;
        }
        let reasoning_content = self.reasoning.take_if(|_| role == "assistant");
        self.messages.push(ChatMessage {
            role: if system { "system" } else { role }.to_owned(),
            content: Some(MessageContent::Text(text)),
            reasoning_content,
            ..ChatMessage::default()
        });
    }

    /// The assistant's turn that is going on.
    fn assistant(&mut self) -> &mut ChatMessage {
        if self.messages.last().is_none_or(|last| last.role != "assistant") {
            self.say("assistant", String::new());
        }
        self.messages.last_mut().expect("a turn was just added")
    }
}

/// Text, or parts of text.
fn texts(value: Value, at: &str) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        Value::Array(parts) => {
            let part = |(i, part)| typed(part, &format!("{at}[{i}]")).map(InputPart::into_text);
            let texts: Result<Vec<_>, _> = parts.into_iter().enumerate().map(part).collect();
            Ok(texts?.join("\n"))
        }
        _ => Err(ApiError::invalid(at, format!("{at}: expected a string or a list of parts"))),
    }
}

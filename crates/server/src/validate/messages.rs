//! Anthropic's conversations, as chat requests.

use crate::error::ApiError;
use crate::json::typed;
use crate::wire::chat::{
    ChatFields, ChatMessage, FunctionName, FunctionSpec, JsonSchemaFormat, MessageContent,
    NamedTool, ResponseFormat, Tool, ToolChoiceField, ToolChoiceMode, ToolType,
};
use crate::wire::messages::{
    InputBlock, InputTurn, MessagesFields, MessagesTool, MessagesToolChoice, OutputFormat, TurnRole,
};
use serde_json::{Value, json};

/// The chat request that says the same.
///
/// # Errors
/// Blocks that are no text, thinking, call or result, or stand in the wrong turn.
pub fn chat_fields(fields: MessagesFields) -> Result<ChatFields, ApiError> {
    let mut messages = Vec::new();
    if let Some(system) = fields.system {
        messages.push(ChatMessage { role: "system".to_owned(), ..text(texts(system, "system")?) });
    }
    if fields.messages.is_empty() {
        return Err(ApiError::invalid("messages", "messages: expected at least one message"));
    }
    let continued = fields.messages.last().is_some_and(|turn| turn.role == TurnRole::Assistant);
    for (i, turn) in fields.messages.into_iter().enumerate() {
        add_turn(turn, &format!("messages[{i}].content"), &mut messages)?;
    }
    let response_format = fields.output_config.and_then(|config| config.format).map(
        |OutputFormat::JsonSchema { schema }| ResponseFormat::JsonSchema {
            json_schema: JsonSchemaFormat { name: None, description: None, schema, strict: None },
        },
    );
    let (tool_choice, single) = tool_choice(fields.tool_choice);
    Ok(ChatFields {
        model: fields.model,
        messages,
        tools: fields.tools.map(|tools| tools.into_iter().map(tool).collect()),
        tool_choice,
        parallel_tool_calls: single.map(|single| !single),
        continue_final_message: Some(continued),
        response_format,
        ..ChatFields::default()
    })
}

fn add_turn(turn: InputTurn, at: &str, to: &mut Vec<ChatMessage>) -> Result<(), ApiError> {
    let own = if turn.role == TurnRole::User { "user" } else { "assistant" };
    let mut message = ChatMessage { role: own.to_owned(), ..ChatMessage::default() };
    let (mut content, mut calls) = (Vec::new(), Vec::new());
    for (i, block) in blocks(turn.content, at)?.into_iter().enumerate() {
        match (turn.role, block) {
            (_, InputBlock::Text { text, .. }) => content.push(text),
            (TurnRole::Assistant, InputBlock::Thinking { thinking, .. }) => {
                message.reasoning_content.get_or_insert_default().push_str(&thinking);
            }
            (TurnRole::Assistant, InputBlock::ToolUse { id, name, input, .. }) => {
                let function = json!({ "name": name, "arguments": input.to_string() });
                calls.push(json!({ "id": id, "type": "function", "function": function }));
            }
            (TurnRole::User, InputBlock::ToolResult { tool_use_id, content, .. }) => {
                let result =
                    content.map(|c| texts(c, &format!("{at}[{i}].content"))).transpose()?;
                let role = "tool".to_owned();
                let tool_call_id = Some(tool_use_id);
                to.push(ChatMessage { role, tool_call_id, ..text(result.unwrap_or_default()) });
            }
            _ => {
                let at = format!("{at}[{i}]");
                let message = format!("{at}: a {own} turn cannot hold a block of this type");
                return Err(ApiError::invalid(at, message));
            }
        }
    }
    let bare = content.is_empty() && to.last().is_some_and(|last| last.role == "tool");
    if own == "user" && bare {
        return Ok(());
    }
    message.content = Some(MessageContent::Text(content.join("\n")));
    message.tool_calls = Some(calls).filter(|calls| !calls.is_empty());
    to.push(message);
    Ok(())
}

fn text(text: String) -> ChatMessage {
    ChatMessage { content: Some(MessageContent::Text(text)), ..ChatMessage::default() }
}

/// Text, or blocks.
fn blocks(value: Value, at: &str) -> Result<Vec<InputBlock>, ApiError> {
    match value {
        Value::String(text) => {
            Ok(vec![InputBlock::Text { text, cache_control: None, citations: None }])
        }
        Value::Array(blocks) => {
            let block = |(i, block)| typed(block, &format!("{at}[{i}]"));
            blocks.into_iter().enumerate().map(block).collect()
        }
        _ => Err(ApiError::invalid(at, format!("{at}: expected a string or a list of blocks"))),
    }
}

/// The text of blocks that must be text.
fn texts(value: Value, at: &str) -> Result<String, ApiError> {
    let text = |(i, block)| match block {
        InputBlock::Text { text, .. } => Ok(text),
        _ => {
            let at = format!("{at}[{i}]");
            Err(ApiError::invalid(at.clone(), format!("{at}: expected a block of text")))
        }
    };
    let texts: Result<Vec<_>, _> = blocks(value, at)?.into_iter().enumerate().map(text).collect();
    Ok(texts?.join("\n"))
}

fn tool(tool: MessagesTool) -> Tool {
    let MessagesTool { name, description, input_schema, strict, .. } = tool;
    let parameters = Some(input_schema);
    let function = FunctionSpec { name, description, parameters, strict };
    Tool { kind: ToolType::Function, function }
}

fn tool_choice(choice: Option<MessagesToolChoice>) -> (Option<ToolChoiceField>, Option<bool>) {
    let mode = |mode| Some(ToolChoiceField::Mode(mode));
    match choice {
        None => (None, None),
        Some(MessagesToolChoice::None {}) => (mode(ToolChoiceMode::None), None),
        Some(MessagesToolChoice::Auto { disable_parallel_tool_use: single }) => {
            (mode(ToolChoiceMode::Auto), single)
        }
        Some(MessagesToolChoice::Any { disable_parallel_tool_use: single }) => {
            (mode(ToolChoiceMode::Required), single)
        }
        Some(MessagesToolChoice::Tool { name, disable_parallel_tool_use: single }) => {
            let function = FunctionName { name };
            let named = NamedTool { kind: ToolType::Function, function };
            (Some(ToolChoiceField::Named(named)), single)
        }
    }
}

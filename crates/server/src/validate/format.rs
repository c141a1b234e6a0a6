//! What the answer must look like: response format, vLLM's structured outputs, and tool choice.

use crate::error::ApiError;
use crate::state::AppState;
use crate::wire::chat::{ChatFields, ResponseFormat, ToolChoiceField, ToolChoiceMode};
use hybra_chat::{GrammarSpec, ToolChoice, ToolSpec, Tools};
use hybra_engine::Constraint;
use serde_json::json;

/// The constraint of a request; `None` where everything is allowed.
///
/// # Errors
/// Two formats at once, and what cannot be compiled.
pub(super) fn constraint(
    state: &AppState,
    chat: &ChatFields,
) -> Result<Option<Box<dyn Constraint>>, ApiError> {
    let answer = answer(chat)?;
    let tools = tools(chat)?;
    Ok(state.model.grammars.tool_constraint(&tools, answer.as_ref())?)
}

/// What the answer must look like where it is no call.
fn answer(chat: &ChatFields) -> Result<Option<GrammarSpec>, ApiError> {
    let format = match &chat.response_format {
        None | Some(ResponseFormat::Text) => None,
        Some(ResponseFormat::JsonObject) => Some(GrammarSpec::JsonObject),
        Some(ResponseFormat::JsonSchema { json_schema }) => {
            Some(GrammarSpec::JsonSchema(json_schema.schema.clone()))
        }
    };
    let other = chat.structured_outputs.clone().unwrap_or_default();
    let specs = [
        ("response_format", format),
        ("structured_outputs.json", other.json.map(GrammarSpec::JsonSchema)),
        ("structured_outputs.json_object", other.json_object.and_then(object)),
        ("structured_outputs.regex", other.regex.map(GrammarSpec::Regex)),
        ("structured_outputs.choice", other.choice.map(GrammarSpec::Choice)),
        ("structured_outputs.grammar", other.grammar.map(GrammarSpec::Lark)),
        ("guided_json", chat.guided_json.clone().map(GrammarSpec::JsonSchema)),
        ("guided_regex", chat.guided_regex.clone().map(GrammarSpec::Regex)),
        ("guided_choice", chat.guided_choice.clone().map(GrammarSpec::Choice)),
        ("guided_grammar", chat.guided_grammar.clone().map(GrammarSpec::Lark)),
    ];
    let mut given = specs.into_iter().filter_map(|(name, spec)| Some((name, spec?)));
    let first = given.next();
    match (&first, given.next()) {
        (Some((one, _)), Some((two, _))) => {
            let message = format!("{two} contradicts {one}: an answer has one format");
            Err(ApiError::invalid(two, message))
        }
        _ => Ok(first.map(|(_, spec)| spec)),
    }
}

fn object(wanted: bool) -> Option<GrammarSpec> {
    wanted.then_some(GrammarSpec::JsonObject)
}

fn tools(chat: &ChatFields) -> Result<Tools, ApiError> {
    let list = chat.tools.iter().flatten().enumerate();
    let specs = list.map(|(index, tool)| ToolSpec::from_json(index, &json!(tool)));
    let choice = match &chat.tool_choice {
        None | Some(ToolChoiceField::Mode(ToolChoiceMode::Auto)) => ToolChoice::Auto,
        Some(ToolChoiceField::Mode(ToolChoiceMode::None)) => ToolChoice::None,
        Some(ToolChoiceField::Mode(ToolChoiceMode::Required)) => ToolChoice::Required,
        Some(ToolChoiceField::Named(named)) => ToolChoice::Named(named.function.name.clone()),
    };
    let single = chat.parallel_tool_calls == Some(false);
    Ok(Tools { specs: specs.collect::<Result<_, _>>()?, choice, single })
}

//! `/tokenize`, `/detokenize`, `/apply-template`: what the model reads, without running it.

use crate::error::ApiError;
use crate::json::{self, Body};
use crate::state::AppState;
use crate::wire::thinking::ThinkingFields;
use crate::wire::tokenize::{
    DetokenizeFields, PromptText, TemplateFields, TokenizeFields, TokenizerInfo, Tokens,
};
use axum::Json;
use axum::extract::State;
use hybra_chat::{ChatError, ChatInput, Prompt};
use std::sync::Arc;

/// `POST /tokenize`.
///
/// # Errors
/// A request that cannot be served, in OpenAI's form.
pub async fn tokenize(
    State(state): State<Arc<AppState>>,
    Body(mut body): Body,
) -> Result<Json<Tokens>, ApiError> {
    let fields: TokenizeFields = json::take(&mut body)?;
    let thinking = json::take(&mut body)?;
    json::finish(&body)?;
    state.check_model(fields.model.as_deref())?;
    let strings = fields.return_token_strs.unwrap_or(false);
    let tokens = tokens(&state, fields, thinking)?;
    let tokenizer = &state.model.tokenizer;
    let text = |&id: &u32| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
    Ok(Json(Tokens {
        count: tokens.len(),
        max_model_len: state.max_model_len,
        token_strs: strings.then(|| tokens.iter().map(text).collect()),
        tokens,
    }))
}

/// `GET /tokenizer_info`.
pub async fn tokenizer_info(State(state): State<Arc<AppState>>) -> Json<TokenizerInfo> {
    let tokenizer = &state.model.tokenizer;
    let text = |id| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
    Json(TokenizerInfo {
        bos_token: tokenizer.bos().map(text),
        eos_token: tokenizer.eos_ids().first().copied().map(text),
        pad_token: tokenizer.pad().map(text),
    })
}

/// `POST /detokenize`.
///
/// # Errors
/// A request that cannot be served, in OpenAI's form.
pub async fn detokenize(
    State(state): State<Arc<AppState>>,
    Body(mut body): Body,
) -> Result<Json<PromptText>, ApiError> {
    let fields: DetokenizeFields = json::take(&mut body)?;
    json::finish(&body)?;
    state.check_model(fields.model.as_deref())?;
    let vocab_size = state.model.tokenizer.vocab_size();
    if let Some(found) = fields.tokens.iter().find(|&&id| id as usize >= vocab_size) {
        let message = format!("tokens: expected ids below {vocab_size}, found {found}");
        return Err(ApiError::invalid("tokens", message));
    }
    Ok(Json(PromptText { prompt: state.model.tokenizer.decode(&fields.tokens, false) }))
}

/// `POST /apply-template`.
///
/// # Errors
/// A request that cannot be served, in OpenAI's form.
pub async fn apply_template(
    State(state): State<Arc<AppState>>,
    Body(mut body): Body,
) -> Result<Json<PromptText>, ApiError> {
    let fields: TemplateFields = json::take(&mut body)?;
    let thinking = json::take(&mut body)?;
    json::finish(&body)?;
    state.check_model(fields.model.as_deref())?;
    Ok(Json(PromptText { prompt: chat(&state, fields, thinking)?.text }))
}

fn tokens(
    state: &AppState,
    fields: TokenizeFields,
    thinking: ThinkingFields,
) -> Result<Vec<u32>, ApiError> {
    match (fields.prompt, fields.messages) {
        (Some(prompt), None) => {
            let special = fields.add_special_tokens.unwrap_or(true);
            let ids = state.model.tokenizer.encode(&prompt, special);
            Ok(ids.map_err(ChatError::from)?)
        }
        (None, Some(_)) if fields.add_special_tokens == Some(true) => {
            let why = "a chat template writes its own special tokens";
            Err(ApiError::unsupported("add_special_tokens", why))
        }
        (None, Some(messages)) => {
            let fields = TemplateFields {
                model: None,
                messages,
                tools: fields.tools,
                add_generation_prompt: fields.add_generation_prompt,
                continue_final_message: fields.continue_final_message,
            };
            Ok(chat(state, fields, thinking)?.ids)
        }
        _ => Err(ApiError::invalid("prompt", "prompt: expected either prompt or messages")),
    }
}

/// The conversation as the model reads it.
fn chat(
    state: &AppState,
    fields: TemplateFields,
    thinking: ThinkingFields,
) -> Result<Prompt, ApiError> {
    if fields.messages.is_empty() {
        return Err(ApiError::invalid("messages", "messages: expected at least one message"));
    }
    let thinking = thinking.resolve()?;
    let tools = fields.tools.unwrap_or_default();
    let input = ChatInput {
        messages: fields.messages.into_iter().map(|m| m.into_message()).collect(),
        tools: tools.iter().map(|tool| serde_json::json!(tool)).collect(),
        continue_final_message: fields.continue_final_message.unwrap_or(false),
        kwargs: thinking.kwargs,
    };
    if fields.add_generation_prompt.unwrap_or(true) {
        return Ok(state.model.chat_prompt(&input, &thinking.params)?);
    }
    let rendered = state.model.render(&input, thinking.params.enabled, false)?;
    let ids = state.model.tokenizer.encode_rendered(&rendered).map_err(ChatError::from)?;
    let mut prompt = state.model.token_prompt(ids)?;
    rendered.text().clone_into(&mut prompt.text);
    Ok(prompt)
}

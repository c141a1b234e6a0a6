//! Which path is whose, and the small endpoints.

use crate::anthropic::{count_tokens, messages};
use crate::chat_completions::chat_completions;
use crate::completions::completions;
use crate::error::ApiError;
use crate::json::{self, Body};
use crate::models::{model, models};
use crate::openapi::openapi;
use crate::responses::responses;
use crate::state::AppState;
use crate::tokenize::{apply_template, detokenize, tokenize, tokenizer_info};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::oneshot;
use utoipa::ToSchema;

/// The paths of the API, behind keys and limits.
pub fn router(state: Arc<AppState>) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*model}", get(model))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/chat/completions/control", post(control))
        .route("/v1/completions", post(completions))
        .route("/v1/responses", post(responses))
        .route("/v1/messages", post(messages))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/tokenize", post(tokenize))
        .route("/tokenizer_info", get(tokenizer_info))
        .route("/detokenize", post(detokenize))
        .route("/apply-template", post(apply_template))
        .route("/openapi.json", get(openapi))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        // The body was limited when it was read.
        .layer(DefaultBodyLimit::disable())
        .with_state(state)
}

async fn not_found(request: Request) -> Response {
    let path: String = request.uri().path().chars().take(128).collect();
    ApiError::NotFound { param: None, message: format!("no such path: {path}") }.into_response()
}

async fn wrong_method(request: Request) -> Response {
    ApiError::Method { method: request.method().to_string() }.into_response()
}

/// What to do to a running request.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ControlFields {
    /// That of the request's first event.
    pub id: String,
    /// What to do.
    pub action: ControlAction,
}

/// What may be done to a running request.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ControlAction {
    /// Answer now.
    ReasoningEnd,
}

async fn control(
    State(state): State<Arc<AppState>>,
    Body(mut body): Body,
) -> Result<Json<Value>, ApiError> {
    let ControlFields { id, action: ControlAction::ReasoningEnd } = json::take(&mut body)?;
    json::finish(&body)?;
    let ids = state.controls().get(&id).cloned();
    let Some(ids) = ids else {
        let id: String = id.chars().take(64).collect();
        let message = format!("id: no running request is called {id:?}");
        return Err(ApiError::NotFound { param: Some("id".to_owned()), message });
    };
    let mut ended = 0;
    for sequence in ids {
        let (done, answer) = oneshot::channel();
        state.engine.end_thinking(sequence, move |was| {
            // The receiver lives until the answer is there.
            let _ = done.send(was);
        })?;
        ended += usize::from(answer.await.unwrap_or(false));
    }
    if ended == 0 {
        let message = "the request is not thinking: it answers already".to_owned();
        return Err(ApiError::Conflict { message });
    }
    Ok(Json(json!({ "id": id, "ended": ended })))
}

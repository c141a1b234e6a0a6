//! `GET /v1/models` and `GET /v1/models/{model}`.

use crate::error::ApiError;
use crate::state::{AppState, unix_seconds};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// A model.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelObject {
    /// The name to ask for.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// `hybra`.
    pub owned_by: &'static str,
    /// Longest sequence, prompt and output.
    pub max_model_len: usize,
}

/// All models: one, under all of its names.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// The names.
    pub data: Vec<ModelObject>,
}

/// `GET /v1/models`.
pub async fn models(State(state): State<Arc<AppState>>) -> Json<ModelList> {
    let names = std::iter::once(&state.model.name).chain(&state.config.served_model_names);
    let data = names.map(|name| object(&state, name)).collect();
    Json(ModelList { object: "list", data })
}

/// `GET /v1/models/{model}`; a name may hold slashes.
///
/// # Errors
/// A model that is not served here.
pub async fn model(
    State(state): State<Arc<AppState>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelObject>, ApiError> {
    let Path(name) = name.map_err(|error| ApiError::invalid("model", error.body_text()))?;
    state.check_model(Some(&name))?;
    Ok(Json(object(&state, &name)))
}

fn object(state: &AppState, name: &str) -> ModelObject {
    ModelObject {
        id: name.to_owned(),
        object: "model",
        created: unix_seconds(),
        owned_by: "hybra",
        max_model_len: state.max_model_len,
    }
}

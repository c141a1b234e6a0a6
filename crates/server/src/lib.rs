//! OpenAI-compatible HTTP over an engine handle; the only async code and the only wire types.
//!
//! What always holds:
//! - A request from outside becomes an engine's request in [`validate`] alone; a field that is not
//!   supported is an error that names it, a field without effect is listed in `warnings`.
//! - Streamed and whole replies are made of the same pieces ([`choice`]).
//! - The engine's thread never waits for a client, and a client that is gone cancels its work.
//! - User text reaches no log by default.
#![forbid(unsafe_code)]

pub mod anthropic;
pub mod chat_completions;
pub mod choice;
pub mod choices;
pub mod completions;
pub mod config;
pub mod error;
pub mod generation;
pub mod json;
pub mod models;
pub mod openapi;
pub mod responses;
pub mod routes;
pub mod sse;
pub mod state;
pub mod tokenize;
pub mod validate;
pub mod wire;

pub use config::ServerConfig;
pub use error::ApiError;
pub use state::AppState;

use std::sync::Arc;
use tokio::net::TcpListener;

/// Serves until the process is told to stop.
///
/// # Errors
/// The socket fails.
pub async fn serve(listener: TcpListener, state: Arc<AppState>) -> std::io::Result<()> {
    axum::serve(listener, routes::router(state)).await
}

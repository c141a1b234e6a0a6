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
pub mod auth;
pub mod chat_completions;
pub mod choice;
pub mod choices;
pub mod completions;
pub mod config;
pub mod connection;
pub mod context;
pub mod error;
pub mod front;
pub mod generation;
pub mod json;
pub mod lifecycle;
pub mod metrics;
pub mod models;
pub mod observe;
pub mod openapi;
pub mod responses;
pub mod routes;
pub mod sse;
pub mod state;
pub mod tls;
pub mod tokenize;
pub mod traces;
pub mod ui;
pub mod validate;
pub mod warm;
pub mod wire;

pub use config::{ConfigError, ServerConfig, TlsFiles};
pub use error::ApiError;
pub use front::Front;
pub use state::AppState;

use lifecycle::Phase;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Time for last words after the grace period.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Pause between two looks at the engine's thread.
const ENGINE_CHECK: Duration = Duration::from_millis(200);

/// The engine's thread ended while the server needed it.
#[derive(Debug, thiserror::Error)]
#[error("the engine has stopped")]
pub struct EngineStopped;

/// Serves until `stop` is ready, then lets running requests end within the grace period.
///
/// # Errors
/// The engine stopped.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    front: Arc<Front>,
    stop: impl Future<Output = ()>,
) -> Result<(), EngineStopped> {
    let mut accepting = tokio::spawn(connection::accept(listener, tls, Arc::clone(&front)));
    let lifecycle = &front.lifecycle;
    let stopped = tokio::select! {
        () = stop => Ok(()),
        () = engine_stopped(&front) => Err(EngineStopped),
    };
    lifecycle.advance(Phase::Draining);
    let drained = tokio::select! {
        drained = tokio::time::timeout(front.config.grace_period, lifecycle.idle()) => drained.is_ok(),
        () = engine_stopped(&front) => false,
    };
    tracing::info!(drained, "shutting down");
    lifecycle.advance(Phase::Ended);
    // Cancelled requests are told so; whoever does not listen is left.
    let _ = tokio::time::timeout(LAST_WORDS, &mut accepting).await;
    accepting.abort();
    stopped
}

async fn engine_stopped(front: &Front) {
    while front.engine().is_none_or(hybra_engine::EngineHandle::is_alive) {
        tokio::time::sleep(ENGINE_CHECK).await;
    }
}

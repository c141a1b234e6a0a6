//! Everything between a connection and the endpoints: health, page, keys, limits, phases.
//!
//! Invariants: what is behind `guard` is reached with a key only; that is everything but
//! `/health` and the page's own files. A body is complete and within its limits before an endpoint
//! sees it.

use crate::auth::Keys;
use crate::config::{ConfigError, MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_HEADERS, ServerConfig};
use crate::error::ApiError;
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::{self, Metrics};
use crate::observe::{observe, tell_route};
use crate::state::AppState;
use crate::traces::Traces;
use crate::{routes, ui};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hybra_chat::ChatModel;
use hybra_engine::{EngineHandle, Stats};
use serde_json::json;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// A server, with or without a model yet.
pub struct Front {
    /// Settings.
    pub config: ServerConfig,
    /// Where it is.
    pub lifecycle: Arc<Lifecycle>,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// Where its spans go.
    pub traces: Option<Traces>,
    keys: Keys,
    origins: Vec<HeaderValue>,
    api: OnceLock<(Arc<AppState>, Router)>,
}

impl Front {
    /// A server that loads its model.
    ///
    /// # Errors
    /// Keys, origins or an endpoint that cannot be.
    pub fn new(config: ServerConfig) -> Result<Arc<Self>, ConfigError> {
        Ok(Arc::new(Self {
            keys: Keys::new(&config.api_keys)?,
            traces: config.otlp_traces_endpoint.as_deref().map(Traces::new).transpose()?,
            origins: config.cors_origins.iter().map(origin).collect::<Result<_, _>>()?,
            config,
            lifecycle: Arc::default(),
            metrics: Arc::default(),
            api: OnceLock::new(),
        }))
    }

    /// The model is loaded: requests are taken from now on.
    pub fn open(&self, model: ChatModel, engine: EngineHandle, max_model_len: usize) {
        let state = AppState::new(model, engine, self.config.clone(), max_model_len)
            .with(Arc::clone(&self.metrics), Arc::clone(&self.lifecycle));
        let state = Arc::new(state);
        let router = routes::router(Arc::clone(&state)).layer(from_fn(tell_route));
        if self.api.set((state, router)).is_ok() {
            self.lifecycle.advance(Phase::Ready);
        }
    }

    /// The engine, once it is loaded.
    #[must_use]
    pub fn engine(&self) -> Option<&EngineHandle> {
        self.api.get().map(|(state, _)| &state.engine)
    }

    /// All paths.
    pub fn router(self: &Arc<Self>) -> Router {
        let guarded = Router::new()
            .route("/metrics", get(show_metrics))
            .layer(from_fn(tell_route))
            .fallback(endpoint)
            .layer(from_fn_with_state(Arc::clone(self), guard))
            .with_state(Arc::clone(self));
        let open = Router::new()
            .route("/health", get(health))
            .route("/health/live", get(async || Json(json!({ "status": "ok" }))))
            .merge(ui::router())
            .layer(from_fn(tell_route))
            .with_state(Arc::clone(self));
        open.fallback_service(guarded)
            .layer(self.cors())
            .layer(CatchPanicLayer::custom(|_| {
                ApiError::Internal { message: "internal error".to_owned() }.into_response()
            }))
            .layer(from_fn_with_state(Arc::clone(self), observe))
    }

    /// Credentials of a browser are never allowed: the page sends its key itself.
    fn cors(&self) -> CorsLayer {
        if self.origins.is_empty() {
            return CorsLayer::new();
        }
        let any = self.origins.iter().any(|origin| origin == "*");
        let origins = if any { AllowOrigin::any() } else { self.origins.clone().into() };
        let own = ["x-api-key", "x-request-id", "x-request-timeout", "x-conversation-id"];
        let headers = [header::AUTHORIZATION, header::CONTENT_TYPE];
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            .allow_headers(
                headers.into_iter().chain(own.map(HeaderName::from_static)).collect::<Vec<_>>(),
            )
            .expose_headers([HeaderName::from_static("x-request-id"), header::RETRY_AFTER])
            .max_age(Duration::from_secs(600))
    }
}

fn origin(text: &String) -> Result<HeaderValue, ConfigError> {
    let web = text.starts_with("https://") || text.starts_with("http://");
    let path = text.split("://").nth(1).is_none_or(|host| host.is_empty() || host.contains('/'));
    let sound = text == "*" || web && !path;
    let value = HeaderValue::from_str(text).ok().filter(|_| sound);
    value.ok_or_else(|| ConfigError::Origin { found: text.clone() })
}

async fn health(State(front): State<Arc<Front>>) -> Response {
    let phase = front.lifecycle.phase();
    let body = Json(json!({ "status": phase.name() }));
    match phase {
        Phase::Ready => body.into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, body).into_response(),
    }
}

async fn show_metrics(State(front): State<Arc<Front>>) -> Response {
    let stats = front.engine().map_or_else(Stats::default, EngineHandle::stats);
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], front.metrics.text(&stats)).into_response()
}

/// Hands over to the endpoints, if they are there.
async fn endpoint(State(front): State<Arc<Front>>, request: Request) -> Response {
    let unavailable = |message: &str| ApiError::Unavailable { message: message.to_owned() };
    match (front.lifecycle.phase(), front.api.get()) {
        (Phase::Ready, Some((_, router))) => match router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
        (Phase::Loading | Phase::Ready, _) => {
            unavailable("the model is loading; try again later").into_response()
        }
        (Phase::Draining | Phase::Ended, _) => {
            unavailable("the server is shutting down").into_response()
        }
    }
}

/// Middleware: keys and limits. An error has the form of the API that was called.
async fn guard(State(front): State<Arc<Front>>, request: Request, next: Next) -> Response {
    let anthropic = request.uri().path().starts_with("/v1/messages");
    match check(&front, request).await {
        Ok(request) => next.run(request).await,
        Err(error) if anthropic => error.into_anthropic(),
        Err(error) => error.into_response(),
    }
}

/// The request with its whole body.
async fn check(front: &Front, request: Request) -> Result<Request, ApiError> {
    let headers = request.headers();
    let bytes: usize = headers.iter().map(|(k, v)| k.as_str().len() + v.len()).sum();
    if headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        return Err(ApiError::HeadersTooLarge);
    }
    front.keys.check(request.uri(), headers)?;
    if let Some(found) = headers.get(header::CONTENT_ENCODING).filter(|v| *v != "identity") {
        let found = String::from_utf8_lossy(found.as_bytes()).chars().take(64).collect();
        return Err(ApiError::ContentEncoding { found });
    }
    let (head, body) = request.into_parts();
    let body = whole_body(body, front.config.read_timeout).await?;
    Ok(Request::from_parts(head, body))
}

async fn whole_body(body: Body, timeout: Duration) -> Result<Body, ApiError> {
    use hyper::body::Body as _;
    let too_large = ApiError::TooLarge { limit: MAX_BODY_BYTES };
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(too_large);
    }
    let whole = Limited::new(body, MAX_BODY_BYTES).collect();
    match tokio::time::timeout(timeout, whole).await {
        Err(_) => Err(ApiError::RequestTimeout { seconds: timeout.as_secs() }),
        Ok(Ok(whole)) => Ok(Body::from(whole.to_bytes())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large),
        Ok(Err(error)) => Err(ApiError::Invalid { param: None, message: format!("body: {error}") }),
    }
}

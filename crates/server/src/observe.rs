//! One line in the log, one count and, where traces are kept, one span for each request, from its
//! head to the end of its reply.
//!
//! Text of users is never part of the line: it names the route, not the path.

use crate::context::{Context, Deadline, Tokens};
use crate::error::ApiError;
use crate::front::Front;
use crate::lifecycle::{Phase, Running};
use crate::metrics::Metrics;
use crate::state::new_id;
use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

/// Longest time that a request may ask for.
const MAX_TIMEOUT_S: u64 = 24 * 60 * 60;

/// Status of a request whose client went away, as nginx writes it.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Middleware behind the routes: tells which one it was, for the request's line.
pub async fn tell_route(request: Request, next: Next) -> Response {
    if let Some(path) = request.extensions().get::<MatchedPath>() {
        let _ = Context::current().route.set(path.as_str().to_owned());
    }
    next.run(request).await
}

/// Middleware before everything: the request's context, its line and its count.
pub async fn observe(State(front): State<Arc<Front>>, request: Request, next: Next) -> Response {
    let (id, method) = (request_id(request.headers()), request.method().to_string());
    let traces = front.traces.as_ref();
    let span = traces.map(|traces| traces.request(&method, request.headers(), &id));
    let context = Context { id, span, ..Context::default() };
    let mut account = Account {
        context: context.clone(),
        method,
        status: CLIENT_CLOSED_REQUEST,
        whole: false,
        started: Instant::now(),
        metrics: Arc::clone(&front.metrics),
        _running: front.lifecycle.begin(),
    };
    let mut response = match deadline(&front, request.headers()) {
        Ok(deadline) => Context { deadline, ..context.clone() }.scope(next.run(request)).await,
        Err(error) => error.into_response(),
    };
    account.status = response.status().as_u16();
    // A body without bytes is never asked for any.
    account.whole = account.method == "HEAD" || response.body().is_end_stream();
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&context.id) {
        headers.insert("x-request-id", id);
    }
    if front.lifecycle.phase() >= Phase::Draining {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| Body::new(Observed { body, account }))
}

/// The client's id if it is a plain word, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let plain = |id: &&str| {
        let word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        (1..=64).contains(&id.len()) && id.chars().all(word)
    };
    let sent = headers.get("x-request-id").and_then(|id| id.to_str().ok()).filter(plain);
    sent.map_or_else(|| new_id("req_"), ToOwned::to_owned)
}

/// That of the request, at most the server's.
fn deadline(front: &Front, headers: &HeaderMap) -> Result<Option<Deadline>, ApiError> {
    let own = front.config.timeout;
    let Some(sent) = headers.get("x-request-timeout") else { return Ok(own.map(Deadline::after)) };
    let seconds = sent.to_str().ok().and_then(|text| text.parse().ok());
    let Some(seconds) = seconds.filter(|s| (1..=MAX_TIMEOUT_S).contains(s)) else {
        let message = format!("x-request-timeout: expected 1 to {MAX_TIMEOUT_S} whole seconds");
        return Err(ApiError::invalid("x-request-timeout", message));
    };
    let asked = Duration::from_secs(seconds);
    Ok(Some(Deadline::after(own.map_or(asked, |own| own.min(asked)))))
}

/// What is known about a request; dropped when it is over.
struct Account {
    context: Context,
    method: String,
    status: u16,
    /// The client got all of the reply.
    whole: bool,
    started: Instant,
    metrics: Arc<Metrics>,
    _running: Running,
}

impl Drop for Account {
    fn drop(&mut self) {
        let route = self.context.route.get().map_or("unknown", String::as_str);
        self.metrics.request(route, self.status);
        if let Some(span) = &self.context.span {
            span.end(&self.method, route, self.status, self.whole);
        }
        let Tokens { prompt, cached, completion } = &*self.context.tokens;
        tracing::info!(
            id = self.context.id,
            method = self.method,
            route,
            status = self.status,
            whole = self.whole,
            ms = self.started.elapsed().as_millis() as u64,
            prompt_tokens = prompt.load(Ordering::Relaxed),
            cached_tokens = cached.load(Ordering::Relaxed),
            completion_tokens = completion.load(Ordering::Relaxed),
            "request"
        );
    }
}

/// A reply that keeps its request's account until it is sent or dropped.
struct Observed {
    body: Body,
    account: Account,
}

impl HttpBody for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.account.whole = frame.is_none() || self.body.is_end_stream();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

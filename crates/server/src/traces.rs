//! Spans of requests for an OpenTelemetry collector: OTLP over HTTP, protobuf. Off without an endpoint.
//!
//! What always holds: a request has one span, a child of the caller's if it sent `traceparent` (W3C
//! Trace Context), with one child for each choice; no text of users is in them. Spans wait in a queue
//! of their own thread: a collector that is slow or away costs spans, never a request's time.
//! Names of attributes are those of OpenTelemetry's conventions for HTTP and generative AI, of vLLM
//! (`gen_ai.latency.*`), and `hybra.*` for the thinking budget.

use crate::config::ConfigError;
use crate::metrics::ended_by_name;
use axum::http::HeaderMap;
use hybra_engine::{Event, FinishEvent, FinishReason};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{
    Span as _, SpanContext, SpanKind, Status, TraceContextExt, TraceState, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, Key, KeyValue, StringValue, Value};
use opentelemetry_http::{Bytes, HeaderExtractor, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};
use std::time::{Duration, Instant, SystemTime};

/// Longest time of one try to deliver.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time for the last spans to leave at the end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Where spans go.
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// The span of one request; copies are of the same span, which ends with [`RequestSpan::end`].
#[derive(Clone)]
pub struct RequestSpan {
    tracer: SdkTracer,
    context: Context,
}

/// The span of one choice, from submission to its last token; dropped before, it ends there as an
/// error.
pub struct ChoiceSpan {
    span: Span,
    submitted: Instant,
    begun: bool,
    has_token: bool,
    ended: bool,
}

impl Traces {
    /// Spans go to `endpoint`, the whole URL such as `http://localhost:4318/v1/traces`. Standard
    /// variables hold as well: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`,
    /// `OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_BSP_*`.
    ///
    /// # Errors
    /// It is no URL of http or https.
    pub fn new(endpoint: &str) -> Result<Self, ConfigError> {
        let wrong =
            |reason: String| ConfigError::TracesEndpoint { found: endpoint.to_owned(), reason };
        if !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            return Err(wrong("it begins with neither http:// nor https://".to_owned()));
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client::default())
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|error| wrong(error.to_string()))?;
        let provider = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_batch_exporter(exporter)
            .build();
        let tracer = provider.tracer("hybra");
        Ok(Self { provider, tracer })
    }

    /// The span of a request that begins now.
    #[must_use]
    pub fn request(&self, method: &str, headers: &HeaderMap, id: &str) -> RequestSpan {
        let (caller, method) = (caller(headers), known(method));
        let builder =
            self.tracer.span_builder(method).with_kind(SpanKind::Server).with_attributes([
                KeyValue::new("http.request.method", method),
                KeyValue::new("gen_ai.request.id", id.to_owned()),
            ]);
        let span = self.tracer.build_with_context(builder, &caller);
        RequestSpan { tracer: self.tracer.clone(), context: caller.with_span(span) }
    }

    /// Sends what waits; nothing is taken any more. Blocks, two seconds at most.
    pub fn shutdown(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT) {
            tracing::warn!(%error, "the last traces were not delivered");
        }
    }
}

impl RequestSpan {
    /// The request is over; `whole`: the client got all of the reply.
    pub fn end(&self, method: &str, route: &str, status: u16, whole: bool) {
        let method = known(method);
        let span = self.context.span();
        span.update_name(format!("{method} {route}"));
        span.set_attribute(KeyValue::new("http.route", route.to_owned()));
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 500 || !whole {
            let description = if whole { "" } else { "the client did not get the whole reply" };
            span.set_status(Status::error(description));
        }
        span.end();
    }

    /// A choice of `model` that was submitted then.
    #[must_use]
    pub fn choice(
        &self,
        model: &str,
        index: usize,
        (submitted, started): (Instant, SystemTime),
    ) -> ChoiceSpan {
        let builder =
            self.tracer.span_builder("generate").with_start_time(started).with_attributes([
                KeyValue::new("gen_ai.response.model", model.to_owned()),
                KeyValue::new("hybra.choice", index as i64),
            ]);
        let span = self.tracer.build_with_context(builder, &self.context);
        ChoiceSpan { span, submitted, begun: false, has_token: false, ended: false }
    }
}

impl ChoiceSpan {
    /// Something happened to the choice.
    pub fn observe(&mut self, event: &Event) {
        if !std::mem::replace(&mut self.begun, true) {
            self.latency("gen_ai.latency.time_in_queue");
        }
        match event {
            Event::Prefill { .. } | Event::PromptLogprobs(_) => {}
            Event::Token(_) => {
                if !std::mem::replace(&mut self.has_token, true) {
                    self.latency("gen_ai.latency.time_to_first_token");
                }
            }
            Event::Finish(end) => self.finish(end),
        }
    }

    fn finish(&mut self, end: &FinishEvent) {
        self.latency("gen_ai.latency.e2e");
        let counts = [
            ("gen_ai.usage.input_tokens", end.prompt_tokens as i64),
            ("gen_ai.usage.cache_read.input_tokens", end.cached_tokens as i64),
            ("gen_ai.usage.output_tokens", end.completion_tokens as i64),
            ("hybra.reasoning_tokens", i64::from(end.reasoning_tokens)),
        ];
        self.span.set_attributes(counts.map(|(name, count)| KeyValue::new(name, count)));
        let reason = format!("{:?}", end.reason).to_lowercase();
        let reasons = Value::Array(vec![StringValue::from(reason.clone())].into());
        self.span.set_attribute(KeyValue::new("gen_ai.response.finish_reasons", reasons));
        if let Some(ended_by) = end.budget.ended_by {
            let name = ended_by_name(ended_by);
            self.span.set_attribute(KeyValue::new("hybra.thinking_ended_by", name));
        }
        if matches!(end.reason, FinishReason::Failed | FinishReason::Cancelled) {
            self.span.set_status(Status::error(reason));
        }
        self.ended = true;
        self.span.end();
    }

    fn latency(&mut self, name: &'static str) {
        let seconds = self.submitted.elapsed().as_secs_f64();
        self.span.set_attribute(KeyValue::new(name, seconds));
    }
}

impl Drop for ChoiceSpan {
    fn drop(&mut self) {
        if !self.ended {
            self.span.set_status(Status::error("given up before its end"));
        }
    }
}

/// The span that the request is a part of, if it sends one; `tracestate`, which may hold anything, is
/// not passed on.
fn caller(headers: &HeaderMap) -> Context {
    let none = Context::new();
    let sent = TraceContextPropagator::new().extract_with_context(&none, &HeaderExtractor(headers));
    let span = sent.span().span_context().clone();
    if !span.is_valid() {
        return none;
    }
    none.with_remote_span_context(SpanContext::new(
        span.trace_id(),
        span.span_id(),
        span.trace_flags(),
        true,
        TraceState::default(),
    ))
}

/// A method of HTTP; what else a client may send is `_OTHER`.
fn known(method: &str) -> &'static str {
    let methods = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "CONNECT", "TRACE"];
    methods.into_iter().find(|known| *known == method).unwrap_or("_OTHER")
}

/// Who sends: `hybra`, unless the standard variables name another.
fn resource() -> Resource {
    let named = Resource::builder().build();
    let key = Key::from_static_str("service.name");
    let unnamed = named.get(&key).is_none_or(|name| name.as_str().starts_with("unknown_service"));
    let builder = Resource::builder()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if unnamed { builder.with_service_name("hybra").build() } else { builder.build() }
}

/// The exporter's way out, on its own thread, so it may block.
#[derive(Debug)]
struct Client(ureq::Agent);

impl Default for Client {
    fn default() -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(EXPORT_TIMEOUT))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false);
        Self(config.build().into())
    }
}

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let response = self.0.run(request.map(|body| body.to_vec()));
        // The exporter's own warning does not say why.
        let response =
            response.inspect_err(|error| tracing::warn!(%error, "a collector was not reached"))?;
        let (head, mut body) = response.into_parts();
        Ok(Response::from_parts(head, body.read_to_vec()?.into()))
    }
}

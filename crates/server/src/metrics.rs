//! What the server counts, as Prometheus text. Names are those of vLLM, with the prefix `hybra_`.
//!
//! Labels take values from fixed sets only: routes, statuses, and names of this program.

use hybra_engine::{EndedBy, FinishEvent, Stats};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Name and value.
type Labels = Vec<(&'static str, String)>;

/// Longest time after which a client is told to come again.
const MAX_RETRY_AFTER_S: f64 = 60.0;

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    running: Gauge,
    waiting: Gauge,
    requests: Family<Labels, Counter>,
    failures: Family<Labels, Counter>,
    ended_by: Family<Labels, Counter>,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generation_tokens: Counter,
    reasoning_tokens: Counter,
    /// From submission to the first step that read part of the prompt.
    pub queue_time: Histogram,
    /// From submission to the first token.
    pub time_to_first_token: Histogram,
    /// Between two tokens of a choice.
    pub inter_token_latency: Histogram,
    e2e_latency: Histogram,
    /// Moving mean of the end-to-end latency in seconds, as bits.
    mean_latency: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 20));
        let mut metrics = Self {
            registry: Registry::with_prefix("hybra"),
            running: Gauge::default(),
            waiting: Gauge::default(),
            requests: Family::default(),
            failures: Family::default(),
            ended_by: Family::default(),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            reasoning_tokens: Counter::default(),
            queue_time: seconds(),
            time_to_first_token: seconds(),
            inter_token_latency: seconds(),
            e2e_latency: seconds(),
            mean_latency: AtomicU64::new(0),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("num_requests_running", "Sequences in the batch", self.running.clone());
        r.register("num_requests_waiting", "Sequences in the queue", self.waiting.clone());
        r.register("http_requests", "HTTP requests by route and status", self.requests.clone());
        let help = "Generations without a whole reply, by reason";
        r.register("request_failures", help, self.failures.clone());
        let help = "Choices by what ended their thinking";
        r.register("thinking_ended", help, self.ended_by.clone());
        r.register("prompt_tokens", "Prompt tokens", self.prompt_tokens.clone());
        let help = "Prompt tokens looked up in the prefix cache";
        r.register("prefix_cache_queries", help, self.prompt_tokens.clone());
        let help = "Prompt tokens found in the prefix cache";
        r.register("prefix_cache_hits", help, self.cached_tokens.clone());
        r.register("generation_tokens", "Generated tokens", self.generation_tokens.clone());
        r.register("reasoning_tokens", "Tokens of thinking", self.reasoning_tokens.clone());
        for (name, help, histogram) in [
            ("request_queue_time", "Until the first step with the request", &self.queue_time),
            ("time_to_first_token", "Until the first token", &self.time_to_first_token),
            ("inter_token_latency", "Between tokens of a choice", &self.inter_token_latency),
            ("e2e_request_latency", "Until the last choice ended", &self.e2e_latency),
        ] {
            r.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
    }

    /// An HTTP request ended.
    pub fn request(&self, route: &str, status: u16) {
        let labels = vec![("route", route.to_owned()), ("status", status.to_string())];
        self.requests.get_or_create(&labels).inc();
    }

    /// A generation has no whole reply.
    pub fn failure(&self, reason: &str) {
        self.failures.get_or_create(&vec![("reason", reason.to_owned())]).inc();
    }

    /// A choice ended. The choices of a request share its prompt, which counts once.
    pub fn finished(&self, end: &FinishEvent, first_of_request: bool) {
        if first_of_request {
            self.prompt_tokens.inc_by(end.prompt_tokens as u64);
            self.cached_tokens.inc_by(end.cached_tokens as u64);
        }
        self.generation_tokens.inc_by(end.completion_tokens as u64);
        self.reasoning_tokens.inc_by(u64::from(end.reasoning_tokens));
        if let Some(ended_by) = end.budget.ended_by {
            let labels = vec![("ended_by", ended_by_name(ended_by))];
            self.ended_by.get_or_create(&labels).inc();
        }
    }

    /// All choices of a request ended.
    pub fn request_latency(&self, took: Duration) {
        let took = took.as_secs_f64();
        self.e2e_latency.observe(took);
        let old = f64::from_bits(self.mean_latency.load(Ordering::Relaxed));
        let mean = if old == 0.0 { took } else { old + (took - old) / 8.0 };
        self.mean_latency.store(mean.to_bits(), Ordering::Relaxed);
    }

    /// Seconds until a place in the queue is likely: the batch serves `running` requests in the
    /// time that one takes.
    #[must_use]
    pub fn retry_after(&self, waiting: usize, running: usize) -> u64 {
        let mean = f64::from_bits(self.mean_latency.load(Ordering::Relaxed));
        let seconds = mean * waiting as f64 / running.max(1) as f64;
        seconds.clamp(1.0, MAX_RETRY_AFTER_S).ceil() as u64
    }

    /// The text, with what the engine does now.
    #[must_use]
    pub fn text(&self, stats: &Stats) -> String {
        self.running.set(stats.running as i64);
        self.waiting.set(stats.waiting as i64);
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes everything");
        text
    }
}

/// As on the wire.
fn ended_by_name(ended_by: EndedBy) -> String {
    match serde_json::to_value(ended_by) {
        Ok(serde_json::Value::String(name)) => name,
        other => unreachable!("a unit variant is a string, found {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_prometheus() {
        let metrics = Metrics::default();
        metrics.request("/v1/models", 200);
        metrics.failure("deadline");
        metrics.queue_time.observe(0.5);
        let text = metrics.text(&Stats { running: 2, waiting: 3, ..Stats::default() });
        for line in [
            "hybra_num_requests_running 2",
            "hybra_num_requests_waiting 3",
            "hybra_http_requests_total{route=\"/v1/models\",status=\"200\"} 1",
            "hybra_request_failures_total{reason=\"deadline\"} 1",
            "hybra_request_queue_time_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_full_queue_says_when_to_come_again() {
        let metrics = Metrics::default();
        assert_eq!(metrics.retry_after(10, 4), 1);
        metrics.request_latency(Duration::from_secs(4));
        assert_eq!(metrics.retry_after(10, 4), 10);
        assert_eq!(metrics.retry_after(1000, 0), 60);
    }
}

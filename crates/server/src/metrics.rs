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
    requests: Family<Labels, Counter>,
    failures: Family<Labels, Counter>,
    ended_by: Family<Labels, Counter>,
    engine: EngineMetrics,
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
            requests: Family::default(),
            failures: Family::default(),
            ended_by: Family::default(),
            engine: EngineMetrics::default(),
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
        self.engine.register(r);
        r.register("http_requests", "HTTP requests by route and status", self.requests.clone());
        let help = "Generations without a whole reply, by reason";
        r.register("request_failures", help, self.failures.clone());
        let help = "Choices by what ended their thinking";
        r.register("thinking_ended", help, self.ended_by.clone());
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

    /// A choice ended.
    pub fn finished(&self, end: &FinishEvent) {
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
        self.engine.set(stats);
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes everything");
        text
    }
}

/// What the engine tells about itself.
#[derive(Default)]
struct EngineMetrics {
    gauges: [Gauge; 6],
    totals: [Counter; 8],
}

impl EngineMetrics {
    fn register(&self, registry: &mut Registry) {
        let gauges = [
            ("num_requests_running", "Sequences in the batch"),
            ("num_requests_waiting", "Sequences in the queue"),
            ("num_prompts_to_warm", "Prompts to be read in idle time"),
            ("state_memory_bytes", "States of sequences in memory"),
            ("prefix_cache_bytes", "Prefix cache in memory"),
            ("prefix_cache_entries", "States in the prefix cache"),
        ];
        for ((name, help), gauge) in gauges.into_iter().zip(&self.gauges) {
            registry.register(name, help, gauge.clone());
        }
        let totals = [
            ("prompt_tokens", "Prompt tokens of requests that began"),
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache"),
            ("prefix_cache_hits", "Prompt tokens that a kept state had read"),
            ("generation_tokens", "Generated tokens"),
            ("engine_steps", "Steps; generated tokens by steps are the mean batch size"),
            ("num_preemptions", "How often a sequence lost its place"),
            ("logit_rows_fetched", "Rows of logits that a GPU gave whole, not their largest only"),
            ("cuda_graph_steps", "Steps that a GPU ran as a CUDA graph"),
        ];
        for ((name, help), total) in totals.into_iter().zip(&self.totals) {
            registry.register(name, help, total.clone());
        }
    }

    fn set(&self, stats: &Stats) {
        let sizes = [stats.running, stats.waiting, stats.warm_pending];
        let bytes = [stats.state_bytes, stats.cache_bytes, stats.cache_entries];
        for (gauge, size) in self.gauges.iter().zip(sizes.into_iter().chain(bytes)) {
            gauge.set(size as i64);
        }
        let counters = &stats.counters;
        let totals = [
            counters.prompt_tokens,
            counters.prompt_tokens,
            counters.cache_hit_tokens,
            counters.generated_tokens,
            counters.steps,
            counters.preemptions,
            counters.logit_rows_fetched,
            counters.cuda_graph_steps,
        ];
        for (total, count) in self.totals.iter().zip(totals) {
            total.inner().store(count, Ordering::Relaxed);
        }
    }
}

/// As on the wire.
pub(crate) fn ended_by_name(ended_by: EndedBy) -> String {
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

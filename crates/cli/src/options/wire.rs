//! The options as fields of a request to another server; only what was given is sent.

use super::{SamplingArgs, ThinkingArgs};
use hybra_engine::{Effort, ThinkingParams};
use serde_json::{Map, Value, json};

impl ThinkingArgs {
    /// Writes Hybra's fields for `params`, which may have changed since the command line.
    pub(crate) fn write(&self, params: &ThinkingParams, body: &mut Value) {
        let grace = self.thinking_budget_grace.as_ref();
        let grace = grace.map(|text| text.parse::<u32>().map_or(json!(text), |n| json!(n)));
        let fields = [
            ("thinking_budget", params.budget.map(|n| json!(n))),
            ("enable_thinking", params.enabled.map(|on| json!(on))),
            ("reasoning_effort", params.effort.map(|effort| json!(name(effort)))),
            ("thinking_budget_grace", grace),
            ("thinking_budget_message", self.thinking_budget_message.as_ref().map(|m| json!(m))),
            ("min_thinking_tokens", given(params.min_thinking_tokens, 0)),
            ("answer_token_reserve", params.answer_token_reserve.map(|n| json!(n))),
        ];
        set(body, fields);
    }
}

impl SamplingArgs {
    /// Writes OpenAI's fields and those that its servers have in common beside them.
    pub(crate) fn write(&self, body: &mut Value) {
        let bias: Map<String, Value> =
            self.logit_bias.iter().map(|(id, bias)| (id.to_string(), json!(bias))).collect();
        let fields = [
            ("max_tokens", self.max_tokens.map(|n| json!(n))),
            ("temperature", self.temperature.map(|t| json!(t))),
            ("top_k", self.top_k.map(|k| json!(k))),
            ("top_p", self.top_p.map(|p| json!(p))),
            ("min_p", given(self.min_p, 0.0)),
            ("repetition_penalty", given(self.repetition_penalty, 1.0)),
            ("frequency_penalty", given(self.frequency_penalty, 0.0)),
            ("presence_penalty", given(self.presence_penalty, 0.0)),
            ("seed", self.seed.map(|seed| json!(seed))),
            ("stop", (!self.stop.is_empty()).then(|| json!(self.stop))),
            ("stop_token_ids", (!self.stop_token_id.is_empty()).then(|| json!(self.stop_token_id))),
            ("logit_bias", (!bias.is_empty()).then(|| Value::Object(bias))),
            ("ignore_eos", given(self.ignore_eos, false)),
        ];
        set(body, fields);
    }
}

/// A value that differs from its default.
fn given<T: PartialEq + serde::Serialize>(value: T, default: T) -> Option<Value> {
    (value != default).then(|| json!(value))
}

fn set<const N: usize>(body: &mut Value, fields: [(&str, Option<Value>); N]) {
    for (name, value) in fields {
        if let Some(value) = value {
            body[name] = value;
        }
    }
}

fn name(effort: Effort) -> &'static str {
    match effort {
        Effort::None => "none",
        Effort::Minimal => "minimal",
        Effort::Low => "low",
        Effort::Medium => "medium",
        Effort::High => "high",
        Effort::Xhigh => "xhigh",
        Effort::Max => "max",
    }
}

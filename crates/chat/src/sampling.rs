//! Sampling settings that a checkpoint recommends, and what holds where it says nothing.
//!
//! Precedence: the request, then the model's `generation_config.json`, then the defaults of the
//! family (thinking on: temperature 0.6, top-p 0.95; off: greedy).

use hybra_engine::SamplingParams;

/// Settings of `generation_config.json`, or of GGUF metadata.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Whether to sample at all.
    pub do_sample: Option<bool>,
    /// Softmax temperature.
    pub temperature: Option<f32>,
    /// Most probable tokens kept.
    pub top_k: Option<i64>,
    /// Probability mass kept.
    pub top_p: Option<f32>,
}

impl GenerationDefaults {
    /// The parameters of a request that names none; `thinking`: it starts inside a section.
    #[must_use]
    pub fn params(&self, thinking: bool) -> SamplingParams {
        let greedy = !self.do_sample.unwrap_or(thinking);
        SamplingParams {
            temperature: if greedy { 0.0 } else { self.temperature.unwrap_or(0.6) },
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p.unwrap_or(0.95),
            ..SamplingParams::default()
        }
    }
}

//! The request fields about how tokens are chosen and when to stop; all endpoints take them.
//!
//! Precedence: the request, then the model's `generation_config.json`, then the family's defaults.

use crate::error::ApiError;
use hybra_chat::GenerationDefaults;
use hybra_engine::SamplingParams;
use serde::Deserialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Most choices of a request.
pub const MAX_N: u32 = 128;

/// Sampling, stopping, and the request's place among others.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SamplingFields {
    /// 0 is greedy.
    #[schema(minimum = 0, maximum = 100)]
    pub temperature: Option<f32>,
    /// Probability mass kept.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Most probable tokens kept; 0 and −1 keep all.
    #[schema(minimum = -1)]
    pub top_k: Option<i64>,
    /// Least probability kept, relative to the most probable token.
    #[schema(minimum = 0, maximum = 1)]
    pub min_p: Option<f32>,
    /// Divides logits of tokens seen before.
    #[schema(exclusive_minimum = 0, maximum = 100)]
    pub repetition_penalty: Option<f32>,
    /// Subtracted for each earlier use in the output.
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f32>,
    /// Subtracted once a token was used in the output.
    #[schema(minimum = -2, maximum = 2)]
    pub presence_penalty: Option<f32>,
    /// Same seed, same output, alone or batched.
    pub seed: Option<u64>,
    /// Generated tokens before the text may end.
    pub min_tokens: Option<u32>,
    /// Texts that end the answer and are not part of it.
    pub stop: Option<StopField>,
    /// Tokens that end the text.
    #[schema(max_items = 128)]
    pub stop_token_ids: Option<Vec<u32>>,
    /// Added to the logits of tokens, by id.
    #[schema(value_type = Option<Object>)]
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// Go on after end-of-sequence tokens.
    pub ignore_eos: Option<bool>,
    /// Choices.
    #[schema(minimum = 1, maximum = 128)]
    pub n: Option<u32>,
    /// Lower numbers go first.
    #[schema(minimum = -1_000_000, maximum = 1_000_000)]
    pub priority: Option<i32>,
    /// Cached state is shared only with requests of the same salt.
    #[schema(max_length = 256)]
    pub cache_salt: Option<String>,
}

/// One stop string or several.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum StopField {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl SamplingFields {
    /// Choices asked for.
    ///
    /// # Errors
    /// None, or more than [`MAX_N`].
    pub fn num_choices(&self) -> Result<u32, ApiError> {
        match self.n.unwrap_or(1) {
            n @ 1..=MAX_N => Ok(n),
            n => Err(ApiError::invalid("n", format!("n: expected 1 to {MAX_N}, found {n}"))),
        }
    }

    /// The engine's form. `thinking`: the prompt ends inside a section.
    ///
    /// # Errors
    /// A bias of something that is no token id. Ranges are the engine's to check.
    pub fn params(
        &self,
        defaults: &GenerationDefaults,
        thinking: bool,
        max_tokens: Option<u32>,
        logprobs: Option<u32>,
    ) -> Result<SamplingParams, ApiError> {
        let own = defaults.params(thinking);
        let stop = match self.stop.clone() {
            None => Vec::new(),
            Some(StopField::One(stop)) => vec![stop.into_bytes()],
            Some(StopField::Many(stops)) => stops.into_iter().map(String::into_bytes).collect(),
        };
        Ok(SamplingParams {
            temperature: self.temperature.unwrap_or(own.temperature),
            top_k: self.top_k.unwrap_or(own.top_k),
            top_p: self.top_p.unwrap_or(own.top_p),
            min_p: self.min_p.unwrap_or(own.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(own.repetition_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(own.frequency_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(own.presence_penalty),
            seed: self.seed,
            max_tokens,
            min_tokens: self.min_tokens.unwrap_or(0),
            logprobs,
            stop_token_ids: self.stop_token_ids.clone().unwrap_or_default(),
            stop,
            logit_bias: self.logit_bias()?,
            ignore_eos: self.ignore_eos.unwrap_or(false),
        })
    }

    fn logit_bias(&self) -> Result<Vec<(u32, f32)>, ApiError> {
        let entry = |(id, &bias): (&String, &f32)| match id.parse() {
            Ok(id) => Ok((id, bias)),
            Err(_) => {
                let id: String = id.chars().take(64).collect();
                let message = format!("logit_bias: expected token ids as keys, found {id:?}");
                Err(ApiError::invalid("logit_bias", message))
            }
        };
        self.logit_bias.iter().flatten().map(entry).collect()
    }
}

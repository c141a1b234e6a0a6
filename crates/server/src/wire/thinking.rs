//! The request fields about thinking, in every spelling that clients use; all endpoints take them.
//!
//! All spellings of one thing mean the same. Two that are given with different values are an error
//! that names both; what is given is never ignored.

use crate::error::ApiError;
use crate::json::given;
use hybra_engine::{Effort, Grace, ThinkingParams};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::fmt::Display;
use utoipa::ToSchema;

/// A budget: tokens, −1 or null for no limit of its own, 0 for none at all.
type Budget = Option<Option<i64>>;

/// How much to think, in this server's words and in those of its peers.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ThinkingFields {
    /// Tokens of thinking after which it is cut gracefully: 0 is off, −1 or null no own limit.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>, minimum = -1, maximum = 4_294_967_295_i64)]
    pub thinking_budget: Budget,
    /// vLLM's spelling of `thinking_budget`.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>, minimum = -1, maximum = 4_294_967_295_i64)]
    pub thinking_token_budget: Budget,
    /// llama-server's spelling.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>, minimum = -1, maximum = 4_294_967_295_i64)]
    pub thinking_budget_tokens: Budget,
    /// Nemotron 3's spelling.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>, minimum = -1, maximum = 4_294_967_295_i64)]
    pub reasoning_budget: Budget,
    /// llama-server's spelling on its raw endpoint.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>, minimum = -1, maximum = 4_294_967_295_i64)]
    pub reasoning_budget_tokens: Budget,
    /// The published spelling of Nemotron Nano 2.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>, minimum = -1, maximum = 4_294_967_295_i64)]
    pub max_thinking_tokens: Budget,
    /// FastDeploy's spelling.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>, minimum = -1, maximum = 4_294_967_295_i64)]
    pub reasoning_max_tokens: Budget,
    /// Think or answer at once.
    pub enable_thinking: Option<bool>,
    /// Ollama's spelling of `enable_thinking`.
    pub think: Option<bool>,
    /// A budget by name: none, minimal, low, medium, high, xhigh, max.
    #[schema(value_type = Option<EffortName>)]
    pub reasoning_effort: Option<String>,
    /// The window after the budget in which a good place for the cut is looked for: tokens, or a
    /// share such as `"10%"`.
    pub thinking_budget_grace: Option<GraceField>,
    /// NVIDIA's spelling of `thinking_budget_grace`.
    pub thinking_budget_grace_period: Option<GraceField>,
    /// Text inserted before the close tag at the cut.
    #[schema(max_length = 4096)]
    pub thinking_budget_message: Option<String>,
    /// FastDeploy's spelling of `thinking_budget_message`.
    #[schema(max_length = 4096)]
    pub think_stop_sentence: Option<String>,
    /// Tokens of thinking before the model may end it.
    pub min_thinking_tokens: Option<u32>,
    /// Tokens of `max_tokens` that are kept for the answer.
    pub answer_token_reserve: Option<u32>,
    /// Stop strings and stop tokens also end the thinking section.
    pub stop_in_thinking: Option<bool>,
    /// Whether `/v1/chat/completions/control` may end this request's thinking [default: true].
    pub reasoning_control: Option<bool>,
    /// False hides the text of the thinking; it is counted all the same.
    pub include_reasoning: Option<bool>,
    /// Anthropic's object.
    #[serde(default, deserialize_with = "crate::json::object")]
    pub thinking: Option<AnthropicThinking>,
    /// OpenRouter's and the Responses API's object.
    #[serde(default, deserialize_with = "crate::json::object")]
    pub reasoning: Option<ReasoningObject>,
    /// NVIDIA NIM's extensions.
    #[serde(default, deserialize_with = "crate::json::object")]
    pub nvext: Option<NvExt>,
    /// Arguments of the chat template.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// Names of efforts.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "names of the wire, for the schema")]
pub enum EffortName {
    None,
    Minimal,
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

/// Tokens, or a share of the budget.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum GraceField {
    /// Tokens.
    Tokens(u32),
    /// Such as `"10%"`.
    Text(String),
}

/// `thinking` of Anthropic's API.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AnthropicThinking {
    /// On or off.
    #[serde(rename = "type")]
    pub kind: ThinkingType,
    /// As `thinking_budget`.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>, minimum = -1, maximum = 4_294_967_295_i64)]
    pub budget_tokens: Budget,
}

/// On or off, in Anthropic's words.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ThinkingType {
    /// On.
    Enabled,
    /// On, as much as the model likes.
    Adaptive,
    /// Off.
    Disabled,
}

/// `reasoning` of OpenRouter and of the Responses API.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReasoningObject {
    /// As `reasoning_effort`.
    #[schema(value_type = Option<EffortName>)]
    pub effort: Option<String>,
    /// As `thinking_budget`.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>, minimum = -1, maximum = 4_294_967_295_i64)]
    pub max_tokens: Budget,
    /// As `enable_thinking`.
    pub enabled: Option<bool>,
    /// Hides the text of the thinking.
    pub exclude: Option<bool>,
    /// The Responses API's request for a summary: the whole text is given instead.
    #[schema(value_type = Option<String>)]
    pub summary: Option<Summary>,
}

/// Kinds of summaries.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "names of the wire")]
pub enum Summary {
    Auto,
    Concise,
    Detailed,
}

/// `nvext` of NVIDIA NIM.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NvExt {
    /// As `thinking_budget`.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>, minimum = -1, maximum = 4_294_967_295_i64)]
    pub max_thinking_tokens: Budget,
    /// As `min_thinking_tokens`.
    pub min_thinking_tokens: Option<u32>,
}

/// What the fields mean.
#[derive(Debug, Clone, Default)]
pub struct Thinking {
    /// The engine's form.
    pub params: ThinkingParams,
    /// Inserted at the cut.
    pub message: Option<String>,
    /// Thinking may be ended by another request.
    pub control: bool,
    /// The text of the thinking is left out of the reply.
    pub hidden: bool,
    /// The reply also spells the text `reasoning`.
    pub short_name: bool,
    /// What is left of `chat_template_kwargs`.
    pub kwargs: Map<String, Value>,
}

impl ThinkingFields {
    /// Brings all spellings together.
    ///
    /// # Errors
    /// Spellings that differ, and values out of range.
    pub fn resolve(mut self) -> Result<Thinking, ApiError> {
        let mut kwargs = self.chat_template_kwargs.take().unwrap_or_default();
        let in_kwargs = Kwargs::take(&mut kwargs)?;
        let effort = self.effort()?;
        let grace = agree([
            ("thinking_budget_grace", self.thinking_budget_grace.clone()),
            ("thinking_budget_grace_period", self.thinking_budget_grace_period.clone()),
        ])?;
        let params = ThinkingParams {
            enabled: self.enabled(in_kwargs.enable_thinking)?,
            effort,
            budget: self.budget(in_kwargs.thinking_budget)?.map(|budget| budget.unwrap_or(-1)),
            grace: grace.map_or(Ok(Grace::Default), GraceField::grace)?,
            min_thinking_tokens: self.minimum()?.unwrap_or(0),
            answer_token_reserve: self.answer_token_reserve,
            stop_in_thinking: self.stop_in_thinking.unwrap_or(false),
        };
        // Without `max_tokens`: the engine checks both together.
        params.validate(None)?;
        let message = agree([
            ("thinking_budget_message", self.thinking_budget_message.clone()),
            ("think_stop_sentence", self.think_stop_sentence.clone()),
        ])?;
        if let Some(message) = message.as_ref().filter(|message| message.len() > 4096) {
            let found = message.len();
            let text =
                format!("thinking_budget_message: expected 4096 bytes at most, found {found}");
            return Err(ApiError::invalid("thinking_budget_message", text));
        }
        let hidden = agree([
            ("reasoning.exclude", self.reasoning.as_ref().and_then(|r| r.exclude)),
            ("include_reasoning", self.include_reasoning.map(|include| !include)),
        ])?;
        Ok(Thinking {
            params,
            message,
            control: self.reasoning_control.unwrap_or(true),
            hidden: hidden.unwrap_or(false),
            short_name: self.reasoning.is_some() || self.include_reasoning == Some(true),
            kwargs,
        })
    }

    fn budget(&self, in_kwargs: Budget) -> Result<Budget, ApiError> {
        let (thinking, reasoning) = (self.thinking.as_ref(), self.reasoning.as_ref());
        let spellings = [
            ("thinking_budget", self.thinking_budget),
            ("thinking_token_budget", self.thinking_token_budget),
            ("thinking_budget_tokens", self.thinking_budget_tokens),
            ("reasoning_budget", self.reasoning_budget),
            ("reasoning_budget_tokens", self.reasoning_budget_tokens),
            ("max_thinking_tokens", self.max_thinking_tokens),
            ("reasoning_max_tokens", self.reasoning_max_tokens),
            ("nvext.max_thinking_tokens", self.nvext.as_ref().and_then(|n| n.max_thinking_tokens)),
            ("thinking.budget_tokens", thinking.and_then(|t| t.budget_tokens)),
            ("reasoning.max_tokens", reasoning.and_then(|r| r.max_tokens)),
            ("chat_template_kwargs.thinking_budget", in_kwargs),
        ];
        // null and −1 say the same.
        let same = |budget: Option<i64>| budget.filter(|&tokens| tokens != -1);
        agree(spellings.map(|(name, budget)| (name, budget.map(same))))
    }

    fn enabled(&self, in_kwargs: Option<bool>) -> Result<Option<bool>, ApiError> {
        agree([
            ("enable_thinking", self.enable_thinking),
            ("think", self.think),
            ("thinking.type", self.thinking.as_ref().map(|t| t.kind != ThinkingType::Disabled)),
            ("reasoning.enabled", self.reasoning.as_ref().and_then(|r| r.enabled)),
            ("chat_template_kwargs.enable_thinking", in_kwargs),
        ])
    }

    fn effort(&self) -> Result<Option<Effort>, ApiError> {
        let effort = agree([
            ("reasoning_effort", self.reasoning_effort.clone()),
            ("reasoning.effort", self.reasoning.as_ref().and_then(|r| r.effort.clone())),
        ])?;
        Ok(effort.map(|text| text.parse()).transpose()?)
    }

    fn minimum(&self) -> Result<Option<u32>, ApiError> {
        agree([
            ("min_thinking_tokens", self.min_thinking_tokens),
            ("nvext.min_thinking_tokens", self.nvext.as_ref().and_then(|n| n.min_thinking_tokens)),
        ])
    }
}

impl GraceField {
    fn grace(self) -> Result<Grace, ApiError> {
        Ok(match self {
            Self::Tokens(tokens) => Grace::Tokens(tokens),
            Self::Text(text) => text.parse()?,
        })
    }
}

/// What is taken out of `chat_template_kwargs` because the engine decides about it.
#[derive(Default, Deserialize)]
struct Kwargs {
    #[serde(default)]
    enable_thinking: Option<bool>,
    #[serde(default, deserialize_with = "given")]
    thinking_budget: Budget,
}

impl Kwargs {
    fn take(map: &mut Map<String, Value>) -> Result<Self, ApiError> {
        let mut own = Map::new();
        for name in ["enable_thinking", "thinking_budget"] {
            own.extend(map.shift_remove(name).map(|value| (name.to_owned(), value)));
        }
        serde_path_to_error::deserialize(Value::Object(own)).map_err(|error| {
            let param = format!("chat_template_kwargs.{}", error.path());
            ApiError::invalid(param.clone(), format!("{param}: {}", error.inner()))
        })
    }
}

/// The one value of all that are given.
///
/// # Errors
/// Two that differ.
fn agree<T: PartialEq + Shown, const N: usize>(
    spellings: [(&str, Option<T>); N],
) -> Result<Option<T>, ApiError> {
    let mut first: Option<(&str, T)> = None;
    for (name, value) in spellings {
        let Some(value) = value else { continue };
        match &first {
            None => first = Some((name, value)),
            Some((other, found)) if *found != value => {
                let (found, value) = (found.shown(), value.shown());
                let message = format!("{other} {found} contradicts {name} {value}");
                return Err(ApiError::invalid(name, message));
            }
            Some(_) => {}
        }
    }
    Ok(first.map(|(_, value)| value))
}

/// How a value reads in an error.
trait Shown {
    fn shown(&self) -> String;
}

impl Shown for bool {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for u32 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for String {
    fn shown(&self) -> String {
        format!("{:?}", self.chars().take(64).collect::<String>())
    }
}

impl<T: Display> Shown for Option<T> {
    fn shown(&self) -> String {
        self.as_ref().map_or_else(|| "null".to_owned(), T::to_string)
    }
}

impl Shown for GraceField {
    fn shown(&self) -> String {
        match self {
            Self::Tokens(tokens) => tokens.shown(),
            Self::Text(text) => text.shown(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resolve(fields: Value) -> Result<Thinking, ApiError> {
        let fields: ThinkingFields = serde_json::from_value(fields).unwrap();
        fields.resolve()
    }

    #[test]
    fn every_spelling_of_a_budget_means_the_same() {
        for fields in [
            json!({"thinking_budget": 7}),
            json!({"thinking_token_budget": 7}),
            json!({"thinking_budget_tokens": 7}),
            json!({"reasoning_budget": 7}),
            json!({"reasoning_budget_tokens": 7}),
            json!({"max_thinking_tokens": 7}),
            json!({"reasoning_max_tokens": 7}),
            json!({"nvext": {"max_thinking_tokens": 7}}),
            json!({"thinking": {"type": "enabled", "budget_tokens": 7}}),
            json!({"reasoning": {"max_tokens": 7}}),
            json!({"chat_template_kwargs": {"thinking_budget": 7}}),
            json!({"thinking_budget": 7, "max_thinking_tokens": 7}),
        ] {
            assert_eq!(resolve(fields.clone()).unwrap().params.budget, Some(7), "{fields}");
        }
        for fields in [json!({"thinking_budget": null}), json!({"thinking_budget": -1})] {
            assert_eq!(resolve(fields).unwrap().params.budget, Some(-1));
        }
        assert!(resolve(json!({"thinking_budget": null, "reasoning_budget": -1})).is_ok());
        assert_eq!(resolve(json!({})).unwrap().params.budget, None);
    }

    #[test]
    fn every_spelling_of_the_switch_means_the_same() {
        for fields in [
            json!({"enable_thinking": false}),
            json!({"think": false}),
            json!({"thinking": {"type": "disabled"}}),
            json!({"reasoning": {"enabled": false}}),
            json!({"chat_template_kwargs": {"enable_thinking": false}}),
        ] {
            assert_eq!(resolve(fields.clone()).unwrap().params.enabled, Some(false), "{fields}");
        }
    }

    #[test]
    fn spellings_that_differ_are_named() {
        for (fields, expected) in [
            (
                json!({"thinking_budget": 7, "reasoning": {"max_tokens": 8}}),
                "thinking_budget 7 contradicts reasoning.max_tokens 8",
            ),
            (
                json!({"enable_thinking": true, "think": false}),
                "enable_thinking true contradicts think false",
            ),
            (
                json!({"reasoning_effort": "low", "reasoning": {"effort": "high"}}),
                "reasoning_effort \"low\" contradicts reasoning.effort \"high\"",
            ),
            (
                json!({"thinking_budget": null, "reasoning_budget": 5}),
                "thinking_budget null contradicts reasoning_budget 5",
            ),
            (
                json!({"include_reasoning": true, "reasoning": {"exclude": true}}),
                "reasoning.exclude true contradicts include_reasoning false",
            ),
        ] {
            assert_eq!(resolve(fields).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn what_is_left_of_template_arguments_goes_to_the_template() {
        let fields = json!({"chat_template_kwargs": {"enable_thinking": true, "x": 1}});
        let thinking = resolve(fields).unwrap();
        assert_eq!(Value::Object(thinking.kwargs), json!({"x": 1}));
        let error = resolve(json!({"chat_template_kwargs": {"enable_thinking": "x"}})).unwrap_err();
        assert!(error.to_string().starts_with("chat_template_kwargs.enable_thinking: invalid"));
    }
}

//! Options of commands that generate text, and what they mean to the engine.
//!
//! Precedence: command line, then the model's `generation_config.json`, then the defaults of the
//! family (thinking on: temperature 0.6, top-p 0.95; off: greedy).

mod wire;

use crate::cpu::{Arithmetic, ModelArgs};
use crate::session::{Limits, Session};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use hybra_chat::GenerationDefaults;
use hybra_engine::{
    Effort, EngineConfig, Grace, MAX_SPECULATIVE_TOKENS, SamplingParams, ThinkingParams,
};
use hybra_kernels::ops::attention::KvDtype;
use hybra_kernels::ops::ssm_state::SsmDtype;
use hybra_model::StateDtypes;

/// Number type of keys and values in the cache.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum KvDtypeArg {
    /// Exact
    F32,
    /// Half the memory
    Bf16,
    /// A quarter: bytes with a scale for each position and head
    Q8,
}

impl From<KvDtypeArg> for KvDtype {
    fn from(arg: KvDtypeArg) -> Self {
        match arg {
            KvDtypeArg::F32 => KvDtype::F32,
            KvDtypeArg::Bf16 => KvDtype::Bf16,
            KvDtypeArg::Q8 => KvDtype::Q8,
        }
    }
}

/// Number type of the recurrent state of the Mamba-2 layers.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum StateDtypeArg {
    /// Exact
    F32,
    /// Half the memory
    Bf16,
}

impl From<StateDtypeArg> for SsmDtype {
    fn from(arg: StateDtypeArg) -> Self {
        match arg {
            StateDtypeArg::F32 => SsmDtype::F32,
            StateDtypeArg::Bf16 => SsmDtype::Bf16,
        }
    }
}

/// How the state of a sequence is stored.
#[derive(clap::Args, Clone, Copy)]
pub(crate) struct StateArgs {
    /// Number type of the key/value cache [default: bf16; on a GPU the type it computes in]
    #[arg(long, value_enum)]
    pub(crate) kv_dtype: Option<KvDtypeArg>,
    /// Number type of the recurrent state
    #[arg(long, value_enum, default_value = "f32")]
    pub(crate) state_dtype: StateDtypeArg,
}

impl StateArgs {
    /// The number type of keys and values on the CPU.
    pub(crate) fn kv_dtype(self) -> KvDtypeArg {
        self.kv_dtype.unwrap_or(KvDtypeArg::Bf16)
    }
}

impl From<StateArgs> for StateDtypes {
    /// As on the CPU.
    fn from(args: StateArgs) -> Self {
        Self { kv: args.kv_dtype().into(), ssm: args.state_dtype.into() }
    }
}

/// Everything that `generate` and `chat` have in common.
#[derive(clap::Args, Clone)]
pub(crate) struct GenerationArgs {
    /// Most tokens of prompt and output [default: the model's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    context: Option<u32>,
    #[command(flatten)]
    state: StateArgs,
    /// Guess up to N tokens ahead from what the text repeats and check them in one step: the same
    /// output, faster where it repeats itself [default: off; without N: 8]
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "8")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=MAX_SPECULATIVE_TOKENS as i64))]
    speculate: Option<u32>,
    #[command(flatten)]
    pub(crate) thinking: ThinkingArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    cpu: ModelArgs,
}

impl GenerationArgs {
    /// Loads `model` to generate under these options.
    pub(crate) fn open(&self, model: Option<&str>) -> Result<Session> {
        let limits = Limits {
            state: self.state,
            context: self.context.map(|c| c as usize),
            num_speculative_tokens: self.speculate.map_or(0, |n| n as usize),
        };
        let load = self.cpu.load_options(Arithmetic::Fast);
        let model = self.cpu.sized(model)?;
        Session::open(model.as_deref(), self.cpu.cpu()?, load, limits, EngineConfig::default())
    }
}

/// How much to think.
#[derive(clap::Args, Clone)]
#[command(next_help_heading = "Thinking")]
pub(crate) struct ThinkingArgs {
    /// Tokens of thinking after which it is cut at the next newline (-1: no limit, 0: off)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) thinking_budget: Option<i64>,
    /// Tokens after the budget in which a good place for the cut is looked for: N or N%
    /// [default: 10% of the budget, 16 to 500]
    #[arg(long, value_name = "G")]
    thinking_budget_grace: Option<String>,
    /// Text inserted before the closing tag at the cut
    #[arg(long, value_name = "TEXT")]
    pub(crate) thinking_budget_message: Option<String>,
    /// Tokens of thinking before the model may end it
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_thinking_tokens: u32,
    /// Tokens of --max-tokens kept for the answer [default: a quarter, at most 256]
    #[arg(long, value_name = "N")]
    answer_token_reserve: Option<u32>,
    /// Budget by name: none, minimal, low, medium, high, xhigh, max
    #[arg(long, value_name = "E", value_parser = effort)]
    reasoning_effort: Option<Effort>,
    /// Think, whatever the messages say
    #[arg(long, conflicts_with = "no_think")]
    think: bool,
    /// Answer at once
    #[arg(long)]
    pub(crate) no_think: bool,
}

fn effort(text: &str) -> Result<Effort, String> {
    text.parse().map_err(|e: hybra_engine::RequestError| e.to_string())
}

impl ThinkingArgs {
    /// The engine's form.
    pub(crate) fn params(&self) -> Result<ThinkingParams> {
        let grace = self.thinking_budget_grace.as_deref().map_or(Ok(Grace::Default), str::parse);
        Ok(ThinkingParams {
            enabled: if self.think { Some(true) } else { self.no_think.then_some(false) },
            effort: self.reasoning_effort,
            budget: self.thinking_budget,
            grace: grace.context("--thinking-budget-grace")?,
            min_thinking_tokens: self.min_thinking_tokens,
            answer_token_reserve: self.answer_token_reserve,
            stop_in_thinking: false,
        })
    }
}

/// How tokens are chosen.
#[derive(clap::Args, Clone)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Most tokens to generate, thinking included [default: what the context leaves]
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<u32>,
    /// Randomness; 0 takes the most probable token
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Choose among the K most probable tokens
    #[arg(long, value_name = "K")]
    top_k: Option<i64>,
    /// Choose among the most probable tokens that hold this share
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Leave out tokens below this share of the most probable one
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Divide the logits of tokens seen before
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Lower logits by this for each earlier use in the output
    #[arg(long, value_name = "F", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Lower logits by this once a token was used in the output
    #[arg(long, value_name = "F", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Same seed, same output [default: random]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Log-probabilities of the N most probable tokens, with --json
    #[arg(long, value_name = "N")]
    pub(crate) logprobs: Option<u32>,
    /// Stop before this text of the answer (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Also stop at this token id (repeatable)
    #[arg(long, value_name = "ID")]
    stop_token_id: Vec<u32>,
    /// Add to the logit of a token (repeatable)
    #[arg(long, value_name = "ID=BIAS", value_parser = logit_bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Go on after end-of-sequence tokens
    #[arg(long)]
    ignore_eos: bool,
}

fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let parse = |(id, bias): (&str, &str)| Some((id.parse().ok()?, bias.parse().ok()?));
    let pair = text.split_once('=').and_then(parse);
    pair.ok_or_else(|| format!("expected ID=BIAS such as 42=-1.5, found {text:?}"))
}

impl SamplingArgs {
    /// The engine's form. `thinking` selects the family's default temperature; a request without
    /// a seed gets `fresh_seed`.
    pub(crate) fn params(
        &self,
        defaults: &GenerationDefaults,
        thinking: bool,
        fresh_seed: u64,
    ) -> SamplingParams {
        let own = defaults.params(thinking);
        SamplingParams {
            temperature: self.temperature.unwrap_or(own.temperature),
            top_k: self.top_k.unwrap_or(own.top_k),
            top_p: self.top_p.unwrap_or(own.top_p),
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            seed: Some(self.seed.unwrap_or(fresh_seed)),
            max_tokens: self.max_tokens,
            logprobs: self.logprobs,
            stop_token_ids: self.stop_token_id.clone(),
            stop: self.stop.iter().map(|stop| stop.clone().into_bytes()).collect(),
            logit_bias: self.logit_bias.clone(),
            ignore_eos: self.ignore_eos,
            ..own
        }
    }
}

/// A seed that no run had before: randomness enters at this edge only.
pub(crate) fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// The text of a file, or of standard input for `-`.
pub(crate) fn read_text(path: &str) -> Result<String> {
    if path == "-" {
        return std::io::read_to_string(std::io::stdin()).context("standard input");
    }
    let text = std::fs::read_to_string(path).with_context(|| path.to_owned())?;
    if text.is_empty() {
        bail!("{path}: the file is empty");
    }
    Ok(text)
}

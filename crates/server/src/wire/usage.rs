//! Tokens of a request, in OpenAI's form.

use hybra_engine::FinishEvent;
use serde::Serialize;
use utoipa::ToSchema;

/// Tokens, summed over the choices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, ToSchema)]
pub struct Usage {
    /// Of the prompt, which the choices share.
    pub prompt_tokens: usize,
    /// Generated: thinking, inserted and answer.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// What the prompt's tokens were.
    pub prompt_tokens_details: PromptTokensDetails,
    /// What the generated tokens were.
    pub completion_tokens_details: CompletionTokensDetails,
}

/// Of the prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Tokens that were not read because a cached state had read them.
    pub cached_tokens: usize,
}

/// Of what was generated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, ToSchema)]
pub struct CompletionTokensDetails {
    /// Tokens of thinking, inserted ones and the close tag included.
    pub reasoning_tokens: u32,
}

impl Usage {
    /// Adds a choice that ended. Choices after the first start from the first one's state, so the
    /// least that any of them took from a cache is what the request took.
    pub fn add(&mut self, end: &FinishEvent) {
        let cached = &mut self.prompt_tokens_details.cached_tokens;
        *cached = if self.prompt_tokens == 0 {
            end.cached_tokens
        } else {
            end.cached_tokens.min(*cached)
        };
        self.prompt_tokens = end.prompt_tokens;
        self.completion_tokens += end.completion_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
        self.completion_tokens_details.reasoning_tokens += end.reasoning_tokens;
    }

    /// Adds the tokens of another prompt and its choices.
    pub fn merge(&mut self, other: &Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.total_tokens += other.total_tokens;
        self.prompt_tokens_details.cached_tokens += other.prompt_tokens_details.cached_tokens;
        self.completion_tokens_details.reasoning_tokens +=
            other.completion_tokens_details.reasoning_tokens;
    }
}

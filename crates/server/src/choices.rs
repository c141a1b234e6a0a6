//! All choices of a request, fed from the engine: what every endpoint turns into its own objects.
//!
//! Invariant: a choice that failed fails its request.

use crate::choice::{Choice, Piece, Shown};
use crate::error::ApiError;
use crate::generation::Generation;
use crate::state::AppState;
use crate::wire::usage::Usage;
use hybra_engine::{Event, FinishEvent, FinishReason, GenerationRequest};
use std::sync::Arc;

/// The choices of a request.
pub struct Choices {
    state: Arc<AppState>,
    generation: Generation,
    /// Those of the first prompt, then those of the next.
    pub list: Vec<Choice>,
    per_prompt: usize,
}

/// What happened to a choice.
pub enum Growth {
    /// Part of its prompt was read: `done` of `total` tokens.
    Prefill {
        /// Tokens read.
        done: usize,
        /// Tokens in all.
        total: usize,
        /// Of these, taken from a kept state.
        cached: usize,
    },
    /// It has new text, or none; it may have ended.
    Text(Vec<Piece>),
}

impl Choices {
    /// Sends `requests` to the engine: `per_prompt` for each prompt. `control`: the name under
    /// which another request may end their thinking.
    ///
    /// # Errors
    /// As [`Generation::start`].
    pub async fn start(
        state: &Arc<AppState>,
        requests: Vec<GenerationRequest>,
        per_prompt: usize,
        shown: Shown,
        control: Option<&str>,
    ) -> Result<Self, ApiError> {
        let list = requests.iter().map(|request| Choice::new(request, shown)).collect();
        let generation = Generation::start(state, requests, control).await?;
        Ok(Self { state: Arc::clone(state), generation, list, per_prompt })
    }

    /// The next thing that happens, and to which choice; `None` when all have ended.
    ///
    /// # Errors
    /// A choice failed, the reader was too slow, or the engine stopped.
    pub async fn next(&mut self) -> Result<Option<(usize, Growth)>, ApiError> {
        let Some(happened) = self.generation.next().await? else { return Ok(None) };
        let choice = &mut self.list[happened.choice];
        let growth = match happened.event {
            Event::Prefill { done, total, cached, .. } => Growth::Prefill { done, total, cached },
            Event::PromptLogprobs(scored) => {
                choice.scored(scored, &self.state.model.tokenizer);
                Growth::Text(Vec::new())
            }
            Event::Token(token) => Growth::Text(choice.token(&token, &self.state.model)),
            Event::Finish(end) => {
                failure(&end)?;
                Growth::Text(choice.finish(end))
            }
        };
        Ok(Some((happened.choice, growth)))
    }

    /// Waits until all have ended.
    ///
    /// # Errors
    /// As [`Choices::next`].
    pub async fn wait(&mut self) -> Result<(), ApiError> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    /// Tokens of the choices that have ended.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let mut sum = Usage::default();
        for choices in self.list.chunks(self.per_prompt) {
            let mut usage = Usage::default();
            choices.iter().filter_map(|c| c.end.as_ref()).for_each(|end| usage.add(end));
            sum.merge(&usage);
        }
        sum
    }
}

fn failure(end: &FinishEvent) -> Result<(), ApiError> {
    let message = match end.reason {
        FinishReason::Failed => end.error.as_deref().unwrap_or("generation failed"),
        FinishReason::Cancelled => "the reply was cancelled by the server",
        FinishReason::Stop | FinishReason::Length => return Ok(()),
    };
    Err(ApiError::Internal { message: message.to_owned() })
}

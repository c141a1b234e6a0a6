//! `POST /v1/completions`, whole and streamed.

use crate::choice::{Choice, Kind};
use crate::choices::{Choices, Growth};
use crate::error::ApiError;
use crate::json::{self, Body};
use crate::sse::{self, Sender};
use crate::state::{AppState, new_id, unix_seconds};
use crate::validate::{CompletionRequest, completion_request};
use crate::wire::completions::{Completion, CompletionChoice, CompletionLogprobs};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

/// The handler.
///
/// # Errors
/// A request that cannot be served, in OpenAI's form.
pub async fn completions(
    State(state): State<Arc<AppState>>,
    Body(mut body): Body,
) -> Result<Response, ApiError> {
    let fields = (json::take(&mut body)?, json::take(&mut body)?, json::take(&mut body)?);
    json::finish(&body)?;
    let mut request = completion_request(&state, fields.0, fields.1, fields.2)?;
    let id = new_id("cmpl-");
    let control = request.control.then_some(id.as_str());
    let (requests, shown) = (std::mem::take(&mut request.requests), request.shown);
    let choices = Choices::start(&state, requests, request.best_of, shown, control).await?;
    let job = Job { id, created: unix_seconds(), state, request };
    if job.request.stream {
        let keep_alive = job.state.config.keep_alive;
        return Ok(sse::response(keep_alive, move |sender| job.stream(choices, sender)));
    }
    Ok(Json(job.whole(choices).await?).into_response())
}

/// One request on its way to a reply.
struct Job {
    id: String,
    created: u64,
    state: Arc<AppState>,
    request: CompletionRequest,
}

impl Job {
    async fn whole(self, mut choices: Choices) -> Result<Completion, ApiError> {
        choices.wait().await?;
        let usage = Some(choices.usage());
        let mut all = choices.list.into_iter();
        let mut chosen = Vec::new();
        for prompt in 0..self.request.prompts.len() {
            let candidates =
                best(all.by_ref().take(self.request.best_of).collect(), self.request.n);
            for mut choice in candidates {
                let (mut whole, offset) = self.first(prompt, &mut choice);
                self.grow(&mut whole, choice.text(Kind::Content), &mut choice, offset);
                self.end(&mut whole, &choice);
                whole.index = chosen.len() as u32;
                chosen.push(whole);
            }
        }
        Ok(Completion { usage, warnings: self.request.warnings.clone(), ..self.reply(chosen) })
    }

    async fn stream(self, mut choices: Choices, sender: Sender) -> Result<(), ApiError> {
        let num_choices = choices.list.len();
        // Where the next token of each choice begins; `None` before its first chunk.
        let mut offsets = vec![None; num_choices];
        let mut warnings = self.request.warnings.clone();
        while let Some((index, growth)) = choices.next().await? {
            let choice = &mut choices.list[index];
            let Growth::Text(pieces) = growth else { continue };
            let is_reading =
                choice.end.is_none() && choice.logprobs.is_empty() && pieces.is_empty();
            if is_reading {
                continue;
            }
            let (mut chunk, offset) = match offsets[index] {
                None => self.first(index / self.request.n, choice),
                Some(offset) => (CompletionChoice::default(), offset),
            };
            chunk.index = index as u32;
            let text: String = pieces.into_iter().map(|piece| piece.text).collect();
            if text.is_empty() && choice.end.is_none() && chunk.text.is_empty() {
                continue;
            }
            offsets[index] = Some(self.grow(&mut chunk, text, choice, offset));
            if choice.end.is_some() {
                self.end(&mut chunk, choice);
            }
            let warnings = std::mem::take(&mut warnings);
            sender.json(&Completion { warnings, ..self.reply(vec![chunk]) }).await?;
        }
        if self.request.include_usage {
            let usage = Some(choices.usage());
            sender.json(&Completion { usage, ..self.reply(Vec::new()) }).await?;
        }
        sender.done().await
    }

    fn reply(&self, choices: Vec<CompletionChoice>) -> Completion {
        Completion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.state.model.name.clone(),
            choices,
            usage: None,
            warnings: Vec::new(),
        }
    }

    /// The beginning of a choice: its prompt, if it is to be echoed; and where its text begins.
    fn first(&self, prompt: usize, choice: &mut Choice) -> (CompletionChoice, usize) {
        let mut first = CompletionChoice::default();
        if self.request.echo {
            let prompt = &self.request.prompts[prompt];
            first.text.clone_from(&prompt.text);
            if self.request.logprobs.is_some() {
                let scored = std::mem::take(&mut choice.prompt_logprobs);
                let tokenizer = &self.state.model.tokenizer;
                first.logprobs = Some(CompletionLogprobs::of_prompt(prompt, scored, tokenizer));
            }
        }
        let offset = first.text.chars().count();
        (first, offset)
    }

    /// Adds text and the tokens since the last piece; where the next token begins.
    fn grow(
        &self,
        to: &mut CompletionChoice,
        text: String,
        choice: &mut Choice,
        offset: usize,
    ) -> usize {
        to.text.push_str(&text);
        if self.request.logprobs.is_none() {
            return offset;
        }
        let tokens = std::mem::take(&mut choice.logprobs);
        to.logprobs.get_or_insert_with(CompletionLogprobs::default).extend(tokens, offset)
    }

    fn end(&self, to: &mut CompletionChoice, choice: &Choice) {
        to.finish_reason = Some(choice.finish_reason());
        to.stop_reason = choice.stop_reason();
        to.reasoning_budget = choice.end.as_ref().map(|end| end.budget);
    }
}

/// The `n` candidates with the highest log-probability per token, the best one first.
fn best(mut candidates: Vec<Choice>, n: usize) -> Vec<Choice> {
    if candidates.len() > n {
        let mean = |choice: &Choice| {
            let sum: f64 = choice.logprobs.iter().map(|t| f64::from(t.logprob)).sum();
            sum / choice.logprobs.len().max(1) as f64
        };
        candidates.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        candidates.truncate(n);
    }
    candidates
}

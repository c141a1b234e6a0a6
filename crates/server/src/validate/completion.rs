//! Completion requests: prompts in text or ids, without a chat template.

use super::choices;
use crate::choice::Shown;
use crate::error::ApiError;
use crate::state::AppState;
use crate::wire::completions::{CompletionFields, PromptField};
use crate::wire::sampling::{MAX_N, SamplingFields};
use crate::wire::thinking::{Thinking, ThinkingFields};
use hybra_chat::Prompt;
use hybra_engine::GenerationRequest;

/// Most alternatives per token.
const MAX_LOGPROBS: u32 = 5;
/// Generated tokens where the request says nothing, as OpenAI's.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// A completion request that passed all checks.
pub struct CompletionRequest {
    /// `best_of` for each prompt.
    pub requests: Vec<GenerationRequest>,
    /// The prompts.
    pub prompts: Vec<EchoedPrompt>,
    /// Choices returned for each prompt.
    pub n: usize,
    /// Choices generated for each prompt.
    pub best_of: usize,
    /// Alternatives per token; `None`: no log-probabilities.
    pub logprobs: Option<u32>,
    /// The text begins with the prompt.
    pub echo: bool,
    /// The reply comes piece by piece.
    pub stream: bool,
    /// A last chunk says the usage.
    pub include_usage: bool,
    /// What of a choice is its text.
    pub shown: Shown,
    /// Thinking may be ended by another request.
    pub control: bool,
    /// Fields that had no effect.
    pub warnings: Vec<String>,
}

/// A prompt as `echo` shows it.
pub struct EchoedPrompt {
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Tokens at its beginning that are not in its text.
    pub num_hidden: usize,
}

/// Checks a completion request.
///
/// # Errors
/// Every defect, with the name of its field.
pub fn completion_request(
    state: &AppState,
    fields: CompletionFields,
    sampling: SamplingFields,
    thinking: ThinkingFields,
) -> Result<CompletionRequest, ApiError> {
    state.check_model(fields.model.as_deref())?;
    if fields.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::unsupported("suffix", "text is only continued, never inserted"));
    }
    super::check_stream_options(fields.stream, fields.stream_options)?;
    let thinking = thinking.resolve()?;
    if let Some(name) = thinking.kwargs.keys().next() {
        let name: String = name.chars().take(64).collect();
        let message = format!("chat_template_kwargs.{name}: a completion has no chat template");
        return Err(ApiError::invalid("chat_template_kwargs", message));
    }
    let echo = fields.echo.unwrap_or(false);
    let (n, best_of) = candidates(&fields, &sampling)?;
    let prompts = prompts(state, &fields)?;
    let asked = prompts.len() * best_of;
    if asked > MAX_N as usize {
        let message = format!(
            "prompt: expected {MAX_N} choices at most, found {} prompts of {best_of} choices",
            prompts.len()
        );
        return Err(ApiError::invalid("prompt", message));
    }
    let scored = fields.logprobs.filter(|_| echo);
    let wanted = Wanted { max_tokens: max_tokens(&fields, echo, &thinking)?, best_of, n, scored };
    let mut requests = Vec::with_capacity(asked);
    for (prompt, _) in &prompts {
        requests.extend(wanted.requests(state, prompt.clone(), &fields, &thinking, &sampling)?);
    }
    Ok(CompletionRequest {
        requests,
        prompts: prompts.into_iter().map(|(_, echoed)| echoed).collect(),
        n,
        best_of,
        logprobs: fields.logprobs,
        echo,
        stream: fields.stream.unwrap_or(false),
        include_usage: fields.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
        shown: Shown { hidden: thinking.hidden, raw: true },
        control: thinking.control,
        warnings: fields.user.iter().map(|_| "user has no effect".to_owned()).collect(),
    })
}

/// What all prompts of a request have in common.
struct Wanted {
    max_tokens: Option<u32>,
    best_of: usize,
    n: usize,
    /// The prompt's tokens have log-probabilities, too.
    scored: Option<u32>,
}

impl Wanted {
    fn requests(
        &self,
        state: &AppState,
        prompt: Prompt,
        fields: &CompletionFields,
        thinking: &Thinking,
        sampling: &SamplingFields,
    ) -> Result<Vec<GenerationRequest>, ApiError> {
        // Candidates are ranked by their log-probabilities.
        let ranked = (self.best_of > self.n).then_some(0);
        let logprobs = fields.logprobs.or(ranked);
        let params = sampling.params(
            &state.model.defaults,
            prompt.is_thinking(),
            self.max_tokens,
            logprobs,
        )?;
        let sampling = SamplingFields { n: Some(self.best_of as u32), ..sampling.clone() };
        let mut requests = choices(state, prompt, params, thinking.clone(), &sampling)?;
        requests.iter_mut().for_each(|request| request.prompt_logprobs = self.scored);
        Ok(requests)
    }
}

fn candidates(
    fields: &CompletionFields,
    sampling: &SamplingFields,
) -> Result<(usize, usize), ApiError> {
    let n = sampling.num_choices()?;
    let best_of = fields.best_of.unwrap_or(n);
    if !(n..=MAX_N).contains(&best_of) {
        let message = format!("best_of: expected n ({n}) to {MAX_N}, found {best_of}");
        return Err(ApiError::invalid("best_of", message));
    }
    if best_of > n && fields.stream == Some(true) {
        let message = format!("best_of {best_of}: a stream cannot choose among candidates");
        return Err(ApiError::invalid("best_of", message));
    }
    if let Some(found) = fields.logprobs.filter(|&logprobs| logprobs > MAX_LOGPROBS) {
        let message = format!("logprobs: expected 0 to {MAX_LOGPROBS}, found {found}");
        return Err(ApiError::invalid("logprobs", message));
    }
    Ok((n as usize, best_of as usize))
}

fn max_tokens(
    fields: &CompletionFields,
    echo: bool,
    thinking: &Thinking,
) -> Result<Option<u32>, ApiError> {
    let budgeted = thinking.params.budget.is_some() || thinking.params.effort.is_some();
    match fields.max_tokens {
        None if budgeted => Ok(None),
        None => Ok(Some(DEFAULT_MAX_TOKENS)),
        Some(0) if !echo || fields.logprobs.is_none() => {
            let message =
                "max_tokens: expected at least 1 (0 only together with echo and logprobs), found 0";
            Err(ApiError::invalid("max_tokens", message))
        }
        given => Ok(given),
    }
}

fn prompts(
    state: &AppState,
    fields: &CompletionFields,
) -> Result<Vec<(Prompt, EchoedPrompt)>, ApiError> {
    let special = fields.add_special_tokens.unwrap_or(true);
    let text = |text: &String| {
        let (prompt, num_hidden) = text_prompt(state, text, special)?;
        Ok(echoed(prompt, num_hidden))
    };
    let ids = |ids: &Vec<u32>| Ok(echoed(state.model.token_prompt(ids.clone())?, 0));
    let prompts: Result<Vec<_>, ApiError> = match &fields.prompt {
        PromptField::Text(one) => Ok(vec![text(one)?]),
        PromptField::Texts(several) => counted(several)?.iter().map(text).collect(),
        PromptField::Ids(one) => Ok(vec![ids(one)?]),
        PromptField::IdLists(several) => counted(several)?.iter().map(ids).collect(),
    };
    let prompts = prompts?;
    for (prompt, _) in &prompts {
        let (found, most) = (prompt.ids.len(), state.max_model_len);
        if found == 0 || found >= most {
            let message = format!("prompt: expected 1 to {} tokens, found {found}", most - 1);
            return Err(ApiError::invalid("prompt", message));
        }
    }
    Ok(prompts)
}

/// Refuses too many prompts before any of them is encoded.
fn counted<T>(prompts: &[T]) -> Result<&[T], ApiError> {
    match prompts.len() {
        1..=128 => Ok(prompts),
        found => {
            let message = format!("prompt: expected 1 to {MAX_N} prompts, found {found}");
            Err(ApiError::invalid("prompt", message))
        }
    }
}

fn text_prompt(state: &AppState, text: &str, special: bool) -> Result<(Prompt, usize), ApiError> {
    if special {
        let prompt = state.model.raw_prompt(text)?;
        let bare =
            state.model.tokenizer.encode(text, false).map_err(hybra_chat::ChatError::from)?;
        let num_hidden = prompt.ids.len() - bare.len();
        return Ok((prompt, num_hidden));
    }
    let ids = state.model.tokenizer.encode(text, false).map_err(hybra_chat::ChatError::from)?;
    Ok((state.model.token_prompt(ids)?, 0))
}

fn echoed(prompt: Prompt, num_hidden: usize) -> (Prompt, EchoedPrompt) {
    let echoed = EchoedPrompt { text: prompt.text.clone(), ids: prompt.ids.clone(), num_hidden };
    (prompt, echoed)
}

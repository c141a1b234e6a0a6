//! One request's way through the engine: its choices' events, as an asynchronous stream.
//!
//! Invariants: the engine's thread never waits for a reader: one that is too far behind is
//! cancelled. Dropping [`Generation`] cancels every choice that has not ended, queued ones too, at
//! any moment: also while the request is on its way to the engine. A deadline holds from the
//! request's head to the last event.

use crate::context::{Context, Deadline, Tokens};
use crate::error::ApiError;
use crate::lifecycle::Phase;
use crate::state::AppState;
use crate::traces::ChoiceSpan;
use hybra_engine::{EngineHandle, Event, FinishReason, GenerationRequest, SequenceId, SubmitError};
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use tokio::sync::{mpsc, oneshot};

/// A request that the engine took.
pub struct Generation {
    events: mpsc::Receiver<Event>,
    guard: Guard,
    state: Arc<AppState>,
    context: Context,
    submitted: Instant,
    /// Whether part of the prompt was read.
    begun: bool,
    /// When each choice's newest token came.
    newest: Vec<Option<Instant>>,
    /// Which choices are the first of their prompt.
    first: Vec<bool>,
    /// Those of the choices, where traces are kept.
    spans: Vec<ChoiceSpan>,
}

/// Cancels what has not ended.
struct Guard {
    engine: EngineHandle,
    /// The choices in order; `None` once ended.
    live: Vec<Option<SequenceId>>,
    ids: Vec<SequenceId>,
    control: Option<(Arc<AppState>, String)>,
}

/// An event and the choice that it belongs to.
pub struct ChoiceEvent {
    /// Index of the choice.
    pub choice: usize,
    /// What happened.
    pub event: Event,
}

impl Generation {
    /// Sends the choices of one request to the engine. `control`: the name under which another
    /// request may end their thinking.
    ///
    /// # Errors
    /// The engine refuses the request, its queue is full, it has stopped, or the deadline passed.
    pub async fn start(
        state: &Arc<AppState>,
        requests: Vec<GenerationRequest>,
        control: Option<&str>,
    ) -> Result<Self, ApiError> {
        let (context, submitted) = (Context::current(), Instant::now());
        log_prompt(state, &context, &requests);
        let newest = vec![None; requests.len()];
        let first = first_of_prompt(&requests);
        let (count, started) = (requests.len(), SystemTime::now());
        let (sender, events) = mpsc::channel(state.config.stream_buffer * requests.len());
        let (accepted, guard) = oneshot::channel();
        let sink = Box::new(move |event| sender.try_send(event).is_ok());
        let engine = state.engine.clone();
        let control = control.map(|name| (Arc::clone(state), name.to_owned()));
        let submitted_to = state.engine.submit(requests, sink, move |result| {
            let guard = result.map(|ids| Guard::new(engine, ids, control));
            // A client that went away drops the guard, wherever it is.
            let _ = accepted.send(guard);
        });
        submitted_to.map_err(|error| refusal(state, error))?;
        let stopped = |_| ApiError::Unavailable { message: "the engine has stopped".to_owned() };
        let taken = tokio::select! {
            guard = guard => guard.map_err(stopped)?,
            error = interrupted(state, context.deadline) => return Err(error),
        };
        let guard = taken.map_err(|error| refusal(state, error))?;
        let span = context.span.as_ref();
        let span_of = |i| Some(span?.choice(&state.model.name, i, (submitted, started)));
        let spans = (0..count).filter_map(span_of).collect();
        let (state, begun) = (Arc::clone(state), false);
        Ok(Self { events, guard, state, context, submitted, begun, newest, first, spans })
    }

    /// The next event; `None` after the last choice has ended.
    ///
    /// # Errors
    /// The reader was too slow, the deadline passed, or the engine stopped.
    pub async fn next(&mut self) -> Result<Option<ChoiceEvent>, ApiError> {
        if self.guard.live.iter().all(Option::is_none) {
            return Ok(None);
        }
        let event = tokio::select! {
            // Before events: a fast model always has some.
            biased;
            error = interrupted(&self.state, self.context.deadline) => return Err(error),
            event = self.events.recv() => event,
        };
        let Some(event) = event else {
            self.state.metrics.failure("slow_reader_or_engine");
            let message = "the reply was cancelled: the reader was too slow, or the engine stopped";
            return Err(ApiError::Internal { message: message.to_owned() });
        };
        let id = event.sequence();
        let choice = self.guard.ids.iter().position(|&own| own == id);
        let choice = choice.expect("a sink gets the events of its own sequences");
        if matches!(event, Event::Finish(_)) {
            self.guard.live[choice] = None;
        }
        self.count(choice, &event);
        Ok(Some(ChoiceEvent { choice, event }))
    }

    fn count(&mut self, choice: usize, event: &Event) {
        let metrics = &self.state.metrics;
        if !std::mem::replace(&mut self.begun, true) {
            metrics.queue_time.observe(self.submitted.elapsed().as_secs_f64());
        }
        if let Some(span) = self.spans.get_mut(choice) {
            span.observe(event);
        }
        match event {
            Event::Prefill { .. } | Event::PromptLogprobs(_) => {}
            Event::Token(_) => {
                let now = Instant::now();
                let (histogram, since) = match self.newest[choice].replace(now) {
                    Some(before) => (&metrics.inter_token_latency, before),
                    None => (&metrics.time_to_first_token, self.submitted),
                };
                histogram.observe((now - since).as_secs_f64());
            }
            Event::Finish(end) => {
                let ended = self.guard.live.iter().filter(|id| id.is_none()).count();
                metrics.finished(end);
                if matches!(end.reason, FinishReason::Failed | FinishReason::Cancelled) {
                    metrics.failure("generation");
                }
                let tokens = &self.context.tokens;
                if self.first[choice] {
                    Tokens::add(&tokens.prompt, end.prompt_tokens);
                    Tokens::add(&tokens.cached, end.cached_tokens);
                }
                Tokens::add(&tokens.completion, end.completion_tokens);
                if ended == self.guard.live.len() {
                    metrics.request_latency(self.submitted.elapsed());
                }
            }
        }
    }
}

/// Why a request cannot go on although nothing is wrong with it: its deadline, or the end of the
/// server.
async fn interrupted(state: &AppState, deadline: Option<Deadline>) -> ApiError {
    let passed = async {
        match deadline {
            Some(deadline) => {
                tokio::time::sleep_until(deadline.at).await;
                deadline.limit.as_secs()
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        seconds = passed => {
            state.metrics.failure("deadline");
            ApiError::Deadline { seconds }
        }
        () = state.lifecycle.reached(Phase::Ended) => {
            state.metrics.failure("shutdown");
            ApiError::Unavailable { message: "the server is shutting down".to_owned() }
        }
    }
}

/// A request that the engine did not take.
fn refusal(state: &AppState, error: SubmitError) -> ApiError {
    let SubmitError::QueueFull { waiting } = error else { return error.into() };
    state.metrics.failure("queue_full");
    let retry_after = state.metrics.retry_after(waiting, state.engine.stats().running);
    ApiError::Busy { waiting, retry_after }
}

/// Which requests have another prompt than the one before.
fn first_of_prompt(requests: &[GenerationRequest]) -> Vec<bool> {
    let same = |i: usize| i > 0 && requests[i].prompt == requests[i - 1].prompt;
    (0..requests.len()).map(|i| !same(i)).collect()
}

/// The prompt, escaped, if the operator wants it.
fn log_prompt(state: &AppState, context: &Context, requests: &[GenerationRequest]) {
    if let Some(request) = requests.first().filter(|_| state.config.log_prompts) {
        let prompt = state.model.tokenizer.decode(&request.prompt, false);
        tracing::info!(id = context.id, prompt = ?prompt, "prompt");
    }
}

impl Guard {
    fn new(
        engine: EngineHandle,
        ids: Vec<SequenceId>,
        control: Option<(Arc<AppState>, String)>,
    ) -> Self {
        if let Some((state, name)) = &control {
            state.controls().insert(name.clone(), ids.clone());
        }
        let live = ids.iter().copied().map(Some).collect();
        Self { engine, live, ids, control }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.live.iter().flatten().for_each(|&id| self.engine.cancel(id));
        if let Some((state, name)) = &self.control {
            state.controls().remove(name);
        }
    }
}

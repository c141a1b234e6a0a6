//! One request's way through the engine: its choices' events, as an asynchronous stream.
//!
//! Invariants: the engine's thread never waits for a reader: one that is too far behind is
//! cancelled. Dropping [`Generation`] cancels every choice that has not ended, queued ones too.

use crate::error::ApiError;
use crate::state::AppState;
use hybra_engine::{EngineHandle, Event, GenerationRequest, SequenceId};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// A request that the engine took.
pub struct Generation {
    events: mpsc::Receiver<Event>,
    guard: Guard,
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
    /// The engine refuses the request, its queue is full, or it has stopped.
    pub async fn start(
        state: &Arc<AppState>,
        requests: Vec<GenerationRequest>,
        control: Option<&str>,
    ) -> Result<Self, ApiError> {
        let (sender, events) = mpsc::channel(state.config.stream_buffer * requests.len());
        let (accepted, ids) = oneshot::channel();
        let sink = Box::new(move |event| sender.try_send(event).is_ok());
        let engine = state.engine.clone();
        engine.submit(requests, sink, {
            let engine = engine.clone();
            move |result| {
                // The client went away while its request was on the way.
                if let Err(Ok(ids)) = accepted.send(result) {
                    ids.into_iter().for_each(|id: SequenceId| engine.cancel(id));
                }
            }
        })?;
        let stopped = |_| ApiError::Unavailable { message: "the engine has stopped".to_owned() };
        let ids = ids.await.map_err(stopped)??;
        let control = control.map(|name| (Arc::clone(state), name.to_owned()));
        if let Some((state, name)) = &control {
            state.controls().insert(name.clone(), ids.clone());
        }
        let live = ids.iter().copied().map(Some).collect();
        Ok(Self { events, guard: Guard { engine, live, ids, control } })
    }

    /// The next event; `None` after the last choice has ended.
    ///
    /// # Errors
    /// The reader was too slow, or the engine stopped.
    pub async fn next(&mut self) -> Result<Option<ChoiceEvent>, ApiError> {
        if self.guard.live.iter().all(Option::is_none) {
            return Ok(None);
        }
        let Some(event) = self.events.recv().await else {
            let message = "the reply was cancelled: the reader was too slow, or the engine stopped";
            return Err(ApiError::Internal { message: message.to_owned() });
        };
        let id = event.sequence();
        let choice = self.guard.ids.iter().position(|&own| own == id);
        let choice = choice.expect("a sink gets the events of its own sequences");
        if matches!(event, Event::Finish(_)) {
            self.guard.live[choice] = None;
        }
        Ok(Some(ChoiceEvent { choice, event }))
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

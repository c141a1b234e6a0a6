//! Server-sent events: a task writes, the response reads.
//!
//! A stream ends with `data: [DONE]`, or with `event: error` and an error object. Comments keep it
//! alive while nothing is said. The buffer between task and socket is small, so a reader that stops
//! holds its task back, and with it only its own generation.

use crate::error::ApiError;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;
use tokio::sync::mpsc;

/// Events between the task and the socket.
const BUFFER: usize = 16;

/// The writing side of a stream.
pub struct Sender(mpsc::Sender<Event>);

impl Sender {
    /// Sends an object as `data`.
    ///
    /// # Errors
    /// Nobody reads any more.
    pub async fn json(&self, object: &impl Serialize) -> Result<(), ApiError> {
        self.send(Event::default().json_data(object)).await
    }

    /// Sends an object as `data` of a named event.
    ///
    /// # Errors
    /// Nobody reads any more.
    pub async fn named(&self, name: &str, object: &impl Serialize) -> Result<(), ApiError> {
        self.send(Event::default().event(name).json_data(object)).await
    }

    /// Sends OpenAI's end of the stream.
    ///
    /// # Errors
    /// Nobody reads any more.
    pub async fn done(&self) -> Result<(), ApiError> {
        self.send(Ok(Event::default().data("[DONE]"))).await
    }

    async fn send(&self, event: Result<Event, axum::Error>) -> Result<(), ApiError> {
        let internal = |message: String| ApiError::Internal { message };
        let event = event.map_err(|error| internal(error.to_string()))?;
        self.0.send(event).await.map_err(|_| internal("the client went away".to_owned()))
    }
}

/// A response that streams what `write` sends; an error that it returns becomes the last event.
pub fn response<F, W>(keep_alive: Duration, write: W) -> Response
where
    W: FnOnce(Sender) -> F,
    F: Future<Output = Result<(), ApiError>> + Send + 'static,
{
    response_with(keep_alive, write, |error| {
        Event::default().event("error").json_data(error.body()).unwrap_or_default()
    })
}

/// As [`response`], with errors in the caller's form.
pub fn response_with<F, W>(
    keep_alive: Duration,
    write: W,
    error_event: impl FnOnce(ApiError) -> Event + Send + 'static,
) -> Response
where
    W: FnOnce(Sender) -> F,
    F: Future<Output = Result<(), ApiError>> + Send + 'static,
{
    let (sender, mut events) = mpsc::channel(BUFFER);
    let written = write(Sender(sender.clone()));
    tokio::spawn(async move {
        // The task ends with its reader, whatever it waits for.
        let result = tokio::select! {
            result = written => result,
            () = sender.closed() => return,
        };
        if let Err(error) = result {
            // A client that went away needs no error.
            let _ = sender.send(error_event(error)).await;
        }
    });
    let events =
        stream::poll_fn(move |cx| events.poll_recv(cx).map(|e| e.map(Ok::<_, Infallible>)));
    Sse::new(events).keep_alive(KeepAlive::new().interval(keep_alive).text("ping")).into_response()
}

//! From loading to the end: which requests are taken, and when the process may go.
//!
//! Phases only go forward. A request runs from its head until its last byte is handed to the connection.

use std::sync::Arc;
use tokio::sync::watch;

/// Where the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The model is not there yet.
    Loading,
    /// Requests are taken.
    Ready,
    /// Running requests end, new ones are refused.
    Draining,
    /// What still runs is cancelled.
    Ended,
}

impl Phase {
    /// As `/health` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ok",
            Self::Draining | Self::Ended => "draining",
        }
    }
}

/// The phase, and the number of running requests.
pub struct Lifecycle {
    phase: watch::Sender<Phase>,
    running: watch::Sender<usize>,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self { phase: watch::Sender::new(Phase::Loading), running: watch::Sender::new(0) }
    }
}

impl Lifecycle {
    /// The phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Goes on to `phase`; never back.
    pub fn advance(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let later = phase > *now;
            *now = phase.max(*now);
            later
        });
    }

    /// Waits for `phase`, or a later one.
    pub async fn reached(&self, phase: Phase) {
        // The sender is this object: it does not go away while it is borrowed.
        let _ = self.phase.subscribe().wait_for(|now| *now >= phase).await;
    }

    /// Waits until no request runs.
    pub async fn idle(&self) {
        let _ = self.running.subscribe().wait_for(|running| *running == 0).await;
    }

    /// A request begins.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Running {
        self.running.send_modify(|running| *running += 1);
        Running(Arc::clone(self))
    }
}

/// A running request.
pub struct Running(Arc<Lifecycle>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.send_modify(|running| *running -= 1);
    }
}

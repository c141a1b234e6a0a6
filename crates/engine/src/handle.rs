//! An engine on a thread of its own, and the handle that everyone else holds.
//!
//! One OS thread owns the engine. Handles send it commands, which it takes between steps; each
//! request's events go to its [`EventSink`], from that thread. A sink that returns false, or panics,
//! is gone, and its sequences are cancelled. The queue is bounded: a full one refuses at once.
//!
//! Invariants: every sequence that was accepted gets a [`Event::Finish`], unless its sink is gone;
//! the thread outlives panics; the number that wait is exact, requests on their way included.

use crate::engine::Engine;
use crate::error::RequestError;
use crate::isolation::isolated;
use crate::sequence::{Event, GenerationRequest, SequenceId};
use crate::stats::Stats;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Takes the events of a request's sequences. It must not block: it runs on the engine's thread.
/// False: nobody listens any more.
pub type EventSink = Box<dyn FnMut(Event) -> bool + Send>;

/// Told once whether a request was taken, and as which sequences.
type Accepted = Box<dyn FnOnce(Result<Vec<SequenceId>, SubmitError>) + Send>;

/// Why a request did not get into the engine.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// The request itself.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// As many requests wait as may.
    #[error("the queue is full: {waiting} requests wait")]
    QueueFull {
        /// How many wait.
        waiting: usize,
    },
    /// The engine's thread is gone.
    #[error("the engine has stopped")]
    Stopped,
}

enum Command {
    Submit { requests: Vec<GenerationRequest>, sink: EventSink, accepted: Accepted },
    EndThinking { id: SequenceId, done: Box<dyn FnOnce(bool) + Send> },
    Cancel(SequenceId),
    Warm { tokens: Vec<u32>, salt: u64 },
}

/// The sending side. Clones share one engine; when the last one is dropped, the thread finishes
/// what runs and ends.
#[derive(Clone)]
pub struct EngineHandle {
    commands: Sender<Command>,
    shared: Arc<Shared>,
}

struct Shared {
    /// Sequences sent and not in the batch.
    waiting: AtomicUsize,
    max_num_waiting: usize,
    stats: Mutex<Stats>,
    /// The thread ended.
    ended: AtomicBool,
}

impl EngineHandle {
    /// Moves `engine` to a new thread. At most `max_num_waiting` sequences wait for a place.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn spawn(engine: Engine, max_num_waiting: usize) -> std::io::Result<Self> {
        let (commands, received) = channel();
        let waiting = AtomicUsize::new(engine.stats().waiting);
        let (stats, ended) = Default::default();
        let shared = Arc::new(Shared { waiting, max_num_waiting, stats, ended });
        let (sinks, counted) = (HashMap::new(), engine.stats().waiting);
        let owner = Owner { engine, sinks, shared: Arc::clone(&shared), counted };
        std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || owner.run(&received))?;
        Ok(Self { commands, shared })
    }

    /// Sends the choices of one request: the same prompt, each with its own seed. `accepted` is
    /// told before the first event comes.
    ///
    /// # Errors
    /// The queue is full, or the engine has stopped; then neither closure is called.
    pub fn submit(
        &self,
        requests: Vec<GenerationRequest>,
        sink: EventSink,
        accepted: impl FnOnce(Result<Vec<SequenceId>, SubmitError>) + Send + 'static,
    ) -> Result<(), SubmitError> {
        let count = requests.len();
        let waiting = self.shared.waiting.fetch_add(count, Ordering::Relaxed);
        let refused = || self.shared.waiting.fetch_sub(count, Ordering::Relaxed);
        if waiting > 0 && waiting + count > self.shared.max_num_waiting {
            refused();
            return Err(SubmitError::QueueFull { waiting });
        }
        let accepted = Box::new(accepted);
        self.commands.send(Command::Submit { requests, sink, accepted }).map_err(|_| {
            refused();
            SubmitError::Stopped
        })
    }

    /// Ends the thinking section of a sequence; `done` learns whether it was thinking.
    ///
    /// # Errors
    /// The engine has stopped.
    pub fn end_thinking(
        &self,
        id: SequenceId,
        done: impl FnOnce(bool) + Send + 'static,
    ) -> Result<(), SubmitError> {
        let command = Command::EndThinking { id, done: Box::new(done) };
        self.commands.send(command).map_err(|_| SubmitError::Stopped)
    }

    /// Cancels a sequence. Unknown ones are left alone: it may have just ended.
    pub fn cancel(&self, id: SequenceId) {
        // An engine that has stopped runs nothing.
        let _ = self.commands.send(Command::Cancel(id));
    }

    /// Whether the engine's thread still runs: it ends after its last handle.
    pub fn is_alive(&self) -> bool {
        !self.shared.ended.load(Ordering::Acquire)
    }

    /// Has `tokens` read when nothing else is to do, as [`Engine::warm`].
    pub fn warm(&self, tokens: Vec<u32>, salt: u64) {
        // An engine that has stopped needs no warm-up.
        let _ = self.commands.send(Command::Warm { tokens, salt });
    }

    /// What the engine does, as of its last step; the number that wait is of this moment.
    pub fn stats(&self) -> Stats {
        let stats = *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        Stats { waiting: self.shared.waiting.load(Ordering::Relaxed), ..stats }
    }
}

/// The engine's thread.
struct Owner {
    engine: Engine,
    sinks: HashMap<SequenceId, Arc<Mutex<EventSink>>>,
    shared: Arc<Shared>,
    /// Those of `shared.waiting` that wait in the engine.
    counted: usize,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
    }
}

impl Owner {
    fn run(mut self, commands: &Receiver<Command>) {
        let mut events = Vec::new();
        self.publish(0);
        loop {
            if self.engine.is_idle() {
                let Ok(command) = commands.recv() else { return };
                self.take(command);
            }
            let connected = loop {
                match commands.try_recv() {
                    Ok(command) => self.take(command),
                    Err(TryRecvError::Empty) => break true,
                    Err(TryRecvError::Disconnected) => break false,
                }
            };
            if !connected && self.engine.has_no_requests() {
                return;
            }
            if let Err(error) = isolated(|| self.engine.step(&mut events)) {
                self.engine.fail_all(&error, &mut events);
            }
            for event in events.drain(..) {
                self.deliver(event);
            }
            self.publish(0);
        }
    }

    fn take(&mut self, command: Command) {
        let taken = match &command {
            Command::Submit { requests, .. } => requests.len(),
            _ => 0,
        };
        // A panic is one in a closure of the sender, or that of a request that then was not added.
        let _ = isolated(|| self.obey(command));
        self.publish(taken);
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit { requests, sink, accepted } => {
                let result = self.engine.add_choices(requests);
                if let Ok(ids) = &result {
                    let sink = Arc::new(Mutex::new(sink));
                    self.sinks.extend(ids.iter().map(|&id| (id, Arc::clone(&sink))));
                }
                accepted(result.map_err(SubmitError::from));
            }
            Command::EndThinking { id, done } => done(self.engine.end_thinking(id)),
            Command::Cancel(id) => {
                self.engine.cancel(id);
            }
            Command::Warm { tokens, salt } => {
                self.engine.warm(tokens, salt);
            }
        }
    }

    fn deliver(&mut self, event: Event) {
        let id = event.sequence();
        let last = matches!(event, Event::Finish(_));
        let Some(sink) = self.sinks.get(&id) else { return };
        let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
        let listening = isolated(|| sink(event)).unwrap_or(false);
        drop(sink);
        if last || !listening {
            self.sinks.remove(&id);
        }
        if !last && !listening {
            self.engine.cancel(id);
        }
    }

    /// Shows what the engine does; `taken` sequences that were on their way are with it now.
    fn publish(&mut self, taken: usize) {
        let stats = self.engine.stats();
        let change = stats.waiting.wrapping_sub(self.counted).wrapping_sub(taken);
        self.counted = stats.waiting;
        self.shared.waiting.fetch_add(change, Ordering::Relaxed);
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }
}

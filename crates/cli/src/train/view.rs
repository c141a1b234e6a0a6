//! What a person or a machine sees of a run while it goes.
//!
//! On a terminal one line on stderr: loss, gradient norm, learning rate, tokens per second, time
//! left. In a pipe, a line every half minute. With `--json`, one object per event on stdout.

use hybra_train::log::{StepLog, StepTiming};
use hybra_train::{Event, Outcome};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Between two lines where there is no terminal.
const PAUSE: Duration = Duration::from_secs(30);

/// The view of a run.
pub(crate) struct View {
    is_json: bool,
    bar: ProgressBar,
    is_terminal: bool,
    spoke: Option<Instant>,
    /// Of the loop, for a smooth speed: since when, and tokens.
    since: Instant,
    tokens_before: Option<u64>,
}

impl View {
    /// A view that shows nothing yet.
    pub(crate) fn new(is_json: bool) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template("{bar:20} {pos}/{len} {wide_msg} eta {eta}");
        bar.set_style(style.expect("the template is well formed").progress_chars("█▉▊▋▌▍▎▏ "));
        let since = Instant::now();
        Self { is_json, bar, is_terminal, spoke: None, since, tokens_before: None }
    }

    /// Shows an event.
    pub(crate) fn show(&mut self, event: &Event) {
        if self.is_json {
            println!("{}", as_json(event));
            return;
        }
        match event {
            Event::Started { step, steps, from } => {
                if let Some(from) = from {
                    self.say(&format!("resumed from {} (step {step} of {steps})", from.display()));
                }
                self.since = Instant::now();
                self.bar.set_length(*steps);
                self.bar.set_position(*step);
                self.bar.reset_eta();
                if self.is_terminal {
                    self.bar.set_draw_target(ProgressDrawTarget::stderr());
                }
            }
            Event::Warning(text) => self.say(&format!("warning: {text}")),
            Event::Note(text) => self.say(text),
            Event::Step(log, timing) => self.step(log, timing),
            // A checkpoint is worth a line only to a machine.
            Event::Saved(_) => {}
        }
    }

    fn step(&mut self, log: &StepLog, timing: &StepTiming) {
        let first = timing.seconds * timing.tokens_per_second;
        let before = *self.tokens_before.get_or_insert(log.tokens - first as u64);
        let speed = (log.tokens - before) as f64 / self.since.elapsed().as_secs_f64().max(1e-9);
        let text = format!(
            "loss {:.4}  grad {:.3}  lr {:.2e}  {speed:.0} tok/s",
            log.loss, log.grad_norm, log.lr
        );
        self.bar.set_position(log.step);
        if self.is_terminal {
            self.bar.set_message(text);
        } else if self.spoke.is_none_or(|spoke| spoke.elapsed() > PAUSE) {
            self.spoke = Some(Instant::now());
            eprintln!("step {}: {text}", log.step);
        }
        for (name, value) in &log.eval {
            self.say(&format!("step {}: {name} {value:.4}", log.step));
        }
    }

    /// A line that stays, above the bar.
    fn say(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    /// Says how the run ended.
    pub(crate) fn end(&self, outcome: &Outcome) {
        self.bar.finish_and_clear();
        let (path, how) = match outcome {
            Outcome::Done(path) => (path, "done"),
            Outcome::Stopped(path) => (path, "stopped"),
        };
        if self.is_json {
            println!("{}", json!({ "event": how, "path": path.display().to_string() }));
        } else if how == "done" {
            println!("{}", path.display());
        } else {
            eprintln!("stopped; the same command goes on from {}", path.display());
        }
    }
}

fn as_json(event: &Event) -> Value {
    match event {
        Event::Started { step, steps, from } => {
            let from = from.map(|path| path.display().to_string());
            json!({ "event": "started", "step": step, "steps": steps, "from": from })
        }
        Event::Warning(text) => json!({ "event": "warning", "message": text }),
        Event::Note(text) => json!({ "event": "note", "message": text }),
        Event::Step(log, timing) => json!({
            "event": "step",
            "log": log,
            "seconds": timing.seconds,
            "tokens_per_second": timing.tokens_per_second,
        }),
        Event::Saved(path) => json!({ "event": "saved", "path": path.display().to_string() }),
    }
}

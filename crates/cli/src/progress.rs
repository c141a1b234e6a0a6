//! Progress bars on stderr.
//!
//! A bar appears only on a terminal and only once its work has taken half a second, and leaves
//! nothing behind: results are printed by the command. Output of a pipe never holds one.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// Work shorter than this shows no bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// A bar over a known amount of work.
pub(crate) struct Progress {
    bar: ProgressBar,
    started: Instant,
    shown: bool,
}

impl Progress {
    /// A bar over `total` bytes, with rate and remaining time.
    pub(crate) fn bytes(what: &str, total: u64) -> Self {
        let template = "{prefix} {bar:24} {percent:>3}% {bytes}/{total_bytes} \
                        {binary_bytes_per_sec} eta {eta} {wide_msg}";
        Self::new(what, total, template)
    }

    /// A bar over `total` pieces.
    pub(crate) fn pieces(what: &str, total: u64) -> Self {
        Self::new(what, total, "{prefix} {bar:24} {percent:>3}% {pos}/{len} eta {eta} {wide_msg}")
    }

    fn new(what: &str, total: u64, template: &str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template(template).expect("the template is well formed");
        bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
        bar.set_prefix(what.to_owned());
        Self { bar, started: Instant::now(), shown: false }
    }

    /// Names what is being worked on.
    pub(crate) fn message(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    /// Adds to what is done.
    pub(crate) fn advance(&mut self, amount: u64) {
        self.show_when_slow();
        self.bar.inc(amount);
    }

    /// Sets what is done.
    pub(crate) fn set(&mut self, done: u64) {
        self.show_when_slow();
        self.bar.set_position(done);
    }

    /// Since the bar was made.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn show_when_slow(&mut self) {
        if !self.shown && self.started.elapsed() > PATIENCE {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.shown = true;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

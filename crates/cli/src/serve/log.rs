//! The log: to stderr, for people or as JSON. Control characters in values are escaped by both.

use super::args::{LogArgs, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

/// Sends what the server says to stderr. Libraries are heard from `warn` up.
pub(super) fn init(args: &LogArgs) {
    let level = args.log_level;
    let targets = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_targets([("hybra", level), ("hybra_server", level)]);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match args.log_format {
        LogFormat::Human => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(targets)).init();
}

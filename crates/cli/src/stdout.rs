//! Printing that survives a reader who leaves: `hybra inspect X | head` ends quietly.
//!
//! Comes first in `main.rs`, so that `print!` and `println!` mean these everywhere in the crate.

use std::io::{ErrorKind, Write};

/// Writes to stdout. A closed pipe ends the program as if it were done; any other failure, such
/// as a full disk, ends it with an error.
pub(crate) fn write(text: std::fmt::Arguments) {
    if let Err(error) = std::io::stdout().write_fmt(text) {
        if error.kind() != ErrorKind::BrokenPipe {
            eprintln!("error: standard output: {error}");
        }
        std::process::exit(i32::from(error.kind() != ErrorKind::BrokenPipe));
    }
}

/// Whether `error` only says that nobody reads the output any more.
pub(crate) fn is_closed(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|io| io.kind() == ErrorKind::BrokenPipe)
}

macro_rules! print {
    ($($arg:tt)*) => { $crate::stdout::write(format_args!($($arg)*)) };
}

macro_rules! println {
    () => { $crate::stdout::write(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::stdout::write(format_args!("{}\n", format_args!($($arg)*))) };
}

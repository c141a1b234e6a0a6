//! The template engine as `transformers` sets it up, and the limits it runs under.
//!
//! Block trimming on, `raise_exception`, `strftime_now`, `tojson`, Python's string and dict
//! methods, loop controls. Fuel bounds time and memory (the engine charges it for bytes too),
//! [`CappedOutput`] bounds the prompt, and [`with_limits`] gives parser and interpreter a deadline
//! and a stack that the size and fuel limits cannot exhaust.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, State, Value};

use crate::TemplateError;
use crate::tojson::tojson;

/// Largest template source in bytes; published ones have below 30,000.
pub(crate) const MAX_SOURCE_BYTES: usize = 128 * 1024;
/// Steps of one rendering; 64 bytes of string cost one. A conversation of a million characters in
/// a thousand messages takes below 200,000.
pub(crate) const FUEL: u64 = 2_000_000;
/// Largest prompt in bytes.
pub(crate) const MAX_OUTPUT_BYTES: usize = 64 << 20;
/// Stack of the rendering thread: reserved address space, touched only as far as it is used. The
/// deepest recursion found within the limits (a chain of signs of the largest source, lists nested
/// until the fuel is gone) takes 64 MiB.
const STACK_BYTES: usize = 256 << 20;
/// Longest rendering; real ones take milliseconds.
const DEADLINE: Duration = Duration::from_secs(5);

/// Name of the only template in an environment.
pub(crate) const NAME: &str = "chat";

/// The text given to `raise_exception`.
#[derive(Debug)]
pub(crate) struct Raised(pub(crate) String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// An environment that holds `source` under [`NAME`].
pub(crate) fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    env.set_syntax(syntax);
    env.set_fuel(Some(FUEL));
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_filter("tojson", tojson);
    env.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        let message = message.to_string();
        let error = Error::new(ErrorKind::InvalidOperation, message.clone());
        Err(error.with_source(Raised(message)))
    });
    env.add_function("strftime_now", |state: &State, format: &str| -> Result<String, Error> {
        let seconds = state.lookup(NOW).and_then(|v| v.as_i64());
        strftime(format, seconds.unwrap_or_else(|| unix_seconds(SystemTime::now())))
    });
    env.add_template_owned(NAME, source.to_owned())?;
    Ok(env)
}

/// Variable that carries the time for `strftime_now`, in seconds since 1970 (UTC).
pub(crate) const NOW: &str = "__now";

/// Seconds since 1970; times before it count as 1970.
pub(crate) fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs().min(1 << 40) as i64)
}

/// Runs `work` on a thread with a stack that templates within the limits cannot overflow, for at
/// most [`DEADLINE`].
///
/// Fuel counts instructions and bytes, but some operations cost more than they are charged (slices
/// of slices, folding of long constant chains). The engine cannot be interrupted, so on a timeout
/// the thread is left to its fuel; the caller must not start another one meanwhile.
pub(crate) fn with_limits<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TemplateError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("chat-template".to_owned())
        .stack_size(STACK_BYTES)
        // The receiver is gone after a timeout; then nobody wants the result.
        .spawn(move || drop(sender.send(work())))
        .map_err(|e| TemplateError::Thread(e.to_string()))?;
    receiver.recv_timeout(DEADLINE).map_err(|error| match error {
        RecvTimeoutError::Timeout => TemplateError::Timeout { seconds: DEADLINE.as_secs() },
        RecvTimeoutError::Disconnected => {
            TemplateError::Render("the template engine panicked".to_owned())
        }
    })
}

/// Collects output up to [`MAX_OUTPUT_BYTES`].
#[derive(Default)]
pub(crate) struct CappedOutput {
    pub(crate) bytes: Vec<u8>,
    pub(crate) full: bool,
}

impl io::Write for &mut CappedOutput {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + piece.len() > MAX_OUTPUT_BYTES {
            self.full = true;
            return Err(io::Error::other("prompt too large"));
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// `time.strftime` in UTC for the codes that templates use.
fn strftime(format: &str, seconds: i64) -> Result<String, Error> {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let code = chars.next();
        let piece = code.and_then(|code| strftime_code(code, seconds)).ok_or_else(|| {
            let code = code.map_or_else(String::new, String::from);
            let message = format!("strftime_now: unsupported code %{code}");
            Error::new(ErrorKind::InvalidOperation, message)
        })?;
        out.push_str(&piece);
    }
    Ok(out)
}

fn strftime_code(code: char, seconds: i64) -> Option<String> {
    let days = seconds.div_euclid(86_400);
    let (year, month, day) = civil_from_days(days);
    let (weekday, of_day) = (DAYS[days.rem_euclid(7) as usize], seconds.rem_euclid(86_400));
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let name = MONTHS[month as usize - 1];
    Some(match code {
        'Y' => year.to_string(),
        'y' => format!("{:02}", year.rem_euclid(100)),
        'm' => format!("{month:02}"),
        'd' => format!("{day:02}"),
        'e' => format!("{day:2}"),
        'H' => format!("{hour:02}"),
        'I' => format!("{:02}", (hour + 11) % 12 + 1),
        'M' => format!("{minute:02}"),
        'S' => format!("{second:02}"),
        'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
        'B' => name.to_owned(),
        'b' => name[..3].to_owned(),
        'A' => weekday.to_owned(),
        'a' => weekday[..3].to_owned(),
        'F' => format!("{year}-{month:02}-{day:02}"),
        'T' => format!("{hour:02}:{minute:02}:{second:02}"),
        'Z' => "UTC".to_owned(),
        '%' => "%".to_owned(),
        _ => return None,
    })
}

/// Year, month and day of a day number since 1970-01-01 (Hinnant, `civil_from_days`).
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    (year, month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_at_known_points() {
        // 2000-02-29 13:05:09, a Tuesday.
        let text = strftime("%A %a %d %B %b %Y %y %H %I %M %S %p %F %T %%", 951_829_509).unwrap();
        assert_eq!(
            text,
            "Tuesday Tue 29 February Feb 2000 00 13 01 05 09 PM 2000-02-29 13:05:09 %"
        );
        assert_eq!(strftime("%F %A", 0).unwrap(), "1970-01-01 Thursday");
        assert!(strftime("%Q", 0).is_err() && strftime("100%", 0).is_err());
    }
}

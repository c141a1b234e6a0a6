//! Tasks with verifiers, and accuracy against thinking budget.
//!
//! What always holds:
//! - An example is a pure function of (task, options, seed, index): [`Task::example`].
//! - A structure (a program up to the names in it, a pair of operands, a wording) belongs to exactly
//!   one [`Split`], whatever the seed and the task that uses it.
//! - The conversation of an example satisfies its own verifier, [`Example::verify`].
//! - Measuring knows an engine and a chat model, and not how they were trained.
#![forbid(unsafe_code)]

mod about;
mod arithmetic;
mod budget;
mod chainbox;
mod conversation;
mod error;
mod example;
mod format;
mod generate;
mod invented;
mod json_lines;
pub mod judge;
mod op;
mod random;
mod recall;
mod report;
mod split;
mod svg;
mod task;
mod tools;
mod verify;

pub use budget::Budget;
pub use error::{DataError, EvalError, TaskError};
pub use example::Example;
pub use generate::{EvalOptions, evaluate};
pub use json_lines::{read_examples, read_questions, write_examples};
pub use report::{Accuracy, Rate, Report, Row, wilson};
pub use split::{Phrasing, Split};
pub use svg::svg;
pub use task::{Task, TaskOptions};
pub use verify::Call;

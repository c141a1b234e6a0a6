//! What can be wrong with a task, a file of examples, or a model that is measured.

use hybra_chat::ChatError;
use hybra_engine::RequestError;

/// A task that cannot be made as asked for.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TaskError {
    /// No task of this name.
    #[error("task: expected {expected}, found {found:?}")]
    Unknown {
        /// The names.
        expected: String,
        /// As given.
        found: String,
    },
    /// The difficulty leaves nothing of a split.
    #[error(
        "max_difficulty: the {split} split of {task} has difficulties {low} to {high}; expected \
         at least {low}, found {found}"
    )]
    Difficulty {
        /// The task.
        task: &'static str,
        /// Its split.
        split: &'static str,
        /// Least difficulty.
        low: u32,
        /// Greatest difficulty.
        high: u32,
        /// As given.
        found: u32,
    },
}

/// A file of examples that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file.
    #[error("{file}: {cause}")]
    Io {
        /// Its path.
        file: String,
        /// What the system says.
        cause: std::io::Error,
    },
    /// A line that is no example.
    #[error("{file}:{line}: {reason}")]
    Line {
        /// Path of the file.
        file: String,
        /// Its line, from 1.
        line: usize,
        /// What is wrong, with field, expected and found.
        reason: String,
    },
    /// A file without examples.
    #[error("{file}: expected a line of JSON for each example, found none")]
    Empty {
        /// Its path.
        file: String,
    },
}

/// Why a model cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A conversation that the model's template refuses.
    #[error("example {index}: {cause}")]
    Chat {
        /// Place of the example, from 0.
        index: usize,
        /// What is wrong.
        cause: ChatError,
    },
    /// A request that the engine refuses.
    #[error("example {index}: {cause}")]
    Request {
        /// Place of the example, from 0.
        index: usize,
        /// What is wrong.
        cause: RequestError,
    },
    /// The engine failed in the middle.
    #[error("example {index}: generation failed: {reason}")]
    Failed {
        /// Place of the example, from 0.
        index: usize,
        /// What the engine says.
        reason: String,
    },
    /// Nothing to measure with.
    #[error("{field}: expected at least one, found none")]
    Nothing {
        /// `examples` or `budgets`.
        field: &'static str,
    },
    /// Text that is no budget.
    #[error("budgets: expected off, inf or a number of tokens, found {found:?}")]
    Budget {
        /// As given.
        found: String,
    },
}

//! The tasks of `hybra_eval` as generators: always of the split that is for training.

use super::source::Generator;
use hybra_eval::{Example, Phrasing, Split, Task, TaskOptions};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// `args` of a source.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Args {
    /// Another seed gives other examples.
    seed: u64,
    /// `terse`, `natural` or `mixed`.
    phrasing: String,
    /// No example is more difficult.
    max_difficulty: Option<u32>,
}

impl Default for Args {
    fn default() -> Self {
        Self { seed: 0, phrasing: Phrasing::default().name().to_owned(), max_difficulty: None }
    }
}

/// The examples of a task's training split, by index.
///
/// # Errors
/// An unknown task or argument, or an argument out of range.
pub fn task_examples(
    name: &str,
    args: &Map<String, Value>,
) -> Result<Box<dyn Fn(u64) -> Example + Send + Sync>, String> {
    let task: Task = name.parse().map_err(|error: hybra_eval::TaskError| error.to_string())?;
    let args: Args = serde_json::from_value(json!(args)).map_err(|error| error.to_string())?;
    let phrasing = args.phrasing.parse().map_err(|error| format!("phrasing: {error}"))?;
    let options =
        TaskOptions { split: Split::Train, phrasing, max_difficulty: args.max_difficulty };
    // What the options allow does not depend on the index.
    task.example(options, args.seed, 0).map_err(|error| error.to_string())?;
    Ok(Box::new(move |index| task.example(options, args.seed, index).expect("as for index 0")))
}

/// The generator of a task's training split.
///
/// # Errors
/// As of [`task_examples`].
pub fn task_generator(name: &str, args: &Map<String, Value>) -> Result<Generator, String> {
    let examples = task_examples(name, args)?;
    Ok(Box::new(move |index| {
        let mut record = examples(index).to_json();
        if let Some(record) = record.as_object_mut() {
            record.retain(|key, _| key == "messages" || key == "tools");
        }
        record
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_conversations_and_arguments_are_checked() {
        for task in Task::ALL {
            let generator = task_generator(task.name(), &Map::new()).unwrap();
            assert_eq!(generator(7), generator(7));
            assert_ne!(generator(7), generator(8), "{task}");
            assert!(generator(7)["messages"].is_array());
        }
        let error = |name: &str, args: Value| {
            task_generator(name, args.as_object().unwrap()).err().unwrap()
        };
        assert!(error("sudoku", json!({})).contains("chainbox"));
        assert!(error("chainbox", json!({"depth": 1})).contains("depth"));
        assert!(error("chainbox", json!({"phrasing": "rude"})).contains("rude"));
        assert!(error("chainbox", json!({"max_difficulty": 0})).contains('0'));
    }
}

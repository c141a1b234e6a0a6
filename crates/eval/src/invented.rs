//! Whether a reply holds a number that nobody told it: an invented result.
//!
//! Told are the numbers in the texts of the turns before it, whoever wrote them (user, tool
//! results), and in the arguments of the calls among them. Numbers of a reply are those of its
//! answer and of its calls' arguments; thinking does not count. Numbers are equal as values: `7.0`
//! and `07` are `7`, and `-7` is not. A right answer that computes is "invented" by this definition,
//! so it says something where numbers come from functions alone.

use crate::conversation::text;
use crate::example::Example;
use crate::verify::{Call, calls_of, numbers};

impl Example {
    /// Whether a reply with this `answer` and these `calls` at turn `turn`, an assistant's, holds a
    /// number that stands in no turn before it.
    #[must_use]
    pub fn invents(&self, turn: usize, answer: &str, calls: &[Call]) -> bool {
        let before = &self.messages[..turn];
        let earlier: Vec<Call> = before.iter().flat_map(calls_of).collect();
        let texts = before.iter().map(text);
        let told: Vec<&str> = texts.chain(arguments(&earlier)).flat_map(numbers).collect();
        let mut said = [answer].into_iter().chain(arguments(calls)).flat_map(numbers);
        said.any(|number| !told.iter().any(|other| equal(number, other)))
    }
}

fn arguments(calls: &[Call]) -> impl Iterator<Item = &str> {
    calls.iter().map(|call| call.arguments.as_str())
}

/// Equal as values; what is no number, as a version or a date, as text.
fn equal(a: &str, b: &str) -> bool {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::{assistant, calling, tool, user};
    use crate::task::Task;
    use serde_json::json;

    fn call(name: &str, arguments: &str) -> Call {
        Call { name: name.to_owned(), arguments: arguments.to_owned() }
    }

    /// Turns 1, 3 and 5 are the assistant's: find ann, get 42, say 17. 33 is thought, never told.
    fn example() -> Example {
        let (find, get) =
            (call("find_user", r#"{"name": "ann"}"#), call("get_age", r#"{"id": 42}"#));
        Example {
            task: Some(Task::Tools),
            messages: vec![
                user("Age of ann, 5 words?"),
                calling("33", "call_1", &find),
                tool("call_1", r#"{"id": 42}"#),
                calling("id=42", "call_2", &get),
                tool("call_2", r#"{"age": 17}"#),
                assistant("age=17", "The age of ann is 17."),
            ],
            tools: vec![json!({ "minimum": 99 })],
            answer: "17".to_owned(),
            difficulty: 2,
            structure: String::new(),
        }
    }

    #[test]
    fn numbers_that_nobody_told_are_invented() {
        let example = example();
        for (turn, answer, invented) in [
            (5, "The age of ann is 17.", false),
            (5, "17.0, of id 42 with 5 words", false),
            (5, "I could not find the user ann.", false),
            (5, "", false),
            (5, "The age of ann is 18.", true),
            (5, "It is -17.", true),
            (5, "17, or 33", true),
            // Neither ids of calls nor definitions tell a number.
            (5, "It is 2.", true),
            (5, "It is 99.", true),
            // Not yet told.
            (3, "The age of ann is 17.", true),
            (1, "The age of ann is 5.", false),
            (1, "The age of ann is 42.", true),
        ] {
            assert_eq!(example.invents(turn, answer, &[]), invented, "{turn} {answer}");
        }
    }

    #[test]
    fn an_id_that_nobody_told_is_invented() {
        let example = example();
        let get = |id: &str| call("get_age", &format!("{{\"id\": {id}}}"));
        assert!(!example.invents(3, "", &[get("42")]));
        assert!(!example.invents(3, "", &[get("\"42\"")]));
        assert!(example.invents(3, "", &[get("24")]));
        assert!(example.invents(3, "", &[get("42"), get("24")]));
        assert!(example.invents(1, "", &[get("42")]));
        assert!(!example.invents(1, "", &[call("find_user", r#"{"name": "bob"}"#)]));
        // A number once in a call is told.
        let mut without = example;
        without.messages[2] = tool("call_1", "{}");
        assert!(without.invents(3, "", &[get("42")]));
        assert!(!without.invents(5, "42", &[]));
    }

    #[test]
    fn what_is_no_number_is_compared_as_text() {
        let mut example = example();
        example.messages[0] = user("version 1.2.3, or 07?");
        for (answer, invented) in [("1.2.3", false), ("1.2.4", true), ("1.2", true), ("7", false)] {
            assert_eq!(example.invents(5, answer, &[]), invented, "{answer}");
        }
    }
}

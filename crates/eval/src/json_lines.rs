//! Files of examples: one object a line.

use crate::error::DataError;
use crate::example::Example;
use std::io::{BufRead, Write};

/// Reads all examples of `reader`; `file` is its name in errors. Empty lines are skipped.
///
/// # Errors
/// A line that is no example, with its number; a file without examples.
pub fn read_examples(reader: impl BufRead, file: &str) -> Result<Vec<Example>, DataError> {
    let mut examples = Vec::new();
    for (number, line) in (1..).zip(reader.lines()) {
        let line = line.map_err(|cause| DataError::Io { file: file.to_owned(), cause })?;
        if line.trim().is_empty() {
            continue;
        }
        let example = Example::from_json(&line).map_err(|reason| DataError::Line {
            file: file.to_owned(),
            line: number,
            reason,
        })?;
        examples.push(example);
    }
    if examples.is_empty() {
        return Err(DataError::Empty { file: file.to_owned() });
    }
    Ok(examples)
}

/// Writes one line for each example.
///
/// # Errors
/// What the writer says.
pub fn write_examples<'a>(
    writer: &mut dyn Write,
    examples: impl IntoIterator<Item = &'a Example>,
) -> std::io::Result<()> {
    examples.into_iter().try_for_each(|example| writeln!(writer, "{}", example.to_json()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        read_examples(text.as_bytes(), "x.jsonl").unwrap_err().to_string()
    }

    #[test]
    fn a_fault_names_file_line_field_and_what_was_found() {
        let good =
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;
        let read = read_examples(good.as_bytes(), "x").unwrap();
        assert_eq!((read.len(), read[0].answer.as_str(), read[0].task), (1, "b", None));
        for (line, parts) in [
            (r#"{"messages":[]}"#, ["x.jsonl:2: messages", "found none"]),
            (r#"{"messages":[{"role":"user","content":"a"}]}"#, ["assistant's", "found user"]),
            (r#"{"message":[]}"#, ["unknown field `message`", "x.jsonl:2"]),
            ("{", ["x.jsonl:2", "EOF"]),
            (&good.replace("]}", r#"],"task":"chess"}"#), ["chainbox", "\"chess\""]),
        ] {
            let found = error(&format!("\n{line}\n"));
            assert!(parts.iter().all(|part| found.contains(part)), "{found}");
        }
        assert!(error("\n\n").contains("found none"));
    }
}

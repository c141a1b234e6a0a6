//! Files of examples: one object a line.

use crate::error::DataError;
use crate::example::Example;
use std::io::{BufRead, Write};

/// Reads all examples of `reader`; `file` is its name in errors. Empty lines are skipped.
///
/// # Errors
/// A line that is no example, with its number; a file without examples.
pub fn read_examples(reader: impl BufRead, file: &str) -> Result<Vec<Example>, DataError> {
    read(reader, file, Example::from_json)
}

/// As [`read_examples`], of conversations that may end before the answer.
///
/// # Errors
/// As [`read_examples`].
pub fn read_questions(reader: impl BufRead, file: &str) -> Result<Vec<Example>, DataError> {
    read(reader, file, Example::from_json_or_question)
}

fn read(
    reader: impl BufRead,
    file: &str,
    parse: fn(&str) -> Result<Example, String>,
) -> Result<Vec<Example>, DataError> {
    let mut examples = Vec::new();
    for (number, line) in (1..).zip(reader.lines()) {
        let line = line.map_err(|cause| DataError::Io { file: file.to_owned(), cause })?;
        if line.trim().is_empty() {
            continue;
        }
        let example = parse(&line).map_err(|reason| DataError::Line {
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

    #[test]
    fn a_question_alone_is_asked_at_its_end_and_nothing_is_right() {
        let text = r#"{"prompt":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}]}"#;
        let read = read_questions(text.as_bytes(), "x").unwrap();
        assert!(read[0].is_question() && read[0].asked_turns() == [3]);
        assert!(!read[0].verify_turn(3, "", &[]));
        let whole = text.replace("]}", r#",{"role":"assistant","content":"d"}]}"#);
        let read = read_questions(whole.as_bytes(), "x").unwrap();
        assert_eq!((read[0].asked_turns(), read[0].answer.as_str()), (vec![1, 3], "d"));
        let open = r#"{"messages":[{"role":"system","content":"a"}]}"#;
        let error = read_questions(open.as_bytes(), "x.jsonl").unwrap_err().to_string();
        assert!(error.contains("x.jsonl:1") && error.contains("found system"), "{error}");
        let lost = r#"{"prompt":[{"role":"user","content":"a"}],"answer":"b"}"#;
        let error = read_questions(lost.as_bytes(), "x").unwrap_err().to_string();
        assert!(error.contains("with the `answer`") && error.contains("found user"), "{error}");
    }
}

//! The rules that every file keeps, one file per rule.
//!
//! A rule is a pure function from one source file to its findings; its tests show a file that
//! breaks it and one that keeps it.

pub(crate) mod arch;
pub(crate) mod header;
pub(crate) mod house;
pub(crate) mod size;
pub(crate) mod unsafe_code;

use std::fmt;

use crate::lexer::{Token, code_of, tokens};

/// A broken rule and where.
#[derive(Debug)]
pub(crate) struct Finding {
    /// Path from the project's root, with `/`.
    pub(crate) path: String,
    /// Line in the file, from 1.
    pub(crate) line: usize,
    /// What is wrong and what the rule allows.
    pub(crate) message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// A Rust file as the rules see it.
pub(crate) struct Source {
    /// Path from the project's root, with `/`.
    pub(crate) path: String,
    /// The file as it is.
    pub(crate) text: String,
    /// The text with comments and literals blanked, line for line.
    pub(crate) code: String,
}

impl Source {
    /// Reduces `text` to its code.
    pub(crate) fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { path: path.into(), code: code_of(&text), text }
    }

    /// The tokens of the code.
    pub(crate) fn tokens(&self) -> Vec<Token<'_>> {
        tokens(&self.code)
    }

    /// Whether the file is `{stem}.rs` or lies in the folder `stem`.
    pub(crate) fn is_module(&self, stem: &str) -> bool {
        let rest = self.path.strip_prefix(stem);
        rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    }

    /// Whether the file lies in one of `folders`.
    pub(crate) fn is_under(&self, folders: &[&str]) -> bool {
        folders
            .iter()
            .any(|folder| self.path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')))
    }

    /// Whether the whole file is test, benchmark or example code.
    pub(crate) fn is_test_file(&self) -> bool {
        let mut parts = self.path.split('/');
        parts.any(|p| matches!(p, "tests" | "tests.rs" | "benches" | "examples" | "testdata"))
    }

    /// A finding in this file.
    pub(crate) fn finding(&self, line: usize, message: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line, message: message.into() }
    }
}

/// All findings in one Rust file.
pub(crate) fn check_source(file: &Source) -> Vec<Finding> {
    let rules = [unsafe_code::check, arch::check, header::check, house::check, size::check];
    rules.iter().flat_map(|rule| rule(file)).collect()
}

/// Runs `rule` over a made-up file and gives the findings as `line: message`.
#[cfg(test)]
fn findings_of(rule: fn(&Source) -> Vec<Finding>, path: &str, text: &str) -> Vec<String> {
    let findings = rule(&Source::new(path, text));
    findings.into_iter().map(|f| format!("{}: {}", f.line, f.message)).collect()
}

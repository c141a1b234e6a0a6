//! Lengths of the runs that are compared.

use crate::size;
use serde::Serialize;
use std::fmt;

/// A run: a prompt is read, then an output generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct RunPoint {
    /// Tokens of the prompt.
    pub(crate) prompt: usize,
    /// Tokens generated.
    pub(crate) output: usize,
}

impl RunPoint {
    /// The published one first; the others take either part of it away.
    pub(crate) const ALL: [Self; 4] = [
        Self { prompt: 8 << 10, output: 16 << 10 },
        Self { prompt: 8 << 10, output: 1 << 10 },
        Self { prompt: 1 << 10, output: 8 << 10 },
        Self { prompt: 1 << 10, output: 1 << 10 },
    ];

    /// Tokens of a sequence at the end.
    pub(crate) fn context(self) -> usize {
        self.prompt + self.output
    }
}

/// Reads `8k/16k`.
pub(crate) fn parse(text: &str) -> Result<RunPoint, String> {
    let wrong = || format!("expected PROMPT/OUTPUT such as 8k/16k, found {text:?}");
    let (prompt, output) = text.split_once('/').ok_or_else(wrong)?;
    let tokens = |part: &str| match size::parse_tokens(part) {
        Ok(tokens @ ..=0x100_0000) => Ok(tokens as usize),
        _ => Err(wrong()),
    };
    Ok(RunPoint { prompt: tokens(prompt)?, output: tokens(output)? })
}

impl fmt::Display for RunPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |tokens: usize| match tokens % 1024 {
            0 => format!("{}k", tokens / 1024),
            _ => tokens.to_string(),
        };
        write!(f, "{}/{}", short(self.prompt), short(self.output))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_read_back() {
        for text in ["8k/16k", "1k/1k", "64/32", "1000/1k"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        assert_eq!(parse("8k/16k"), Ok(RunPoint::ALL[0]));
        for bad in ["", "8k", "0/1", "8k/", "8k/1k/1", "17M/1"] {
            assert!(parse(bad).unwrap_err().contains("PROMPT/OUTPUT"), "{bad}");
        }
    }
}

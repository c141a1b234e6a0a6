//! Every file opens with a `//!` header that says in a sentence what it is.

use super::{Finding, Source};

/// Fewer words than this are a title, not a sentence.
const MIN_WORDS: usize = 3;

/// Finding: the file does not open with `//!` lines that hold a sentence.
pub(crate) fn check(file: &Source) -> Vec<Finding> {
    let lines = file.text.lines().map_while(|line| line.strip_prefix("//!"));
    let header: Vec<&str> = lines.map(str::trim).collect();
    if header.is_empty() {
        return vec![file.finding(1, "the file does not open with a `//!` header")];
    }
    if !header.split(|line| line.is_empty()).any(is_sentence) {
        return vec![file.finding(1, "the `//!` header holds no sentence (words and a full stop)")];
    }
    Vec::new()
}

/// Whether a paragraph that is not a heading has a sentence in it.
fn is_sentence(paragraph: &[&str]) -> bool {
    let prose = paragraph.iter().filter(|line| !line.starts_with('#'));
    let mut words = prose.flat_map(|line| line.split_whitespace()).enumerate();
    words.any(|(i, word)| i + 1 >= MIN_WORDS && word.ends_with(['.', '!', '?', ':']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::findings_of;

    #[test]
    fn a_file_without_header_is_found() {
        for text in [
            "",
            "mod a;\n",
            "// What this is, in a comment.\nmod a;\n",
            "/// What this is, as an item doc.\nmod a;\n",
            "\n//! What this is, too late.\n",
            "use a;\n//! What this is, too late.\n",
        ] {
            let expected = ["1: the file does not open with a `//!` header"];
            assert_eq!(findings_of(check, "a.rs", text), expected, "{text}");
        }
    }

    #[test]
    fn a_header_without_sentence_is_found() {
        for text in ["//!\n", "//! Gemm.\n", "//! GEMM and GEMV kernels\n", "//! # A b c d.\n"] {
            assert_eq!(findings_of(check, "a.rs", text).len(), 1, "{text}");
        }
    }

    #[test]
    fn a_header_with_a_sentence_passes() {
        for text in [
            "//! Matrix times matrix.\nmod a;\n",
            "//! # Title\n//!\n//! Matrix times matrix,\n//! tile by tile. And more\n",
        ] {
            assert_eq!(findings_of(check, "a.rs", text), [""; 0], "{text}");
        }
    }
}

//! Files stay short enough to be read in one go.

use super::{Finding, Source};

/// What a file should not exceed.
pub(crate) const AIM_LINES: usize = 300;

/// What a file must not exceed.
const MAX_LINES: usize = 600;

/// Finding: the file has more than 600 lines.
pub(crate) fn check(file: &Source) -> Vec<Finding> {
    let num_lines = file.text.lines().count();
    if num_lines <= MAX_LINES {
        return Vec::new();
    }
    vec![file.finding(MAX_LINES + 1, format!("{num_lines} lines; at most {MAX_LINES} are allowed"))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::findings_of;

    #[test]
    fn only_a_file_over_the_limit_is_found() {
        assert_eq!(findings_of(check, "a.rs", &"\n".repeat(600)), [""; 0]);
        let expected = ["601: 601 lines; at most 600 are allowed"];
        assert_eq!(findings_of(check, "a.rs", &"\n".repeat(601)), expected);
    }
}

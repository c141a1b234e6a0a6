//! Intrinsics live in one folder, and the features of the CPU are asked for in one file.

use super::{Finding, Source};
use crate::lexer::Token;

/// The only folder that imports `core::arch` or `std::arch`.
const INTRINSICS: &str = "crates/kernels/src/arch";

/// The file that detects the instruction set; the intrinsics folder may detect too.
const DETECTION: &str = "crates/kernels/src/isa";

/// Findings: `core::arch` or `std::arch` outside the folder of intrinsics, and
/// `is_*_feature_detected!` outside it and the detecting file.
pub(crate) fn check(file: &Source) -> Vec<Finding> {
    if file.is_module(INTRINSICS) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let tokens = file.tokens();
    for (i, token) in tokens.iter().enumerate() {
        if matches!(token.text, "core" | "std") {
            let used = arch_lines(&tokens[i + 1..]);
            findings.extend(used.into_iter().map(|line| {
                file.finding(
                    line,
                    format!("`{}::arch` is allowed only in {INTRINSICS}", token.text),
                )
            }));
        }
        if is_detection(token) && !file.is_module(DETECTION) {
            let message = format!("`{}` is allowed only in {DETECTION}.rs", token.text);
            findings.push(file.finding(token.line, message));
        }
    }
    findings
}

/// Lines where the path that goes on with `after` names `arch`, directly or in a `{…}` list.
fn arch_lines(after: &[Token<'_>]) -> Vec<usize> {
    let [a, b, rest @ ..] = after else { return Vec::new() };
    if (a.text, b.text) != (":", ":") {
        return Vec::new();
    }
    if rest.first().is_none_or(|t| t.text != "{") {
        return names_arch(rest).into_iter().collect();
    }
    let mut lines = Vec::new();
    let mut depth = 0;
    for (i, token) in rest.iter().enumerate() {
        match token.text {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && matches!(token.text, "{" | ",") {
            lines.extend(names_arch(&rest[i + 1..]));
        }
    }
    lines
}

/// The line of `arch` if `path` opens with it and does not go on to a detection macro.
fn names_arch(path: &[Token<'_>]) -> Option<usize> {
    let first = path.first().filter(|t| t.text == "arch")?;
    (!path.get(3).is_some_and(is_detection)).then_some(first.line)
}

fn is_detection(token: &Token<'_>) -> bool {
    token.text.starts_with("is_") && token.text.ends_with("_feature_detected")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::findings_of;

    const OP: &str = "crates/kernels/src/ops/gemm.rs";

    #[test]
    fn intrinsics_outside_their_folder_are_found() {
        for text in [
            "use core::arch::x86_64::*;\n",
            "use std::arch::aarch64::vaddq_f32;\n",
            "use ::core::arch as a;\n",
            "use core::{arch::x86_64::__m256, mem};\n",
            "use core::{mem::{self, swap}, arch};\n",
            "type V = core :: arch :: x86_64::__m256;\n",
        ] {
            let found = findings_of(check, OP, text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].contains("::arch` is allowed only in"), "{found:?}");
        }
        assert_eq!(findings_of(check, "crates/model/src/mlp.rs", "use core::arch;\n").len(), 1);
        assert_eq!(findings_of(check, "crates/kernels/src/isa.rs", "use core::arch;\n").len(), 1);
    }

    #[test]
    fn other_paths_and_the_folder_itself_pass() {
        for text in [
            "use crate::arch::x86_64::avx2;\n",
            "use core::{mem, fmt::{arch, x}};\n",
            "// use core::arch::x86_64\nlet s = \"core::arch\";\n",
            "use std::archive;\n",
        ] {
            assert_eq!(findings_of(check, OP, text), [""; 0], "{text}");
        }
        let text = "use core::arch::x86_64::*;\n";
        assert_eq!(findings_of(check, "crates/kernels/src/arch/x86_64/avx2.rs", text), [""; 0]);
        assert_eq!(findings_of(check, "crates/kernels/src/arch.rs", text), [""; 0]);
    }

    #[test]
    fn detection_outside_its_file_is_found() {
        let x86 = "if is_x86_feature_detected!(\"avx2\") {}\n";
        let arm = "if std::arch::is_aarch64_feature_detected!(\"neon\") {}\n";
        for text in [x86, arm] {
            assert_eq!(findings_of(check, OP, text).len(), 1, "{text}");
            assert_eq!(findings_of(check, "crates/kernels/src/isa.rs", text), [""; 0], "{text}");
            assert_eq!(findings_of(check, "crates/kernels/src/arch/mod.rs", text), [""; 0]);
        }
    }
}

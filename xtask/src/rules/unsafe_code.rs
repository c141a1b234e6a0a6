//! `unsafe` lives in a few modules only, each use says why it is sound, other crates forbid it.

use super::{Finding, Source};
use crate::lexer::Token;

/// Modules (a file or a folder) that may hold unsafe code.
const ALLOWED: [&str; 9] = [
    "crates/kernels/src/arch",
    "crates/kernels/src/simd",
    "crates/kernels/src/buffer",
    "crates/kernels/src/threads",
    "crates/cuda/src/compile",
    "crates/cuda/src/driver",
    "crates/cuda/tests/emulated",
    "crates/checkpoint/src/mmap",
    // An allocator that counts.
    "crates/cli/tests/allocations",
];

/// Crates with such a module: the only ones whose root cannot forbid unsafe code.
const CRATES_WITH_UNSAFE: [&str; 3] =
    ["crates/kernels/src", "crates/cuda/src", "crates/checkpoint/src"];

/// Findings: `unsafe` outside the allowed modules, a block or impl without its `// SAFETY:` line,
/// a crate root without `#![forbid(unsafe_code)]`.
pub(crate) fn check(file: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let allowed = ALLOWED.iter().any(|module| file.is_module(module));
    let tokens = file.tokens();
    for (i, token) in tokens.iter().enumerate().filter(|(_, t)| t.text == "unsafe") {
        if !allowed {
            let message = format!("`unsafe` is allowed only in {}", ALLOWED.join(", "));
            findings.push(file.finding(token.line, message));
        } else if needs_safety_line(&tokens[i + 1..]) && !has_safety_line(file, token.line) {
            findings.push(file.finding(token.line, "no `// SAFETY:` line above `unsafe`"));
        }
    }
    if must_forbid(file) && !forbids(file) {
        findings.push(file.finding(1, "the crate root lacks `#![forbid(unsafe_code)]`"));
    }
    findings
}

/// Blocks and impls do; an `unsafe fn` states its contract in a `# Safety` section instead.
fn needs_safety_line(after: &[Token<'_>]) -> bool {
    after.first().is_some_and(|t| matches!(t.text, "{" | "impl"))
}

/// Looks upwards from `line` through the comments and the statement that the line belongs to.
fn has_safety_line(file: &Source, line: usize) -> bool {
    let texts: Vec<&str> = file.text.lines().take(line).collect();
    let codes: Vec<&str> = file.code.lines().take(line).map(str::trim).collect();
    for i in (0..line).rev() {
        let ends_another = codes[i].ends_with([';', '{', '}']);
        if i + 1 < line && ends_another {
            return false;
        }
        if codes[i].is_empty() && texts[i].trim_start().starts_with("// SAFETY:") {
            return true;
        }
    }
    false
}

fn must_forbid(file: &Source) -> bool {
    let Some((folder, name)) = file.path.rsplit_once('/') else { return false };
    let is_root = matches!(name, "lib.rs" | "main.rs") && folder.ends_with("/src");
    (is_root || folder.ends_with("/src/bin")) && !CRATES_WITH_UNSAFE.contains(&folder)
}

fn forbids(file: &Source) -> bool {
    let code: String = file.code.split_whitespace().collect();
    code.contains("#![forbid(unsafe_code)]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::findings_of;

    const BLOCK: &str = "fn f() {\n    // SAFETY: p is valid.\n    unsafe { g() }\n}\n";
    const BARE_BLOCK: &str = "fn f() {\n    unsafe { g() }\n}\n";

    #[test]
    fn unsafe_outside_the_allowed_modules_is_found() {
        for path in [
            "crates/kernels/src/ops/gemm.rs",
            "crates/kernels/src/simd_extra.rs",
            "crates/kernels/tests/gemm.rs",
            "crates/checkpoint/src/reader.rs",
            "crates/model/src/weights.rs",
        ] {
            let found = findings_of(check, path, BLOCK);
            assert_eq!(found.len(), 1, "{path}: {found:?}");
            assert!(found[0].starts_with("3: `unsafe` is allowed only in"), "{found:?}");
        }
    }

    #[test]
    fn unsafe_in_the_allowed_modules_passes() {
        for path in [
            "crates/kernels/src/simd.rs",
            "crates/kernels/src/buffer.rs",
            "crates/kernels/src/threads.rs",
            "crates/kernels/src/arch/x86_64/avx2.rs",
            "crates/cuda/src/driver/stream.rs",
            "crates/checkpoint/src/mmap.rs",
            "crates/checkpoint/src/mmap/windows.rs",
            "crates/cli/tests/allocations.rs",
        ] {
            assert_eq!(findings_of(check, path, BLOCK), [""; 0], "{path}");
        }
    }

    #[test]
    fn the_word_in_comments_literals_and_names_passes() {
        let text = "// unsafe\n/* unsafe */ fn f() { g(\"unsafe\", r#\"unsafe\"#, unsafe_len) }\n";
        assert_eq!(findings_of(check, "crates/model/src/state.rs", text), [""; 0]);
    }

    #[test]
    fn a_block_or_impl_without_a_safety_line_is_found() {
        let path = "crates/kernels/src/buffer.rs";
        let missing = |line| [format!("{line}: no `// SAFETY:` line above `unsafe`")];
        assert_eq!(findings_of(check, path, BARE_BLOCK), missing(2));
        assert_eq!(findings_of(check, path, "struct A;\nunsafe impl Send for A {}\n"), missing(2));
        let other_statement = "// SAFETY: x.\nf();\nunsafe { g() }\n";
        assert_eq!(findings_of(check, path, other_statement), missing(3));
    }

    #[test]
    fn a_safety_line_counts_above_the_statement_of_the_block() {
        let path = "crates/kernels/src/buffer.rs";
        for good in [
            "// SAFETY: x,\n// and y.\nlet a =\n    unsafe { g() };\n",
            "// SAFETY: x.\n#[allow(dead_code)]\nunsafe impl Send for A {}\n",
            "/// # Safety\n/// x\nunsafe fn f() {}\n",
        ] {
            assert_eq!(findings_of(check, path, good), [""; 0], "{good}");
        }
    }

    #[test]
    fn a_crate_root_that_does_not_forbid_unsafe_is_found() {
        let lacks = ["1: the crate root lacks `#![forbid(unsafe_code)]`"];
        for path in ["crates/model/src/lib.rs", "crates/cli/src/main.rs", "xtask/src/main.rs"] {
            assert_eq!(findings_of(check, path, "mod a;\n"), lacks, "{path}");
            assert_eq!(findings_of(check, path, "// #![forbid(unsafe_code)]\n"), lacks, "{path}");
            assert_eq!(findings_of(check, path, "#![forbid(unsafe_code)]\n"), [""; 0], "{path}");
        }
        assert_eq!(findings_of(check, "crates/cli/src/bin/b.rs", "fn main() {}\n"), lacks);
        assert_eq!(findings_of(check, "crates/kernels/src/lib.rs", "mod a;\n"), [""; 0]);
        assert_eq!(findings_of(check, "crates/model/src/weights.rs", "mod a;\n"), [""; 0]);
    }
}

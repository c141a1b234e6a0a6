//! Printing and `anyhow` stay at the edge, tests find reference data one way, and no text names
//! a path of somebody's machine.

use super::{Finding, Source};
use crate::lexer::Token;

/// Where messages are for people: the only places with `anyhow` and with printing.
const EDGE: [&str; 2] = ["crates/cli", "xtask"];

/// Top folders that only a path of one machine starts with.
const MACHINE_FOLDERS: [&str; 4] = ["home", "root", "Users", "work"];

/// Findings: `anyhow` or printing away from the edge, reference data found without
/// `testdata/shared_dir.rs`, machine paths.
pub(crate) fn check(file: &Source) -> Vec<Finding> {
    let mut findings = check_text(&file.path, &file.text);
    if file.is_under(&EDGE) {
        return findings;
    }
    let tokens = file.tokens();
    let anyhow = tokens.iter().filter(|t| t.text == "anyhow");
    findings.extend(anyhow.map(|t| file.finding(t.line, "`anyhow` is allowed only in cli, xtask")));
    if !file.is_test_file() {
        findings.extend(product_tokens(&tokens).windows(2).filter(|w| prints(w)).map(|w| {
            let message = format!("`{}!` is allowed only in cli, xtask and tests", w[0].text);
            file.finding(w[0].line, message)
        }));
    }
    let by_hand = file.text.lines().position(|line| line.contains("\"HYBRA_SHARED\""));
    if let Some(line) = by_hand.filter(|_| file.path != "testdata/shared_dir.rs") {
        let message = "reference data is found by `shared()` of testdata/shared_dir.rs only";
        findings.push(file.finding(line + 1, message));
    }
    findings
}

/// Findings in a text file of any kind: absolute paths into a home or work folder.
pub(crate) fn check_text(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for folder in MACHINE_FOLDERS {
            let prefix = format!("/{folder}/");
            let mut places = line.match_indices(&prefix);
            if places.any(|(at, _)| starts_a_path(&line[..at])) {
                let message = format!("a path of one machine: `{prefix}…`");
                findings.push(Finding { path: path.into(), line: number, message });
            }
        }
    }
    findings
}

/// Whether a slash after `before` is the root of the file system.
fn starts_a_path(before: &str) -> bool {
    !before.ends_with(|c: char| c.is_alphanumeric() || "._-/$})~*>".contains(c))
}

fn prints(pair: &[Token<'_>]) -> bool {
    pair[1].text == "!"
        && matches!(pair[0].text, "print" | "println" | "eprint" | "eprintln" | "dbg")
}

/// The tokens without the items that are marked `#[cfg(test)]`.
fn product_tokens<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let rest = &tokens[at..];
        if rest.len() >= MARK.len() && MARK.iter().zip(rest).all(|(m, t)| *m == t.text) {
            at += MARK.len() + item_len(&rest[MARK.len()..]);
        } else {
            kept.push(tokens[at]);
            at += 1;
        }
    }
    kept
}

/// Number of tokens up to the `;` or the closing brace that ends the item.
fn item_len(tokens: &[Token<'_>]) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate() {
        match token.text {
            ";" if depth == 0 => return i + 1,
            "{" => depth += 1,
            "}" if depth <= 1 => return i + 1,
            "}" => depth -= 1,
            _ => {}
        }
    }
    tokens.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::findings_of;

    const PRINTS: &str = "fn f() { println!(\"x\") }\n";

    #[test]
    fn anyhow_away_from_the_edge_is_found() {
        let text = "use anyhow::Result;\n";
        let expected = ["1: `anyhow` is allowed only in cli, xtask"];
        assert_eq!(findings_of(check, "crates/model/src/a.rs", text), expected);
        assert_eq!(findings_of(check, "crates/cli/src/main.rs", text), [""; 0]);
        assert_eq!(findings_of(check, "xtask/src/main.rs", text), [""; 0]);
        assert_eq!(findings_of(check, "crates/model/src/a.rs", "// anyhow\n"), [""; 0]);
    }

    #[test]
    fn printing_away_from_the_edge_is_found() {
        let path = "crates/engine/src/a.rs";
        let expected = ["1: `println!` is allowed only in cli, xtask and tests"];
        assert_eq!(findings_of(check, path, PRINTS), expected);
        let after = format!("#[cfg(test)]\nmod tests {{ mod a {{}} {PRINTS} }}\n{PRINTS}");
        assert_eq!(findings_of(check, path, &after).len(), 1);
        let after = format!("#[cfg(test)]\nmod tests;\n{PRINTS}");
        assert_eq!(findings_of(check, path, &after).len(), 1);
    }

    #[test]
    fn printing_in_tests_and_commands_passes() {
        let in_tests = format!("#[cfg(test)]\nmod tests {{ mod a {{}} {PRINTS} }}\n");
        assert_eq!(findings_of(check, "crates/engine/src/a.rs", &in_tests), [""; 0]);
        for path in ["crates/engine/tests/a.rs", "crates/cli/src/chat.rs", "xtask/src/main.rs"] {
            assert_eq!(findings_of(check, path, PRINTS), [""; 0], "{path}");
        }
    }

    #[test]
    fn reference_data_found_by_hand_is_found() {
        let text = "let dir = env::var(\"HYBRA_SHARED\");\n";
        assert_eq!(findings_of(check, "crates/model/tests/a.rs", text).len(), 1);
        assert_eq!(findings_of(check, "testdata/shared_dir.rs", text), [""; 0]);
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        for folder in MACHINE_FOLDERS {
            let text = format!("fine\nsee `/{folder}/me/model`\n");
            let found = check_text("README.md", &text);
            assert_eq!(found.iter().map(|f| f.line).collect::<Vec<_>>(), [2], "{text}");
            let inside = format!("crates/{folder}/a https://a.org/{folder}/b $DIR/{folder}/c\n");
            assert!(check_text("README.md", &inside).is_empty(), "{inside}");
        }
    }
}

//! Sources of grammars: their limits, and their form for the compiler.
//!
//! The limits are what measured worst cases within them need to compile in about a second. What a
//! grammar could say and the engine would not do (temperatures, text that is taken back) and what
//! reaches past text (tokens by name or number) is refused.

use crate::grammar::{GrammarError, GrammarSpec};
use crate::grammar_schema::{check_depth as check_schema_depth, checked_schema};
use llguidance::api::GrammarWithLexer;
use serde_json::{Value, json};

const MOST_REGEX_BYTES: usize = 8 << 10;
const MOST_LARK_BYTES: usize = 32 << 10;
const MOST_LARK_RULES: usize = 500;
const MOST_INTERSECTIONS: usize = 8;
const MOST_CHOICES: usize = 10_000;
const MOST_CHOICE_BYTES: usize = 256 << 10;
/// Of anything that is repeated a given number of times.
pub(crate) const MOST_REPETITIONS: usize = 100_000;
/// Directives of a Lark grammar.
const DIRECTIVES: [&str; 3] = ["%ignore", "%import", "%regex"];
/// Attributes of its rules that have a value.
const ATTRIBUTES: [&str; 1] = ["max_tokens"];
/// One space, or a new line with its indentation: at most one of them between JSON tokens, so that
/// no text is blank without end.
const JSON_WHITESPACE: &str = r"\x20|\x0A[\x20\x09]{0,32}";

/// The source that is to blame.
pub(crate) fn field(spec: &GrammarSpec) -> &'static str {
    match spec {
        GrammarSpec::JsonObject | GrammarSpec::JsonSchema(_) => "json_schema",
        GrammarSpec::Regex(_) => "regex",
        GrammarSpec::Choice(_) => "choice",
        GrammarSpec::Lark(_) => "grammar",
    }
}

/// A schema that everything else can walk on a usual stack. `name`: who is to blame.
pub(crate) fn check_depth(spec: &GrammarSpec, name: Option<&str>) -> Result<(), GrammarError> {
    match spec {
        GrammarSpec::JsonSchema(schema) => check_schema_depth(name.unwrap_or(field(spec)), schema),
        _ => Ok(()),
    }
}

/// Equal for equal specs only.
pub(crate) fn key(spec: &GrammarSpec) -> String {
    match spec {
        GrammarSpec::JsonObject => "object".to_owned(),
        GrammarSpec::JsonSchema(schema) => format!("schema {schema}"),
        GrammarSpec::Regex(regex) => format!("regex {regex}"),
        GrammarSpec::Choice(texts) => format!("choice {}", json!(texts)),
        GrammarSpec::Lark(grammar) => format!("lark {grammar}"),
    }
}

/// A checked source.
pub(crate) struct Source {
    pub(crate) grammar: GrammarWithLexer,
}

impl Source {
    /// `name`: how other grammars call it, and who is to blame.
    pub(crate) fn new(spec: &GrammarSpec, name: Option<&str>) -> Result<Self, GrammarError> {
        let blamed = name.unwrap_or(field(spec));
        let mut grammar = match spec {
            GrammarSpec::JsonObject => schema_grammar(json!({ "type": "object" })),
            GrammarSpec::JsonSchema(schema) => schema_grammar(checked_schema(blamed, schema)?),
            GrammarSpec::Regex(regex) => {
                check_regex(blamed, regex)?;
                GrammarWithLexer::from_regex(regex)
            }
            GrammarSpec::Choice(texts) => GrammarWithLexer::from_lark(choices(blamed, texts)?),
            GrammarSpec::Lark(grammar) => {
                check_lark(blamed, grammar)?;
                GrammarWithLexer::from_lark(grammar.clone())
            }
        };
        grammar.name = name.map(str::to_owned);
        Ok(Self { grammar })
    }
}

fn schema_grammar(schema: Value) -> GrammarWithLexer {
    let mut schema = if schema == Value::Bool(true) { json!({}) } else { schema };
    if let Some(map) = schema.as_object_mut() {
        let options = json!({ "whitespace_pattern": JSON_WHITESPACE });
        map.insert("x-guidance".to_owned(), options);
    }
    GrammarWithLexer::from_json_schema(schema)
}

pub(crate) fn at_most(
    field: &str,
    unit: &'static str,
    limit: usize,
    found: usize,
) -> Result<(), GrammarError> {
    if found <= limit {
        return Ok(());
    }
    Err(GrammarError::TooMuch { field: field.to_owned(), unit, limit, found })
}

/// Checks a regular expression, wherever it stands.
pub(crate) fn check_regex(field: &str, regex: &str) -> Result<(), GrammarError> {
    at_most(field, "bytes of a regex", MOST_REGEX_BYTES, regex.len())?;
    at_most(field, "repetitions", MOST_REPETITIONS, most_repetitions(regex))?;
    let trailing = regex.bytes().rev().take_while(|&byte| byte == b'\\').count();
    if trailing % 2 == 1 {
        let reason = "expected something behind the last backslash".to_owned();
        return Err(GrammarError::Invalid { field: field.to_owned(), reason });
    }
    Ok(())
}

/// The largest number in braces; `\x{…}`, `\u{…}` and `\p{…}` are none.
fn most_repetitions(regex: &str) -> usize {
    let (mut most, mut escaped, mut rest) = (0, false, regex);
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if escaped && "xuUpP".contains(c) && rest.starts_with('{') {
            rest = rest.split_once('}').map_or("", |(_, rest)| rest);
        } else if !escaped && c == '{' {
            let inner = rest.split('}').next().unwrap_or_default();
            for number in inner.split(',').filter(|n| n.bytes().all(|b| b.is_ascii_digit())) {
                most = most.max(numeric(number.trim()));
            }
        }
        escaped = c == '\\' && !escaped;
    }
    most
}

fn numeric(digits: &str) -> usize {
    if digits.is_empty() { 0 } else { digits.parse().unwrap_or(usize::MAX) }
}

fn choices(field: &str, texts: &[String]) -> Result<String, GrammarError> {
    at_most(field, "choices", MOST_CHOICES, texts.len())?;
    let bytes = texts.iter().map(String::len).sum();
    at_most(field, "bytes of choices", MOST_CHOICE_BYTES, bytes)?;
    if texts.is_empty() {
        return Err(GrammarError::Empty { field: field.to_owned() });
    }
    let literals: Vec<_> = texts.iter().map(|text| literal(text)).collect();
    Ok(format!("start: {}\n", literals.join(" | ")))
}

/// A text in Lark's notation: a JSON string without control characters.
pub(crate) fn literal(text: &str) -> String {
    Value::from(text).to_string().replace('\x7f', "\\u007f")
}

fn check_lark(field: &str, grammar: &str) -> Result<(), GrammarError> {
    at_most(field, "bytes", MOST_LARK_BYTES, grammar.len())?;
    let unsupported =
        |what: String| Err(GrammarError::Unsupported { field: field.to_owned(), what });
    let (code, regexes) = code_of(grammar);
    regexes.iter().try_for_each(|regex| check_regex(field, regex))?;
    if code.contains('<') {
        return unsupported("a token by name or number (`<…>`)".to_owned());
    }
    if code.contains("::=") {
        return unsupported("`::=` (expected Lark's notation, `name: …`)".to_owned());
    }
    at_most(field, "rules", MOST_LARK_RULES, code.matches(':').count())?;
    at_most(field, "intersections (`&`)", MOST_INTERSECTIONS, code.matches('&').count())?;
    let words = || code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '%'));
    let directive = |word: &&str| word.starts_with('%') && !DIRECTIVES.contains(word);
    if let Some(directive) = words().find(directive) {
        return unsupported(format!("the directive {directive}"));
    }
    let most = words().filter(|word| word.bytes().all(|b| b.is_ascii_digit())).map(numeric).max();
    at_most(field, "repetitions", MOST_REPETITIONS, most.unwrap_or(0))?;
    let mut before_equals: Vec<_> = code.split('=').map(str::trim_end).collect();
    before_equals.pop();
    for text in before_equals {
        let start = text.rfind(|c: char| !(c.is_alphanumeric() || c == '_')).map_or(0, |at| at + 1);
        if !ATTRIBUTES.contains(&&text[start..]) {
            return unsupported(format!("the attribute {:?}", &text[start..]));
        }
    }
    Ok(())
}

/// A Lark grammar without its strings, regexes and comments; and the regexes.
fn code_of(grammar: &str) -> (String, Vec<&str>) {
    let (mut code, mut regexes, mut rest) = (String::new(), Vec::new(), grammar);
    while let Some(c) = rest.chars().next() {
        let behind = &rest[c.len_utf8()..];
        rest = match c {
            '#' => behind.find('\n').map_or("", |at| &behind[at..]),
            '/' if behind.starts_with('/') => behind.find('\n').map_or("", |at| &behind[at..]),
            '/' | '"' => {
                let (inner, behind) = quoted(behind, c);
                if c == '/' {
                    regexes.push(inner);
                }
                code.push(' ');
                behind
            }
            c => {
                code.push(c);
                behind
            }
        };
    }
    (code, regexes)
}

/// What is before the first `end` without a backslash, and what is behind it.
fn quoted(text: &str, end: char) -> (&str, &str) {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if c == end && !escaped {
            return (&text[..at], &text[at + 1..]);
        }
        escaped = c == '\\' && !escaped;
    }
    (text, "")
}

/// The telling line of a compiler's message, without what it quotes at length.
pub(crate) fn short(message: &str) -> String {
    const MOST_CHARS: usize = 300;
    let mut lines = message.lines().filter(|line| !line.starts_with('<'));
    let telling = message.lines().find_map(|line| line.strip_prefix("error: "));
    let line = telling.or_else(|| lines.next()).unwrap_or("not accepted by the compiler");
    line.chars().take(MOST_CHARS).collect()
}

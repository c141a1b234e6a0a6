//! The `tojson` filter as `transformers` defines it: `json.dumps` of Python without HTML escapes.
//!
//! Non-ASCII is kept, separators are `, ` and `: `, key order is kept; `indent`, `ensure_ascii`,
//! `separators` and `sort_keys` are honoured. Numbers print as Python prints them.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde_json::Value as Json;

/// Values nested deeper are refused (a template can build them; requests stay below 128).
const MAX_DEPTH: usize = 200;

struct Style {
    indent: Option<String>,
    ensure_ascii: bool,
    sort_keys: bool,
    item: String,
    key: String,
}

/// The filter.
pub(crate) fn tojson(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<Value> = kwargs.get("indent")?;
    let indent = match indent.filter(|v| !v.is_none() && !v.is_undefined()) {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(width) => Some(" ".repeat(usize::try_from(width)?.min(64))),
    };
    let separators: Option<(String, String)> = match kwargs.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => {
            let part = |i| pair.get_item_by_index(i).map(|v| v.to_string());
            Some((part(0)?, part(1)?))
        }
        _ => None,
    };
    let default_item = if indent.is_some() { "," } else { ", " };
    let (item, key) = separators.unwrap_or((default_item.to_owned(), ": ".to_owned()));
    let style = Style {
        indent,
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        item,
        key,
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    write_value(&mut out, value, &style, 0)?;
    Ok(out)
}

fn error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {}", message.into()))
}

fn write_value(out: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(error("value is nested too deeply"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
        ValueKind::Number => out.push_str(&python_float(f64::try_from(value.clone())?)),
        ValueKind::String => write_string(out, value.as_str().unwrap_or_default(), style),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            let write = |out: &mut String, item: &Value| write_value(out, item, style, depth + 1);
            write_items(out, ('[', ']'), &items, style, depth, write)?;
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            let write = |out: &mut String, key: &Value| {
                write_key(out, key, style)?;
                out.push_str(&style.key);
                write_value(out, &value.get_item(key)?, style, depth + 1)
            };
            write_items(out, ('{', '}'), &keys, style, depth, write)?;
        }
        kind => return Err(error(format!("a value of type {kind} is not JSON"))),
    }
    Ok(())
}

fn write_items(
    out: &mut String,
    (open, close): (char, char),
    items: &[Value],
    style: &Style,
    depth: usize,
    write: impl Fn(&mut String, &Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    };
    out.push(open);
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(&style.item);
        }
        line(out, depth + 1);
        write(out, item)?;
    }
    if !items.is_empty() {
        line(out, depth);
    }
    out.push(close);
    Ok(())
}

/// Python turns other keys into strings: `1` → `"1"`, `None` → `"null"`.
fn write_key(out: &mut String, key: &Value, style: &Style) -> Result<(), Error> {
    match key.as_str() {
        Some(text) => write_string(out, text, style),
        None => {
            let mut text = String::new();
            write_value(&mut text, key, style, MAX_DEPTH)?;
            write_string(out, &text, style);
        }
    }
    Ok(())
}

fn write_string(out: &mut String, text: &str, style: &Style) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (style.ensure_ascii && !c.is_ascii()) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").expect("a String takes every write");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// `repr` of a Python float, with the names that `json.dumps` uses for the special values.
fn python_float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').expect("{:e} prints an exponent");
    let exponent: i32 = exponent.parse().expect("{:e} prints a decimal exponent");
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{x}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// A JSON value as a template value, its strings and keys passed through `text`.
pub(crate) fn to_template_value(json: &Json, text: &mut impl FnMut(&str) -> String) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (None, Some(u)) => Value::from(u),
            (None, None) => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(text(s)),
        Json::Array(items) => {
            Value::from(items.iter().map(|v| to_template_value(v, text)).collect::<Vec<_>>())
        }
        Json::Object(map) => {
            Value::from_pairs(map.iter().map(|(key, v)| (text(key), to_template_value(v, text))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        let cases = [
            (2.5, "2.5"),
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (0.1 + 0.2, "0.30000000000000004"),
            (f64::INFINITY, "Infinity"),
        ];
        for (x, want) in cases {
            assert_eq!(python_float(x), want);
        }
    }
}

//! JSON schemas before they are compiled: every keyword is one that is held, or it is an error.
//!
//! Annotations (`title`, `description`, `x-…`) say nothing about the answer and are taken out where
//! the compiler would not know them; `$schema` too, so that all drafts mean the same: keywords hold
//! whatever stands beside them.

use crate::grammar::GrammarError;
use crate::grammar_source::{MOST_REPETITIONS, at_most, check_regex};
use serde_json::{Map, Value};
use std::collections::HashMap;

const MOST_BYTES: usize = 256 << 10;
const MOST_DEPTH: usize = 64;
const MOST_SCHEMAS: usize = 10_000;
/// Of one object.
const MOST_PROPERTIES: usize = 500;
/// Of one object: every two of them are compared.
const MOST_PATTERN_PROPERTIES: usize = 16;
/// Patterns and formats that a single string may have to match.
const MOST_PATTERNS: usize = 8;

/// Keywords with one schema, or `items` with several.
const ONE: [&str; 3] = ["items", "additionalItems", "additionalProperties"];
const LISTS: [&str; 5] = ["items", "prefixItems", "anyOf", "oneOf", "allOf"];
const MAPS: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
const LEAST: [&str; 3] = ["minLength", "minItems", "minProperties"];
const VALUES: [&str; 16] = [
    "$ref",
    "const",
    "enum",
    "type",
    "maxItems",
    "required",
    "maxProperties",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "$anchor",
];
const ANNOTATIONS: [&str; 12] = [
    "$schema",
    "$id",
    "$comment",
    "title",
    "description",
    "default",
    "readOnly",
    "writeOnly",
    "examples",
    "deprecated",
    "contentMediaType",
    "contentEncoding",
];

/// Nothing else may walk a schema before: this does not recurse.
pub(crate) fn check_depth(field: &str, schema: &Value) -> Result<(), GrammarError> {
    at_most(field, "levels of schema", MOST_DEPTH, depth(schema))
}

/// The schema as it is compiled; its depth is checked.
pub(crate) fn checked_schema(field: &str, schema: &Value) -> Result<Value, GrammarError> {
    at_most(field, "bytes of schema", MOST_BYTES, schema.to_string().len())?;
    let mut checked = schema.clone();
    let mut check = Check { field, schemas: 0 };
    check.schema(&mut checked, "#")?;
    let mut weights = Weights { root: &checked, by_ref: HashMap::new() };
    at_most(field, "patterns that hold for one string", MOST_PATTERNS, weights.of(&checked))?;
    Ok(checked)
}

/// Levels of nesting; stops counting soon after the limit.
fn depth(value: &Value) -> usize {
    let mut level = vec![value];
    for depth in 0..=2 * MOST_DEPTH {
        let mut next = Vec::new();
        for value in level {
            match value {
                Value::Array(items) => next.extend(items),
                Value::Object(map) => next.extend(map.values()),
                _ => {}
            }
        }
        if next.is_empty() {
            // A schema below a keyword is two levels of JSON further down.
            return depth.div_ceil(2);
        }
        level = next;
    }
    MOST_DEPTH + 1
}

struct Check<'a> {
    field: &'a str,
    schemas: usize,
}

impl Check<'_> {
    fn invalid<T>(&self, at: &str, reason: &str) -> Result<T, GrammarError> {
        let reason = format!("{at}: {reason}");
        Err(GrammarError::Invalid { field: self.field.to_owned(), reason })
    }

    fn schema(&mut self, schema: &mut Value, at: &str) -> Result<(), GrammarError> {
        self.schemas += 1;
        at_most(self.field, "schemas", MOST_SCHEMAS, self.schemas)?;
        let map = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(map) => map,
            other => {
                let found = format!("expected a schema (an object or a boolean), found {other}");
                return self.invalid(at, &found.chars().take(120).collect::<String>());
            }
        };
        map.retain(|key, _| !is_annotation(key));
        for (key, value) in map {
            self.keyword(key, value, &format!("{at}/{key}"))?;
        }
        Ok(())
    }

    fn keyword(&mut self, key: &str, value: &mut Value, at: &str) -> Result<(), GrammarError> {
        match value {
            Value::Array(items) if LISTS.contains(&key) => {
                let mut items = items.iter_mut().enumerate();
                items.try_for_each(|(i, item)| self.schema(item, &format!("{at}/{i}")))
            }
            Value::Object(map) if MAPS.contains(&key) => self.map(key, map, at),
            value if ONE.contains(&key) => self.schema(value, at),
            _ if LISTS.contains(&key) => self.invalid(at, "expected a list of schemas"),
            _ if MAPS.contains(&key) => self.invalid(at, "expected an object of schemas"),
            value if LEAST.contains(&key) => {
                let found = value.as_u64().unwrap_or(0).try_into().unwrap_or(usize::MAX);
                at_most(self.field, "repetitions", MOST_REPETITIONS, found)
            }
            Value::String(regex) if key == "pattern" => check_regex(self.field, regex),
            _ if VALUES.contains(&key) => Ok(()),
            _ => {
                let what = format!("the keyword {key:?} (at {at})");
                Err(GrammarError::Unsupported { field: self.field.to_owned(), what })
            }
        }
    }

    fn map(
        &mut self,
        key: &str,
        map: &mut Map<String, Value>,
        at: &str,
    ) -> Result<(), GrammarError> {
        if key == "properties" {
            at_most(self.field, "properties of an object", MOST_PROPERTIES, map.len())?;
        }
        if key == "patternProperties" {
            at_most(self.field, "patternProperties", MOST_PATTERN_PROPERTIES, map.len())?;
            map.keys().try_for_each(|regex| check_regex(self.field, regex))?;
        }
        map.iter_mut().try_for_each(|(name, schema)| self.schema(schema, &format!("{at}/{name}")))
    }
}

/// Keywords that only the compiler's own options use are none.
fn is_annotation(key: &str) -> bool {
    let vendor = key.starts_with("x-") && key != "x-guidance";
    vendor || key == "discriminator" || ANNOTATIONS.contains(&key) && key != "$id"
}

/// How many patterns may have to hold for one string: a bound from above.
struct Weights<'a> {
    root: &'a Value,
    /// What a reference adds; 0 while it is being looked at.
    by_ref: HashMap<&'a str, usize>,
}

impl<'a> Weights<'a> {
    fn of(&mut self, schema: &'a Value) -> usize {
        let Some(map) = schema.as_object() else { return 0 };
        let own = ["pattern", "format"].iter().filter(|key| map.contains_key(**key)).count();
        let mut inside = own;
        for key in ONE.iter().chain(&["prefixItems", "items"]).filter_map(|key| map.get(*key)) {
            inside = inside.max(self.of(key)).max(self.most(key));
        }
        for schemas in MAPS.iter().filter_map(|key| map.get(*key)?.as_object()) {
            for schema in schemas.values() {
                inside = inside.max(self.of(schema));
            }
        }
        let all = map.get("allOf").and_then(Value::as_array).into_iter().flatten();
        let all = all.map(|schema| self.of(schema)).sum::<usize>();
        let any: usize =
            ["anyOf", "oneOf"].iter().filter_map(|key| map.get(*key)).map(|s| self.most(s)).sum();
        let reference = map.get("$ref").and_then(Value::as_str).map_or(0, |to| self.behind(to));
        inside.saturating_add(all).saturating_add(any).saturating_add(reference)
    }

    fn most(&mut self, list: &'a Value) -> usize {
        let schemas = list.as_array().into_iter().flatten();
        schemas.map(|schema| self.of(schema)).max().unwrap_or(0)
    }

    fn behind(&mut self, reference: &'a str) -> usize {
        if let Some(&weight) = self.by_ref.get(reference) {
            return weight;
        }
        self.by_ref.insert(reference, 0);
        let target = reference.strip_prefix('#').and_then(|path| self.root.pointer(path));
        let weight = target.map_or(0, |schema| self.of(schema));
        self.by_ref.insert(reference, weight);
        weight
    }
}

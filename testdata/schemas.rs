//! Random JSON schemas over the letters of `json_tokenizer`, and whether a value satisfies one.

use serde_json::{Value, json};

/// Numbers that look random; the same for the same seed.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) as usize % n
    }
}

/// A schema whose values have an end.
pub(crate) fn random_schema(numbers: &mut Numbers, depth: usize) -> Value {
    match numbers.below(if depth == 0 { 5 } else { 8 }) {
        0 => json!({ "type": "integer", "minimum": -5, "maximum": numbers.below(300) }),
        1 => json!({ "type": "string", "maxLength": numbers.below(6) }),
        2 => json!({ "enum": ["a", "b \"c\"", 1.5, null, true] }),
        3 => json!({ "type": ["boolean", "null"] }),
        4 => json!({ "const": { "k": [1, "<TOOLCALL>[", "</think>"] } }),
        5 => {
            let items = random_schema(numbers, depth - 1);
            let least = numbers.below(2);
            json!({ "type": "array", "items": items, "minItems": least, "maxItems": least + 2 })
        }
        6 => json!({
            "anyOf": [random_schema(numbers, depth - 1), random_schema(numbers, depth - 1)],
        }),
        _ => {
            let names = ["a", "bc", "name"].into_iter().take(1 + numbers.below(3));
            let properties: serde_json::Map<_, _> =
                names.map(|name| (name.to_owned(), random_schema(numbers, depth - 1))).collect();
            let required: Vec<_> = properties.keys().take(2).cloned().collect();
            json!({
                "type": "object", "properties": properties, "required": required,
                "additionalProperties": false,
            })
        }
    }
}

/// Whether `value` satisfies a schema of [`random_schema`].
pub(crate) fn satisfies(value: &Value, schema: &Value) -> bool {
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().any(|schema| satisfies(value, schema));
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.contains(value);
    }
    if let Some(only) = schema.get("const") {
        return value == only;
    }
    let within = |n: i64, least: &str, most: &str| {
        n >= schema[least].as_i64().unwrap_or(0) && n <= schema[most].as_i64().unwrap_or(i64::MAX)
    };
    match (value, schema["type"].as_str()) {
        (Value::Number(n), Some("integer")) => {
            n.as_i64().is_some_and(|n| within(n, "minimum", "maximum"))
        }
        (Value::String(text), Some("string")) => {
            within(text.chars().count() as i64, "minLength", "maxLength")
        }
        (Value::Array(items), Some("array")) => {
            within(items.len() as i64, "minItems", "maxItems")
                && items.iter().all(|item| satisfies(item, &schema["items"]))
        }
        (Value::Object(map), Some("object")) => {
            let required = schema["required"].as_array().into_iter().flatten();
            let known = |(key, value): (&String, &Value)| {
                schema["properties"].get(key).is_some_and(|schema| satisfies(value, schema))
            };
            required.into_iter().all(|key| map.contains_key(key.as_str().unwrap()))
                && map.iter().all(known)
        }
        (Value::Bool(_) | Value::Null, None) => schema["type"].is_array(),
        _ => false,
    }
}

//! Request bodies: JSON objects without doubled keys, split into the groups of fields that
//! endpoints share.
//!
//! Invariant: every key of a body is taken by exactly one group, or the body is refused with the
//! key's name. Nesting is bounded by the parser (128 levels).

use crate::error::ApiError;
use axum::extract::{FromRequest, Request};
use axum::http::header;
use serde::de::{DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fmt;
use utoipa::PartialSchema;
use utoipa::openapi::{RefOr, Schema};

/// A JSON object that was the body of a request.
pub struct Body(pub Map<String, Value>);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let found = request.headers().get(header::CONTENT_TYPE);
        let found = found.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let found = found.unwrap_or_default();
        let kind = found.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if kind != "application/json" && !kind.ends_with("+json") {
            let found = found.chars().take(64).collect();
            return Err(ApiError::ContentType { found });
        }
        let bytes = axum::body::Bytes::from_request(request, state).await.map_err(|error| {
            match error.status().as_u16() {
                413 => ApiError::TooLarge { limit: crate::config::MAX_BODY_BYTES },
                _ => ApiError::Invalid { param: None, message: error.body_text() },
            }
        })?;
        parse(&bytes).map(Self)
    }
}

/// Reads one JSON object.
///
/// # Errors
/// Anything else, and keys that occur twice.
pub fn parse(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let invalid = |message: String| ApiError::Invalid { param: None, message };
    match serde_json::from_slice(bytes) {
        Ok(Strict(Value::Object(map))) => Ok(map),
        Ok(Strict(other)) => {
            let found = match other {
                Value::Null => "null",
                Value::Bool(_) => "a boolean",
                Value::Number(_) => "a number",
                Value::String(_) => "a string",
                _ => "an array",
            };
            Err(invalid(format!("body: expected a JSON object, found {found}")))
        }
        Err(error) => Err(invalid(format!("body: {error}"))),
    }
}

/// Takes the fields of the group `T` out of `map`.
///
/// # Errors
/// A field of the wrong type, with its path.
pub fn take<T: DeserializeOwned + PartialSchema>(
    map: &mut Map<String, Value>,
) -> Result<T, ApiError> {
    let mut own = Map::new();
    for name in field_names::<T>() {
        if let Some(value) = map.shift_remove(&name) {
            own.insert(name, value);
        }
    }
    check_lists(&own)?;
    typed(Value::Object(own), "")
}

/// A value as a `T`; `at`: where it is in the request.
///
/// # Errors
/// A field of the wrong type, with its path.
pub fn typed<T: DeserializeOwned>(value: Value, at: &str) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = match error.path().to_string() {
            path if path == "." => at.to_owned(),
            path if at.is_empty() => path,
            path => format!("{at}.{path}"),
        };
        let message =
            format!("{}: {}", if path.is_empty() { "body" } else { &path }, error.inner());
        ApiError::Invalid { param: Some(path).filter(|path| !path.is_empty()), message }
    })
}

/// The lists that hold objects hold nothing else: a list of a struct's values would pass for it.
fn check_lists(fields: &Map<String, Value>) -> Result<(), ApiError> {
    for name in ["messages", "tools"] {
        let list = fields.get(name).and_then(Value::as_array);
        if let Some(at) = list.and_then(|list| list.iter().position(Value::is_array)) {
            let param = format!("{name}[{at}]");
            let message = format!("{param}: expected an object, found an array");
            return Err(ApiError::invalid(param, message));
        }
    }
    Ok(())
}

/// Refuses what no group took.
///
/// # Errors
/// The first key that is left.
pub fn finish(map: &Map<String, Value>) -> Result<(), ApiError> {
    match map.keys().next() {
        None => Ok(()),
        Some(name) => {
            let name: String = name.chars().take(64).collect();
            Err(ApiError::invalid(name.clone(), format!("{name}: this field is not supported")))
        }
    }
}

/// The keys of a group, from its schema.
fn field_names<T: PartialSchema>() -> BTreeSet<String> {
    match T::schema() {
        RefOr::T(Schema::Object(object)) => object.properties.keys().cloned().collect(),
        _ => BTreeSet::new(),
    }
}

/// Distinguishes `null` from an absent field: `#[serde(default, deserialize_with = "given")]`.
///
/// # Errors
/// Those of `T`.
pub fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}

/// An optional object: `#[serde(default, deserialize_with = "object")]`. Without this, a list of a
/// struct's values would pass for the struct.
///
/// # Errors
/// Anything but null and an object, and those of `T`, with the path inside it.
pub fn object<'de, D: Deserializer<'de>, T: DeserializeOwned>(d: D) -> Result<Option<T>, D::Error> {
    let Some(map) = Option::<Map<String, Value>>::deserialize(d)? else { return Ok(None) };
    let inner = serde_path_to_error::deserialize(Value::Object(map));
    inner.map(Some).map_err(serde::de::Error::custom)
}

/// A value in which no object names a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> DeserializeSeed<'de> for StrictVisitor {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(StrictVisitor)? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = access.next_value_seed(StrictVisitor)?;
            if map.contains_key(&key) {
                let key: String = key.chars().take(64).collect();
                return Err(serde::de::Error::custom(format!("key {key:?} occurs twice")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_objects_with_single_keys() {
        assert!(parse(br#"{"a": [1, 2.5, "x", null, {"b": true}]}"#).is_ok());
        for (body, part) in [
            (&b"[1]"[..], "expected a JSON object, found an array"),
            (b"", "EOF"),
            (br#"{"a": 1, "a": 2}"#, "\"a\" occurs twice"),
            (br#"{"a": {"b": 1, "b": 2}}"#, "\"b\" occurs twice"),
            (b"{\"a\": \"\xff\"}", "invalid unicode"),
            (br#"{"a": 1e999}"#, "out of range"),
        ] {
            let error = parse(body).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let deep = format!("{{\"a\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(parse(deep.as_bytes()).unwrap_err().to_string().contains("recursion limit"));
    }
}

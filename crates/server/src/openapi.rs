//! `GET /openapi.json`: the OpenAPI 3.1 document, generated from the wire types.
//!
//! Invariant: a request's schema has exactly the fields that [`crate::json::take`] takes, because
//! both read them from the same types.

use crate::error::ErrorBody;
use crate::models::{ModelList, ModelObject};
use crate::routes::ControlFields;
use crate::wire::chat::{ChatChunk, ChatCompletion, ChatFields};
use crate::wire::completions::{Completion, CompletionFields};
use crate::wire::messages::{
    InputTokens, MessageError, MessageEvent, MessageObject, MessagesFields, MessagesGeneration,
};
use crate::wire::response_object::{ResponseEvent, ResponseObject};
use crate::wire::responses::ResponsesFields;
use crate::wire::sampling::SamplingFields;
use crate::wire::thinking::ThinkingFields;
use crate::wire::tokenize::{
    DetokenizeFields, PromptText, TemplateFields, TokenizeFields, TokenizerInfo, Tokens,
};
use axum::Json;
use serde_json::{Map, Value, json};
use std::sync::LazyLock;
use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Schema};

static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

/// The handler.
pub async fn openapi() -> Json<&'static Value> {
    Json(&DOCUMENT)
}

/// Statuses of errors, and what they mean.
const POST_ERRORS: [(&str, &str); 10] = [
    ("400", "A field is wrong; `param` names it"),
    ("401", "No key, or a wrong one"),
    ("404", "The model is not served here"),
    ("408", "The request did not arrive in time"),
    ("413", "The body is too large"),
    ("415", "The body is not JSON by its content type"),
    ("429", "As many requests wait as may"),
    ("500", "Generation failed"),
    ("503", "The server is loading, draining or out of memory"),
    ("504", "The deadline passed"),
];

/// Schemas that others refer to, and the paths.
#[derive(Default)]
struct Document {
    components: Vec<(String, RefOr<Schema>)>,
    paths: Map<String, Value>,
}

fn document() -> Value {
    let mut doc = Document::default();
    doc.chat();
    doc.texts();
    doc.messages();
    doc.others();
    let schemas: Map<String, Value> =
        doc.components.into_iter().map(|(name, schema)| (name, json!(schema))).collect();
    let keys = json!({ "bearer": { "type": "http", "scheme": "bearer" },
        "key": { "type": "apiKey", "in": "header", "name": "x-api-key" } });
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Hybra",
            "description": "A hybrid reasoning model behind the APIs of OpenAI and Anthropic",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{}, { "bearer": [] }, { "key": [] }],
        "paths": doc.paths,
        "components": { "schemas": schemas, "securitySchemes": keys },
    });
    say_unsigned(&mut document);
    document
}

/// The generator calls a `u32` an int32, which ends too early.
fn say_unsigned(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            let unsigned = map.get("minimum").and_then(Value::as_f64).is_some_and(|m| m >= 0.0);
            if unsigned && map.get("format").is_some_and(|format| format == "int32") {
                map.shift_remove("format");
                map.entry("maximum").or_insert_with(|| u32::MAX.into());
            }
            map.values_mut().for_each(say_unsigned);
        }
        Value::Array(list) => list.iter_mut().for_each(say_unsigned),
        _ => {}
    }
}

impl Document {
    fn chat(&mut self) {
        let fields = [
            self.group::<ChatFields>(),
            self.group::<SamplingFields>(),
            self.group::<ThinkingFields>(),
        ];
        let reply = [self.reference::<ChatCompletion>(), self.reference::<ChatChunk>()];
        self.post::<ErrorBody>("/v1/chat/completions", "Continue a conversation", fields, reply);
        let fields = [
            self.group::<ResponsesFields>(),
            self.group::<SamplingFields>(),
            self.group::<ThinkingFields>(),
        ];
        let reply = [self.reference::<ResponseObject>(), self.reference::<ResponseEvent>()];
        self.post::<ErrorBody>("/v1/responses", "Answer items, statelessly", fields, reply);
        let fields = [self.group::<ControlFields>()];
        let summary = "End the thinking of a running request";
        let done = json!({ "type": "object", "required": ["id", "ended"], "properties": {
            "id": { "type": "string" }, "ended": { "type": "integer", "minimum": 1 } } });
        self.post::<ErrorBody>("/v1/chat/completions/control", summary, fields, [done]);
        let responses = &mut self.paths["/v1/chat/completions/control"]["post"]["responses"];
        let conflict = responses["404"].clone();
        responses["404"]["description"] = "No running request has this id".into();
        responses["409"] = conflict;
        responses["409"]["description"] = "The request is not thinking".into();
    }

    fn texts(&mut self) {
        let fields = [
            self.group::<CompletionFields>(),
            self.group::<SamplingFields>(),
            self.group::<ThinkingFields>(),
        ];
        let reply = [self.reference::<Completion>(), self.reference::<Completion>()];
        self.post::<ErrorBody>("/v1/completions", "Continue a text", fields, reply);
        let fields = [self.group::<TokenizeFields>(), self.group::<ThinkingFields>()];
        let reply = [self.reference::<Tokens>()];
        self.post::<ErrorBody>("/tokenize", "Tokens of a text or conversation", fields, reply);
        let (fields, reply) =
            ([self.group::<DetokenizeFields>()], [self.reference::<PromptText>()]);
        self.post::<ErrorBody>("/detokenize", "Text of tokens", fields, reply);
        let fields = [self.group::<TemplateFields>(), self.group::<ThinkingFields>()];
        let reply = [self.reference::<PromptText>()];
        self.post::<ErrorBody>("/apply-template", "A conversation as text", fields, reply);
    }

    fn messages(&mut self) {
        let fields = [
            self.group::<MessagesFields>(),
            self.group::<MessagesGeneration>(),
            self.group::<SamplingFields>(),
            self.group::<ThinkingFields>(),
        ];
        let reply = [self.reference::<MessageObject>(), self.reference::<MessageEvent>()];
        self.post::<MessageError>("/v1/messages", "Continue a conversation", fields, reply);
        let fields = [self.group::<MessagesFields>(), self.group::<ThinkingFields>()];
        let reply = [self.reference::<InputTokens>()];
        let path = "/v1/messages/count_tokens";
        self.post::<MessageError>(path, "Tokens of a conversation", fields, reply);
    }

    fn others(&mut self) {
        let list = self.reference::<ModelList>();
        self.get("/v1/models", "The model, under all of its names", list);
        let one = self.reference::<ModelObject>();
        self.get("/v1/models/{model}", "A model", one);
        let name = json!([{ "name": "model", "in": "path", "required": true,
            "schema": { "type": "string", "minLength": 1 } }]);
        self.paths["/v1/models/{model}"]["parameters"] = name;
        let info = self.reference::<TokenizerInfo>();
        self.get("/tokenizer_info", "What a client's tokenizer must know", info);
        self.get("/health", "Whether the server works", json!({ "type": "object" }));
        self.get("/openapi.json", "This document", json!({ "type": "object" }));
    }

    /// A schema to refer to.
    fn reference<T: ToSchema>(&mut self) -> Value {
        let name = T::name();
        if !self.components.iter().any(|(known, _)| *known == name) {
            self.components.push((name.to_string(), T::schema()));
            T::schemas(&mut self.components);
        }
        json!({ "$ref": format!("#/components/schemas/{name}") })
    }

    /// The schema of a group of fields.
    fn group<T: ToSchema>(&mut self) -> Value {
        T::schemas(&mut self.components);
        json!(T::schema())
    }

    /// A path that takes one object of all `fields`. `reply`: the whole one, and the data of an
    /// event of a streamed one.
    fn post<E: ToSchema>(
        &mut self,
        path: &str,
        summary: &str,
        fields: impl IntoIterator<Item = Value>,
        reply: impl IntoIterator<Item = Value>,
    ) {
        let error = self.reference::<E>();
        let error = json!({ "application/json": { "schema": error } });
        let mut reply = reply.into_iter();
        let mut content = json!({ "application/json": { "schema": reply.next() } });
        if let Some(event) = reply.next() {
            let what = "Server-sent events; the data of each is one of `x-event`";
            let schema = json!({ "type": "string", "description": what, "x-event": event });
            content["text/event-stream"] = json!({ "schema": schema });
        }
        let mut responses = json!({ "200": { "description": "The reply", "content": content } });
        for (status, description) in POST_ERRORS {
            responses[status] = json!({ "description": description, "content": error });
        }
        let body = json!({ "application/json": { "schema": merged(fields) } });
        let operation = json!({
            "summary": summary,
            "requestBody": { "required": true, "content": body },
            "responses": responses,
        });
        self.paths.insert(path.to_owned(), json!({ "post": operation }));
    }

    fn get(&mut self, path: &str, summary: &str, schema: Value) {
        let error = self.reference::<ErrorBody>();
        let error = json!({ "application/json": { "schema": error } });
        let mut responses = json!({ "200": {
            "description": "The reply", "content": { "application/json": { "schema": schema } } } });
        for (status, description) in POST_ERRORS {
            if matches!(status, "400" | "401" | "404" | "408" | "503") {
                responses[status] = json!({ "description": description, "content": error });
            }
        }
        let operation = json!({ "summary": summary, "responses": responses });
        self.paths.insert(path.to_owned(), json!({ "get": operation }));
    }
}

/// One object with the fields of all groups, and no other.
fn merged(groups: impl IntoIterator<Item = Value>) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for mut group in groups {
        if let Some(Value::Object(fields)) = group.get_mut("properties").map(Value::take) {
            properties.extend(fields);
        }
        if let Some(Value::Array(names)) = group.get_mut("required").map(Value::take) {
            required.extend(names);
        }
    }
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

//! Every way a request can fail, its HTTP status, and its body in OpenAI's and Anthropic's form.
//!
//! Statuses are decided here and nowhere else.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hybra_chat::{ChatError, GrammarError};
use hybra_engine::{RequestError, SubmitError};
use hybra_tokenizer::TemplateError;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

/// Seconds after which a client may try again where the server is not ready.
const UNAVAILABLE_RETRY_AFTER_S: u64 = 5;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// A field, or the body as a whole, is not what it must be.
    #[error("{message}")]
    Invalid {
        /// The field that is wrong, as it is spelled in the request.
        param: Option<String>,
        /// What was expected and what was found.
        message: String,
    },
    /// No key, or a wrong one.
    #[error("missing or wrong API key; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`")]
    Unauthorized,
    /// The model, the request id or the path is not known here.
    #[error("{message}")]
    NotFound {
        /// The field that names it.
        param: Option<String>,
        /// What is not there.
        message: String,
    },
    /// The path has no such method.
    #[error("this path does not take {method} requests")]
    Method {
        /// The method as sent.
        method: String,
    },
    /// What was asked for does not fit the state of things.
    #[error("{message}")]
    Conflict {
        /// Why not.
        message: String,
    },
    /// The body is larger than allowed.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// Too many headers, or too many bytes in them.
    #[error(
        "the headers are too large: expected at most {} headers of together {} bytes",
        crate::config::MAX_HEADERS,
        crate::config::MAX_HEADER_BYTES
    )]
    HeadersTooLarge,
    /// The body is compressed.
    #[error("content-encoding: expected none, found {found:?}")]
    ContentEncoding {
        /// As sent.
        found: String,
    },
    /// The body did not arrive in time.
    #[error("the request did not arrive within {seconds} s")]
    RequestTimeout {
        /// The limit.
        seconds: u64,
    },
    /// The body is not JSON by its content type.
    #[error("content-type: expected application/json, found {found:?}")]
    ContentType {
        /// As sent.
        found: String,
    },
    /// As many requests wait as may.
    #[error("the server is at capacity: {waiting} requests wait; try again later")]
    Busy {
        /// How many wait.
        waiting: usize,
        /// Seconds until a place is likely.
        retry_after: u64,
    },
    /// The server is loading, draining or broken.
    #[error("{message}")]
    Unavailable {
        /// Which.
        message: String,
    },
    /// The request's deadline passed.
    #[error("the deadline of {seconds} s passed")]
    Deadline {
        /// The limit.
        seconds: u64,
    },
    /// Generation failed.
    #[error("{message}")]
    Internal {
        /// What went wrong.
        message: String,
    },
}

/// OpenAI's error object.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorObject,
}

/// What an error says.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorObject {
    /// For people.
    pub message: String,
    /// Kind of error.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The request field that is wrong.
    pub param: Option<String>,
    /// Kind of error, finer.
    pub code: Option<&'static str>,
}

impl ApiError {
    /// A fault of the field `param`.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { param: Some(param.into()), message: message.into() }
    }

    /// A field that does nothing here.
    #[must_use]
    pub fn unsupported(param: &str, why: &str) -> Self {
        Self::invalid(param, format!("{param}: not supported: {why}"))
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Invalid { .. } => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict { .. } => StatusCode::CONFLICT,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::RequestTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::ContentType { .. } | Self::ContentEncoding { .. } => {
                StatusCode::UNSUPPORTED_MEDIA_TYPE
            }
            Self::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Deadline { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// OpenAI's `type` and `code`.
    fn kind(&self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Unauthorized => ("authentication_error", Some("invalid_api_key")),
            Self::NotFound { param, .. } if param.as_deref() == Some("model") => {
                ("invalid_request_error", Some("model_not_found"))
            }
            Self::Busy { .. } => ("rate_limit_error", Some("server_busy")),
            Self::Unavailable { .. } => ("server_error", Some("unavailable")),
            Self::Deadline { .. } => ("server_error", Some("deadline_exceeded")),
            Self::Internal { .. } => ("server_error", None),
            _ => ("invalid_request_error", None),
        }
    }

    /// OpenAI's object.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        let (kind, code) = self.kind();
        let param = match self {
            Self::Invalid { param, .. } | Self::NotFound { param, .. } => param.clone(),
            _ => None,
        };
        ErrorBody { error: ErrorObject { message: self.to_string(), kind, param, code } }
    }

    /// Anthropic's object.
    #[must_use]
    pub fn anthropic_body(&self) -> Value {
        let kind = match self {
            Self::Unauthorized => "authentication_error",
            Self::NotFound { .. } => "not_found_error",
            Self::TooLarge { .. } => "request_too_large",
            Self::Busy { .. } => "rate_limit_error",
            Self::Unavailable { .. } => "overloaded_error",
            Self::Deadline { .. } => "timeout_error",
            Self::Internal { .. } => "api_error",
            _ => "invalid_request_error",
        };
        json!({ "type": "error", "error": { "type": kind, "message": self.to_string() } })
    }

    /// The response with this error in Anthropic's form.
    #[must_use]
    pub fn into_anthropic(self) -> Response {
        let body = Json(self.anthropic_body());
        self.with_body(body)
    }

    fn with_body(&self, body: impl IntoResponse) -> Response {
        let mut response = (self.status(), body).into_response();
        let headers = response.headers_mut();
        let retry_after = match self {
            Self::Busy { retry_after, .. } => Some(*retry_after),
            Self::Unavailable { .. } => Some(UNAVAILABLE_RETRY_AFTER_S),
            _ => None,
        };
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Self::Unauthorized = self {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.with_body(Json(self.body()))
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let message = error.to_string();
        let param = match error {
            RequestError::NotANumber { field, .. }
            | RequestError::OutOfRange { field, .. }
            | RequestError::TooMany { field, .. }
            | RequestError::TokenOutOfVocab { field, .. }
            | RequestError::Malformed { field, .. } => field.to_owned(),
            RequestError::Conflict { first, .. } => {
                first.split(' ').next().unwrap_or_default().to_owned()
            }
        };
        Self::Invalid { param: Some(param), message }
    }
}

impl From<ChatError> for ApiError {
    fn from(error: ChatError) -> Self {
        let param = match &error {
            ChatError::Template(
                TemplateError::ReservedArgument(_) | TemplateError::ArgumentsTooLarge { .. },
            ) => "chat_template_kwargs",
            ChatError::Template(TemplateError::Continue(_)) => "continue_final_message",
            ChatError::Template(_) | ChatError::Dropped { .. } => "messages",
            ChatError::NoThinkForm => "enable_thinking",
            ChatError::NoThinkTags { field } => field,
            ChatError::Vocab(_) => "thinking_budget_message",
            ChatError::Tokenizer(hybra_tokenizer::Error::TagInMessage { .. }) => {
                "thinking_budget_message"
            }
            ChatError::Tokenizer(_) | ChatError::TokenId { .. } => "prompt",
        };
        match error {
            // What is wrong with them has no name on the wire.
            ChatError::Vocab(_) | ChatError::Template(_) => {
                Self::invalid(param, format!("{param}: {error}"))
            }
            _ => Self::invalid(param, error.to_string()),
        }
    }
}

impl From<GrammarError> for ApiError {
    fn from(error: GrammarError) -> Self {
        let message = error.to_string();
        match error {
            GrammarError::Busy { .. } => Self::Unavailable { message },
            GrammarError::TooMuch { field, .. }
            | GrammarError::Unsupported { field, .. }
            | GrammarError::Invalid { field, .. }
            | GrammarError::Empty { field }
            | GrammarError::Timeout { field } => Self::invalid(field, message),
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Request(error) => error.into(),
            SubmitError::QueueFull { waiting } => Self::Busy { waiting, retry_after: 1 },
            SubmitError::Stopped => Self::Unavailable { message: error.to_string() },
        }
    }
}

//! The errors of the service: an HTTP status, a code for programs and a message for people.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mp4sr_pipeline::text::quoted;
use serde::Serialize;
use utoipa::ToSchema;

use crate::limits::RETRY_SECONDS;

/// An error of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

/// The body of a response that reports an error.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// The code and the message of an error.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// A code for programs.
    #[schema(example = "invalid_request")]
    pub code: String,
    /// A message for people.
    pub message: String,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// A body or a parameter that cannot be used.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    /// A thing that does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// A path that is not UTF-8.
    pub fn not_utf8() -> Self {
        Self::invalid("the path is not UTF-8; encode ids as UTF-8 and then with `%`")
    }

    /// An image of an item that has only `count`.
    pub fn no_image(id: &str, count: usize) -> Self {
        let id = quoted(id);
        Self::not_found(match count {
            0 => format!("{id} has no image"),
            _ => format!("the last image of {id} has the number {}", count - 1),
        })
    }

    /// A valid request that the run cannot fulfil.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", message)
    }

    /// A body larger than the limit.
    pub fn too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", format!("the body has more than {limit} bytes"))
    }

    /// A compressed body.
    pub fn encoded(encoding: &str) -> Self {
        let encoding = quoted(encoding);
        let message =
            format!("the body has the encoding {encoding}, which is not supported; send it without `Content-Encoding`");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", message)
    }

    /// A body that arrives too slowly.
    pub fn slow_body() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "slow_body", "the body of the request arrived too slowly; try again")
    }

    /// Whether the body did not arrive in time.
    pub fn is_slow_body(&self) -> bool {
        self.status == StatusCode::REQUEST_TIMEOUT
    }

    /// A request without a key, or with an unknown one.
    pub fn unauthorized() -> Self {
        let message = "a valid key is required, as `Authorization: Bearer KEY`";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    /// A host name that a service without keys does not accept.
    pub fn wrong_host() -> Self {
        let message = "without keys, only requests to `localhost` are answered";
        Self::new(StatusCode::MISDIRECTED_REQUEST, "wrong_host", message)
    }

    /// Too many requests are waiting.
    pub fn busy() -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", "too many requests are waiting; try again")
    }

    /// The request exceeded its time limit.
    pub fn too_slow() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", "the request took too long; try again")
    }

    /// No run is loaded yet.
    pub fn not_ready() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", "the run is being loaded; try again")
    }

    /// The store of the added items cannot be reached.
    pub fn store_unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", message)
    }

    /// Another process is changing the added items.
    pub fn locked(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "locked", message)
    }

    /// A path that exists, requested with a method that it does not support.
    pub fn wrong_method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "the path does not support this method")
    }

    /// A bug, or a run that cannot answer.
    pub fn internal(message: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { status, code, message } = self;
        let body = ErrorBody { error: ErrorDetail { code: code.to_owned(), message } };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

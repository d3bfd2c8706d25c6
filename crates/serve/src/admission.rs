//! Decides whether a request is answered, and reads its body within the limits of the service.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{Method, header};
use http_body_util::BodyExt as _;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

use crate::error::ApiError;
use crate::limits::{BODY_TIME, DRAIN_TIME, DRAINED, LEAST_RATE};
use crate::paths::{BodyKind, body_of, is_open};
use crate::state::App;

type Result<T> = std::result::Result<T, ApiError>;

/// The largest body that a route reads; `None` if it reads none.
fn body_limit(app: &App, method: &Method, route: &str) -> Option<usize> {
    match body_of(method, route) {
        BodyKind::None => None,
        BodyKind::Ids => Some(app.limits.body),
        BodyKind::Items => Some(app.limits.item_body),
    }
}

/// Admits a request and reads its body, with the permit of a large one, or refuses it.
pub async fn admitted<'a>(
    app: &'a App,
    request: Request,
    route: &str,
) -> Result<(Request, Option<SemaphorePermit<'a>>)> {
    let length = stated_length(&request);
    let limit = body_limit(app, request.method(), route);
    let encoding = request.headers().get(header::CONTENT_ENCODING).and_then(|encoding| encoding.to_str().ok());
    let encoding = encoding.filter(|encoding| !encoding.eq_ignore_ascii_case("identity"));
    let is_large = length.is_some_and(|length| length > app.limits.body);
    let checked = admit(app, &request, route).and_then(|()| match (encoding, limit) {
        (Some(encoding), Some(_)) => Err(ApiError::encoded(encoding)),
        // A body that states too great a length is not waited for, nor is one that would not get a permit.
        (None, Some(limit)) if length.is_some_and(|length| length > limit) => Err(ApiError::too_large(limit)),
        (None, Some(_)) if is_large && app.large_bodies.available_permits() == 0 => Err(ApiError::busy()),
        _ => Ok(limit),
    });
    let (parts, mut body) = request.into_parts();
    let read = match checked {
        Ok(Some(limit)) => whole_body(app, &mut body, limit).await,
        Ok(None) => Ok((Bytes::new(), None)),
        Err(refusal) => Err(refusal),
    };
    // A client that expects to be asked for its body does not send it, and one that sends it slowly is not waited for.
    let is_sent = !parts.headers.contains_key(header::EXPECT) && length.is_none_or(|length| length <= DRAINED);
    if is_sent && limit.is_none() || read.as_ref().is_err_and(|refusal| !refusal.is_slow_body() && is_sent) {
        drain(body).await;
    }
    let (body, permit) = read?;
    Ok((Request::from_parts(parts, body.into()), permit))
}

/// Reads a body that must arrive at a reasonable rate. A body that turns out to be large takes one of the permits.
async fn whole_body<'a>(app: &'a App, body: &mut Body, most: usize) -> Result<(Bytes, Option<SemaphorePermit<'a>>)> {
    let start = Instant::now();
    let (mut whole, mut permit) = (Vec::new(), None);
    loop {
        let deadline = start + BODY_TIME + Duration::from_secs((whole.len() / LEAST_RATE) as u64);
        let Ok(frame) = tokio::time::timeout_at(deadline, body.frame()).await else {
            return Err(ApiError::slow_body());
        };
        let Some(frame) = frame else { return Ok((whole.into(), permit)) };
        let frame = frame.map_err(|error| ApiError::invalid(format!("failed to read the body: {error}")))?;
        let Ok(chunk) = frame.into_data() else { continue };
        let length = whole.len() + chunk.len();
        if length > most {
            return Err(ApiError::too_large(most));
        }
        if permit.is_none() && length > app.limits.body {
            permit = Some(app.large_bodies.try_acquire().map_err(|_| ApiError::busy())?);
        }
        whole.extend_from_slice(&chunk);
    }
}

/// Reads a body that no handler reads, because a client that still sends does not read the answer.
async fn drain(mut body: Body) {
    let all = async {
        let mut read = 0;
        while read <= DRAINED
            && let Some(Ok(frame)) = body.frame().await
        {
            read += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // What has not arrived by then is not waited for.
    let _ = tokio::time::timeout(DRAIN_TIME, all).await;
}

/// The length of the body according to the request's headers.
fn stated_length(request: &Request) -> Option<usize> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Checks whether a request may be answered. If keys are set, everything except the page, the description, `/healthz` and `/readyz`
/// requires one. Without keys, the `Host` header of every request must name this machine, which prevents DNS rebinding: a page of another
/// site cannot send requests under its own host name.
fn admit(app: &App, request: &Request, route: &str) -> Result<()> {
    if app.keys.is_off() {
        let named = request.headers().get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or_default());
        let mut hosts = named.chain(request.uri().authority().map(Authority::as_str));
        return if hosts.all(is_local) { Ok(()) } else { Err(ApiError::wrong_host()) };
    }
    if is_open(route) || app.keys.allow(request.headers()) { Ok(()) } else { Err(ApiError::unauthorized()) }
}

fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_this_machine_are_distinguished_from_others() {
        for host in ["localhost", "localhost:80", "LOCALHOST", "127.0.0.1:8080", "127.3.2.1", "[::1]:80", "[::1]"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["shop.example", "localhost.example:80", "10.0.0.1", "[2001:db8::1]:80", "127.0.0.1.example", ""] {
            assert!(!is_local(host), "{host}");
        }
    }
}

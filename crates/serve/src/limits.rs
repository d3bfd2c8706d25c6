//! What a service lets a request ask for.

use std::time::Duration;

/// Limits of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The time that a request may take.
    pub time: Duration,
    /// The greatest number of bytes of a request's body.
    pub body: usize,
    /// Bytes of the body of a request that changes items, or that has an image.
    pub item_body: usize,
    /// The length of a list.
    pub top: usize,
    /// Ids in a history.
    pub history: usize,
    /// Ids in `exclude` or `only`.
    pub ids: usize,
    /// The greatest number of simultaneous connections.
    pub connections: usize,
}

/// The time that a connection has for the head of a request.
pub const HEAD_TIME: Duration = Duration::from_secs(10);
/// The time that a client has to take a further part of an answer.
pub const WRITE_TIME: Duration = Duration::from_secs(30);
/// The time that a request which changes items may take.
pub const ITEM_TIME: Duration = Duration::from_mins(10);
/// Requests with bodies beyond [`Limits::body`] at once.
pub const LARGE_BODIES: usize = 8;
/// The time that open requests have when the service stops.
pub const STOP_TIME: Duration = Duration::from_secs(30);
/// What `Retry-After` says, in seconds.
pub const RETRY_SECONDS: u32 = 1;

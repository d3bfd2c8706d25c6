//! The limits on what a request may ask for.

use std::time::Duration;

/// Limits of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceLimits {
    /// The time that a request may take.
    pub time: Duration,
    /// The maximum number of bytes of a request's body.
    pub body: usize,
    /// The maximum number of bytes of a body that changes items or has an image.
    pub item_body: usize,
    /// The maximum length of a list.
    pub top: usize,
    /// The maximum number of ids in a history.
    pub history: usize,
    /// The maximum number of ids in `exclude`, and in `only`.
    pub ids: usize,
    /// The maximum number of simultaneous connections.
    pub connections: usize,
}

/// The time within which a connection must send the head of a request.
pub const HEAD_TIME: Duration = Duration::from_secs(10);
/// The time within which a connection must send the body of a request, in addition to that at [`LEAST_RATE`].
pub const BODY_TIME: Duration = Duration::from_secs(30);
/// The bytes per second at which a connection must send the body of a request after [`BODY_TIME`].
pub const LEAST_RATE: usize = 64 << 10;
/// The largest body that is read before the answer although no handler reads it, because a client that still sends does not read the
/// answer.
pub const DRAINED: usize = 64 << 20;
/// The time for reading such a body.
pub const DRAIN_TIME: Duration = Duration::from_secs(5);
/// The time within which a client must accept the next part of a response.
pub const WRITE_TIME: Duration = Duration::from_secs(30);
/// The time that a request which changes items may take.
pub const ITEM_TIME: Duration = Duration::from_mins(10);
/// The maximum number of texts of an item that a request adds.
pub const TEXTS: usize = 100;
/// The maximum number of images of an item that a request adds.
pub const IMAGES: usize = 100;
/// The maximum length of the text of a search for items, in bytes.
pub const SEARCHED: usize = 1000;
/// The maximum number of images that are read from PostgreSQL at the same time.
pub const STORED_IMAGES: usize = 4;
/// The maximum number of simultaneous searches for items, each of which reads all titles.
pub const SEARCHES: usize = 2;
/// The maximum number of simultaneous requests with bodies larger than [`ServiceLimits::body`].
pub const LARGE_BODIES: usize = 8;
/// The time that open requests have to finish when the service stops.
pub const STOP_TIME: Duration = Duration::from_secs(30);
/// The time that the last lines of the log have to be read when the service stops.
pub const LOG_TIME: Duration = Duration::from_secs(1);
/// The value of the `Retry-After` header, in seconds.
pub const RETRY_SECONDS: u32 = 1;

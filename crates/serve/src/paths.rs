//! The paths of the service, and what distinguishes their requests: the size of the body, the time that they may take, and whether they
//! need a key.

use axum::http::Method;

pub const RECOMMEND: &str = "/v1/recommend";
pub const SIMILAR: &str = "/v1/similar";
pub const ITEMS: &str = "/v1/items";
pub const ITEM: &str = "/v1/items/{id}";
pub const IMAGE: &str = "/v1/items/{id}/images/{number}";
pub const HEALTH: &str = "/healthz";
pub const READY: &str = "/readyz";
pub const METRICS: &str = "/metrics";
pub const DESCRIPTION: &str = "/openapi.json";
pub const PAGE: &str = "/";
pub const SCRIPT: &str = "/page.js";
pub const STYLE: &str = "/page.css";

/// The body that a request may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// None: what is sent is not read.
    None,
    /// Ids and numbers.
    Ids,
    /// Items with their texts and images, or ids of many items.
    Items,
}

/// The body of the requests of a route. A new route that reads a body has to be added here, or it gets an empty one.
pub fn body_of(method: &Method, route: &str) -> BodyKind {
    match route {
        RECOMMEND if method == Method::POST => BodyKind::Ids,
        SIMILAR if method == Method::POST => BodyKind::Items,
        _ if changes_items(method, route) => BodyKind::Items,
        _ => BodyKind::None,
    }
}

/// Whether a request adds or removes items: encoding them and reloading the run take longer than answering a query.
pub fn changes_items(method: &Method, route: &str) -> bool {
    route == ITEMS && [Method::PUT, Method::DELETE].contains(method)
}

/// Whether a route needs no key: the page, the description of the service, and whether it is alive and ready.
pub fn is_open(route: &str) -> bool {
    [PAGE, SCRIPT, STYLE, DESCRIPTION, HEALTH, READY].contains(&route)
}

//! The metrics that Prometheus reads.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

/// The labels of a request: route, method and status.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RequestLabels {
    /// The route's pattern.
    pub route: String,
    /// The HTTP method.
    pub method: String,
    /// The HTTP status.
    pub status: u16,
}

/// The label of a request: its route.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RouteLabels {
    /// The route's pattern.
    pub route: String,
}

/// The label of a reload: its outcome.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReloadLabels {
    /// `swapped` or `failed`.
    pub outcome: String,
}

/// The counters, gauges and histograms of the service.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// The number of answered requests.
    pub requests: Family<RequestLabels, Counter>,
    /// The seconds from a request's head to its answer.
    pub seconds: Family<RouteLabels, Histogram>,
    /// The number of requests that wait for the model.
    pub queued: Gauge,
    /// The number of requests in each batch.
    pub batches: Histogram,
    /// The number of open connections.
    pub connections: Gauge,
    /// The number of reloads, by outcome.
    pub reloads: Family<ReloadLabels, Counter>,
    /// The number of the generation in service.
    pub generation: Gauge,
    /// The number of items in service.
    pub items: Gauge,
    /// Whether the store of the added items could be reached: 1 or 0.
    pub store_up: Gauge,
    /// recall@10 of the search against the exact search, measured when the run was loaded.
    pub recall: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Creates and registers all metrics.
    pub fn new() -> Self {
        let mut own = Self {
            registry: Registry::with_prefix("mp4sr"),
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0005, 2.0, 16))),
            queued: Gauge::default(),
            batches: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            connections: Gauge::default(),
            reloads: Family::default(),
            generation: Gauge::default(),
            items: Gauge::default(),
            store_up: Gauge::default(),
            recall: Gauge::default(),
        };
        let registry = &mut own.registry;
        registry.register("http_requests", "Requests that were answered", own.requests.clone());
        registry.register(
            "http_request_seconds",
            "Seconds from the head of a request to its answer",
            own.seconds.clone(),
        );
        registry.register("queued_requests", "Requests that wait for the model", own.queued.clone());
        registry.register("batch_size", "Requests that were answered together", own.batches.clone());
        registry.register("connections", "Open connections", own.connections.clone());
        registry.register("reloads", "Runs that were loaded or failed to load", own.reloads.clone());
        registry.register("generation", "The number of the generation in service", own.generation.clone());
        registry.register("items", "Items in service", own.items.clone());
        registry.register("store_up", "Whether the store of the added items could be reached", own.store_up.clone());
        own.store_up.set(1);
        registry.register("search_recall_at_10", "recall@10 against the exact search", own.recall.clone());
        own
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

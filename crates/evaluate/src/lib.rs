//! Checkpoint to ranks, ranks to metrics.

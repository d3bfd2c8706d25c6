//! Checkpoint, features and histories to top-K lists.

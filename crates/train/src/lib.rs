//! Dataset, features and configuration to checkpoints.

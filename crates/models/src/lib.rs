//! M2SE and the baselines.

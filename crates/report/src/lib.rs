//! Metrics, curves and recommendations to one self-contained page and tables.

//! Raw interactions and items to a dataset.

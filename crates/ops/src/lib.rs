//! Differentiable operators, counter-based random numbers, Adam.

//! Behaviour, on fixtures.

//! Behaviour, one event at a time.

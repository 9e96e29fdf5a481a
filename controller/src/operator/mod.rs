//! The operators' service: what the controller knows, on what evidence, and what it waits for.
//!
//! In come questions; out go answers from the core's views (durable by the time they are given) and the agents' last
//! words. Nothing here changes anything.

mod info;
mod service;
mod watch;

pub use service::Operators;

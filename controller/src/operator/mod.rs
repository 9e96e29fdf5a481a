//! The operators' service: what the controller knows, on what evidence, and what it waits for.
//!
//! In come questions; out go answers from the core's views (durable by the time they are given) and the agents' last
//! words. Some calls are more than questions: to fence a node and to declare one gone, each on a person's statement
//! that is kept with what rests on it; and to put, renew and end a ticket.

mod drift;
mod info;
mod rights;
mod service;
mod ticket_calls;
mod tickets;
mod watch;

pub use drift::keep_looking;
pub use service::Operators;

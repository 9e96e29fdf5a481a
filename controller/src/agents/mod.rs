//! Agent sessions: one bidirectional stream for each node, on which it proves what its kernel holds and is sent
//! what to attach and detach.
//!
//! In come the agents' streams and the core's directives; out go events and messages, checked both ways. What holds:
//! a session's events reach the core in the order of its stream, SessionUp first and SessionLost last, whatever ends
//! it; a directive reaches the session it was meant for or nobody; nothing that an agent sends can panic us.

mod counts;
mod decode;
mod encode;
mod limits;
mod malformed;
mod proof;
mod registry;
mod reports;
mod service;
mod session;
mod session_context;
mod settings;

pub(crate) use limits::MESSAGE_BYTES;
pub use registry::Sessions;
pub use reports::{AgentReport, ReportNumber, Reports};
pub use service::AgentSessions;
pub(crate) use session_context::{SessionContext, SessionIds};
pub use settings::{AgentSettings, PathPolicy};

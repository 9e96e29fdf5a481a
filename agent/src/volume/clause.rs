//! Names of what can fail, beyond the clauses of the readiness predicate (`cleat_host::readiness::Clause`).
//!
//! They are sent in `Unready.clause` and are stable: the controller, `cleatctl` and tests know them.

use cleat_host::readiness::Unready;

/// A field of the directive cannot be used.
pub const REQUEST: &str = "request";
/// This version does not know the directive.
pub const DIRECTIVE: &str = "unknown-directive";
/// The ledger cannot be read or written.
pub const LEDGER: &str = "ledger";
/// The same epoch was granted for something else, or this node has no grant.
pub const GRANT: &str = "grant";
/// The volume has several portals, but this kernel does not make one device of them.
pub const MULTIPATH: &str = "multipath";
/// No portal could be connected.
pub const CONNECT: &str = "connect";
/// The target asks for a secret that this node does not have, or refuses the one that it has.
pub const AUTHENTICATION: &str = "authentication";
/// The namespace is not reserved for this node as it should be.
pub const RESERVATION: &str = "reservation";
/// Another directive took its place.
pub const SUPERSEDED: &str = "superseded";
/// The kernel's state could not be read.
pub const LOOK: &str = "look";
/// The search for users of the device failed, and nothing was touched.
pub const USERS: &str = "users";
/// Somebody still uses a device of the volume that is gone.
pub const DEAD_DEVICE: &str = "dead-device";
/// A controller could not be deleted.
pub const DELETE: &str = "delete";
/// A bug in the agent.
pub const INTERNAL: &str = "internal";

/// A clause that does not hold, and what was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedClause {
    /// Its stable name: one of this module's, or of the predicate's clauses.
    pub clause: &'static str,
    /// What was expected and what was seen, as text for a person.
    pub message: String,
}

impl From<&Unready> for FailedClause {
    fn from(unready: &Unready) -> Self {
        failed(unready.clause.as_str(), &unready.facts)
    }
}

/// Makes a failed clause of its name and what was seen.
pub fn failed(clause: &'static str, message: impl ToString) -> FailedClause {
    FailedClause { clause, message: message.to_string() }
}

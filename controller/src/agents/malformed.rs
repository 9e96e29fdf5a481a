//! What an agent must not send, by field.

use cleat_ids::IdError;
use cleat_proto::VersionsApart;

/// Something that an agent must not say. The session ends with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// A field whose value is not valid.
    #[error("{field}: {source}")]
    Name {
        field: &'static str,
        #[source]
        source: IdError,
    },
    /// A field with another fault.
    #[error("{field} {value:?}: {rule}")]
    Field { field: &'static str, value: String, rule: &'static str },
    /// More of something than one agent can make us keep.
    #[error("{field}: {found}, and at most {most} are taken from one node; see what this agent does")]
    TooMany { field: &'static str, found: usize, most: usize },
    /// A field that must be there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// The agent speaks a protocol that is too far from ours.
    #[error("{apart} (agent {agent}, controller {})", cleat_runtime::build_info())]
    Protocol {
        apart: VersionsApart,
        /// What the agent says of its version.
        agent: String,
    },
    /// The agent looks after other subsystems.
    #[error(
        "cannot take this agent: its NQN prefix is {agent:?}, this controller's is {ours:?}; give both the same --nqn-prefix"
    )]
    Prefix { agent: String, ours: String },
}

impl Malformed {
    /// Whether the configuration is at fault, rather than the message.
    pub(super) fn is_mismatch(&self) -> bool {
        matches!(self, Self::Protocol { .. } | Self::Prefix { .. })
    }
}

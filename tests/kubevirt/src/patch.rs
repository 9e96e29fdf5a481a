//! What is written to the cluster, one write each.

use serde_json::Value;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A pod.
    Pod,
    /// A running VM.
    VirtualMachineInstance,
    /// Its migration.
    VirtualMachineInstanceMigration,
}

impl Kind {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::VirtualMachineInstance => "VirtualMachineInstance",
            Self::VirtualMachineInstanceMigration => "VirtualMachineInstanceMigration",
        }
    }

    /// Its group and version.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Pod => "v1",
            _ => "kubevirt.io/v1",
        }
    }
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    /// An object is made.
    Make(Named, Value),
    /// A merge patch (RFC 7386): `null` takes away.
    Merge(Named, Value),
    /// The same, of a pod's status.
    Status(Named, Value),
    /// A pod gets its node.
    Place(Named, String),
    /// A pod is deleted, and gets its time to end.
    Leave(Named),
    /// An object is deleted; it stays while it has finalizers. A pod is no more.
    Delete(Named),
}

impl Patch {
    /// Of which object.
    #[must_use]
    pub fn of(&self) -> &Named {
        match self {
            Self::Make(named, _)
            | Self::Merge(named, _)
            | Self::Status(named, _)
            | Self::Place(named, _)
            | Self::Leave(named)
            | Self::Delete(named) => named,
        }
    }

    /// The same write, with more in it.
    #[must_use]
    pub(crate) fn and(mut self, more: &Value) -> Self {
        if let Self::Merge(_, with) = &mut self {
            add(with, more);
        }
        self
    }
}

/// What takes away stays, as it does not where a patch is applied.
fn add(to: &mut Value, more: &Value) {
    match (to, more) {
        (Value::Object(to), Value::Object(more)) => {
            for (key, value) in more {
                add(to.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (to, more) => *to = more.clone(),
    }
}

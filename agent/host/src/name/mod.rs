//! Validated names of the NVMe world: built once at the edge, never wrong afterwards.
//!
//! Comes in: text from a directive, a file or sysfs. Goes out: a type that cannot hold an invalid value, or
//! [`InvalidName`] that says which rule was broken and by what.
//!
//! Always holds: a name that was accepted here can be put into the kernel's comma-separated option string
//! without changing its meaning.

mod device;
mod nqn;
mod portal;

pub use device::{ControllerName, DevT, NamespaceIdentity, NamespaceUuid, Nguid};
pub use nqn::{HostId, HostNqn, SubsystemNqn};
pub use portal::Portal;

/// Why a text is not the name it was meant to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} is not valid: {rule}")]
pub struct InvalidName {
    /// What it was meant to be, such as "host NQN".
    pub kind: &'static str,
    /// The text as it came in, cut to 300 characters.
    pub value: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

impl InvalidName {
    pub(crate) fn new(kind: &'static str, value: &str, rule: &'static str) -> Self {
        Self { kind, value: value.chars().take(300).collect(), rule }
    }
}

/// Implements `Display`, `FromStr`, `TryFrom<String>` and serde (as text) for a newtype with `parse` and `as_str`-like display.
macro_rules! text_name {
    ($name:ident) => {
        impl std::str::FromStr for $name {
            type Err = $crate::name::InvalidName;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::parse(text)
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use text_name;

//! Names of the NVMe world. Those that all programs share come from `cleat-ids`; those that only the kernel
//! gives are made here.
//!
//! Comes in: text from a directive, a file or sysfs. Goes out: a type that cannot contain an invalid value,
//! or [`InvalidName`] with the rule that was broken and the text that broke it.
//!
//! Always holds: a name that was accepted here can be put into the kernel's comma-separated option string
//! without changing its meaning.

mod device;

pub use cleat_ids::{
    HostId, HostNqn, IdError as InvalidName, NamespaceIdentity, NamespaceUuid, Nguid, Portal, SubsystemNqn,
};
pub use device::{ControllerName, DevT};

/// Implements `FromStr` and serde (as text) for a newtype with `parse` and `Display`.
macro_rules! text_name {
    ($name:ident) => {
        impl std::str::FromStr for $name {
            type Err = cleat_ids::IdError;
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

//! Names of what the kernel made: controllers, namespaces, device numbers.

use std::fmt;

use uuid::Uuid;

use super::{InvalidName, text_name};

/// Name of an NVMe controller on this host, such as `nvme3`.
///
/// The number is reused after a deletion: a name says where to look, never which controller it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ControllerName(String);

impl ControllerName {
    /// Checks a text: `nvme` and a decimal number, so that it cannot lead out of sysfs.
    ///
    /// # Errors
    /// [`InvalidName`] otherwise.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let digits = text.strip_prefix("nvme").unwrap_or_default();
        if digits.is_empty() || digits.len() > 9 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(InvalidName::new("controller", text, "is not \"nvme\" and a number"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The controller of a kernel instance number.
    pub fn from_instance(instance: u32) -> Self {
        Self(format!("nvme{instance}"))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ControllerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_name!(ControllerName);

/// UUID of a namespace, never nil: the target's promise that it is the same data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespaceUuid(Uuid);

impl NamespaceUuid {
    /// Checks a text: a UUID, not all zeros (which means "none" in the Identify data).
    ///
    /// # Errors
    /// [`InvalidName`] otherwise.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        match Uuid::try_parse(text) {
            Ok(uuid) if !uuid.is_nil() => Ok(Self(uuid)),
            Ok(_) => Err(InvalidName::new("namespace UUID", text, "is all zeros")),
            Err(_) => Err(InvalidName::new("namespace UUID", text, "is not a UUID")),
        }
    }

    /// The UUID itself.
    pub fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

impl fmt::Display for NamespaceUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

text_name!(NamespaceUuid);

/// NGUID of a namespace: 16 bytes, never all zero, written as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nguid([u8; 16]);

impl Nguid {
    /// Checks a text: 32 hexadecimal digits, with or without dashes, not all zeros.
    ///
    /// # Errors
    /// [`InvalidName`] otherwise.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        match Uuid::try_parse(text) {
            Ok(id) if !id.is_nil() => Ok(Self(id.into_bytes())),
            Ok(_) => Err(InvalidName::new("NGUID", text, "is all zeros")),
            Err(_) => Err(InvalidName::new("NGUID", text, "is not 32 hexadecimal digits")),
        }
    }
}

impl fmt::Display for Nguid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).as_simple().fmt(f)
    }
}

text_name!(Nguid);

/// What tells one namespace from every other: its UUID, its NGUID, or both.
///
/// Learned at the first attach, then pinned: see [`NamespaceIdentity::contradiction`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct NamespaceIdentity {
    /// The UUID, where the target gives one.
    pub uuid: Option<NamespaceUuid>,
    /// The NGUID, where the target gives one.
    pub nguid: Option<Nguid>,
}

impl NamespaceIdentity {
    /// Whether there is nothing to tell it by.
    pub fn is_empty(&self) -> bool {
        self.uuid.is_none() && self.nguid.is_none()
    }

    /// Compares what was pinned (`self`) with what is `found`: `None` when every identifier that was pinned
    /// is there and equal, and at least one was; else what contradicts, in words.
    pub fn contradiction(&self, found: &NamespaceIdentity) -> Option<String> {
        if self.is_empty() {
            return Some("nothing was pinned to compare with".to_owned());
        }
        if self.uuid.is_some() && self.uuid != found.uuid {
            return Some(format!("expected UUID {}, found {}", shown(&self.uuid), shown(&found.uuid)));
        }
        if self.nguid.is_some() && self.nguid != found.nguid {
            return Some(format!("expected NGUID {}, found {}", shown(&self.nguid), shown(&found.nguid)));
        }
        None
    }
}

impl fmt::Display for NamespaceIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UUID {}, NGUID {}", shown(&self.uuid), shown(&self.nguid))
    }
}

fn shown(id: &Option<impl fmt::Display>) -> String {
    id.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)
}

/// A device number, written `major:minor` as sysfs and mountinfo do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DevT {
    /// Major number, 12 bits in Linux.
    pub major: u32,
    /// Minor number, 20 bits in Linux.
    pub minor: u32,
}

impl DevT {
    /// Reads `major:minor`.
    ///
    /// # Errors
    /// [`InvalidName`] when it is not two decimal numbers with a colon between.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let number =
            |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten();
        text.split_once(':')
            .and_then(|(major, minor)| Some(Self { major: number(major)?, minor: number(minor)? }))
            .ok_or_else(|| InvalidName::new("device number", text, "is not MAJOR:MINOR"))
    }

    /// From `st_dev` or `st_rdev` of a stat call.
    pub fn from_raw(raw: u64) -> Self {
        Self { major: libc::major(raw), minor: libc::minor(raw) }
    }
}

impl fmt::Display for DevT {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

text_name!(DevT);

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";

    #[test]
    fn controller_names_cannot_lead_elsewhere() {
        assert!(ControllerName::parse("nvme12").is_ok());
        for text in ["nvme", "nvme0n1", "nvme0/..", "../nvme0", "nvme-1", "nvme0000000001"] {
            assert!(ControllerName::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn device_numbers_read_as_sysfs_writes_them() {
        assert_eq!(DevT::parse("259:1"), Ok(DevT { major: 259, minor: 1 }));
        assert_eq!(DevT::from_raw(libc::makedev(259, 70_000)).to_string(), "259:70000");
        for text in ["259", ":1", "259:", "a:1", "1:+1"] {
            assert!(DevT::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_identity_agrees_only_on_something_that_was_pinned() {
        let uuid = NamespaceIdentity { uuid: NamespaceUuid::parse(UUID).ok(), nguid: None };
        let both = NamespaceIdentity { nguid: Nguid::parse(&"ab".repeat(16)).ok(), ..uuid };
        assert_eq!(uuid.contradiction(&both), None);
        assert!(both.contradiction(&uuid).is_some_and(|text| text.contains("NGUID")));
        assert!(NamespaceIdentity::default().contradiction(&both).is_some());
        assert!(uuid.contradiction(&NamespaceIdentity::default()).is_some());
    }
}

//! What tells one namespace from every other.

use std::fmt;

use uuid::Uuid;

use crate::IdError;
use crate::text::reads_as_text;

/// UUID of a namespace, never nil: the target's promise that it is the same data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespaceUuid(Uuid);

impl NamespaceUuid {
    /// Checks a text: a UUID, not all zeros (which means "none" in the Identify data).
    ///
    /// # Errors
    /// [`IdError`] otherwise.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let refused = |rule| {
            IdError::new("namespace UUID", text, rule, "use the UUID that the target gives the namespace")
        };
        match Uuid::try_parse(text) {
            Ok(uuid) if !uuid.is_nil() => Ok(Self(uuid)),
            Ok(_) => Err(refused("is all zeros")),
            Err(_) => Err(refused("is not a UUID")),
        }
    }

    /// The value as the `uuid` crate's type.
    #[must_use]
    pub fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

impl fmt::Display for NamespaceUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

reads_as_text!(NamespaceUuid);

/// NGUID of a namespace: 16 bytes, never all zero, written as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nguid([u8; 16]);

impl Nguid {
    /// Checks a text: 32 hexadecimal digits, with or without dashes, not all zeros.
    ///
    /// # Errors
    /// [`IdError`] otherwise.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let refused =
            |rule| IdError::new("NGUID", text, rule, "use the NGUID that the target gives the namespace");
        match Uuid::try_parse(text) {
            Ok(id) if !id.is_nil() => Ok(Self(id.into_bytes())),
            Ok(_) => Err(refused("is all zeros")),
            Err(_) => Err(refused("is not 32 hexadecimal digits")),
        }
    }
}

impl fmt::Display for Nguid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).as_simple().fmt(f)
    }
}

reads_as_text!(Nguid);

/// What tells one namespace from every other: its UUID, its NGUID, or both.
///
/// Learned at the first attach, then pinned: see [`NamespaceIdentity::contradiction`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct NamespaceIdentity {
    /// The UUID; `None` where the target gives none.
    pub uuid: Option<NamespaceUuid>,
    /// The NGUID; `None` where the target gives none.
    pub nguid: Option<Nguid>,
}

impl NamespaceIdentity {
    /// Whether it has no identifier at all.
    pub fn is_empty(&self) -> bool {
        self.uuid.is_none() && self.nguid.is_none()
    }

    /// Compares what was pinned (`self`) with what is `found`. `None` when every pinned identifier is there
    /// and equal, and at least one was pinned; else the contradiction, as text for a person.
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

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";

    #[test]
    fn an_identity_agrees_only_on_something_that_was_pinned() {
        let uuid = NamespaceIdentity { uuid: NamespaceUuid::parse(UUID).ok(), nguid: None };
        let both = NamespaceIdentity { nguid: Nguid::parse(&"ab".repeat(16)).ok(), ..uuid };
        assert_eq!(uuid.contradiction(&both), None);
        assert!(both.contradiction(&uuid).is_some_and(|text| text.contains("NGUID")));
        assert!(NamespaceIdentity::default().contradiction(&both).is_some());
        assert!(uuid.contradiction(&NamespaceIdentity::default()).is_some());
    }

    #[test]
    fn zeros_identify_nothing() {
        assert!(NamespaceUuid::parse(&Uuid::nil().to_string()).is_err());
        assert!(Nguid::parse(&"0".repeat(32)).is_err());
        assert!(Nguid::parse("xyz").is_err());
    }
}

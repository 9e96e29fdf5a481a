//! NVMe qualified names and the host identifier.
//!
//! Rules: NVM Express Base Specification 2.0, section 4.5 "NVMe Qualified Names": UTF-8, at most 223 bytes,
//! prefix `nqn.`, then either `yyyy-mm.` reverse domain `:` name, or `2014-08.org.nvmexpress:uuid:` UUID.
//! Stricter than the standard in one point: no comma, space or control character, because Linux takes the
//! NQN in a comma-separated option string (`drivers/nvme/host/fabrics.c`) and has no way to quote one.

use std::fmt;

use uuid::Uuid;

use super::{InvalidName, text_name};

/// Longest NQN in bytes, without the terminating NUL.
const MAX_BYTES: usize = 223;
/// NQNs of this form carry a UUID and nothing else.
const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

fn check(kind: &'static str, text: &str) -> Result<(), InvalidName> {
    let broken = |rule| Err(InvalidName::new(kind, text, rule));
    if text.len() > MAX_BYTES {
        return broken("longer than 223 bytes");
    }
    let Some(rest) = text.strip_prefix("nqn.") else {
        return broken("does not begin with \"nqn.\"");
    };
    if text.chars().any(|c| c == ',' || c.is_whitespace() || c.is_control()) {
        return broken("contains a comma, space or control character");
    }
    if let Some(uuid) = text.strip_prefix(UUID_PREFIX) {
        return match Uuid::try_parse(uuid) {
            Ok(parsed) if !parsed.is_nil() => Ok(()),
            Ok(_) => broken("its UUID is all zeros"),
            Err(_) => broken("what follows \"uuid:\" is not a UUID"),
        };
    }
    let date = rest.as_bytes();
    let dated = date.len() > 8
        && date[..4].iter().all(u8::is_ascii_digit)
        && date[4] == b'-'
        && date[5..7].iter().all(u8::is_ascii_digit)
        && (b"01"..=b"12").contains(&&[date[5], date[6]])
        && date[7] == b'.';
    if !dated {
        return broken("\"nqn.\" is not followed by a date yyyy-mm, a dot and a domain");
    }
    Ok(())
}

macro_rules! nqn {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// Checks a text against the rules of this module.
            ///
            /// # Errors
            /// [`InvalidName`] with the first rule broken.
            pub fn parse(text: &str) -> Result<Self, InvalidName> {
                check($kind, text)?;
                Ok(Self(text.to_owned()))
            }

            /// The NQN as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.0 == other
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        text_name!($name);
    };
}

nqn! {
    /// Name of an NVMe host, as a target's access list knows it.
    HostNqn, "host NQN"
}
nqn! {
    /// Name of an NVMe subsystem. In Cleat one volume is one subsystem.
    SubsystemNqn, "subsystem NQN"
}

impl HostNqn {
    /// The usual host NQN for a host identifier: `nqn.2014-08.org.nvmexpress:uuid:HOSTID`.
    pub fn from_host_id(id: HostId) -> Self {
        Self(format!("{UUID_PREFIX}{id}"))
    }

    /// The UUID in a name of the form `nqn.2014-08.org.nvmexpress:uuid:…`, if it has that form.
    pub fn embedded_uuid(&self) -> Option<HostId> {
        HostId::parse(self.0.strip_prefix(UUID_PREFIX)?).ok()
    }
}

/// Identifier of an NVMe host, a UUID that is not nil. Targets key reservations by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(Uuid);

impl HostId {
    /// Checks a text: a UUID in any usual notation, not all zeros (a zero host identifier means
    /// "unspecified" to a target).
    ///
    /// # Errors
    /// [`InvalidName`] when it is not a UUID or is nil.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        match Uuid::try_parse(text) {
            Ok(uuid) if uuid.is_nil() => Err(InvalidName::new("host id", text, "is all zeros")),
            Ok(uuid) => Ok(Self(uuid)),
            Err(_) => Err(InvalidName::new("host id", text, "is not a UUID")),
        }
    }

    /// A new random identifier.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The identifier in a structure of the target's; `None` for all zeros.
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        let uuid = Uuid::from_bytes(bytes);
        (!uuid.is_nil()).then_some(Self(uuid))
    }

    /// The UUID itself.
    pub fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

text_name!(HostId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_accepted_and_kept_as_they_are() {
        for text in [
            "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000011",
            "nqn.2000-02.com.mikrotik:pvc-1234",
            "nqn.2026-01.test:v1",
            "nqn.2014-08.org.nvmexpress.discovery",
        ] {
            assert_eq!(SubsystemNqn::parse(text).map(|n| n.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn each_rule_is_named_when_it_is_broken() {
        let long = format!("nqn.2026-01.test:{}", "x".repeat(210));
        for (text, rule) in [
            (long.as_str(), "223"),
            ("pvc-1", "begin with"),
            ("nqn.2026-01.test:a,hostnqn=b", "comma"),
            ("nqn.2026-01.test:a b", "space"),
            ("nqn.2026-01.test:a\n", "control"),
            ("nqn.2026-13.test:a", "date"),
            ("nqn.2026-00.test:a", "date"),
            ("nqn.", "date"),
            ("nqn.2014-08.org.nvmexpress:uuid:xyz", "not a UUID"),
            ("nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000000", "zeros"),
        ] {
            let error = HostNqn::parse(text).expect_err(text);
            assert!(error.rule.contains(rule), "{text}: {error}");
        }
    }

    #[test]
    fn a_host_nqn_and_its_host_id_lead_to_each_other() {
        let id = HostId::random();
        assert_eq!(HostNqn::from_host_id(id).embedded_uuid(), Some(id));
        assert!(HostId::parse("00000000-0000-0000-0000-000000000000").is_err());
    }
}

//! NVMe qualified names and the host identifier.
//!
//! Rules: NVM Express Base Specification 2.0, section 4.5 "NVMe Qualified Names": UTF-8, at most 223 bytes,
//! prefix `nqn.`, then either `yyyy-mm.` reverse domain `:` name, or `2014-08.org.nvmexpress:uuid:` UUID.
//! Stricter than the standard in one point: no comma, space or control character, because Linux takes the
//! NQN in a comma-separated option string (`drivers/nvme/host/fabrics.c`) and has no way to quote one.

use std::fmt;

use uuid::Uuid;

use crate::text::{checked_text, reads_as_text};
use crate::{IdError, VolumeId};

/// Longest NQN in bytes, without the terminating NUL.
const MAX_BYTES: usize = 223;
/// Begins every name that keeps a volume's list of hosts from being empty. No host may have such a name: a
/// host that used one would be admitted where nobody is meant to be.
pub(crate) const PLACEHOLDER_PREFIX: &str = "nqn.2026-01.io.cleat:nobody.";
/// NQNs of this form contain a UUID and nothing else.
const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

fn check(text: &str) -> Result<(), &'static str> {
    if text.len() > MAX_BYTES {
        return Err("is longer than 223 bytes");
    }
    let Some(rest) = text.strip_prefix("nqn.") else {
        return Err("does not begin with \"nqn.\"");
    };
    if text.chars().any(|c| c == ',' || c.is_whitespace() || c.is_control()) {
        return Err("has a comma, space or control character");
    }
    if let Some(uuid) = text.strip_prefix(UUID_PREFIX) {
        return match Uuid::try_parse(uuid) {
            Ok(parsed) if !parsed.is_nil() => Ok(()),
            Ok(_) => Err("has a UUID of all zeros"),
            Err(_) => Err("has something after \"uuid:\" that is not a UUID"),
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
        return Err("does not go on with a date yyyy-mm, a dot and a domain");
    }
    Ok(())
}

/// The rule for a host NQN: any name except those that stand for nobody.
fn check_host(text: &str) -> Result<(), &'static str> {
    check(text)?;
    // In upper or lower case: some targets may ignore case when they compare names.
    let reserved = text.get(..PLACEHOLDER_PREFIX.len());
    if reserved.is_some_and(|reserved| reserved.eq_ignore_ascii_case(PLACEHOLDER_PREFIX)) {
        return Err("begins with nqn.2026-01.io.cleat:nobody., which stands for no host at all");
    }
    Ok(())
}

checked_text!(
    /// Name of an NVMe host, as a target's access list knows it.
    HostNqn,
    "host NQN",
    check_host,
    "use nqn.yyyy-mm.DOMAIN:NAME or nqn.2014-08.org.nvmexpress:uuid:UUID"
);
checked_text!(
    /// Name of an NVMe subsystem. In Cleat one volume is one subsystem.
    SubsystemNqn,
    "subsystem NQN",
    check,
    "use nqn.yyyy-mm.DOMAIN:NAME or nqn.2014-08.org.nvmexpress:uuid:UUID"
);

impl PartialEq<str> for HostNqn {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<str> for SubsystemNqn {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl HostNqn {
    /// The usual host NQN for a host identifier: `nqn.2014-08.org.nvmexpress:uuid:HOSTID`.
    #[must_use]
    pub fn from_host_id(id: HostId) -> Self {
        Self(format!("{UUID_PREFIX}{id}"))
    }

    /// The UUID in a name of the form `nqn.2014-08.org.nvmexpress:uuid:…`; `None` for another form.
    #[must_use]
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
    /// [`IdError`] when it is not a UUID or is nil.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let refused = |rule| IdError::new("host id", text, rule, "use a UUID that no other host has");
        match Uuid::try_parse(text) {
            Ok(uuid) if uuid.is_nil() => Err(refused("is all zeros")),
            Ok(uuid) => Ok(Self(uuid)),
            Err(_) => Err(refused("is not a UUID")),
        }
    }

    /// The identifier in a data structure of the target; `None` for all zeros.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        let uuid = Uuid::from_bytes(bytes);
        (!uuid.is_nil()).then_some(Self(uuid))
    }

    /// The value as the `uuid` crate's type.
    #[must_use]
    pub fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

reads_as_text!(HostId);

/// The part of every subsystem NQN that comes before the volume id. Only subsystems under it are ever touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NqnPrefix(String);

impl NqnPrefix {
    /// Checks the value: with the longest volume id appended it must be a subsystem NQN, and it must end in
    /// `:` so that no other name can begin with it by chance.
    ///
    /// # Errors
    /// [`IdError`] with the rule it breaks.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let refused = |rule| {
            Err(IdError::new("NQN prefix", text, rule, "use nqn.yyyy-mm.DOMAIN: of at most 160 bytes"))
        };
        if !text.ends_with(':') {
            return refused("does not end with a colon");
        }
        if check(&format!("{text}{}", "x".repeat(63))).is_err() {
            return refused("is no NQN together with a volume id of 63 characters");
        }
        Ok(Self(text.to_owned()))
    }

    /// The prefix as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The subsystem of a volume.
    #[must_use]
    pub fn subsystem(&self, volume: &VolumeId) -> SubsystemNqn {
        // The check of the prefix makes sure that this is an NQN for every volume id.
        SubsystemNqn(format!("{}{volume}", self.0))
    }

    /// The volume of a subsystem; `None` where the subsystem is not one of ours.
    #[must_use]
    pub fn volume(&self, subsystem: &SubsystemNqn) -> Option<VolumeId> {
        VolumeId::parse(subsystem.as_str().strip_prefix(&self.0)?).ok()
    }
}

impl fmt::Display for NqnPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

reads_as_text!(NqnPrefix);

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
    fn no_host_may_take_a_name_that_stands_for_nobody() {
        for text in ["nqn.2026-01.io.cleat:nobody.pvc-1", "nqn.2026-01.IO.cleat:Nobody.pvc-1.0a"] {
            let error = HostNqn::parse(text).expect_err(text).to_string();
            assert!(error.contains("stands for no host"), "{error}");
        }
        assert!(HostNqn::parse("nqn.2026-01.io.cleat:nobody").is_ok());
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
        let id = HostId::parse("01234567-89AB-cdef-0123-456789abcdef").expect("a UUID");
        assert_eq!(HostNqn::from_host_id(id).embedded_uuid(), Some(id));
        assert!(HostId::parse("00000000-0000-0000-0000-000000000000").is_err());
    }

    #[test]
    fn volume_and_subsystem_lead_to_each_other() {
        let prefix = NqnPrefix::parse("nqn.2026-01.io.cleat:").expect("a prefix");
        let volume = VolumeId::parse("pvc-1").expect("a volume");
        assert_eq!(prefix.subsystem(&volume).as_str(), "nqn.2026-01.io.cleat:pvc-1");
        assert_eq!(prefix.volume(&prefix.subsystem(&volume)), Some(volume));
    }

    #[test]
    fn foreign_subsystems_lead_to_no_volume() {
        let prefix = NqnPrefix::parse("nqn.2026-01.io.cleat:").expect("a prefix");
        for foreign in [
            "nqn.2026-01.io.cleat2:pvc-1",
            "nqn.2026-01.io.cleat:a:b",
            "nqn.2014-08.org.nvmexpress.discovery",
        ] {
            let foreign = SubsystemNqn::parse(foreign).expect("an NQN");
            assert_eq!(prefix.volume(&foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_prefix_makes_an_nqn_of_every_volume_id() {
        for bad in [
            "nqn.2026-01.io.cleat",
            "cleat:",
            "nqn.2026-01.io.cleat,x:",
            ":",
            "nqn.2014-08.org.nvmexpress:uuid:",
        ] {
            assert!(NqnPrefix::parse(bad).is_err(), "{bad}");
        }
        assert!(NqnPrefix::parse(&format!("nqn.2026-01.{}:", "x".repeat(200))).is_err());
    }
}

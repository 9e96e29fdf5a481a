//! Names of what the kernel made: controllers and device numbers.

use std::fmt;

use cleat_ids::IdError;

/// Name of an NVMe controller on this host, such as `nvme3`.
///
/// The kernel reuses the number after a deletion: a name shows where to read, never which controller it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ControllerName(String);

impl ControllerName {
    /// Checks a text: `nvme` and a decimal number, so that it cannot lead out of sysfs.
    ///
    /// # Errors
    /// [`IdError`] otherwise.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let digits = text.strip_prefix("nvme").unwrap_or_default();
        if digits.is_empty() || digits.len() > 9 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(IdError::new(
                "controller",
                text,
                "is not \"nvme\" and a number",
                "use a name from /sys/class/nvme",
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The controller of a kernel instance number.
    pub fn from_instance(instance: u32) -> Self {
        Self(format!("nvme{instance}"))
    }

    /// The name as text, as in `/sys/class/nvme`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ControllerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

super::text_name!(ControllerName);

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
    /// [`IdError`] when it is not two decimal numbers with a colon between.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let number =
            |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten();
        text.split_once(':')
            .and_then(|(major, minor)| Some(Self { major: number(major)?, minor: number(minor)? }))
            .ok_or_else(|| {
                IdError::new(
                    "device number",
                    text,
                    "is not MAJOR:MINOR",
                    "use two decimal numbers with a colon between",
                )
            })
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

super::text_name!(DevT);

#[cfg(test)]
mod tests {
    use super::*;

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
}

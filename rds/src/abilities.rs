//! What an RDS can do, as `cleatctl rds probe` has tried it and the controller reads it.
//!
//! Comes in: a JSON file. Goes out: [`Abilities`], or an error that says what to do. Always holds: a file of
//! another version or of another device, or with anything missing or unknown in it, is refused. Nothing is
//! relied on that was not probed.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The version of the file that this program writes and reads.
const VERSION: u64 = 1;

/// What an RDS does, seen by trying it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Abilities {
    /// Version of the file; only [`Abilities::VERSION`] is accepted.
    pub version: u64,
    /// The base URL of the device, which has to equal `--rds-url`.
    pub rds: String,
    /// When it was probed, RFC 3339.
    pub probed_at: String,
    /// What its list of hosts does.
    pub host_acl: ProbedAcl,
    /// Whether switching the export off ends live sessions.
    pub export_cuts: bool,
    /// How long that took, in milliseconds; `None` if sessions did not end.
    pub export_cut_ms: Option<u64>,
    /// Whether switching the export off waits for writes that the RDS has received.
    pub export_drains: ProbedDrain,
    /// Whether the namespace keeps its UUID while the export goes off and on.
    pub uuid_kept: bool,
    /// Whether a disk accepts a password.
    pub password: bool,
    /// Whether hosts have to authenticate with that password.
    pub in_band_auth: bool,
    /// How far reservations can be relied on.
    pub reservations: ProbedReservations,
    /// Whether a volume grows while it is in use.
    pub grow_online: bool,
}

/// What the list of hosts does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbedAcl {
    /// Hosts on it may connect, and nobody else.
    List,
    /// It accepts a single host.
    Single,
    /// It is recorded, but anybody may connect.
    Ignored,
}

/// Whether switching the export off waits for writes that the RDS has received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbedDrain {
    /// The probe saw it wait.
    Seen,
    /// Every kernel that such a device may have waits, and the probe saw nothing against it.
    Assumed,
    /// The probe saw that it does not wait.
    No,
    /// The probe could not find out.
    Unknown,
}

/// How far reservations can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbedReservations {
    /// The RDS has no reservations.
    None,
    /// Reservations keep others out, but preempt-and-abort does not wait for writes in flight.
    Held,
    /// Reservations keep others out, and preempt-and-abort answers only once writes in flight have landed.
    AbortWaits,
}

/// Why a file of abilities cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AbilitiesError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file that could not be read.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The file has another form.
    #[error("cannot use {}: `cleatctl rds probe` did not write this; probe again", path.display())]
    Malformed {
        /// The file of another form.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Another version of the program wrote the file.
    #[error("cannot use {}: it has version {version}, this program reads version {VERSION}; probe again", path.display())]
    Version {
        /// The file of another version.
        path: PathBuf,
        /// The version that the file has.
        version: u64,
    },
    /// The file is about another device.
    #[error("cannot use {}: it is about {found}, and --rds-url is {ours}; probe that one", path.display())]
    OtherDevice {
        /// The file about another device.
        path: PathBuf,
        /// The device that was probed.
        found: String,
        /// The device that the controller is to use.
        ours: String,
    },
}

/// Parsed first, so that a file of another version is reported as that.
#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

impl Abilities {
    /// The version to put into a new file.
    pub const VERSION: u64 = VERSION;

    /// Abilities of a device of which nothing is proven.
    #[must_use]
    pub fn nothing(rds: String, probed_at: String) -> Self {
        Self {
            version: VERSION,
            rds,
            probed_at,
            host_acl: ProbedAcl::Ignored,
            export_cuts: false,
            export_cut_ms: None,
            export_drains: ProbedDrain::Unknown,
            uuid_kept: false,
            password: false,
            in_band_auth: false,
            reservations: ProbedReservations::None,
            grow_online: false,
        }
    }

    /// Reads a file that has to be about the device at `url`.
    ///
    /// # Errors
    /// Where it cannot be read, or is of another version or device.
    pub fn read(path: &Path, url: &str) -> Result<Self, AbilitiesError> {
        let malformed = |source| AbilitiesError::Malformed { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path)
            .map_err(|source| AbilitiesError::Unreadable { path: path.to_owned(), source })?;
        let Versioned { version } = serde_json::from_str(&text).map_err(malformed)?;
        if version != VERSION {
            return Err(AbilitiesError::Version { path: path.to_owned(), version });
        }
        let abilities: Self = serde_json::from_str(&text).map_err(malformed)?;
        let bare = |url: &str| url.trim_end_matches('/').to_lowercase();
        if bare(&abilities.rds) != bare(url) {
            let (found, ours) = (abilities.rds, url.to_owned());
            return Err(AbilitiesError::OtherDevice { path: path.to_owned(), found, ours });
        }
        Ok(abilities)
    }

    /// Whether switching the export off certainly waits for what was written.
    #[must_use]
    pub fn drains(&self) -> bool {
        self.export_cuts && matches!(self.export_drains, ProbedDrain::Seen | ProbedDrain::Assumed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use cleat_runtime::exit::Causes;

    use super::*;

    const URL: &str = "https://rds.example.org/";
    const FILE: &str = r#"{"version":1,"rds":"https://rds.example.org","probed_at":"2026-11-20T10:00:00Z",
        "host_acl":"list","export_cuts":true,"export_cut_ms":40,"export_drains":"assumed","uuid_kept":true,
        "password":true,"in_band_auth":true,"reservations":"abort-waits","grow_online":false}"#;

    fn read(text: &str) -> Result<Abilities, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Abilities::read(file.path(), URL).map_err(|error| Causes(&error).to_string())
    }

    #[test]
    fn a_file_is_read_and_what_is_written_can_be_read() {
        let abilities = read(FILE).unwrap();
        assert_eq!(
            (abilities.host_acl, abilities.reservations),
            (ProbedAcl::List, ProbedReservations::AbortWaits)
        );
        assert!(abilities.drains());
        assert_eq!(read(&serde_json::to_string(&abilities).unwrap()).unwrap(), abilities);
        let nothing = Abilities::nothing(URL.into(), abilities.probed_at);
        assert!(!nothing.drains());
        assert_eq!(read(&serde_json::to_string(&nothing).unwrap()).unwrap(), nothing);
    }

    #[test]
    fn what_is_not_exactly_such_a_file_is_refused_with_what_to_do() {
        for (from, to, says) in [
            ("\"version\":1", "\"version\":2", "version 2"),
            ("\"version\":1,", "", "missing field `version`"),
            ("\"assumed\"", "\"perhaps\"", "unknown variant `perhaps`"),
            ("\"uuid_kept\":true,", "", "missing field `uuid_kept`"),
            ("\"password\"", "\"pasword\"", "unknown field `pasword`"),
            ("rds.example.org", "other.example.org", "--rds-url"),
            ("}", "", "EOF"),
        ] {
            let error = read(&FILE.replace(from, to)).unwrap_err();
            assert!(error.contains(says) && error.contains("probe"), "{to}: {error}");
        }
        let missing = Abilities::read(Path::new("/nonexistent"), URL).unwrap_err();
        assert!(matches!(missing, AbilitiesError::Unreadable { .. }));
    }

    #[test]
    fn an_export_that_does_not_cut_drains_nothing() {
        let abilities = read(&FILE.replace("\"export_cuts\":true", "\"export_cuts\":false")).unwrap();
        assert!(!abilities.drains());
    }
}

//! What an RDS was probed to do, as `cleatctl rds probe` writes it down and the controller reads it.
//!
//! In comes a JSON file; out go [`Abilities`], or an error that says what to do. What always holds: a file of another
//! version, of another device, or with anything missing or unknown in it is refused: what is not known to have been
//! probed is not relied on.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The version of the file that this program writes and reads.
const VERSION: u64 = 1;

/// What an RDS does, seen by trying.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Abilities {
    /// [`Abilities::VERSION`].
    pub version: u64,
    /// The base URL of the device.
    pub rds: String,
    /// When it was probed, RFC 3339.
    pub probed_at: String,
    /// What its list of hosts does.
    pub host_acl: ProbedAcl,
    /// Taking the export off ends live sessions.
    pub export_cuts: bool,
    /// How long that took, in milliseconds; `None` if it did not happen.
    pub export_cut_ms: Option<u64>,
    /// Taking the export off waits for writes that were received.
    pub export_drains: ProbedDrain,
    /// The namespace keeps its UUID while the export goes off and on.
    pub uuid_kept: bool,
    /// A disk takes a password.
    pub password: bool,
    /// Hosts have to authenticate with it.
    pub in_band_auth: bool,
    /// What reservations are worth.
    pub reservations: ProbedReservations,
    /// A volume grows while it is in use.
    pub grow_online: bool,
}

/// What the list of hosts does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbedAcl {
    /// Those on it may connect, and nobody else.
    List,
    /// It takes one host.
    Single,
    /// It is recorded, and anybody may connect.
    Ignored,
}

/// Whether taking the export off waits for writes that were received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbedDrain {
    /// It was seen to.
    Seen,
    /// Every kernel that such a device may have does, and nothing spoke against it.
    Assumed,
    /// It was seen not to.
    No,
    /// It could not be found out.
    Unknown,
}

/// What reservations are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbedReservations {
    /// There are none.
    None,
    /// They are held; preempt-and-abort does not wait for writes in flight.
    Held,
    /// They are held; preempt-and-abort answers only once writes in flight have landed.
    AbortWaits,
}

/// Why a file of abilities cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AbilitiesError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// It is no such file.
    #[error("cannot use {}: `cleatctl rds probe` did not write this; probe again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It was written by another version.
    #[error("cannot use {}: it has version {version}, this program reads version {VERSION}; probe again", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u64,
    },
    /// It is about another device.
    #[error("cannot use {}: it is about {found}, and --rds-url is {ours}; probe that one", path.display())]
    OtherDevice {
        /// The file.
        path: PathBuf,
        /// The device that was probed.
        found: String,
        /// The device that is to be used.
        ours: String,
    },
}

/// Read first, so that a file of another version is called just that.
#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

impl Abilities {
    /// The version to put into a new file.
    pub const VERSION: u64 = VERSION;

    /// An account of a device of which nothing is known to work.
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
    /// If it cannot be read, or is of another version or device.
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

    /// Whether taking the export off can be relied on to wait for what was written.
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

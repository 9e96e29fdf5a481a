//! The command line.
//!
//! Comes in: text. Goes out: checked [`Settings`], before anything is asked of the RDS or the kernel.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use cleat_host::{InvalidName, Portal};
use cleat_rds::{ClusterId, Endpoint, Fingerprint, HostAcl, Naming, NamingError, Trust};
use cleat_runtime::options::duration;
use reqwest::Url;

/// The part of the subsystem NQN before the scratch disk's name. No agent takes such a subsystem for a
/// volume.
const NQN_PREFIX: &str = "nqn.2026-01.io.cleat.probe:";
/// MikroTik documents that the RDS gives up a REST command after 60 s.
const SETTLE: Duration = Duration::from_secs(60);
/// Pause between two denials of the scratch disk.
const ABSENCE_PAUSE: Duration = Duration::from_secs(1);

/// Finds out on a scratch disk, which it removes again, how Cleat can fence at a ROSE Data Server: run it
/// as root on a node that reaches the RDS and its portals. Prints the answers and the settings to use, and writes the
/// file that `cleat-controller --rds-abilities` reads
#[derive(Parser, Clone, Debug)]
#[command(name = "cleat-rds-probe", bin_name = "cleatctl rds probe", version = cleat_runtime::VERSION)]
pub struct Cli {
    /// REST address of the RDS, `https://HOST[:PORT]`, just as the controller's --rds-url
    #[arg(long, value_name = "URL")]
    rds: Url,

    /// RouterOS user
    #[arg(long, value_name = "NAME", default_value = "cleat")]
    user: String,

    /// File that holds the user's password
    #[arg(long, value_name = "FILE")]
    password_file: PathBuf,

    /// CA that signed the RDS's certificate, PEM
    #[arg(long, value_name = "FILE", conflicts_with = "fingerprint")]
    ca: Option<PathBuf>,

    /// SHA-256 fingerprint of the RDS's own certificate, instead of a CA
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<Fingerprint>,

    /// Address and port at which the RDS serves volumes to hosts; once for each path
    #[arg(long = "portal", value_name = "ADDR:PORT", required = true)]
    portals: Vec<SocketAddr>,

    /// Directory on the RDS for the scratch disk's file, on the pool that volumes will be on
    #[arg(long, value_name = "PATH")]
    files: String,

    /// File for the answers; an existing one is replaced once every question was asked
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// If the probe cannot see whether export-off waits for writes in flight, assume that it does, as every
    /// Linux kernel since 4.8 does when its NVMe target takes a namespace down
    #[arg(long)]
    assume_drains: bool,

    /// Time limit for one request to the RDS
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    rds_timeout: Duration,

    /// Time limit for the whole probe; then everything is removed and nothing written
    #[arg(long, value_name = "DURATION", default_value = "20m", value_parser = duration)]
    limit: Duration,
}

/// Everything that was asked for, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How to reach the RDS, and how to name the scratch disk on it.
    pub rds: cleat_rds::Config,
    /// Its base URL, as it was given.
    pub url: String,
    /// The portals at which it serves volumes; all have the same port.
    pub portals: Vec<Portal>,
    /// The file to write the abilities to.
    pub out: PathBuf,
    /// Whether to assume that switching the export off drains, where that cannot be seen.
    pub assume_drains: bool,
    /// The time limit of the whole probe.
    pub limit: Duration,
}

/// Why a command line makes no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// No option says what proves that the server is the RDS.
    #[error("cannot know the RDS: neither --ca nor --fingerprint is given; choose one")]
    NoTrust,
    /// The directory of `--files` is not valid.
    #[error("cannot use --files")]
    Files(#[from] NamingError),
    /// A portal is not an address that can be connected to.
    #[error("cannot use --portal")]
    Portal(#[from] InvalidName),
    /// Two portals have different ports.
    #[error(
        "cannot use --portal {0}: its port differs from the portal's before; the RDS exports a disk at one \
         port"
    )]
    Ports(Portal),
    /// The directory of the file to write does not exist.
    #[error("cannot write --out {}: there is no folder {}", out.display(), folder.display())]
    NoFolder {
        /// The file that `--out` names.
        out: PathBuf,
        /// The directory that does not exist.
        folder: PathBuf,
    },
}

impl Cli {
    /// Checks what was asked for.
    ///
    /// # Errors
    /// The first option that cannot be used.
    pub fn settings(self) -> Result<Settings, SettingsError> {
        let Self {
            rds,
            user,
            password_file,
            ca,
            fingerprint,
            portals,
            files,
            out,
            assume_drains,
            rds_timeout,
            limit,
        } = self;
        let trust = match (ca, fingerprint) {
            (Some(ca), _) => Trust::Ca(ca),
            (None, Some(fingerprint)) => Trust::Pinned(fingerprint),
            (None, None) => return Err(SettingsError::NoTrust),
        };
        let mut checked: Vec<Portal> = Vec::new();
        for portal in portals {
            let portal = Portal::from_address(portal)?;
            match checked.first() {
                Some(first) if first.port() != portal.port() => return Err(SettingsError::Ports(portal)),
                _ if checked.contains(&portal) => {}
                _ => checked.push(portal),
            }
        }
        let folder = match out.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        if !folder.is_dir() {
            return Err(SettingsError::NoFolder { out, folder });
        }
        let naming = Naming::new(&files, NQN_PREFIX, ClusterId::of_probes())?;
        let port = checked.first().map_or(0, Portal::port);
        let endpoint = Endpoint { url: rds.clone(), user, password_file, trust, timeout: rds_timeout };
        Ok(Settings {
            rds: cleat_rds::Config {
                endpoint,
                naming,
                port,
                host_acl: HostAcl::List,
                settle: SETTLE,
                absence_pause: ABSENCE_PAUSE,
            },
            url: rds.as_str().trim_end_matches('/').to_owned(),
            portals: checked,
            out,
            assume_drains,
            limit,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    const BASE: &str = "cleat-rds-probe --rds https://rds.example.org --password-file /p --files pool/cleat \
                        --out /tmp/a.json --portal 192.0.2.1:4420";

    fn settings(more: &str) -> Result<Settings, String> {
        let words = format!("{BASE} {more}");
        let cli = Cli::try_parse_from(words.split_whitespace()).map_err(|error| error.to_string())?;
        cli.settings().map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_becomes_settings() {
        Cli::command().debug_assert();
        let settings =
            settings("--ca /ca --portal 198.51.100.1:4420 --portal 192.0.2.1:4420").expect("valid");
        assert_eq!((settings.portals.len(), settings.rds.port), (2, 4420));
        assert_eq!(settings.url, "https://rds.example.org");
        assert!(!settings.assume_drains, "never by itself");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (more, says) in [
            ("", "--ca"),
            ("--ca /ca --portal 198.51.100.1:4421", "its port differs"),
            ("--ca /ca --portal 0.0.0.0:4420", "--portal"),
            ("--ca /ca --fingerprint 00", "fingerprint"),
        ] {
            let error = settings(more).expect_err("unusable");
            assert!(error.contains(says), "{more}: {error}");
        }
    }
}

//! The options that say which RDS, and how to use it.
//!
//! In comes the command line; out goes a [`Config`], checked. TLS is the rule: an RDS is known by a CA or by its
//! certificate's fingerprint, and plaintext has to be asked for by name.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use cleat_runtime::program::seconds;
use reqwest::Url;

use super::HostAcl;
use super::client::Config;
use super::trust::{Fingerprint, Trust};
use super::volume::{Naming, NamingError};
use super::wire::Endpoint;

/// Options for the RDS.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "RDS")]
pub struct RdsArgs {
    /// REST address of the RDS, https://HOST[:PORT]
    #[arg(long, value_name = "URL", env = "CLEAT_RDS_URL")]
    pub rds_url: Url,

    /// RouterOS user
    #[arg(long, value_name = "NAME", default_value = "cleat", env = "CLEAT_RDS_USER")]
    pub rds_user: String,

    /// File that holds the user's password; read again when the RDS does not accept it
    #[arg(long, value_name = "FILE", env = "CLEAT_RDS_PASSWORD_FILE")]
    pub rds_password_file: PathBuf,

    /// CA that signed the RDS's certificate, PEM
    #[arg(long, value_name = "FILE", conflicts_with = "rds_fingerprint")]
    pub rds_ca: Option<PathBuf>,

    /// SHA-256 fingerprint of the RDS's own certificate, instead of a CA
    #[arg(long, value_name = "HEX")]
    pub rds_fingerprint: Option<Fingerprint>,

    /// Speak plain HTTP to the RDS: for tests only, the password goes in clear
    #[arg(long, conflicts_with_all = ["rds_ca", "rds_fingerprint"])]
    pub rds_plaintext: bool,

    /// Seconds that one request to the RDS may take
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub rds_timeout: Duration,

    /// Seconds for which a write without an answer may still take effect (RouterOS gives up a REST command
    /// after 60)
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub rds_settle: Duration,

    /// Directory on the RDS for the volumes' files; nothing outside of it is touched
    #[arg(long, value_name = "PATH", env = "CLEAT_RDS_BASE_PATH")]
    pub rds_base_path: String,

    /// What precedes the volume id in a subsystem NQN
    #[arg(long, value_name = "NQN", default_value = "nqn.2000-02.com.mikrotik:")]
    pub rds_nqn_prefix: String,

    /// TCP port at which the RDS exports volumes
    #[arg(long, value_name = "PORT", default_value_t = 4420, value_parser = clap::value_parser!(u16).range(1..))]
    pub rds_nvme_port: u16,

    /// How the RDS limits which hosts may connect to a volume
    #[arg(long, value_enum, default_value_t, env = "CLEAT_RDS_HOST_ACL")]
    pub rds_host_acl: HostAcl,
}

/// Why the options do not make a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// Nothing says how to know the RDS.
    #[error("none of --rds-ca, --rds-fingerprint and --rds-plaintext is given: choose one")]
    NoTrust,
    /// Base path or NQN prefix.
    #[error(transparent)]
    Naming(#[from] NamingError),
    /// A deadline of nothing.
    #[error("--rds-timeout must be more than 0")]
    NoTime,
}

impl RdsArgs {
    /// Checks the options.
    ///
    /// # Errors
    /// Names the option that is missing or wrong.
    pub fn config(&self) -> Result<Config, ArgsError> {
        let trust = match (&self.rds_ca, self.rds_fingerprint, self.rds_plaintext) {
            (_, _, true) => Trust::Plaintext,
            (_, Some(fingerprint), false) => Trust::Pinned(fingerprint),
            (Some(ca), None, false) => Trust::Ca(ca.clone()),
            (None, None, false) => return Err(ArgsError::NoTrust),
        };
        if self.rds_timeout.is_zero() {
            return Err(ArgsError::NoTime);
        }
        let endpoint = Endpoint {
            url: self.rds_url.clone(),
            user: self.rds_user.clone(),
            password_file: self.rds_password_file.clone(),
            trust,
            timeout: self.rds_timeout,
        };
        let naming = Naming::new(&self.rds_base_path, &self.rds_nqn_prefix)?;
        let (port, host_acl, settle) = (self.rds_nvme_port, self.rds_host_acl, self.rds_settle);
        Ok(Config { endpoint, naming, port, host_acl, settle })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        rds: RdsArgs,
    }

    fn parse(more: &[&str]) -> Result<RdsArgs, clap::Error> {
        let base = ["x", "--rds-url", "https://rds", "--rds-password-file", "p", "--rds-base-path", "pool"];
        Cli::try_parse_from(base.iter().chain(more)).map(|cli| cli.rds)
    }

    #[test]
    fn how_to_know_the_rds_has_to_be_said_and_only_once() {
        assert!(matches!(parse(&[]).unwrap().config(), Err(ArgsError::NoTrust)));
        assert!(parse(&["--rds-ca", "a", "--rds-plaintext"]).is_err());
        let pin = "ab".repeat(32);
        assert!(parse(&["--rds-ca", "a", "--rds-fingerprint", &pin]).is_err());
        let config = parse(&["--rds-fingerprint", &pin]).unwrap().config().unwrap();
        assert!(matches!(config.endpoint.trust, Trust::Pinned(_)));
        assert!(parse(&["--rds-fingerprint", "ab"]).is_err());
        assert_eq!(config.host_acl, HostAcl::List);
    }
}

//! The command line.
//!
//! In: arguments. Out: [`Options`] of the device, and where to listen and what to keep. What always holds: everything
//! is checked before a port is bound or the kernel's target touched.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Parser;
use uuid::Uuid;

use crate::disk::Version;
use crate::rds::{AclMode, Backing, Options};
use crate::rest::Credentials;
use crate::target::Portal;
use crate::tls::Identity;
use crate::value;

/// A ROSE Data Server for tests: RouterOS' REST API over this kernel's NVMe/TCP target.
#[derive(Debug, Parser)]
#[command(name = "rds-sim", version, args_override_self = true)]
pub struct Args {
    /// Where the REST API listens (HTTPS).
    #[arg(long, default_value = "127.0.0.1:443", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Where the test control listens (plain HTTP, no password): a loopback or management address.
    #[arg(long, value_name = "ADDR:PORT")]
    pub control: Option<SocketAddr>,
    /// Where exported disks are reachable; once per portal.
    #[arg(long = "portal", value_name = "ADDR:PORT", required = true)]
    pub portals: Vec<Portal>,
    /// Directory of the backing files and of the saved disk items.
    #[arg(long, value_name = "DIR")]
    pub files: PathBuf,
    /// Directory for cert.pem, key.pem and fingerprint of a certificate made here.
    #[arg(long, value_name = "DIR", required_unless_present = "tls_cert")]
    pub state: Option<PathBuf>,
    /// Certificate (PEM) to use instead of one made here.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// A further name or address for the certificate made here; this machine's own addresses are in it anyway.
    #[arg(long = "tls-name", value_name = "NAME")]
    pub tls_names: Vec<String>,
    /// Print the certificate's SHA-256 fingerprint on standard output before serving.
    #[arg(long)]
    pub print_fingerprint: bool,
    /// The account's name.
    #[arg(long, default_value = "admin")]
    pub user: String,
    /// File with the account's password; a newline at its end is not part of it.
    #[arg(long, value_name = "FILE")]
    pub password_file: PathBuf,
    /// What nvme-tcp-server-allow-host-name does (not known of RouterOS).
    #[arg(long, value_enum, default_value = "ignored")]
    pub acl: AclMode,
    /// With --acl single or list: an empty value lets nobody in, instead of anybody.
    #[arg(long)]
    pub acl_empty_denies: bool,
    /// file-size of an existing disk may be raised (not known of RouterOS).
    #[arg(long)]
    pub grow_online: bool,
    /// Another namespace UUID at every enable, as of a target that does not keep it.
    #[arg(long)]
    pub uuid_random: bool,
    /// A slot's namespace UUID, in place of the one made from the slot.
    #[arg(long = "uuid-override", value_name = "SLOT=UUID", value_parser = slot_uuid)]
    pub uuid_overrides: Vec<(String, Uuid)>,
    /// NVMe reservations on every namespace, where the kernel has them (6.13 and newer; not expected of an RDS).
    #[arg(long)]
    pub reservations: bool,
    /// nvme-tcp-server-password is enforced: DH-HMAC-CHAP by the kernel (6.12 and newer; not known of RouterOS).
    /// nvmet has one secret to a host: two exported disks of one host must have the same password.
    #[arg(long)]
    pub in_band_auth: bool,
    /// What volumes lie on: their files, or devices over them that can be told to hold writes.
    #[arg(long, value_enum, default_value = "file")]
    pub backing: Backing,
    /// With --backing held: requests that a volume's device takes at a time.
    #[arg(long, value_name = "N")]
    pub backing_depth: Option<u32>,
    /// What all backing files together may take, in bytes or with K, M, G, T.
    #[arg(long, value_name = "BYTES", value_parser = capacity)]
    pub capacity: Option<u64>,
    /// The RouterOS version to be; before 7.21 an export's NQN is its slot.
    #[arg(long, default_value = "7.24", value_name = "VERSION")]
    pub routeros: Version,
    /// The board to be.
    #[arg(long, default_value = "RDS2216", value_name = "NAME")]
    pub board: String,
    /// Slot and mount point of the pool.
    #[arg(long, default_value = "storage-pool", value_name = "NAME")]
    pub pool: String,
    /// The kernel target's configfs group.
    #[arg(long, default_value = "/sys/kernel/config/nvmet", value_name = "DIR")]
    pub nvmet: PathBuf,
}

impl Args {
    /// The account.
    pub fn credentials(&self) -> anyhow::Result<Credentials> {
        let text = std::fs::read_to_string(&self.password_file)
            .with_context(|| format!("read --password-file {}", self.password_file.display()))?;
        let password = text.strip_suffix('\n').unwrap_or(&text).to_owned();
        if self.user.contains(':') {
            bail!("--user {:?}: basic authentication has no ':' in names", self.user);
        }
        Ok(Credentials { user: self.user.clone(), password })
    }

    /// The certificate.
    pub fn identity(&self) -> anyhow::Result<Identity> {
        if let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) {
            return Ok(Identity::load(certificate, key)?);
        }
        let directory = self.state.as_ref().context("neither --state nor --tls-cert is given")?;
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        names.push(self.listen.ip().to_string());
        names.extend(self.portals.iter().map(|portal| portal.address().to_string()));
        for interface in nix::ifaddrs::getifaddrs().context("list this machine's addresses")? {
            let address = interface.address;
            let v4 = address.and_then(|a| a.as_sockaddr_in().map(|a| a.ip().to_string()));
            let v6 = address.and_then(|a| a.as_sockaddr_in6().map(|a| a.ip().to_string()));
            names.extend(v4.or(v6));
        }
        names.extend(self.tls_names.iter().cloned());
        names.sort();
        names.dedup();
        Ok(Identity::keep(directory, names)?)
    }

    /// The device.
    pub fn options(&self) -> Options {
        Options {
            files: self.files.clone(),
            portals: self.portals.iter().copied().collect(),
            acl: self.acl,
            acl_empty_denies: self.acl_empty_denies,
            grow_online: self.grow_online,
            uuid_random: self.uuid_random,
            uuid_overrides: self.uuid_overrides.iter().cloned().collect::<BTreeMap<_, _>>(),
            reservations: self.reservations,
            in_band_auth: self.in_band_auth,
            backing: self.backing,
            backing_depth: self.backing_depth,
            capacity_bytes: self.capacity,
            version: self.routeros,
            board_name: self.board.clone(),
            pool: self.pool.clone(),
        }
    }
}

fn slot_uuid(text: &str) -> Result<(String, Uuid), String> {
    let (slot, uuid) = text.split_once('=').ok_or("SLOT=UUID is wanted")?;
    let uuid = uuid.parse().map_err(|error| format!("{uuid:?} is no UUID: {error}"))?;
    Ok((slot.to_owned(), uuid))
}

fn capacity(text: &str) -> Result<u64, String> {
    value::size_bytes("--capacity", text).map_err(|error| error.detail().unwrap_or("bad size").to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_becomes_options() {
        Args::command().debug_assert();
        let base = "rds-sim --files /f --state /s --password-file /p --portal 10.77.1.1:4420 --portal 10.77.2.1:4420";
        let more = "--acl list --acl-empty-denies --capacity 1G --uuid-override a=6e0b7f0c-52a3-4f0e-9c1d-2a648d3571e9";
        let args = Args::try_parse_from(format!("{base} {more}").split(' ')).unwrap();
        let options = args.options();
        assert_eq!((options.portals.len(), options.acl), (2, AclMode::List));
        assert_eq!(options.capacity_bytes, Some(1 << 30));
        assert!(options.uuid_overrides.contains_key("a"));
        for bad in ["--portal nowhere", "--capacity 0", "--uuid-override a", "--tls-cert /c", "--routeros x"]
        {
            assert!(Args::try_parse_from(format!("{base} {bad}").split(' ')).is_err(), "{bad}");
        }
    }
}

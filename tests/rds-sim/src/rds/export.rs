//! What a disk's record asks of the target: identity, host list, portals.
//!
//! In: the record, the options, what is held down, what is pretended, and where that matters what is at the target
//! already. Out: an [`Export`]. Pure. What always holds: the same slot has the
//! same UUID on every device and for ever, unless an option says otherwise.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::{AclMode, Rds};
use crate::disk::Disk;
use crate::pretend::Pretend;
use crate::target::{Allow, Export, Namespace, Observed, Portal};

/// Name space of the pinned namespace UUIDs, so that a slot has the same one for ever and everywhere.
const SLOT_UUIDS: Uuid = Uuid::from_u128(0x6e0b_7f0c_52a3_4f0e_9c1d_2a64_8d35_71e9);

impl Rds {
    /// What the record asks of the target, which is so now.
    pub(crate) fn export(&self, disk: &Disk, now: &Observed) -> Export {
        let serial =
            Uuid::new_v5(&SLOT_UUIDS, format!("serial {}", disk.slot).as_bytes()).simple().to_string();
        Export {
            nqn: disk.effective_nqn().to_owned(),
            serial: serial[..20].to_owned(),
            model: format!("MikroTik {} (rds-sim)", self.options.board_name).chars().take(40).collect(),
            namespace: Namespace {
                path: self.device(disk),
                uuid: disk.uuid,
                nguid: Uuid::new_v5(&disk.uuid, b"nguid"),
            },
            reservations: self.options.reservations,
            allow: self.kept(self.allow(disk), disk, now),
            secret: disk.secret().filter(|_| self.options.in_band_auth),
            online: disk.export || (self.pretends.contains(&Pretend::Cut) && is_up(now)),
            keep_namespace: self.pretends.contains(&Pretend::Drain),
            portals: self.portals(disk),
        }
    }

    fn allow(&self, disk: &Disk) -> Allow {
        let value = disk.allow_host_name.as_deref().unwrap_or("").trim();
        let ignored =
            self.options.acl == AclMode::Ignored || (value.is_empty() && !self.options.acl_empty_denies);
        if ignored && !self.authenticates(disk) {
            return Allow::Any;
        }
        let names: Vec<&str> = match self.options.acl {
            AclMode::Single => vec![value],
            AclMode::List | AclMode::Ignored => value.split(',').map(str::trim).collect(),
        };
        // A name that cannot be a host's NQN matches no host, so it has no place at the target.
        let host = |name: &&str| !name.is_empty() && name.len() <= 223 && !name.contains('/');
        Allow::Hosts(names.into_iter().filter(host).map(str::to_owned).collect())
    }

    /// With those hosts that stay on the kernel's list although they are not on the recorded one: where the list is
    /// only pretended, or is not enforced and nvmet needs one because it asks nobody for a secret without.
    fn kept(&self, allow: Allow, disk: &Disk, now: &Observed) -> Allow {
        let unenforced = self.options.acl == AclMode::Ignored && self.authenticates(disk);
        match allow {
            Allow::Hosts(mut hosts) if unenforced || self.pretends.contains(&Pretend::Acl) => {
                hosts.extend(now.subsystem.iter().flat_map(|subsystem| subsystem.hosts.iter().cloned()));
                Allow::Hosts(hosts)
            }
            allow => allow,
        }
    }

    fn authenticates(&self, disk: &Disk) -> bool {
        self.options.in_band_auth && disk.secret().is_some()
    }

    /// What the target opens: the file, or the device over it.
    fn device(&self, disk: &Disk) -> std::path::PathBuf {
        let held = self.held.as_ref().and_then(|held| held.device(&disk.slot));
        held.map_or_else(|| self.files.path(&disk.file_path), std::path::Path::to_owned)
    }

    /// The configured portals of the disk's port; for a port that has none, that port on every address (RouterOS
    /// listens on all of them). Without those held down.
    fn portals(&self, disk: &Disk) -> BTreeSet<Portal> {
        let port = disk.effective_port();
        let configured = &self.options.portals;
        let of_port: BTreeSet<Portal> = configured.iter().filter(|p| p.port() == port).copied().collect();
        let all = if of_port.is_empty() {
            configured.iter().map(|portal| Portal::new(portal.address(), port)).collect()
        } else {
            of_port
        };
        let held = |portal: &Portal| {
            self.holds.iter().any(|hold| {
                hold.slot.as_ref().is_none_or(|slot| *slot == disk.slot)
                    && hold.portal.is_none_or(|held| held == *portal)
            })
        };
        all.into_iter().filter(|portal| !held(portal)).collect()
    }

    pub(super) fn pinned_uuid(&self, slot: &str) -> Uuid {
        let overridden = self.options.uuid_overrides.get(slot).copied();
        overridden.unwrap_or_else(|| Uuid::new_v5(&SLOT_UUIDS, slot.as_bytes()))
    }
}

/// Whether the namespace is up.
pub(super) fn is_up(now: &Observed) -> bool {
    let namespace = now.subsystem.as_ref().and_then(|subsystem| subsystem.namespace.as_ref());
    namespace.is_some_and(|namespace| namespace.enabled)
}

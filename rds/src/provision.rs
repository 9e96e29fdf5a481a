//! Makes and deletes volumes.
//!
//! Comes in: ids and sizes. Goes out: disk items and their backing files, made or removed. Always holds: what
//! exists already, and is not exactly what would be made, is left alone. A volume's file is deleted only
//! after its disk, and only if no other disk uses it. Both operations may be repeated after any interruption.
//! its disk, and only if no other disk uses it; and both may be repeated after any interruption.

use std::time::Duration;

use cleat_ids::VolumeId;
use reqwest::Method;
use serde_json::Value;
use tokio::time::Instant;

use super::access::{EXPORT, Wish, nobody_yet};
use super::client::Inner;
use super::error::RdsError;
use super::gate::Priority;
use super::http::Request;
use super::list::Freshness;
use super::metrics::Op;
use super::per_volume::Held;
use super::volume::{Inventory, RdsVolume, item_shaped};
use super::{HostAcl, Made, NewVolume};

/// Pause between two tries to remove a disk.
const REMOVE_AGAIN_AFTER: Duration = Duration::from_millis(500);

impl Inner {
    pub(super) async fn create(&self, new: &NewVolume) -> Result<Made, RdsError> {
        let mut held = self.volumes.hold(&new.id).await;
        let inventory = self.lister.get(Priority::List, Freshness::Now).await?;
        let missing = inventory.find(&new.id)?.is_none();
        if missing {
            self.add_disk(new, &inventory).await?;
        }
        let inventory = self.lister.get(Priority::List, Freshness::Now).await?;
        let made = inventory.get(&new.id)?;
        self.check(made, new)?;
        let volume = match self.host_acl {
            HostAcl::List if made.exported && made.hosts.is_empty() => {
                // The RDS did not accept its list, so it is open to everybody. It gets one, or this fails.
                self.fulfil(&mut held, &new.id, &Wish::Show, Priority::List).await?
            }
            // An export that is off may keep a fenced node out: the next grant of the volume switches it on.
            HostAcl::List => made.clone(),
            HostAcl::None if !missing => made.clone(),
            HostAcl::None => self.fulfil(&mut held, &new.id, &Wish::Show, Priority::List).await?,
        };
        Ok(Made { volume, added: missing })
    }

    /// Adds the disk item, unless something has its place.
    async fn add_disk(&self, new: &NewVolume, inventory: &Inventory) -> Result<(), RdsError> {
        let (id, file_name) = (&new.id, self.naming.file_name(&new.id));
        if let Some(slot) = inventory.foreign_user_of(&file_name) {
            return Err(RdsError::conflict(
                id,
                format!("its file {file_name} backs the foreign disk {slot}"),
            ));
        }
        // RouterOS uses an existing file as it is: the new volume would show somebody's old data.
        if let Some(file) = self.find_file(&file_name).await? {
            let problem = format!(
                "file {file_name} ({file}) is there without a disk: finish the deletion it is left of, or move it away"
            );
            return Err(RdsError::conflict(id, problem));
        }
        let port = match &self.ports {
            None => self.port,
            Some(ports) => ports.give(id, inventory.ports()).ok_or_else(|| RdsError::Full {
                what: format!("give volume {id} a port of its own"),
                detail: "all of --rds-volume-ports are taken".to_owned(),
            })?,
        };
        let access = match self.host_acl {
            HostAcl::None => vec![(EXPORT, "yes".to_owned())],
            HostAcl::List => nobody_yet(id).into(),
        };
        let properties = [
            ("type", "file".to_owned()),
            ("slot", id.to_string()),
            ("file-path", self.naming.file_path(id)),
            ("file-size", new.size.0.to_string()),
            ("mount-filesystem", "no".to_owned()),
            ("nvme-tcp-server-port", port.to_string()),
            ("nvme-tcp-server-nqn", self.naming.nqn(id)),
            ("comment", self.naming.mark(new.parameters.clone()).comment()),
        ];
        let body =
            properties.into_iter().chain(access).map(|(name, value)| (name.to_owned(), Value::String(value)));
        let request = Request {
            op: Op::AddDisk,
            method: Method::PUT,
            path: "disk".to_owned(),
            query: vec![],
            body: Some(body.collect()),
            what: format!("add volume {id}"),
        };
        match self.write(Priority::List, &request).await {
            Ok(_) => Ok(()),
            // An earlier attempt whose answer was lost may have been carried out meanwhile: then the volume
            // exists now.
            Err(refused @ RdsError::Refused { .. }) => {
                let inventory = self.lister.get(Priority::List, Freshness::Now).await?;
                if inventory.find(id)?.is_some() { Ok(()) } else { Err(refused) }
            }
            Err(error) => Err(error),
        }
    }

    /// Checks that the volume on the RDS is the one asked for.
    fn check(&self, found: &RdsVolume, new: &NewVolume) -> Result<(), RdsError> {
        let conflict = |problem: String| Err(RdsError::conflict(&new.id, problem));
        self.check_name(found)?;
        if found.size < new.size {
            return conflict(format!("it exists with {}, not {}", found.size, new.size));
        }
        if let Some((parameter, made, asked)) = found.parameters.difference(&new.parameters) {
            return conflict(format!("it was made with {parameter} {made}, not {asked}"));
        }
        // A volume that was made before, or after, volumes had ports of their own keeps its own.
        if let Some(port) = found.port.filter(|port| self.ports.is_none() && *port != self.port) {
            return conflict(format!("it exists with port {port}, not {}", self.port));
        }
        if found.mountable {
            return conflict("it exists with mount-filesystem=yes, so RouterOS may write to it".to_owned());
        }
        Ok(())
    }

    /// Checks that the volume has the NQN by which hosts know it.
    pub(super) fn check_name(&self, found: &RdsVolume) -> Result<(), RdsError> {
        let expected = self.naming.nqn(&found.id);
        if found.nqn == expected {
            return Ok(());
        }
        Err(RdsError::conflict(&found.id, format!("it exists with NQN {}, not {expected}", found.nqn)))
    }

    pub(super) async fn delete(&self, id: &VolumeId) -> Result<(), RdsError> {
        let mut held = self.volumes.hold(id).await;
        let mut inventory = self.look_around(id, Priority::List).await?;
        let file_name = self.naming.file_name(id);
        if inventory.find(id)?.is_some() {
            // Doubts do not matter here: they cannot take effect on a disk that is gone.
            let volume = self.bring_about(&mut held, id, &Wish::Hide, Priority::List).await?;
            self.remove_disk(&mut held, &volume).await?;
            inventory = self.lister.get(Priority::List, Freshness::Now).await?;
            if inventory.find(id)?.is_some() {
                return Err(RdsError::malformed(
                    &format!("remove volume {id}"),
                    "the RDS confirmed the removal, but still lists it",
                ));
            }
        }
        if let Some(slot) = inventory.foreign_user_of(&file_name) {
            return Err(RdsError::conflict(
                id,
                format!("its file {file_name} backs the foreign disk {slot}"),
            ));
        }
        if let Some(file) = self.find_file(&file_name).await? {
            self.remove(Op::RemoveFile, "file", &file, &format!("remove file {file_name}")).await?;
            if self.find_file(&file_name).await?.is_some() {
                let what = format!("remove file {file_name}");
                return Err(RdsError::malformed(&what, "the RDS confirmed the removal, but still lists it"));
            }
        }
        held.clear();
        if let Some(ports) = &self.ports {
            ports.take_back(id);
        }
        Ok(())
    }

    /// Removes the disk until the RDS says that it is gone. A removal whose answer was lost is sent again for
    /// as long as it could still take effect: one that takes effect late then finds nothing under its number.
    /// Until that is known, no host is admitted
    /// ([`Held::cannot_vanish`](super::per_volume::Memory::cannot_vanish)).
    async fn remove_disk(&self, held: &mut Held, volume: &RdsVolume) -> Result<(), RdsError> {
        let what = format!("remove the disk of volume {}", volume.id);
        let began = Instant::now();
        let mut lost = None;
        loop {
            match self.remove(Op::RemoveDisk, "disk", &volume.item, &what).await {
                Ok(()) => {
                    self.lister.forget(&volume.id);
                    return Ok(());
                }
                Err(error) if error.outcome_unknown() => {
                    held.doubt_removal();
                    tracing::warn!(volume = %volume.id, %error, "removing its disk again");
                    lost = Some(error);
                }
                // Not sent, or refused: this one does nothing, but an earlier one may.
                Err(error) if lost.is_none() => return Err(error),
                Err(error) => tracing::warn!(volume = %volume.id, %error, "removing its disk again"),
            }
            if began.elapsed() >= self.settle
                && let Some(lost) = lost.take()
            {
                return Err(lost);
            }
            tokio::time::sleep(REMOVE_AGAIN_AFTER).await;
        }
    }

    /// Deletes an item. One that is gone already is a success (the caller reads afterwards in any case).
    async fn remove(&self, op: Op, menu: &str, item: &str, what: &str) -> Result<(), RdsError> {
        let path = format!("{menu}/{item}");
        let request =
            Request { op, method: Method::DELETE, path, query: vec![], body: None, what: what.to_owned() };
        match self.write(Priority::List, &request).await {
            Ok(_) | Err(RdsError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The item number of a file; `None` if the RDS has said that it has no file of exactly this name.
    async fn find_file(&self, name: &str) -> Result<Option<String>, RdsError> {
        let what = format!("list file {name}");
        let request = Request {
            op: Op::ListFiles,
            method: Method::GET,
            path: "file".to_owned(),
            query: vec![("name", name.to_owned()), (".proplist", ".id,name,type".to_owned())],
            body: None,
            what: what.clone(),
        };
        let turn = self.http.turn(Priority::List, request.op, &what).await?;
        let answer = self.http.send(&turn, &request).await?;
        let files = answer.as_array().ok_or_else(|| RdsError::malformed(&what, "it is not a list"))?;
        let field = |file: &Value, name: &str| file.get(name).and_then(Value::as_str).map(str::to_owned);
        let Some(file) = files.iter().find(|file| field(file, "name").as_deref() == Some(name)) else {
            return Ok(None);
        };
        if field(file, "type").as_deref() == Some("directory") {
            return Err(RdsError::malformed(&what, "it is a directory"));
        }
        let item = field(file, ".id").filter(|item| item_shaped(item));
        item.map(Some).ok_or_else(|| RdsError::malformed(&what, format!("{file} has no .id")))
    }
}

//! Whether a volume exists that the list of disks lacks.
//!
//! Comes in: volume ids. Goes out: the volume, or [`RdsError::NotFound`]. Always holds: a volume counts as
//! absent only after the RDS was asked for the disk itself, by its slot and (where known) by its number, and
//! denied it more than once, over some time. A list may lack a disk for a moment, and somebody may still
//! write to that disk. That a volume is absent proves nothing about hosts: it may come back with the list of
//! hosts that it had.

use cleat_ids::VolumeId;
use reqwest::Method;
use serde_json::Value;

use super::client::Inner;
use super::error::RdsError;
use super::gate::Priority;
use super::http::Request;
use super::list::Freshness;
use super::metrics::{self, Op};
use super::volume::{Inventory, RdsVolume};

/// How often the RDS has to deny a volume; between two denials is `Config::absence_pause`.
const DENIALS: u32 = 3;

impl Inner {
    /// The volume as the RDS shows it.
    pub(super) async fn look(
        &self,
        id: &VolumeId,
        priority: Priority,
        freshness: Freshness,
    ) -> Result<RdsVolume, RdsError> {
        if let Some(answer) = self.lister.ask(id, priority, freshness).await?
            && let Some(volume) = answer.find(id)?
        {
            return Ok(volume.clone());
        }
        // What a question does not show is looked for on the list, and then as what a list lacks.
        let inventory = self.lister.get(priority, freshness).await?;
        match inventory.find(id)? {
            Some(volume) => Ok(volume.clone()),
            None => Err(self.denied(id, priority).await),
        }
    }

    /// The list, and proof that the volume is in it or absent.
    pub(super) async fn look_around(
        &self,
        id: &VolumeId,
        priority: Priority,
    ) -> Result<std::sync::Arc<Inventory>, RdsError> {
        let inventory = self.lister.get(priority, Freshness::Now).await?;
        if inventory.find(id)?.is_some() {
            return Ok(inventory);
        }
        match self.denied(id, priority).await {
            RdsError::NotFound { .. } => Ok(inventory),
            error => Err(error),
        }
    }

    /// Asks for a volume that the list lacks, until it is denied often enough or appears.
    async fn denied(&self, id: &VolumeId, priority: Priority) -> RdsError {
        let known = self.lister.number(id);
        for denial in 0..DENIALS {
            if denial > 0 {
                tokio::time::sleep(self.absence_pause).await;
                match self.lister.get(priority, Freshness::Now).await.and_then(|list| list.get(id).cloned()) {
                    Err(RdsError::NotFound { .. }) => {}
                    Ok(_) => return self.contradiction(id, "a later list has it"),
                    Err(error) => return error,
                }
            }
            match self.shown_alone(id, known.as_deref(), priority).await {
                Ok(None) => {}
                Ok(Some(how)) => return self.contradiction(id, how),
                Err(error) => return error,
            }
        }
        self.lister.forget(id);
        RdsError::NotFound { what: format!("volume {id}") }
    }

    fn contradiction(&self, id: &VolumeId, how: &str) -> RdsError {
        metrics::doubtful_list();
        tracing::warn!(volume = %id, how, "the RDS's list of disks lacks a volume that exists");
        RdsError::malformed("list disks", format!("it lacks volume {id}, and {how}"))
    }

    /// Whether the RDS shows the volume when it is asked for that one alone; returns how it does.
    async fn shown_alone(
        &self,
        id: &VolumeId,
        number: Option<&str>,
        priority: Priority,
    ) -> Result<Option<&'static str>, RdsError> {
        let what = format!("look for volume {id}");
        let mine = |item: &Value| item.get("slot").and_then(Value::as_str) == Some(id.as_str());
        let query = vec![("slot", id.to_string()), (".proplist", ".id,slot".to_owned())];
        let answer = self.ask(priority, "disk".to_owned(), query, &what).await?;
        let items = answer.as_array().ok_or_else(|| RdsError::malformed(&what, "it is not a list"))?;
        if items.iter().any(mine) {
            return Ok(Some("shows it when asked for its slot"));
        }
        let Some(number) = number else { return Ok(None) };
        match self.ask(priority, format!("disk/{number}"), vec![], &what).await {
            Err(RdsError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
            // A number that belongs to another disk by now denies this one.
            Ok(item) if item.is_object() => Ok(mine(&item).then_some("shows it when asked for its number")),
            Ok(_) => Err(RdsError::malformed(&what, "it is not an item")),
        }
    }

    pub(super) async fn ask(
        &self,
        priority: Priority,
        path: String,
        query: Vec<(&'static str, String)>,
        what: &str,
    ) -> Result<Value, RdsError> {
        let request = Request {
            op: Op::ListDisks,
            method: Method::GET,
            path,
            query,
            body: None,
            what: what.to_owned(),
        };
        let turn = self.http.turn(priority, request.op, what).await?;
        self.http.send(&turn, &request).await
    }
}

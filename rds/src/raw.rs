//! Sets and reads properties of a disk unchanged: to find out how a device treats them.
//!
//! Comes in: names and values of RouterOS' own. Goes out: what the device shows afterwards. Always holds:
//! only a disk that is a volume of ours is touched. Nothing here proves who may connect, and no error repeats
//! a value.

use std::collections::BTreeMap;
use std::sync::Arc;

use cleat_ids::VolumeId;
use reqwest::Method;
use serde_json::{Map, Value};

use super::client::{Inner, RestRds};
use super::error::{RdsError, Way};
use super::gate::Priority;
use super::http::Request;
use super::list::Freshness;
use super::metrics::Op;

impl RestRds {
    /// Sets properties of a volume's disk exactly as given. Reads nothing back: see [`RestRds::properties`].
    ///
    /// # Errors
    /// [`RdsError::NotFound`] where the RDS has said that it has no such volume; [`RdsError::Refused`] with
    /// its own text where it does not accept them.
    pub async fn set_properties(
        &self,
        id: &VolumeId,
        properties: &[(&'static str, &str)],
    ) -> Result<(), RdsError> {
        let (rds, id) = (Arc::clone(&self.inner), id.clone());
        let names: Vec<&str> = properties.iter().map(|(name, _)| *name).collect();
        let what = format!("set {} on volume {id}", names.join(", "));
        let body = properties.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))).collect();
        let lost = what.clone();
        // To its end, whether or not the caller waits: half a request would leave the outcome open.
        let ended = tokio::spawn(async move { rds.set_properties(&id, body, what).await }).await;
        ended.unwrap_or_else(|error| Err(RdsError::unreachable(&lost, Way::Lost, error)))
    }

    /// The properties, among those asked for, that the device shows of a volume's disk.
    ///
    /// # Errors
    /// [`RdsError::NotFound`] where the RDS has said that it has no such volume.
    pub async fn properties(
        &self,
        id: &VolumeId,
        names: &[&'static str],
    ) -> Result<BTreeMap<String, String>, RdsError> {
        self.inner.properties(id, names).await
    }
}

impl Inner {
    async fn set_properties(
        &self,
        id: &VolumeId,
        body: Map<String, Value>,
        what: String,
    ) -> Result<(), RdsError> {
        let _held = self.volumes.hold(id).await;
        let item = self.look(id, Priority::List, Freshness::Now).await?.item;
        let request = Request {
            op: Op::SetDisk,
            method: Method::PATCH,
            path: format!("disk/{item}"),
            query: vec![],
            body: Some(body),
            what,
        };
        self.write(Priority::List, &request).await.map(drop)
    }

    async fn properties(
        &self,
        id: &VolumeId,
        names: &[&'static str],
    ) -> Result<BTreeMap<String, String>, RdsError> {
        let item = self.lister.get(Priority::List, Freshness::Now).await?.get(id)?.item.clone();
        let what = format!("read {} of volume {id}", names.join(", "));
        let request = Request {
            op: Op::ListDisks,
            method: Method::GET,
            path: "disk".to_owned(),
            query: vec![("slot", id.to_string()), (".proplist", format!(".id,slot,{}", names.join(",")))],
            body: None,
            what: what.clone(),
        };
        let turn = self.http.turn(Priority::List, request.op, &what).await?;
        let answer = self.http.send(&turn, &request).await?;
        let items = answer.as_array().ok_or_else(|| RdsError::malformed(&what, "it is not a list"))?;
        let ours = items.iter().find(|found| found.get(".id").and_then(Value::as_str) == Some(&item));
        let ours = ours.and_then(Value::as_object);
        let ours = ours.ok_or_else(|| RdsError::malformed(&what, "the disk is not in it"))?;
        let shown = names.iter().filter_map(|name| Some((*name, ours.get(*name)?.as_str()?)));
        Ok(shown.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

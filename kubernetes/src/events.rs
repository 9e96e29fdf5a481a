//! Events about objects of the cluster, as `kubectl describe` shows them.
//!
//! In come happenings, one at a time; out go Event objects. What holds: the same thing said again within some minutes raises
//! the count of the Event that is there, and is written at most every few seconds; what is remembered is bounded. Nothing
//! rests on an Event, and nobody is to wait for one: who calls this has a queue before it.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::Instant;

use crate::api::{ApiError, ApiServer};

/// What is said again after this is a new Event.
const SERIES: Duration = Duration::from_secs(360);
/// The count of one Event is written no more often.
const WRITE_EVERY: Duration = Duration::from_secs(10);
/// So many Events are remembered; then the one that was said longest ago is not any more.
const REMEMBERED: usize = 2048;
/// The longest note that the API server takes.
const NOTE: usize = 1024;
/// Where an Event about an object without a namespace has to be.
const WITHOUT_NAMESPACE: &str = "default";

/// Something that happened to an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Happening {
    /// What it happened to.
    pub object: ObjectOfCluster,
    /// A stable name, such as `VolumeAttached`.
    pub reason: &'static str,
    /// Somebody should look at it.
    pub warning: bool,
    /// What happened, for people. The same text again is the same Event again.
    pub note: String,
}

/// An object of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectOfCluster {
    /// Such as `v1`.
    pub api_version: String,
    /// Such as `Node`.
    pub kind: String,
    /// Its namespace, if it has one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Which of that name: `kubectl describe` shows an Event only beside this one.
    pub uid: Option<String>,
}

/// Writes Events. One task has it.
pub struct Events {
    server: ApiServer,
    /// Who says it.
    controller: String,
    instance: String,
    said: BTreeMap<Happening, Said>,
    /// Of the names of Events of this process.
    number: u64,
    began: Timestamp,
}

#[derive(Debug)]
struct Said {
    event: String,
    count: i32,
    last: Instant,
    last_at: Timestamp,
    written: Instant,
    written_count: i32,
}

impl Events {
    /// Events said by that controller, in that process.
    #[must_use]
    pub fn new(server: ApiServer, controller: &str, instance: &str) -> Self {
        Self {
            server,
            controller: controller.to_owned(),
            // Longer ones are refused.
            instance: instance.chars().take(128).collect(),
            said: BTreeMap::new(),
            number: 0,
            began: Timestamp::now(),
        }
    }

    /// Says it: as a new Event, or as one more of a series.
    ///
    /// # Errors
    /// The API server's answer. It is not said again by itself.
    pub async fn say(&mut self, mut happening: Happening) -> Result<(), ApiError> {
        happening.note = cut(&happening.note);
        let now = Instant::now();
        self.said.retain(|_, said| now.duration_since(said.last) < SERIES);
        if let Some(said) = self.said.get_mut(&happening) {
            said.count = said.count.saturating_add(1);
            (said.last, said.last_at) = (now, Timestamp::now());
            return match now.duration_since(said.written) >= WRITE_EVERY {
                true => self.write_count(&happening).await,
                false => Ok(()),
            };
        }
        self.create(happening).await
    }

    /// Writes the counts that were not written yet, where it is time to.
    ///
    /// # Errors
    /// The API server's answer to the first that failed.
    pub async fn write_counts(&mut self) -> Result<(), ApiError> {
        let now = Instant::now();
        let due = self.said.iter().filter(|(_, said)| {
            said.count != said.written_count && now.duration_since(said.written) >= WRITE_EVERY
        });
        let due: Vec<Happening> = due.map(|(happening, _)| happening.clone()).collect();
        for happening in due {
            self.write_count(&happening).await?;
        }
        Ok(())
    }

    fn api(&self, object: &ObjectOfCluster) -> Api<Event> {
        let namespace = object.namespace.as_deref().unwrap_or(WITHOUT_NAMESPACE);
        Api::namespaced(self.server.client.clone(), namespace)
    }

    async fn create(&mut self, happening: Happening) -> Result<(), ApiError> {
        if self.said.len() >= REMEMBERED
            && let Some(oldest) = self.said.iter().min_by_key(|(_, said)| said.last).map(|(h, _)| h.clone())
        {
            self.said.remove(&oldest);
        }
        self.number += 1;
        let (now, at) = (Instant::now(), Timestamp::now());
        let event = event_name(&happening.object.name, self.began, self.number);
        let object = &happening.object;
        let made = Event {
            metadata: ObjectMeta { name: Some(event.clone()), ..ObjectMeta::default() },
            event_time: Some(MicroTime(at)),
            reporting_controller: Some(self.controller.clone()),
            reporting_instance: Some(self.instance.clone()),
            action: Some(happening.reason.to_owned()),
            reason: Some(happening.reason.to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some(object.api_version.clone()),
                kind: Some(object.kind.clone()),
                name: Some(object.name.clone()),
                namespace: object.namespace.clone(),
                uid: object.uid.clone(),
                ..ObjectReference::default()
            }),
            note: Some(happening.note.clone()),
            type_: Some(if happening.warning { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        };
        self.server.ask(self.api(object).create(&PostParams::default(), &made)).await?;
        let said = Said { event, count: 1, last: now, last_at: at, written: now, written_count: 1 };
        self.said.insert(happening, said);
        Ok(())
    }

    async fn write_count(&mut self, happening: &Happening) -> Result<(), ApiError> {
        let api = self.api(&happening.object);
        let Some(said) = self.said.get_mut(happening) else { return Ok(()) };
        let series = EventSeries { count: said.count, last_observed_time: MicroTime(said.last_at) };
        let patch = Patch::Merge(json!({ "series": series }));
        said.written = Instant::now();
        let count = said.count;
        match self.server.ask(api.patch(&said.event, &PatchParams::default(), &patch)).await {
            Ok(_) => {
                said.written_count = count;
                Ok(())
            }
            // The cluster forgets Events after an hour or so, and people delete them.
            Err(ApiError::NotFound) => {
                self.said.remove(happening);
                self.create(happening.clone()).await
            }
            Err(error) => Err(error),
        }
    }
}

/// A name that no other Event has: the object's, cut to what a name may have, and what is this process's alone.
fn event_name(object: &str, began: Timestamp, number: u64) -> String {
    let suffix = format!(".{:x}.{number:x}", began.as_nanosecond());
    let kept: String = object.chars().take(253 - suffix.len()).collect();
    format!("{}{suffix}", kept.trim_end_matches(['.', '-']))
}

fn cut(note: &str) -> String {
    if note.len() <= NOTE {
        return note.to_owned();
    }
    let mut end = NOTE - '…'.len_utf8();
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &note[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_cut_between_characters_to_what_is_taken() {
        assert_eq!(cut("short"), "short");
        let long = "ü".repeat(600);
        let cut = cut(&long);
        assert!(cut.len() <= NOTE && cut.ends_with("ü…"), "{cut}");
    }

    #[test]
    fn the_name_of_an_event_fits_and_ends_as_names_may() {
        let name = event_name(&"a".repeat(253), Timestamp::UNIX_EPOCH, 7);
        assert!(name.len() <= 253 && name.ends_with("a.0.7"), "{name}");
    }
}

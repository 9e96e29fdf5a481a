//! What a ticket is answered, in its object.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The condition that says whether the device is there for a ticket.
pub const SATISFIED: &str = "Satisfied";
/// The condition that says whether a ticket is lost: its holder did not renew it in time.
pub const LOST: &str = "Lost";

/// How a ticket stands. The controller writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TicketStatus {
    /// The generation of the ticket that this is about.
    pub observed_generation: u64,
    /// The device is there for it; for `satisfiedGeneration`, and for no later one.
    pub satisfied: bool,
    /// The generation that it is satisfied for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub satisfied_generation: Option<u64>,
    /// The node where the device is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub node: Option<String>,
    /// The device's path on that node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub device: Option<String>,
    /// Why it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub waits_for: Option<String>,
    /// For whom it waits: a ticket or a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub waits_on: Option<String>,
    /// Since when it stands like this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub since: Option<String>,
    /// Its holder is to let go of the device, and is cut off after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub interrupted_until: Option<String>,
    /// The same as conditions, for `kubectl wait`: Satisfied, and Lost.
    #[serde(default)]
    pub conditions: Vec<TicketCondition>,
}

/// One of a ticket's conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TicketCondition {
    /// Which one: Satisfied, or Lost.
    #[serde(rename = "type")]
    pub kind: String,
    /// True or False.
    pub status: String,
    /// The generation of the ticket that this is about.
    #[serde(default)]
    pub observed_generation: u64,
    /// Since when it is so.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, for people.
    #[serde(default)]
    pub message: String,
}

impl TicketStatus {
    /// With its conditions, and with the times of what it says as before: what was written once is not written again.
    #[must_use]
    pub fn concluded(self, reason: &str, lost: bool, now: &str, before: Option<&Self>) -> Self {
        let condition = |kind: &str, holds: bool, reason: &str, message: &str| {
            let status = if holds { "True" } else { "False" };
            let known = before.into_iter().flat_map(|before| &before.conditions);
            let known = known.filter(|known| known.kind == kind && known.status == status);
            let since = known.map(|known| known.last_transition_time.as_str()).next();
            TicketCondition {
                kind: kind.to_owned(),
                status: status.to_owned(),
                observed_generation: self.observed_generation,
                last_transition_time: since.unwrap_or(now).to_owned(),
                reason: reason.to_owned(),
                message: message.to_owned(),
            }
        };
        let said = self.waits_for.as_deref().unwrap_or_default();
        let (is_lost, why) = if lost { ("NotRenewed", said) } else { ("Renewed", "") };
        let conditions =
            vec![condition(SATISFIED, self.satisfied, reason, said), condition(LOST, lost, is_lost, why)];
        let mut this = Self { conditions, ..self };
        let since = this.since.take().unwrap_or_else(|| now.to_owned());
        let same = before.filter(|before| Self { since: None, ..(*before).clone() } == this);
        Self { since: same.map_or(Some(since), |before| before.since.clone()), ..this }
    }

    /// Whether a ticket of that generation is satisfied. What was said of an earlier one is not said of it.
    #[must_use]
    pub fn is_satisfied(&self, generation: u64) -> bool {
        self.satisfied && self.satisfied_generation == Some(generation)
    }

    /// As a merge patch of the status: what is not said any more goes.
    #[must_use]
    pub fn patch(&self) -> Value {
        json!({"status": {
            "observedGeneration": self.observed_generation,
            "satisfied": self.satisfied,
            "satisfiedGeneration": self.satisfied_generation,
            "node": self.node,
            "device": self.device,
            "waitsFor": self.waits_for,
            "waitsOn": self.waits_on,
            "since": self.since,
            "interruptedUntil": self.interrupted_until,
            "conditions": self.conditions,
        }})
    }
}

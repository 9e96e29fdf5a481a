//! The secret of a volume at the RDS: set, and read back.
//!
//! Comes in: a secret. Goes out: success once the RDS has shown that it has this one. Always holds: a secret
//! goes over an encrypted connection or not at all. No error and no log line shows it. Nothing is proven
//! while an earlier write without an answer could replace it.

use cleat_ids::VolumeId;
use cleat_runtime::exit::Causes;
use reqwest::Method;
use serde_json::Value;

use super::access::{AccessStep, PASSWORD};
use super::client::Inner;
use super::error::{Cause, RdsError};
use super::gate::Priority;
use super::http::Request;
use super::list::Freshness;
use super::metrics::Op;
use super::volume::RdsVolume;
use crate::secret::Secret;

/// The property in which RouterOS shows a password in the form that hosts take.
const SHOWN_SECRET: &str = "nvme-tcp-server-secret";
/// Replaces a text that would show it.
const HUSHED: &str = "(its words repeat the secret, and are left out)";

impl Inner {
    pub(super) async fn set_secret(
        &self,
        id: &VolumeId,
        secret: Secret,
        priority: Priority,
    ) -> Result<(), RdsError> {
        self.put_in_force(id, &secret, priority).await.map_err(|error| hushed(error, &secret))
    }

    async fn put_in_force(&self, id: &VolumeId, secret: &Secret, priority: Priority) -> Result<(), RdsError> {
        if !self.http.encrypted() {
            return Err(RdsError::Cleartext { volume: id.clone() });
        }
        let mut held = self.volumes.hold(id).await;
        let volume = self.lister.get(priority, Freshness::Now).await?.get(id)?.clone();
        if !self.shows(&mut held, &volume, secret, priority).await? {
            self.set(&mut held, &volume, &AccessStep::Secret(secret.clone()), priority).await?;
            if !self.shows(&mut held, &volume, secret, priority).await? {
                let what = format!("set the secret of volume {id}");
                let problem = "the RDS confirmed it, but shows another one or none";
                return Err(RdsError::malformed(&what, problem));
            }
        }
        held.cannot_rekey(id, secret, self.settle)
    }

    /// Whether the RDS shows that this is the volume's secret.
    async fn shows(
        &self,
        held: &mut super::per_volume::Held,
        volume: &RdsVolume,
        secret: &Secret,
        priority: Priority,
    ) -> Result<bool, RdsError> {
        let what = format!("read back the secret of volume {}", volume.id);
        let request = Request {
            op: Op::ListDisks,
            method: Method::GET,
            path: "disk".to_owned(),
            query: vec![
                ("slot", volume.id.to_string()),
                (".proplist", format!(".id,slot,{PASSWORD},{SHOWN_SECRET}")),
            ],
            body: None,
            what: what.clone(),
        };
        let turn = self.http.turn(priority, request.op, &what).await?;
        let answer = self.http.send(&turn, &request).await?;
        drop(turn);
        let items = answer.as_array().ok_or_else(|| RdsError::malformed(&what, "it is not a list"))?;
        let text = |item: &Value, name: &str| item.get(name).and_then(Value::as_str).map(str::to_owned);
        let item = items.iter().find(|item| text(item, ".id").as_deref() == Some(volume.item.as_str()));
        let item = item.ok_or_else(|| RdsError::malformed(&what, "the disk is not in it"))?;
        let shown = [PASSWORD, SHOWN_SECRET].into_iter().filter_map(|name| text(item, name));
        let shown: Vec<Secret> = shown.map(Secret::read_back).collect();
        shown.iter().for_each(|shown| held.read_secret(shown));
        Ok(shown.contains(secret))
    }
}

/// An error without the secret: a device may repeat in any answer what it was sent.
fn hushed(mut error: RdsError, secret: &Secret) -> RdsError {
    let repeats = |text: &str| text.contains(secret.reveal());
    let hush = |text: &mut String| {
        if repeats(text) {
            *text = HUSHED.to_owned();
        }
    };
    match &mut error {
        RdsError::NotFound { what } => hush(what),
        RdsError::Refused { what, message, detail, .. } => [what, message, detail].into_iter().for_each(hush),
        RdsError::Full { what, detail } | RdsError::Unauthorised { what, detail, .. } => {
            [what, detail].into_iter().for_each(hush)
        }
        RdsError::Malformed { what, problem } => [what, problem].into_iter().for_each(hush),
        RdsError::Conflict { problem, .. } => hush(problem),
        RdsError::InDoubt { earlier, .. } => hush(earlier),
        RdsError::Unreachable { what, cause, .. } => {
            hush(what);
            if repeats(&Causes(cause.as_error()).to_string()) {
                *cause = Cause::new(HUSHED);
            }
        }
        RdsError::Cleartext { .. } => {}
    }
    error
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Way;

    #[test]
    fn no_kind_of_error_repeats_the_secret() {
        let secret = Secret::for_test(7);
        let said = || format!("bad value {}", secret.reveal());
        let volume = VolumeId::new("v").expect("an id");
        let kinds = [
            RdsError::NotFound { what: said() },
            RdsError::Refused { what: said(), status: 400, message: said(), detail: said() },
            RdsError::Full { what: said(), detail: said() },
            RdsError::unreachable(&said(), Way::Timeout, said()),
            RdsError::Unauthorised { what: said(), user: "cleat".into(), detail: said() },
            RdsError::malformed(&said(), said()),
            RdsError::conflict(&volume, said()),
            RdsError::InDoubt { volume: volume.clone(), earlier: said(), wait: Duration::ZERO },
            RdsError::Cleartext { volume },
        ];
        for kind in kinds {
            let quiet = hushed(kind, &secret);
            let said = format!("{} {quiet:?}", Causes(&quiet));
            assert!(!said.contains(secret.reveal()), "{said}");
        }
        let other = hushed(RdsError::malformed("ask", "it is not a list"), &secret).to_string();
        assert!(other.contains("it is not a list"), "what does not repeat it is told: {other}");
    }
}

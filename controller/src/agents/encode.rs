//! What agents are sent.
//!
//! In come the core's directives; out go messages. Nothing can fail but a secret that cannot be made.

use std::time::Duration;

use cleat_core::{Directive, Epoch, OperationId, VolumeId};
use cleat_proto::cleat::v1 as proto;
use cleat_rds::secret::NoSecret;

use super::settings::{AgentSettings, PathPolicy};

/// An epoch as messages have it.
fn numbers(epoch: Epoch) -> proto::Epoch {
    proto::Epoch { term: epoch.term, seq: epoch.seq }
}

/// The volume that a message to an agent is about.
pub(super) fn volume_of(message: &proto::ToAgent) -> Option<VolumeId> {
    use proto::to_agent::Kind;
    let id = match message.kind.as_ref()? {
        Kind::Attach(attach) => &attach.volume_id,
        Kind::Detach(detach) => &detach.volume_id,
        Kind::Revoke(revoke) => &revoke.volume_id,
        Kind::Preempt(preempt) => &preempt.volume_id,
        Kind::Rekey(rekey) => &rekey.volume_id,
        Kind::Count(count) => &count.volume_id,
        Kind::Verify(verify) => &verify.volume_id,
        Kind::Welcome(_) | Kind::Heartbeat(_) => return None,
    };
    VolumeId::new(id.as_str()).ok()
}

/// Between two looks of an agent that counts writes: as exact as people need it.
const COUNT_EVERY: Duration = Duration::from_millis(100);

/// The version of the session's protocol from which on an agent knows a message of this kind.
pub(super) fn known_since(message: &proto::ToAgent) -> u32 {
    match message.kind {
        Some(proto::to_agent::Kind::Count(_)) => 3,
        _ => 1,
    }
}

/// A directive as it is sent.
///
/// # Errors
/// If it needs a secret that cannot be made.
pub(super) fn directive(
    operation: OperationId,
    directive: &Directive,
    settings: &AgentSettings,
) -> Result<proto::ToAgent, NoSecret> {
    let operation_id = operation.to_string();
    let about = proto::DirectiveHeader {
        operation_id: operation_id.clone(),
        volume_id: directive.volume().to_string(),
        epoch: Some(numbers(directive.epoch())),
    };
    let kind = match directive {
        Directive::Attach { grant } => {
            let identity = grant.identity.as_ref();
            proto::to_agent::Kind::Attach(proto::Attach {
                operation_id,
                volume_id: grant.spec.id.to_string(),
                epoch: Some(numbers(grant.epoch)),
                subsystem_nqn: grant.spec.subsystem_nqn.as_ref().map(ToString::to_string).unwrap_or_default(),
                portals: grant.spec.portals.iter().map(ToString::to_string).collect(),
                namespace_uuid: identity.map(|known| known.namespace_uuid.to_string()).unwrap_or_default(),
                nguid: identity
                    .and_then(|known| known.nguid)
                    .map(|nguid| nguid.to_string())
                    .unwrap_or_default(),
                size_bytes: grant.spec.size_bytes,
                read_only: grant.read_only,
                path_policy: path_policy(settings.path_policy).into(),
                deadline_ms: millis(settings.attach_deadline),
                dhchap_secret: settings.secret(&grant.spec.id, grant.secret)?,
                reserve: grant.reserve,
                reservation_key: grant.epoch.reservation_key(),
                secret_generation: grant.secret.map(numbers),
            })
        }
        Directive::Detach { volume, epoch, cut_tickets } => proto::to_agent::Kind::Detach(proto::Detach {
            operation_id,
            volume_id: volume.to_string(),
            epoch: Some(numbers(*epoch)),
            deadline_ms: millis(settings.detach_deadline),
            cut_tickets: *cut_tickets,
        }),
        Directive::Revoke { volume, epoch } => proto::to_agent::Kind::Revoke(proto::Revoke {
            operation_id,
            volume_id: volume.to_string(),
            epoch: Some(numbers(*epoch)),
            deadline_ms: millis(settings.detach_deadline),
        }),
        Directive::Preempt { volume, epoch, victims } => proto::to_agent::Kind::Preempt(proto::Preempt {
            operation_id,
            volume_id: volume.to_string(),
            epoch: Some(numbers(*epoch)),
            reservation_key: epoch.reservation_key(),
            victim_keys: victims.iter().map(|victim| victim.reservation_key()).collect(),
            deadline_ms: millis(settings.detach_deadline),
        }),
        Directive::Rekey { volume, epoch, generation } => proto::to_agent::Kind::Rekey(proto::Rekey {
            operation_id,
            volume_id: volume.to_string(),
            epoch: Some(numbers(*epoch)),
            dhchap_secret: settings.secret(volume, Some(*generation))?,
            generation: Some(numbers(*generation)),
            deadline_ms: millis(settings.attach_deadline),
        }),
        Directive::Count { volume, epoch, for_ms } => proto::to_agent::Kind::Count(proto::Count {
            operation_id,
            volume_id: volume.to_string(),
            epoch: Some(numbers(*epoch)),
            every_ms: millis(COUNT_EVERY),
            for_ms: millis(Duration::from_millis(*for_ms)),
        }),
        Directive::Verify { volume, epoch, pods, others } => proto::to_agent::Kind::Verify(proto::Verify {
            operation_id,
            volume_id: volume.to_string(),
            epoch: Some(numbers(*epoch)),
            pod_uids: pods.clone(),
            other_volume_ids: others.iter().map(ToString::to_string).collect(),
        }),
    };
    Ok(proto::ToAgent { kind: Some(kind), about: Some(about) })
}

/// Milliseconds, as messages have them; more than 49 days are 49 days.
pub(super) fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn path_policy(policy: PathPolicy) -> proto::PathPolicy {
    match policy {
        PathPolicy::Any => proto::PathPolicy::Any,
        PathPolicy::Quorum => proto::PathPolicy::Quorum,
        PathPolicy::All => proto::PathPolicy::All,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use cleat_core::{Access, DeviceIdentity, Grant, NamespaceUuid, Portal, SubsystemNqn, VolumeSpec};
    use cleat_ids::NqnPrefix;

    use super::*;

    const UUID: &str = "00000000-0000-0000-0000-00000000000b";

    fn settings() -> AgentSettings {
        AgentSettings {
            nqn_prefix: NqnPrefix::parse("nqn.2026-01.io.cleat:").unwrap(),
            path_policy: PathPolicy::All,
            attach_deadline: Duration::from_secs(20),
            detach_deadline: Duration::from_secs(30),
            heartbeat_interval: Duration::from_secs(2),
            silence_deadline: Duration::from_secs(10),
            secrets: None,
        }
    }

    #[test]
    fn an_attach_carries_the_epoch_the_pinned_identity_and_the_deadline() {
        let settings = settings();
        let grant = Grant {
            epoch: Epoch { term: 1, seq: 2 },
            spec: VolumeSpec {
                id: VolumeId::new("v").unwrap(),
                access: Access::Rwo,
                subsystem_nqn: SubsystemNqn::parse("nqn.2026-01.io.cleat:v").ok(),
                portals: vec![Portal::parse("10.0.0.1:4420").unwrap()],
                size_bytes: 4096,
                min_fence: cleat_core::MinFence::default(),
                migration_timeout_ms: VolumeSpec::DEFAULT_MIGRATION_TIMEOUT_MS,
                require_migration: false,
            },
            read_only: true,
            identity: Some(DeviceIdentity {
                namespace_uuid: NamespaceUuid::parse(UUID).unwrap(),
                nguid: None,
            }),
            secret: None,
            reserve: false,
        };
        let operation = OperationId { term: 1, number: 5 };
        let attach = Directive::Attach { grant: Box::new(grant) };
        let Some(proto::to_agent::Kind::Attach(sent)) =
            directive(operation, &attach, &settings).unwrap().kind
        else {
            panic!("an attach");
        };
        assert_eq!(sent.operation_id, "op-1-5");
        assert_eq!(sent.epoch, Some(proto::Epoch { term: 1, seq: 2 }));
        assert_eq!((sent.namespace_uuid.as_str(), sent.size_bytes, sent.read_only), (UUID, 4096, true));
        assert_eq!((sent.path_policy(), sent.deadline_ms), (proto::PathPolicy::All, 20_000));
    }

    #[test]
    fn a_directive_whose_secret_cannot_be_made_is_not_made_without_it() {
        let settings = settings();
        let (operation, epoch) = (OperationId { term: 1, number: 5 }, Epoch { term: 1, seq: 2 });
        let volume = VolumeId::new("v").unwrap();
        let rekey = Directive::Rekey { volume: volume.clone(), epoch, generation: epoch };
        let missing = directive(operation, &rekey, &settings).unwrap_err().to_string();
        assert!(missing.contains("volume v") && missing.contains("--secret-key-file"), "{missing}");
        assert!(
            directive(operation, &Directive::Revoke { volume, epoch }, &settings).is_ok(),
            "it needs none"
        );
    }
}

//! From protobuf: the controller's messages, checked once.
//!
//! Comes in: messages of the controller. Goes out: a [`Directive`] that cannot be built wrong, or a
//! [`RefusedDirective`] that names the field and the value, so that the controller's operation ends instead of
//! waiting.

use std::time::Duration;

use cleat_host::fabrics::DhchapSecret;
use cleat_host::readiness::PathPolicy;
use cleat_host::reservations::ReservationKey;
use cleat_host::{NamespaceIdentity, NamespaceUuid, Nguid, Portal};
use cleat_proto::cleat::v1 as proto;
use cleat_proto::{SESSION_PROTOCOL, session_protocol_with};
use tokio::time::Instant;

use crate::ledger::Grant;
use crate::name::{Epoch, NameError, NqnPrefix, OperationId, VolumeId};
use crate::volume::clause;
use crate::volume::count::{CountPace, CountRequest};
use crate::volume::directive::{Ask, Directive, GivenSecret};
use crate::volume::outcome::DirectiveFailure;

/// Shortest and longest deadline of a directive; anything else is a mistake of the sender.
const DEADLINES: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);
/// Limits of what a Welcome may ask for; anything else breaks the protocol.
const HEARTBEATS: std::ops::RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(60);
/// Most portals of one volume: each is a controller in the kernel, and a mistake must not make hundreds.
const MOST_PORTALS: usize = 16;
/// Most pods that one Verify may name: a volume has one or two.
const MOST_PODS: usize = 16;
/// Most other volumes that it may name: those of one VM on one node.
const MOST_OTHERS: usize = 1024;
/// Most registrations that one Preempt may remove: a volume has a grant or two, and perhaps some old ones.
const MOST_VICTIMS: usize = 64;

/// The two times that a Welcome sets, and the session that it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Welcome {
    /// The controller's term, which rises with every start of it.
    pub(super) term: u64,
    /// The name of the session, for logs.
    pub(super) session: String,
    /// Time between two heartbeats.
    pub(super) heartbeat: Duration,
    /// Silence for this long counts as loss.
    pub(super) silence: Duration,
    /// A token that was renewed is to be sent on the stream.
    pub(super) takes_tokens: bool,
    /// The version of the session's protocol that the controller speaks.
    pub(super) protocol: u32,
    /// The controller's version, for logs.
    pub(super) controller_version: String,
}

impl Welcome {
    /// Checks a Welcome; returns what is wrong with it otherwise.
    pub(super) fn parse(welcome: proto::Welcome) -> Result<Self, String> {
        // The first version says none.
        let protocol = welcome.protocol.max(1);
        session_protocol_with("controller", "agent", protocol).map_err(|apart| {
            let (controller, agent) = (&welcome.controller_version, cleat_runtime::build_info());
            format!("{apart} (controller {controller}, agent {agent})")
        })?;
        let heartbeat = Duration::from_millis(welcome.heartbeat_interval_ms.into());
        let silence = Duration::from_millis(welcome.silence_deadline_ms.into());
        if !HEARTBEATS.contains(&heartbeat) || silence <= heartbeat {
            return Err(format!("heartbeats every {heartbeat:?} with a silence deadline of {silence:?}"));
        }
        Ok(Self {
            term: welcome.term,
            session: welcome.session_id,
            heartbeat,
            silence,
            takes_tokens: welcome.takes_tokens,
            protocol,
            controller_version: welcome.controller_version,
        })
    }
}

/// A field of a directive that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field {field}: {problem}")]
struct Invalid {
    field: &'static str,
    problem: String,
}

fn invalid(field: &'static str) -> impl FnOnce(&dyn std::fmt::Display) -> Invalid {
    move |problem| Invalid { field, problem: problem.to_string() }
}

/// A directive that cannot be carried out, answered at once. Its header is repeated as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedDirective {
    /// The operation id, as it came.
    pub operation: String,
    /// The volume id, as it came.
    pub volume: String,
    /// Term and number of the epoch; `None` where it had none.
    pub epoch: Option<(u64, u64)>,
    /// What is wrong with it.
    pub failure: DirectiveFailure,
}

/// What a message of the controller turned out to be.
#[derive(Debug)]
pub(super) enum Parsed {
    /// A directive to carry out.
    Directive(Box<Directive>),
    /// A directive that cannot be carried out.
    Refused(Box<RefusedDirective>),
    /// Writes to be counted.
    Count(Box<CountRequest>),
    /// A sign of life of the controller, and no more.
    Heartbeat,
    /// A Welcome after the first message: it breaks the protocol.
    Unexpected(Box<proto::to_agent::Kind>),
}

/// Checks a message of the controller.
pub(super) fn parse(kind: proto::to_agent::Kind, prefix: &NqnPrefix) -> Parsed {
    use proto::to_agent::Kind;
    let received = Instant::now();
    let header = |operation: &str, volume: &str, epoch: Option<proto::Epoch>, ask: Result<Ask, Invalid>| {
        let directive = || {
            let problem = |field| move |error: NameError| invalid(field)(&error);
            Ok::<_, Invalid>(Directive {
                operation: OperationId::parse(operation).map_err(problem("operation_id"))?,
                volume: VolumeId::parse(volume).map_err(problem("volume_id"))?,
                epoch: parse_epoch(epoch).map_err(problem("epoch"))?,
                ask: ask?,
                received,
            })
        };
        match directive() {
            Ok(directive) => Parsed::Directive(Box::new(directive)),
            Err(error) => refused(operation, volume, epoch, &error),
        }
    };
    match kind {
        Kind::Attach(m) => header(&m.operation_id, &m.volume_id, m.epoch, attach(&m, prefix, received)),
        Kind::Detach(m) => {
            let cut_tickets = m.cut_tickets;
            let ask = by(m.deadline_ms, received).map(|deadline| Ask::Detach { deadline, cut_tickets });
            header(&m.operation_id, &m.volume_id, m.epoch, ask)
        }
        Kind::Revoke(m) => {
            let ask = by(m.deadline_ms, received).map(|deadline| Ask::Revoke { deadline });
            header(&m.operation_id, &m.volume_id, m.epoch, ask)
        }
        Kind::Verify(m) => header(&m.operation_id, &m.volume_id, m.epoch, verify(&m)),
        Kind::Preempt(m) => header(&m.operation_id, &m.volume_id, m.epoch, preempt(&m, received)),
        Kind::Rekey(m) => header(&m.operation_id, &m.volume_id, m.epoch, rekey(&m, received)),
        Kind::Count(m) => count(&m).map_or_else(
            |error| refused(&m.operation_id, &m.volume_id, m.epoch, &error),
            |asked| Parsed::Count(Box::new(asked)),
        ),
        Kind::Heartbeat(_) => Parsed::Heartbeat,
        other @ Kind::Welcome(_) => Parsed::Unexpected(Box::new(other)),
    }
}

/// Repeats what came as it came, with what is wrong with it.
fn refused(operation: &str, volume: &str, epoch: Option<proto::Epoch>, error: &Invalid) -> Parsed {
    Parsed::Refused(Box::new(RefusedDirective {
        operation: operation.to_owned(),
        volume: volume.to_owned(),
        epoch: epoch.map(|epoch| (epoch.term, epoch.seq)),
        failure: DirectiveFailure { unready: clause::failed(clause::REQUEST, error), nothing_left: false },
    }))
}

fn count(message: &proto::Count) -> Result<CountRequest, Invalid> {
    let problem = |field| move |error: NameError| invalid(field)(&error);
    let ms = |number: u32| Duration::from_millis(number.into());
    Ok(CountRequest {
        operation: OperationId::parse(&message.operation_id).map_err(problem("operation_id"))?,
        volume: VolumeId::parse(&message.volume_id).map_err(problem("volume_id"))?,
        epoch: parse_epoch(message.epoch).map_err(problem("epoch"))?,
        pace: CountPace::within_bounds(ms(message.every_ms), ms(message.for_ms)),
    })
}

/// A directive of a kind that this version does not know.
pub(super) fn not_known(about: proto::DirectiveHeader) -> RefusedDirective {
    let why = format!(
        "this agent ({}) speaks session protocol {SESSION_PROTOCOL} and does not know this directive, which is of a later \
         version; upgrade the agent",
        cleat_runtime::build_info()
    );
    RefusedDirective {
        operation: about.operation_id,
        volume: about.volume_id,
        epoch: about.epoch.map(|epoch| (epoch.term, epoch.seq)),
        failure: DirectiveFailure { unready: clause::failed(clause::DIRECTIVE, why), nothing_left: false },
    }
}

fn parse_epoch(epoch: Option<proto::Epoch>) -> Result<Epoch, NameError> {
    let epoch = epoch.ok_or_else(Epoch::missing)?;
    Epoch::new(epoch.term, epoch.seq)
}

fn by(deadline_ms: u32, received: Instant) -> Result<Instant, Invalid> {
    let deadline = Duration::from_millis(deadline_ms.into());
    if !DEADLINES.contains(&deadline) {
        return Err(Invalid {
            field: "deadline_ms",
            problem: format!("{deadline_ms} is not between 10 and 3600000"),
        });
    }
    Ok(received + deadline)
}

fn attach(message: &proto::Attach, prefix: &NqnPrefix, received: Instant) -> Result<Ask, Invalid> {
    let ours = VolumeId::parse(&message.volume_id).map(|volume| prefix.subsystem(&volume));
    if let Ok(ours) = ours
        && *ours.as_str() != message.subsystem_nqn
    {
        return Err(Invalid {
            field: "subsystem_nqn",
            problem: format!("{:?} is not this volume's, {ours}", message.subsystem_nqn),
        });
    }
    let mut portals = Vec::new();
    for portal in &message.portals {
        portals.push(Portal::parse(portal).map_err(|error| invalid("portals")(&error))?);
    }
    portals.sort_unstable();
    portals.dedup();
    if portals.is_empty() || portals.len() > MOST_PORTALS {
        let problem = format!("{} different portals, not 1 to {MOST_PORTALS}", portals.len());
        return Err(Invalid { field: "portals", problem });
    }
    let policy = match proto::PathPolicy::try_from(message.path_policy) {
        Ok(proto::PathPolicy::Unspecified | proto::PathPolicy::Any) => PathPolicy::Any,
        Ok(proto::PathPolicy::Quorum) => PathPolicy::Quorum,
        Ok(proto::PathPolicy::All) => PathPolicy::All,
        Err(_) => {
            let problem = format!("{} is none that this agent knows", message.path_policy);
            return Err(Invalid { field: "path_policy", problem });
        }
    };
    let uuid = optional(&message.namespace_uuid, NamespaceUuid::parse, "namespace_uuid")?;
    let nguid = optional(&message.nguid, Nguid::parse, "nguid")?;
    let grant = Grant {
        portals,
        identity: NamespaceIdentity { uuid, nguid },
        size_bytes: message.size_bytes,
        read_only: message.read_only,
        policy,
        reserve: message.reserve.then(|| reservation_key(message.reservation_key)).transpose()?,
    };
    let secret = (!message.dhchap_secret.is_empty()).then(|| given(message)).transpose()?;
    Ok(Ask::Attach { grant, secret, deadline: by(message.deadline_ms, received)? })
}

fn given(message: &proto::Attach) -> Result<GivenSecret, Invalid> {
    let generation = message.secret_generation.map(|generation| parse_epoch(Some(generation)));
    let generation = generation.transpose().map_err(|error| invalid("secret_generation")(&error))?;
    Ok(GivenSecret { secret: secret(&message.dhchap_secret)?, generation })
}

/// The error never repeats the secret.
fn secret(text: &str) -> Result<DhchapSecret, Invalid> {
    DhchapSecret::parse(text).map_err(|error| invalid("dhchap_secret")(&error))
}

fn reservation_key(key: u64) -> Result<ReservationKey, Invalid> {
    ReservationKey::new(key).ok_or_else(|| invalid("reservation_key")(&"0 is no key"))
}

fn preempt(message: &proto::Preempt, received: Instant) -> Result<Ask, Invalid> {
    let key = reservation_key(message.reservation_key)?;
    let mut victims = Vec::new();
    for victim in &message.victim_keys {
        let victim = ReservationKey::new(*victim).ok_or_else(|| invalid("victim_keys")(&"0 is no key"))?;
        victims.push(victim);
    }
    victims.sort_unstable();
    victims.dedup();
    if victims.is_empty() || victims.len() > MOST_VICTIMS {
        let problem = format!("{} different victims, not 1 to {MOST_VICTIMS}", victims.len());
        return Err(Invalid { field: "victim_keys", problem });
    }
    if victims.contains(&key) {
        return Err(invalid("victim_keys")(&format_args!("{key} is this node's own")));
    }
    Ok(Ask::Preempt { key, victims, deadline: by(message.deadline_ms, received)? })
}

fn verify(message: &proto::Verify) -> Result<Ask, Invalid> {
    let few = |field, found: usize, most: usize| {
        let problem = format!("{found} are more than {most}");
        if found <= most { Ok(()) } else { Err(Invalid { field, problem }) }
    };
    few("pod_uids", message.pod_uids.len(), MOST_PODS)?;
    few("other_volume_ids", message.other_volume_ids.len(), MOST_OTHERS)?;
    let others = message.other_volume_ids.iter().map(|id| VolumeId::parse(id));
    let others: Result<_, NameError> = others.collect();
    Ok(Ask::Verify {
        pods: message.pod_uids.iter().cloned().collect(),
        others: others.map_err(|error| invalid("other_volume_ids")(&error))?,
    })
}

fn rekey(message: &proto::Rekey, received: Instant) -> Result<Ask, Invalid> {
    let generation = parse_epoch(message.generation).map_err(|error| invalid("generation")(&error))?;
    let secret = secret(&message.dhchap_secret)?;
    Ok(Ask::Rekey { secret, generation, deadline: by(message.deadline_ms, received)? })
}

fn optional<T, E: std::fmt::Display>(
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
    field: &'static str,
) -> Result<Option<T>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    parse(text).map(Some).map_err(|error| invalid(field)(&error))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proto::to_agent::Kind;

    fn prefix() -> NqnPrefix {
        NqnPrefix::parse("nqn.2026-01.io.cleat:").unwrap()
    }

    fn message() -> proto::Attach {
        proto::Attach {
            operation_id: "op-1-1".into(),
            volume_id: "pvc-1".into(),
            epoch: Some(proto::Epoch { term: 1, seq: 1 }),
            subsystem_nqn: "nqn.2026-01.io.cleat:pvc-1".into(),
            portals: vec!["10.0.2.1:4420".into(), "10.0.1.1:4420".into(), "10.0.1.1:4420".into()],
            deadline_ms: 5000,
            ..proto::Attach::default()
        }
    }

    #[test]
    fn a_good_attach_has_its_portals_in_order_and_once() {
        let Parsed::Directive(directive) = parse(Kind::Attach(message()), &prefix()) else {
            panic!("refused")
        };
        let Ask::Attach { grant, .. } = directive.ask else { panic!("not an attach") };
        assert_eq!(
            grant.portals.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.1.1:4420", "10.0.2.1:4420"]
        );
        assert!(grant.identity.is_empty());
    }

    #[test]
    fn a_detach_cuts_tickets_off_only_where_it_says_so() {
        for cut_tickets in [false, true] {
            let detach = proto::Detach {
                operation_id: "op-1-1".into(),
                volume_id: "pvc-1".into(),
                epoch: Some(proto::Epoch { term: 1, seq: 1 }),
                deadline_ms: 5000,
                cut_tickets,
            };
            let Parsed::Directive(directive) = parse(Kind::Detach(detach), &prefix()) else {
                panic!("refused")
            };
            assert!(matches!(directive.ask, Ask::Detach { cut_tickets: found, .. } if found == cut_tickets));
        }
    }

    #[test]
    fn a_welcome_is_taken_from_a_version_one_apart_and_refused_from_two() {
        let welcome = |protocol| {
            let (heartbeat_interval_ms, silence_deadline_ms) = (1000, 5000);
            let controller_version = "9.9".to_owned();
            Welcome::parse(proto::Welcome {
                heartbeat_interval_ms,
                silence_deadline_ms,
                protocol,
                controller_version,
                ..Default::default()
            })
        };
        for (said, protocol) in [(2, 2), (SESSION_PROTOCOL, 3), (SESSION_PROTOCOL + 1, 4)] {
            assert_eq!(welcome(said).unwrap().protocol, protocol);
        }
        let refused = welcome(SESSION_PROTOCOL + 2).unwrap_err();
        for part in
            ["controller speaks session protocol 5", "this agent speaks 3", "upgrade the agent", "9.9"]
        {
            assert!(refused.contains(part), "{refused} should say {part}");
        }
        // The first version says none.
        let refused = welcome(0).unwrap_err();
        assert!(refused.contains("protocol 1") && refused.contains("upgrade the controller"), "{refused}");
    }

    #[test]
    fn an_epoch_that_is_zero_or_missing_is_an_error() {
        assert_eq!(parse_epoch(Some(proto::Epoch { term: 3, seq: 4 })), "3.4".parse());
        assert!(parse_epoch(Some(proto::Epoch::default())).is_err());
        assert!(parse_epoch(None).unwrap_err().to_string().contains("must be given"));
    }

    #[test]
    fn what_is_wrong_is_answered_with_the_field_and_the_value() {
        type Spoil = fn(&mut proto::Attach);
        let cases: [(Spoil, &str, &str); 9] = [
            (|m| m.volume_id = "../x".into(), "volume_id", "../x"),
            (|m| m.epoch = None, "epoch", "must be given"),
            (|m| m.subsystem_nqn = "nqn.2026-01.io.cleat:pvc-2".into(), "subsystem_nqn", "pvc-2"),
            (|m| m.subsystem_nqn = "nqn.2014-08.org.boot:disk".into(), "subsystem_nqn", "boot"),
            (|m| m.portals.clear(), "portals", "0 different"),
            (|m| m.portals = vec!["storage:4420".into()], "portals", "storage"),
            (|m| m.namespace_uuid = "x".into(), "namespace_uuid", "\"x\""),
            (|m| m.deadline_ms = 0, "deadline_ms", "0 is not"),
            (|m| m.path_policy = 9, "path_policy", "9 is none"),
        ];
        for (spoil, field, value) in cases {
            let mut message = message();
            spoil(&mut message);
            let Parsed::Refused(result) = parse(Kind::Attach(message), &prefix()) else { panic!("{field}") };
            assert_eq!(result.operation, "op-1-1");
            let DirectiveFailure { unready, nothing_left } = result.failure;
            assert_eq!(unready.clause, clause::REQUEST);
            assert!(
                unready.message.contains(field) && unready.message.contains(value),
                "{}",
                unready.message
            );
            assert!(!nothing_left);
        }
    }
}

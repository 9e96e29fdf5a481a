//! One session, from Hello to its end.
//!
//! In come the agent's messages, the core's orders, and time; out go events and messages. A session ends with a
//! status that says why, always: malformed message, silence, refused by the core, cut off, shutdown.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use cleat_core::{Event, NodeId, NodeSeen, OperationId, SessionId, VolumeId};
use cleat_proto::SESSION_PROTOCOL;
use cleat_proto::cleat::v1 as proto;
use cleat_runtime::hush::Hush;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::{Status, Streaming};

use super::counts::{CountsAsked, Worth};
use super::limits::Pace;
use super::malformed::Malformed;
use super::proof::Proof;
use super::registry::Order;
use super::session_context::SessionContext;
use super::{decode, encode};
use crate::clients::Caller;
use crate::engine::{EngineEnded, Hello};
use crate::metrics::{self, Part};
use crate::pins::LookError;
use crate::trust::KnownAgent;

/// How long a message that came in while we stood still may take to reach us.
const LAST_LOOK: Duration = Duration::from_millis(250);

/// Why a session has ended. Never success: a session ends only because something ended it.
#[derive(Debug)]
pub(super) struct Ending(pub(super) Status);

impl From<Status> for Ending {
    fn from(status: Status) -> Self {
        Self(status)
    }
}

impl From<Malformed> for Ending {
    fn from(malformed: Malformed) -> Self {
        let text = malformed.to_string();
        Self(if malformed.is_mismatch() {
            Status::failed_precondition(text)
        } else {
            Status::invalid_argument(text)
        })
    }
}

impl From<LookError> for Ending {
    fn from(error: LookError) -> Self {
        match error {
            LookError::Ended(ended) => ended.into(),
            not_known @ LookError::NotKnown { .. } => Status::unavailable(not_known.to_string()).into(),
        }
    }
}

impl From<EngineEnded> for Ending {
    fn from(ended: EngineEnded) -> Self {
        Self(Status::unavailable(ended.to_string()))
    }
}

/// One session's task.
pub(super) struct Talk {
    context: Arc<SessionContext>,
    inbound: Streaming<proto::FromAgent>,
    out: mpsc::Sender<Result<proto::ToAgent, Status>>,
    /// Whose stream it is.
    caller: Caller,
    /// Told once, as soon as the core may know of the session.
    known: mpsc::UnboundedSender<(NodeId, SessionId)>,
}

/// A session that the core knows.
struct Progress {
    node: NodeId,
    session: SessionId,
    orders: mpsc::Receiver<Order>,
    inventoried: bool,
    /// The agent is of a later version: what this one does not know of it is left, and proves nothing.
    newer: bool,
    /// The version of the session's protocol that the agent speaks.
    protocol: u32,
    heard: Instant,
    /// Volumes about which this session was sent something.
    sent: HashSet<VolumeId>,
    /// What it was asked to count.
    counts: CountsAsked,
    pace: Pace,
    hush: Hush,
}

impl Talk {
    pub(super) fn new(
        context: Arc<SessionContext>,
        inbound: Streaming<proto::FromAgent>,
        out: mpsc::Sender<Result<proto::ToAgent, Status>>,
        caller: Caller,
        known: mpsc::UnboundedSender<(NodeId, SessionId)>,
    ) -> Self {
        Self { context, inbound, out, caller, known }
    }

    pub(super) async fn run(mut self) -> Ending {
        let progress = match self.introduce().await {
            Ok(progress) => progress,
            Err(ending) => return ending,
        };
        self.talk(progress).await
    }

    /// Hello, the core's consent, Welcome.
    async fn introduce(&mut self) -> Result<Progress, Ending> {
        let silence = self.silence();
        let hello = tokio::select! {
            () = self.context.stop.cancelled() => return Err(stopping()),
            first = tokio::time::timeout(silence, self.inbound.message()) => {
                first.map_err(|_| silent("no Hello", silence))??
            }
        };
        let Some(proto::from_agent::Kind::Hello(hello)) = hello.and_then(|message| message.kind) else {
            return Err(Status::invalid_argument("the first message of a session must be Hello").into());
        };
        let introduced = decode::hello(hello, &self.context.sessions.settings().nqn_prefix)?;
        self.may_speak_for(&introduced.node)?;
        let (node, session) = (introduced.node, self.context.ids.next());
        let (seen, mark) = match &self.context.pins {
            Some(pins) => {
                pins.look(&self.context.engine, &node, &introduced.identity, self.caller.node_uid()).await?
            }
            None => (NodeSeen::default(), None),
        };
        let boot_id = introduced.identity.boot_id.clone();
        let orders = self.context.sessions.open(session.clone(), node.clone());
        // From here on the core may know the session, and must hear of its end.
        let _ = self.known.send((node.clone(), session.clone()));
        let hello = Hello {
            node: node.clone(),
            session: session.clone(),
            identity: introduced.identity,
            max_volumes: introduced.max_volumes,
            seen,
        };
        self.context.engine.hello(hello, mark).await?;
        let mut progress = Progress {
            node,
            session,
            orders,
            inventoried: false,
            newer: introduced.protocol > SESSION_PROTOCOL,
            protocol: introduced.protocol,
            heard: Instant::now(),
            sent: HashSet::new(),
            counts: CountsAsked::default(),
            pace: Pace::new(),
            hush: Hush::default(),
        };
        // A look at the core comes back after the effects of what was submitted before it: also after a refusal.
        self.context.engine.taken_in().await?;
        match progress.orders.try_recv() {
            Ok(Order::Refused(reason)) => {
                self.context.reports.refused(&progress.node, &reason);
                return Err(refused(reason));
            }
            Ok(Order::Send(_)) => {
                return Err(Status::internal("a directive before the inventory").into());
            }
            Err(mpsc::error::TryRecvError::Disconnected) => return Err(cut_off()),
            Err(mpsc::error::TryRecvError::Empty) => {}
        }
        // A token ends every few minutes, and nobody has to do anything about that.
        let until = match &self.caller {
            Caller::Agent { .. } => None,
            caller => caller.until(),
        };
        self.context.reports.hello(
            &progress.node,
            introduced.capabilities,
            introduced.agent_version.clone(),
            until,
        );
        tracing::info!(
            node = %progress.node, session = %progress.session, %boot_id, agent_version = introduced.agent_version,
            protocol = introduced.protocol, "agent session up"
        );
        let settings = self.context.sessions.settings();
        let welcome = proto::Welcome {
            term: self.context.ids.term(),
            session_id: progress.session.to_string(),
            heartbeat_interval_ms: encode::millis(settings.heartbeat_interval),
            silence_deadline_ms: encode::millis(settings.silence_deadline),
            takes_tokens: matches!(self.caller, Caller::Agent { .. }),
            protocol: SESSION_PROTOCOL,
            controller_version: cleat_runtime::build_info(),
        };
        self.say(proto::to_agent::Kind::Welcome(welcome)).await?;
        Ok(progress)
    }

    /// A node is what its certificate or token says; what Hello says of it has to be the same.
    fn may_speak_for(&self, node: &NodeId) -> Result<(), Ending> {
        let (proven, shown, or) = match &self.caller {
            Caller::Known { name, .. } => (
                name,
                format!("the certificate is that of node {name} (cleat://node/{name})"),
                format!("a certificate with the URI cleat://node/{node}"),
            ),
            Caller::Agent { agent: KnownAgent { node: name, .. }, .. } => (
                name,
                format!("the token is of a pod on node {name}"),
                "the token of a pod on its node".to_owned(),
            ),
            Caller::User { .. } => return Err(Status::permission_denied("an operator is no node").into()),
            Caller::Anybody { .. } => return Ok(()),
        };
        if proven == node.as_str() {
            return Ok(());
        }
        let text =
            format!("{shown}, and Hello says node {node}: give this agent --node-id {proven}, or {or}");
        Err(Status::permission_denied(text).into())
    }

    async fn talk(&mut self, mut progress: Progress) -> Ending {
        let mut proof = Proof::begin(self.caller.clone());
        let mut beats = tokio::time::interval(self.context.sessions.settings().heartbeat_interval);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0;
        loop {
            // Reading all of sysfs may take the agent a while, in which it says nothing.
            let silence = self.silence() * if progress.inventoried { 1 } else { 2 };
            // In this order: a flood from the agent must not keep it from hearing of us, and what it has said already
            // counts before its silence does.
            let turn = tokio::select! {
                biased;
                () = self.context.stop.cancelled() => Err(stopping()),
                ending = proof.over() => Err(ending),
                // The agent's side of the stream may be open long after its side for our answers is gone.
                () = self.out.closed() => Err(Status::cancelled("the agent closed the stream").into()),
                _ = beats.tick() => {
                    count += 1;
                    self.say(proto::to_agent::Kind::Heartbeat(proto::Heartbeat { count })).await
                }
                order = progress.orders.recv() => match order {
                    // Nobody waits for what an older agent cannot do.
                    Some(Order::Send(message)) if encode::known_since(&message) > progress.protocol => Ok(()),
                    Some(Order::Send(message)) => {
                        progress.sent.extend(encode::volume_of(&message));
                        progress.counts.sent(&message);
                        self.send(*message).await
                    }
                    Some(Order::Refused(reason)) => Err(refused(reason)),
                    None => Err(cut_off()),
                },
                message = self.inbound.message() => self.heard(&mut progress, &mut proof, message).await,
                () = tokio::time::sleep_until(progress.heard + silence) => {
                    // It may be us who stood still, with its messages in our own buffers.
                    match tokio::time::timeout(LAST_LOOK, self.inbound.message()).await {
                        Ok(message) => self.heard(&mut progress, &mut proof, message).await,
                        Err(_) => Err(silent("nothing heard", silence)),
                    }
                }
            };
            if let Err(ending) = turn {
                return ending;
            }
        }
    }

    async fn heard(
        &self,
        progress: &mut Progress,
        proof: &mut Proof,
        message: Result<Option<proto::FromAgent>, Status>,
    ) -> Result<(), Ending> {
        match message {
            Ok(Some(message)) => {
                let result = self.hear(progress, proof, message).await;
                // From here on: the time in which we kept it waiting is not its silence.
                progress.heard = Instant::now();
                result
            }
            Ok(None) => Err(Status::cancelled("the agent closed the stream").into()),
            Err(status) => Err(status.into()),
        }
    }

    async fn hear(
        &self,
        progress: &mut Progress,
        proof: &mut Proof,
        message: proto::FromAgent,
    ) -> Result<(), Ending> {
        use proto::from_agent::Kind;
        let pause = progress.pace.take();
        if !pause.is_zero() {
            // Also a sleep of no length would be a timer, and a wake-up more, for each heartbeat of each agent.
            tokio::time::sleep(pause).await;
        }
        let kind = match message.kind {
            Some(kind) => kind,
            None if progress.newer => {
                progress.not_known("a report");
                return Ok(());
            }
            None => return Err(Malformed::Missing("message.kind").into()),
        };
        if !progress.inventoried
            && !matches!(kind, Kind::Inventory(_) | Kind::Heartbeat(_) | Kind::Renewal(_))
        {
            return Err(Status::invalid_argument("nothing may be said before the first inventory").into());
        }
        let (node, session) = (progress.node.clone(), progress.session.clone());
        let event = match kind {
            Kind::Hello(_) => return Err(Status::invalid_argument("a second Hello").into()),
            Kind::Heartbeat(_) => return Ok(()),
            Kind::Renewal(renewal) => {
                proof.renew(renewal.token);
                return Ok(());
            }
            Kind::Inventory(inventory) => {
                let (volumes, full) = decode::inventory(inventory)?;
                tracing::info!(%node, %session, volumes = volumes.len(), "inventory");
                self.context.reports.inventory(&node, full);
                progress.inventoried = true;
                Event::Inventory { node, session, volumes }
            }
            // Also of a volume that the node was not granted: that its kernel holds one is something that only it can
            // see, and the core takes it for what it is worth.
            Kind::Delta(state) => {
                let (observed, state) = decode::delta(state)?;
                self.context.reports.volume(&node, observed.volume.clone(), state)?;
                Event::Delta { node, session, observed }
            }
            Kind::Writes(said) => {
                let decode::Writes { operation, volume, epoch, writes, age_ms, open } =
                    decode::writes(&said)?;
                match progress.counts.heard(&volume, operation) {
                    Worth::Taken => {}
                    Worth::Nothing => return Ok(()),
                    Worth::Unasked => {
                        progress.refuse("writes", &volume, operation);
                        return Ok(());
                    }
                }
                Event::Counted { node, session, operation, volume, epoch, writes, age_ms, open }
            }
            Kind::Result(mut result) => {
                if result.outcome.is_none() && progress.newer {
                    progress.not_known("an outcome");
                    result.outcome = Some(decode::outcome_not_known());
                }
                let answer = decode::result(result)?;
                if !self.is_its_own(progress, &answer.volume).await? {
                    progress.refuse("result", &answer.volume, answer.operation);
                    return Ok(());
                }
                account(&node, &answer);
                if let Some(state) = answer.state {
                    self.context.reports.volume(&node, answer.volume.clone(), state)?;
                }
                Event::AgentDone {
                    node,
                    session,
                    operation: answer.operation,
                    volume: answer.volume,
                    epoch: answer.epoch,
                    outcome: answer.outcome,
                }
            }
        };
        Ok(self.context.engine.submit(event).await?)
    }

    /// Whether the node was granted the volume, or was cut off from it: only then its report on it counts.
    async fn is_its_own(&self, progress: &Progress, volume: &VolumeId) -> Result<bool, Ending> {
        if progress.sent.contains(volume) {
            return Ok(true);
        }
        let (node, volume) = (progress.node.clone(), volume.clone());
        let known = self.context.engine.view_of(volume.clone(), move |core, _| {
            core.volumes().get(&volume).is_some_and(|record| {
                record.attachments.iter().any(|attachment| attachment.node == node)
                    || record.fenced.iter().any(|fenced| fenced.node == node)
            })
        });
        Ok(known.await?)
    }

    async fn say(&self, kind: proto::to_agent::Kind) -> Result<(), Ending> {
        self.send(proto::ToAgent { kind: Some(kind), about: None }).await
    }

    /// An agent that does not read for a silence deadline is as silent as one that does not speak.
    async fn send(&self, message: proto::ToAgent) -> Result<(), Ending> {
        let silence = self.silence();
        match tokio::time::timeout(silence, self.out.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the agent closed the stream").into()),
            Err(_) => Err(silent("nothing read", silence)),
        }
    }

    fn silence(&self) -> Duration {
        self.context.sessions.settings().silence_deadline
    }
}

impl Progress {
    /// It has said something of a volume that it was not sent anything about.
    fn refuse(&self, what: &str, volume: &VolumeId, operation: OperationId) {
        metrics::fact_refused();
        self.hush.warn(|skipped| {
            tracing::warn!(
                %volume, node = %self.node, session = %self.session, %operation, skipped,
                "{what} refused: the volume was not granted to this node"
            );
        });
    }

    fn not_known(&self, what: &str) {
        self.hush.warn(|skipped| {
            tracing::warn!(
                node = %self.node, session = %self.session, skipped,
                "the agent is of a later version and sent {what} that this controller does not know: it counts for nothing; \
                 upgrade the controller"
            );
        });
    }
}

/// Logs and measures an answer.
fn account(node: &NodeId, answer: &decode::Answer) {
    let decode::Answer { operation, volume, epoch, outcome, state: _, times } = answer;
    let outcome = match outcome {
        cleat_core::Outcome::Ready { .. } => "ready",
        cleat_core::Outcome::Absent(_) => "absent",
        cleat_core::Outcome::Busy { .. } => "busy",
        cleat_core::Outcome::Failed { .. } => "failed",
        cleat_core::Outcome::Stale { .. } => "stale",
        cleat_core::Outcome::Pending { .. } => "pending",
        cleat_core::Outcome::Preempted { .. } => "preempted",
        cleat_core::Outcome::Rekeyed => "rekeyed",
    };
    match times {
        decode::Times::None => {
            tracing::info!(%volume, %node, %epoch, %operation, outcome, "directive answered");
        }
        decode::Times::Attach(times) => {
            let proto::AttachTimes { connect_us, device_us, checks_us } = *times;
            tracing::info!(
                %volume, %node, %epoch, %operation, outcome, connect_us, device_us, checks_us, "directive answered"
            );
            for (part, micros) in
                [(Part::Connect, connect_us), (Part::Device, device_us), (Part::Checks, checks_us)]
            {
                metrics::attach_part(part, Duration::from_micros(micros));
            }
        }
        decode::Times::Detach(times) => {
            let proto::DetachTimes { checks_us, flush_us, delete_us } = *times;
            tracing::info!(
                %volume, %node, %epoch, %operation, outcome, checks_us, flush_us, delete_us, "directive answered"
            );
            for (part, micros) in
                [(Part::Checks, checks_us), (Part::Flush, flush_us), (Part::Delete, delete_us)]
            {
                metrics::detach_part(part, Duration::from_micros(micros));
            }
        }
    }
}

fn stopping() -> Ending {
    Status::unavailable("the controller is stopping; connect again").into()
}

fn silent(what: &str, for_so_long: Duration) -> Ending {
    Status::deadline_exceeded(format!("{what} for {}", humantime::format_duration(for_so_long))).into()
}

fn refused(reason: String) -> Ending {
    Status::failed_precondition(reason).into()
}

fn cut_off() -> Ending {
    Status::resource_exhausted("the agent does not take its directives").into()
}

//! One session, from connect to end.
//!
//! Order on the stream: Hello → Welcome → Inventory → anything. Comes in: messages of the controller. Goes
//! out: why the session ended.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cleat_proto::cleat::v1 as proto;
use cleat_proto::cleat::v1::agent_session_client::AgentSessionClient;
use cleat_runtime::exit::Causes;
use cleat_runtime::grpc::{ChannelError, Connector};
use proto::from_agent::Kind as Say;
use proto::to_agent::Kind as Hear;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use super::counts::Counts;
use super::decode::{Parsed, RefusedDirective, Welcome, not_known, parse};
use super::outbox::Outgoing;
use super::token::{Token, TokenError};
use super::{NodeVolumes, Session, encode, find};
use crate::metrics::SessionEnd;
use crate::name::VolumeId;
use crate::volume::board::differs;
use crate::volume::state::VolumeState;

/// How long the connect, the Welcome and the inventory may take, each.
const STEP: Duration = Duration::from_secs(10);
/// Messages that may wait for the transport; beyond it the sender waits, under the silence deadline.
const QUEUE: usize = 64;
/// Counters of writes change all the time; they are sent at most this often.
const MINOR_CHANGES_EVERY: Duration = Duration::from_secs(5);
/// Volumes of which nothing but those has changed, and that are sent at a time, in turn: what people read of counters is worth
/// so much, however many volumes a node has.
const MINOR_CHANGES_AT_ONCE: usize = 4;

/// How long one may take to answer Hello before the next one that is connected is sent it, too. Two names may mean one
/// controller, and its second session would end the first: so this is longer than it takes to ask the API server.
const TURN: Duration = Duration::from_secs(4);
/// Between two readings of the token's file, which the kubelet renews minutes before its end.
const TOKEN_EVERY: Duration = Duration::from_secs(5);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("cannot reach the controller")]
    Unreachable(#[source] ChannelError),
    #[error("the controller refused the session: {} ({:?})", .0.message(), .0.code())]
    Refused(tonic::Status),
    #[error("the controller sent no {0} in time")]
    NoAnswer(&'static str),
    #[error("the controller broke the protocol: {0}")]
    Protocol(String),
    #[error("the controller was silent for {0:?}")]
    Silent(Duration),
    #[error("the stream failed: {} ({:?})", .0.message(), .0.code())]
    Broken(tonic::Status),
    #[error("the controller closed the stream")]
    Closed,
    #[error(
        "the controller leads under term {term}, and another has led under {newest} since: it does not know that yet; if it \
         is the only one, its term was lost: delete the pod of this agent"
    )]
    Older { term: u64, newest: u64 },
    #[error("cannot make the inventory: {0}")]
    Inventory(String),
    #[error(transparent)]
    Token(TokenError),
    #[error("{}", each(.0))]
    Nowhere(Vec<(String, Ended)>),
    #[error("no address of a controller is known")]
    NoneKnown,
    #[error("the agent stops")]
    Stopping,
}

fn each(failed: &[(String, Ended)]) -> String {
    let all = failed.iter().map(|(name, why)| format!("{name}: {}", Causes(why)));
    all.collect::<Vec<_>>().join("; ")
}

impl Ended {
    pub(super) fn stopping() -> Self {
        Self::Stopping
    }

    pub(super) fn kind(&self) -> SessionEnd {
        match self {
            Self::Unreachable(_) | Self::NoneKnown => SessionEnd::Unreachable,
            Self::Refused(_)
            | Self::Older { .. }
            | Self::Protocol(_)
            | Self::Inventory(_)
            | Self::Token(_) => SessionEnd::Refused,
            Self::Nowhere(all) => {
                let refused = all.iter().any(|(_, why)| why.kind() == SessionEnd::Refused);
                if refused { SessionEnd::Refused } else { SessionEnd::Unreachable }
            }
            Self::NoAnswer(_) | Self::Silent(_) => SessionEnd::Silent,
            Self::Broken(_) | Self::Closed => SessionEnd::Closed,
            Self::Stopping => SessionEnd::Stopping,
        }
    }

    /// Nobody was there at any address: no controller had anything to do with it.
    pub(super) fn found_nobody(&self) -> bool {
        match self {
            Self::Unreachable(error) => error.found_nobody(),
            Self::NoneKnown => true,
            Self::Nowhere(all) => all.iter().all(|(_, why)| why.found_nobody()),
            Self::Refused(_)
            | Self::NoAnswer(_)
            | Self::Protocol(_)
            | Self::Silent(_)
            | Self::Broken(_)
            | Self::Closed
            | Self::Older { .. }
            | Self::Inventory(_)
            | Self::Token(_)
            | Self::Stopping => false,
        }
    }
}

/// Which controller led last.
#[derive(Debug, Default)]
pub(super) struct LastLeader {
    pub(super) name: Option<String>,
    pub(super) term: u64,
}

/// Runs one session to its end. `leader` is which controller led last, `established` since when the session's inventory has
/// been on the stream.
pub(super) async fn once<N: NodeVolumes>(
    session: &Session<N>,
    leader: &mut LastLeader,
    established: &mut Option<Instant>,
) -> Ended {
    match talk(session, leader, established).await {
        Err(ended) => ended,
        Ok(never) => match never {},
    }
}

/// What a controller has begun with its Welcome.
pub(super) struct Welcomed {
    say: mpsc::Sender<proto::FromAgent>,
    hear: Streaming<proto::ToAgent>,
    pub(super) welcome: Welcome,
}

/// Connects, says Hello once it is its turn, and waits for Welcome.
pub(super) async fn introduce<N: NodeVolumes>(
    session: &Session<N>,
    at: &dyn Connector,
    token: Option<&Token>,
    turn: &Mutex<()>,
) -> Result<Welcomed, Ended> {
    let (say, queue) = mpsc::channel(QUEUE);
    let channel = timeout(STEP, at.open_channel())
        .await
        .map_err(|_| Ended::NoAnswer("connection"))?
        .map_err(Ended::Unreachable)?;
    let _turn = timeout(TURN, turn.lock()).await;
    // Hello is queued before the call: a server need not answer before it has read it.
    send(&say, Say::Hello(encode::hello(&session.node_is))).await?;
    let mut client = AgentSessionClient::new(channel);
    let mut request = Request::new(ReceiverStream::new(queue));
    if let Some(header) = token.and_then(Token::header) {
        request.metadata_mut().insert("authorization", header);
    }
    let mut hear = timeout(STEP, client.session(request))
        .await
        .map_err(|_| Ended::NoAnswer("answer to Hello"))?
        .map_err(Ended::Refused)?
        .into_inner();
    let welcome = welcome(&mut hear).await?;
    Ok(Welcomed { say, hear, welcome })
}

async fn talk<N: NodeVolumes>(
    session: &Session<N>,
    leader: &mut LastLeader,
    established: &mut Option<Instant>,
) -> Result<std::convert::Infallible, Ended> {
    let token = match &session.token {
        Some(file) => Some(file.read().await.map_err(Ended::Token)?),
        None => None,
    };
    let Welcomed { say, hear, welcome } = find::leader(session, leader, token.as_ref()).await?;

    // Listens for changes before it reads the inventory, so that none is missed.
    let changes = session.node.board().changes();
    let volumes = timeout(welcome.silence.max(STEP), session.node.inventory())
        .await
        .map_err(|_| Ended::Inventory("it took too long".into()))?
        .map_err(Ended::Inventory)?;
    let sent = volumes.iter().map(|state| (state.volume.clone(), state.clone())).collect();
    send(&say, Say::Inventory(encode::inventory(volumes))).await?;
    session.outbox.rewind();
    *established = Some(Instant::now());
    session.up(&welcome);
    let mut stream = Stream {
        session,
        say,
        welcome,
        token,
        sent,
        counted: None,
        seen: 0,
        heard: Instant::now(),
        beats: 0,
        counts: Counts::default(),
    };
    stream.run(hear, changes).await
}

async fn welcome(hear: &mut Streaming<proto::ToAgent>) -> Result<Welcome, Ended> {
    let first = timeout(STEP, hear.message()).await.map_err(|_| Ended::NoAnswer("Welcome"))?;
    match first.map_err(Ended::Refused)?.ok_or(Ended::Closed)?.kind {
        Some(Hear::Welcome(welcome)) => Welcome::parse(welcome).map_err(Ended::Protocol),
        other => Err(Ended::Protocol(format!("the first message is not Welcome but {other:?}"))),
    }
}

async fn send(say: &mpsc::Sender<proto::FromAgent>, kind: Say) -> Result<(), Ended> {
    // A closed queue means that the transport has dropped the stream; its own end follows, or this is it.
    say.send(proto::FromAgent { kind: Some(kind) }).await.map_err(|_| Ended::Closed)
}

/// An established session.
struct Stream<'a, N> {
    session: &'a Session<N>,
    say: mpsc::Sender<proto::FromAgent>,
    welcome: Welcome,
    /// The token that was sent last.
    token: Option<Token>,
    /// The state of each volume as it was last sent.
    sent: BTreeMap<VolumeId, VolumeState>,
    /// The volume that was sent last for its counters alone.
    counted: Option<VolumeId>,
    /// The version of the board up to which states were sent.
    seen: u64,
    heard: Instant,
    beats: u64,
    /// The writes that this controller has asked to have counted.
    counts: Counts,
}

impl<N: NodeVolumes> Stream<'_, N> {
    async fn run(
        &mut self,
        mut hear: Streaming<proto::ToAgent>,
        mut changes: tokio::sync::watch::Receiver<u64>,
    ) -> Result<std::convert::Infallible, Ended> {
        let mut heartbeat = interval_at(Instant::now() + self.welcome.heartbeat, self.welcome.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut minor = interval_at(Instant::now() + MINOR_CHANGES_EVERY, MINOR_CHANGES_EVERY);
        minor.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renewal = interval_at(Instant::now() + TOKEN_EVERY, TOKEN_EVERY);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        changes.mark_changed();
        loop {
            let silent = self.heard + self.welcome.silence;
            // One thing at a time, and never past the silence deadline: a controller that reads nothing any
            // more would otherwise block a send for ever.
            tokio::select! {
                message = hear.message() => self.take(message.map_err(Ended::Broken)?.ok_or(Ended::Closed)?)?,
                result = self.session.outbox.next() => {
                    // A result may be older than the inventory, and carries the state of its own time: the
                    // current state of the volume is sent again after it.
                    let volume = VolumeId::parse(result.volume()).ok();
                    self.bounded(silent, Say::Result(encode::outgoing(result))).await?;
                    if let Some(state) = volume.and_then(|volume| self.session.node.board().get(&volume)) {
                        self.tell(silent, state).await?;
                    }
                }
                changed = changes.changed() => {
                    changed.map_err(|_| Ended::Stopping)?;
                    self.tell_changes(silent).await?;
                }
                report = self.counts.next() => {
                    self.bounded(silent, Say::Writes(encode::writes(report))).await?;
                }
                _ = minor.tick() => self.tell_counters(silent).await?,
                _ = renewal.tick(), if self.welcome.takes_tokens => self.renew(silent).await?,
                _ = heartbeat.tick() => {
                    self.beats += 1;
                    self.bounded(silent, Say::Heartbeat(proto::Heartbeat { count: self.beats })).await?;
                }
                () = sleep_until(silent) => return Err(Ended::Silent(self.welcome.silence)),
            }
        }
    }

    /// Sends the token again if it is another one by now. The session ends with the one that it has.
    async fn renew(&mut self, until: Instant) -> Result<(), Ended> {
        let Some(file) = &self.session.token else { return Ok(()) };
        match file.read().await {
            Ok(token) if self.token.as_ref() != Some(&token) => {
                let renewal = proto::TokenRenewal { token: token.reveal().to_owned() };
                self.bounded(until, Say::Renewal(renewal)).await?;
                self.token = Some(token);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(error = %Causes(&error), "cannot renew this session's token"),
        }
        Ok(())
    }

    async fn bounded(&self, until: Instant, kind: Say) -> Result<(), Ended> {
        match tokio::time::timeout_at(until, send(&self.say, kind)).await {
            Ok(sent) => sent,
            Err(_) => Err(Ended::Silent(self.welcome.silence)),
        }
    }

    /// Handles one message. Never waits.
    fn take(&mut self, message: proto::ToAgent) -> Result<(), Ended> {
        self.heard = Instant::now();
        self.session.outbox.heard(self.welcome.silence);
        let Some(kind) = message.kind else {
            // Of a kind that this version does not know.
            match message.about {
                Some(about) => self.refuse(not_known(about)),
                None => tracing::warn!(
                    "the controller sent something that this agent does not know; upgrade the agent"
                ),
            }
            return Ok(());
        };
        match parse(kind, &self.session.node_is.nqn_prefix) {
            Parsed::Directive(directive) => self.session.node.submit(*directive),
            Parsed::Refused(refusal) => self.refuse(*refusal),
            Parsed::Count(asked) => self.counts.begin(self.session.node.as_ref(), *asked),
            Parsed::Heartbeat => {}
            Parsed::Unexpected(other) => {
                return Err(Ended::Protocol(format!("{other:?} in mid-session")));
            }
        }
        Ok(())
    }

    fn refuse(&self, refusal: RefusedDirective) {
        let (operation, volume, why) = (&refusal.operation, &refusal.volume, &refusal.failure.unready);
        tracing::warn!(operation, volume, error = why.message, "directive refused");
        self.session.outbox.push(Outgoing::Refusal(refusal));
    }

    /// Sends every state that differs from what was last sent.
    async fn tell_changes(&mut self, until: Instant) -> Result<(), Ended> {
        let (seen, states) = self.session.node.board().since(self.seen);
        self.seen = seen;
        for state in states {
            if self.sent.get(&state.volume).is_none_or(|sent| differs(sent, &state)) {
                self.tell(until, state).await?;
            }
        }
        Ok(())
    }

    /// The same with counters, which are not worth a message each time that they change.
    async fn tell_counters(&mut self, until: Instant) -> Result<(), Ended> {
        let states = self.session.node.board().all();
        // A volume that the node has forgotten is not kept for the length of the session.
        let known: BTreeSet<&VolumeId> = states.iter().map(|state| &state.volume).collect();
        self.sent.retain(|volume, _| known.contains(volume));
        let mut minor = Vec::new();
        for state in states {
            match self.sent.get(&state.volume) {
                Some(sent) if *sent == state => {}
                Some(sent) if !differs(sent, &state) => minor.push(state),
                _ => self.tell(until, state).await?,
            }
        }
        for state in in_turn(minor, self.counted.as_ref()) {
            self.counted = Some(state.volume.clone());
            self.tell(until, state).await?;
        }
        Ok(())
    }

    async fn tell(&mut self, until: Instant, state: VolumeState) -> Result<(), Ended> {
        self.bounded(until, Say::Delta(encode::state(state.clone()))).await?;
        self.sent.insert(state.volume.clone(), state);
        Ok(())
    }
}

/// Some of these, which are in the order of their ids: from the one after `last` on.
fn in_turn(
    mut states: Vec<VolumeState>,
    last: Option<&VolumeId>,
) -> impl Iterator<Item = VolumeState> + use<> {
    let next = states.partition_point(|state| Some(&state.volume) <= last);
    states.rotate_left(next);
    states.into_iter().take(MINOR_CHANGES_AT_ONCE)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::volume::state::VolumePhase;

    #[test]
    fn of_many_volumes_each_has_its_counters_sent_in_turn() {
        let all = || (0..10).map(|n| crate::testing::state(&format!("v{n}"), VolumePhase::Ready)).collect();
        let mut last = None;
        let mut sent = Vec::new();
        for _ in 0..5 {
            let some: Vec<VolumeState> = in_turn(all(), last.as_ref()).collect();
            assert!(some.len() <= MINOR_CHANGES_AT_ONCE);
            sent.extend(some.iter().map(|state| state.volume.to_string()));
            last = some.last().map(|state| state.volume.clone());
        }
        let twice: Vec<String> = (0..20).map(|n| format!("v{}", n % 10)).collect();
        assert_eq!(sent, twice[..sent.len()]);
        assert_eq!(in_turn(Vec::new(), last.as_ref()).count(), 0);
    }
}

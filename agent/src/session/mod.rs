//! The session with the controller: one stream, which the agent opens, and opens again whenever it ends.
//!
//! Comes in: directives. Goes out: who this node is, everything that its kernel has, every change of that,
//! and the results of directives.
//!
//! Always holds:
//! - The controller gets the whole inventory, read from the kernel, before anything else of a session.
//! - Losing a session touches no device. Results that the controller may not have read are sent again on the
//!   next one.
//! - Silence counts as loss, on both sides, after the time that the controller's Welcome names.

mod counts;
mod decode;
mod encode;
pub mod find;
pub mod outbox;
mod stream;
pub mod token;

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cleat_host::{HostId, HostNqn};
use cleat_runtime::exit::Causes;
use cleat_runtime::readiness::ReadyFlag;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::link::Link;
use crate::metrics::{self, SessionEnd};
use crate::name::{NodeId, NqnPrefix};
use crate::volume::Fleet;
use crate::volume::board::Board;
use crate::volume::count::{CountRequest, Counted};
use crate::volume::directive::Directive;
use crate::volume::host::Host;
use crate::volume::state::VolumeState;
use find::Controllers;
use outbox::Outbox;
use token::TokenFile;

/// Delay before the second connect; doubled each time that no session lasted.
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// Longest delay between two rounds: a controller that comes back, or another one that leads from now on, is found within
/// five quarters of it.
const LONGEST_DELAY: Duration = Duration::from_secs(3);
/// Longest delay while nobody takes a connection, which costs a controller nothing: behind a Service's one address every other
/// connect may go to a controller that has just died. One that takes it and fails, or says nothing, has work with each.
const LONGEST_UNREACHABLE: Duration = Duration::from_millis(500);
/// So many connects may be that quick until a session has lasted: some minute. A controller that stays away is not asked for
/// ever like that.
const QUICK: u32 = 120;
/// How long a session has to be established to count as one that lasted. A session that the controller always
/// ends at once costs both sides a whole inventory, so there is a pause before the next one.
const STANDS: Duration = Duration::from_secs(5);

/// What the session needs of the rest of the agent.
pub trait NodeVolumes: Send + Sync + 'static {
    /// Reads the kernel again and returns the state of every volume.
    ///
    /// # Errors
    /// A text that says what could not be read: without a complete inventory there is no session.
    fn inventory(&self) -> impl Future<Output = Result<Vec<VolumeState>, String>> + Send;

    /// Starts a directive, or joins the operation of the same id; its results go to the outbox.
    fn submit(&self, directive: Directive);

    /// Counts the writes of a volume, and reports; ends by itself.
    fn count(
        &self,
        asked: CountRequest,
        report: impl FnMut(Counted) + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static;

    /// The board that reports changes of state.
    fn board(&self) -> &Board;
}

impl<H: Host> NodeVolumes for Fleet<H> {
    async fn inventory(&self) -> Result<Vec<VolumeState>, String> {
        Fleet::inventory(self).await.map_err(|error| Causes(&error).to_string())
    }

    fn submit(&self, directive: Directive) {
        self.begin(directive);
    }

    fn count(
        &self,
        asked: CountRequest,
        report: impl FnMut(Counted) + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        Fleet::count(self, asked, report)
    }

    fn board(&self) -> &Board {
        &self.shared().board
    }
}

/// Who this node is and what it can do, as the agent reports it at the beginning of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDescription {
    /// The name under which the orchestrator knows the node.
    pub node_id: NodeId,
    /// The host NQN that every connect uses.
    pub host_nqn: HostNqn,
    /// The host identifier that every connect uses.
    pub host_id: HostId,
    /// This node's addresses on the storage networks.
    pub storage_addresses: Vec<IpAddr>,
    /// Tells this boot of the node from earlier ones.
    pub boot_id: String,
    /// The release of the kernel.
    pub kernel_release: String,
    /// What makes controllers: `kernel` or `nvme-cli`.
    pub fabrics: &'static str,
    /// Whether the kernel joins several paths into one device.
    pub native_multipath: bool,
    /// The beginning of our subsystems' NQNs; nothing else is ever touched.
    pub nqn_prefix: NqnPrefix,
    /// Whether the kernel can authenticate in band.
    pub in_band_auth: bool,
    /// Whether the kernel can register, acquire and report reservations.
    pub reservations: bool,
    /// The version of this agent.
    pub agent_version: String,
    /// How many volumes the node may have at once; zero: no limit.
    pub max_volumes: u32,
}

/// Everything that a session needs.
pub struct Session<N> {
    /// Where controllers may be, with keepalive and TLS set.
    pub controllers: Box<dyn Controllers>,
    /// By what the controller knows this agent, where not by its certificate.
    pub token: Option<TokenFile>,
    /// What the session's first message says of this node.
    pub node_is: NodeDescription,
    /// The rest of the agent, which has the volumes.
    pub node: Arc<N>,
    /// Results that have to be delivered.
    pub outbox: Arc<Outbox>,
    /// Shows volumes whether a session is established.
    pub link: watch::Sender<Link>,
    /// Up while a session is established.
    pub ready: ReadyFlag,
}

impl<N: NodeVolumes> Session<N> {
    /// Maintains a session with the controller until it is asked to stop.
    pub async fn run(self, stop: CancellationToken) {
        let (mut delays, mut leader) = (Delays::default(), stream::LastLeader::default());
        while !stop.is_cancelled() {
            let mut established = None;
            let ended = tokio::select! {
                ended = stream::once(&self, &mut leader, &mut established) => ended,
                () = stop.cancelled() => stream::Ended::stopping(),
            };
            self.down(&ended);
            let stood = established.map(|since| since.elapsed());
            let delay = delays.after(stood, ended.found_nobody());
            tokio::select! {
                () = tokio::time::sleep(jittered(delay)) => {}
                () = stop.cancelled() => break,
            }
        }
    }

    /// A session is established: its inventory is on the stream.
    fn up(&self, welcome: &decode::Welcome) {
        tracing::info!(
            session = welcome.session,
            term = welcome.term,
            protocol = welcome.protocol,
            controller_version = welcome.controller_version,
            "session with the controller established"
        );
        metrics::session_up(true);
        self.link.send_replace(Link::Up);
        self.ready.set(true);
    }

    fn down(&self, ended: &stream::Ended) {
        metrics::session_up(false);
        metrics::session_ended(ended.kind());
        let was = self.link.send_replace(Link::Down);
        self.ready.set(false);
        match ended.kind() {
            SessionEnd::Stopping => tracing::info!("session ended: stopping"),
            _ if was == Link::Up => {
                tracing::warn!(reason = %Causes(ended), "session with the controller lost")
            }
            _ => tracing::warn!(reason = %Causes(ended), "no session with the controller"),
        }
    }
}

/// Delays before the next connects.
#[derive(Debug, Default)]
struct Delays {
    last: Option<Duration>,
    quick: u32,
}

impl Delays {
    /// The delay after a connect; `stood` is how long its session was established, if it was; `nobody`: none was
    /// there to take the connection.
    fn after(&mut self, stood: Option<Duration>, nobody: bool) -> Duration {
        if stood.is_some_and(|stood| stood >= STANDS) {
            (self.last, self.quick) = (None, 0);
        }
        let delay = self.last.map_or(FIRST_DELAY, |last| (last * 2).min(LONGEST_DELAY));
        self.last = Some(delay);
        if nobody && self.quick < QUICK {
            self.quick += 1;
            return delay.min(LONGEST_UNREACHABLE);
        }
        delay
    }
}

/// Three quarters to five quarters of a delay, so that the nodes of a cluster do not all connect at once.
fn jittered(delay: Duration) -> Duration {
    // The low half of a random UUID is random except for two bits; that is enough here.
    let (_, random) = uuid::Uuid::new_v4().as_u64_pair();
    let half = delay.as_millis() as u64 / 2;
    delay * 3 / 4 + Duration::from_millis(if half == 0 { 0 } else { random % half })
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;

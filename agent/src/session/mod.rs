//! The session with the controller: one stream, connected by the agent, connected again whenever it ends.
//!
//! Comes in: directives. Goes out: who this node is, all that its kernel holds, every change of it, and the results
//! of directives.
//!
//! Always holds:
//! - The controller hears the whole inventory, read from the kernel, before anything else of a session.
//! - Losing a session touches no device; results that may not have been read are sent again on the next one.
//! - Silence counts as loss, on both sides, after the time that the controller named in its Welcome.

mod decode;
mod encode;
pub mod outbox;
mod stream;

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cleat_host::{HostId, HostNqn};
use cleat_runtime::exit::Causes;
use cleat_runtime::grpc::Dial;
use cleat_runtime::readiness::ReadyFlag;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::link::Link;
use crate::metrics::{self, SessionEnd};
use crate::name::{NodeId, NqnPrefix};
use crate::volume::Fleet;
use crate::volume::board::Board;
use crate::volume::directive::Directive;
use crate::volume::host::Host;
use crate::volume::state::VolumeState;
use outbox::Outbox;

/// Delay before the second connect; doubled each time that no session stood.
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// Longest delay between two connects: a controller that comes back should not wait long for its nodes.
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// For how long a session has to be established to have stood. One that a controller ends at once each time costs both
/// sides a whole inventory, so it is not begun again and again without a pause.
const STANDS: Duration = Duration::from_secs(5);

/// What the session needs of the rest of the agent.
pub trait NodeVolumes: Send + Sync + 'static {
    /// Reads the kernel afresh and returns the state of every volume.
    ///
    /// # Errors
    /// A text that says what could not be read: without a whole inventory there is no session.
    fn inventory(&self) -> impl Future<Output = Result<Vec<VolumeState>, String>> + Send;

    /// Starts a directive, or joins the operation of the same id; its results go to the outbox.
    fn submit(&self, directive: Directive);

    /// Where changes of state are heard of.
    fn board(&self) -> &Board;
}

impl<H: Host> NodeVolumes for Fleet<H> {
    async fn inventory(&self) -> Result<Vec<VolumeState>, String> {
        Fleet::inventory(self).await.map_err(|error| Causes(&error).to_string())
    }

    fn submit(&self, directive: Directive) {
        self.begin(directive);
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
    /// Host NQN of every connect.
    pub host_nqn: HostNqn,
    /// Host identifier of every connect.
    pub host_id: HostId,
    /// The addresses of this node on the storage networks.
    pub storage_addresses: Vec<IpAddr>,
    /// The boot of this node.
    pub boot_id: String,
    /// The release of the kernel.
    pub kernel_release: String,
    /// By which means controllers are made.
    pub fabrics: &'static str,
    /// Whether the kernel makes one device of several paths.
    pub native_multipath: bool,
    /// Only volumes under it are ours.
    pub nqn_prefix: NqnPrefix,
    /// Whether the kernel can authenticate in band.
    pub in_band_auth: bool,
    /// Whether the kernel can register, acquire and report reservations.
    pub reservations: bool,
    /// The version of this agent.
    pub agent_version: String,
}

/// All that a session needs.
pub struct Session<N> {
    /// Where the controller is, with keepalive and TLS set.
    pub endpoint: Box<dyn Dial>,
    /// Who this node is.
    pub node_is: NodeDescription,
    /// The rest of the agent.
    pub node: Arc<N>,
    /// Results to deliver.
    pub outbox: Arc<Outbox>,
    /// Learns whether a session is established.
    pub link: watch::Sender<Link>,
    /// Up while a session is established.
    pub ready: ReadyFlag,
}

impl<N: NodeVolumes> Session<N> {
    /// Keeps a session with the controller until asked to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut delays = Delays::default();
        while !stop.is_cancelled() {
            let mut established = None;
            let ended = tokio::select! {
                ended = stream::once(&self, &mut established) => ended,
                () = stop.cancelled() => stream::Ended::stopping(),
            };
            self.down(&ended);
            let delay = delays.after(established.map(|since| since.elapsed()));
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
}

impl Delays {
    /// The delay after a connect whose session was established for so long, if it was.
    fn after(&mut self, stood: Option<Duration>) -> Duration {
        let before = self.last.filter(|_| stood.is_none_or(|stood| stood < STANDS));
        let delay = before.map_or(FIRST_DELAY, |last| (last * 2).min(LONGEST_DELAY));
        self.last = Some(delay);
        delay
    }
}

/// Three quarters to five quarters of a delay, so that the nodes of a cluster do not all connect at once.
fn jittered(delay: Duration) -> Duration {
    // The low half of a random UUID is random in all but two bits; no other source of chance is needed here.
    let (_, random) = uuid::Uuid::new_v4().as_u64_pair();
    let half = delay.as_millis() as u64 / 2;
    delay * 3 / 4 + Duration::from_millis(if half == 0 { 0 } else { random % half })
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;

//! A controller of the past: it has an agent's ear, and may change nothing.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cleat_e2e::world::{AGENT_PORT, Access, NQN_PREFIX, World};
use cleat_proto::cleat::v1::agent_session_server::{AgentSession, AgentSessionServer};
use cleat_proto::cleat::v1::directive_result::Outcome;
use cleat_proto::cleat::v1::{
    Attach, Detach, DirectiveResult, Epoch, FromAgent, Revoke, ToAgent, Welcome, from_agent, to_agent,
};
use cleat_rig::Network;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::fixture::{
    self, LATER, SOON, attached, controllers, epoch_in, refused, remove, take_off, unharmed, wait_live,
};

/// One agent's session with the impostor.
struct Line {
    hear: Streaming<FromAgent>,
    say: mpsc::Sender<Result<ToAgent, Status>>,
}

/// The agents' service of a controller whose time is over. Hands every session that begins to the test.
struct Impostor {
    lines: mpsc::Sender<Line>,
}

#[tonic::async_trait]
impl AgentSession for Impostor {
    type SessionStream = ReceiverStream<Result<ToAgent, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<FromAgent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (say, said) = mpsc::channel(16);
        let line = Line { hear: request.into_inner(), say };
        self.lines.send(line).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(said)))
    }
}

impl Line {
    async fn next(&mut self) -> anyhow::Result<from_agent::Kind> {
        let message = tokio::time::timeout(SOON, self.hear.message()).await.context("the agent is silent")?;
        message?.context("the agent closed the stream")?.kind.context("an empty message")
    }

    async fn say(&self, kind: to_agent::Kind) -> anyhow::Result<()> {
        Ok(self.say.send(Ok(ToAgent { kind: Some(kind), about: None })).await?)
    }

    /// Gives a directive and waits for its result.
    async fn direct(
        &mut self,
        operation: &str,
        directive: to_agent::Kind,
    ) -> anyhow::Result<DirectiveResult> {
        self.say(directive).await?;
        for _ in 0..200 {
            if let from_agent::Kind::Result(result) = self.next().await?
                && result.operation_id == operation
            {
                return Ok(result);
            }
        }
        bail!("200 messages, and no result of {operation}")
    }
}

/// Lower than the ledger's: refused by name, and neither connection nor I/O notices. Of an earlier term: not listened to.
pub(crate) async fn directives_of_an_old_epoch_change_nothing(world: &World) -> anyhow::Result<()> {
    let (volume, attached) = attached(world, "old-epoch", Access::RwxBlock, world.a()).await?;
    let kernel = wait_live(world.a(), &volume, 2).await?;
    let mut writer = fixture::writing(world.a(), &attached, 0, Some(1), 5).await?;
    let current = epoch_in(&attached.context)?;

    world.controller.kill().await?;
    let outcome = impersonate(world, &volume.id, current).await;
    world.controller.start().await?;
    outcome?;
    writer.wait_progress(5, SOON).await?;
    ensure!(controllers(world.a(), &volume).await? == kernel, "the connections changed");

    for node in world.nodes() {
        world.wait_session(node, LATER).await?;
    }
    ensure!(
        world.publish(&volume, world.a()).await?.value == attached.context,
        "another context than before"
    );
    unharmed(world, &volume, &mut writer).await?;
    remove(world, &volume, world.a()).await
}

/// A kubelet that still has the PublishContext of a grant that is over: what it leads to may be another's by now.
pub(crate) async fn a_publish_context_of_an_earlier_grant_is_refused(world: &World) -> anyhow::Result<()> {
    let (volume, first) = attached(world, "old-context", Access::RwoBlock, world.a()).await?;
    take_off(world, &volume, world.a()).await?;
    let over = &["epoch"];
    refused(world.a().stage(&volume, &first.context).await, Code::FailedPrecondition, over)?;
    let second = world.attach(&volume, world.a()).await?;
    ensure!(epoch_in(&second.context)? > epoch_in(&first.context)?, "the epoch does not rise");
    refused(world.a().stage(&volume, &first.context).await, Code::FailedPrecondition, over)?;
    refused(world.a().publish(&volume, &first.context).await, Code::FailedPrecondition, over)?;
    world.a().publish(&volume, &second.context).await.context("the present PublishContext")?;
    remove(world, &volume, world.a()).await
}

async fn impersonate(world: &World, volume_id: &str, current: (u64, u64)) -> anyhow::Result<()> {
    let read = |name: &str| {
        let path = world.folder().join(name);
        std::fs::read(&path).with_context(|| format!("read {}", path.display()))
    };
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(read("controller.pem")?, read("controller-key.pem")?))
        .client_ca_root(Certificate::from_pem(read("agent-ca.pem")?));
    let (lines, mut begun) = mpsc::channel(16);
    let server = Server::builder().tls_config(tls)?.add_service(AgentSessionServer::new(Impostor { lines }));
    let address = std::net::SocketAddr::from((Network::Management.host_address(), AGENT_PORT));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve_with_shutdown(address, async {
        let _ = stopped.await;
    }));

    let outcome = async {
        // It has had a session under a later term.
        let mut line = node_a(&mut begun, 1).await?;
        let said = tokio::time::timeout(SOON, line.hear.message()).await.context("the agent is silent")?;
        ensure!(!matches!(said, Ok(Some(_))), "goes on with a leader of an earlier term: {said:?}");
        let mut line = node_a(&mut begun, current.0).await?;
        let from_agent::Kind::Inventory(_) = line.next().await? else { bail!("no inventory") };
        old_directives(&mut line, volume_id, current).await
    }
    .await;
    // With the sessions' channels gone the streams end, and with them the server.
    drop(begun);
    let _ = stop.send(());
    tokio::time::timeout(Duration::from_secs(10), serving)
        .await
        .context("the impostor does not stop")???;
    outcome
}

/// The session of node-a, to which it is said who leads; the other nodes' are turned away.
async fn node_a(begun: &mut mpsc::Receiver<Line>, term: u64) -> anyhow::Result<Line> {
    for _ in 0..50 {
        let mut line = tokio::time::timeout(LATER, begun.recv())
            .await
            .context("no agent dials")?
            .context("no server")?;
        let from_agent::Kind::Hello(hello) = line.next().await? else {
            bail!("the first message is no Hello")
        };
        if hello.node_id != "node-a" {
            let _ = line.say.send(Err(Status::unavailable("not you"))).await;
            continue;
        }
        let welcome = Welcome {
            term,
            session_id: "impostor".into(),
            heartbeat_interval_ms: 1000,
            silence_deadline_ms: 60_000,
            takes_tokens: false,
            protocol: cleat_proto::SESSION_PROTOCOL,
            controller_version: String::new(),
        };
        line.say(to_agent::Kind::Welcome(welcome)).await?;
        return Ok(line);
    }
    bail!("50 sessions, and none of node-a")
}

async fn old_directives(line: &mut Line, volume_id: &str, current: (u64, u64)) -> anyhow::Result<()> {
    let old = Some(Epoch { term: 1, seq: 1 });
    let earlier = Some(Epoch { term: current.0, seq: current.1 - 1 });
    let volume_id = || volume_id.to_owned();
    for (place, epoch) in [old, earlier].into_iter().enumerate() {
        let id = |what: &str| format!("op-1-{}{what}", place + 1);
        let attach = Attach {
            operation_id: id("1"),
            volume_id: volume_id(),
            epoch,
            subsystem_nqn: format!("{NQN_PREFIX}{}", volume_id()),
            portals: vec!["10.77.1.1:4420".into()],
            deadline_ms: 5000,
            ..Attach::default()
        };
        let detach = Detach {
            operation_id: id("2"),
            volume_id: volume_id(),
            epoch,
            deadline_ms: 5000,
            ..Detach::default()
        };
        let revoke = Revoke { operation_id: id("3"), volume_id: volume_id(), epoch, deadline_ms: 5000 };
        for (operation, directive) in [
            (id("1"), to_agent::Kind::Attach(attach)),
            (id("2"), to_agent::Kind::Detach(detach)),
            (id("3"), to_agent::Kind::Revoke(revoke)),
        ] {
            let result = line.direct(&operation, directive.clone()).await?;
            let Some(Outcome::StaleEpoch(stale)) = &result.outcome else {
                bail!("{directive:?} was answered with {result:?}");
            };
            let highest = stale.highest.map(|epoch| (epoch.term, epoch.seq));
            ensure!(highest == Some(current) && !stale.ended, "{stale:?}, and {current:?} is granted");
        }
    }
    Ok(())
}

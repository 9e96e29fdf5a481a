//! A controller that does nothing but give directives, for trying the agent on a real kernel and timing it.
//!
//! `drive LISTEN PREFIX VOLUMES PORTAL[,PORTAL…] ROUNDS`: waits for an agent to dial LISTEN (plaintext), attaches
//! PREFIX + `v1`, `v2`, … all at once, then detaches them all at once, ROUNDS times, and prints how long each took.

// A tool for a terminal.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::error::Error;
use std::pin::Pin;
use std::sync::Mutex;
use std::time::Instant;

use cleat_proto::cleat::v1 as proto;
use proto::agent_session_server::{AgentSession, AgentSessionServer};
use proto::directive_result::Outcome;
use proto::from_agent::Kind as Say;
use proto::to_agent::Kind as Hear;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

struct Plan {
    prefix: String,
    volumes: usize,
    portals: Vec<String>,
    rounds: usize,
}

struct Drive {
    plan: Mutex<Option<(Plan, oneshot::Sender<()>)>>,
}

struct Line {
    to_agent: mpsc::Sender<Result<proto::ToAgent, Status>>,
    from_agent: Streaming<proto::FromAgent>,
    operations: u64,
}

impl Line {
    async fn say(&self, kind: Hear) -> Result<(), Status> {
        let sent = self.to_agent.send(Ok(proto::ToAgent { kind: Some(kind) })).await;
        sent.map_err(|_| Status::cancelled("the agent is gone"))
    }

    async fn hear(&mut self) -> Result<Say, Status> {
        let message = self.from_agent.message().await?.ok_or_else(|| Status::cancelled("closed"))?;
        message.kind.ok_or_else(|| Status::internal("nothing said"))
    }

    fn operation(&mut self) -> String {
        self.operations += 1;
        format!("op-1-{}", self.operations)
    }

    /// Gives directives and waits for a final result of each; milliseconds until each came, by volume.
    async fn all(&mut self, directives: Vec<Hear>) -> Result<BTreeMap<String, (f64, Outcome)>, Status> {
        let (wanted, began) = (directives.len(), Instant::now());
        for directive in directives {
            self.say(directive).await?;
        }
        let mut done = BTreeMap::new();
        while done.len() < wanted {
            let Say::Result(result) = self.hear().await? else { continue };
            match result.outcome {
                Some(Outcome::Pending(pending)) => println!("pending: {}", pending.message),
                Some(outcome) => drop(done.insert(result.volume_id, (ms(began), outcome))),
                None => {}
            }
        }
        Ok(done)
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

async fn drive(mut line: Line, plan: &Plan) -> Result<(), Status> {
    let Say::Hello(hello) = line.hear().await? else { return Err(Status::internal("no Hello")) };
    println!("agent of {} ({})", hello.node_id, hello.capabilities.unwrap_or_default().kernel_release);
    line.say(Hear::Welcome(proto::Welcome {
        term: 1,
        session_id: "drive".into(),
        heartbeat_interval_ms: 1000,
        silence_deadline_ms: 600_000,
    }))
    .await?;
    // A controller that says nothing would be taken for dead in the end; ten minutes are enough for a trial.
    let Say::Inventory(_) = line.hear().await? else { return Err(Status::internal("no inventory")) };
    let term = std::time::SystemTime::UNIX_EPOCH.elapsed().map(|time| time.as_secs()).unwrap_or(1);
    for round in 0..plan.rounds {
        let epoch = Some(proto::Epoch { term, seq: round as u64 + 1 });
        let names: Vec<String> = (1..=plan.volumes).map(|n| format!("v{n}")).collect();
        let attach = |line: &mut Line, name: &String| {
            Hear::Attach(proto::Attach {
                operation_id: line.operation(),
                volume_id: name.clone(),
                epoch,
                subsystem_nqn: format!("{}{name}", plan.prefix),
                portals: plan.portals.clone(),
                path_policy: proto::PathPolicy::All.into(),
                deadline_ms: 60_000,
                ..proto::Attach::default()
            })
        };
        let directives = names.iter().map(|name| attach(&mut line, name)).collect();
        report("attach", line.all(directives).await?);
        let detach = |line: &mut Line, name: &String| {
            let operation_id = line.operation();
            Hear::Detach(proto::Detach { operation_id, volume_id: name.clone(), epoch, deadline_ms: 60_000 })
        };
        let directives = names.iter().map(|name| detach(&mut line, name)).collect();
        report("detach", line.all(directives).await?);
    }
    Ok(())
}

fn report(what: &str, done: BTreeMap<String, (f64, Outcome)>) {
    let slowest = done.values().map(|(ms, _)| *ms).fold(0.0, f64::max);
    let mut phases = [0u64; 3];
    for (volume, (_, outcome)) in &done {
        let of = match outcome {
            Outcome::Ready(ready) => ready.times.map(|t| [t.connect_us, t.device_us, t.checks_us]),
            Outcome::Absent(absent) => absent.times.map(|t| [t.checks_us, t.flush_us, t.delete_us]),
            other => {
                println!("{what} {volume}: {other:?}");
                None
            }
        };
        for (sum, us) in phases.iter_mut().zip(of.unwrap_or_default()) {
            *sum += us / done.len() as u64;
        }
    }
    println!("{what} of {}: {slowest:.0} ms; means by phase in us: {phases:?}", done.len());
}

#[tonic::async_trait]
impl AgentSession for Drive {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<proto::ToAgent, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<proto::FromAgent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let taken = self.plan.lock().map_err(|_| Status::internal("poisoned"))?.take();
        let (plan, end) = taken.ok_or_else(|| Status::unavailable("one session only"))?;
        let (to_agent, messages) = mpsc::channel(256);
        let line = Line { to_agent, from_agent: request.into_inner(), operations: 0 };
        tokio::spawn(async move {
            if let Err(error) = drive(line, &plan).await {
                println!("ended: {error}");
            }
            let _ = end.send(());
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, prefix, volumes, portals, rounds] = &arguments[..] else {
        return Err("LISTEN PREFIX VOLUMES PORTAL[,PORTAL…] ROUNDS".into());
    };
    let plan = Plan {
        prefix: prefix.clone(),
        volumes: volumes.parse()?,
        portals: portals.split(',').map(str::to_owned).collect(),
        rounds: rounds.parse()?,
    };
    let (end, ended) = oneshot::channel();
    let listener = tokio::net::TcpListener::bind(listen).await?;
    let service = AgentSessionServer::new(Drive { plan: Mutex::new(Some((plan, end))) });
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::select! {
        served = server.serve_with_incoming(TcpListenerStream::new(listener)) => served?,
        _ = ended => {}
    }
    Ok(())
}

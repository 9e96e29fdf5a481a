//! Everything at once: callers that give up, agents that come and go, a controller that is killed; and the target
//! watched all the while.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cleat_proto::csi::v1 as csi;
use cleat_runtime::grpc::{Keepalive, endpoint};
use cleat_runtime::tls::ClientTransport;
use csi::volume_capability::access_mode::Mode;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::agent::{Agent, Host, OnAttach, OnDetach, Target};
use crate::rds::FakeRds;
use crate::world::{Csi, RWO, RWX, World, eventually, publish_request};

const VOLUMES: [(&str, Mode); 4] = [("rwo-1", RWO), ("rwo-2", RWO), ("rwx-1", RWX), ("rwx-2", RWX)];
const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];
const CALLS: u64 = 30;
const KILLS: u64 = 3;

/// A xorshift generator: the same seed, the same choices.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// What a caller may be told in a storm. Never that something is wrong with us, or with what it asked.
fn expected(status: &Status) -> bool {
    matches!(
        status.code(),
        // Its own deadline, the connection to a controller that was killed.
        Code::Cancelled | Code::DeadlineExceeded | Code::Unknown
        // The core.
        | Code::Unavailable | Code::Aborted | Code::FailedPrecondition | Code::NotFound
    )
}

/// One sidecar's worker for one volume: one call after the other, each with a deadline of its own.
async fn caller(
    socket: PathBuf,
    hosts: Arc<[Arc<Host>]>,
    volume: &'static str,
    mode: Mode,
    mut random: Random,
) {
    let csi = Csi::dial(&socket).await;
    for _ in 0..CALLS {
        let at = random.below(3);
        let (node, host) = (NODES[at as usize], &hosts[at as usize]);
        let deadline = random.millis(100, 600);
        // As a sidecar's back-off: the storm is to be met at work, not only at the door.
        tokio::time::sleep(random.millis(10, 100)).await;
        if random.below(2) == 0 {
            let mut request = tonic::Request::new(publish_request(volume, node, mode));
            request.set_timeout(deadline);
            match csi.client.clone().controller_publish_volume(request).await {
                Ok(_) => assert!(host.holds(volume), "{volume}: published to {node}, which has it not"),
                Err(status) => assert!(expected(&status), "publish {volume} to {node}: {status:?}"),
            }
        } else {
            let all = random.below(4) == 0;
            let mut request = tonic::Request::new(csi::ControllerUnpublishVolumeRequest {
                volume_id: volume.into(),
                node_id: if all { String::new() } else { node.into() },
                ..Default::default()
            });
            request.set_timeout(deadline);
            match csi.client.clone().controller_unpublish_volume(request).await {
                Ok(_) => {
                    let left =
                        hosts.iter().enumerate().filter(|(i, h)| (all || *i as u64 == at) && h.holds(volume));
                    assert_eq!(left.count(), 0, "{volume}: unpublished from {node}, which still has it");
                }
                Err(status) => assert!(expected(&status), "unpublish {volume} from {node}: {status:?}"),
            }
        }
    }
}

/// A host's agent: dials again and again, and falls over now and then, until the storm is over.
async fn agent(
    host: Arc<Host>,
    mut address: watch::Receiver<SocketAddr>,
    mut calm: watch::Receiver<bool>,
    mut random: Random,
) {
    while !*calm.borrow() {
        let at = address.borrow_and_update().to_string();
        let dialled =
            endpoint(&at, &ClientTransport::Plaintext, Keepalive::default()).unwrap().connect().await;
        let Ok(channel) = dialled else {
            // The controller is down; its successor has another port.
            let _ = timeout(Duration::from_millis(50), address.changed()).await;
            continue;
        };
        let agent = Agent::dial(channel, &host).await;
        let life = random.millis(50, 700);
        tokio::select! {
            _ = calm.wait_for(|calm| *calm) => {}
            ended = timeout(life, agent.end()) => drop(ended),
        }
    }
}

/// The RDS is slow, stuck or away, and hosts do not answer, for a moment at a time.
async fn weather(
    rds: Arc<FakeRds>,
    hosts: Arc<[Arc<Host>]>,
    calm: watch::Receiver<bool>,
    mut random: Random,
) {
    while !*calm.borrow() {
        let host = &hosts[random.below(3) as usize];
        let kind = random.below(9);
        for bad in [true, false] {
            match kind {
                0 | 1 => {
                    rds.slow.send_replace(bad);
                }
                2 | 3 => {
                    rds.stuck.send_replace(bad);
                }
                4 => {
                    rds.away.send_replace(bad);
                }
                5 | 6 => *host.on_attach.lock().unwrap() = if bad { OnAttach::Hold } else { OnAttach::Ready },
                _ => {
                    *host.on_detach.lock().unwrap() =
                        if bad { OnDetach::Hold } else { OnDetach::Absent("live") };
                }
            }
            tokio::time::sleep(random.millis(20, 400)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_writes_who_must_not_whatever_comes_together() {
    for seed in [0x5eed_0001_u64, 0x5eed_0002] {
        storm(seed).await;
    }
}

async fn storm(seed: u64) {
    let mut world = World::new();
    world.core.drain_bound_ms = 50;
    world.start().await;
    let hosts: Arc<[Arc<Host>]> =
        NODES.iter().zip(1..).map(|(name, number)| Host::new(name, number)).collect();
    let limits = VOLUMES.map(|(name, mode)| (name.to_owned(), if mode == RWX { 2 } else { 1 }));
    let target = Target::new(limits.into());
    for host in hosts.iter() {
        *host.target.lock().unwrap() = Some(Arc::clone(&target));
    }
    let csi = world.csi().await;
    for (volume, _) in VOLUMES {
        csi.create(volume).await.unwrap();
    }
    let (moved, address) = watch::channel(world.agents_at());
    let (calm, storming) = watch::channel(false);
    let seeds = |number: u64| Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number));
    let agents: Vec<_> = hosts
        .iter()
        .zip(100..)
        .map(|(host, n)| tokio::spawn(agent(Arc::clone(host), address.clone(), storming.clone(), seeds(n))))
        .collect();
    let callers: Vec<_> = VOLUMES
        .iter()
        .zip(200..)
        .map(|(&(volume, mode), n)| {
            tokio::spawn(caller(world.socket(), Arc::clone(&hosts), volume, mode, seeds(n)))
        })
        .collect();
    let weather =
        tokio::spawn(weather(Arc::clone(&world.rds), Arc::clone(&hosts), storming.clone(), seeds(400)));
    let mut random = seeds(300);
    for _ in 0..KILLS {
        tokio::time::sleep(random.millis(300, 1200)).await;
        world.kill();
        world.start().await;
        moved.send_replace(world.agents_at());
    }
    for caller in callers {
        caller.await.unwrap_or_else(|error| panic!("seed {seed:#x}: {error}"));
    }
    calm.send_replace(true);
    for agent in agents {
        agent.await.unwrap();
    }
    weather.await.unwrap();
    let violations = target.violations.lock().unwrap().clone();
    assert!(violations.is_empty(), "seed {seed:#x}: {violations:?}");
    settles(&world, &hosts, seed).await;
}

/// In calm, everything that was begun comes to its end, and everything can be had again.
async fn settles(world: &World, hosts: &[Arc<Host>], seed: u64) {
    let mut up = Vec::new();
    for host in hosts {
        up.push(world.agent(host).await);
    }
    let csi = world.csi().await;
    for (volume, mode) in VOLUMES {
        eventually(&format!("seed {seed:#x}: {volume} is free"), async || {
            csi.unpublish(volume, "").await.is_ok()
        })
        .await;
        assert!(hosts.iter().all(|host| !host.holds(volume)), "seed {seed:#x}: {volume}");
        assert!(world.rds.hosts(volume).is_empty(), "seed {seed:#x}: {volume}");
        for node in NODES {
            csi.publish(volume, node, mode).await.unwrap_or_else(|e| panic!("seed {seed:#x}: {e:?}"));
            csi.unpublish(volume, node).await.unwrap_or_else(|e| panic!("seed {seed:#x}: {e:?}"));
        }
    }
}

//! The clients: one for each volume, which publishes and unpublishes as Kubernetes would.
//!
//! A call is repeated with a growing pause until it ends for good; a workload is started on a node only after its
//! Publish has succeeded; a node's death makes nobody close anything. Each client goes through scenes chosen by
//! chance until the faults end, then puts everything away, and then sees that every node can still be used.

use std::time::Duration;

use cleat_proto::csi::v1 as csi;
use cleat_runtime::grpc::Connector;
use csi::controller_client::ControllerClient;
use csi::volume_capability::access_mode::Mode;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::transport::Channel;

use crate::chance::Chance;
use crate::net::Dialler;
use crate::programs::{CONTROLLER, CSI_PORT, controller_endpoint};
use crate::world::{self, NODES, NodeIx, Universe, VolumeIx};

/// How long one call may take; longer than a controller lets a request wait.
const CALL: Duration = Duration::from_millis(4_500);
/// First and longest pause before a call is repeated.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// The client of one volume.
#[derive(Debug)]
pub struct Attacher {
    universe: Universe,
    volume: VolumeIx,
    chance: Chance,
    dialler: Dialler,
    channel: Option<Channel>,
}

impl Attacher {
    /// The client of a volume.
    #[must_use]
    pub fn new(universe: Universe, volume: VolumeIx, seed: u64) -> Self {
        let chance = Chance::new(seed, &format!("attacher {volume}"));
        let dialler = Dialler::new(controller_endpoint(), CONTROLLER, CSI_PORT);
        Self { universe, volume, chance, dialler, channel: None }
    }

    /// A second client of the same volume, for what happens side by side.
    fn other(&mut self) -> Self {
        let seed = self.chance.next();
        Self::new(self.universe.clone(), self.volume, seed)
    }

    /// Lives until everything has been put away after the last fault.
    pub async fn run(mut self) {
        let first = self.chance.within(0, 800);
        sleep(Duration::from_millis(first)).await;
        while !self.over() {
            let node = self.chance.index(NODES.len());
            self.scene(node).await;
            let rest = self.chance.within(0, 600);
            sleep(Duration::from_millis(rest)).await;
        }
        // Nothing fails any more: every node must be usable.
        for node in 0..NODES.len() {
            if self.ended() {
                return;
            }
            if self.gone(node) {
                continue;
            }
            self.publish(node, None).await;
            self.work(node, 300).await;
            self.retire(node).await;
        }
    }

    fn over(&self) -> bool {
        self.universe.lock().healed_at.is_some()
    }

    /// A machine that is not there any more is not waited for.
    fn gone(&self, node: NodeIx) -> bool {
        self.universe.lock().nodes[node].gone
    }

    /// A violation ends everything.
    fn ended(&self) -> bool {
        self.universe.lock().violation().is_some()
    }

    /// One workload's life, beginning on a node.
    async fn scene(&mut self, node: NodeIx) {
        let tries = self.chance.percent(25).then(|| self.chance.within(1, 4));
        if !self.publish(node, tries).await {
            // Its pod was deleted before it ever ran.
            self.unpublish(node).await;
            return;
        }
        let length = self.chance.within(300, 4_000);
        self.work(node, length).await;
        let next = (node + 1 + self.chance.index(NODES.len() - 1)) % NODES.len();
        if world::is_shared(self.volume) && self.universe.lock().rds.awaited {
            return self.lose_one_of_two(node, next, (5_000, 7_000)).await;
        }
        match self.chance.index(5) {
            0 => self.retire(node).await,
            1 => self.force_off(node).await,
            2 => self.move_to(node, next).await,
            3 if world::is_shared(self.volume) => self.migrate(node, next).await,
            _ if world::is_shared(self.volume) => self.lose_one_of_two(node, next, (0, 500)).await,
            _ => {
                // Force-detached while its pod is started elsewhere.
                let mut other = self.other();
                tokio::join!(self.force_off(node), other.short_life(next));
            }
        }
    }

    /// Attached elsewhere while it goes from here.
    async fn move_to(&mut self, from: NodeIx, to: NodeIx) {
        self.universe.lock().close(from, self.volume);
        let mut other = self.other();
        tokio::join!(self.unpublish(from), other.short_life(to));
    }

    async fn short_life(&mut self, node: NodeIx) {
        if self.publish(node, Some(12)).await {
            let length = self.chance.within(200, 2_000);
            self.work(node, length).await;
        }
        self.retire(node).await;
    }

    /// A live migration, which is completed or rolled back; a third node asks meanwhile, in vain.
    async fn migrate(&mut self, from: NodeIx, to: NodeIx) {
        let there = self.publish(to, Some(8)).await;
        if there && self.chance.percent(30) {
            let third = NODES.len() - from - to;
            self.publish(third, Some(1)).await;
            self.unpublish(third).await;
        }
        if there && self.chance.percent(70) {
            self.work(to, 200).await;
            self.universe.lock().close(from, self.volume);
            self.unpublish(from).await;
            let length = self.chance.within(200, 2_000);
            self.work(to, length).await;
            self.retire(to).await;
        } else {
            self.unpublish(to).await;
            self.retire(from).await;
        }
    }

    /// Two nodes write, and one of them is detached under its writer; the other one goes on for so long, in ms.
    async fn lose_one_of_two(&mut self, lost: NodeIx, stays: NodeIx, goes_on: (u64, u64)) {
        if self.publish(stays, Some(8)).await {
            let length = self.chance.within(200, 4_000);
            self.work(stays, length).await;
        }
        self.force_off(lost).await;
        let length = self.chance.within(goes_on.0, goes_on.1);
        self.work(stays, length).await;
        self.retire(stays).await;
    }

    /// Writes for a while.
    async fn work(&mut self, node: NodeIx, length_ms: u64) {
        self.universe.lock().open(node, self.volume);
        sleep(Duration::from_millis(length_ms)).await;
    }

    /// As a pod ends in good order.
    async fn retire(&mut self, node: NodeIx) {
        self.universe.lock().close(node, self.volume);
        self.unpublish(node).await;
    }

    /// As a pod is detached whose node is thought to be dead: nobody has closed anything, and somebody may later.
    async fn force_off(&mut self, node: NodeIx) {
        let after = Duration::from_millis(self.chance.within(500, 6_000));
        let (universe, volume) = (self.universe.clone(), self.volume);
        let killed = async {
            sleep(after).await;
            universe.lock().close(node, volume);
        };
        tokio::join!(self.unpublish(node), killed);
    }

    /// Publishes until it is granted, or so many times. Whether it was granted.
    pub(crate) async fn publish(&mut self, node: NodeIx, tries: Option<u64>) -> bool {
        self.universe.lock().asks(self.volume, node);
        let request = csi::ControllerPublishVolumeRequest {
            volume_id: world::volume_id(self.volume),
            node_id: NODES[node].into(),
            volume_capability: Some(capability(self.volume)),
            volume_context: self.universe.lock().context(self.volume),
            ..Default::default()
        };
        let what = format!("Publish of {} on {}", request.volume_id, request.node_id);
        let mut pause = PAUSE.0;
        for tried in 1.. {
            let answer = self
                .call(&what, request.clone(), async |client, request| {
                    client.controller_publish_volume(request).await
                })
                .await;
            match answer {
                Ok(answer) => {
                    let epoch = epoch(&answer.publish_context["cleat.io/epoch"]);
                    self.universe.lock().published(self.volume, node, epoch);
                    return true;
                }
                Err(status) => {
                    self.patience(&what, &status);
                    let left_over = self.universe.lock().not_wanted(self.volume, status.message());
                    for other in left_over.into_iter().filter(|other| *other != node) {
                        self.unpublish(other).await;
                    }
                    // After the last fault nobody gives up any more: then it has to succeed.
                    if self.ended() || self.gone(node) || tries.is_some_and(|tries| tried >= tries) {
                        return false;
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
        false
    }

    /// Unpublishes until it is done.
    pub(crate) async fn unpublish(&mut self, node: NodeIx) {
        self.universe.lock().gives_back(self.volume, node);
        let request = csi::ControllerUnpublishVolumeRequest {
            volume_id: world::volume_id(self.volume),
            node_id: NODES[node].into(),
            ..Default::default()
        };
        let what = format!("Unpublish of {} from {}", request.volume_id, request.node_id);
        let mut pause = PAUSE.0;
        loop {
            let answer = self
                .call(&what, request.clone(), async |client, request| {
                    client.controller_unpublish_volume(request).await
                })
                .await;
            match answer {
                Ok(_) => return self.universe.lock().unpublished(self.volume, node),
                Err(status) => self.patience(&what, &status),
            }
            if self.ended() {
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    fn patience(&self, what: &str, status: &Status) {
        let mut world = self.universe.lock();
        world.refused(what, self.volume, status.code(), status.message());
        if let Some(healed_at) = world.healed_at {
            let healed_for = world.now - healed_at;
            world.judge_patience(what, healed_for, status.message());
        }
    }

    async fn call<Q, A>(
        &mut self,
        what: &str,
        request: Q,
        ask: impl AsyncFnOnce(&mut ControllerClient<Channel>, Q) -> Result<tonic::Response<A>, Status>,
    ) -> Result<A, Status> {
        self.universe.lock().note(format_args!("{what}?"));
        let asked = async {
            let channel = match self.channel.take() {
                Some(channel) => channel,
                None => self
                    .dialler
                    .open_channel()
                    .await
                    .map_err(|error| Status::unavailable(error.to_string()))?,
            };
            let answer = ask(&mut ControllerClient::new(channel.clone()), request).await;
            self.channel = Some(channel);
            answer.map(tonic::Response::into_inner)
        };
        let answer = match timeout(CALL, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded("the client's own deadline")),
        };
        let mut world = self.universe.lock();
        match &answer {
            Ok(_) => world.note(format_args!("{what}: done")),
            Err(status) => world.note(format_args!("{what}: {:?}: {}", status.code(), status.message())),
        }
        answer
    }
}

fn capability(volume: VolumeIx) -> csi::VolumeCapability {
    let mode = if world::is_shared(volume) { Mode::MultiNodeMultiWriter } else { Mode::SingleNodeWriter };
    csi::VolumeCapability {
        access_mode: Some(csi::volume_capability::AccessMode { mode: mode.into() }),
        access_type: Some(csi::volume_capability::AccessType::Block(Default::default())),
    }
}

fn epoch(text: &str) -> (u64, u64) {
    let (term, seq) = text.split_once('.').unwrap();
    (term.parse().unwrap(), seq.parse().unwrap())
}

//! The operator: a person who fences nodes and declares them gone, through the operators' own service.
//!
//! Fences at any time whatever seems right: nodes that are well, too. Says that a node is gone only where it is, in
//! truth, for good (unless false words are what is wrong on purpose), again and again while it is, since the word
//! counts for what the node has at that moment.

use std::time::Duration;

use cleat_proto::cleat::v1 as proto;
use cleat_runtime::grpc::Connector;
use proto::operator_client::OperatorClient;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::transport::Channel;

use crate::chance::Chance;
use crate::faults::FAULTS_END;
use crate::net::Dialler;
use crate::programs::{CONTROLLER, OPERATORS_PORT, controller_endpoint};
use crate::world::{NODES, NodeIx, Planted, Universe, VOLUMES, VolumeIx, volume_id};

/// How long one call may take.
const CALL: Duration = Duration::from_millis(4_500);
/// How often a fence is asked for again when it was refused.
const TRIES: u32 = 4;
/// Between two looks at what is to be done.
const LOOK: Duration = Duration::from_millis(100);

/// The operator.
#[derive(Debug)]
pub struct Operator {
    universe: Universe,
    chance: Chance,
    dialler: Dialler,
    channel: Option<Channel>,
}

impl Operator {
    /// The operator of a seed.
    #[must_use]
    pub fn new(universe: Universe, seed: u64) -> Self {
        let chance = Chance::new(seed, "operator");
        let dialler = Dialler::new(controller_endpoint(), CONTROLLER, OPERATORS_PORT);
        Self { universe, chance, dialler, channel: None }
    }

    /// Lives until there is nothing left to look after.
    pub async fn run(mut self) {
        let fences = self.chance.within(0, 3);
        let mut fences: Vec<u64> = (0..fences).map(|_| self.chance.within(2_000, FAULTS_END)).collect();
        fences.sort_unstable();
        let mut fences = fences.into_iter().peekable();
        let mut declares_at = 0;
        loop {
            let (over, now) = {
                let world = self.universe.lock();
                (world.put_away || world.violation().is_some(), world.now)
            };
            if over {
                return;
            }
            // After a crash in the middle of something, that is what is looked at.
            let suspect = self.universe.lock().rds.suspect.take();
            if let Some((volume, node)) = suspect.filter(|_| self.chance.percent(60)) {
                let after = self.chance.within(1_000, 5_000);
                sleep(Duration::from_millis(after)).await;
                self.fence(volume, node).await;
            }
            if fences.next_if(|at| *at <= now).is_some() {
                let (volume, node) = self.pick();
                self.fence(volume, node).await;
            }
            if now >= declares_at
                && let Some(node) = self.gone()
            {
                self.declare_gone(node).await;
                declares_at = now + self.chance.within(500, 3_000);
            }
            sleep(LOOK).await;
        }
    }

    /// What to fence: mostly something that is used, and rather one of two that use it.
    fn pick(&mut self) -> (VolumeIx, NodeIx) {
        let used = self.universe.lock().in_use();
        let volume = |(volume, _): &(VolumeIx, NodeIx)| *volume;
        let of_two = |one: &&(_, _)| used.iter().filter(|other| volume(other) == volume(one)).count() > 1;
        let of_two: Vec<_> = used.iter().filter(of_two).copied().collect();
        if !of_two.is_empty() && self.chance.percent(60) {
            return of_two[self.chance.index(of_two.len())];
        }
        if !used.is_empty() && self.chance.percent(75) {
            return used[self.chance.index(used.len())];
        }
        (self.chance.index(VOLUMES), self.chance.index(NODES.len()))
    }

    /// A node that is gone, or that is said to be.
    fn gone(&self) -> Option<NodeIx> {
        let world = self.universe.lock();
        let lies = world.planted == Some(Planted::WordFalse);
        world.nodes.iter().position(|node| {
            let does_not_answer = node.stands_still || node.links.iter().all(|up| !up);
            node.gone || (lies && does_not_answer)
        })
    }

    async fn fence(&mut self, volume: VolumeIx, node: NodeIx) {
        let what = format!("Fence of {} from {}", volume_id(volume), NODES[node]);
        let request = proto::FenceRequest {
            volume_id: volume_id(volume),
            node_id: NODES[node].into(),
            reason: "it behaves oddly".into(),
        };
        for _ in 0..TRIES {
            let asked = self.universe.lock().fence_asked(volume, node);
            let answer = self.call(&what, async |client| client.fence(request.clone()).await.map(drop)).await;
            match answer {
                Ok(()) => return self.universe.lock().fenced(volume, node, asked),
                Err(status) if status.code() == tonic::Code::FailedPrecondition => return,
                Err(_) => sleep(LOOK * 3).await,
            }
        }
    }

    async fn declare_gone(&mut self, node: NodeIx) {
        let what = format!("{} is gone", NODES[node]);
        self.universe.lock().said_to_be_gone(node);
        let request =
            proto::DeclareGoneRequest { node_id: NODES[node].into(), reason: "it burnt down".into() };
        // It is said again before long, whatever the answer.
        let said =
            self.call(&what, async |client| client.declare_gone(request.clone()).await.map(drop)).await;
        if said.is_ok() {
            self.universe.lock().count("declared gone");
        }
    }

    async fn call(
        &mut self,
        what: &str,
        ask: impl AsyncFnOnce(&mut OperatorClient<Channel>) -> Result<(), Status>,
    ) -> Result<(), Status> {
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
            let answer = ask(&mut OperatorClient::new(channel.clone())).await;
            self.channel = Some(channel);
            answer
        };
        let answer = match timeout(CALL, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded("the operator's own deadline")),
        };
        let mut world = self.universe.lock();
        match &answer {
            Ok(()) => world.note(format_args!("{what}: done")),
            Err(status) => world.note(format_args!("{what}: {:?}: {}", status.code(), status.message())),
        }
        answer
    }
}

//! Whoever does in a scene what kubelets, the attacher, KubeVirt and people do, and looks at what comes of it.

use std::time::Duration;

use cleat_kubevirt::script::{Step, migration_steps};
use cleat_proto::cleat::v1 as proto;
use cleat_runtime::grpc::Connector;
use metrics_exporter_prometheus::PrometheusHandle;
use proto::operator_client::OperatorClient;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use super::Came;
use crate::attacher::Attacher;
use crate::faults::Kind;
use crate::net::Dialler;
use crate::programs::{CONTROLLER, OPERATORS_PORT, controller_endpoint};
use crate::world::{NODES, NodeIx, Universe, VolumeIx, host_nqn, volume_id};

/// The volume of a scene with one VM.
pub(super) const VOLUME: VolumeIx = 1;
/// Between two steps of KubeVirt's.
const STEP: Duration = Duration::from_millis(150);
const LOOK: Duration = Duration::from_millis(100);
/// A call of the operator's.
const CALL: Duration = Duration::from_secs(4);
/// So often is a Publish tried that has to succeed.
const TRIES: u64 = 30;
/// Every end of a migration, as it is counted.
const RESULTS: [&str; 5] = ["completed", "rolled_back", "failed", "timed_out", "unattributed"];

/// The hand.
pub(super) struct Hand {
    pub(super) universe: Universe,
    counted: PrometheusHandle,
    /// Which VM the volume has, and what of its migration is still to come.
    vms: Vec<(VolumeIx, Vec<Step>)>,
}

impl Hand {
    pub(super) fn new(universe: Universe, counted: PrometheusHandle) -> Self {
        Self { universe, counted, vms: Vec::new() }
    }

    /// Somebody else who does the same for one volume beside this one.
    pub(super) fn other(&self) -> Self {
        Self { universe: self.universe.clone(), counted: self.counted.clone(), vms: self.vms.clone() }
    }

    pub(super) fn now(&self) -> u64 {
        self.universe.lock().now
    }

    /// Begins or ends a fault.
    pub(super) fn order(&self, kind: Kind, begins: bool) {
        self.universe.lock().orders.push((kind, begins));
    }

    // ---- the attacher and the kubelets ----

    fn attacher(&self, volume: VolumeIx) -> Attacher {
        let seed = self.universe.lock().chance.next();
        Attacher::new(self.universe.clone(), volume, seed)
    }

    /// Publishes, and has to succeed before long.
    pub(super) async fn publish(&self, volume: VolumeIx, node: NodeIx) -> Came {
        match self.attacher(volume).publish(node, Some(TRIES)).await {
            true => Ok(()),
            false => Err(format!("{} was never published on {}", volume_id(volume), NODES[node])),
        }
    }

    /// Publishes so often at most; with what it was refused last.
    pub(super) async fn refused(&self, volume: VolumeIx, node: NodeIx, tries: u64) -> Result<String, String> {
        let before = self.universe.lock().record().0.len();
        if self.attacher(volume).publish(node, Some(tries)).await {
            return Err(format!("{} was published on {}", volume_id(volume), NODES[node]));
        }
        let about = format!("Publish of {} on {}: ", volume_id(volume), NODES[node]);
        let world = self.universe.lock();
        let line = world.record().0.iter().skip(before).rfind(|line| line.contains(&about));
        line.cloned().ok_or_else(|| "a refusal without a word".to_owned())
    }

    pub(super) async fn unpublish(&self, volume: VolumeIx, node: NodeIx) {
        self.attacher(volume).unpublish(node).await;
    }

    // ---- KubeVirt ----

    /// A VM that runs on a node and writes.
    pub(super) async fn vm_on(&mut self, volume: VolumeIx, node: NodeIx) -> Came {
        let vm = self.universe.lock().kubevirt.add(volume);
        self.vms.push((volume, Vec::new()));
        let runs = Step::LauncherRuns { on: NODES[node].into() };
        for step in [Step::VmMade, Step::LauncherMade, runs] {
            self.play(vm, &step)?;
        }
        self.publish(volume, node).await?;
        self.universe.lock().open(node, volume);
        Ok(())
    }

    /// The next step of a VM.
    pub(super) fn play(&self, vm: usize, step: &Step) -> Came {
        let mut world = self.universe.lock();
        let now = world.now;
        world.note(format_args!("VM {vm} comes to {step:?}"));
        world.kubevirt.play(vm, step, now)
    }

    /// A migration is asked for.
    pub(super) fn asks_to_move(&mut self, vm: usize, to: NodeIx) -> Came {
        self.play(vm, &Step::Asked { to: NODES[to].into() })?;
        self.will_come(vm);
        Ok(())
    }

    /// It was asked for: its steps are to come.
    pub(super) fn will_come(&mut self, vm: usize) {
        let mut steps = migration_steps(false);
        steps.reverse();
        self.vms[vm].1 = steps;
    }

    /// So many of its steps were played already.
    pub(super) fn skip(&mut self, vm: usize, count: usize) {
        let steps = &mut self.vms[vm].1;
        steps.truncate(steps.len().saturating_sub(count));
    }

    /// Lets it go on up to this step. Its volume is published when the target's pod has a node, and the guest writes where
    /// the VM runs.
    pub(super) async fn goes_on(&mut self, vm: usize, (from, to): (NodeIx, NodeIx), last: &Step) -> Came {
        let volume = self.vms[vm].0;
        while let Some(step) = self.vms[vm].1.pop() {
            self.play(vm, &step)?;
            match step {
                Step::TargetPlaced => self.publish(volume, to).await?,
                Step::Detected => self.universe.lock().close(from, volume),
                Step::Switched => self.universe.lock().open(to, volume),
                _ => {}
            }
            sleep(STEP).await;
            if step == *last {
                return Ok(());
            }
        }
        Err(format!("{last:?} is no step of a migration"))
    }

    /// A migration that goes well, up to when the source's volume is off.
    pub(super) async fn moves(&mut self, vm: usize, (from, to): (NodeIx, NodeIx)) -> Came {
        self.asks_to_move(vm, to)?;
        self.goes_on(vm, (from, to), &Step::Completed).await?;
        self.play(vm, &Step::SourceEnds)?;
        self.unpublish(self.vms[vm].0, from).await;
        Ok(())
    }

    // ---- people ----

    async fn ask<A>(
        &self,
        question: impl AsyncFnOnce(OperatorClient<Channel>) -> Result<tonic::Response<A>, tonic::Status>,
    ) -> Result<A, String> {
        let asked = async {
            let dialler = Dialler::new(controller_endpoint(), CONTROLLER, OPERATORS_PORT);
            let channel = dialler.open_channel().await.map_err(|error| error.to_string())?;
            let answer = question(OperatorClient::new(channel)).await;
            answer.map(tonic::Response::into_inner).map_err(|status| status.to_string())
        };
        timeout(CALL, asked).await.unwrap_or_else(|_| Err("the controller does not answer".to_owned()))
    }

    pub(super) async fn volume(&self, volume: VolumeIx) -> Result<proto::VolumeInfo, String> {
        let request = proto::GetVolumeRequest { volume_id: volume_id(volume) };
        self.ask(async |mut client| client.get_volume(request).await).await
    }

    pub(super) async fn migration(&self, volume: VolumeIx) -> Result<proto::MigrationInfo, String> {
        let migration = self.volume(volume).await?.migration;
        migration.ok_or_else(|| format!("no migration of {} is on record", volume_id(volume)))
    }

    /// Waits until a look finds it; else with what the last one found.
    pub(super) async fn until(
        &self,
        what: &str,
        limit_ms: u64,
        mut look: impl AsyncFnMut(&Self) -> Result<(), String>,
    ) -> Came {
        let until = self.now() + limit_ms;
        loop {
            match look(self).await {
                Ok(()) => return Ok(()),
                Err(found) if self.now() >= until => {
                    return Err(format!("{what}: not within {limit_ms} ms: {found}"));
                }
                Err(_) => sleep(LOOK).await,
            }
        }
    }

    // ---- what has to come of it ----

    /// The record of the last migration says so, with each step at most once.
    pub(super) async fn ended(&self, volume: VolumeIx, result: &str, left: &str) -> Came {
        self.until("the end of the migration", 15_000, async |hand| {
            let ours = hand.migration(volume).await?;
            let mut steps: Vec<_> = ours.steps.iter().map(|step| step.name.clone()).collect();
            let as_it_has_to = (ours.result.as_str(), ours.left.as_str()) == (result, left);
            steps.sort_unstable();
            steps.dedup();
            match as_it_has_to && steps.len() == ours.steps.len() {
                true => Ok(()),
                false => Err(format!("wanted {result} without the {left}: {ours:?}")),
            }
        })
        .await
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.counted.render();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or(0)
    }

    /// So many were counted as this.
    pub(super) fn count(&self, result: &str) -> u64 {
        self.metric(&format!("cleat_controller_migrations_total{{result=\"{result}\"}} "))
    }

    /// So many ended as each of these since the beginning, and none otherwise; as many are overdue now.
    pub(super) fn counted(&self, ends: &[(&str, u64)], overdue: u64) -> Came {
        for result in RESULTS {
            let wanted = ends.iter().find(|(of, _)| *of == result).map_or(0, |(_, count)| *count);
            let found = self.count(result);
            if found != wanted {
                return Err(format!("{found} were counted as {result}, and {wanted} are"));
            }
        }
        let found = self.metric("cleat_controller_migrations_overdue ");
        match found == overdue {
            true => Ok(()),
            false => Err(format!("{found} are shown as overdue, and {overdue} are")),
        }
    }

    /// As many as that at most were counted as completed, in all lives of the controller together, and nothing else was: what
    /// was counted in a life that ended before it was noted is lost with it, and never counted twice.
    pub(super) fn completed_at_most(&self, most: u64) -> Came {
        let found = self.count("completed");
        if found > most {
            return Err(format!("{found} were counted, of {most}"));
        }
        self.counted(&[("completed", found)], 0)
    }

    /// These nodes are fenced from the volume, and have not been seen to hold nothing of it.
    pub(super) async fn fenced(&self, volume: VolumeIx, nodes: &[NodeIx]) -> Came {
        let wanted: Vec<_> = nodes.iter().map(|node| NODES[*node]).collect();
        self.until("who is fenced", 40_000, async |hand| {
            let info = hand.volume(volume).await?;
            let mut found: Vec<_> = info.fenced.iter().map(|fenced| fenced.node_id.as_str()).collect();
            found.sort_unstable();
            match found == wanted {
                true => Ok(()),
                false => Err(format!("{found:?}")),
            }
        })
        .await
    }

    /// The volume is on this node alone, by record, list and kernels; nothing waits, and nothing differs from
    /// the record but what a fenced node had.
    pub(super) async fn only_on(&self, volume: VolumeIx, node: Option<NodeIx>) -> Came {
        self.until("nothing left over", 25_000, async |hand| {
            let info = hand.volume(volume).await?;
            let at: Vec<_> =
                info.attachments.iter().map(|a| (a.node_id.as_str(), a.phase.as_str())).collect();
            let wanted: Vec<_> = node.map(|node| (NODES[node], "Ready")).into_iter().collect();
            if at != wanted || !info.waiting.is_empty() {
                return Err(format!("on record: {info:?}"));
            }
            if info.attachments.iter().any(|a| a.role != "primary") {
                return Err(format!("who has it is not its only holder: {:?}", info.attachments));
            }
            hand.world_agrees(volume, node)?;
            let request = proto::ListDriftRequest {};
            let mut drift = hand.ask(async |mut client| client.list_drift(request).await).await?.drift;
            // Of a node that is fenced, and was not heard since, that is all there is to say.
            drift.retain(|one| !info.fenced.iter().any(|fenced| fenced.node_id == one.node_id));
            match drift.is_empty() {
                true => Ok(()),
                false => Err(format!("drift: {drift:?}")),
            }
        })
        .await
    }

    fn world_agrees(&self, volume: VolumeIx, node: Option<NodeIx>) -> Came {
        let world = self.universe.lock();
        let listed = world.target.luns[volume].hosts();
        for (at, name) in NODES.iter().enumerate() {
            let (is_listed, holds) =
                (listed.contains(&host_nqn(at).as_str()), world.nodes[at].kernel.holds(volume));
            let has = Some(at) == node;
            if is_listed != has || (holds != has && !world.nodes[at].gone) {
                return Err(format!("{name}: on the list: {is_listed}, in its kernel: {holds}"));
            }
        }
        Ok(())
    }
}

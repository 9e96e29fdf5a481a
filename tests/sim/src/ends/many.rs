//! Many VMs at once.

use std::time::Duration;

use cleat_kubevirt::scenes::{Cue, Scene};
use cleat_kubevirt::script::{Disk, Step, VmPlan};
use futures_util::future::try_join_all;
use tokio::time::sleep;

use super::Came;
use super::hand::Hand;
use crate::world::{NODES, NodeIx, VolumeIx};

const VMS: usize = 10;
const C: NodeIx = 2;
/// No Publish waits for longer: as long as a source takes to let go of its volume, a request's limit and a retry.
const LONGEST_WAIT: u64 = 12_000;

/// The volume of a VM: those with an odd number may migrate.
fn volume_of(vm: usize) -> VolumeIx {
    2 * vm + 1
}

/// The node that the VMs run on is drained, and 5 s later the one that they go to: each moves twice, and its third node asks
/// for its volume while the first has it still.
pub(super) async fn two_drains_of_ten_vms_refuse_nobody_for_good(hand: Hand) -> Came {
    let plan = |vm: usize| {
        let disks = vec![Disk { claim: String::new(), hotplugged: false }];
        VmPlan { namespace: String::new(), name: vm.to_string(), disks }
    };
    let vms: Vec<VmPlan> = (0..VMS).map(plan).collect();
    let nodes = NODES.map(str::to_owned);
    let cues = Scene::TwoDrains.cues(&vms, &nodes).map_err(|error| error.to_string())?;
    for vm in 0..VMS {
        hand.universe.lock().kubevirt.add(volume_of(vm));
    }
    let lane = |vm: usize| {
        let cues: Vec<Cue> = cues.iter().filter(|cue| cue.vm == vm).cloned().collect();
        lane(hand.other(), vm, cues)
    };
    let waits = try_join_all((0..VMS).map(lane)).await?;
    for vm in 0..VMS {
        hand.ended(volume_of(vm), "completed", "source").await?;
        hand.only_on(volume_of(vm), Some(C)).await?;
    }
    hand.counted(&[("completed", 2 * VMS as u64)], 0)?;
    let longest = waits.into_iter().max().unwrap_or_default();
    hand.universe.lock().note(format_args!("the longest Publish took {longest} ms"));
    match longest <= LONGEST_WAIT {
        true => Ok(()),
        false => Err(format!("a Publish took {longest} ms")),
    }
}

/// One VM; how long the longest Publish for it took.
async fn lane(hand: Hand, vm: usize, cues: Vec<Cue>) -> Result<u64, String> {
    let volume = volume_of(vm);
    let (mut at, mut to): (NodeIx, NodeIx) = (0, 0);
    let (mut late, mut longest) = (0, 0);
    let mut letting_go: Vec<tokio::task::JoinHandle<()>> = Vec::new();
    let mut left = Vec::new();
    for Cue { at_ms, step, .. } in cues {
        let now = hand.now();
        sleep(Duration::from_millis((at_ms + late).saturating_sub(now))).await;
        hand.play(vm, &step)?;
        match &step {
            Step::LauncherRuns { .. } => {
                hand.publish(volume, at).await?;
                hand.universe.lock().open(at, volume);
            }
            Step::Evicted { to: node } => {
                to = NODES.iter().position(|name| name == node).ok_or("there is no such node")?;
            }
            Step::TargetPlaced => {
                let asked = hand.now();
                hand.publish(volume, to).await?;
                longest = longest.max(hand.now() - asked);
            }
            Step::Detected => hand.universe.lock().close(at, volume),
            Step::Switched => hand.universe.lock().open(to, volume),
            Step::Completed => left.push(std::mem::replace(&mut at, to)),
            Step::SourceEnds => {
                // The pod has ended; its volume goes some time after it, when the next migration may have begun.
                let (from, other) = (left.pop().ok_or("nothing was left")?, hand.other());
                letting_go.push(tokio::task::spawn_local(async move {
                    sleep(Duration::from_secs(2)).await;
                    other.unpublish(volume, from).await;
                }));
            }
            _ => {}
        }
        // What has taken longer than usual delays what follows of this VM.
        late = late.max(hand.now().saturating_sub(at_ms));
    }
    for gone in letting_go {
        gone.await.map_err(|error| error.to_string())?;
    }
    Ok(longest)
}

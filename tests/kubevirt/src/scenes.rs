//! Whole scenes: VMs that move from node to node, and what may become of that.
//!
//! In come VMs and nodes; out go [`Cue`]s: which step of which VM comes when. What holds: the times are usual ones and in order,
//! no VM waits for another one but where KubeVirt has it wait (it moves two at once from one node, and one that was evicted is
//! asked for again only where it runs).

use std::fmt;

use crate::script::{Step, VmPlan, migration_steps};

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// Each VM moves.
    Completes,
    /// So it does with a disk that came while it ran.
    Hotplugged,
    /// Somebody calls it off while the memory is copied.
    AbortedHalfWay,
    /// The target's pod dies while the memory is copied.
    TargetFails,
    /// It is to move on as soon as it has moved, to a third node; the first one has not let go of it.
    SecondAtOnce,
    /// It moves there and back.
    ThereAndBack,
    /// Its node is drained, and 5 s later the node that it goes to.
    TwoDrains,
}

/// A step of a VM, with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cue {
    /// In milliseconds from the beginning.
    pub at_ms: u64,
    /// Of which of the VMs.
    pub vm: usize,
    /// What comes.
    pub step: Step,
}

/// A scene that cannot be played with what was given for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotEnough {
    scene: Scene,
    lacks: &'static str,
}

impl fmt::Display for NotEnough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot play {}: it needs {}; name them", self.scene.name(), self.lacks)
    }
}

impl std::error::Error for NotEnough {}

/// From the beginning until the first node is drained: all VMs run by then.
const DRAINED_MS: u64 = 10_000;
/// Until the second one is.
const DRAINED_AGAIN_MS: u64 = DRAINED_MS + 5000;
/// So many VMs move from one node at once, and so long that takes.
const AT_ONCE: usize = 2;
const MOVES_MS: u64 = 15_000;

impl Scene {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Completes,
        Self::Hotplugged,
        Self::AbortedHalfWay,
        Self::TargetFails,
        Self::SecondAtOnce,
        Self::ThereAndBack,
        Self::TwoDrains,
    ];

    /// The name by which it is asked for.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Completes => "completes",
            Self::Hotplugged => "hotplugged",
            Self::AbortedHalfWay => "aborted-half-way",
            Self::TargetFails => "target-fails",
            Self::SecondAtOnce => "second-at-once",
            Self::ThereAndBack => "there-and-back",
            Self::TwoDrains => "two-drains",
        }
    }

    /// Its steps, in order. Each VM begins on the first node.
    ///
    /// # Errors
    /// There are not enough VMs or nodes for it.
    pub fn cues(self, vms: &[VmPlan], nodes: &[String]) -> Result<Vec<Cue>, NotEnough> {
        let not_enough = |lacks| NotEnough { scene: self, lacks };
        let [a, b, others @ ..] = nodes else { return Err(not_enough("two nodes")) };
        let goes_on = matches!(self, Self::SecondAtOnce | Self::TwoDrains);
        let c = match others.first() {
            None if goes_on => return Err(not_enough("three nodes")),
            third => third.unwrap_or(b),
        };
        let enough = if self == Self::TwoDrains { 2 } else { 1 };
        if vms.len() < enough {
            return Err(not_enough(if enough == 1 { "a VM" } else { "two VMs" }));
        }
        if self == Self::Hotplugged && !vms.iter().all(VmPlan::has_hotplugged) {
            return Err(not_enough("VMs with a hotplugged disk"));
        }
        let mut all = Vec::new();
        for (vm, plan) in vms.iter().enumerate() {
            let mut lane = Lane::begin(vm, plan, a);
            self.go(&mut lane, [a, b, c]);
            all.append(&mut lane.cues);
        }
        all.sort_by_key(|cue| cue.at_ms);
        Ok(all)
    }

    fn go(self, lane: &mut Lane, [a, b, c]: [&String; 3]) {
        let to = |node: &String| node.clone();
        match self {
            Self::Completes | Self::Hotplugged => {
                lane.add(Step::Asked { to: to(b) });
                lane.moves(&Step::Completed);
                lane.add(Step::SourceEnds);
            }
            Self::AbortedHalfWay => {
                lane.add(Step::Asked { to: to(b) });
                lane.moves(&Step::Began);
                lane.add(Step::AbortAsked);
                lane.add(Step::Aborted);
            }
            Self::TargetFails => {
                lane.add(Step::Asked { to: to(b) });
                lane.moves(&Step::Detected);
                lane.add(Step::TargetDied);
            }
            Self::SecondAtOnce => {
                lane.add(Step::Asked { to: to(b) });
                lane.moves(&Step::Completed);
                lane.moves_on(Step::Asked { to: to(c) });
            }
            Self::ThereAndBack => {
                for node in [b, a] {
                    lane.add(Step::Asked { to: to(node) });
                    lane.moves(&Step::Completed);
                    lane.add(Step::SourceEnds);
                }
            }
            Self::TwoDrains => {
                let waves = (lane.vm / AT_ONCE) as u64;
                lane.not_before(DRAINED_MS);
                lane.add(Step::Evicted { to: to(b) });
                lane.moves(&Step::Accepted);
                lane.not_before(DRAINED_MS + waves * MOVES_MS);
                lane.moves(&Step::Completed);
                lane.not_before(DRAINED_AGAIN_MS);
                lane.moves_on(Step::Evicted { to: to(c) });
            }
        }
    }
}

/// What one VM does.
struct Lane {
    vm: usize,
    at_ms: u64,
    cues: Vec<Cue>,
    /// Of the migration that was asked for.
    to_come: Vec<Step>,
    hotplugged: bool,
}

impl Lane {
    fn begin(vm: usize, plan: &VmPlan, node: &str) -> Self {
        let hotplugged = plan.has_hotplugged();
        let mut lane = Self { vm, at_ms: 0, cues: Vec::new(), to_come: Vec::new(), hotplugged };
        lane.add(Step::VmMade);
        lane.add(Step::LauncherMade);
        lane.add(Step::LauncherRuns { on: node.to_owned() });
        if hotplugged {
            lane.add(Step::Plugged);
        }
        lane
    }

    fn not_before(&mut self, at_ms: u64) {
        self.at_ms = self.at_ms.max(at_ms);
    }

    fn add(&mut self, step: Step) {
        if matches!(step, Step::Asked { .. } | Step::Evicted { .. }) {
            self.to_come = migration_steps(self.hotplugged);
            self.to_come.reverse();
        }
        self.at_ms += usual_wait_ms(&step);
        self.cues.push(Cue { at_ms: self.at_ms, vm: self.vm, step });
    }

    /// What comes of the migration that was asked for, up to that step.
    fn moves(&mut self, last: &Step) {
        while let Some(step) = self.to_come.pop() {
            let is_last = step == *last;
            self.add(step);
            if is_last {
                return;
            }
        }
    }

    /// The next migration is asked for before the VM's last node has let go of it.
    fn moves_on(&mut self, asked: Step) {
        self.add(asked);
        self.moves(&Step::Accepted);
        self.add(Step::SourceEnds);
        self.moves(&Step::Completed);
        self.add(Step::SourceEnds);
    }
}

/// How long it usually takes until a step comes, after the one before.
fn usual_wait_ms(step: &Step) -> u64 {
    match step {
        Step::VmMade => 0,
        Step::LauncherRuns { .. } | Step::TargetRuns | Step::Switched => 4000,
        Step::Plugged | Step::TargetPlugged | Step::Asked { .. } => 2000,
        Step::TargetReady | Step::Detected | Step::SourceEnds | Step::AbortAsked | Step::TargetDied => 1500,
        _ => 200,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::Disk;

    fn vms(count: usize) -> Vec<VmPlan> {
        let disk = |number: usize| Disk { claim: format!("disk-{number}"), hotplugged: false };
        let vm = |number| VmPlan {
            namespace: "vms".into(),
            name: format!("vm-{number}"),
            disks: vec![disk(number)],
        };
        (0..count).map(vm).collect()
    }

    fn nodes(count: usize) -> Vec<String> {
        ["a", "b", "c"].iter().take(count).map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_scene_says_what_it_lacks() {
        let lacks = |scene: Scene, vm_count, node_count| {
            let refused = scene.cues(&vms(vm_count), &nodes(node_count)).err();
            refused.map(|refused| refused.to_string()).unwrap_or_default()
        };
        assert_eq!(lacks(Scene::Completes, 1, 2), "");
        assert_eq!(lacks(Scene::Completes, 0, 2), "cannot play completes: it needs a VM; name them");
        assert!(lacks(Scene::ThereAndBack, 1, 1).contains("two nodes"));
        assert!(lacks(Scene::SecondAtOnce, 1, 2).contains("three nodes"));
        assert!(lacks(Scene::TwoDrains, 1, 3).contains("two VMs"));
        assert!(lacks(Scene::Hotplugged, 1, 2).contains("hotplugged disk"));
    }

    #[test]
    fn in_two_drains_ten_vms_move_twice_and_two_at_once() {
        let cues = Scene::TwoDrains.cues(&vms(10), &nodes(3)).unwrap_or_default();
        let mut moving = (0, 0);
        let mut evicted = Vec::new();
        for cue in &cues {
            let was_before = |one: &&Cue| one.vm == cue.vm && one.at_ms < cue.at_ms;
            let is_second = cues.iter().filter(was_before).any(|one| one.step == Step::Completed);
            let count = if is_second { &mut moving.1 } else { &mut moving.0 };
            match &cue.step {
                Step::TargetMade => *count += 1,
                Step::Completed => *count -= 1,
                Step::Evicted { to } => evicted.push((to.as_str(), cue.at_ms)),
                _ => {}
            }
            assert!(moving.0 <= 2 && moving.1 <= 2, "{cue:?}: {moving:?}");
        }
        let to = |node: &str| evicted.iter().filter(|(to, _)| *to == node).count();
        assert_eq!((to("b"), to("c"), moving), (10, 10, (0, 0)));
        assert!(cues.is_sorted_by_key(|cue| cue.at_ms));
    }
}

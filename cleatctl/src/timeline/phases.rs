//! What goes on between two steps of a migration: a phase, with its name for people.
//!
//! Comes in: the steps of a record. Goes out: phases without gaps, from the first step to the last. A step of a name that
//! is not known here, from a controller that is newer, is a phase of that name.

use cleat_proto::cleat::v1::MigrationStep;

use super::{DONE, TIMED_OUT};

/// The time from one step to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Phase {
    /// The step with which it began.
    pub(crate) step: String,
    pub(crate) from: u64,
    /// `None` as long as it goes on.
    pub(crate) to: Option<u64>,
}

/// What is known of a phase before it happens.
struct Kind {
    step: &'static str,
    name: &'static str,
    letter: char,
    words: &'static str,
}

const fn kind(step: &'static str, name: &'static str, letter: char, words: &'static str) -> Kind {
    Kind { step, name, letter, words }
}

const KINDS: [Kind; 8] = [
    kind("granted", "allow", 'a', "the RDS lets the target in"),
    kind("target_connecting", "connect", 'c', "the target connects its paths"),
    kind(
        "target_connected",
        "check",
        'k',
        "the target proves that the device is the right one and can be used",
    ),
    kind("target_ready", "move", 'm', "both nodes have it, and the VM moves"),
    kind("switchover", "leave", 'l', "the VM runs on the target, and the source still has it"),
    kind("releasing", "detach", 'd', "one of the two nodes detaches"),
    kind("released", "prove", 'p', "it is being proven that that node cannot write any more"),
    kind("evidence", "end", 'e', "the record of it is ended"),
];

impl Phase {
    fn kind(&self) -> Option<&'static Kind> {
        KINDS.iter().find(|kind| kind.step == self.step)
    }

    /// Its name; that of its step where it has none of its own.
    pub(crate) fn name(&self) -> &str {
        self.kind().map_or(&self.step, |kind| kind.name)
    }

    /// The letter that stands for it in a drawing.
    pub(crate) fn letter(&self) -> char {
        self.kind().map_or('?', |kind| kind.letter)
    }

    /// Its place in the order in which they come.
    pub(crate) fn rank(&self) -> usize {
        KINDS.iter().position(|kind| kind.step == self.step).unwrap_or(KINDS.len())
    }

    /// What goes on in it.
    pub(crate) fn words(&self) -> &'static str {
        self.kind().map_or("something that this cleatctl does not know", |kind| kind.words)
    }

    /// Whether it is the VM that takes this time, and not the storage.
    pub(crate) fn is_the_vms(&self) -> bool {
        matches!(self.step.as_str(), "target_ready" | "switchover")
    }

    /// For how long it lasted, or has lasted by now.
    pub(crate) fn lasts(&self, until: u64) -> u64 {
        self.to.unwrap_or(until).saturating_sub(self.from)
    }
}

/// The phases between these steps; the last one goes on unless the migration has ended.
pub(super) fn of(steps: &[MigrationStep], ended: Option<u64>) -> Vec<Phase> {
    let mut phases: Vec<Phase> = Vec::new();
    let mut moment = 0;
    for MigrationStep { name, at_unix_ms, .. } in steps.iter().filter(|step| step.name != TIMED_OUT) {
        moment = moment.max(*at_unix_ms);
        if let Some(before) = phases.last_mut() {
            before.to.get_or_insert(moment);
        }
        if name != DONE {
            phases.push(Phase { step: name.clone(), from: moment, to: None });
        }
    }
    if let (Some(last), Some(ended)) = (phases.last_mut(), ended) {
        last.to.get_or_insert(ended.max(last.from));
    }
    phases
}

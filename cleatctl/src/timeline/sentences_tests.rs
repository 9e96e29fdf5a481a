//! What is said of each end, and of whom it is said that he cannot write.

use super::sentences;
use super::tests::{drawn, left, of_vm};

#[test]
fn each_result_is_said_in_words_with_who_has_it_now() {
    for (result, side, expected) in [
        (
            "completed",
            "source",
            "Completed: node worker-2 has it, and node worker-1 cannot write to it any more.",
        ),
        (
            "rolled_back",
            "target",
            "Rolled back: it stays with node worker-1; node worker-2 was ready and has given it up.",
        ),
        (
            "failed",
            "target",
            "Failed: it stays with node worker-1; node worker-2 was not seen to become ready.",
        ),
        (
            "failed",
            "source",
            "Failed: node worker-1 gave it up before the VM had moved; node worker-2 has it.",
        ),
        (
            "timed_out",
            "source",
            "Timed out: it took longer than its time limit, and has ended: node worker-2 has it, and node worker-1 \
             cannot write to it any more.",
        ),
        (
            "unattributed",
            "target",
            "Ended: it stays with node worker-1, and node worker-2 cannot write to it any more.",
        ),
        ("parked", "", "The controller says: parked."),
    ] {
        assert_eq!(outcome(result, side, &[]), expected, "{result} {side}");
    }
}

/// What is said first of a migration that has ended after these steps.
fn outcome(result: &str, side: &str, steps: &[(&str, u64)]) -> String {
    let steps = [&[("granted", 0)][..], steps, &[("done", 10)]].concat();
    let record = left(of_vm("pvc-a", result, &steps), side);
    sentences::summary(&drawn(&[record], &[], "web", 0)).remove(0)
}

#[test]
fn without_a_side_that_left_no_node_is_said_to_be_off() {
    for (result, expected) in [
        (
            "completed",
            "Completed: the VM has moved to node worker-2; node worker-1 may have the volume still.",
        ),
        (
            "rolled_back",
            "Rolled back: the VM stays on node worker-1; node worker-2 may have the volume still.",
        ),
        ("failed", "Failed: both nodes may have the volume still."),
        ("timed_out", "Timed out: it took longer than its time limit."),
        ("unattributed", "Ended."),
    ] {
        assert_eq!(outcome(result, "", &[("target_ready", 5)]), expected, "{result}");
    }
    // Only what is said of the side that left says that it cannot write.
    for result in ["completed", "rolled_back", "failed", "timed_out", "unattributed", "parked"] {
        for side in ["", "neither"] {
            let said = outcome(result, side, &[("target_ready", 5), ("switchover", 7)]);
            let off = ["cannot write", "given it up", "gave it up", "stays with"];
            assert!(!off.iter().any(|words| said.contains(words)), "{result} {side:?}: {said}");
        }
    }
}

#[test]
fn a_target_that_is_gone_after_the_switchover_had_the_vm() {
    let [ready, switchover] = [("target_ready", 3), ("switchover", 5)];
    assert_eq!(
        outcome("failed", "target", &[ready, switchover]),
        "Failed: the VM had moved to node worker-2, which cannot write to it any more; node worker-1 still has it, without \
         the VM."
    );
    // A switchover that was heard of too late is no step.
    assert_eq!(
        outcome("failed", "target", &[ready]),
        "Failed: node worker-2 was ready and cannot write to it any more, and the VM may have been there; node worker-1 has \
         it."
    );
}

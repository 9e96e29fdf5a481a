//! What an abort that waits does not wait for. Found by the model: a node had detached by itself, and so taken its key
//! off, when the preemption came, and what a cut before that had left on its way landed after the "proof".

use crate::core::fence_tests::{asked, overdue};
use crate::core::tests::*;
use crate::*;

fn aborting() -> Harness {
    shared(TargetAbilities { reservations: ReservationAbility::AbortWaits, export_drains: false, ..able() })
}

/// The list, the preemption, the cut: all of them succeed.
fn goes_through(b: &mut Harness, registered: bool) {
    b.rds(Ok(()));
    let keys: Vec<u64> = b.core.volumes[&v()].attachments.iter().map(|a| a.epoch.reservation_key()).collect();
    let aborted = if registered { vec![keys[0]] } else { vec![] };
    b.agent(Outcome::Preempted { left: vec![keys[1]], aborted });
    assert_eq!(asked(b), "hide");
    b.rds(Ok(()));
}

#[test]
fn an_abort_does_not_speak_for_a_path_that_broke_before_it() {
    let mut b = aborting();
    for phase in [ObservedPhase::Degraded, ObservedPhase::Ready] {
        b.says("a", b.observed(phase));
    }
    b.silent("a");
    b.fence(99, "a");
    goes_through(&mut b, true);
    assert!(b.reply(RequestId(99)).is_none(), "what was on the broken path may still land");
    let evidence = b.core.volumes[&v()].attachments[0].evidence().cloned().expect("a proof");
    assert!(matches!(evidence.drained, Drained::Bound { .. }), "{evidence:?}");
}

#[test]
fn a_victim_that_was_not_registered_is_not_drained_by_its_preemption() {
    for registered in [false, true] {
        let mut b = aborting();
        overdue(&mut b, "a");
        goes_through(&mut b, registered);
        let record = &b.core.volumes[&v()];
        let evidence = record.attachments[0].evidence().or(record.past_evidence.first()).expect("a proof");
        let bound = matches!(evidence.drained, Drained::Bound { .. });
        assert_eq!(bound, !registered, "{evidence:?}");
    }
}

#[test]
fn an_abort_does_not_count_once_the_node_that_preempted_is_going() {
    let mut b = aborting();
    overdue(&mut b, "a");
    b.rds(Ok(()));
    let keys: Vec<u64> = b.core.volumes[&v()].attachments.iter().map(|a| a.epoch.reservation_key()).collect();
    b.agent(Outcome::Preempted { left: vec![keys[1]], aborted: vec![keys[0]] });
    let hide = b.rds_asked().expect("the export is to go off").0;
    b.unpublish("bb");
    b.event(Event::RdsDone { operation: hide, result: Ok(()) });
    let evidence = b.core.volumes[&v()].attachments[0].evidence().cloned().expect("a proof");
    let bound = matches!(evidence.drained, Drained::Bound { .. });
    assert!(bound, "with nobody registered the target takes what node a sends: {evidence:?}");
}

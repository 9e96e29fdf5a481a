//! What an abort that waits does not wait for. Found by the model: a node had detached by itself, and so taken its key
//! off, when the preemption came, and what a cut before that had left on its way landed after the "proof".

use crate::core::fence_tests::{able, asked, bench};
use crate::core::tests::{Bench, n, v};
use crate::*;

fn aborting() -> Bench {
    let mut b = bench(Target { reservations: Reservations::AbortWaits, export_drains: false, ..able() });
    b.attach("a", Access::RwxBlock);
    b.attach("bb", Access::RwxBlock);
    b
}

/// The list, the preemption, the cut: all of them succeed.
fn goes_through(b: &mut Bench) {
    b.rds(Ok(()));
    let survivor = b.core.volumes[&v()].attachments[1].epoch.reservation_key();
    b.agent(Outcome::Preempted { left: vec![survivor] });
    assert_eq!(asked(b), "hide");
    b.rds(Ok(()));
}

#[test]
fn an_abort_does_not_speak_for_a_path_that_broke_before_it() {
    let mut b = aborting();
    for phase in [ObservedPhase::Degraded, ObservedPhase::Ready] {
        let (session, observed) = (b.session("a"), b.observed(phase));
        b.event(Event::Delta { node: n("a"), session, observed });
    }
    b.silent("a");
    b.event(Event::Fence {
        request: RequestId(99),
        volume: v(),
        node: n("a"),
        by: "a person".into(),
        reason: "a test".into(),
    });
    goes_through(&mut b);
    assert!(b.reply(RequestId(99)).is_none(), "what was on the broken path may still land");
    let evidence = b.core.volumes[&v()].attachments[0].evidence().cloned().expect("a proof");
    assert!(matches!(evidence.drained, Drained::Bound { .. }), "{evidence:?}");
}

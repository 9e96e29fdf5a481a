//! What the device on one node is held against.

use super::super::testing::*;
use crate::*;

const SHOWN: DeviceShown = DeviceShown { size_bytes: 1 << 30, block_size_bytes: Some(512), read_only: false };

fn proven(shown: Option<DeviceShown>) -> Outcome {
    Outcome::Ready { identity: namespace(1), shown }
}

/// Node a has the volume, and its device was this.
fn source(shown: Option<DeviceShown>) -> Harness {
    let mut b = bench(able());
    b.publish("a", Access::RwxBlock);
    b.rds(Ok(()));
    b.agent(proven(shown));
    assert_eq!(b.phase("a"), Some("Ready"));
    b
}

/// The volume is published to node bb, whose device is this.
fn target(b: &mut Harness, shown: Option<DeviceShown>) -> RequestId {
    let request = b.publish("bb", Access::RwxBlock);
    b.rds(Ok(()));
    b.agent(proven(shown));
    request
}

fn is_published(b: &Harness, request: RequestId) -> bool {
    matches!(b.reply(request), Some(Ok(Reply::Published(_))))
}

fn differs(b: &Harness, request: RequestId) -> DeviceDifference {
    let Refusal::NotReady { node, unready, .. } = b.refusal(request) else { panic!("{:?}", b.effects) };
    let NodeTrouble::OtherDevice { node: other, difference } = unready else { panic!("{unready:?}") };
    assert_eq!((node, other), (n("bb"), n("a")));
    difference
}

#[test]
fn a_target_whose_device_differs_is_refused_by_the_clause() {
    let grown = DeviceShown { size_bytes: 2 << 30, ..SHOWN };
    let read_only = DeviceShown { read_only: true, ..SHOWN };
    let blocks = DeviceShown { block_size_bytes: Some(4096), ..SHOWN };
    for (found, difference, clause) in [
        (grown, DeviceDifference::Size { found: 2 << 30, other: 1 << 30 }, "size"),
        (read_only, DeviceDifference::ReadOnly { found: true }, "read-only"),
        (blocks, DeviceDifference::BlockSize { found: 4096, other: 512 }, "block-size"),
    ] {
        let mut b = source(Some(SHOWN));
        let request = target(&mut b, Some(found));
        assert_eq!((differs(&b, request), difference.clause()), (difference, clause));
        assert_eq!((b.phase("a"), b.phase("bb")), (Some("Ready"), Some("Draining")));
        let of_source = |e: &Effect| matches!(e, Effect::Direct { node, .. } if *node == n("a"));
        assert!(!b.effects.iter().any(of_source), "{clause}: {:?}", b.effects);
    }
}

#[test]
fn what_one_side_does_not_know_differs_in_nothing() {
    let no_blocks = Some(DeviceShown { block_size_bytes: None, ..SHOWN });
    let other_blocks = Some(DeviceShown { block_size_bytes: Some(4096), ..SHOWN });
    for (one, other) in [
        (Some(SHOWN), Some(SHOWN)),
        (None, Some(SHOWN)),
        (Some(SHOWN), None),
        (None, None),
        (no_blocks, other_blocks),
        (other_blocks, no_blocks),
    ] {
        let mut b = source(one);
        let request = target(&mut b, other);
        assert!(is_published(&b, request), "{one:?} {other:?}: {:?}", b.effects);
    }
}

#[test]
fn a_source_that_was_grown_is_as_its_agent_reports_it() {
    let grown = Some(DeviceShown { size_bytes: 2 << 30, ..SHOWN });
    for (reported, phase, is_same) in [
        (grown, ObservedPhase::Ready, true),
        (grown, ObservedPhase::Degraded, true),
        (grown, ObservedPhase::Lost, false),
        (None, ObservedPhase::Ready, false),
    ] {
        let mut b = source(Some(SHOWN));
        b.says("a", Observed { shown: reported, ..b.observed(phase) });
        let request = target(&mut b, grown);
        assert_eq!(is_published(&b, request), is_same, "{reported:?} {phase:?}: {:?}", b.effects);
    }
    let mut b = source(Some(SHOWN));
    let of_another_grant = Some(Epoch { term: 6, seq: 1 });
    b.says("a", Observed { shown: grown, epoch: of_another_grant, ..b.observed(ObservedPhase::Ready) });
    let request = target(&mut b, grown);
    assert!(!is_published(&b, request), "{:?}", b.effects);
}

#[test]
fn what_was_proven_is_known_after_a_restart() {
    let mut b = source(Some(SHOWN));
    b.restart();
    let held = b.observed(ObservedPhase::Ready);
    b.up("a", "boot", vec![held]);
    b.up("bb", "boot", vec![]);
    let request = target(&mut b, Some(DeviceShown { read_only: true, ..SHOWN }));
    assert_eq!(differs(&b, request), DeviceDifference::ReadOnly { found: true });
}

#[test]
fn a_record_from_before_is_one_of_which_nothing_is_known() {
    let b = source(Some(SHOWN));
    let mut written = serde_json::to_value(&b.stored[&v()]).expect("a record");
    let attachment = written["attachments"][0].as_object_mut().expect("an attachment");
    let shown = serde_json::json!({"sizeBytes": 1_u64 << 30, "blockSizeBytes": 512, "readOnly": false});
    assert_eq!(attachment.remove("shown"), Some(shown));
    let before: VolumeRecord = serde_json::from_value(written).expect("an older record");
    assert_eq!(before.attachments[0].shown, None);
}

#[test]
fn who_has_it_alone_or_after_one_that_leaves_is_held_against_nobody() {
    let grown = Some(DeviceShown { size_bytes: 2 << 30, ..SHOWN });
    let mut b = source(Some(SHOWN));
    b.detach("a", "live");
    b.rds_does_all();
    let request = target(&mut b, grown);
    assert!(is_published(&b, request), "{:?}", b.effects);
    let mut b = source(Some(SHOWN));
    let request = b.publish("bb", Access::RwxBlock);
    b.rds(Ok(()));
    let asked = b.effects.clone();
    b.unpublish("a");
    b.effects = asked;
    b.agent(proven(grown));
    assert!(is_published(&b, request), "{:?}", b.effects);
}

#[test]
fn one_that_was_proven_before_keeps_its_grant_and_is_tried_again() {
    let mut b = source(Some(SHOWN));
    let request = target(&mut b, Some(SHOWN));
    assert!(is_published(&b, request));
    b.says("bb", observed_of(ObservedPhase::Absent));
    assert_eq!(b.phase("bb"), Some("Connecting"));
    b.agent(proven(Some(DeviceShown { size_bytes: 2 << 30, ..SHOWN })));
    assert_eq!((b.phase("a"), b.phase("bb")), (Some("Ready"), Some("Connecting")));
    b.pass(b.config.retry_ms);
    b.agent(proven(Some(SHOWN)));
    assert_eq!(b.phase("bb"), Some("Ready"));
}

#[test]
fn an_nguid_that_comes_later_is_pinned_and_one_that_is_not_said_is_kept() {
    let with = |nguid: Option<&str>| {
        let nguid = nguid.map(|text| Nguid::parse(text).expect("an NGUID"));
        Outcome::Ready { identity: DeviceIdentity { nguid, ..namespace(1) }, shown: None }
    };
    let (one, other) = ("000000000000000000000000000000a1", "000000000000000000000000000000a2");
    let mut b = source(None);
    for (found, is_same) in [(Some(one), true), (None, true), (Some(other), false), (Some(one), true)] {
        let request = b.publish("bb", Access::RwxBlock);
        b.rds(Ok(()));
        b.agent(with(found));
        assert_eq!(is_published(&b, request), is_same, "{found:?}: {:?}", b.effects);
        if is_same {
            b.unpublish("bb");
        }
        b.agent(absent("live"));
        b.rds_does_all();
        assert_eq!(b.phase("bb"), None);
    }
}

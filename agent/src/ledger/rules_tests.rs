//! Behaviour of the ledger's rules, by example and by property.

use cleat_host::readiness::PathPolicy;
use proptest::prelude::*;

use super::*;

const BOOT: &str = "boot-1";

fn epoch(seq: u64) -> Epoch {
    Epoch::new(7, seq).unwrap()
}

fn portal(n: u8) -> Portal {
    Portal::parse(&format!("10.0.{n}.1:4420")).unwrap()
}

fn grant(portals: &[u8]) -> Grant {
    Grant {
        portals: portals.iter().copied().map(portal).collect(),
        identity: Default::default(),
        size_bytes: 0,
        read_only: false,
        policy: PathPolicy::Any,
        reserve: None,
    }
}

fn recorded(ruling: AttachRuling) -> LedgerEntry {
    match ruling {
        AttachRuling::Record(entry) => *entry,
        other => panic!("not recorded: {other:?}"),
    }
}

fn attached(seq: u64, portals: &[u8]) -> LedgerEntry {
    recorded(on_attach(None, epoch(seq), &grant(portals), None, BOOT))
}

fn present(n: u8) -> Present {
    Present { controller: format!("nvme{n}"), portal: portal(n).to_string() }
}

fn states(entry: &LedgerEntry) -> Vec<&str> {
    entry.deletions.iter().map(|deletion| deletion.state.as_str()).collect()
}

#[test]
fn a_repeated_attach_needs_no_second_record() {
    let entry = attached(1, &[1, 2]);
    assert_eq!(on_attach(Some(&entry), epoch(1), &grant(&[1, 2]), None, BOOT), AttachRuling::Recorded);
}

#[test]
fn an_attach_that_arrives_after_its_own_detach_is_of_the_past() {
    let entry = ending(Some(&attached(4, &[1])), epoch(4), &[present(1)], BOOT);
    let ruling = on_attach(Some(&entry), epoch(4), &grant(&[1]), None, BOOT);
    assert_eq!(ruling, AttachRuling::Stale(Stale { highest: epoch(4), ended: true }));
}

#[test]
fn a_detach_repeated_after_a_crash_passes_and_says_what_it_cannot_know() {
    let begun = ending(Some(&attached(4, &[1, 2])), epoch(4), &[present(1), present(2)], BOOT);
    assert_eq!(may_end(Some(&begun), epoch(4)), Ok(()));
    // The agent died; controller 1 was deleted, controller 2 is still there.
    let mut again = ending(Some(&begun), epoch(4), &[present(2)], BOOT);
    note_deleted(
        &mut again,
        &Deletion { controller: "nvme2".into(), portal: portal(2).to_string(), state: "live".into() },
    );
    assert_eq!(states(&again), ["unknown", "live"]);
}

#[test]
fn a_controller_that_the_kernel_gave_up_is_named_as_gone() {
    let entry = ending(Some(&attached(4, &[1, 2])), epoch(4), &[present(1)], BOOT);
    assert_eq!(states(&entry), ["gone", "unknown"]);
    let asked_again = ending(Some(&entry), epoch(4), &[], BOOT);
    assert_eq!(states(&asked_again), ["gone", "unknown"]);
}

#[test]
fn what_another_boot_held_is_not_claimed_by_this_one() {
    let entry = ending(Some(&attached(4, &[1, 2])), epoch(4), &[], "boot-2");
    assert!(entry.deletions.is_empty());
    assert!(entry.proof_of_absence("boot-2").is_some());
    assert!(entry.proof_of_absence("boot-1").is_none());
}

#[test]
fn the_end_of_a_grant_never_seen_is_recorded_as_ended() {
    let entry = ending(None, epoch(9), &[], BOOT);
    assert!(entry.ended);
    let late = on_attach(Some(&entry), epoch(9), &grant(&[1]), None, BOOT);
    assert!(matches!(late, AttachRuling::Stale(_)), "{late:?}");
}

#[test]
fn one_epoch_may_change_its_paths_but_not_its_device_nor_its_access() {
    let entry = attached(1, &[1]);
    assert_eq!(
        recorded(on_attach(Some(&entry), epoch(1), &grant(&[1, 2]), None, BOOT)).may_have_written.len(),
        2
    );
    let read_only = Grant { read_only: true, ..grant(&[1]) };
    let ruling = on_attach(Some(&entry), epoch(1), &read_only, None, BOOT);
    assert!(matches!(&ruling, AttachRuling::Conflict(text) if text.contains("read_only")), "{ruling:?}");
}

/// One message, as it may come in any order and number.
#[derive(Debug, Clone)]
enum Message {
    Attach(u64),
    End(u64),
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![(1u64..6).prop_map(Message::Attach), (1u64..6).prop_map(Message::End)]
}

proptest! {
    /// Whatever comes in whatever order: the epoch never goes down, an ended epoch admits nothing more, and only
    /// the highest epoch ever connects or deletes.
    #[test]
    fn no_order_of_messages_lets_an_old_grant_act(messages in prop::collection::vec(message(), 0..40)) {
        let mut known: Option<LedgerEntry> = None;
        let mut ended = std::collections::BTreeSet::new();
        for message in messages {
            let before = known.clone();
            match message {
                Message::Attach(seq) => match on_attach(known.as_ref(), epoch(seq), &grant(&[1]), None, BOOT) {
                    AttachRuling::Record(entry) => known = Some(*entry),
                    AttachRuling::Recorded => {}
                    AttachRuling::Stale(_) => continue,
                    AttachRuling::Conflict(text) => prop_assert!(false, "{}", text),
                },
                Message::End(seq) => match may_end(known.as_ref(), epoch(seq)) {
                    Ok(()) => {
                        known = Some(ending(known.as_ref(), epoch(seq), &[], BOOT));
                        ended.insert(seq);
                    }
                    Err(_) => continue,
                },
            }
            let now = known.clone().unwrap();
            if let Some(before) = before {
                prop_assert!(now.epoch >= before.epoch);
                prop_assert!(now.epoch > before.epoch || now.ended >= before.ended);
            }
            prop_assert!(now.ended || !ended.iter().any(|seq| epoch(*seq) == now.epoch));
        }
    }

    /// However often a Detach is interrupted and asked again, no portal that may have been written over is missing
    /// from what it answers, and only what was seen live is called live.
    #[test]
    fn an_interrupted_detach_forgets_no_portal(crashes in prop::collection::vec((0u8..4, any::<bool>()), 0..6)) {
        let mut left: Vec<u8> = vec![1, 2, 3];
        let mut entry = attached(1, &[1, 2, 3]);
        let mut noted = Vec::new();
        for (deleted, dies) in crashes {
            let there: Vec<_> = left.iter().copied().map(present).collect();
            entry = ending(Some(&entry), epoch(1), &there, BOOT);
            for _ in 0..deleted {
                let Some(n) = left.pop() else { break };
                if !dies {
                    note_deleted(&mut entry, &Deletion {
                        controller: format!("nvme{n}"),
                        portal: portal(n).to_string(),
                        state: "live".into(),
                    });
                    noted.push(portal(n).to_string());
                }
            }
            for n in 1..=3 {
                prop_assert!(entry.deletions.iter().any(|deletion| deletion.portal == portal(n).to_string()));
            }
            for deletion in &entry.deletions {
                prop_assert!(deletion.state != "live" || noted.contains(&deletion.portal));
            }
        }
    }
}

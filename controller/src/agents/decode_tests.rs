#![allow(clippy::unwrap_used)]

use cleat_proto::SESSION_PROTOCOL;

use super::*;

const PREFIX: &str = "nqn.2026-01.io.cleat:";

fn prefix() -> NqnPrefix {
    NqnPrefix::parse(PREFIX).unwrap()
}

fn good_hello() -> proto::Hello {
    proto::Hello {
        protocol: SESSION_PROTOCOL,
        node_id: "node-a".into(),
        identity: Some(proto::NodeIdentity {
            host_nqn: "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-00000000000a".into(),
            host_id: "00000000-0000-0000-0000-00000000000a".into(),
            storage_addresses: vec!["10.0.0.1".into(), "fd00:0:0::1".into()],
            boot_id: "0b7c1d1e-9f59-4c3a-8a43-6c0a3a3a4c5d".into(),
        }),
        capabilities: Some(proto::Capabilities { nqn_prefix: PREFIX.into(), ..Default::default() }),
        agent_version: "1".into(),
        max_volumes: 0,
    }
}

fn ready_state() -> proto::VolumeState {
    proto::VolumeState {
        volume_id: "v".into(),
        epoch: Some(proto::Epoch { term: 3, seq: 4 }),
        phase: proto::volume_state::Phase::Ready.into(),
        identity: Some(proto::Identity {
            namespace_uuid: "0000000000000000000000000000000b".into(),
            ..Default::default()
        }),
        paths: ["live", "connecting", "live"]
            .map(|state| proto::Path { state: state.into(), ..Default::default() })
            .into(),
        ..Default::default()
    }
}

fn done(outcome: proto::directive_result::Outcome) -> proto::DirectiveResult {
    proto::DirectiveResult {
        operation_id: "op-3-9".into(),
        volume_id: "v".into(),
        epoch: Some(proto::Epoch { term: 3, seq: 4 }),
        outcome: Some(outcome),
    }
}

#[test]
fn a_good_hello_is_read_with_addresses_in_one_spelling() {
    let introduced = hello(good_hello(), &prefix()).unwrap();
    assert_eq!(introduced.node.as_str(), "node-a");
    let addresses = ["10.0.0.1", "fd00::1"].map(|text| StorageAddress::parse(text).unwrap());
    assert_eq!(introduced.identity.storage_addresses, addresses);
}

#[test]
fn a_hello_of_a_version_one_apart_is_taken() {
    for protocol in [SESSION_PROTOCOL - 1, SESSION_PROTOCOL, SESSION_PROTOCOL + 1] {
        let introduced = hello(proto::Hello { protocol, ..good_hello() }, &prefix()).unwrap();
        assert_eq!(introduced.protocol, protocol);
    }
}

#[test]
fn a_bad_hello_is_refused_with_the_field_and_the_value() {
    type Spoil = fn(&mut proto::Hello);
    let identity = |h: &mut proto::Hello| h.identity.clone().unwrap();
    let _ = identity;
    let cases: &[(Spoil, &[&str])] = &[
        (
            |h| h.protocol = 7,
            &["protocol 7", "speaks 3 and works with 2 to 4", "upgrade the controller", "agent 1,"],
        ),
        (|h| h.protocol = 0, &["protocol 0", "upgrade the agent"]),
        // Whatever else there is that this version cannot read.
        (
            |h| (h.protocol, h.identity) = (SESSION_PROTOCOL + 2, None),
            &["protocol 5", "upgrade the controller"],
        ),
        (|h| h.node_id = "Node A".into(), &["hello.node_id", "Node A"]),
        (|h| h.identity = None, &["hello.identity"]),
        (|h| h.capabilities = None, &["hello.capabilities"]),
        (|h| h.capabilities.as_mut().unwrap().nqn_prefix = "nqn.other:".into(), &["nqn.other:", PREFIX]),
        (|h| h.identity.as_mut().unwrap().host_nqn = "x".into(), &["host_nqn", "\"x\""]),
        (|h| h.identity.as_mut().unwrap().host_id = "x".into(), &["host_id", "\"x\""]),
        (|h| h.identity.as_mut().unwrap().host_id = Uuid::nil().to_string(), &["host_id", "all zeros"]),
        (|h| h.identity.as_mut().unwrap().storage_addresses[0] = "10.0.0.1:1".into(), &["10.0.0.1:1"]),
        (|h| h.identity.as_mut().unwrap().boot_id = " ".into(), &["boot_id", "a UUID"]),
        (|h| h.identity.as_mut().unwrap().boot_id = "boot-1".into(), &["boot_id", "boot-1"]),
        (
            |h| h.identity.as_mut().unwrap().storage_addresses = vec!["10.0.0.1".into(); 17],
            &["storage_addresses", "17", "at most 16"],
        ),
    ];
    for (spoil, words) in cases {
        let mut spoiled = good_hello();
        spoil(&mut spoiled);
        let error = hello(spoiled, &prefix()).unwrap_err().to_string();
        for word in *words {
            assert!(error.contains(word), "{error} should name {word}");
        }
    }
}

#[test]
fn only_live_paths_count() {
    let observed = volume_state(&ready_state()).unwrap();
    assert_eq!((observed.live_paths, observed.phase), (2, ObservedPhase::Ready));
    assert_eq!(observed.epoch, Some(Epoch { term: 3, seq: 4 }));
}

#[test]
fn a_phase_that_is_not_known_is_not_taken_for_absent() {
    for phase in [0, 99] {
        let state = proto::VolumeState { phase, ..ready_state() };
        assert!(volume_state(&state).is_err(), "{phase}");
    }
}

#[test]
fn an_inventory_names_each_volume_once() {
    let twice = proto::Inventory { volumes: vec![ready_state(), ready_state()] };
    assert!(inventory(twice).unwrap_err().to_string().contains("each volume once"));
}

#[test]
fn ready_without_an_identity_is_not_ready() {
    use proto::directive_result::Outcome as Said;
    let ready = |state| result(done(Said::Ready(proto::ReadyOutcome { state, times: None })));
    let good = ready(Some(ready_state())).unwrap();
    let Outcome::Ready { identity, .. } = good.outcome else { panic!("{:?}", good.outcome) };
    assert_eq!(identity.namespace_uuid.to_string(), "00000000-0000-0000-0000-00000000000b");
    let zero = proto::Identity { namespace_uuid: Uuid::nil().to_string(), ..Default::default() };
    for identity in [None, Some(proto::Identity::default()), Some(zero)] {
        let unknown = ready(Some(proto::VolumeState { identity, ..ready_state() })).unwrap();
        assert!(
            matches!(&unknown.outcome, Outcome::Failed { clause, nothing_left: false, .. } if clause == "namespace-identity"),
            "{unknown:?}"
        );
    }
    let of_another = proto::VolumeState { volume_id: "w".into(), ..ready_state() };
    for bad in [None, Some(of_another)] {
        assert!(ready(bad).is_err());
    }
}

#[test]
fn a_device_is_as_its_agent_says_and_unknown_where_it_says_nothing() {
    use proto::directive_result::Outcome as Said;
    let said = proto::Identity {
        size_bytes: 1 << 30,
        block_size_bytes: 4096,
        read_only: true,
        ..ready_state().identity.unwrap()
    };
    let all = DeviceShown { size_bytes: 1 << 30, block_size_bytes: Some(4096), read_only: true };
    for (identity, known) in [
        (said.clone(), Some(all)),
        (
            proto::Identity { block_size_bytes: 0, ..said.clone() },
            Some(DeviceShown { block_size_bytes: None, ..all }),
        ),
        (proto::Identity { size_bytes: 0, ..said }, None),
    ] {
        let state = proto::VolumeState { identity: Some(identity), ..ready_state() };
        assert_eq!(volume_state(&state).unwrap().shown, known);
        let ready = result(done(Said::Ready(proto::ReadyOutcome { state: Some(state), times: None })));
        let Outcome::Ready { shown, .. } = ready.unwrap().outcome else { panic!("it is ready") };
        assert_eq!(shown, known);
    }
    assert_eq!(volume_state(&proto::VolumeState { identity: None, ..ready_state() }).unwrap().shown, None);
}

#[test]
fn results_keep_what_proves_them() {
    use proto::directive_result::Outcome as Said;
    let absent = result(done(Said::Absent(proto::AbsentOutcome {
        deleted: vec![proto::DeletedController {
            controller: "nvme3".into(),
            portal: "10.0.0.1:4420".into(),
            state_at_deletion: "connecting".into(),
        }],
        times: None,
    })))
    .unwrap();
    let Outcome::Absent(absence) = absent.outcome else { panic!("{:?}", absent.outcome) };
    assert_eq!(absence.deleted[0].state, "connecting");
    let mut no_epoch = done(Said::Busy(proto::BusyOutcome::default()));
    no_epoch.epoch = None;
    assert!(result(no_epoch).is_err());
    let mut bad_operation = done(Said::Busy(proto::BusyOutcome::default()));
    bad_operation.operation_id = "7".into();
    assert!(result(bad_operation).is_err());
    let mut nothing = done(Said::Busy(proto::BusyOutcome::default()));
    nothing.outcome = None;
    assert!(result(nothing).is_err());
}

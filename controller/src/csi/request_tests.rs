#![allow(clippy::unwrap_used)]

use tonic::Code;

use super::*;

pub(super) fn block(mode: Mode) -> csi::VolumeCapability {
    capability(Some(AccessType::Block(csi::volume_capability::BlockVolume {})), mode.into())
}

fn capability(access_type: Option<AccessType>, mode: i32) -> csi::VolumeCapability {
    csi::VolumeCapability { access_mode: Some(csi::volume_capability::AccessMode { mode }), access_type }
}

fn mount(mode: Mode) -> csi::VolumeCapability {
    capability(Some(AccessType::Mount(csi::volume_capability::MountVolume::default())), mode.into())
}

fn create() -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: "pvc-1".into(),
        volume_capabilities: vec![block(Mode::MultiNodeMultiWriter)],
        ..Default::default()
    }
}

fn publish() -> csi::ControllerPublishVolumeRequest {
    csi::ControllerPublishVolumeRequest {
        volume_id: "pvc-1".into(),
        node_id: "node-a".into(),
        volume_capability: Some(block(Mode::SingleNodeWriter)),
        ..Default::default()
    }
}

fn range(required_bytes: i64, limit_bytes: i64) -> Result<Capacity, CallError> {
    Capacity::check(Some(&csi::CapacityRange { required_bytes, limit_bytes }))
}

#[test]
fn sizes_are_whole_blocks_within_the_range() {
    assert_eq!(Capacity::check(None).unwrap().wanted_bytes, DEFAULT_BYTES);
    assert_eq!(range(1, 0).unwrap().wanted_bytes, 4096);
    assert_eq!(range(4096, 4096).unwrap().wanted_bytes, 4096);
    assert_eq!(range(1_073_741_825, 0).unwrap().wanted_bytes, 1_073_745_920);
    assert_eq!(range(0, 10_000).unwrap().wanted_bytes, 8192);
    assert_eq!(range(0, i64::MAX).unwrap().wanted_bytes, DEFAULT_BYTES);
    for (required, limit) in [(4097, 8191), (2, 1), (0, 4095), (i64::MAX, 0)] {
        assert_eq!(range(required, limit).unwrap_err().code(), Code::OutOfRange, "{required} {limit}");
    }
    for (required, limit) in [(-1, 0), (0, -1)] {
        let error = range(required, limit).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.to_string().contains("-1 is negative"), "{error}");
    }
}

#[test]
fn an_existing_volume_counts_by_the_requested_size() {
    let asked = range(5000, 9000).unwrap();
    for (size, admitted) in [(4999, false), (5000, true), (8192, true), (9000, true), (9001, false)] {
        assert_eq!(asked.admits(size), admitted, "{size}");
    }
    assert!(range(5000, 0).unwrap().admits(u64::MAX));
}

#[test]
fn bad_create_requests_are_refused_with_the_field_and_the_value() {
    type Spoil = fn(&mut csi::CreateVolumeRequest);
    let cases: &[(Spoil, &[&str])] = &[
        (|r| r.name.clear(), &["name", "must be given"]),
        (|r| r.name = "x".repeat(10_000), &["name", "10000 bytes", "at most 128"]),
        (|r| r.name = "a\u{7}b".into(), &["name", "control character"]),
        (|r| r.capacity_range = Some(csi::CapacityRange { required_bytes: -5, limit_bytes: 0 }), &["-5"]),
        (|r| r.volume_capabilities.clear(), &["volume_capabilities", "must be given"]),
        (|r| r.volume_capabilities[0].access_type = None, &["volume_capabilities[0]", "access_type"]),
        (|r| r.volume_capabilities[0].access_mode = None, &["volume_capabilities[0].access_mode"]),
        (
            |r| r.volume_capabilities.push(mount(Mode::MultiNodeMultiWriter)),
            &["volume_capabilities[1]", "MULTI_NODE_MULTI_WRITER", "use RWX with block volumes"],
        ),
        (|r| r.volume_capabilities[0] = mount(Mode::SingleNodeWriter), &["not supported yet"]),
        (|r| r.volume_capabilities[0] = block(Mode::MultiNodeReaderOnly), &["MULTI_NODE_READER_ONLY"]),
        (|r| drop(r.parameters.insert("pool".into(), "x".into())), &["parameters[\"pool\"]"]),
        (|r| drop(r.mutable_parameters.insert("iops".into(), "1".into())), &["mutable_parameters[\"iops\"]"]),
        (
            |r| {
                r.volume_content_source = Some(csi::VolumeContentSource {
                    r#type: Some(csi::volume_content_source::Type::Snapshot(Default::default())),
                });
            },
            &["volume_content_source", "a snapshot"],
        ),
    ];
    for (spoil, words) in cases {
        let mut request = create();
        spoil(&mut request);
        let error = Create::check(&request).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        let text = error.to_string();
        assert!(text.len() < 1000, "{text}");
        for word in *words {
            assert!(text.contains(word), "{text} should say {word}");
        }
    }
}

#[test]
fn what_the_provisioner_adds_by_itself_is_let_through() {
    let mut request = create();
    request.parameters.insert("csi.storage.k8s.io/pvc/name".into(), "data".into());
    assert_eq!(Create::check(&request).unwrap().volume.as_str(), "pvc-1");
}

#[test]
fn only_multi_node_writers_on_block_volumes_may_be_two() {
    let access_of = |capability| {
        let mut request = publish();
        request.volume_capability = Some(capability);
        Publish::check(&request).map(|publish| (publish.access, publish.read_only))
    };
    for mode in [Mode::MultiNodeMultiWriter, Mode::MultiNodeSingleWriter] {
        assert_eq!(access_of(block(mode)).unwrap(), (Access::RwxBlock, false), "{mode:?}");
    }
    for mode in
        [Mode::Unknown, Mode::SingleNodeWriter, Mode::SingleNodeSingleWriter, Mode::SingleNodeMultiWriter]
    {
        assert_eq!(access_of(block(mode)).unwrap(), (Access::Rwo, false), "{mode:?}");
    }
    assert_eq!(access_of(block(Mode::SingleNodeReaderOnly)).unwrap(), (Access::Rwo, true));
    let of_the_future = capability(block(Mode::Unknown).access_type, 99);
    assert_eq!(access_of(of_the_future).unwrap(), (Access::Rwo, false));
    assert!(access_of(block(Mode::MultiNodeReaderOnly)).is_err());
    assert!(access_of(mount(Mode::SingleNodeWriter)).is_err());
}

#[test]
fn bad_ids_of_publish_and_unpublish_are_refused_by_name() {
    type Spoil = fn(&mut csi::ControllerPublishVolumeRequest);
    let cases: &[(Spoil, &str)] = &[
        (|r| r.volume_id.clear(), "volume_id: must be given"),
        (|r| r.volume_id = "../x".into(), "\"../x\""),
        (|r| r.volume_id = "a b".into(), "volume_id: volume id \"a b\""),
        (|r| r.node_id.clear(), "node_id: must be given"),
        (|r| r.node_id = "no/de".into(), "\"no/de\""),
        (|r| r.volume_capability = None, "volume_capability: must be given"),
    ];
    for (spoil, word) in cases {
        let mut request = publish();
        spoil(&mut request);
        let error = Publish::check(&request).unwrap_err().to_string();
        assert!(error.contains(word), "{error} should say {word}");
    }
    let unpublish = |volume_id: &str, node_id: &str| {
        Unpublish::check(&csi::ControllerUnpublishVolumeRequest {
            volume_id: volume_id.into(),
            node_id: node_id.into(),
            ..Default::default()
        })
    };
    assert_eq!(unpublish("v", "").unwrap().node, None);
    assert!(unpublish("", "a").is_err());
    let error = unpublish("pvc/../1", "a").unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.to_string().contains("volume_id: volume id \"pvc/../1\""), "{error}");
    assert!(unpublish("v", "a/b").is_err());
}

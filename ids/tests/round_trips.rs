//! What was accepted is written and read back as the same value, by text and by serde; what was refused never
//! panics and names its value.

use std::fmt::{Debug, Display};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use cleat_ids::{
    BootId, DriverName, Epoch, HostId, HostNqn, IdError, NamespaceUuid, Nguid, NodeId, NqnPrefix,
    OperationId, Portal, SessionId, StorageAddress, SubsystemNqn, TicketId, VolumeId,
};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn reads_back<T>(text: &str)
where
    T: FromStr<Err = IdError> + Display + Debug + PartialEq + Clone + Serialize + DeserializeOwned,
    String: From<T>,
{
    match text.parse::<T>() {
        Ok(value) => {
            let written = value.to_string();
            assert_eq!(written.parse::<T>().as_ref(), Ok(&value), "{text:?} as {written:?}");
            let json = serde_json::to_string(&value).expect("JSON");
            assert_eq!(json, serde_json::to_string(&written).expect("JSON"), "serde writes the text");
            assert_eq!(serde_json::from_str::<T>(&json).expect("read back"), value);
            assert_eq!(String::from(value), written);
        }
        Err(error) => {
            assert!(text.starts_with(&error.value) || error.value == "0.0", "{error:?}");
            assert!(!error.rule.is_empty() && !error.action.is_empty(), "{error:?}");
            let json = serde_json::to_string(text).expect("JSON");
            assert!(serde_json::from_str::<T>(&json).is_err(), "serde checks, too");
        }
    }
}

fn all_read_back(text: &str) {
    reads_back::<VolumeId>(text);
    reads_back::<NodeId>(text);
    reads_back::<BootId>(text);
    reads_back::<SessionId>(text);
    reads_back::<DriverName>(text);
    reads_back::<HostNqn>(text);
    reads_back::<SubsystemNqn>(text);
    reads_back::<HostId>(text);
    reads_back::<NamespaceUuid>(text);
    reads_back::<Nguid>(text);
    reads_back::<Epoch>(text);
    reads_back::<OperationId>(text);
    reads_back::<Portal>(text);
    reads_back::<StorageAddress>(text);
    reads_back::<TicketId>(text);
}

proptest! {
    #[test]
    fn any_text_is_refused_or_read_back(text in ".{0,300}") {
        all_read_back(&text);
    }

    #[test]
    fn text_of_the_right_kind_is_refused_or_read_back(
        text in r"(nqn\.[0-9]{4}-[01][0-9]\.)?[A-Za-z0-9._:-]{0,80}|op-[0-9]{1,21}-[0-9]{1,3}|[0-9]{1,21}\.[0-9]{1,3}"
    ) {
        all_read_back(&text);
    }

    #[test]
    fn every_epoch_is_read_back(term: u64, seq: u64) {
        let epoch = Epoch { term, seq };
        prop_assert_eq!(epoch.to_string().parse::<Epoch>().ok(), Epoch::new(term, seq).ok());
        prop_assert_ne!(epoch.reservation_key(), 0);
    }

    #[test]
    fn every_operation_is_read_back(term: u64, number: u64) {
        let operation = OperationId { term, number };
        prop_assert_eq!(operation.to_string().parse(), Ok(operation));
    }

    #[test]
    fn every_address_is_refused_or_read_back(v4: [u8; 4], v6: [u8; 16], port: u16) {
        for ip in [IpAddr::from(Ipv4Addr::from(v4)), IpAddr::from(Ipv6Addr::from(v6)), Ipv4Addr::from(v4).to_ipv6_mapped().into()] {
            reads_back::<Portal>(&SocketAddr::new(ip, port).to_string());
            reads_back::<StorageAddress>(&ip.to_string());
        }
    }

    #[test]
    fn a_host_id_is_its_sixteen_bytes(bytes: [u8; 16]) {
        let id = HostId::from_bytes(bytes);
        prop_assert_eq!(id.is_none(), bytes == [0; 16]);
        if let Some(id) = id {
            prop_assert_eq!(id.as_uuid().into_bytes(), bytes);
            prop_assert_eq!(HostNqn::from_host_id(id).embedded_uuid(), Some(id));
        }
    }

    #[test]
    fn every_volume_has_a_subsystem_that_is_its_own(volume in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?") {
        let prefix = NqnPrefix::parse("nqn.2026-01.io.cleat:").expect("a prefix");
        let volume = VolumeId::parse(&volume).expect("a volume");
        let subsystem = prefix.subsystem(&volume);
        prop_assert_eq!(SubsystemNqn::parse(subsystem.as_str()), Ok(subsystem.clone()));
        prop_assert_eq!(prefix.volume(&subsystem), Some(volume));
    }

    #[test]
    fn what_a_node_id_is_needs_no_escaping(node in "[A-Za-z0-9._/%:-]{1,60}") {
        if let Ok(node) = NodeId::parse(&node) {
            let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            prop_assert!(node.as_str().bytes().all(unreserved));
            prop_assert!(!matches!(node.as_str(), "." | ".."));
        }
    }
}

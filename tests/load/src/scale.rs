//! How much of everything there is, and who is who.

use std::net::{IpAddr, Ipv4Addr};

use cleat_core::{Epoch, NodeRecord, VolumeRecord};
use cleat_proto::cleat::v1 as proto;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

/// What precedes a volume's id in its subsystem NQN.
pub(crate) const NQN_PREFIX: &str = "nqn.2026-01.io.cleat:";
/// Where the RDS would serve volumes.
pub(crate) const PORTALS: [&str; 2] = ["10.77.1.1:4420", "10.77.2.1:4420"];
/// Of each volume.
pub(crate) const SIZE_BYTES: u64 = 1 << 30;
/// Under which everything that is Ready was granted.
const TERM: u64 = 1;

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Volumes that are Ready, spread over all agents.
    pub volumes: usize,
    /// Agents, each of a node of its own.
    pub agents: usize,
    /// Volumes that nobody has, to be attached.
    pub spares: usize,
}

impl Scale {
    /// A hundred volumes to an agent.
    #[must_use]
    pub fn of(volumes: usize, spares: usize) -> Self {
        Self { volumes, agents: (volumes / 100).max(1), spares }
    }

    /// The number of the node that has a volume, or that is to get it.
    pub(crate) fn node_of(&self, volume: usize) -> usize {
        volume % self.agents
    }

    /// Every volume, those that nobody has last.
    pub(crate) fn all(&self) -> std::ops::Range<usize> {
        0..self.volumes + self.spares
    }

    /// Those that nobody has.
    pub(crate) fn spare(&self) -> std::ops::Range<usize> {
        self.volumes..self.volumes + self.spares
    }

    /// Those that a node has.
    pub(crate) fn held_by(&self, node: usize) -> impl Iterator<Item = usize> + use<> {
        (node..self.volumes).step_by(self.agents)
    }
}

/// A node's name.
pub(crate) fn node(number: usize) -> String {
    format!("node-{number:04}")
}

/// A volume's id.
pub(crate) fn volume(number: usize) -> String {
    format!("pvc-{number:06}")
}

/// The address from which a node's agent connects: one address has not that many connections.
pub(crate) fn address(node: usize) -> IpAddr {
    let [.., high, low] = u32::try_from(node + 1).unwrap_or(0).to_be_bytes();
    Ipv4Addr::new(127, 1, high, low).into()
}

fn host_id(node: usize) -> Uuid {
    Uuid::from_u128(1 + node as u128)
}

pub(crate) fn host_nqn(node: usize) -> String {
    format!("nqn.2014-08.org.nvmexpress:uuid:{}", host_id(node))
}

fn boot_id(node: usize) -> Uuid {
    Uuid::from_u128((1 << 64) + node as u128)
}

/// The namespace of a volume.
pub(crate) fn namespace(volume: usize) -> Uuid {
    Uuid::from_u128((2 << 64) + volume as u128)
}

/// The grant of a volume that is Ready.
pub(crate) fn epoch(volume: usize) -> Epoch {
    Epoch { term: TERM, seq: 1 + volume as u64 }
}

fn storage_addresses(node: usize) -> [String; 2] {
    let (high, low) = (node / 250, 1 + node % 250);
    [format!("10.1.{high}.{low}"), format!("10.2.{high}.{low}")]
}

/// What a node's agent says of itself first.
pub(crate) fn hello(number: usize) -> proto::Hello {
    proto::Hello {
        protocol: cleat_proto::SESSION_PROTOCOL,
        node_id: node(number),
        identity: Some(proto::NodeIdentity {
            host_nqn: host_nqn(number),
            host_id: host_id(number).to_string(),
            storage_addresses: storage_addresses(number).into(),
            boot_id: boot_id(number).to_string(),
        }),
        capabilities: Some(proto::Capabilities {
            kernel_release: "6.12.1".to_owned(),
            fabrics: "kernel".to_owned(),
            native_multipath: true,
            nqn_prefix: NQN_PREFIX.to_owned(),
            ..Default::default()
        }),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        max_volumes: 0,
    }
}

/// As a record of that type says it, with whatever else it has today.
fn whole<T: DeserializeOwned + Serialize>(record: Value) -> serde_json::Result<Value> {
    serde_json::to_value(serde_json::from_value::<T>(record)?)
}

/// A node's record.
pub(crate) fn node_record(number: usize) -> serde_json::Result<Value> {
    whole::<NodeRecord>(json!({
        "node": node(number),
        "identity": {
            "hostNqn": host_nqn(number), "hostId": host_id(number), "bootId": boot_id(number),
            "storageAddresses": storage_addresses(number),
        },
    }))
}

/// A volume's record: Ready on its node, or as its last detach has left it.
pub(crate) fn volume_record(scale: &Scale, number: usize) -> serde_json::Result<Value> {
    let (id, is_spare) = (volume(number), number >= scale.volumes);
    let node_number = scale.node_of(number);
    let attachment = json!({
        "node": node(node_number), "hostNqn": host_nqn(node_number), "epoch": epoch(number).to_string(),
        "role": "primary", "readOnly": false, "phase": {"type": "ready"}, "since": 1, "proven": true,
        "bootId": boot_id(node_number), "mayLandUntil": null,
    });
    let record = whole::<VolumeRecord>(json!({
        "spec": {
            "id": id, "access": "RWO", "subsystemNqn": format!("{NQN_PREFIX}{id}"), "sizeBytes": SIZE_BYTES,
            "portals": PORTALS,
        },
        "identity": {"namespaceUuid": namespace(number), "nguid": null},
        "attachments": if is_spare { vec![] } else { vec![attachment] },
        "migration": null,
        "pastEvidence": [],
        "hidden": is_spare,
    }))?;
    Ok(json!({"record": record, "unsettled": false}))
}

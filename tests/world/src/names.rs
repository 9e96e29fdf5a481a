//! The few volumes, nodes and portals of the model, and their names.
//!
//! In come small indices; out go the core's validated names. What always holds: one name per index, and no other.

use std::sync::LazyLock;

use cleat_core::{BootId, DeviceIdentity, HostId, HostNqn, NamespaceUuid, NodeId, NodeIdentity, VolumeId};

/// Nodes of the world.
pub const NODES: usize = 3;
/// The most volumes that a world has.
pub const VOLUMES: usize = 2;

/// The most portals that a target has.
pub const PORTALS: usize = 2;

/// A volume, by its index.
pub type V = usize;
/// A node, by its index.
pub type N = usize;
/// A portal, by its index.
pub type P = usize;

static VOLUME_IDS: LazyLock<Vec<VolumeId>> =
    LazyLock::new(|| (0..VOLUMES).map(|v| VolumeId::new(format!("vol-{v}")).expect("a volume id")).collect());
static NODE_IDS: LazyLock<Vec<NodeId>> =
    LazyLock::new(|| (0..NODES).map(|n| NodeId::new(format!("node-{n}")).expect("a node id")).collect());
static HOST_NQNS: LazyLock<Vec<HostNqn>> = LazyLock::new(|| {
    let name = |n| format!("nqn.2026-01.test:node-{n}");
    (0..NODES).map(|n| HostNqn::new(name(n)).expect("a host NQN")).collect()
});

static HOST_IDS: LazyLock<Vec<HostId>> = LazyLock::new(|| {
    (1..=NODES as u128).map(|n| HostId::from_bytes(n.to_be_bytes()).expect("a host id")).collect()
});
static NAMESPACE_UUIDS: LazyLock<Vec<NamespaceUuid>> = LazyLock::new(|| {
    let uuid = |v| format!("00000000-0000-0000-0000-{:012x}", v + 1);
    (0..VOLUMES).map(|v| NamespaceUuid::parse(&uuid(v)).expect("a UUID")).collect()
});

/// The core's name of a volume.
#[must_use]
pub fn volume_id(v: V) -> VolumeId {
    VOLUME_IDS[v].clone()
}

/// The core's name of a node.
#[must_use]
pub fn node_id(n: N) -> NodeId {
    NODE_IDS[n].clone()
}

/// Which volume a name is.
#[must_use]
pub fn volume_of(id: &VolumeId) -> V {
    VOLUME_IDS.iter().position(|known| known == id).expect("a volume of this world")
}

/// Which node a name is.
#[must_use]
pub fn node_of(id: &NodeId) -> N {
    let known = NODE_IDS.iter().position(|known| known == id);
    known.or_else(|| unknown_host_of(id)).expect("a node of this world")
}

/// Of which node a host is that the core knows by its NQN alone: its name is made of that, and of a hash.
fn unknown_host_of(id: &NodeId) -> Option<N> {
    let nqn = id.as_str().strip_prefix("unknown-host.")?;
    NODE_IDS.iter().position(|known| nqn.contains(&format!("{known}-")))
}

/// A node's host NQN.
#[must_use]
pub fn host_nqn(n: N) -> HostNqn {
    HOST_NQNS[n].clone()
}

/// Which node's host NQN this is.
#[must_use]
pub fn host_of(nqn: &HostNqn) -> N {
    HOST_NQNS.iter().position(|known| known == nqn).expect("a host of this world")
}

/// What the namespace of a volume says of itself.
#[must_use]
pub fn namespace(v: V) -> DeviceIdentity {
    DeviceIdentity { namespace_uuid: NAMESPACE_UUIDS[v], nguid: None }
}

/// What a node's agent says of itself.
#[must_use]
pub fn identity(n: N, boot: u8) -> NodeIdentity {
    NodeIdentity {
        host_nqn: HOST_NQNS[n].clone(),
        host_id: HOST_IDS[n],
        storage_addresses: Vec::new(),
        boot_id: BootId::new(format!("boot-{boot}")).expect("a boot id"),
    }
}

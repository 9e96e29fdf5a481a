//! What the cluster says of a node at the moment when its agent connects: which Node it is, and what its record is now.
//!
//! In comes what an agent says of itself; out goes what the core needs to decide whether it may be that node. What holds:
//! both are read live, and only where the agent says something that is not on record; what the API server does not answer
//! is not known, and lets go of nothing. A record that may be older than our own write of it ([`NodeMark`]) is not read.

use std::fmt;

use cleat_core::{NodeId, NodeIdentity, NodeRecord, NodeSeen, NodeUid, StoredNode};
use cleat_kubernetes::api::{ApiError, ApiServer};
use cleat_kubernetes::nodes;
use cleat_kubernetes::records::{ClusterRecords, Kind, RecordObject};
use cleat_runtime::hush::Hush;

use crate::engine::{Engine, EngineEnded, NodeMark};

/// Who is asked.
pub(crate) struct Pins {
    server: ApiServer,
    records: ClusterRecords,
    hush: Hush,
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pins").finish_non_exhaustive()
    }
}

impl Pins {
    pub(crate) fn new(server: ApiServer) -> Self {
        Self { records: ClusterRecords::new(server.clone()), server, hush: Hush::default() }
    }

    /// `proven`: the UID that the node's Node had when its agent's token was made.
    pub(crate) async fn look(
        &self,
        engine: &Engine,
        node: &NodeId,
        identity: &NodeIdentity,
        proven: Option<&str>,
    ) -> Result<(NodeSeen, Option<NodeMark>), EngineEnded> {
        let mark = engine.mark(node);
        let name = node.clone();
        let kept = engine.view(move |core, _| core.registry().get(&name).cloned()).await?;
        let is_kept = kept.as_ref().is_some_and(|kept| kept.identity == *identity);
        let of_kept = kept.and_then(|kept| kept.uid);
        if is_kept && proven.is_some() && of_kept.as_ref().map(NodeUid::as_str) == proven {
            return Ok((NodeSeen { uid: of_kept, stored: None }, None));
        }
        let record = async {
            if is_kept || mark.is_none() {
                return None;
            }
            self.answer(node, "the record", self.records.get(Kind::Node, node.as_str()).await)
        };
        let uid = async { self.answer(node, "the Node", nodes::uid(&self.server, node.as_str()).await) };
        let (record, uid) = tokio::join!(record, uid);
        let uid = uid.flatten().and_then(|uid| live(uid, proven));
        Ok((NodeSeen { uid, stored: record.and_then(stored) }, mark))
    }

    fn answer<T>(&self, node: &NodeId, what: &str, answer: Result<T, ApiError>) -> Option<T> {
        let error = match answer {
            Ok(answer) => return Some(answer),
            Err(error) => error,
        };
        self.hush.warn(|skipped| {
            tracing::warn!(%node, skipped, "cannot read {what} of {node}: {error}; its record's pin holds");
        });
        None
    }
}

/// The Node's UID, where the agent's pod is of that very Node.
fn live(uid: String, proven: Option<&str>) -> Option<NodeUid> {
    if proven.is_some_and(|proven| proven != uid) {
        return None;
    }
    NodeUid::new(uid).ok()
}

/// What a record says of the pin. One that cannot be read says nothing.
fn stored(found: Option<RecordObject>) -> Option<StoredNode> {
    let Some(RecordObject { mut value, deleting: false, .. }) = found else {
        return Some(StoredNode::Nothing);
    };
    let record: NodeRecord = serde_json::from_value(value.remove("record")?).ok()?;
    Some(StoredNode::Record(Box::new(record)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(deleting: bool, record: &Value) -> Option<RecordObject> {
        let value = json!({ "record": record }).as_object().unwrap().clone();
        let (kind, name) = (Kind::Node, "a".to_owned());
        Some(RecordObject { kind, name, version: 1, term: 1, value, deleting, unguarded: None })
    }

    fn record() -> Value {
        let host = "00000000-0000-0000-0000-000000000001";
        json!({"node": "a", "identity": {
            "hostNqn": format!("nqn.2014-08.org.nvmexpress:uuid:{host}"), "hostId": host,
            "storageAddresses": [], "bootId": "b",
        }})
    }

    #[test]
    fn a_record_of_before_uids_is_read_and_one_without_is_written_the_same() {
        let Some(StoredNode::Record(read)) = stored(object(false, &record())) else { panic!("not read") };
        assert_eq!(read.uid, None);
        assert_eq!(serde_json::to_value(&*read).unwrap(), record());
        let with_uid = NodeRecord { uid: Some(NodeUid::new("u1").unwrap()), ..*read };
        assert_eq!(serde_json::to_value(with_uid).unwrap()["uid"], "u1");
    }

    #[test]
    fn a_record_that_is_gone_or_deleted_pins_nobody_and_a_broken_one_says_nothing() {
        assert_eq!(stored(None), Some(StoredNode::Nothing));
        assert_eq!(stored(object(true, &record())), Some(StoredNode::Nothing));
        assert_eq!(stored(object(false, &json!({"node": "a"}))), None);
    }

    #[test]
    fn a_token_of_an_earlier_node_says_nothing_of_the_one_that_is_there() {
        let known = |proven| live("u2".into(), proven).map(|uid| uid.to_string());
        assert_eq!(known(Some("u1")), None);
        assert_eq!(known(Some("u2")).as_deref(), Some("u2"));
        assert_eq!(known(None).as_deref(), Some("u2"));
    }
}

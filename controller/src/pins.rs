//! What the cluster says of a node at the moment when its agent connects: which Node it is, and what its record is now.
//!
//! In comes what an agent says of itself; out goes what the core needs to decide whether it may be that node. What holds:
//! both are read live, and only where the agent says something that is not on record; what the API server does not answer
//! is not known, and lets go of nothing: where nothing is kept of the node either, nobody is it yet. A record that may be older than our own write of it ([`NodeMark`]) is not read.

use std::fmt;
use std::time::Duration;

use cleat_core::{NodeId, NodeIdentity, NodeRecord, NodeSeen, NodeUid, StoredNode};
use cleat_kubernetes::api::{ApiError, ApiServer};
use cleat_kubernetes::nodes;
use cleat_kubernetes::records::{ClusterRecords, Kind, RecordObject};
use cleat_runtime::hush::Hush;
use tokio::sync::Semaphore;

use crate::engine::{Engine, EngineEnded, NodeMark};

/// Agents for which something is read.
const AT_ONCE: usize = 32;
/// How long one waits for its turn.
const TURN: Duration = Duration::from_secs(5);
const BEING_WRITTEN: &str = "its record is being written";
const TOO_MANY: &str = "nothing was read: too many agents connect at once";

/// Why nobody knows whether the agent may be the node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookError {
    #[error(transparent)]
    Ended(#[from] EngineEnded),
    #[error("cannot say yet which host node {node} is: {why}")]
    NotKnown { node: NodeId, why: String },
}

/// Who is asked.
pub(crate) struct Pins {
    server: ApiServer,
    records: ClusterRecords,
    turns: Semaphore,
    hush: Hush,
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pins").finish_non_exhaustive()
    }
}

impl Pins {
    pub(crate) fn new(server: ApiServer) -> Self {
        let records = ClusterRecords::new(server.clone());
        Self { records, server, turns: Semaphore::new(AT_ONCE), hush: Hush::default() }
    }

    /// `proven`: the UID that the node's Node had when its agent's token was made.
    pub(crate) async fn look(
        &self,
        engine: &Engine,
        node: &NodeId,
        identity: &NodeIdentity,
        proven: Option<&str>,
    ) -> Result<(NodeSeen, Option<NodeMark>), LookError> {
        let mark = engine.mark(node);
        let name = node.clone();
        let kept = engine.registry(move |registry| registry.get(&name).cloned()).await?;
        let is_known = kept.is_some();
        let is_kept = kept.as_ref().is_some_and(|kept| kept.identity == *identity);
        let of_kept = kept.and_then(|kept| kept.uid);
        if is_kept && proven.is_some() && of_kept.as_ref().map(NodeUid::as_str) == proven {
            return Ok((NodeSeen { uid: of_kept, stored: None }, None));
        }
        let record = async {
            if is_kept || mark.is_none() {
                return if is_known { Ok(None) } else { Err(BEING_WRITTEN.to_owned()) };
            }
            let found = self.records.get(Kind::Node, node.as_str()).await;
            found.map_err(|error| not_read("record", &error)).and_then(|found| stored(node, found)).map(Some)
        };
        let uid = async {
            let uid = nodes::uid(&self.server, node.as_str()).await;
            uid.map_err(|error| not_read("Node", &error))
        };
        let (record, uid) = match tokio::time::timeout(TURN, self.turns.acquire()).await {
            Ok(_turn) => tokio::join!(record, uid),
            Err(_) if is_kept => (Ok(None), Err(TOO_MANY.to_owned())),
            Err(_) => (Err(TOO_MANY.to_owned()), Err(TOO_MANY.to_owned())),
        };
        let stored = unless_known(&self.hush, node, record, is_known)?.flatten();
        // Without it no pin lets go.
        let uid = unless_known(&self.hush, node, uid, true)?.flatten();
        Ok((NodeSeen { uid: uid.and_then(|uid| live(uid, proven)), stored }, mark))
    }
}

/// What was not read says nothing, where something else does.
fn unless_known<T>(
    hush: &Hush,
    node: &NodeId,
    read: Result<T, String>,
    is_known: bool,
) -> Result<Option<T>, LookError> {
    let why = match read {
        Ok(read) => return Ok(Some(read)),
        Err(why) => why,
    };
    hush.warn(|skipped| tracing::warn!(%node, skipped, "{why}; no pin lets go by it"));
    if is_known { Ok(None) } else { Err(LookError::NotKnown { node: node.clone(), why }) }
}

fn not_read(what: &str, error: &ApiError) -> String {
    format!("cannot read its {what}: {error}")
}

/// The Node's UID, where the agent's pod is of that very Node.
fn live(uid: String, proven: Option<&str>) -> Option<NodeUid> {
    if proven.is_some_and(|proven| proven != uid) {
        return None;
    }
    NodeUid::new(uid).ok()
}

/// What a record says of the pin, or why nobody knows.
fn stored(node: &NodeId, found: Option<RecordObject>) -> Result<StoredNode, String> {
    let Some(RecordObject { mut value, deleting: false, .. }) = found else {
        return Ok(StoredNode::Nothing);
    };
    let mend = format!("mend it: kubectl edit cleatnode {node}");
    let record: NodeRecord = serde_json::from_value(value.remove("record").unwrap_or_default())
        .map_err(|error| format!("cannot read its record: {error}; {mend}"))?;
    if record.node != *node {
        return Err(format!("its record is that of node {}; {mend}", record.node));
    }
    Ok(StoredNode::Record(Box::new(record)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(deleting: bool, record: &Value) -> Option<RecordObject> {
        let value = json!({ "record": record }).as_object().unwrap().clone();
        let (kind, name) = (Kind::Node, "a".to_owned());
        let (unguarded, status) = (None, None);
        Some(RecordObject { kind, name, version: 1, term: 1, value, deleting, unguarded, status })
    }

    fn a() -> NodeId {
        NodeId::new("a").unwrap()
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
        let Ok(StoredNode::Record(read)) = stored(&a(), object(false, &record())) else { panic!("not read") };
        assert_eq!(read.uid, None);
        assert_eq!(serde_json::to_value(&*read).unwrap(), record());
        let with_uid = NodeRecord { uid: Some(NodeUid::new("u1").unwrap()), ..*read };
        assert_eq!(serde_json::to_value(with_uid).unwrap()["uid"], "u1");
    }

    #[test]
    fn a_record_that_is_gone_pins_nobody_and_a_broken_one_is_not_known() {
        assert_eq!(stored(&a(), None), Ok(StoredNode::Nothing));
        assert_eq!(stored(&a(), object(true, &record())), Ok(StoredNode::Nothing));
        let broken = stored(&a(), object(false, &json!({"node": "a"}))).unwrap_err();
        assert!(broken.starts_with("cannot read its record: missing field `identity`"), "{broken}");
        let others = stored(&NodeId::new("b").unwrap(), object(false, &record())).unwrap_err();
        assert!(others.starts_with("its record is that of node a"), "{others}");
    }

    #[test]
    fn without_an_answer_nobody_is_a_node_that_is_not_known() {
        let away = ApiError::Unanswered("away".into());
        let look = |is_known| {
            let read = Err::<u8, _>(not_read("record", &away));
            unless_known(&Hush::default(), &a(), read, is_known)
        };
        assert_eq!(look(true).unwrap(), None, "its pin holds");
        let error = look(false).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot say yet which host node a is: cannot read its record: "),
            "{error}"
        );
    }

    #[test]
    fn a_token_of_an_earlier_node_says_nothing_of_the_one_that_is_there() {
        let known = |proven| live("u2".into(), proven).map(|uid| uid.to_string());
        assert_eq!(known(Some("u1")), None);
        assert_eq!(known(Some("u2")).as_deref(), Some("u2"));
        assert_eq!(known(None).as_deref(), Some("u2"));
    }
}

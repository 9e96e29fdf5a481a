//! Records that somebody else has changed while this core was at work.
//!
//! In comes what a record says now; out goes the record as this core knows it, with whoever may write by either of the two.
//! What holds: nobody is taken off by such a record, and nothing that it says is a proof. Whom it names and this core does
//! not know is somebody who may write until there is evidence, as a host on the RDS's list is. Which host a node is a person
//! may say, while the host that it was cannot write: that is the node's *pin*, which no agent changes.

use super::Transition;
use crate::{
    Attachment, Effect, HostNqn, NodeId, NodeRecord, Notice, Phase, SessionRefusal, SessionState, Trouble,
    VolumeId, VolumeRecord,
};

impl Transition<'_> {
    pub(super) fn record_changed(&mut self, volume: &VolumeId, found: Option<&VolumeRecord>) {
        // Who was cut off by it alone may write, too: that proof is not ours.
        let attached = found.into_iter().flat_map(|f| &f.attachments).map(|a| (&a.node, &a.host_nqn));
        let cut_off = found.into_iter().flat_map(|f| &f.fenced).map(|f| (&f.node, &f.host_nqn));
        for (node, host_nqn) in attached.chain(cut_off) {
            self.adopt_named(volume, node, host_nqn);
        }
        // In any case it is written again, against what is there now.
        if self.core.volumes.contains_key(volume) {
            self.dirty.insert(volume.clone());
        } else {
            self.forgotten.insert(volume.clone());
        }
        self.touched.insert(volume.clone());
    }

    pub(super) fn node_record_changed(&mut self, node: &NodeId, found: Option<NodeRecord>) {
        let ours = self.core.registry.get(node).cloned();
        let holds = self.holds_anything(node);
        match (found, ours) {
            (Some(found), Some(ours)) if found.host() != ours.host() && holds => {
                let host_nqn = found.identity.host_nqn;
                self.notice(Notice::PinNotTaken { node: node.clone(), host_nqn });
            }
            (Some(found), Some(ours)) if found.host() != ours.host() => {
                self.pin(node, NodeRecord { node: node.clone(), pinned: true, ..found });
            }
            // The same host; whether it is pinned is a person's to say.
            (Some(found), Some(ours)) => self.pin(node, NodeRecord { pinned: found.pinned, ..ours }),
            // Whoever has removed it has removed its pin.
            (None, Some(ours)) => self.pin(node, NodeRecord { pinned: false, ..ours }),
            (_, None) => {}
        }
        if self.core.registry.contains_key(node) {
            self.dirty_nodes.insert(node.clone());
        } else {
            self.forgotten_nodes.insert(node.clone());
        }
    }

    fn pin(&mut self, node: &NodeId, record: NodeRecord) {
        let pinned = (record.identity.host_nqn.clone(), record.identity.host_id);
        self.core.registry.insert(node.clone(), record);
        let Some(known) = self.core.nodes.get(node) else { return };
        let is = (known.identity.host_nqn.clone(), known.identity.host_id);
        if is == pinned {
            return;
        }
        if let SessionState::Up { id: session, .. } = known.session.clone() {
            let refusal = Box::new(SessionRefusal::Pinned { node: node.clone(), pinned, new: is });
            self.effects.push(Effect::RefuseSession { session, refusal });
        }
        self.core.nodes.remove(node);
        self.touched.extend(self.volumes_about(node));
    }

    /// A changed record names a node that ours does not: from now on it counts as able to write.
    fn adopt_named(&mut self, volume: &VolumeId, node: &NodeId, host_nqn: &HostNqn) {
        let record = self.core.volumes.get(volume);
        let is_known = |record: &VolumeRecord| {
            record.knows(node) || record.hosts().iter().any(|(_, known)| known == host_nqn)
        };
        if record.is_some_and(is_known) {
            return;
        }
        let (epoch, now) = (self.next_epoch(), self.now);
        let record =
            self.core.volumes.entry(volume.clone()).or_insert_with(|| VolumeRecord::unknown(volume.clone()));
        let mut stray = Attachment::found(node.clone(), host_nqn.clone(), epoch, Phase::Stray, now);
        (stray.stray, stray.trouble) = (true, Some(Trouble::NamedByHand));
        stray.may_land_until = Some(now.plus(self.core.config.drain_bound_ms));
        record.join(stray);
        self.notice(Notice::StrayFound { volume: volume.clone(), node: node.clone() });
        if self.core.nodes.get(node).is_some_and(|n| n.ready_session().is_some()) {
            self.reconcile(volume, node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::*;
    use crate::*;

    fn changed(b: &mut Harness, found: Option<VolumeRecord>) {
        b.event(Event::RecordChanged { volume: v(), found: found.map(Box::new) });
    }

    /// The record of another harness in which this node has the volume.
    fn with(name: &str) -> VolumeRecord {
        let mut b = bench(able());
        b.attach(name, Access::Rwo);
        b.stored.remove(&v()).expect("a record")
    }

    #[test]
    fn who_may_write_by_either_record_may_write_and_nobody_else_is_admitted() {
        let mut b = alone(able());
        // Heard, and not holding it, it is proven to be without it at once; silent, nobody knows.
        b.silent("bb");
        changed(&mut b, Some(with("bb")));
        assert!(matches!(b.effects.first(), Some(Effect::Persist(_))), "{:?}", b.effects);
        assert_eq!((b.phase("a"), b.phase("bb")), (Some("Ready"), Some("Stray")));
        assert!(b.stored[&v()].attachments[1].stray);
        b.detach("a", "live");
        b.rds_does_all();
        assert_eq!(b.phase("a"), None);
        let publish = b.publish("ccc", Access::Rwo);
        assert_eq!(b.refusal(publish), Refusal::AttachedElsewhere { volume: v(), node: n("bb") });
    }

    #[test]
    fn a_record_that_leaves_somebody_out_or_is_gone_is_written_again() {
        let mut b = alone(able());
        let before = b.stored[&v()].clone();
        let emptied = VolumeRecord { attachments: Vec::new(), ..before.clone() };
        for found in [Some(emptied), None] {
            b.stored.clear();
            changed(&mut b, found);
            assert_eq!(b.stored.get(&v()), Some(&before));
            assert_eq!(b.phase("a"), Some("Ready"));
        }
    }

    #[test]
    fn a_proof_that_somebody_wrote_down_is_worth_nothing() {
        let mut b = alone(able());
        let mut found = b.stored[&v()].clone();
        let past = with("a");
        b.unpublish_waits("a");
        // By the changed record the node is out already.
        found.attachments.clear();
        found.past_evidence = past.past_evidence;
        changed(&mut b, Some(found));
        assert_eq!(b.phase("a"), Some("Draining"));
        let publish = b.publish_waits("bb", Access::Rwo);
        assert_eq!(b.reply(publish), None);
    }

    fn record_of(name: &str, pinned: bool) -> NodeRecord {
        NodeRecord { node: n("a"), identity: identity(name, "boot"), pinned }
    }

    fn node_changed(b: &mut Harness, found: Option<NodeRecord>) {
        b.event(Event::NodeRecordChanged { node: n("a"), found: found.map(Box::new) });
        assert!(matches!(b.effects.first(), Some(Effect::PersistNode(_))), "{:?}", b.effects);
    }

    fn is_refused(b: &Harness) -> bool {
        b.effects.iter().any(|effect| {
            matches!(effect, Effect::RefuseSession { refusal, .. } if matches!(**refusal, SessionRefusal::Pinned { .. }))
        })
    }

    #[test]
    fn a_pin_that_a_person_has_set_is_taken_and_no_agent_changes_it() {
        let mut b = bench(able());
        node_changed(&mut b, Some(record_of("other", false)));
        assert!(is_refused(&b), "the host that it is no more: {:?}", b.effects);
        assert_eq!(b.core.registry()[&n("a")], record_of("other", true));
        b.hello("a", identity("a", "boot-2"));
        assert!(is_refused(&b));
        b.up_as("a", identity("other", "boot"), vec![]);
        assert!(!is_refused(&b) && b.core.nodes().contains_key(&n("a")));
        // A person takes it away again, by removing the record or by saying so.
        for found in [None, Some(record_of("other", false))] {
            node_changed(&mut b, Some(record_of("other", true)));
            assert!(b.core.registry()[&n("a")].pinned);
            node_changed(&mut b, found);
            assert!(!b.core.registry()[&n("a")].pinned && !is_refused(&b));
        }
    }

    #[test]
    fn a_pin_to_another_host_is_not_taken_while_the_node_may_write() {
        let mut b = alone(able());
        node_changed(&mut b, Some(record_of("other", false)));
        let told = |effect: &Effect| matches!(effect, Effect::Notice(Notice::PinNotTaken { .. }));
        assert!(!is_refused(&b) && b.effects.iter().any(told), "{:?}", b.effects);
        assert_eq!(b.core.registry()[&n("a")], record_of("a", false));
        assert_eq!(b.phase("a"), Some("Ready"));
    }

    #[test]
    fn a_volume_that_only_the_changed_record_knows_is_tracked_or_forgotten() {
        let mut b = bench(able());
        changed(&mut b, None);
        assert_eq!(b.effects, [Effect::Forget(v())]);
        b.silent("bb");
        changed(&mut b, Some(with("bb")));
        assert_eq!(b.phase("bb"), Some("Stray"));
        assert!(b.stored.contains_key(&v()));
    }
}

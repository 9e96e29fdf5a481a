//! What waits for which record: a lane for each volume and each node.
//!
//! In come changes of records and what is to be done, in the order in which they were decided; out goes what may be written
//! now, and what may be done now. What holds, and is all that the core asks for (`Effect`):
//!
//! - what is lined up for a volume is done in its order, each once every change of that volume's record that came before it
//!   is durable, and every change of the records of those nodes that it names;
//! - what is lined up after several records is done once their changes so far are durable;
//! - of each record one write is under way at most. Changes that come meanwhile are written together, by the next one;
//! - no lane waits for another, and each is bounded: what does not fit comes back to whoever brought it.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::records::Wanted;
use crate::store::{Key, RecordKind};

/// What may wait for one record. The core asks for one thing at a time for each attachment, so only a record that cannot be
/// written for long comes near it.
pub(super) const LANE: usize = 512;

/// All lanes that have something in them. `W` is what is to be done.
#[derive(Debug)]
pub(super) struct Lanes<W> {
    lanes: HashMap<Key, Lane<W>>,
    /// How many changes there were, of all records: so a lane that ends and begins again counts on.
    changes: u64,
    /// What rests on several records, by its number: how many of those are not durable, and what is to be done.
    after_several: HashMap<u64, (usize, W)>,
    /// What rests on which change of a record, by those numbers: so what becomes durable makes nobody else be looked at.
    resting: HashMap<Key, Vec<(u64, u64)>>,
    /// The last such number.
    numbered: u64,
    /// Records with a change that no write has.
    unwritten: BTreeSet<Key>,
    /// Lanes in which the first that waits may be free to go.
    to_look_at: VecDeque<Key>,
    free: VecDeque<W>,
}

/// One change of a record, by its number.
type Change = (Key, u64);

#[derive(Debug)]
struct Lane<W> {
    /// What the record is to say, where no write has it.
    wanted: Option<Wanted>,
    /// The last change.
    changed: u64,
    /// The last change that is durable.
    durable: u64,
    /// The last change that the write under way has.
    writing: Option<u64>,
    /// The last write was refused, and is not to be made; nothing is written before there is another record.
    refused: bool,
    waiting: VecDeque<Waiting<W>>,
}

#[derive(Debug)]
struct Waiting<W> {
    after: u64,
    nodes: Vec<Change>,
    work: W,
}

impl<W> Default for Lanes<W> {
    fn default() -> Self {
        Self {
            lanes: HashMap::new(),
            changes: 0,
            after_several: HashMap::new(),
            resting: HashMap::new(),
            numbered: 0,
            unwritten: BTreeSet::new(),
            to_look_at: VecDeque::new(),
            free: VecDeque::new(),
        }
    }
}

impl<W> Lane<W> {
    fn new(durable: u64) -> Self {
        Self {
            wanted: None,
            changed: durable,
            durable,
            writing: None,
            refused: false,
            waiting: VecDeque::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.durable == self.changed && self.waiting.is_empty()
    }
}

impl<W> Lanes<W> {
    /// A record is to say something else from here on.
    pub(super) fn change(&mut self, key: &Key, change: impl FnOnce(&mut Wanted)) {
        self.changes += 1;
        let lane = self.lanes.entry(key.clone()).or_insert_with(|| Lane::new(self.changes - 1));
        lane.changed = self.changes;
        let wanted = lane.wanted.get_or_insert_default();
        change(wanted);
        lane.refused &= !wanted.has_record();
        self.unwritten.insert(key.clone());
    }

    /// The last of these changes that is not durable.
    fn last_change(&self, key: &Key) -> Option<Change> {
        let lane = self.lanes.get(key).filter(|lane| lane.changed > lane.durable)?;
        Some((key.clone(), lane.changed))
    }

    /// Lines something up for a volume; it rests on the records of these nodes, too. Gives it back where too much waits.
    pub(super) fn line_up(&mut self, volume: &Key, nodes: &[Key], work: W) -> Result<(), W> {
        let nodes: Vec<Change> = nodes.iter().filter_map(|node| self.last_change(node)).collect();
        if nodes.is_empty() && !self.lanes.contains_key(volume) {
            self.free.push_back(work);
            return Ok(());
        }
        if self.lanes.get(volume).is_some_and(|lane| lane.waiting.len() >= LANE) {
            return Err(work);
        }
        let lane = self.lanes.entry(volume.clone()).or_insert_with(|| Lane::new(self.changes));
        lane.waiting.push_back(Waiting { after: lane.changed, nodes, work });
        self.to_look_at.push_back(volume.clone());
        Ok(())
    }

    /// Lines up that a record is durable: once that is so, `work` is to be done. Where that is what came last before, that
    /// one becomes this one (`is_same`), so these need no bound.
    pub(super) fn line_up_record(&mut self, volume: &Key, work: W, is_same: impl FnOnce(&W) -> bool) {
        let Some(lane) = self.lanes.get_mut(volume) else {
            self.free.push_back(work);
            return;
        };
        match lane.waiting.back_mut().filter(|last| last.nodes.is_empty() && is_same(&last.work)) {
            Some(last) => *last = Waiting { after: lane.changed, nodes: Vec::new(), work },
            None => lane.waiting.push_back(Waiting { after: lane.changed, nodes: Vec::new(), work }),
        }
        self.to_look_at.push_back(volume.clone());
    }

    /// Whether the record is to say something that is not durable.
    pub(super) fn is_changing(&self, key: &Key) -> bool {
        self.last_change(key).is_some()
    }

    /// Lines something up that rests on all that these records were to say so far.
    pub(super) fn line_up_after<'k>(&mut self, records: impl IntoIterator<Item = &'k Key>, work: W) {
        let changes: Vec<Change> = records.into_iter().filter_map(|key| self.last_change(key)).collect();
        self.after_several(changes, work);
    }

    /// Lines something up that rests on all that the records of all volumes, and of this node, were to say so far.
    pub(super) fn line_up_after_volumes(&mut self, node: Option<&Key>, work: W) {
        let records = self.lanes.keys().filter(|key| key.kind == RecordKind::Volume || Some(*key) == node);
        let changes: Vec<Change> = records.filter_map(|key| self.last_change(key)).collect();
        self.after_several(changes, work);
    }

    fn after_several(&mut self, changes: Vec<Change>, work: W) {
        if changes.is_empty() {
            self.free.push_back(work);
            return;
        }
        self.numbered += 1;
        self.after_several.insert(self.numbered, (changes.len(), work));
        for (key, change) in changes {
            self.resting.entry(key).or_default().push((change, self.numbered));
        }
    }

    /// What may be done now.
    pub(super) fn next(&mut self) -> Option<W> {
        loop {
            if let Some(work) = self.free.pop_front() {
                return Some(work);
            }
            let key = self.to_look_at.front()?;
            if self.lanes.get(key).is_some_and(|lane| self.may_go(lane)) {
                let waiting = self.lanes.get_mut(key).and_then(|lane| lane.waiting.pop_front());
                if let Some(waiting) = waiting {
                    return Some(waiting.work);
                }
            }
            let key = self.to_look_at.pop_front()?;
            self.end_if_empty(&key);
        }
    }

    fn may_go(&self, lane: &Lane<W>) -> bool {
        lane.waiting.front().is_some_and(|first| {
            first.after <= lane.durable && first.nodes.iter().all(|change| self.is_durable(change))
        })
    }

    fn is_durable(&self, (key, change): &Change) -> bool {
        self.lanes.get(key).is_none_or(|lane| *change <= lane.durable)
    }

    fn end_if_empty(&mut self, key: &Key) {
        if self.lanes.get(key).is_some_and(Lane::is_empty) {
            self.lanes.remove(key);
        }
    }

    /// Whether some record is to say what no write has.
    pub(super) fn is_to_write(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// What the records are to say of which no write is under way. Each is asked for once, and counts as under way from
    /// here on.
    pub(super) fn take_due(&mut self) -> Vec<(Key, Wanted)> {
        let mut writes = Vec::new();
        let lanes = &mut self.lanes;
        self.unwritten.retain(|key| {
            let Some(lane) = lanes.get_mut(key) else { return false };
            if lane.writing.is_some() || lane.refused {
                return true;
            }
            lane.writing = Some(lane.changed);
            writes.extend(lane.wanted.take().map(|wanted| (key.clone(), wanted)));
            false
        });
        writes
    }

    /// The write that was under way is durable.
    pub(super) fn durable(&mut self, key: &Key) {
        if let Some(lane) = self.lanes.get_mut(key)
            && let Some(written) = lane.writing.take()
        {
            lane.durable = written;
        }
        self.look_at(key);
    }

    /// The write that was under way is not made. What it had in it is written with the next record, which has to come. Gives
    /// what was lined up for the record and is `given_back`; the rest goes on waiting.
    pub(super) fn refused(
        &mut self,
        key: &Key,
        refused: impl FnOnce(&mut Wanted),
        given_back: impl Fn(&W) -> bool,
    ) -> Vec<W> {
        let Some(lane) = self.lanes.get_mut(key) else { return Vec::new() };
        lane.writing = None;
        let wanted = lane.wanted.get_or_insert_default();
        refused(wanted);
        lane.refused = !wanted.has_record();
        let durable = lane.durable;
        let mut back = Vec::new();
        for waiting in std::mem::take(&mut lane.waiting) {
            if waiting.after > durable && given_back(&waiting.work) {
                back.push(waiting.work);
            } else {
                lane.waiting.push_back(waiting);
            }
        }
        back
    }

    /// Nothing is to be written of a record any more: whoever waits for it need not. Gives what was lined up for it.
    pub(super) fn give_up(&mut self, key: &Key) -> Vec<W> {
        self.unwritten.remove(key);
        let lane = self.lanes.remove(key);
        self.look_at(key);
        lane.into_iter().flat_map(|lane| lane.waiting).map(|waiting| waiting.work).collect()
    }

    /// Somebody may wait for what this record has come to.
    fn look_at(&mut self, key: &Key) {
        self.to_look_at.push_back(key.clone());
        if key.kind == RecordKind::Node {
            let waits = |lane: &Lane<W>| {
                lane.waiting.front().is_some_and(|first| first.nodes.iter().any(|(node, _)| node == key))
            };
            let behind = self.lanes.iter().filter(|(_, lane)| waits(lane)).map(|(key, _)| key.clone());
            self.to_look_at.extend(behind);
        }
        self.rests_no_more(key);
    }

    /// Takes off what rested on changes of this record that are durable now.
    fn rests_no_more(&mut self, key: &Key) {
        let Some(mut resting) = self.resting.remove(key) else { return };
        let durable = self.lanes.get(key).map_or(u64::MAX, |lane| lane.durable);
        for (_, number) in resting.extract_if(.., |(change, _)| *change <= durable) {
            let Some((left, _)) = self.after_several.get_mut(&number) else { continue };
            *left -= 1;
            if *left == 0 {
                self.free.extend(self.after_several.remove(&number).map(|(_, work)| work));
            }
        }
        if !resting.is_empty() {
            self.resting.insert(key.clone(), resting);
        }
    }

    /// Whether nothing waits any more.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty() && self.free.is_empty() && self.after_several.is_empty()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn v(name: &str) -> Key {
        Key::volume(name)
    }

    fn all<W>(lanes: &mut Lanes<W>) -> Vec<W> {
        std::iter::from_fn(|| lanes.next()).collect()
    }

    fn written(lanes: &mut Lanes<u32>) -> Vec<Key> {
        lanes.take_due().into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn a_record_that_is_not_durable_holds_up_its_own_volume_alone() {
        let mut lanes = Lanes::default();
        lanes.change(&v("a"), |_| {});
        for (volume, work) in [("a", 1), ("b", 2), ("a", 3), ("b", 4)] {
            lanes.line_up(&v(volume), &[], work).unwrap();
        }
        assert_eq!(all(&mut lanes), [2, 4]);
        assert_eq!(written(&mut lanes), [v("a")]);
        assert!(all(&mut lanes).is_empty());
        lanes.durable(&v("a"));
        assert_eq!(all(&mut lanes), [1, 3]);
        assert!(lanes.is_empty());
    }

    #[test]
    fn changes_during_a_write_are_one_more_and_hold_what_came_after() {
        let mut lanes = Lanes::default();
        lanes.change(&v("a"), |_| {});
        lanes.line_up(&v("a"), &[], 1).unwrap();
        assert_eq!(written(&mut lanes), [v("a")]);
        for work in [2, 3] {
            lanes.change(&v("a"), |_| {});
            lanes.line_up(&v("a"), &[], work).unwrap();
        }
        assert!(written(&mut lanes).is_empty(), "one at a time");
        lanes.durable(&v("a"));
        assert_eq!(all(&mut lanes), [1]);
        assert_eq!(written(&mut lanes), [v("a")]);
        lanes.durable(&v("a"));
        assert_eq!(all(&mut lanes), [2, 3]);
        assert!(lanes.is_empty());
    }

    #[test]
    fn what_names_a_node_waits_for_its_record_and_holds_what_follows() {
        let mut lanes = Lanes::default();
        let node = Key::node("n");
        lanes.change(&node, |_| {});
        lanes.line_up(&v("a"), std::slice::from_ref(&node), 1).unwrap();
        lanes.line_up(&v("a"), &[], 2).unwrap();
        lanes.line_up(&v("b"), &[Key::node("other")], 3).unwrap();
        assert_eq!(all(&mut lanes), [3]);
        written(&mut lanes);
        // A later change of the node is none that they rest on.
        lanes.change(&node, |_| {});
        lanes.durable(&node);
        assert_eq!(all(&mut lanes), [1, 2]);
        assert_eq!(written(&mut lanes), std::slice::from_ref(&node));
        lanes.durable(&node);
        assert!(all(&mut lanes).is_empty());
        assert!(lanes.is_empty());
    }

    #[test]
    fn a_lane_that_begins_again_holds_nobody_who_waited_for_the_first() {
        let mut lanes = Lanes::default();
        let node = Key::node("n");
        lanes.change(&v("a"), |_| {});
        lanes.change(&node, |_| {});
        lanes.line_up(&v("a"), std::slice::from_ref(&node), 1).unwrap();
        written(&mut lanes);
        lanes.durable(&node);
        assert!(all(&mut lanes).is_empty(), "the volume's own record is not durable");
        lanes.change(&node, |_| {});
        lanes.durable(&v("a"));
        assert_eq!(all(&mut lanes), [1]);
    }

    #[test]
    fn what_comes_after_all_volumes_waits_for_each_that_was_changed_before() {
        let mut lanes = Lanes::default();
        for volume in ["a", "b"] {
            lanes.change(&v(volume), |_| {});
        }
        lanes.line_up_after_volumes(None, 1);
        lanes.change(&v("c"), |_| {});
        written(&mut lanes);
        lanes.durable(&v("a"));
        assert!(all(&mut lanes).is_empty());
        lanes.durable(&v("b"));
        assert_eq!(all(&mut lanes), [1]);
        assert!(!lanes.is_empty());
    }

    #[test]
    fn what_rests_on_several_is_done_once_with_the_last_of_them() {
        let mut lanes = Lanes::default();
        for volume in ["a", "b", "c"] {
            lanes.change(&v(volume), |_| {});
        }
        lanes.line_up_after(&[v("a"), v("b")], 1);
        lanes.line_up_after(&[v("b"), v("c")], 2);
        written(&mut lanes);
        // A later change is none that they rest on.
        lanes.change(&v("b"), |_| {});
        lanes.durable(&v("c"));
        assert!(all(&mut lanes).is_empty());
        lanes.durable(&v("b"));
        assert_eq!(all(&mut lanes), [2]);
        assert_eq!(
            lanes.resting.len(),
            1,
            "who becomes durable is asked for what rests on it, and nobody else"
        );
        lanes.give_up(&v("a"));
        assert_eq!(all(&mut lanes), [1]);
        written(&mut lanes);
        lanes.durable(&v("b"));
        assert!(all(&mut lanes).is_empty() && lanes.is_empty() && lanes.resting.is_empty());
    }

    #[test]
    fn after_a_refused_write_the_next_record_is_waited_for() {
        let mut lanes = Lanes::default();
        lanes.change(&v("a"), |_| {});
        for work in 1..=3 {
            lanes.line_up(&v("a"), &[], work).unwrap();
        }
        assert_eq!(written(&mut lanes), [v("a")]);
        assert_eq!(lanes.refused(&v("a"), |_| {}, |work| *work != 2), [1, 3]);
        lanes.change(&v("a"), |wanted| wanted.unsettled = Some(false));
        assert!(all(&mut lanes).is_empty() && written(&mut lanes).is_empty(), "this is no other record");
        lanes.change(&v("a"), |wanted| wanted.volume(None));
        assert_eq!(written(&mut lanes), [v("a")]);
        lanes.durable(&v("a"));
        assert_eq!(all(&mut lanes), [2]);
        assert!(lanes.is_empty());
    }

    #[test]
    fn a_record_that_is_given_up_gives_back_its_own_and_holds_nobody() {
        let mut lanes = Lanes::default();
        lanes.change(&v("a"), |_| {});
        lanes.line_up(&v("a"), &[], 1).unwrap();
        lanes.line_up_after_volumes(None, 2);
        written(&mut lanes);
        assert_eq!(lanes.give_up(&v("a")), [1]);
        assert_eq!(all(&mut lanes), [2]);
        assert!(lanes.is_empty());
    }

    #[test]
    fn a_lane_takes_so_much_and_the_others_go_on() {
        let mut lanes = Lanes::default();
        lanes.change(&v("a"), |_| {});
        let mut work = 0..;
        let refused = loop {
            let next = work.next().unwrap();
            if let Err(refused) = lanes.line_up(&v("a"), &[], next) {
                break refused;
            }
        };
        assert_eq!(refused, LANE);
        lanes.line_up(&v("b"), &[], 7).unwrap();
        assert_eq!(all(&mut lanes), [7]);
    }
}

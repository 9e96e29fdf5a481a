//! What a volume holds at one moment, run by run, so that two moments can be compared.
//!
//! In: every block that is not a hole. Out: a [`Census`]. What always holds: a block that comes, goes or changes
//! between two censuses is seen; nothing is judged here but that.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::record::{Block, Decoded, Name, Record};

/// What a volume holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// Whole records, by the run that wrote them.
    pub runs: BTreeMap<Uuid, RunCensus>,
    /// Blocks that hold something else than a whole record.
    pub damaged: u64,
}

/// What a volume holds of one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunCensus {
    /// The node that the run was on.
    pub node: Name,
    /// Whole records.
    pub records: u64,
    /// The highest number.
    pub last: u64,
    /// Changes with every block and its place.
    digest: u64,
}

impl Census {
    /// Takes one block. Each block of the volume that is not known to be a hole is given once.
    pub fn block(&mut self, number: u64, bytes: &Block) {
        let record = match Record::decode(bytes) {
            Decoded::Blank => return,
            Decoded::Damaged(_) => {
                self.damaged += 1;
                return;
            }
            Decoded::Record(record) => record,
        };
        let blank = RunCensus { node: record.node, records: 0, last: 0, digest: 0 };
        let run = self.runs.entry(record.nonce).or_insert(blank);
        run.records += 1;
        run.last = run.last.max(record.sequence);
        // The time of writing is in the block, so a number that is written again is another block.
        let place = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        run.digest =
            run.digest.wrapping_add((Record::checksum(bytes) ^ place).wrapping_mul(0x94d0_49bb_1331_11eb));
    }

    /// Records of a run.
    #[must_use]
    pub fn records(&self, run: Uuid) -> u64 {
        self.runs.get(&run).map_or(0, |run| run.records)
    }

    /// Records of a run that have landed since an earlier census; at least one if anything of it has changed.
    #[must_use]
    pub fn landed_since(&self, earlier: &Self, run: Uuid) -> u64 {
        let more = self.records(run).saturating_sub(earlier.records(run));
        more.max(u64::from(self.runs.get(&run) != earlier.runs.get(&run)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(nonce: Uuid, sequence: u64, wall_ns: u64) -> Block {
        let name = |text: &str| text.parse().expect("name");
        let (volume, node) = (name("pvc-1"), name("node-a"));
        Record { nonce, sequence, region: 0, volume, node, wall_ns, monotonic_ns: 0 }.encode()
    }

    #[test]
    fn what_lands_between_two_censuses_is_seen_and_so_is_what_is_written_over() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut then = Census::default();
        then.block(3, &block(a, 1, 10));
        then.block(9, &block(b, 7, 10));
        let mut now = then.clone();
        assert_eq!((now.landed_since(&then, a), now.landed_since(&then, b)), (0, 0));
        now.block(4, &block(a, 2, 11));
        now.block(5, &block(a, 3, 11));
        assert_eq!((now.landed_since(&then, a), now.landed_since(&then, b)), (2, 0));
        let mut over = Census::default();
        over.block(3, &block(a, 1, 99));
        over.block(9, &block(b, 7, 10));
        assert_eq!((over.landed_since(&then, a), over.landed_since(&then, b)), (1, 0));
    }
}

//! One record: a block that says who wrote it, when, as which number, and whether it is whole.
//!
//! In: the fields. Out: 4096 bytes, and back. What always holds: no two records of any runs have the same bytes,
//! every bit of the block is covered by the checksum, and a block of zeros is no record.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// Size of a record, and of every write.
pub const BLOCK_BYTES: usize = 4096;

/// A block's bytes.
pub type Block = [u8; BLOCK_BYTES];

const MAGIC: [u8; 8] = *b"CLEATSEQ";
const CHECKSUM: usize = 8;
const NONCE: usize = 16;
const SEQUENCE: usize = 32;
const REGION: usize = 40;
const VOLUME_LENGTH: usize = 44;
const NODE_LENGTH: usize = 46;
const WALL: usize = 48;
const MONOTONIC: usize = 56;
const VOLUME: usize = 64;
const NODE: usize = 192;
const FILL: usize = 320;

/// The name of a volume or a node, short enough to be in every record: 1 to 128 bytes, no control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    const MAX_BYTES: usize = NODE - VOLUME;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A name that no record can carry.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} cannot be in a record: 1 to {max} bytes without control characters are needed", max = Name::MAX_BYTES)]
pub struct BadName(String);

impl TryFrom<String> for Name {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        if text.is_empty() || text.len() > Self::MAX_BYTES || text.chars().any(char::is_control) {
            return Err(BadName(text));
        }
        Ok(Self(text))
    }
}

impl FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        Self::try_from(text.to_owned())
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The run that wrote it: another one for every start of the writer.
    pub nonce: Uuid,
    /// Its number in the sequence that goes through all runs.
    pub sequence: u64,
    /// The region that the run owns.
    pub region: u32,
    /// The volume that the writer was told it writes to.
    pub volume: Name,
    /// The node that the writer runs on.
    pub node: Name,
    /// The writer's clock, nanoseconds since 1970.
    pub wall_ns: u64,
    /// The writer's kernel's monotonic clock, nanoseconds.
    pub monotonic_ns: u64,
}

/// What a block turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// Zeros: nothing was ever written here.
    Blank,
    /// A whole record.
    Record(Record),
    /// Something else; why it is no record.
    Damaged(&'static str),
}

impl Record {
    /// The bytes of the record.
    #[must_use]
    pub fn encode(&self) -> Block {
        let mut block = [0; BLOCK_BYTES];
        block[..MAGIC.len()].copy_from_slice(&MAGIC);
        block[NONCE..NONCE + 16].copy_from_slice(self.nonce.as_bytes());
        block[SEQUENCE..SEQUENCE + 8].copy_from_slice(&self.sequence.to_le_bytes());
        block[REGION..REGION + 4].copy_from_slice(&self.region.to_le_bytes());
        block[WALL..WALL + 8].copy_from_slice(&self.wall_ns.to_le_bytes());
        block[MONOTONIC..MONOTONIC + 8].copy_from_slice(&self.monotonic_ns.to_le_bytes());
        put_name(&mut block, VOLUME_LENGTH, VOLUME, &self.volume);
        put_name(&mut block, NODE_LENGTH, NODE, &self.node);
        fill(&mut block[FILL..], self.nonce, self.sequence);
        let sum = checksum(&block);
        block[CHECKSUM..CHECKSUM + 8].copy_from_slice(&sum.to_le_bytes());
        block
    }

    /// The checksum that a block of a whole record carries.
    #[must_use]
    pub fn checksum(block: &Block) -> u64 {
        u64_at(block, CHECKSUM)
    }

    /// What a block of a device is.
    #[must_use]
    pub fn decode(block: &Block) -> Decoded {
        if block.iter().all(|byte| *byte == 0) {
            return Decoded::Blank;
        }
        if block[..MAGIC.len()] != MAGIC {
            return Decoded::Damaged("it does not begin as a record does");
        }
        if u64_at(block, CHECKSUM) != checksum(block) {
            return Decoded::Damaged("its checksum is wrong");
        }
        let names = name_at(block, VOLUME_LENGTH, VOLUME).zip(name_at(block, NODE_LENGTH, NODE));
        let Some((volume, node)) = names else {
            return Decoded::Damaged("its names are none");
        };
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&block[NONCE..NONCE + 16]);
        let mut region = [0; 4];
        region.copy_from_slice(&block[REGION..REGION + 4]);
        Decoded::Record(Self {
            nonce: Uuid::from_bytes(nonce),
            sequence: u64_at(block, SEQUENCE),
            region: u32::from_le_bytes(region),
            volume,
            node,
            wall_ns: u64_at(block, WALL),
            monotonic_ns: u64_at(block, MONOTONIC),
        })
    }
}

fn put_name(block: &mut Block, length_at: usize, at: usize, name: &Name) {
    let bytes = name.0.as_bytes();
    // Name::MAX_BYTES is 128.
    let length = bytes.len() as u16;
    block[length_at..length_at + 2].copy_from_slice(&length.to_le_bytes());
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

fn name_at(block: &Block, length_at: usize, at: usize) -> Option<Name> {
    let length = usize::from(u16::from_le_bytes([block[length_at], block[length_at + 1]]));
    let bytes = block.get(at..at + length).filter(|_| length <= Name::MAX_BYTES)?;
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

fn u64_at(block: &Block, at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&block[at..at + 8]);
    u64::from_le_bytes(bytes)
}

/// Bytes that differ from block to block all over the block (splitmix64), so that a torn write cannot hide in a
/// part that is the same in all of them.
fn fill(bytes: &mut [u8], nonce: Uuid, sequence: u64) {
    let (high, low) = nonce.as_u64_pair();
    let mut state = high ^ low.rotate_left(17) ^ sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for word in bytes.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
}

/// A sum over every word but the sum's own. Each step is a bijection of the state for a given word and of the word
/// for a given state, so a change within any one word always changes the sum; other damage escapes with 2^-64.
/// Cheap enough to be computed for every write in an emulated guest.
fn checksum(block: &Block) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    for at in (0..BLOCK_BYTES).step_by(8).filter(|at| *at != CHECKSUM) {
        sum = (sum ^ u64_at(block, at)).wrapping_mul(0x9fb2_1c65_1e98_df25);
        sum ^= sum >> 32;
    }
    sum
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn record(nonce: u128, region: u32, sequence: u64) -> Record {
        Record {
            nonce: Uuid::from_u128(nonce),
            sequence,
            region,
            volume: "pvc-1".parse().expect("name"),
            node: "node-a".parse().expect("name"),
            wall_ns: 1,
            monotonic_ns: 2,
        }
    }

    #[test]
    fn a_blank_block_is_no_record_and_no_damage() {
        assert_eq!(Record::decode(&[0; BLOCK_BYTES]), Decoded::Blank);
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        assert!("".parse::<Name>().is_err());
        assert!("a\nb".parse::<Name>().is_err());
        assert!("x".repeat(129).parse::<Name>().is_err());
        assert!("x".repeat(128).parse::<Name>().is_ok());
    }

    proptest! {
        #[test]
        fn a_record_reads_back_as_it_was_written(
            nonce: u128, sequence: u64, region: u32, wall_ns: u64, monotonic_ns: u64,
            volume in "[a-z0-9.-]{1,128}", node in "[a-zäö0-9]{1,40}",
        ) {
            let record = Record {
                nonce: Uuid::from_u128(nonce), sequence, region, wall_ns, monotonic_ns,
                volume: volume.parse().expect("name"), node: node.parse().expect("name"),
            };
            prop_assert_eq!(Record::decode(&record.encode()), Decoded::Record(record));
        }

        #[test]
        fn any_flipped_bit_is_damage(nonce: u128, sequence: u64, bit in 0..BLOCK_BYTES * 8) {
            let mut block = record(nonce, 0, sequence).encode();
            block[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(matches!(Record::decode(&block), Decoded::Damaged(_)));
        }

        #[test]
        fn a_torn_write_is_damage(nonce: u128, sequence: u64, sectors in 1..8usize, older: Option<u64>) {
            let mut block = record(nonce, 0, sequence).encode();
            let before = match older {
                Some(other) if other != sequence => record(nonce, 0, other).encode(),
                _ => [0; BLOCK_BYTES],
            };
            block[..sectors * 512].copy_from_slice(&before[..sectors * 512]);
            prop_assert!(matches!(Record::decode(&block), Decoded::Damaged(_)));
        }
    }
}

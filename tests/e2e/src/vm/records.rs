//! The judge of what lies on the disk: the guest's records, read back from the first one on.
//!
//! In: bytes, whose records they should be, and the last number that the target has seen arrive. Out: a
//! [`RecordVerdict`]. What always holds: a record that is missing, torn, of another run or another number is bad; bytes that
//! were not read are bad, too. Two guests that both go on write the same records, so whole records alone show nothing of a
//! split: the time-stamp counter does, where both have written, and the order of arrivals ([`super::arrivals`]) always.

use super::guest::{self, HEADER_WORDS, RECORD_BYTES};

const RECORD: usize = RECORD_BYTES as usize;
/// So many bad records are named.
const NAMED: usize = 8;

/// What the disk holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordVerdict {
    /// Records that are whole and in their place.
    pub whole: u64,
    /// Records that are not.
    pub bad: u64,
    /// The first of those, for people.
    pub first_bad: Vec<BadRecord>,
    /// Records of this run behind the last one that arrived.
    pub beyond_end: u64,
    /// Records whose time-stamp counter is not higher than that of the record before.
    pub counter_back: u64,
    /// Writes that the guest saw fail, as its last whole record says.
    pub guest_errors: u32,
}

impl RecordVerdict {
    /// Whether every record is there, once, in order.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.whole > 0 && self.bad == 0 && self.beyond_end == 0 && self.counter_back == 0
    }
}

/// A record that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRecord {
    /// Its number.
    pub number: u64,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Judges the records 0 to `last` of the run `nonce`, whose first lies at the beginning of `bytes` and at `first_byte` of
/// the disk. What `bytes` holds behind the last one is searched for more of the run.
#[must_use]
pub fn judge(bytes: &[u8], nonce: u32, first_byte: u32, last: u64) -> RecordVerdict {
    let mut verdict = RecordVerdict::default();
    let mut before = None;
    let mut blocks = bytes.chunks_exact(RECORD);
    for number in 0..=last {
        let read = blocks.next().ok_or("it was not read").and_then(|block| {
            let expected = u32::try_from(number).map_err(|_| "there is no such number")?;
            read(block, nonce, first_byte, expected)
        });
        match read {
            Ok(header) => {
                verdict.whole += 1;
                verdict.guest_errors = header.errors;
                verdict.counter_back += u64::from(before.is_some_and(|before| header.counter <= before));
                before = Some(header.counter);
            }
            Err(why) => {
                verdict.bad += 1;
                if verdict.first_bad.len() < NAMED {
                    verdict.first_bad.push(BadRecord { number, why });
                }
            }
        }
    }
    verdict.beyond_end = blocks.filter(|block| word(block, 0) == nonce).count() as u64;
    verdict
}

/// What of a whole record is judged against others.
struct Header {
    counter: u64,
    errors: u32,
}

fn word(block: &[u8], index: usize) -> u32 {
    let bytes = block.get(4 * index..4 * index + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}

fn read(block: &[u8], nonce: u32, first_byte: u32, number: u32) -> Result<Header, &'static str> {
    let header: [u32; HEADER_WORDS] = std::array::from_fn(|index| word(block, index));
    let [whose, says, place, low, high, _ticks, errors, check] = header;
    let expected_place = u64::from(first_byte) / 512 + u64::from(number) * (RECORD_BYTES / 512);
    if whose != nonce {
        return Err("it is of no guest of this run");
    }
    if says != number {
        return Err("it has another number");
    }
    if u64::from(place) != expected_place {
        return Err("it was written for another place");
    }
    if guest::check(&header) != check {
        return Err("its head is torn");
    }
    if (HEADER_WORDS..RECORD / 4).any(|index| word(block, index) != number ^ nonce) {
        return Err("its filling is torn");
    }
    Ok(Header { counter: u64::from(high) << 32 | u64::from(low), errors })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: u32 = 0xfeed_0007;
    const FIRST: u32 = 32 << 10;

    /// A record as the guest makes it.
    fn record(nonce: u32, number: u32, counter: u64, errors: u32) -> Vec<u8> {
        let place = FIRST / 512 + number * 8;
        let mut header = [nonce, number, place, counter as u32, (counter >> 32) as u32, 18, errors, 0];
        header[7] = guest::check(&header);
        let filling = std::iter::repeat_n(number ^ nonce, RECORD / 4 - HEADER_WORDS);
        header.into_iter().chain(filling).flat_map(u32::to_le_bytes).collect()
    }

    fn image(records: u32) -> Vec<u8> {
        (0..records).flat_map(|n| record(NONCE, n, (1 << 32) - 5 + u64::from(n) * 4, 0)).collect()
    }

    fn judged(bytes: &[u8], last: u64) -> RecordVerdict {
        judge(bytes, NONCE, FIRST, last)
    }

    #[test]
    fn a_whole_sequence_is_clean() {
        let verdict = judged(&image(100), 99);
        assert_eq!((verdict.whole, verdict.bad), (100, 0));
        assert!(verdict.is_clean(), "{verdict:?}");
    }

    #[test]
    fn a_missing_torn_or_foreign_record_is_bad_and_named() {
        let mut bytes = image(10);
        bytes[3 * RECORD + 4095] ^= 1;
        bytes[4 * RECORD + 20] ^= 1;
        bytes[5 * RECORD..6 * RECORD].fill(0);
        bytes[6 * RECORD..7 * RECORD].copy_from_slice(&record(NONCE ^ 1, 6, 9, 0));
        let other: Vec<u8> = record(NONCE, 9, 9, 0);
        bytes[7 * RECORD..8 * RECORD].copy_from_slice(&other);
        let verdict = judged(&bytes, 9);
        assert_eq!((verdict.whole, verdict.bad, verdict.is_clean()), (5, 5, false));
        let numbers: Vec<u64> = verdict.first_bad.iter().map(|bad| bad.number).collect();
        assert_eq!(numbers, [3, 4, 5, 6, 7]);
    }

    #[test]
    fn what_was_not_read_is_bad() {
        let verdict = judged(&image(10), 19);
        assert_eq!((verdict.whole, verdict.bad), (10, 10));
        assert!(!judged(&[], 0).is_clean());
    }

    #[test]
    fn a_record_behind_the_last_that_arrived_is_found() {
        let verdict = judged(&image(12), 9);
        assert_eq!((verdict.bad, verdict.beyond_end, verdict.is_clean()), (0, 2, false));
    }

    #[test]
    fn a_split_brain_shows_in_the_counter_where_both_have_written() {
        let mut bytes = image(10);
        // The copy that lagged behind wrote record 5 once more, later by its own clock.
        bytes[5 * RECORD..6 * RECORD].copy_from_slice(&record(NONCE, 5, u64::MAX, 0));
        let verdict = judged(&bytes, 9);
        assert_eq!((verdict.bad, verdict.counter_back), (0, 1));
        assert!(!verdict.is_clean());
    }

    #[test]
    fn failed_writes_are_reported_as_the_guest_counted_them() {
        let bytes = [record(NONCE, 0, 1, 0), record(NONCE, 1, 2, 3)].concat();
        assert_eq!(judged(&bytes, 1).guest_errors, 3);
    }
}

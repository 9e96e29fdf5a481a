//! The data structure of a Reservation Report, read from bytes. Pure.
//!
//! Comes in: the bytes that the target returned, any of which may be wrong. Goes out: a [`ReservationReport`], or which
//! field cannot be right.
//!
//! Always holds: nothing outside the bytes is read. A list that is longer than the bytes is an error with the
//! length that is needed, never a shorter list.
//!
//! Layout: NVM Express base specification, "Reservation Report": a header, then one entry per registered controller
//! (or per registrant: Linux's target makes one per host, with controller id FFFFh). The extended form has host
//! identifiers of 128 bits, which NVMe over fabrics always uses.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::ReservationKey;
use crate::name::HostId;

/// Bytes of the header in the extended form, and of each entry.
const EXTENDED: usize = 64;
/// Offset and length of the fields that both forms share.
const RTYPE: usize = 4;
const REGCTL: usize = 5;
const PTPLS: usize = 9;

/// Which kind of reservation the namespace has (the field RTYPE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReservationKind {
    /// Only the holder writes.
    WriteExclusive,
    /// Only the holder reads and writes.
    ExclusiveAccess,
    /// Registrants write; one of them is the holder.
    WriteExclusiveRegistrantsOnly,
    /// Registrants read and write; one of them is the holder.
    ExclusiveAccessRegistrantsOnly,
    /// Registrants write, and all of them are holders: the kind that Cleat uses.
    WriteExclusiveAllRegistrants,
    /// Registrants read and write, and all of them are holders.
    ExclusiveAccessAllRegistrants,
    /// A kind that this version does not know.
    Other(u8),
}

impl ReservationKind {
    /// The kind for a number of RTYPE; `None` for 0, no reservation.
    pub fn of(rtype: u8) -> Option<Self> {
        match rtype {
            0 => None,
            1 => Some(Self::WriteExclusive),
            2 => Some(Self::ExclusiveAccess),
            3 => Some(Self::WriteExclusiveRegistrantsOnly),
            4 => Some(Self::ExclusiveAccessRegistrantsOnly),
            5 => Some(Self::WriteExclusiveAllRegistrants),
            6 => Some(Self::ExclusiveAccessAllRegistrants),
            other => Some(Self::Other(other)),
        }
    }
}

impl fmt::Display for ReservationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WriteExclusive => "Write Exclusive",
            Self::ExclusiveAccess => "Exclusive Access",
            Self::WriteExclusiveRegistrantsOnly => "Write Exclusive - Registrants Only",
            Self::ExclusiveAccessRegistrantsOnly => "Exclusive Access - Registrants Only",
            Self::WriteExclusiveAllRegistrants => "Write Exclusive - All Registrants",
            Self::ExclusiveAccessAllRegistrants => "Exclusive Access - All Registrants",
            Self::Other(number) => return write!(f, "reservation type {number}"),
        })
    }
}

/// A host that has registered a key with the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Registrant {
    /// Its key as the target reports it, even 0, which is no valid key.
    pub key: u64,
    /// Its host identifier; `None` where the target reports all zeros.
    pub host: Option<HostId>,
    /// Whether it is a holder of the reservation.
    pub holds: bool,
}

/// What a Reservation Report shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReservationReport {
    /// Rises with every change of registrations; starts from the beginning when the target forgets them.
    pub generation: u32,
    /// The kind of the reservation; `None` where there is none.
    pub kind: Option<ReservationKind>,
    /// Whether reservations survive the target's loss of power.
    pub persists: bool,
    /// Who is registered, each host and key once, in the target's order.
    pub registrants: Vec<Registrant>,
}

impl ReservationReport {
    /// The registered keys, in order, each once.
    pub fn keys(&self) -> Vec<u64> {
        let keys: BTreeSet<u64> = self.registrants.iter().map(|one| one.key).collect();
        keys.into_iter().collect()
    }

    /// Whether a key is registered.
    pub fn has(&self, key: ReservationKey) -> bool {
        self.registrants.iter().any(|one| one.key == key.get())
    }

    /// The key under which a host is registered.
    pub fn key_of(&self, host: HostId) -> Option<ReservationKey> {
        let own = self.registrants.iter().find(|one| one.host == Some(host))?;
        ReservationKey::new(own.key)
    }

    /// Whether the reservation is Write Exclusive – All Registrants: then exactly the registrants can write.
    pub fn is_held(&self) -> bool {
        self.kind == Some(ReservationKind::WriteExclusiveAllRegistrants)
    }

    /// Whether `host` may write because it is registered under `key`.
    pub fn admits(&self, host: HostId, key: ReservationKey) -> bool {
        self.is_held() && self.key_of(host) == Some(key)
    }
}

/// Why these bytes are no report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadReport {
    /// The bytes are fewer than the header has.
    #[error("{bytes} bytes are too few for a header of {EXTENDED}")]
    NoHeader {
        /// How many bytes there are.
        bytes: usize,
    },
    /// The list is longer than the buffer.
    #[error("{registered} registered controllers need {needed} bytes, the buffer had {bytes}")]
    Truncated {
        /// How many entries the header announces.
        registered: usize,
        /// How many bytes the whole report takes.
        needed: usize,
        /// How many bytes there are.
        bytes: usize,
    },
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

impl ReservationReport {
    /// Reads a report.
    ///
    /// # Errors
    /// [`BadReport`]; after `Truncated`, ask again with a buffer of the length that it names.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadReport> {
        let no_header = BadReport::NoHeader { bytes: bytes.len() };
        let header = bytes.get(..EXTENDED).ok_or(no_header)?;
        let generation = u32::from_le_bytes(field(header, 0).ok_or(no_header)?);
        let [rtype] = field(header, RTYPE).ok_or(no_header)?;
        let registered = usize::from(u16::from_le_bytes(field(header, REGCTL).ok_or(no_header)?));
        let [ptpls] = field(header, PTPLS).ok_or(no_header)?;
        let needed = EXTENDED + registered * EXTENDED;
        let truncated = BadReport::Truncated { registered, needed, bytes: bytes.len() };
        let entries = bytes.get(EXTENDED..needed).ok_or(truncated)?;
        let mut registrants: Vec<Registrant> = Vec::new();
        for entry in entries.chunks_exact(EXTENDED) {
            let one = registrant(entry).ok_or(truncated)?;
            // One entry per controller: a host with several controllers is still one registrant.
            match registrants.iter_mut().find(|known| known.host == one.host && known.key == one.key) {
                Some(known) => known.holds |= one.holds,
                None => registrants.push(one),
            }
        }
        Ok(Self { generation, kind: ReservationKind::of(rtype), persists: ptpls & 1 != 0, registrants })
    }
}

fn registrant(entry: &[u8]) -> Option<Registrant> {
    let [status] = field(entry, 2)?;
    let key = u64::from_le_bytes(field(entry, 8)?);
    let host: [u8; 16] = field(entry, 16)?;
    Some(Registrant { key, host: HostId::from_bytes(host), holds: status & 1 != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "11111111-2222-3333-4444-555555555555";
    const B: &str = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee";

    fn host(text: &str) -> HostId {
        HostId::parse(text).expect("valid")
    }

    fn key(number: u64) -> ReservationKey {
        ReservationKey::new(number).expect("not zero")
    }

    /// A report as a Linux target fills it in: controller id FFFFh, one entry per host.
    fn bytes(rtype: u8, registered: u16, entries: &[(u64, &str, bool)]) -> Vec<u8> {
        let mut bytes = vec![0_u8; 64];
        bytes[..4].copy_from_slice(&7_u32.to_le_bytes());
        bytes[4] = rtype;
        bytes[5..7].copy_from_slice(&registered.to_le_bytes());
        for (key, host, holds) in entries {
            let mut entry = vec![0_u8; 64];
            entry[..2].copy_from_slice(&0xffff_u16.to_le_bytes());
            entry[2] = u8::from(*holds);
            entry[8..16].copy_from_slice(&key.to_le_bytes());
            entry[16..32].copy_from_slice(self::host(host).as_uuid().as_bytes());
            bytes.extend(entry);
        }
        bytes
    }

    #[test]
    fn two_registrants_of_a_namespace_that_all_registrants_hold() {
        let mut bytes = bytes(5, 2, &[(0x1122_3344_5566_7788, A, true), (2, B, true)]);
        // The buffer is longer than what the target has filled.
        bytes.resize(4096, 0);
        let report = ReservationReport::parse(&bytes).expect("reads");
        assert_eq!((report.generation, report.persists), (7, false));
        assert_eq!(report.kind, Some(ReservationKind::WriteExclusiveAllRegistrants));
        assert_eq!(report.keys(), [2, 0x1122_3344_5566_7788]);
        assert!(report.admits(host(A), key(0x1122_3344_5566_7788)));
        assert!(!report.admits(host(A), key(2)), "another host's key");
        assert_eq!(report.key_of(host(B)), Some(key(2)));
    }

    #[test]
    fn a_target_that_has_forgotten_everything_admits_nobody_by_reservation() {
        let report = ReservationReport::parse(&bytes(0, 0, &[])).expect("reads");
        assert!(report.keys().is_empty() && !report.is_held() && report.kind.is_none());
        assert!(!report.admits(host(A), key(1)));
    }

    #[test]
    fn registered_alone_is_not_held() {
        let report = ReservationReport::parse(&bytes(0, 1, &[(1, A, false)])).expect("reads");
        assert!(report.has(key(1)) && !report.admits(host(A), key(1)));
        let other = ReservationReport::parse(&bytes(1, 1, &[(1, A, true)])).expect("reads");
        assert!(!other.admits(host(A), key(1)), "Write Exclusive keeps the other registrants out");
        assert_eq!(
            ReservationKind::of(9).map(|kind| kind.to_string()).as_deref(),
            Some("reservation type 9")
        );
    }

    #[test]
    fn one_host_with_several_controllers_is_one_registrant() {
        let report = ReservationReport::parse(&bytes(5, 2, &[(1, A, false), (1, A, true)]));
        let report = report.expect("reads");
        assert_eq!(report.registrants, [Registrant { key: 1, host: Some(host(A)), holds: true }]);
    }

    #[test]
    fn a_list_that_is_longer_than_the_bytes_names_the_length_that_it_needs() {
        let short = ReservationReport::parse(&bytes(5, 3, &[(1, A, true), (2, B, true)]));
        assert_eq!(short, Err(BadReport::Truncated { registered: 3, needed: 256, bytes: 192 }));
        let most = ReservationReport::parse(&bytes(5, u16::MAX, &[]));
        assert!(matches!(most, Err(BadReport::Truncated { registered: 65535, .. })));
    }

    #[test]
    fn no_cut_of_a_report_panics_or_reads_as_a_shorter_list() {
        let whole = bytes(5, 2, &[(1, A, true), (2, B, true)]);
        for length in 0..whole.len() {
            assert!(ReservationReport::parse(&whole[..length]).is_err(), "{length} bytes");
        }
        let noise: Vec<u8> = (0..4096_u32).map(|n| u8::try_from(n * 31 % 251).unwrap_or(0)).collect();
        let _ = ReservationReport::parse(&noise);
    }

    #[test]
    fn a_host_of_zeros_is_nobody() {
        let mut bytes = bytes(5, 1, &[(1, A, true)]);
        bytes[64 + 16..64 + 32].fill(0);
        let report = ReservationReport::parse(&bytes).expect("reads");
        assert_eq!(report.registrants[0].host, None);
        assert!(report.has(key(1)));
    }
}

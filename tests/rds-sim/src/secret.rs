//! In-band secrets (DH-HMAC-CHAP, NVMe base specification 8.3.5.5): what a disk's password becomes at the target.
//!
//! In: `nvme-tcp-server-password`. Out: a [`Secret`] in the form that hosts and nvmet take,
//! `DHHC-1:00:<base64 of key and checksum>:`. What always holds: the same password is the same secret everywhere; a
//! secret is in no debug output, and so in no log.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const PREFIX: &str = "DHHC-1:";

/// A secret as `dhchap_secret` of nvme-fabrics and `dhchap_key` of nvmet take it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// What a password becomes: one that has the form already is taken as it is, any other is made a key of 32
    /// bytes. (How RouterOS makes its read-only `nvme-tcp-server-secret` of the password is not known.)
    pub fn of_password(password: &str) -> Self {
        if password.starts_with(PREFIX) {
            return Self(password.to_owned());
        }
        let mut key = Sha256::digest(password.as_bytes()).to_vec();
        key.extend_from_slice(&crc32(&key).to_le_bytes());
        Self(format!("{PREFIX}00:{}:", STANDARD.encode(key)))
    }

    /// What the kernel shows of one; `None` if it shows nothing.
    pub fn shown(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// The text, for the kernel and for the host that may know it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// CRC-32 as of Ethernet: the secret's own checksum (TP 8006).
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_becomes_a_secret_with_its_checksum_and_a_secret_stays_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926); // the check value of this CRC
        let made = Secret::of_password("word");
        let (start, rest) = made.reveal().split_at(PREFIX.len() + 3);
        assert_eq!(start, "DHHC-1:00:");
        let key = STANDARD.decode(rest.trim_end_matches(':')).expect("base64");
        assert_eq!(key.len(), 36);
        assert_eq!(Secret::of_password(made.reveal()), made);
        assert_eq!(format!("{made:?}"), "Secret(…)");
    }
}

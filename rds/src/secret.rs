//! Secrets of in-band authentication (DH-HMAC-CHAP), one for each volume and generation.
//!
//! Comes in: a file with the master key. Goes out: [`Secret`]s, always the same ones for the same key, volume
//! and generation, so that none is ever stored. Always holds: only [`Secret::reveal`] shows a secret, never
//! `Debug`; and a key that others on this machine may read is refused.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cleat_ids::{Epoch, VolumeId};
use zeroize::Zeroizing;

mod keys;

pub use keys::{Era, KeyId, Keys, NoKey, NoSecret, NotAKeyId, secret};

/// As many bytes as a secret has: fewer would make all secrets weaker than they look.
const KEY_BYTES_MIN: usize = 32;
/// Nobody needs more; a device file or a disk image given by mistake is not read to its end.
const KEY_BYTES_MAX: usize = 4096;
/// Permissions of the file for anybody but its owner.
const OTHERS: u32 = 0o077;

/// Why a master key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read key file {}", path.display())]
    Unreadable {
        /// The key file that was named.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// Others than its owner may read or write the file.
    #[error("cannot use key file {}: it has mode {mode:04o}, and nobody but its owner may read or write it; \
             do chmod 600", path.display())]
    Open {
        /// The key file that was named.
        path: PathBuf,
        /// The file's permission bits.
        mode: u32,
    },
    /// The file is not a regular one, or has too few or too many bytes.
    #[error(
        "cannot use key file {}: it is not a file of {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes (make one: \
         openssl rand -out FILE 32)",
        path.display()
    )]
    Size {
        /// The key file that was named.
        path: PathBuf,
    },
}

/// The key from which all secrets are derived.
#[derive(Clone)]
pub struct MasterKey(hmac::Key);

impl MasterKey {
    /// Reads the key from its file, every byte unchanged.
    ///
    /// # Errors
    /// Where the file cannot be read, is too short or too long, or others may read it.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let unreadable = |source| KeyError::Unreadable { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        // From the open file: what is checked is what is read.
        let metadata = file.metadata().map_err(unreadable)?;
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & OTHERS != 0 {
            return Err(KeyError::Open { path: path.to_owned(), mode });
        }
        // As large as it can become: a buffer that grows is copied, and copies stay in memory.
        let mut key = Zeroizing::new(Vec::with_capacity(KEY_BYTES_MAX + 1));
        if metadata.is_file() {
            file.take(KEY_BYTES_MAX as u64 + 1).read_to_end(&mut key).map_err(unreadable)?;
        }
        if !(KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&key.len()) {
            return Err(KeyError::Size { path: path.to_owned() });
        }
        Ok(Self::new(&key))
    }

    fn new(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// A key that is stored nowhere, for secrets of something short-lived.
    #[must_use]
    pub fn passing(key: &[u8; KEY_BYTES_MIN]) -> Self {
        Self::new(key)
    }

    /// Its id, which is derived from it and reveals nothing of it.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let mut id = [0; 8];
        id.copy_from_slice(&hmac::sign(&self.0, b"cleat key id 1\0").as_ref()[..8]);
        KeyId(id)
    }

    /// The secret of a volume in a generation.
    #[must_use]
    pub fn secret(&self, volume: &VolumeId, generation: Epoch) -> Secret {
        let mut context = hmac::Context::with_key(&self.0);
        // The purpose, so that no other use of the key can give the same; a volume id has no zero byte.
        context.update(b"cleat dhchap 1\0");
        context.update(volume.as_str().as_bytes());
        context.update(b"\0");
        context.update(&generation.term.to_be_bytes());
        context.update(&generation.seq.to_be_bytes());
        Secret::from_key(context.sign().as_ref())
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

/// A secret as hosts and targets take it: `DHHC-1:00:<base64 of key and CRC>:`.
///
/// The form is that of NVMe TP 8006, section 8.13.5.8.1, as Linux reads it (`nvme_auth_extract_key` in
/// drivers/nvme/common/auth.c): a key of 32, 48 or 64 bytes, followed by its CRC-32 (that of zlib) in
/// little-endian order, both in base64; `00` means that the key is used unchanged.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    fn from_key(key: &[u8]) -> Self {
        let mut bytes = Zeroizing::new(Vec::with_capacity(key.len() + 4));
        bytes.extend(key);
        bytes.extend(crc32(key).to_le_bytes());
        let text = Zeroizing::new(STANDARD.encode(&*bytes));
        Self(Zeroizing::new(format!("DHHC-1:00:{}:", *text)))
    }

    /// The text that a device shows, for a comparison.
    pub(crate) fn read_back(shown: String) -> Self {
        Self(Zeroizing::new(shown))
    }

    /// The secret itself: for the request to the RDS, and for nothing that is stored.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    #[cfg(test)]
    pub(crate) fn for_test(number: u8) -> Self {
        Self::from_key(&[number; 32])
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// CRC-32 as in zlib and Ethernet (IEEE 802.3), bit by bit: it is needed for 32 bytes now and then.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt as _;

    use super::*;

    fn generation(seq: u64) -> Epoch {
        Epoch { term: 7, seq }
    }

    fn volume(id: &str) -> VolumeId {
        VolumeId::new(id).unwrap()
    }

    /// The example of the specification, which every implementation is tried with.
    #[test]
    fn the_form_is_that_of_the_specification() {
        let example = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";
        let bytes = STANDARD.decode(&example[10..example.len() - 1]).unwrap();
        assert_eq!(Secret::from_key(&bytes[..32]).reveal(), example);
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn each_volume_and_generation_has_its_own_and_always_the_same() {
        let key = MasterKey::new(&[1; 32]);
        let secret = key.secret(&volume("v"), generation(1));
        assert_eq!(secret, MasterKey::new(&[1; 32]).secret(&volume("v"), generation(1)));
        for other in [
            key.secret(&volume("v"), generation(2)),
            key.secret(&volume("v2"), generation(1)),
            key.secret(&volume("v"), Epoch { term: 8, seq: 1 }),
            MasterKey::new(&[2; 32]).secret(&volume("v"), generation(1)),
        ] {
            assert_ne!(secret, other);
        }
    }

    #[test]
    fn debug_shows_nothing() {
        let key = MasterKey::new(&[1; 32]);
        let secret = key.secret(&volume("v"), generation(1));
        assert_eq!(format!("{key:?} {secret:?}"), "MasterKey(..) Secret(..)");
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, mode, bytes: &[u8]| {
            let path = dir.path().join(name);
            let mut options = File::options();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&path).unwrap();
            std::io::Write::write_all(&mut file, bytes).unwrap();
            file.set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        for mode in [0o600, 0o400] {
            MasterKey::load(&file(&format!("{mode:o}"), mode, &[7; 32])).unwrap();
        }
        for mode in [0o640, 0o604, 0o620] {
            let error = MasterKey::load(&file(&format!("{mode:o}"), mode, &[7; 32])).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")) && error.contains("chmod 600"), "{error}");
        }
        for (name, length) in [("short", 31), ("long", KEY_BYTES_MAX + 1)] {
            let error = MasterKey::load(&file(name, 0o600, &vec![7; length])).unwrap_err();
            assert!(matches!(error, KeyError::Size { .. }), "{error}");
        }
        let missing = MasterKey::load(&dir.path().join("missing")).unwrap_err();
        assert!(matches!(missing, KeyError::Unreadable { .. }), "{missing}");
    }
}

//! Which master key a generation's secret is derived from: the key can change while volumes are attached.
//!
//! Comes in: the current key, the one before it, and from which term on each was used, as the store has it.
//! Goes out: the secret of a volume in a generation, or the id of the key that is missing. Always holds: a
//! generation's secret stays the same from when the generation was chosen, or is not given at all.

use std::fmt;
use std::str::FromStr;

use cleat_ids::{Epoch, VolumeId};

use super::{MasterKey, Secret};

/// The id of a key: derived from the key, and revealing nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyId(pub(super) [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The error for a text that is no key id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key id {0:?} is not 16 hexadecimal digits")]
pub struct NotAKeyId(String);

impl FromStr for KeyId {
    type Err = NotAKeyId;

    fn from_str(text: &str) -> Result<Self, NotAKeyId> {
        let number = (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten();
        number.map(|number| Self(number.to_be_bytes())).ok_or_else(|| NotAKeyId(text.to_owned()))
    }
}

/// Since which term a key has been used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Era {
    /// The first term whose generations are derived from it.
    pub first_term: u64,
    /// The id of the key that was used from then on.
    pub key: KeyId,
}

/// The error for a generation whose key is not available.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKey {
    /// It is known, and not there.
    #[error(
        "the secret of volume {volume} was made with key {key}, which is neither in --secret-key-file nor in \
         --old-secret-key-file; give that key, or detach the volume from all nodes: then it gets another secret"
    )]
    NotGiven {
        /// The volume whose secret cannot be derived.
        volume: VolumeId,
        /// The id of the key that is missing.
        key: KeyId,
    },
    /// It is older than all that is noted.
    #[error(
        "nobody knows which key the secret of volume {0} was made with: what was noted of that is lost; note it again \
         (docs/operating.md, \"Fencing\"), or detach the volume from all nodes: then it gets another secret"
    )]
    NotNoted(VolumeId),
}

/// Why a volume's secret cannot be derived.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSecret {
    /// The controller has no keys at all.
    #[error(
        "volume {0} has a secret, but this controller runs without --secret-key-file; start it with the key \
         file that it had"
    )]
    NoKeys(VolumeId),
    /// The key of the generation is not among those that it has.
    #[error(transparent)]
    NoKey(#[from] NoKey),
}

/// The secret of a volume in a generation, from the available keys, if any.
///
/// # Errors
/// Where there are none, or where the right key is not among them.
pub fn secret(keys: Option<&Keys>, volume: &VolumeId, generation: Epoch) -> Result<Secret, NoSecret> {
    let keys = keys.ok_or_else(|| NoSecret::NoKeys(volume.clone()))?;
    Ok(keys.secret(volume, generation)?)
}

/// The available keys, and when each was used.
#[derive(Clone, Debug)]
pub struct Keys {
    current: MasterKey,
    old: Option<MasterKey>,
    /// By their first terms.
    eras: Vec<Era>,
}

impl Keys {
    /// The current key and the one before it; as if no other than `current` had ever been used.
    #[must_use]
    pub fn new(current: MasterKey, old: Option<MasterKey>) -> Self {
        let eras = vec![Era { first_term: 0, key: current.id() }];
        Self { current, old, eras }
    }

    /// The id of the key that new secrets are derived from.
    #[must_use]
    pub fn current(&self) -> KeyId {
        self.current.id()
    }

    /// The id of the key for secrets about which nothing was recorded.
    #[must_use]
    pub fn before(&self) -> KeyId {
        self.old.as_ref().unwrap_or(&self.current).id()
    }

    /// The same keys, with the recorded times of their use.
    #[must_use]
    pub fn in_eras(mut self, mut eras: Vec<Era>) -> Self {
        eras.sort_by_key(|era| era.first_term);
        self.eras = eras;
        self
    }

    /// Whether a generation's secret comes from another key than new ones do.
    #[must_use]
    pub fn is_old(&self, generation: Epoch) -> bool {
        self.of(generation) != Some(self.current.id())
    }

    /// `None`: nobody knows. A key that is only likely would make another secret than the one that is in use.
    fn of(&self, generation: Epoch) -> Option<KeyId> {
        self.eras.iter().rfind(|era| era.first_term <= generation.term).map(|era| era.key)
    }

    /// The secret of a volume in a generation.
    ///
    /// # Errors
    /// Where the key that it was derived from is not available.
    pub fn secret(&self, volume: &VolumeId, generation: Epoch) -> Result<Secret, NoKey> {
        let id = self.of(generation).ok_or_else(|| NoKey::NotNoted(volume.clone()))?;
        let key = [Some(&self.current), self.old.as_ref()].into_iter().flatten().find(|key| key.id() == id);
        let key = key.ok_or_else(|| NoKey::NotGiven { volume: volume.clone(), key: id })?;
        Ok(key.secret(volume, generation))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key(byte: u8) -> MasterKey {
        MasterKey::passing(&[byte; 32])
    }

    fn at(term: u64) -> Epoch {
        Epoch { term, seq: 3 }
    }

    #[test]
    fn a_generation_keeps_its_key_when_another_is_used() {
        let volume = VolumeId::new("v").unwrap();
        let eras = [(0, 1), (100, 2), (200, 1), (300, 3)]
            .map(|(first_term, byte)| Era { first_term, key: key(byte).id() });
        let keys = Keys::new(key(3), Some(key(1))).in_eras(eras.to_vec());
        for (term, byte) in [(1, 1), (99, 1), (200, 1), (299, 1), (300, 3), (900, 3)] {
            assert_eq!(keys.secret(&volume, at(term)), Ok(key(byte).secret(&volume, at(term))), "{term}");
            assert_eq!(keys.is_old(at(term)), byte != 3);
        }
        let missing = keys.secret(&volume, at(150)).unwrap_err().to_string();
        assert!(missing.contains(&key(2).id().to_string()) && missing.contains("volume v"), "{missing}");
    }

    #[test]
    fn a_generation_of_before_all_that_is_noted_has_no_key() {
        let volume = VolumeId::new("v").unwrap();
        let keys = Keys::new(key(2), Some(key(1)));
        let keys = keys.in_eras(vec![Era { first_term: 100, key: key(2).id() }]);
        assert_eq!(keys.secret(&volume, at(99)), Err(NoKey::NotNoted(volume.clone())));
        assert!(keys.is_old(at(99)), "the old key is not to be left out for it");
        assert_eq!(keys.secret(&volume, at(100)), Ok(key(2).secret(&volume, at(100))));
    }

    #[test]
    fn a_key_id_is_read_as_it_was_written_and_differs_by_key() {
        assert_eq!(key(1).id().to_string().parse(), Ok(key(1).id()));
        assert_ne!(key(1).id(), key(2).id());
        for bad in ["", "0123", "0123456789abcdeg", "+123456789abcdef0"] {
            assert!(bad.parse::<KeyId>().is_err(), "{bad}");
        }
    }
}

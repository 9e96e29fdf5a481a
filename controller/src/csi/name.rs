//! Which volume a name means: the id that CreateVolume gives follows from the name that it was given.
//!
//! In come names as CSI allows them (any text of 1 to 128 bytes without control characters); out go volume ids. What
//! always holds: the same name gives the same id, after any restart; a name that can be an id is its own id, so that
//! people find `pvc-…` on the RDS; any other name gives [`HASHED`] and a hash of it; and no two names give one id, for
//! a name that looks like a hashed id is hashed itself.

use cleat_core::VolumeId;
use sha2::{Digest as _, Sha256};

use super::status::{CallError, Invalid};

/// What precedes the hash in an id.
const HASHED: &str = "hashed-";
/// So many bytes of the hash fit in an id beside [`HASHED`], in hex: 224 bits.
const HASH_BYTES: usize = 28;
/// The longest name (CSI specification, "Size Limits").
const NAME_MAX_BYTES: usize = 128;

/// The id of the volume of this name.
pub(super) fn volume_of(name: &str) -> Result<VolumeId, CallError> {
    let invalid = |problem: String| Err(Invalid::new("name", problem).into());
    if name.is_empty() {
        return invalid("must be given".to_owned());
    }
    if name.len() > NAME_MAX_BYTES {
        return invalid(format!("it has {} bytes; at most {NAME_MAX_BYTES} are allowed", name.len()));
    }
    if let Some(control) = name.chars().find(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r')) {
        return invalid(format!("{name:?} has the control character {control:?}, which CSI does not allow"));
    }
    match VolumeId::new(name) {
        Ok(id) if !looks_hashed(name) => Ok(id),
        _ => hashed(name),
    }
}

fn hashed(name: &str) -> Result<VolumeId, CallError> {
    let hash = Sha256::digest(name.as_bytes());
    let hex: String = hash.iter().take(HASH_BYTES).map(|byte| format!("{byte:02x}")).collect();
    VolumeId::new(format!("{HASHED}{hex}")).map_err(|error| Invalid::new("name", error.to_string()).into())
}

fn looks_hashed(name: &str) -> bool {
    name.strip_prefix(HASHED).is_some_and(|rest| rest.len() == 2 * HASH_BYTES)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use tonic::Code;

    use super::*;

    fn id(name: &str) -> String {
        volume_of(name).unwrap().to_string()
    }

    #[test]
    fn a_name_that_can_be_an_id_is_its_own_id() {
        for name in ["pvc-0a1b", "a", "hashed-0a", &"a".repeat(63)] {
            assert_eq!(id(name), name);
        }
    }

    #[test]
    fn any_other_name_that_csi_allows_has_an_id_of_its_own() {
        let long = "a".repeat(128);
        let names = [
            "sanity-node-full-A0A8FFE4-C3567D97",
            &long,
            &long[1..],
            "Über vol/1",
            "pvc-A",
            "-",
            " ",
            "../x",
        ];
        let ids: std::collections::BTreeSet<String> = names.iter().map(|name| id(name)).collect();
        assert_eq!(ids.len(), names.len());
        assert!(ids.iter().all(|id| looks_hashed(id) && id.len() == 63), "{ids:?}");
        // Written down: an id must never change with the program.
        assert_eq!(id("Über vol/1"), "hashed-9513b626971f65a3fe838f955d3534f1f16648380be39755ec59a127");
    }

    #[test]
    fn a_name_that_looks_like_a_hashed_id_is_hashed_itself() {
        let first = id("Über vol/1");
        let second = id(&first);
        assert_ne!(first, second);
        assert_ne!(id(&second), second);
    }

    #[test]
    fn a_name_that_csi_forbids_is_refused_with_the_rule() {
        for (name, rule) in [
            ("", "must be given"),
            (&"a".repeat(129)[..], "it has 129 bytes"),
            ("a\u{7}", "control character"),
        ] {
            let error = volume_of(name).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(error.to_string().contains(rule) && error.to_string().starts_with("name: "), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_two_names_have_one_id(one in "(hashed-)?[a-z0-9A-Z/-]{0,70}", two in "(hashed-)?[a-z0-9A-Z/-]{0,70}") {
            prop_assume!(one != two && !one.is_empty() && !two.is_empty());
            prop_assert_ne!(id(&one), id(&two));
        }
    }
}

//! The driver's name, and the keys under which controller and agent pass a grant to each other through CSI.
//!
//! The keys are an interface: VolumeAttachments and PersistentVolumes store them.

use crate::text::checked_text;

/// In a PublishContext: the epoch of the grant, `TERM.SEQ`.
pub const EPOCH_KEY: &str = "cleat.io/epoch";
/// In a PublishContext: the volume.
pub const VOLUME_KEY: &str = "cleat.io/volume";
/// In a PublishContext: the NQN of the volume's subsystem.
pub const SUBSYSTEM_KEY: &str = "cleat.io/subsystem-nqn";
/// In a PublishContext: the UUID of the volume's namespace.
pub const NAMESPACE_KEY: &str = "cleat.io/namespace-uuid";
/// In a volume's context: the weakest fence that suffices for it, as CreateVolume got it in
/// [`MIN_FENCE_PARAMETER`].
pub const MIN_FENCE_KEY: &str = "cleat.io/min-fence";
/// The CreateVolume parameter: the weakest fence that suffices.
pub const MIN_FENCE_PARAMETER: &str = "minFence";
/// In a volume's context: how many seconds a live migration of it is to take at most, as CreateVolume got it in
/// [`MIGRATION_TIMEOUT_PARAMETER`].
pub const MIGRATION_TIMEOUT_KEY: &str = "cleat.io/migration-timeout-seconds";
/// The CreateVolume parameter: how many seconds a live migration is to take at most.
pub const MIGRATION_TIMEOUT_PARAMETER: &str = "migrationTimeoutSeconds";
/// In a volume's context: `true` where a second node is to get it only for a live migration that is known, as CreateVolume
/// got it in [`REQUIRE_MIGRATION_PARAMETER`].
pub const REQUIRE_MIGRATION_KEY: &str = "cleat.io/require-migration";
/// The CreateVolume parameter: whether a second node is to get the volume only for a live migration that is known.
pub const REQUIRE_MIGRATION_PARAMETER: &str = "requireMigration";

/// The CSI driver's name where no other is given.
pub const DEFAULT_DRIVER_NAME: &str = "cleat.io";

checked_text!(
    /// A CSI driver's name (CSI specification, `GetPluginInfoResponse.name`): domain name notation, at most 63
    /// characters, with a letter or digit at both ends.
    DriverName,
    "driver name",
    |value| {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = value.as_bytes();
        if bytes.is_empty() {
            return Err("is empty");
        }
        if bytes.len() > 63 {
            return Err("is longer than 63 characters");
        }
        if !bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(byte)) {
            return Err("has a character that is not a letter, a digit, - or .");
        }
        if !edge(bytes.first()) || !edge(bytes.last()) {
            return Err("does not begin and end with a letter or digit");
        }
        Ok(())
    },
    "use a domain name of at most 63 letters, digits, - and ., such as cleat.io"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_name_is_in_domain_name_notation() {
        for good in [DEFAULT_DRIVER_NAME, "a", "Block.Example-1.org", &"x".repeat(63)] {
            assert!(DriverName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "-a", "a.", "a/b", "a_b", "a b", &"x".repeat(64)] {
            assert!(DriverName::new(bad).is_err(), "{bad}");
        }
    }
}

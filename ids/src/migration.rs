//! A VM's live migrations, as the orchestrator names them.

use crate::text::{checked_text, printable};

checked_text!(
    /// One live migration of a VM, by the UID of the orchestrator's object: another migration of the same VM has another
    /// one, whatever the two are called. Kubernetes writes a UUID; all that matters is that two differ.
    MigrationUid,
    "UID of a migration",
    |value| printable(value, 64),
    "use 1 to 64 printable ASCII characters without spaces"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_is_never_nothing_and_never_long() {
        assert!(MigrationUid::new("0b7c1d1e-9f59-4c3a-8a43-6c0a3a3a4c5d").is_ok());
        for bad in ["", " ", "a b", "a\u{1b}", &"x".repeat(65)] {
            assert!(MigrationUid::new(bad).is_err(), "{bad:?}");
        }
    }
}

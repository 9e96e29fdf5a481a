//! What the RDS is made to do, and what the controller is told that it was probed to do.
//!
//! In: a choice. Out: arguments of rds-sim and of the controller, and the file that `cleatctl rds probe` would have
//! written. What always holds: both ends are of one choice, so a test fences on the rung that it means to.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use cleat_rig::Network;
use serde_json::{Value, json};

use super::RDS_NUMBER;

/// The key of all secrets in a test: 32 bytes.
const SECRET_KEY: &[u8; 32] = b"a key for tests, of thirty-two b";

/// What the target does, and is known to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetView {
    /// Portals, 1 or 2.
    pub portals: usize,
    /// Further arguments of rds-sim.
    pub rds_args: Vec<String>,
    /// What it was probed to do, but for its address; nothing was, and it keeps to lists, if `None`.
    pub abilities: Option<Value>,
}

impl Default for TargetView {
    /// Two portals, host lists by the operator's word, nothing probed.
    fn default() -> Self {
        Self { portals: Network::STORAGE.len(), rds_args: Vec::new(), abilities: None }
    }
}

impl TargetView {
    /// The portals, `ADDRESS:PORT`.
    pub(super) fn portal_names(&self) -> impl Iterator<Item = String> {
        Network::STORAGE
            .into_iter()
            .take(self.portals)
            .map(|network| format!("{}:4420", network.address(RDS_NUMBER)))
    }

    /// The controller's part; writes the files that it names.
    pub(super) fn controller_args(&self, folder: &Path) -> anyhow::Result<Vec<String>> {
        let mut words: Vec<String> =
            self.portal_names().flat_map(|portal| ["--rds-portal".to_owned(), portal]).collect();
        let Some(abilities) = &self.abilities else {
            words.extend(["--host-acl", "list"].map(str::to_owned));
            return Ok(words);
        };
        let mut abilities = abilities.clone();
        abilities["version"] = json!(1);
        abilities["rds"] = json!(format!("https://{}", Network::Management.address(RDS_NUMBER)));
        abilities["probed_at"] = json!("2026-11-20T10:00:00Z");
        let (file, key) = (folder.join("rds-abilities.json"), folder.join("secret-key"));
        fs::write(&file, abilities.to_string()).with_context(|| format!("write {}", file.display()))?;
        fs::write(&key, SECRET_KEY).with_context(|| format!("write {}", key.display()))?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))
            .with_context(|| format!("close {}", key.display()))?;
        words.extend(["--rds-abilities".to_owned(), file.display().to_string()]);
        words.extend(["--secret-key-file".to_owned(), key.display().to_string()]);
        Ok(words)
    }
}

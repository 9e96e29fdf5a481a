//! What is in sysfs and could not be read.

use std::path::PathBuf;

use serde::Serialize;

/// Something that is there and could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// The attribute or directory.
    pub path: PathBuf,
    /// What the operating system said.
    pub error: String,
}

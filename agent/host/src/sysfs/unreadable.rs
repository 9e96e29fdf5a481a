//! What exists in sysfs but could not be read.

use std::path::PathBuf;

use serde::Serialize;

/// Something that exists but could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// The attribute or directory in sysfs.
    pub path: PathBuf,
    /// What the operating system said.
    pub error: String,
}

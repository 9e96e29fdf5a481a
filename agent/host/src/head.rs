//! For how long the kernel keeps a multipath head that has lost its last path.
//!
//! Kernels from about 6.16 have `delayed_removal_secs` on a head. While such a head lives without a path it queues
//! writes, and sends them as soon as there is a path again: by then the volume may be another node's. So it is set to
//! zero before paths are taken away on purpose.

use std::io;
use std::time::Duration;

use crate::name::DevT;
use crate::sysfs::Sysfs;
use crate::work::{WorkError, Workers};

/// Why a head keeps its time.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// The attribute could not be read or written.
    #[error("cannot set {path} to 0")]
    Attribute {
        /// The attribute.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It was written, and reads otherwise.
    #[error("{path} was set to 0 and is {found:?}")]
    NotTaken {
        /// The attribute.
        path: String,
        /// What it reads.
        found: String,
    },
    /// The kernel has not answered.
    #[error(transparent)]
    Work(#[from] WorkError),
}

/// Has a head go with its last path. Where the kernel knows no delay, or the head is gone, there is nothing to do.
///
/// # Errors
/// [`HeadError`]; the head may then outlive its paths.
pub async fn go_with_last_path(
    workers: &Workers,
    sysfs: &Sysfs,
    dev: DevT,
    deadline: Duration,
) -> Result<(), HeadError> {
    let sysfs = sysfs.clone();
    workers.run(&format!("removal delay of {dev}"), deadline, move || set(&sysfs, dev)).await?
}

fn set(sysfs: &Sysfs, dev: DevT) -> Result<(), HeadError> {
    let path = sysfs.root().join("dev/block").join(dev.to_string()).join("delayed_removal_secs");
    let name = || path.display().to_string();
    let gone =
        |error: &io::Error| matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO));
    let failed = |source| HeadError::Attribute { path: name(), source };
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim() == "0" => return Ok(()),
        Ok(_) => {}
        Err(error) if gone(&error) => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    match std::fs::write(&path, "0").and_then(|()| std::fs::read_to_string(&path)) {
        Ok(text) if text.trim() == "0" => Ok(()),
        Ok(text) => Err(HeadError::NotTaken { path: name(), found: text.trim().to_owned() }),
        Err(error) if gone(&error) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_delay_is_taken_back_and_read_and_none_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let (sysfs, dev) = (Sysfs::at(dir.path()), DevT { major: 259, minor: 3 });
        let go = || async { go_with_last_path(&Workers::new(), &sysfs, dev, Duration::from_secs(20)).await };
        go().await.unwrap();
        let device = dir.path().join("dev/block/259:3");
        std::fs::create_dir_all(&device).unwrap();
        go().await.unwrap();
        std::fs::write(device.join("delayed_removal_secs"), "60\n").unwrap();
        go().await.unwrap();
        assert_eq!(std::fs::read_to_string(device.join("delayed_removal_secs")).unwrap(), "0");
        std::fs::remove_file(device.join("delayed_removal_secs")).unwrap();
        std::fs::create_dir(device.join("delayed_removal_secs")).unwrap();
        let error = go().await.unwrap_err().to_string();
        assert!(error.contains("259:3/delayed_removal_secs"), "{error}");
    }
}

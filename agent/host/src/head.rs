//! Sets how long the kernel keeps a multipath head that has lost its last path.
//!
//! Kernels from about 6.16 have `delayed_removal_secs` on a head. While such a head lives without a path it
//! queues writes, and sends them as soon as a path is back. Under a grant its user wants that: the device
//! that comes back is the one that they have open. After a grant the volume may belong to another node, so
//! the time is set to zero before paths are taken away on purpose.
//!
//! The value counts for the next time that the last path goes (`nvme_mpath_remove_disk`). A head that has no
//! path already stays for the time that was set then: writing the attribute changes only the number
//! (`delayed_removal_secs_store`), and only a path that comes back cancels the removal (`nvme_init_ns_head`).

use std::io;
use std::time::Duration;

use crate::name::DevT;
use crate::sysfs::Sysfs;
use crate::work::{WorkError, Workers};

/// Why a head keeps another time.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// The attribute could not be read or written.
    #[error("cannot set {path} to {seconds}")]
    Attribute {
        /// The attribute `delayed_removal_secs` of the head.
        path: String,
        /// The value that was to be written.
        seconds: u64,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The value was written, but the attribute reads otherwise.
    #[error("cannot set {path} to {seconds}: it reads {found:?}")]
    NotTaken {
        /// The attribute `delayed_removal_secs` of the head.
        path: String,
        /// The value that was written.
        seconds: u64,
        /// What the attribute reads afterwards.
        found: String,
    },
    /// The deadline passed, earlier work on the same head still runs, or no thread could be started.
    #[error(transparent)]
    Work(#[from] WorkError),
}

/// Sets how long a head stays without a path (whole seconds; zero: it goes with its last path) and returns
/// the time that was set before. `None` where the kernel has no such time or the head is gone: there is
/// nothing to do.
///
/// # Errors
/// [`HeadError`]; the head may then keep another time.
pub async fn stay_without_paths(
    workers: &Workers,
    sysfs: &Sysfs,
    dev: DevT,
    stay: Duration,
    deadline: Duration,
) -> Result<Option<Duration>, HeadError> {
    let (sysfs, seconds) = (sysfs.clone(), stay.as_secs());
    workers.run(&format!("removal delay of {dev}"), deadline, move || set(&sysfs, dev, seconds)).await?
}

fn set(sysfs: &Sysfs, dev: DevT, seconds: u64) -> Result<Option<Duration>, HeadError> {
    let path = sysfs.root().join("dev/block").join(dev.to_string()).join("delayed_removal_secs");
    let name = || path.display().to_string();
    let gone =
        |error: &io::Error| matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO));
    let failed = |source| HeadError::Attribute { path: name(), seconds, source };
    let wanted = seconds.to_string();
    let before = match std::fs::read_to_string(&path) {
        Ok(text) if text.trim() == wanted => return Ok(Some(Duration::from_secs(seconds))),
        Ok(text) => text.trim().parse().map(Duration::from_secs).unwrap_or_default(),
        Err(error) if gone(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    match std::fs::write(&path, &wanted).and_then(|()| std::fs::read_to_string(&path)) {
        Ok(text) if text.trim() == wanted => Ok(Some(before)),
        Ok(text) => Err(HeadError::NotTaken { path: name(), seconds, found: text.trim().to_owned() }),
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_time_is_set_and_read_back_and_none_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let (sysfs, dev) = (Sysfs::at(dir.path()), DevT { major: 259, minor: 3 });
        let stay = |seconds| {
            let sysfs = sysfs.clone();
            async move {
                let (stay, deadline) = (Duration::from_secs(seconds), Duration::from_secs(20));
                stay_without_paths(&Workers::new(), &sysfs, dev, stay, deadline).await
            }
        };
        assert_eq!(stay(0).await.unwrap(), None);
        let device = dir.path().join("dev/block/259:3");
        std::fs::create_dir_all(&device).unwrap();
        assert_eq!(stay(30).await.unwrap(), None, "a kernel that knows no such time");
        let attribute = device.join("delayed_removal_secs");
        std::fs::write(&attribute, "60\n").unwrap();
        for (seconds, before) in [(0, 60), (30, 0), (0, 30)] {
            assert_eq!(stay(seconds).await.unwrap(), Some(Duration::from_secs(before)));
            assert_eq!(std::fs::read_to_string(&attribute).unwrap(), seconds.to_string());
        }
        std::fs::remove_file(&attribute).unwrap();
        std::fs::create_dir(&attribute).unwrap();
        let error = stay(30).await.unwrap_err().to_string();
        assert!(error.contains("259:3/delayed_removal_secs to 30"), "{error}");
    }
}
